/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/json.h"
#include "basic/log.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "conntrack/conntrack.h"
#include "move/engine.h"
#include "move/journal.h"
#include "peer/link.h"
#include "peer/messages.h"
#include "qemu/process.h"
#include "qemu/qmp.h"
#include "vm/definition.h"
#include "vm/host.h"
#include "vm/lease.h"

/*
 * The keeper: one process per VM. keeper.c sets it up, begin.c and adopt.c find out what it has to do, machine.c has QEMU's
 * life, control.c and peer.c the two doors, move.c executes the engine's rows (move.h), report.c says what happened.
 */

/* X(identifier, name, meaning): requirements B 20 */
#define VM_STATES(X)                                                                                                   \
	X(SHUTOFF, "shutoff", "no QEMU")                                                                               \
	X(STARTING, "starting", "QEMU starts")                                                                         \
	X(INCOMING, "incoming", "QEMU waits for a migration")                                                          \
	X(RUNNING, "running", "the guest runs")                                                                        \
	X(PAUSED, "paused", "stopped by a person, a migration, or QEMU")                                               \
	X(CRASHED, "crashed", "the guest panicked, or QEMU died")                                                      \
	X(IN_DOUBT, "in-doubt", "committed to the other host, no answer yet")
#define X(id, name, text) VM_##id,
typedef enum VmState { VM_STATES(X) _VM_STATE_MAX } VmState;
#undef X
/** vm_state_to_string() - the name above; and the reverse: -EINVAL if there is no such name */
const char *vm_state_to_string(VmState state);
int vm_state_from_string(const char *s);

/* Why it is in that state; the state file has them as text. */
#define VM_REASONS(X)                                                                                                  \
	X("starting")                                                                                                  \
	X("incoming")                                                                                                  \
	X("offline")                                                                                                   \
	X("booted")                                                                                                    \
	X("unpaused")                                                                                                  \
	X("migrated")                                                                                                  \
	X("migration")                                                                                                 \
	X("migration cancelled")                                                                                       \
	X("migration failed")                                                                                          \
	X("user")                                                                                                      \
	X("stopped by QEMU")                                                                                           \
	X("QEMU does not answer")                                                                                      \
	X("suspended")                                                                                                 \
	X("wakeup")                                                                                                    \
	X("shutdown")                                                                                                  \
	X("panicked")                                                                                                  \
	X("destroyed")                                                                                                 \
	X("crashed")                                                                                                   \
	X("failed")                                                                                                    \
	X("saved")                                                                                                     \
	X("committed, no answer")                                                                                      \
	X("keeper restarted")
/** vm_reason() - the reason of that text, NULL if it is none */
const char *vm_reason(const char *text);

typedef struct Keeper Keeper;
typedef struct Move Move;
typedef struct Data Data;
typedef struct Stats Stats;
typedef struct Worker Worker;
typedef struct Admission Admission;

/* A control call that is answered later. */
typedef enum WaitFor { WAIT_OFF, WAIT_PAUSED, WAIT_RUNNING, WAIT_CANCEL } WaitFor;
typedef struct Waiter {
	struct Waiter *next;
	sd_bus_message *message;
	WaitFor what;
	sd_event_source *timer;
	bool kill;
	Keeper *keeper;
} Waiter;

/* A connection to one of our sockets. */
typedef struct Client {
	struct Client *next;
	Keeper *keeper;
	sd_bus *bus;
} Client;

typedef struct PeerConnection {
	struct PeerConnection *next;
	Keeper *keeper;
	Preamble preamble;
	Link *link;
	/* while its first line is being read */
	int fd;
	char line[PREAMBLE_MAX];
	size_t line_have;
	sd_event_source *io, *timer;
	/* Hello */
	char *host_id, *host_name;
	bool greeted;
	int proof_fd; /* listens where the data address can be proved */
	sd_event_source *proof_io;
	char *proof_token;
} PeerConnection;

