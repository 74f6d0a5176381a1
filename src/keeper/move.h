/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/*
 * One migration of one side, as the engine's table has it: move.c holds the state, queues events and runs the rows'
 * actions (its table says which function each is): source.c to perform.c and confirm.c have the source's, in the order in
 * which they come, target.c and owner.c the target's, upgrade.c and save.c those of an upgrade.
 */

/* What a person may set; docs/control.md. */
typedef struct MoveOptions {
	char *destination, *transport, *data_address, *remote_command, *ssh, *ssh_auth_sock, *to_definition;
	uint64_t bandwidth; /* bytes/s, 0: no limit */
	uint64_t downtime;  /* ms */
	uint64_t timeout;   /* s, 0: none */
	uint64_t throttle;  /* %, how much of its time a guest that writes too fast may lose; 0: nothing */
	uint64_t channels;  /* of QEMU's, for memory over tls and tcp; 0: as its size suggests */
	HostDeadlines deadlines; /* 0: host.conf's */
	bool conntrack, live;
	bool check_only; /* vmferry check */
} MoveOptions;

typedef struct MoveTimes { /* CLOCK_MONOTONIC, microseconds; 0: not reached */
	uint64_t begun, phase_begun, ended;
	uint64_t stop;	     /* STOP, by QEMU's timestamp */
	uint64_t hold;	     /* pre-switchover seen */
	uint64_t delta_done; /* last delta handed to the link */
	uint64_t postmigrate;
	uint64_t committed; /* COMMIT durable */
	uint64_t finish_sent, answered;
	uint64_t barrier_answered; /* the last delta's reply */
	/* target */
	uint64_t finish_came, loaded, gate_passed, journalled, cont_sent, resumed;
} MoveTimes;

/* SPICE's clients, seen from the source: none to lead; told where to go; handed over; our QEMU waits for that. */
typedef enum SpiceClients { SPICE_NONE, SPICE_TOLD, SPICE_DONE, SPICE_AWAITED } SpiceClients;

#define MOVE_QUEUE 16
#define MOVE_PHASES 16
#define MOVE_WARNINGS_MAX 32

struct Move {
	Keeper *k;
	MoveState state;
	unsigned int facts;
	MoveEvent queue[MOVE_QUEUE];
	size_t queued;
	bool draining;
	char id[33];
	MoveOptions opt;
	HostDeadlines deadlines;
	MoveTimes t;
	struct {
		const char *name;
		uint64_t usec;
	} phases[MOVE_PHASES];
	size_t n_phases;
	Error *error; /* the first one */
	const char *error_phase;
	char **warnings;
	sd_bus_message *check_message; /* check_only: what is answered at the end */
	sd_event_source *deadline, *timeout, *progress, *hold_timer, *watchdog;
	bool was_running; /* the guest, when it began: rule B 12 */
	const char *was_reason;
	char *outcome_text; /* why it ended as it did: "running there" ... */
	const char *status; /* "completed", "failed", "cancelled", "in-doubt" */
	bool reported;	    /* in-doubt was told to who waits */

	/* source */
	Destination *dest;
	Link *link;
	HelloReply hello;
	PrepareReply prepared;
	OutcomeReply outcome;
	const char *transport;
	char *transport_reason;
	char *token, *psk;
	int prove_fd;
	sd_event_source *prove_io, *prove_timer;
	char prove_line[33];
	size_t prove_have;
	Data *data;
	char *uri;
	unsigned int setup_pending; /* before memory moves */
	bool ping_pending, ping_done;
	unsigned int settle_tries;
	bool cont_due; /* cont is sent to the QEMU that goes on here, and not answered */
	unsigned int reconnects;
	unsigned int retries; /* of an action that failed */
	uint64_t lease_generation; /* at which the source gives the lease up; 0: there is none */
	MoveAction lease_action; /* that the lease's worker is at, or NOTHING */
	sd_event_source *retry_timer;
	uint64_t ram_total, ram_transferred, ram_remaining, dirty_rate, rate, predicted_pause_ms;
	uint64_t progress_at, progress_transferred;
	bool warned_converge;
	uint64_t downtime_now; /* ms, the limit QEMU has; it is raised to what is allowed */
	uint64_t throttle_now; /* %, what QEMU may take now, and what it takes */
	uint64_t throttled, throttle_syncs;
	bool can_throttle;
	uint64_t channels; /* multifd's; 0: memory goes through the one that there always is */
	SpiceClients spice;
	sd_event_source *spice_timer;

