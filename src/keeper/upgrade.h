/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/move.h"

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
 */
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
	bool copy; /* memory is copied, not mapped again */
	bool other_killed, taps_attached, resumed, changed_over;
	char *from_binary, *to_binary, *from_version, *to_version;
	uint64_t memory_needed; /* bytes, beyond what the guest has */
	struct Room *room;	/* and these are promised to it */
	uint64_t spawned, ready, opened, killed, reaped; /* CLOCK_MONOTONIC, microseconds */
} Upgrade;

typedef struct UpgradeOptions {
	char *binary, *to_definition, *way; /* way: "auto", "in-place" or "copy"; NULL: auto */
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