typedef struct Console Console;

struct Keeper {
	sd_event *event;
	char *name;
	HostConf *conf;
	VmDefinition *def;
	bool arrived; /* the definition came with a migration */
	Journal *journal;
	int lock_fd;
	int ready_fd;  /* tells who started us */
	bool incoming; /* started for a migration; ends when nobody wants it any more */
	bool start_wanted; /* a fresh start was asked for, but first it must be known whose the guest is */
	bool recovering;   /* came back, and QEMU has not yet said how the guest is */
	bool leaving;
	bool restart; /* the program that is installed now goes on, in this process */

	/* machine.c */
	QemuProcess *qemu;
	Qmp *qmp;
	bool qmp_usable; /* negotiated */
	sd_event_source *qemu_exit, *qemu_words;
	unsigned int generation;
	VmState state;
	const char *reason;
	uint64_t since; /* CLOCK_REALTIME, microseconds */
	char *qemu_version;
	bool kill_sent;
	/* As the keeper before us left it in the state file, if there was one. */
	struct {
		VmState state;
		const char *reason; /* NULL: there is none */
		uint64_t since;
	} before;

	/* lease.c */
	Lease *lease; /* NULL: none, or no QEMU */
	Error *lease_error; /* it was lost while no keeper was there */
	Worker *lease_worker; /* does what is done with it; NULL as above */
	bool lease_releasing; /* it is giving it back just now */
	bool lease_silent;    /* its storage does not answer */
	sd_event_source *lease_timer;

	/* doors */
	int control_fd, peer_fd;
	sd_event_source *control_io, *peer_io;
	Client *clients;
	Client *relay; /* one of them: makes the streams of a migration with --direct */
	PeerConnection *peers;
	Admission *admission; /* a Prepare whose storage is looked at, NULL: none */
	Waiter *waiters;
	Console *console;

	/* viewers.c */
	int viewers_fd; /* listens for the clients of the graphics */
	sd_event_source *viewers_io;
	unsigned int viewers_port; /* where it does, or did for the keeper before us; 0: nowhere yet */
	bool viewer_pending; /* one is on its way to QEMU */

	Move *move; /* never NULL */
	Worker *remover; /* removes the file of an upgrade through one; NULL: none */
	Stats *stats;
	json_object *last_result;
	sd_event_source *idle_timer;
	sd_bus *systemd_bus;
};

/* ---- keeper.c ---- */

/**
 * keeper_say_ready() - tell who started us that the VM is up, or why not; once. The control socket opens with it: who
 * finds it finds a keeper that knows its guest's state
 */
void keeper_say_ready(Keeper *k, const Error *err);
/** keeper_set_state() - the one place where a VM's state changes: recorded, logged, signalled. @reason: a literal */
void keeper_set_state(Keeper *k, VmState state, const char *reason);
/** keeper_keep_state() - after a restart: the state of before, with its reason and time, if it still is @state;
 * else @reason */
void keeper_keep_state(Keeper *k, VmState state, const char *reason);
/** keeper_save_state() - write the state file; its "generation" says which QEMU has the guest. Return: 0 or errno */
int keeper_save_state(Keeper *k);
/** keeper_read_state() - the state file of a VM's keeper; NULL: there is none */
json_object *keeper_read_state(const char *name);
/** keeper_history() - append a line to STATE_DIR/NAME/history; takes @details over, may be NULL */
void keeper_history(Keeper *k, const char *event, json_object *details);
/** keeper_leave() - end: answer who waits, remove the runtime directory, leave the loop */
void keeper_leave(Keeper *k);
/**
 * keeper_restart() - let the program that is installed by now go on in this process; the guest does not notice
 *
 * Return: 0, it happens when the loop is left; -EBUSY or another negative errno with @err set.
 */
int keeper_restart(Keeper *k, Error **err);
/** keeper_check_idle() - a keeper started for a migration ends when nothing came of it; keeper_check_idle_in(): at the
 * earliest after @usec microseconds */