	/* connections */
	CtSelect *select;
	CtFollow *follow;
	sd_event_source *delta_timer;
	bool follow_wanted, follow_awaited, delta_in_flight, delta_full, delta_lost, follow_without_events, bound_told;
	uint64_t resynced;
	uint64_t followed, untold, last_delta_entries;
	CtApply *apply;
	CtApplyStats applied; /* once it is settled */

	Room *room; /* memory that this host promised to it, vm/room.h; NULL: none, or it has it */

	struct Upgrade *up; /* an upgrade, keeper/upgrade.h; NULL: a migration */

	/* target */
	PeerConnection *from;
	PrepareCookie prepare;
	sd_bus_message *prepare_message, *finish_message;
	uint64_t finish_since;
	sd_event_source *gate_timer, *announce_timer;
	unsigned int announced;
	const char *gate; /* "barrier", "timeout", "none" */
	char *ct_problem;
	bool attached;
};

/* ---- move.c ---- */
/** move_new() - the keeper's one Move, which every attempt uses in turn; move_free() takes NULL, and returns it */
Move *move_new(Keeper *k);
Move *move_free(Move *m);
/** move_reset() - forget the last migration, ready for the next; the state becomes S_IDLE or T_IDLE */
void move_reset(Move *m);
/** move_event() - something happened: queue it, run rows until nothing is left */
void move_event(Move *m, MoveEvent event);
/** move_fact() - set or clear a fact the rows look at */
void move_fact(Move *m, MoveFact fact, bool on);
/** move_progress_made() - begin the present deadline anew */
void move_progress_made(Move *m);
/** move_cancel() - a person's wish; valid before COMMIT only (the caller checks) */
void move_cancel(Move *m);
/** move_retry_now() - in doubt: ask again now */
void move_retry_now(Move *m);
/** move_user_may_pause() - whether a person may pause or resume the guest now */
bool move_user_may_pause(const Move *m);
/** move_user_paused() - a person has paused or resumed it: so it is to be in the end, whoever has it, and after a restart too */
void move_user_paused(Move *m, bool paused);
/** move_end_phase() - the phase it is in ends now, for the result */
void move_end_phase(Move *m);

/** move_fail() - keep the first error and feed FAILED; @err is taken over */
void move_fail(Move *m, Error *err);
/** move_error() - keep an error as the first one, unless there is one; @err is taken over */
void move_error(Move *m, Error *err);
/** move_warn() - a warning in the log and in the result, each text once, at most MOVE_WARNINGS_MAX */
void move_warn(Move *m, const char *fmt, ...) _printf_(2, 3);
/** move_backoff() - how long to wait before try @n (from 0): twice as long each time, @most at most; microseconds */
uint64_t move_backoff(unsigned int n, uint64_t first, uint64_t most);
/** move_active() - whether a migration is under way on this side */
bool move_active(const Move *m);
/** move_is_target() - whether its state is one of the target's */
bool move_is_target(const Move *m);
/** move_switching() - whether the guest is on its way out of our QEMU, and nobody should begin to look at it there */
bool move_switching(const Move *m);
/** move_save() - RUNTIME_DIR/NAME/move: which migration and side, for a keeper that comes after us */
void move_save(Move *m);
/** move_begin_at() - a keeper came back: go on in a state; @why: a sentence's beginning */
void move_begin_at(Move *m, MoveState state, const char *why);
/** move_let_go() - what this side holds of an attempt; the engine's state and the result stay */
void move_let_go(Move *m);
/** move_answer_check() - answer the call that a check is; takes @answer over */
void move_answer_check(Move *m, json_object *answer);
/** move_recover() - a keeper came (back): go on from the journal and QEMU's state. @qemu: a living QEMU was found */
void move_recover(Keeper *k, bool qemu);
/** move_recover_dead() - QEMU died before move_recover() heard from it. Return: whether a migration goes on without it */
bool move_recover_dead(Keeper *k);
/** move_noted() - whether there is such a note of move_save() */
bool move_noted(Keeper *k);
/** move_qemu_event() - a QMP event while a migration is under way */
void move_qemu_event(Move *m, const char *name, json_object *data, uint64_t at);
/** move_qemu_ready() - QMP of an incoming QEMU is usable */
void move_qemu_ready(Move *m);

