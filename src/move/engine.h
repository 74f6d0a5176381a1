/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/macros.h"

/*
 * The migration protocol as a table. The engine is pure: a state, an event and the facts known now give the next state and
 * the actions; it does no I/O and knows no clock. Every transition is a row of rows.h. The rule behind all of them:
 *
 *   The source offers, the target decides. Until COMMIT is durable on the source only the source may run the guest; from
 *   then on only the target's durable record decides: COMMITTED (taken) or NEVER.
 *
 * docs/states.md is printed from the same table, and the model that SPIN walks through is generated from it (docs/model.md).
 */

/* X(identifier, name, deadline, what it means and what may happen in it) */
#define MOVE_STATES(X)                                                                                                 \
	X(S_IDLE, "idle", NONE, "no migration; only this side may run the guest")                                      \
	X(S_CONNECT, "connect", CONNECT, "ssh or command started, first line sent; guest runs")                        \
	X(S_HELLO, "hello", PREPARE, "D-Bus is up, versions and features compared; guest runs")                        \
	X(S_PROVE, "prove", PREPARE, "the data address is proved, the transport chosen; guest runs")                   \
	X(S_PREPARE, "prepare", PREPARE, "the target starts its QEMU; guest runs")                                     \
	X(S_OPEN, "open", PREPARE, "the data channel is opened and capabilities set; guest runs")                      \
	X(S_PERFORM, "perform", NO_PROGRESS, "memory moves, connections are followed; guest runs")                     \
	X(S_HOLD, "hold", HOLD, "guest stopped by pre-switchover; the target is receiving, the table is complete?")    \
	X(S_SWITCHOVER, "switchover", SWITCHOVER, "last delta sent, the device state moves; guest stopped")            \
	X(S_COMMIT, "commit", NONE, "postmigrate; not committed yet: the last moment to go back")                      \
	X(S_RELEASE, "release", SWITCHOVER, "COMMIT is durable: point of no return; the lease goes")                   \
	X(S_SEND, "send", NONE, "committed; Finish is about to be sent")                                               \
	X(S_WAIT, "finish", FINISH, "committed; waiting for Running or Never")                                         \
	X(S_DOUBT, "in-doubt", NONE, "committed, no answer: stays paused, asks for the outcome again and again")       \
	X(S_RETAKE, "retake", FINISH, "in doubt, and about to take the lease back: that decides, if it can be had")      \
	X(S_NEVER_LEASE, "never-lease", FINISH, "the target has not run it and never will: take the lease back")       \
	X(S_NEVER_RECORD, "never-record", NONE, "journal that the guest is ours again")                                \
	X(S_NEVER_RESUME, "never-resume", NONE, "owner again: resume, or cold start is allowed")                       \
	X(S_GONE, "confirm", NONE, "the target owns the guest: journal GONE")                                          \
	X(S_DESTROY, "destroy", NONE, "GONE is durable: QEMU is killed, entries flushed, note left, Forget sent")      \
	X(S_DONE, "done", NONE, "the guest lives on the target")                                                       \
	X(S_CANCEL, "cancel", NONE, "not committed: QEMU is made to settle, the guest resumes here")                   \
	X(U_BEGIN, "upgrade", NONE, "a newer QEMU is asked for; the guest runs in the old one")                         \
	X(U_START, "upgrade-start", PREPARE, "the new QEMU starts with -incoming defer; guest runs")                   \
	X(U_OPEN, "upgrade-open", PREPARE, "both QEMUs are set up: the same memory, a socket pair; guest runs")        \
	X(U_PERFORM, "upgrade-perform", NO_PROGRESS, "memory that is not shared is copied; guest stops, its devices' state moves") \
	X(U_LOAD, "upgrade-load", SWITCHOVER, "the old one has sent everything; the new one loads it, paused")         \
	X(U_LOOK, "upgrade-look", SWITCHOVER, "loaded; the new one has to answer once more, after that") \
	X(U_TRIED, "upgrade-tried", PREPARE, "save: the new QEMU has shown that it starts, and goes again; guest runs")    \
	X(U_SAVE, "upgrade-save", NO_PROGRESS, "save: the guest is stopped, the old QEMU writes all of it to a file")      \
	X(U_SYNC, "upgrade-sync", NONE, "save: all is written; the file is synced: as long as that takes, or until it is cancelled") \
	X(U_CHECK, "upgrade-check", NONE, "loaded; the record still names the old one: the last moment to go back")    \
	X(U_SAVED, "upgrade-saved", NONE, "save: the file is complete and on its disk; not committed yet: the last moment to go back")     \
	X(U_KILL, "upgrade-kill", NONE, "the record names the new one; back only if that dies before the old one is killed") \
	X(U_QUIT, "upgrade-quit", NONE, "save: the record says that the file has the guest: point of no return; the QEMU that is there goes") \
	X(U_EMPTY, "upgrade-empty", NONE, "save: no QEMU is there, the file has the guest")                                \
	X(U_FILL, "upgrade-fill", PREPARE, "save: a QEMU starts with -incoming defer")                                     \
	X(U_RESTORE, "upgrade-restore", NO_PROGRESS, "save: it loads the file")                                            \
	X(U_RESTORED, "upgrade-restored", NONE, "save: loaded, paused; the record still says that the file has the guest") \
	X(U_DRAIN, "upgrade-drain", NONE, "save: that QEMU did not load the file, and goes")                               \
	X(U_NEXT, "upgrade-next", NONE, "save: it is gone; after the new version comes the old one, after that the end: the file is kept") \
	X(U_RESUME, "upgrade-resume", NONE, "the old one is killed: point of no return; the guest is the new one's")   \
	X(U_RESUMING, "upgrade-resuming", SWITCHOVER, "cont is sent to the new one, its answer is awaited; the deadline only tells")                  \
	X(U_RETRY, "upgrade-retry", NONE, "cont failed: once more when the old one is gone")                           \
	X(U_REAP, "upgrade-reap", NONE, "the guest runs in the new one; the old one is on its way out")                \
	X(U_BACK, "upgrade-back", NONE, "not committed, or not killed: the guest stays in the old one, the new one goes") \
	X(U_CLEAR, "upgrade-clear", NONE, "the new one is killed; the record has to name the old one again")           \
	X(T_IDLE, "t-idle", NONE, "nothing of a migration here")                                                       \
	X(T_PREP, "t-prepare", PREPARE, "policy passed, QEMU starts with -incoming defer; must not run the guest")     \
	X(T_WAIT, "t-wait", NONE, "memory and deltas arrive; must not run the guest")                                  \
	X(T_GATE, "t-gate", FINISH, "Finish is here: wait for the load, and for the barrier or the end of 200 ms")     \
	X(T_LEASE, "t-lease", SWITCHOVER, "take the lease with the state it was given up with")                              \
	X(T_JOURNAL, "t-journal", NONE, "about to journal COMMITTED; the last moment to say Never")                    \
	X(T_CONT, "t-cont", NONE, "COMMITTED is durable: this side owns the guest, cont is sent")                      \
	X(T_RESUMING, "t-resuming", NONE, "cont is sent, its answer is awaited")                                       \
	X(T_ABORT, "t-abort", NONE, "it will not run here: journal that before anything else")                         \
	X(T_KILL, "t-kill", NONE, "ABORTED is recorded: kill this migration's QEMU")                                   \
	X(T_REAP, "t-reap", NONE, "wait until that QEMU is gone")                                                      \
	X(T_NEVER, "t-never", FINISH, "give the lease back, then say Never")                                                 \
	X(T_OWNER, "t-owner", NONE, "the guest is this side's for good")

