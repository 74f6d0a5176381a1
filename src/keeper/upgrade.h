/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/move.h"
#include "keeper/saved.h"

/*
 * A newer (or older) QEMU under a running guest: a second QEMU process maps the same memory, the device state moves
 * over a socket pair, the first one is killed. Rows U_* of the engine; facts: requirements E, docs/protocol.md.
 *
 * Memory that only its QEMU has ("private") cannot be mapped by another: it is copied over that socket pair, while the
 * guest runs, into memory that can. Same rows, same journal; the next upgrade is one in place.
 *
 * The state file's "generation" is the record that decides: it names the QEMU that has the guest, and is never cleared.
 * RUNTIME_DIR/NAME/move says that an upgrade is under way, between which generations; definition.next is the definition
 * that goes with the new one.
 *
 * Saved to a file (--way=save) the guest is in no QEMU for a while: saved.h.
 */
/* X(identifier, --way=, what the result says) */
#define UPGRADE_WAYS(X)                    \
	X(IN_PLACE, "in-place", "in place") \
	X(COPY, "copy", "copy")            \
	X(SAVE, "save", "save")
#define X(id, option, text) WAY_##id,
typedef enum UpgradeWay { UPGRADE_WAYS(X) _WAY_MAX } UpgradeWay;
#undef X

typedef struct Upgrade {
	Move *m;
	char *binary, *to_definition; /* as asked for; NULL: not */
	unsigned int old, fresh;      /* generations */
	QemuProcess *other;	      /* the new one; from KILL_OLD on the old one, until it is reaped */
	Qmp *qmp;		      /* the new one's, until it has the guest */
	sd_event_source *other_exit;
	VmDefinition *def; /* of the new one, until it has the guest */
	int serial_fd;
	int viewers_fd; /* where clients of its graphics are to connect; -1: where they do */
	int stream[2];
	unsigned int pending; /* set-up commands not yet answered */
	UpgradeWay way;
	bool other_killed, taps_attached, resumed, changed_over;
	char *from_binary, *to_binary, *from_version, *to_version;
	uint64_t memory_needed; /* bytes, beyond what the guest has */
	uint64_t spawned, ready, opened, killed, reaped; /* CLOCK_MONOTONIC, microseconds */
	/* --way=save, save.c */
	Saved *saved;
	int save_fd;
	Worker *sync;	 /* syncs the file */
	bool silent;	 /* that was given up: its storage may not answer */
	sd_event_source *load_watch;
	uint64_t filled; /* CLOCK_MONOTONIC, microseconds: the QEMU for the file was there */
	bool filling, fell_back, restored; /* one was started; the old version; it has the guest */
} Upgrade;

/** upgrade_way_to_string() - as the result says it */
const char *upgrade_way_to_string(UpgradeWay way);
/** upgrade_capabilities() - arguments of migrate-set-capabilities, for both QEMUs */
json_object *upgrade_capabilities(const Upgrade *up);

typedef struct UpgradeOptions {
	char *binary, *to_definition, *way; /* way: "auto" or one of UPGRADE_WAYS; NULL: auto */
	char *save_dir;			    /* --way=save: an absolute path; NULL: in the runtime directory */
	bool check_only, live;
} UpgradeOptions;

/**
 * upgrade_start() - begin an upgrade, or a check of one: that starts the new QEMU, sets it up and ends it again
 * @options: contents taken over on success
 * @check:   the call that a check answers; NULL for an upgrade
 *
 * Return: 0; or negative errno with @err set: nothing has begun.
 */
int upgrade_start(Keeper *k, UpgradeOptions *options, sd_bus_message *check, Error **err);
void upgrade_options_clear(UpgradeOptions *options);

/** upgrade_end() - do_end() of an upgrade: what is left is taken away, the result is told */
int upgrade_end(Move *m);

/** upgrade_progress() - memory is being copied: what is there by now is not wanted any more */
void upgrade_progress(Move *m);

/** upgrade_qemu_event() - move_qemu_event() during an upgrade; the QEMU that has the guest speaks */
void upgrade_qemu_event(Move *m, const char *name, json_object *data, uint64_t at);

/** upgrade_free() - forget an upgrade; a QEMU of it that was killed is waited for */
Upgrade *upgrade_free(Upgrade *up);

/* ---- save.c: the guest's state in a file ---- */

/**
 * save_check() - whether there is room for the state of @def's guest
 * @ret_memory: bytes of memory that its file may take, 0 on a disk
 *
 * Return: 0 or negative errno with @err set.
 */
int save_check(const VmDefinition *def, const char *dir, uint64_t *ret_memory, Error **err);
/** save_note() - before the note of the upgrade: an empty file, and a record of it */
int save_note(Upgrade *up, Error **err);
/** save_give_up() - on the way back: the file is not wanted any more */
void save_give_up(Upgrade *up);
/** save_busy() - whether the file of the upgrade before is still being removed. Return: 0 or -EBUSY with @err set */
int save_busy(const Keeper *k, Error **err);
/** save_end() - the file is removed, unless it has the guest: then @m's error says so */
void save_end(Move *m);
/** save_qemu_ready() - the QEMU that is to load the file answers */
void save_qemu_ready(Move *m);
/** save_qemu_event() - of the QEMU that is to load the file: MIGRATION with @status */
void save_migration_event(Move *m, const char *status, uint64_t at);
/**
 * save_adopt() - a keeper came (back): does a file have the guest?
 * @flags: of keeper_run()
 *
 * Return: 1 if so: it is being loaded; 0 if not; or negative errno with @err set.
 */
int save_adopt(Keeper *k, unsigned int flags, Error **err);

/* ---- second.c: the other QEMU process ---- */

/** second_start() - start the new QEMU: same memory, fresh taps and sockets, -S -incoming defer; QEMU_READY follows */
int second_start(Upgrade *up, Error **err);
/** second_watch() - take @process as the other one, and its exit as an event */
int second_watch(Upgrade *up, QemuProcess *process);
/** second_connect() - reach the new one's QMP and serial console. Return: 0 or negative errno */
int second_connect(Upgrade *up);
/** second_kill() - SIGKILL to the other one, once */
void second_kill(Upgrade *up);
/** second_change_over() - the old one is killed: the new one is the VM's QEMU from here on, the old one the other */
void second_change_over(Upgrade *up);
/** second_attach_taps() - put the new one's taps on their bridges */
int second_attach_taps(Upgrade *up, Error **err);

/**
 * upgrade_adopt() - a keeper came back: was an upgrade under way, and which QEMUs are alive?
 *
 * Sets k->qemu to the one that has the guest, and what else is known of the upgrade. A new one that does not have it is
 * killed.
 *
 * Return: 1 if so, 0 if there is nothing of an upgrade here, or negative errno.
 */
int upgrade_adopt(Keeper *k, Error **err);
/** upgrade_recover() - go on from there; @run_state: what QEMU says of the guest */
void upgrade_recover(Move *m, const char *run_state);