/*
 * The actions of the rows, do_NAME() for MOVE_DO_NAME: what each is, MOVE_ACTIONS says, and docs/states.md when it is carried
 * out. Return: 0, or negative errno with m's error set: then the state stays, and ACTION_FAILED follows.
 */
typedef int (*MoveDo)(Move *m);

/* ---- source.c: Begin, the link, Hello ---- */
/**
 * move_start() - begin a migration, or a check of one
 * @options: contents taken over on success
 * @check:   the call that a check answers; NULL for a migration
 *
 * Return: 0; -EBUSY, -EINVAL or another negative errno with @err set: nothing has begun.
 */
int move_start(Keeper *k, MoveOptions *options, sd_bus_message *check, Error **err);
/** move_options_clear() - free what it holds; it is empty then */
void move_options_clear(MoveOptions *options);
/** source_reach() - how this migration's destination is reached, but for a login; borrowed from the options */
DestinationOptions source_reach(const Move *m);
/** source_connect() - (re)open the link of this migration. Return: 0, or negative errno with @err set */
int source_connect(Move *m, Error **err);
/**
 * source_call() - call a Peer1 method with a cookie
 * @timeout_usec: for its answer
 * @reply:        gets the answer, or an error, with the Move as userdata
 *
 * Return: 0, or negative errno: before the commit that is the migration's error, after it only a warning.
 */
int source_call(Move *m, const char *method, const CookieTable *table, const void *cookie, uint64_t timeout_usec,
		sd_bus_message_handler_t reply);
int do_connect(Move *m);
int do_hello(Move *m);

/* ---- transport.c: by which way QEMU's stream goes ---- */
int do_prove(Move *m);

/* ---- prepare.c: Prepare ---- */
/** source_drop_probes() - remove the files that prove shared disks to a target, those of a keeper before us as well */
void source_drop_probes(Keeper *k);
int do_send_prepare(Move *m);

/* ---- setup.c: what must be through before memory moves ---- */
/** migration_capabilities() - arguments of migrate-set-capabilities; both sides set the same, @throttle is the source's */
json_object *migration_capabilities(bool multifd, bool throttle);
/** migration_capabilities_here() - the same for an upgrade; @copy: memory is copied, else both QEMUs map the same */
json_object *migration_capabilities_here(bool copy);
/** migration_capabilities_file() - the same for a file, from which nothing comes back */
json_object *migration_capabilities_file(void);
/** perform_followed() - the target has the connection table, or will not get it: memory need not wait for it */
void perform_followed(Move *m);
int do_open_data(Move *m);
int do_preallocate(Move *m);

/* ---- progress.c: figures, and the limits that follow from them ---- */
/**
 * migration_parameters() - the source's arguments of migrate-set-parameters, QAPI MigrationParameters
 * @tls: id of its tls-creds object, "" for none
 *
 * Remembers the pause that QEMU is allowed at first, and whether it can be throttled. Return: to be given to QMP.
 */