/* X(identifier, name, what it is) */
#define MOVE_EVENTS(X)                                                                                       \
	X(ENTER, "enter", "a state was entered")                                                             \
	X(ACTION_FAILED, "action-failed", "an action of the row just tried failed; the state did not change") \
	X(MIGRATE, "migrate", "a person asks for a migration")                                               \
	X(LINK_UP, "link-up", "the control link works")                                                      \
	X(HELLO_OK, "hello-ok", "Hello was answered and fits")                                               \
	X(PROVED, "proved", "the data address answered, or did not in time")                                 \
	X(PREPARE_OK, "prepare-ok", "Prepare was answered")                                                  \
	X(DATA_READY, "data-ready", "the data channel is open, QEMU is set up")                              \
	X(PRE_SWITCHOVER, "pre-switchover", "QEMU stopped the guest and waits")                              \
	X(FOLLOWED, "followed", "the connection table is complete, or has used up its time")                 \
	X(RECEIVING, "receiving", "the target's QEMU receives")                                              \
	X(POSTMIGRATE, "postmigrate", "QEMU has sent everything")                                            \
	X(RUNNING, "running", "answer: the target owns the guest")                                           \
	X(NEVER, "never", "answer: it has not run there and never will")                                     \
	X(LINK_LOST, "link-lost", "the control link is cut")                                                 \
	X(FAILED, "failed", "a step failed: QEMU, a call, the data channel")                                 \
	X(QEMU_DEAD, "qemu-dead", "the QEMU process ended")                                                  \
	X(GUEST_OFF, "guest-off", "the guest shut down or panicked")                                         \
	X(CANCEL, "cancel", "a person cancels")                                                              \
	X(DEADLINE, "deadline", "the state's deadline passed")                                               \
	X(REACHED, "reached", "the target can be asked again")                                               \
	X(LEASE_DONE, "lease-done", "what was to be done with the lease is done")                            \
	X(LEASE_FAILED, "lease-failed", "it could not be done")                                              \
	X(LEASE, "lease", "in doubt: time to look whether the lease is still this side's")                    \
	X(ASSUME_THERE, "assume-there", "the operator's word: it runs there")                                \
	X(ASSUME_NOWHERE, "assume-nowhere", "the operator's word: it runs nowhere")                          \
	X(SETTLED, "settled", "QEMU's migration is over and its run state known")                            \
	X(RESTART, "restart", "a keeper found this state in the journal")                                    \
	X(PREPARE, "prepare", "Prepare came from a source")                                                  \
	X(QEMU_READY, "qemu-ready", "the incoming QEMU listens")                                             \
	X(LOADED, "loaded", "QEMU has loaded everything, paused")                                            \
	X(BARRIER, "barrier", "the last delta is applied")                                                   \
	X(GATE_OVER, "gate-over", "the time for the barrier is used up")                                     \
	X(FINISH, "finish", "Finish came: the source has committed")                                         \
	X(OUTCOME, "outcome", "the source asks: decide now")                                                 \
	X(ABORT, "abort", "the source gives up (best effort)")                                               \
	X(CONT_OK, "cont-ok", "cont was answered with success")                                              \
	X(CONT_ERROR, "cont-error", "cont was answered with an error: no vCPU ran")                          \
	X(QEMU_GONE, "qemu-gone", "the killed QEMU is reaped")                                               \
	X(UPGRADE, "upgrade", "a person asks for a newer QEMU here")                                         \
	X(NEW_DEAD, "new-dead", "the new QEMU ended before the guest was its own")                           \
	X(RETRY, "retry", "time to try what failed once more") \
	X(ANSWERS, "answers", "the new QEMU has answered since it loaded") \
	X(TRIED, "tried", "the new QEMU starts, and the old one can be saved") \
	X(SYNCED, "synced", "all of the file is on its disk")