void keeper_check_idle(Keeper *k);
void keeper_check_idle_in(Keeper *k, uint64_t usec);
/** keeper_owner() - whether this host may run the guest, as the journal says */
bool keeper_owner(const Keeper *k);

/* ---- begin.c ---- */

/**
 * keeper_begin() - go on with the guest that is there, or start it, or wait for it, as the journal and @flags say
 * @flags: of enum KeeperFlags; the file "start" in the runtime directory adds to them
 *
 * Return: 0, or negative errno with @err set: then there is nothing to be a keeper for.
 */
int keeper_begin(Keeper *k, unsigned int flags, Error **err);
/** keeper_without_guest() - a migration came to nothing and QEMU is gone: start the guest if that was asked for, or end */
void keeper_without_guest(Keeper *k);

/* ---- machine.c: the life of the VM's QEMU ---- */

/**
 * machine_start() - start QEMU for k->def
 * @incoming: it is to wait for a migration, else it boots the guest when its QMP is ready
 *
 * Return: 0, or negative errno with @err set: no QEMU and no lease of ours is left then.
 */
int machine_start(Keeper *k, bool incoming, Error **err);
/** machine_connect() - reach a QEMU that lives: its QMP, its console, its exit. Return: 0, or negative errno with @err set */
int machine_connect(Keeper *k, Error **err);
/** machine_boot() - put the taps on their bridges and let a guest begin that never ran; a failure ends QEMU */
void machine_boot(Keeper *k);
/** machine_kill() - SIGKILL to QEMU; its exit is an event */
void machine_kill(Keeper *k);
/** machine_watch_exit() - QEMU's exit is an event from here on. Return: 0 or negative errno */
int machine_watch_exit(Keeper *k);
/** machine_gone() - QEMU has ended: forget all that was its own, files too */
void machine_gone(Keeper *k);
/** machine_check_off() - from the loop: when QEMU is gone and nothing is under way, the VM is off */
void machine_check_off(Keeper *k);
/** machine_learn_suspended() - ask QEMU whether the guest sleeps (ACPI S3): no event says so after a migration */
void machine_learn_suspended(Keeper *k);
/** machine_write_definition() - RUNTIME_DIR/NAME/definition, for our successor and for other VMs' keepers */
int machine_write_definition(Keeper *k, Error **err);
/** machine_attach_taps() - put all taps on their bridges; machine_attach_taps_of(): those of another QEMU */
int machine_attach_taps(Keeper *k, Error **err);
int machine_attach_taps_of(const QemuProcess *qemu, const VmDefinition *def, Error **err);
/** machine_take_over() - another process, with its QMP, is the VM's QEMU from here on. Return: the one it was */
QemuProcess *machine_take_over(Keeper *k, QemuProcess *qemu, Qmp *qmp);
/** machine_link_agent() - RUNTIME_DIR/NAME/agent leads to where QEMU listens for the guest's agent by now */
void machine_link_agent(Keeper *k);
/** machine_generation_dir() - RUNTIME_DIR/NAME/qemu.N; machine_next_generation(): the next N that is free */
char *machine_generation_dir(const Keeper *k, unsigned int generation);
unsigned int machine_next_generation(const Keeper *k);
/** machine_qmp() - qmp_command() that does nothing when QEMU is going (then @reply is not called) */
void machine_qmp(Keeper *k, const char *command, json_object *arguments, QmpReply reply, void *userdata);
/** machine_version_text() - the answer of query-version as "10.0.2"; free() it */
char *machine_version_text(json_object *ret);

/* ---- adopt.c: after a keeper's restart ---- */