json_object *migration_parameters(Move *m, const char *tls);
/** migration_parameters_here() - the same for an upgrade; @copy: memory is copied while the guest runs */
json_object *migration_parameters_here(Move *m, bool copy);
/** perform_watch() - memory moves from here on: figures for people, and for the no-progress deadline */
void perform_watch(Move *m);
/**
 * perform_set() - change limits while it runs; NULL: as it is
 * @bandwidth: bytes/s
 * @downtime_ms: how long the guest may stand still
 * @throttle: percent of its time that the guest may lose
 *
 * Return: 0; -ESRCH when nothing is under way, -EINVAL when QEMU cannot throttle any more; then @err is set.
 */
int perform_set(Keeper *k, const uint64_t *bandwidth, const uint64_t *downtime_ms, const uint64_t *throttle,
		Error **err);

/* ---- perform.c: Perform and the switch ---- */
int do_start_migrate(Move *m);
int do_continue(Move *m);
int do_settle(Move *m);
/** perform_migration_event() - QAPI event MIGRATION of the source's QEMU; @status: its MigrationStatus */
void perform_migration_event(Move *m, const char *status);
/** perform_hold() - the guest stands at pre-switchover: wait for what is left of the connection table, within a limit */
void perform_hold(Move *m);
/** perform_stop() - QEMU has stopped the guest */
void perform_stop(Move *m);
/** perform_hint() - say what to do if QEMU's @error to "migrate" means that an earlier migration stands in its way */
void perform_hint(const char *error, Error **err);
/** perform_silent() - set the error for a data channel whose far end takes nothing in */
void perform_silent(const Move *m, Error **err);

/* ---- graphics.c ---- */
/**
 * graphics_tell() - before memory moves: tell QEMU where the target's SPICE is (QAPI client_migrate_info)
 *
 * The host is the address the target listens on, or its name where that is any address or its own loopback. What fails
 * is a warning: clients then connect again by themselves.
 */
void graphics_tell(Move *m);
/**
 * graphics_cert_subject() - whose certificate a VM's SPICE server shows, "O=Example,CN=b" in its order, as QAPI client_migrate_info has it
 *
 * Return: to be freed; NULL without tls-directory, or if the certificate there cannot be read.
 */
char *graphics_cert_subject(const VmDefinition *def);
/** graphics_handed_over() - QEMU says SPICE_MIGRATE_COMPLETED: its clients are at the target, if there were any */
void graphics_handed_over(Move *m);
/** graphics_hold() - whether our QEMU still has clients to hand over; it is killed when it has, after 5 s at most */
bool graphics_hold(Move *m);

/* ---- connections.c ---- */
/** sink_open() - the target's end of Delta, and a look at what lies here from before; a failure is a warning */
void sink_open(Move *m);
/** sink_tell(), sink_tell_check() - what a source should know of it before the move; @reply's members are borrowed,
 * of a check @reply->warnings is to be freed */
void sink_tell(Move *m, PrepareReply *reply);
void sink_tell_check(Keeper *k, const VmDefinition *def, PrepareReply *reply);
/** sink_settle_begin() - the guest runs here: sweep, and in a second true timeouts and strict checks, beside the rest */
void sink_settle_begin(Move *m);
/** sink_settle_now() - the same at once, if it is not done */
void sink_settle_now(Move *m);
/** sink_stats() - counters, also of one that is closed */
void sink_stats(const Move *m, CtApplyStats *ret);
/** sink_reasons() - "NUMBER NAME" of those that are not 0; strv_free() it */
char **sink_reasons(const CtApplyStats *stats);
/** reasons_json() - the same as an object; a peer's list is looked at first */
json_object *reasons_json(char *const *list);
/** warn_of_reasons() - what the target did not take, in words */
void warn_of_reasons(Move *m);
/** judge_target() - warn of what is in the way on the target, by what it said and what is followed */
void judge_target(Move *m);
/** judge_target_for_check() - the same by a dump of its own of at most a second */
void judge_target_for_check(Move *m);