/* X(identifier, name) */
#define MOVE_ACTIONS(X)                      \
	X(NOTHING, "")                       \
	X(CONNECT, "connect")                \
	X(HELLO, "hello")                    \
	X(PROVE, "prove address")            \
	X(SEND_PREPARE, "Prepare")           \
	X(OPEN_DATA, "open data channel")    \
	X(PREALLOCATE, "preallocate journal") \
	X(START_MIGRATE, "migrate")          \
	X(LAST_DELTA, "LastDelta")           \
	X(CONTINUE, "migrate-continue")      \
	X(JOURNAL_COMMIT, "journal COMMIT")  \
	X(RELEASE_LEASE, "release lease")    \
	X(SEND_FINISH, "Finish")             \
	X(RECONNECT, "reconnect")            \
	X(REACH, "reach the target")         \
	X(DROP_LINK, "drop link")            \
	X(SEND_OUTCOME, "Outcome")           \
	X(ACQUIRE_LEASE, "acquire lease")    \
	X(RETAKE_LEASE, "take the lease back") \
	X(JOURNAL_OWNER, "journal OWNER")    \
	X(RESUME, "cont (not taken)")        \
	X(END, "end of the attempt")         \
	X(JOURNAL_GONE, "journal GONE")      \
	X(KILL_QEMU, "SIGKILL QEMU")         \
	X(FLUSH, "flush entries")            \
	X(NOTE, "forwarding note")           \
	X(FORGET, "Forget")                  \
	X(SETTLE, "make QEMU settle")        \
	X(CONT_BACK, "cont (cancelled)")     \
	X(SEND_ABORT, "Abort")               \
	X(START_QEMU, "start incoming QEMU") \
	X(PREPARE_REPLY, "PrepareOK")        \
	X(ARM_GATE, "arm the gate")          \
	X(JOURNAL_COMMITTED, "journal COMMITTED") \
	X(CONT, "cont")                      \
	X(SAY_RUNNING, "Running")            \
	X(SAY_LOST, "Running (lost)")        \
	X(ANNOUNCE, "announce")              \
	X(JOURNAL_ABORTED, "journal ABORTED") \
	X(SAY_NEVER, "Never")                \
	X(NOTE_UPGRADE, "note the upgrade")  \
	X(START_NEW, "start the new QEMU")   \
	X(SET_UP_BOTH, "set up both QEMUs")  \
	X(START_UPGRADE, "migrate in place") \
	X(ASK_NEW, "query-status of the new QEMU") \
	X(SAY_SILENT, "say that QEMU is silent") \
	X(COMMIT_NEW, "record the new generation") \
	X(KILL_OLD, "SIGKILL the old QEMU")  \
	X(CONT_NEW, "cont the new QEMU")     \
	X(KILL_NEW, "SIGKILL the new QEMU")  \
	X(CLEAR_NEW, "record the old generation") \
	X(TRY_LATER, "try again later") \
	X(START_SAVE, "save to a file")      \
	X(SYNC_FILE, "sync the file")        \
	X(COMMIT_SAVE, "record that the file has the guest") \
	X(KILL_SAVED, "SIGKILL (the file has the guest)") \
	X(START_FILL, "start a QEMU for the file") \
	X(LOAD_FILE, "load the file")        \
	X(USE_UP, "record that the file is used up") \
	X(FALL_BACK, "take the old version") \
	X(SHARE_LEASE, "share the lease") \
	X(OWN_LEASE, "hold the lease alone")