/** machine_adopt() - take over the living QEMU that has the guest. Return: 1 found, 0 none, or negative errno with @err set */
int machine_adopt(Keeper *k, Error **err);
/** machine_adopt_generation() - one QEMU, by its number. Return: 1 alive, 0 not, or negative errno with @err set */
int machine_adopt_generation(Keeper *k, unsigned int generation, QemuProcess **ret, Error **err);
/**
 * machine_adopt_doomed() - find a living QEMU that is only to be killed
 *
 * Its end is an event; k->qemu is NULL if there is none. Return: 0, or negative errno with @err set.
 */
int machine_adopt_doomed(Keeper *k, Error **err);
/** machine_sweep() - kill every QEMU that is neither the VM's nor the other one of an upgrade, and wait for their end */
void machine_sweep(Keeper *k);

/* ---- lease.c ---- */
/**
 * keeper_lease_open() - open k->def's lease, if it has one, for the QEMU that is about to be started
 * @take: and take it: a cold start. Else it is taken at Finish
 *
 * Return: 0 or negative errno with @err set: then keeper_lease_drop() it.
 */
int keeper_lease_open(Keeper *k, bool take, Error **err);
/** keeper_lease_started() - k->qemu runs: the lease is its own from here on. Return: 0 or negative errno with @err set */
int keeper_lease_started(Keeper *k, Error **err);
/** keeper_lease_follow(), _ended(), _share(), _own() - as lease_follow() ... say; the first one does not wait */
void keeper_lease_follow(Keeper *k);
void keeper_lease_ended(Keeper *k);
int keeper_lease_share(Keeper *k, pid_t other, Error **err);
int keeper_lease_own(Keeper *k, pid_t other, Error **err);
/** keeper_lease_adopt() - the lease of a QEMU that was found alive; k->lease_error tells if it is lost */
void keeper_lease_adopt(Keeper *k);
/** keeper_lease_settle() - after that, when the guest is known to be this host's: its lease is held if it runs, else given back */
void keeper_lease_settle(Keeper *k);
/** keeper_lease_answers() - whether its storage did when it was last asked. Return: 0, or -ETIMEDOUT with @err set */
int keeper_lease_answers(const Keeper *k, Error **err);
/** keeper_lease_retake() - hold it (still), if nobody else has had it. Return: 0 or negative errno with @err set */
int keeper_lease_retake(Keeper *k, Error **err);
/** keeper_lease_check() - whether what we hold is still ours. Return: 0 or negative errno with @err set */
int keeper_lease_check(Keeper *k, Error **err);
/** keeper_lease_lost() - somebody else may have it: kill the guest, or pause it; @err is taken over */
void keeper_lease_lost(Keeper *k, Error *err);
/** keeper_lease_explain() - QEMU ended by itself: if who manages the lease has killed it, say so */
void keeper_lease_explain(Keeper *k);
/** keeper_lease_drop() - QEMU is gone: give back what we hold, and forget it */
void keeper_lease_drop(Keeper *k);
/** keeper_lease_forget() - this keeper ends, QEMU goes on and holds it */
void keeper_lease_forget(Keeper *k);
/** keeper_lease_pause() - a person has paused the guest: give the lease back, remember its state */
void keeper_lease_pause(Keeper *k);
/** keeper_lease_resume() - take it as it was left. Return: 0, or negative errno with @err saying who has or had it */
int keeper_lease_resume(Keeper *k, Error **err);
/** keeper_lease_status() - for people; NULL: none */
json_object *keeper_lease_status(const Keeper *k);

/* ---- wait.c ---- */
/**
 * wait_add() - answer a control call later, when what it waits for has come about
 * @m:            a reference is kept
 * @timeout_usec: 0: no limit; else the call fails then
 * @kill:         at the limit QEMU is killed instead
 */
void wait_add(Keeper *k, sd_bus_message *m, WaitFor what, uint64_t timeout_usec, bool kill);
/** wait_done() - answer all calls that wait for this */
void wait_done(Keeper *k, WaitFor what);
/** wait_failed() - answer them with an error */
void wait_failed(Keeper *k, WaitFor what, const char *name, const char *message);