/* ---- follow.c: connections on the source ---- */
/** follow_start() - begin to follow the guest's connections and to tell the target; a failure is a warning */
void follow_start(Move *m);
/** follow_stop() - no more of that; harmless when there is nothing to stop */
void follow_stop(Move *m);
int do_last_delta(Move *m);
/** vm_addresses() - all addresses of a VM's NICs; strv_free() it */
char **vm_addresses(const VmDefinition *def);
/**
 * vm_select() - which connections are a VM's: by its NICs' addresses, its mark and its zone, all that the definition has
 *
 * Return: 1, 0 when it has none of them (then @ret is NULL), or negative errno with @err set.
 */
int vm_select(const VmDefinition *def, CtSelect **ret, Error **err);

/* ---- confirm.c: commit, outcome, and the way back ---- */
int do_journal_commit(Move *m);
int do_send_finish(Move *m);
int do_reconnect(Move *m);
int do_reach(Move *m);
int do_drop_link(Move *m);
int do_send_outcome(Move *m);
int do_journal_owner(Move *m);
int do_resume(Move *m);
int do_end(Move *m);
int do_journal_gone(Move *m);
int do_kill_qemu(Move *m);
int do_flush(Move *m);
int do_note(Move *m);
int do_forget(Move *m);
int do_cont_back(Move *m);
int do_send_abort(Move *m);
/** confirm_qemu_gone() - the source's QEMU is reaped: a completed migration can be told */
void confirm_qemu_gone(Move *m);

/* ---- lease.c ---- */
int do_release_lease(Move *m);
int do_acquire_lease(Move *m);
int do_retake_lease(Move *m);
/** move_lease_leave() - the state is left: what is not done with the lease by now does not count */
void move_lease_leave(Move *m);
/** move_lease_late() - whether this is what is waited for. Return: then @err is set */
bool move_lease_late(const Move *m, Error **err);
/**
 * keeper_lease_admit() - whether the lease of a VM that wants to come can be handed over to this host
 *
 * Return: 0, or negative errno with @err and hint set.
 */
int keeper_lease_admit(Keeper *k, const PrepareCookie *p, const VmDefinition *def, Error **err);

/* ---- upgrade.c ---- */
int do_note_upgrade(Move *m);
int do_start_new(Move *m);
int do_share_lease(Move *m);
int do_own_lease(Move *m);
int do_set_up_both(Move *m);
int do_start_upgrade(Move *m);
int do_ask_new(Move *m);
int do_commit_new(Move *m);
int do_kill_old(Move *m);
int do_cont_new(Move *m);
int do_say_silent(Move *m);
int do_kill_new(Move *m);
int do_clear_new(Move *m);
int do_try_later(Move *m);

/* ---- save.c ---- */
int do_start_save(Move *m);
int do_sync_file(Move *m);
int do_commit_save(Move *m);
int do_kill_saved(Move *m);
int do_start_fill(Move *m);
int do_load_file(Move *m);
int do_use_up(Move *m);
int do_fall_back(Move *m);

/* ---- admit.c ---- */
/**
 * target_admit() - whether this host takes the VM of a Prepare: name, transport, policy, disks, resources
 * @ret: its definition, with this host's QEMU program
 * @ret_room: the memory that is promised to it; NULL: it takes none
 *
 * Return: 0, or negative errno with @err and hint set; nothing has been changed.
 */
int target_admit(PeerConnection *c, const PrepareCookie *p, VmDefinition **ret, Room **ret_room, Error **err);

/**
 * target_look() - before that: whether the storage of what wants to come answers; then target_looked() is called
 * @p: taken over if 1 is returned
 *
 * Return: 1; 0: nothing is to be looked at; or negative errno with @err set.
 */
int target_look(PeerConnection *c, PrepareCookie *p, sd_bus_message *message, Error **err);
/** target_look_drop() - the connection is gone */
void target_look_drop(PeerConnection *c);
Admission *target_admission_free(Admission *a);
/** target_looked() - go on with a Prepare; @silent: what has not answered, NULL: all has */
void target_looked(PeerConnection *c, PrepareCookie *p, sd_bus_message *message, const Error *silent);