/* X(identifier, bit) what the executor knows at the time of an event */
#define MOVE_FACTS(X)                                                          \
	X(LINK, 0)	  /* the control link is up */                         \
	X(CANCELLED, 1)	  /* a cancel was asked for */                         \
	X(FOLLOW_DONE, 2) /* connection table complete, unwanted, or too late */ \
	X(TARGET_ACTIVE, 3) /* the target's QEMU receives */                   \
	X(POST, 4)	  /* our QEMU is in postmigrate */                     \
	X(ALIVE, 5)	  /* our QEMU process lives */                         \
	X(LOAD_DONE, 6)	  /* incoming state is loaded, paused */               \
	X(BARRIER_DONE, 7) /* last delta applied */                            \
	X(GATE_PASSED, 8) /* no more waiting for it */                         \
	X(RESTARTED, 9)	  /* this keeper did not journal COMMITTED itself */   \
	X(OWNER, 10)	  /* our journal says the guest is ours */             \
	X(WAS_RUNNING, 11) /* the guest ran when the migration began */    \
	X(OFFLINE, 12)	  /* there is no guest: definition, pins and ownership move */ \
	X(OTHER, 13)	  /* upgrade: the VM's other QEMU process is there: the new one, once it is killed the old one */

#define X(id, name, deadline, text) MOVE_##id,
typedef enum MoveState { MOVE_STATES(X) _MOVE_STATE_MAX } MoveState;
#undef X
#define X(id, name, text) MOVE_EV_##id,
typedef enum MoveEvent { MOVE_EVENTS(X) _MOVE_EVENT_MAX } MoveEvent;
#undef X
#define X(id, name) MOVE_DO_##id,
typedef enum MoveAction { MOVE_ACTIONS(X) _MOVE_ACTION_MAX } MoveAction;
#undef X
#define X(id, bit) MOVE_FACT_##id = 1U << (bit),
typedef enum MoveFact { MOVE_FACTS(X) } MoveFact;
#undef X

typedef enum MoveDeadline {
	MOVE_DEADLINE_NONE,
	MOVE_DEADLINE_CONNECT,
	MOVE_DEADLINE_PREPARE,
	MOVE_DEADLINE_NO_PROGRESS,
	MOVE_DEADLINE_HOLD,
	MOVE_DEADLINE_SWITCHOVER,
	MOVE_DEADLINE_FINISH,
} MoveDeadline;

#define MOVE_ROW_ACTIONS 5

/**
 * struct MoveRow - one transition
 * @need, @not: facts that must hold, that must not
 * @actions:    in order, ended by MOVE_DO_NOTHING; if one fails the state stays and ACTION_FAILED follows
 */
typedef struct MoveRow {
	MoveState state;
	MoveEvent event;
	unsigned int need, not;
	MoveState next;
	MoveAction actions[MOVE_ROW_ACTIONS];
} MoveRow;

/**
 * move_step() - the row for an event
 *
 * Return: the first row that fits, or NULL: the event means nothing in this state (a message that comes late).
 */
const MoveRow *move_step(MoveState state, MoveEvent event, unsigned int facts);

/** move_rows() - the whole table, for docs, the model and tests */
const MoveRow *move_rows(size_t *ret_n);

/* Names as docs/states.md, the log and the model have them, what a state means in words, and its deadline. */
const char *move_state_name(MoveState state);
const char *move_state_meaning(MoveState state);
MoveDeadline move_state_deadline(MoveState state);
const char *move_event_name(MoveEvent event);
const char *move_action_name(MoveAction action);

/** move_committed() - whether the source, or an upgrade, has passed the point of no return in this state */
bool move_committed(MoveState state);

/** move_upgrading() - whether this state is one of an upgrade's own (its way back ends in S_CANCEL, as a migration's) */
bool move_upgrading(MoveState state);

/** move_phase() - libvirt's name of the phase a state belongs to: Begin, Prepare, Perform, Finish, Confirm; NULL outside */
const char *move_phase(MoveState state);