/* ---- control.c ---- */
/** control_open() - listen on RUNTIME_DIR/NAME/control. Return: 0, or negative errno with @err set */
int control_open(Keeper *k, Error **err);
/** control_close() - end all connections, and listen no more */
void control_close(Keeper *k);
/** control_emit_text() - a signal with one string to every control connection; _log() and _state(): "Log", "StateChanged" */
void control_emit_text(Keeper *k, const char *member, const char *text);
void control_emit_log(Keeper *k, LogLevel level, const char *message);
void control_emit_state(Keeper *k);
/** control_want_stream() - ask one client for a stream to the target. Return: 0 or negative errno */
int control_want_stream(Client *client, const char *stream, bool data);

/** bus_error() - put an Error into a D-Bus error "org.vmferry.Error.KIND": message, newline, hint */
int bus_error(sd_bus_error *error, const char *kind, const Error *err);
/** bus_reply_error() - the same as an answer to a stored call */
void bus_reply_error(sd_bus_message *m, const char *kind, const Error *err);
/** bus_error_read() - the other way: what an error reply says. Return: its code as negative errno, @err set */
int bus_error_read(sd_bus_message *reply, const char *what, Error **err);

/* ---- methods.c ---- */
/* org.vmferry.VM1, with a Keeper as userdata. */
extern const sd_bus_vtable control_methods[];

/* ---- stats.c ---- */
/** stats_new() - what QEMU says of its disks, kept for who asks; stats_free() takes NULL, and returns it */
Stats *stats_new(Keeper *k);
Stats *stats_free(Stats *stats);
/** stats_status() - answer Status, now or when QEMU has said how its disks are. Return: as a vtable method */
int stats_status(Keeper *k, sd_bus_message *m);
/** stats_refresh() - ask QEMU for the figures */
void stats_refresh(Keeper *k);
/** stats_disks() - what is known: {age_ms, disks}; NULL: nothing */
json_object *stats_disks(const Stats *stats);
/** stats_forget() - QEMU is gone */
void stats_forget(Stats *stats);

/* ---- console.c ---- */
/** console_open() - the serial console of k->qemu, for any number of people. Return: 0, or negative errno with @err set */
int console_open(Keeper *k, Error **err);
/** console_switch() - go on with another QEMU's serial socket (taken over, -1: none); who looks on stays */
void console_switch(Keeper *k, int guest_fd);
/** console_free() - takes NULL. Return: NULL */
Console *console_free(Console *console);

/* ---- viewers.c ---- */
/**
 * viewers_listen() - a place for clients of @def's graphics: its port, or the one we had last, or the first free one
 * @ret: -1: there is nothing to do, for there are no graphics, or the listener we have serves @def as well
 *
 * Return: 0, or negative errno with @err and hint set (-EADDRINUSE: it is taken).
 */
int viewers_listen(const Keeper *k, const VmDefinition *def, int *ret, Error **err);
/** viewers_open() - go on with this listener, which is taken over; -1: with the one there is */
void viewers_open(Keeper *k, int fd);
/** viewers_start() - both, for k->def. Return: as viewers_listen() */
int viewers_start(Keeper *k, Error **err);
/** viewers_look() - something changed: is there a QEMU now that clients can be handed to? */
void viewers_look(Keeper *k);
/** viewers_close() - listen no more; who is connected to QEMU stays so */
void viewers_close(Keeper *k);
/** viewers_json() - for people: {type, listen, port or tls_port}; k->def has graphics */
json_object *viewers_json(const Keeper *k);

/* ---- peer.c ---- */
/** peer_open() - listen on RUNTIME_DIR/NAME/peer. Return: 0, or negative errno with @err set */
int peer_open(Keeper *k, Error **err);
/** peer_close() - end all connections of peers, and listen no more */
void peer_close(Keeper *k);
/** peer_log() - a line to the source's log: on the connection of the present migration */
void peer_log(Keeper *k, LogLevel level, const char *message);