/* ---- target.c, owner.c ---- */
int do_start_qemu(Move *m);
int do_prepare_reply(Move *m);
int do_arm_gate(Move *m);
int do_journal_committed(Move *m);
int do_cont(Move *m);
int do_say_running(Move *m);
int do_say_lost(Move *m);
int do_announce(Move *m);
int do_journal_aborted(Move *m);
int do_say_never(Move *m);
/** target_prepare() - Prepare came: check it all; the message is answered later or now. Return: as a vtable method */
int target_prepare(PeerConnection *c, sd_bus_message *message, sd_bus_error *error);
/** target_delta() - connection records came */
int target_delta(PeerConnection *c, const void *data, size_t len, bool last, Error **err);
/** target_finish() - Finish came: the source has committed. Answered when it is decided. Return: as a vtable method */
int target_finish(PeerConnection *c, sd_bus_message *message, sd_bus_error *error);
/** target_outcome() - Outcome came: decide migration @id now, or say what was decided. Return: as a vtable method */
int target_outcome(PeerConnection *c, sd_bus_message *message, const char *id, sd_bus_error *error);
/** target_migration_event() - QAPI event MIGRATION of an incoming QEMU; @status: its MigrationStatus */
void target_migration_event(Move *m, const char *status);
/** target_answer() - answer Finish or Outcome, if it was asked */
void target_answer(Move *m, const char *outcome, bool alive);
/** target_tombstone() - journal ABORTED before Never is said, so that it is true for ever */
int target_tombstone(Keeper *k, const char *id, Error **err);
/** target_end() - after Never: nothing is left here */
void target_end(Move *m);
/** target_data() - a data stream with a matching token: hand it to QEMU; @fd is taken over */
void target_data(Keeper *k, int fd);

/* ---- data.c: data channels ---- */
/**
 * data_open() - open a data channel for a transport whose stream the keepers own (ssh, tunnel, unix)
 * @opened: called once with the connected fd (handed over), or -1 and an error (borrowed)
 *
 * Return: 0, or negative errno with @err set: @opened is not called then.
 */
int data_open(Move *m, void (*opened)(Move *m, int fd, const Error *err), Error **err);
/** data_free() - close the channel; takes NULL. Return: NULL */
Data *data_free(Data *data);
/** data_link() - the tunnel's link, NULL if there is none */
Link *data_link(const Data *data);

/* ---- direct.c: streams a client makes ---- */
/** direct_want() - LinkOptions.want, with the keeper as userdata */
int direct_want(const char *stream, bool data, void *userdata, Error **err);
/** direct_stream() - the stream that was asked for; @fd is borrowed. Return: 0, or negative errno with @err set */
int direct_stream(Keeper *k, const char *stream, int fd, Error **err);
/** direct_failed() - it cannot be made. @busy: perhaps in a moment */
void direct_failed(Keeper *k, const char *stream, bool busy, const Error *err);
/** direct_relay() - who makes streams from now on; NULL: the one who did has gone */
void direct_relay(Keeper *k, Client *client);

/* ---- report.c: objects for people as docs/control.md has them; the caller's to put ---- */
/** report_result() - what became of a migration; report_upgrade(): of an upgrade */
json_object *report_result(Move *m);
json_object *report_upgrade(Move *m);
/** report_progress() - figures of the one under way */
json_object *report_progress(Move *m);
/** report_check() - what a check has found; report_upgrade_check(): of an upgrade */
json_object *report_check(Move *m);
json_object *report_upgrade_check(Move *m);
/** report_upgrade_refused() - the same when it could not even begin */
json_object *report_upgrade_refused(Keeper *k, const Error *why);
/** report_status() - the VM's state, and what is under way; report_show(): what it is made of */
json_object *report_status(Keeper *k);
json_object *report_show(Keeper *k);
