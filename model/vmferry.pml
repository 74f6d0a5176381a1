/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two hosts that move a VM between them, and everything that can go wrong meanwhile. What a keeper decides is not written
 * here (step.pml). This file is the world around: what each action does, QEMU, the link, journals, leases, people and
 * faults. docs/model.md says what is assumed.
 *
 * Both hosts are the same process. Either may be source or target; links go from a source to a target, and are indexed by
 * the source.
 *
 * FAULTS: at most so many in a run; ATTEMPTS: migrations, each from whoever has the guest; LEASE: 1 with leases;
 * OFFLINE: 1 for a VM that is off; GONE: 1 if a host may be gone for good; NOLIVE: 1 for --no-live; PAUSED: 1 if a person may
 * pause the guest; SPICE: 1 if it has clients to hand over; SEED: which of model/rows.py's bugs is in.
 * RUNTIME: the verifier takes all of them from its environment.
 */
#ifdef RUNTIME
byte FAULTS, ATTEMPTS, LEASE, OFFLINE, GONE, NOLIVE, PAUSED, SPICE, SEED;
#endif
#ifndef RUNTIME
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 1
#endif
#ifndef LEASE
#define LEASE 0
#endif
#ifndef OFFLINE
#define OFFLINE 0
#endif
#ifndef GONE
#define GONE 0
#endif
#ifndef NOLIVE
#define NOLIVE 0
#endif
#ifndef PAUSED
#define PAUSED 0
#endif
#ifndef SPICE
#define SPICE 0
#endif
#ifndef SEED
#define SEED 0
#endif
#endif

#define HOSTS 2
#include "engine.pml"

/* QEMU. MOVING and RUNS run the guest, if it is not halted; PRE: stopped by pre-switchover; DEVICE: the device state goes; DYING: SIGKILL sent. */
#define Q_NONE 0
#define Q_RUNS 1
#define Q_MOVING 2
#define Q_PRE 3
#define Q_DEVICE 4
#define Q_POST 5
#define Q_LISTENS 6
#define Q_LOADED 7
#define Q_DYING 8

/* Records of the journal, by host and migration. */
#define R_NONE 0
#define R_COMMIT 1
#define R_OWNER 2
#define R_GONE 3
#define R_COMMITTED 4
#define R_ABORTED 5

/* The note of a migration under way, in the runtime directory. */
#define NOTE_SOURCE 1
#define NOTE_TARGET 2

/* To the target. */
#define M_PREPARE 1
#define M_LAST 2
#define M_FINISH 3
#define M_OUTCOME 4
#define M_ABORT 5
/* To the source. M_ERROR: a call failed, which is no answer. */
#define M_PREPARE_OK 6
#define M_REFUSED 7
#define M_RECEIVING 8
#define M_RUNNING 9
#define M_NEVER 10
#define M_ERROR 11

/* Which connection a target's migration belongs to: the source's present one, or one that it has closed or lost. */
#define FROM_NOBODY 0
#define FROM_LINK 1
#define FROM_OLD 2

/* ---- a host's keeper, beside its engine: all of it dies with it ---- */
bool cancelled[2], waits[2]; /* a cancel was asked for; its asker waits for the answer */
bool receiving[2];     /* source: the target's QEMU receives */
bool loaded[2], barrier[2], gate[2], restarted[2]; /* target: facts */
bool prepares[2], asked[2]; /* target: Prepare, or Finish or Outcome, is to be answered */
byte from[2];
bool dead[2];	       /* QEMU's end is still to be noticed */
bool was_running[2];   /* the guest ran when the migration began, and no person has paused it since */
bool viewers[2], held[2]; /* SPICE's clients are to be handed over; QEMU is kept for that */

/* ---- what outlives it; of that, only the journal outlives the host ---- */
byte id[2];	       /* of the migration under way, as in the note */
byte note[2];
bool note_ran[2];      /* the note's was_running */
byte qemu[2];
bool halted[2];	       /* its guest was stopped with "stop": by us, or by a person */
byte sent_stop[2];     /* commands on their way to QEMU: 2: stop and migrate, 1: migrate */
bool sent_cont[2];     /* cont is on its way to QEMU */
bool stale[2];	       /* the guest has run elsewhere since: this QEMU must never run again */
byte rec[4];
bool rec_ran[4];       /* the record's was_running */

/* ---- between them, by source ---- */
bool link[2], knows[2], lost[2], connecting[2]; /* up; the source thinks so; its loss is still to be noticed */
byte link_id[2];
int to_t[2], to_s[2];  /* messages on the way: a number in base 16, the oldest as its last digit */
bool old[2];	       /* a connection whose end the target has not noticed yet */
byte old_id[2];
int old_t[2];
bool data[2], sent[2], told[2]; /* the data stream; all of QEMU's state is on it; target: it has begun to come */

/* ---- lease ---- */
#define NOBODY 2
byte holder = 0, last_holder = 0;
byte generation = 1, offered[2]; /* as COMMIT and Finish say it */
/*
 * What a keeper's worker is at with it; and what one is at that was given up, with its state or its keeper: that may still
 * come true, or not. The next worker does nothing before that is over.
 */
#define L_RELEASE 1
#define L_TAKE 2
#define L_TAKE_BACK 3
#define L_RETAKE 4
byte asks[2], given_up[2];

byte attempts;
byte pauses; /* 0: nobody has paused the guest, 1: a person has, 2: and it was started anew since */
#define paused (pauses == 1)
bool assumed; /* the operator has decided once */
bool gone[2]; /* that host never comes back */

#define peer (1 - h)
#define REC(host, migration) rec[2 * (host) + (migration) - 1]
#define RAN(host, migration) rec_ran[2 * (host) + (migration) - 1]
#define stands(r) ((r) != R_NONE && (r) != R_ABORTED)
#define standing(host) (stands(REC(host, 2)) -> REC(host, 2) : (stands(REC(host, 1)) -> REC(host, 1) : R_NONE))
#define standing_id(host) (stands(REC(host, 2)) -> 2 : 1)
#define owner(host)                                                                                                    \
	(standing(host) == R_OWNER || standing(host) == R_COMMITTED || (standing(host) == R_NONE && (host) == 0))
#define active(host)                                                                                                   \
	(state[host] != S_IDLE && state[host] != S_DONE && state[host] != T_IDLE && state[host] != T_OWNER)
#define is_source(host) (active(host) && state[host] < T_IDLE)
#define is_target(host) (active(host) && state[host] >= T_IDLE)
#define runs(host) ((qemu[host] == Q_RUNS || qemu[host] == Q_MOVING) && !halted[host])

/* ---- facts ---- */
#define fact_LINK knows[h]
#define fact_CANCELLED cancelled[h]
#define fact_FOLLOW_DONE 1
#define fact_TARGET_ACTIVE receiving[h]
#define stopped_by_us (NOLIVE && halted[h] && qemu[h] == Q_RUNS && !SEED_STOP_FORGOTTEN)
#define fact_POST (qemu[h] == Q_POST || stopped_by_us)
#define fact_ALIVE (qemu[h] != Q_NONE)
#define fact_LOAD_DONE (loaded[h] || OFFLINE)
#define fact_BARRIER_DONE barrier[h]
#define fact_GATE_PASSED gate[h]
#define fact_RESTARTED restarted[h]
#define fact_OWNER owner(h)
#define fact_WAS_RUNNING (was_running[h] || SEED_RUNS_ANYWAY)
#define fact_OFFLINE OFFLINE

/* ---- the link ---- */
#define push(queue, message)                                                                                           \
	queue = (queue == 0 -> message                                                                                 \
		 : (queue < 16 -> queue + 16 * message                                                                 \
		    : (queue < 256 -> queue + 256 * message : queue + 4096 * message)))
#define head(queue) (queue % 16)

/* The source closes it: what it said still reaches the target, then the end does. */
inline close_link()
{
	knows[h] = 0;
	lost[h] = 0;
	connecting[h] = 0;
	to_s[h] = 0;
	if
	:: link[h] ->
		link[h] = 0;
		old[h] = 1;
		old_id[h] = link_id[h];
		old_t[h] = to_t[h];
		from[peer] = (from[peer] == FROM_LINK -> FROM_OLD : from[peer])
	:: else
	fi;
	to_t[h] = 0;
	link_id[h] = 0
}

/* The target's keeper dies: the source will notice. */
inline break_link_of(source)
{
	lost[source] = link[source] || lost[source];
	link[source] = 0;
	to_t[source] = 0;
	to_s[source] = 0;
	old[source] = 0;
	old_t[source] = 0;
	old_id[source] = 0
}

inline tell(message)
{
	if
	:: link[h] -> push(to_t[h], message)
	:: else
	fi
}

inline say(message)
{
	if
	:: from[h] == FROM_LINK && link[peer] -> push(to_s[peer], message)
	:: else
	fi
}

inline answer(message)
{
	if
	:: asked[h] -> say(message)
	:: else
	fi;
	asked[h] = 0
}

/* ---- actions: source ---- */
inline do_CONNECT() { connecting[h] = 1 }
inline do_HELLO() { soon[h] = EV_HELLO_OK }
inline do_PROVE() { soon[h] = EV_PROVED }
inline do_SEND_PREPARE() { tell(M_PREPARE) }
inline do_OPEN_DATA()
{
	soon[h] = EV_DATA_READY;
	viewers[h] = SPICE
}

inline do_PREALLOCATE() { skip }

inline migrate()
{
	qemu[h] = Q_MOVING;
	sent[h] = 0;
	data[h] = qemu[peer] == Q_LISTENS
}

inline do_START_MIGRATE()
{
	if
	:: qemu[h] == Q_RUNS && NOLIVE && was_running[h] -> sent_stop[h] = 2
	:: qemu[h] == Q_RUNS && !(NOLIVE && was_running[h]) -> migrate()
	:: else
	fi
}

inline do_LAST_DELTA() { tell(M_LAST) }
inline do_CONTINUE() { qemu[h] = (qemu[h] == Q_PRE -> Q_DEVICE : qemu[h]) }

inline do_JOURNAL_COMMIT()
{
	offered[h] = generation;
	REC(h, id[h]) = R_COMMIT;
	RAN(h, id[h]) = was_running[h]
}

/* It goes with the last process that has it: a keeper that has nothing to do leaves, a QEMU has it while it lives. */
#define drop_lease() holder = (holder == h && qemu[h] == Q_NONE -> NOBODY : holder)
inline ask(what)
{
	if
	:: LEASE -> asks[h] = what
	:: else -> urgent[h] = EV_LEASE_DONE
	fi
}

inline give_up()
{
	given_up[h] = (given_up[h] == 0 -> asks[h] : given_up[h]);
	asks[h] = 0
}

inline leave_state() { give_up() }

inline do_RELEASE_LEASE()
{
	if
	:: holder == h -> ask(L_RELEASE)
	:: else -> urgent[h] = EV_LEASE_DONE
	fi
}
inline do_SEND_FINISH() { tell(M_FINISH) }
inline do_SEND_OUTCOME() { tell(M_OUTCOME) }

inline do_REACH() { do_RECONNECT() }

inline do_RECONNECT()
{
	close_link();
	connecting[h] = 1
}

inline do_DROP_LINK() { close_link() }

inline take_lease()
{
	holder = h;
	last_holder = h;
	generation++
}

/*
 * Compare and swap: the target takes what was offered and nothing else; the source, what nobody has had since, or what
 * it likes when it has no guest in memory that could be behind.
 */
#define lease_is_ours(host) (last_holder == host && (holder == host || holder == NOBODY))
#define lease_is_free(host) (holder == host || holder == NOBODY)
#define lease_can_be_had(what)                                                                                         \
	(what == L_TAKE -> holder == NOBODY && generation == offered[peer]                                             \
	 : (lease_is_ours(h) || what == L_TAKE_BACK && lease_is_free(h) &&                                             \
					(generation == offered[h] + 1 || qemu[h] == Q_NONE)))

inline acquire()
{
	if
	:: LEASE && (holder != h || last_holder != h) -> take_lease()
	:: else
	fi
}

inline do_ACQUIRE_LEASE()
{
	if
	:: holder == h && last_holder == h && (!given_up[h] || SEED_UNSTOPPED) -> urgent[h] = EV_LEASE_DONE
	:: else -> ask((is_target(h) -> L_TAKE : L_TAKE_BACK))
	fi
}

/* Before a QEMU is started the lease is looked at, by the next worker: what is late has come true by then, without this QEMU. */
#define may_take(queue) (!given_up[h] || head(queue) != M_PREPARE)

#define lease_is_lost(host) (LEASE && state[host] == S_DOUBT && last_holder != host)
/* In doubt it decides, if nobody can have had it since. */
inline do_RETAKE_LEASE() { ask(L_RETAKE) }

/* What the worker is at is done, or cannot be. */
inline lease_answers()
{
	if
	:: asks[h] == L_RELEASE ->
		holder = (holder == h -> NOBODY : holder);
		e = EV_LEASE_DONE
	:: asks[h] != L_RELEASE && (lease_can_be_had(asks[h]) || SEED_TAKE_ANY && asks[h] == L_TAKE_BACK && lease_is_free(h)) ->
		acquire();
		e = EV_LEASE_DONE
	:: else -> e = EV_LEASE_FAILED
	fi;
	if
	:: is_source(h) -> drop_lease() /* without a QEMU: what the target could have taken it with is used up, that is all */
	:: else
	fi;
	asks[h] = 0
}

/* What nobody waits for any more comes true. It was allowed, and has had the lock since. */
inline lease_comes_late()
{
	if
	:: given_up[h] == L_RELEASE -> holder = (holder == h -> NOBODY : holder)
	:: given_up[h] != L_RELEASE && lease_can_be_had(given_up[h]) -> acquire()
	:: else
	fi;
	drop_lease();
	given_up[h] = 0
}

inline do_JOURNAL_OWNER() { REC(h, id[h]) = R_OWNER }
inline do_RESUME() { sent_cont[h] = qemu[h] == Q_POST || qemu[h] == Q_RUNS && halted[h] }
inline do_JOURNAL_GONE()
{
	REC(h, id[h]) = R_GONE;
	was_running[h] = 0
}


inline kill_qemu()
{
	must(!viewers[h] || qemu[h] == Q_NONE, "SPICE's clients are not handed over\n");
	qemu[h] = (qemu[h] == Q_NONE -> Q_NONE : Q_DYING);
	sent_cont[h] = 0;
	data[h] = 0;
	data[peer] = 0
}

inline do_KILL_QEMU()
{
	/* Ours may have the only copy of the guest: it goes only when the guest is surely elsewhere, or lost. */
	must(is_target(h) || standing(h) == R_GONE, "the source's QEMU is killed before GONE\n");
	held[h] = viewers[h] && qemu[h] != Q_NONE && !SEED_HASTE;
	if
	:: held[h]
	:: else -> kill_qemu()
	fi
}

inline do_FLUSH() { skip }
inline do_NOTE() { skip }
inline do_FORGET() { must(REC(h, id[h]) == R_GONE, "Forget before GONE\n") }
inline do_SETTLE() { soon[h] = EV_SETTLED }
inline do_TRY_LATER() { soon[h] = EV_RETRY }
inline do_CONT_BACK() { do_RESUME() }
inline do_SEND_ABORT() { tell(M_ABORT) }

/* The note goes when nothing is under way any more: a cont that is not answered yet is. */
inline end_source()
{
	close_link();
	cancelled[h] = 0;
	waits[h] = 0;
	receiving[h] = 0;
	viewers[h] = 0;
	was_running[h] = 0;
	soon[h] = 0;
	drop_lease();
	if
	:: !sent_cont[h] || SEED_NOTE_BEFORE_CONT ->
		note[h] = 0;
		note_ran[h] = 0;
		id[h] = 0
	:: else
	fi
}

/* ---- actions: target ---- */
inline do_START_QEMU()
{
	note[h] = NOTE_TARGET;
	soon[h] = EV_QEMU_READY;
	if
	:: !OFFLINE ->
		qemu[h] = Q_LISTENS;
		halted[h] = 0;
		stale[h] = 0;
		sent[peer] = 0;
		told[h] = 0
	:: else
	fi
}

inline do_PREPARE_REPLY()
{
	if
	:: prepares[h] -> say(M_PREPARE_OK)
	:: else
	fi;
	prepares[h] = 0
}

inline do_ARM_GATE() { skip }
inline do_JOURNAL_COMMITTED()
{
	REC(h, id[h]) = R_COMMITTED;
	RAN(h, id[h]) = was_running[h]
}

inline do_CONT()
{
	must(REC(h, id[h]) == R_COMMITTED, "cont before COMMITTED\n");
	must(restarted[h] || barrier[h] || gate[h], "cont without the barrier or the end of its time\n");
	if
	:: qemu[h] == Q_LOADED && was_running[h] -> sent_cont[h] = 1
	:: qemu[h] == Q_LOADED && !was_running[h] -> /* it is taken over as it is, paused */
		qemu[h] = Q_RUNS;
		halted[h] = 1;
		soon[h] = EV_CONT_OK
	:: else -> soon[h] = EV_CONT_OK
	fi
}

inline end_target()
{
	note[h] = 0;
	note_ran[h] = 0;
	id[h] = 0;
	loaded[h] = 0;
	barrier[h] = 0;
	gate[h] = 0;
	restarted[h] = 0;
	was_running[h] = 0;
	from[h] = FROM_NOBODY;
	asked[h] = 0;
	prepares[h] = 0;
	soon[h] = 0;
	told[h] = 0;
	drop_lease()
}

inline own(migration)
{
	must(REC(h, migration) == R_COMMITTED, "Running, which may become untrue\n");
	answer(M_RUNNING);
	if
	:: SEED_FORGET_EARLY -> REC(h, migration) = R_NONE
	:: else
	fi;
	end_target()
}

inline do_SAY_RUNNING() { own(id[h]) }
inline do_SAY_LOST() { own(id[h]) }
inline do_ANNOUNCE() { skip }
/* How the guest was is of no use any more. */
inline do_JOURNAL_ABORTED()
{
	REC(h, id[h]) = R_ABORTED;
	RAN(h, id[h]) = 0;
	was_running[h] = 0
}

inline do_SAY_NEVER()
{
	must(REC(h, id[h]) != R_COMMITTED && qemu[h] == Q_NONE, "Never, which may become untrue\n");
	answer(M_NEVER);
	if
	:: prepares[h] -> say(M_REFUSED)
	:: else
	fi;
	prepares[h] = 0
}

inline do_OWN_LEASE() { skip } /* an upgrade's */

inline do_END()
{
	if
	:: state[h] >= T_IDLE -> end_target()
	:: state[h] == S_DESTROY && qemu[h] != Q_NONE /* when QEMU is gone */
	:: else -> end_source()
	fi
}

/*
 * Which actions may fail, as they may in the keeper. ABORTED over nothing may be lost: a restart kills an undecided QEMU
 * all the same, so it is not waited for.
 */
#define may_fail(a)                                                                                                    \
	(a == DO_CONNECT || a == DO_HELLO || a == DO_PROVE || a == DO_SEND_PREPARE || a == DO_OPEN_DATA ||             \
	 a == DO_PREALLOCATE || a == DO_START_QEMU || a == DO_ARM_GATE || a == DO_PREPARE_REPLY || a == DO_JOURNAL_COMMIT ||               \
	 a == DO_JOURNAL_OWNER || a == DO_JOURNAL_GONE || a == DO_JOURNAL_COMMITTED ||  \
	 a == DO_JOURNAL_ABORTED && REC(h, id[h]) == R_COMMITTED)

#define cannot(a) false

/* ---- keepers come and go ---- */

/* What dies with a keeper. A cont it has sent a moment ago is read by QEMU, or not. */
inline keeper_dies()
{
	engine_dies();
	cancelled[h] = 0;
	waits[h] = 0; /* its connection ends: that is an answer */
	receiving[h] = 0;
	loaded[h] = 0;
	barrier[h] = 0;
	gate[h] = 0;
	restarted[h] = 0;
	prepares[h] = 0;
	asked[h] = 0;
	from[h] = FROM_NOBODY;
	dead[h] = 0;
	was_running[h] = 0;
	viewers[h] = 0;
	held[h] = 0;
	sent_stop[h] = 0;
	give_up();
	drop_lease();
	close_link();
	break_link_of(peer)
}

inline qemu_dies()
{
	qemu[h] = Q_NONE;
	halted[h] = 0;
	viewers[h] = 0;
	held[h] = 0;
	stale[h] = 0;
	sent_stop[h] = 0;
	sent_cont[h] = 0;
	data[h] = 0;
	data[peer] = 0;
	dead[h] = up[h];
	if
	:: !up[h] -> drop_lease()
	:: else
	fi
}

inline host_dies()
{
	keeper_dies();
	qemu_dies();
	note[h] = 0;
	note_ran[h] = 0;
	id[h] = 0;
	told[h] = 0;
	given_up[h] = 0
}

/* keeper.c's begin() and recover.c: from the journal, the note and QEMU. */
inline keeper_begins()
{
	up[h] = 1;
	if
	:: note[h] == NOTE_TARGET ->
		restarted[h] = 1;
		loaded[h] = qemu[h] != Q_LISTENS && qemu[h] != Q_NONE;
		told[h] = 0;
		was_running[h] = RAN(h, id[h]);
		state[h] = (REC(h, id[h]) == R_COMMITTED || SEED_RUN_LOADED && qemu[h] == Q_LOADED -> T_CONT : T_ABORT);
		e = EV_RESTART
	:: else ->
		if
		:: standing(h) == R_COMMIT ->
			state[h] = S_DOUBT;
			id[h] = standing_id(h);
			was_running[h] = RAN(h, id[h]);
			e = EV_RESTART
		:: standing(h) == R_GONE && (qemu[h] != Q_NONE || note[h] == NOTE_SOURCE) ->
			state[h] = S_DESTROY;
			id[h] = standing_id(h);
			e = EV_RESTART
		:: standing(h) != R_COMMIT && standing(h) != R_GONE && note[h] == NOTE_SOURCE ->
			state[h] = S_CANCEL;
			was_running[h] = note_ran[h];
			e = EV_RESTART
		:: else ->
			note[h] = 0;
			note_ran[h] = 0;
			id[h] = 0
		fi
	fi
}

/* ---- messages ---- */

/* peer.c and target.c: what a message of the source @source's connection @which, of migration @mid, does here. */
inline asked_for_outcome(which, mid)
{
	if
	:: is_target(h) && id[h] == mid ->
		asked[h] = 1;
		from[h] = which;
		e = EV_OUTCOME
	:: else ->
		if
		:: REC(h, mid) == R_NONE -> REC(h, mid) = R_ABORTED
		:: else
		fi;
		if
		:: which != FROM_LINK || !link[peer]
		:: else ->
			if
			:: REC(h, mid) == R_COMMITTED -> push(to_s[peer], M_RUNNING)
			:: REC(h, mid) == R_ABORTED -> push(to_s[peer], M_NEVER)
			:: else -> push(to_s[peer], M_ERROR)
			fi
		fi
	fi
}

inline prepare(which, mid)
{
	if
	:: REC(h, mid) != R_NONE || qemu[h] != Q_NONE || dead[h] || active(h) || owner(h) ->
		if
		:: which == FROM_LINK && link[peer] -> push(to_s[peer], M_REFUSED)
		:: else
		fi
	:: else ->
		state[h] = T_IDLE;
		id[h] = mid;
		from[h] = which;
		prepares[h] = 1;
		e = EV_PREPARE
	fi
}

inline target_receives(message, which, mid)
{
	if
	:: message == M_PREPARE -> prepare(which, mid)
	:: message == M_LAST && from[h] == which && (state[h] == T_WAIT || state[h] == T_GATE) ->
		barrier[h] = 1;
		e = EV_BARRIER
	:: message == M_ABORT && is_target(h) && id[h] == mid -> e = EV_ABORT
	:: message == M_FINISH && from[h] == which && id[h] == mid && state[h] == T_WAIT ->
		asked[h] = 1;
		was_running[h] = RAN(peer, mid) || SEED_FINISH_RUNS;
		e = EV_FINISH
	:: message == M_OUTCOME || message == M_FINISH && (from[h] != which || id[h] != mid || state[h] != T_WAIT) ->
		asked_for_outcome(which, mid)
	:: else
	fi
}

inline source_receives(message)
{
	if
	:: message == M_PREPARE_OK && state[h] == S_PREPARE -> e = EV_PREPARE_OK
	:: message == M_REFUSED && state[h] == S_PREPARE -> e = EV_FAILED
	:: message == M_RECEIVING ->
		receiving[h] = 1;
		e = EV_RECEIVING
	:: message == M_RUNNING && state[h] == S_WAIT -> e = EV_RUNNING
	:: message == M_NEVER && state[h] == S_WAIT -> e = EV_NEVER
	:: message == M_ERROR && state[h] == S_WAIT -> e = EV_DEADLINE
	:: else
	fi
}

/* The guest's words reach the other host's QEMU: from now on this one is behind. */
inline guest_goes_on_here()
{
	qemu[h] = Q_RUNS;
	halted[h] = 0;
	sent_cont[h] = 0;
	stale[peer] = qemu[peer] != Q_NONE
}

#include "step.pml"

proctype host(bit h)
{
	byte e, m;
	int known;
	bool go, fails, found;

end:
	do
	:: atomic {
		if
		/* the keeper's own */
		:: up[h] && urgent[h] ->
			e = urgent[h];
			urgent[h] = NO_EVENT
		:: up[h] && !urgent[h] && todo[h] -> go = 1
		:: !up[h] && !gone[h] && qemu[h] != Q_DYING -> d_step { keeper_begins() }
		:: ready(h) && late[h] ->
			late[h] = 0;
			e = EV_DEADLINE
		:: ready(h) && soon[h] == EV_SETTLED && qemu[h] != Q_NONE && !sent_stop[h] ->
			soon[h] = NO_EVENT;
			e = EV_SETTLED;
			if
			:: qemu[h] == Q_MOVING || qemu[h] == Q_PRE || qemu[h] == Q_DEVICE -> qemu[h] = Q_RUNS
			:: qemu[h] == Q_DEVICE -> /* it was too late to cancel */
				qemu[h] = Q_POST;
				sent[h] = 1
			:: else
			fi;
			data[h] = 0
		:: fault && ready(h) && soon[h] == EV_CONT_OK && restarted[h] && !OFFLINE -> /* it has run, and stopped since */
			faults++;
			soon[h] = NO_EVENT;
			e = EV_CONT_ERROR
		:: ready(h) && soon[h] && soon[h] != EV_SETTLED && (state[h] != S_HELLO || link[h]) ->
			e = soon[h];
			soon[h] = NO_EVENT
		/* its QEMU */
		:: ready(h) && dead[h] ->
			dead[h] = 0;
			if
			:: state[h] == S_DONE -> d_step { end_source() }
			:: active(h) -> e = EV_QEMU_DEAD
			:: else -> /* the VM is off, the runtime directory goes */
				note[h] = 0;
				note_ran[h] = 0;
				id[h] = 0;
				drop_lease()
			fi
		:: qemu[h] == Q_DYING -> d_step { qemu_dies() }
		:: ready(h) && state[h] == S_PERFORM && qemu[h] == Q_PRE -> e = EV_PRE_SWITCHOVER
		:: ready(h) && state[h] == S_SWITCHOVER && qemu[h] == Q_POST -> e = EV_POSTMIGRATE
		:: ready(h) && (state[h] == S_PERFORM || state[h] == S_HOLD || state[h] == S_SWITCHOVER) && qemu[h] == Q_RUNS &&
			!sent_stop[h] ->
			e = EV_FAILED
		:: sent_stop[h] == 2 ->
			halted[h] = 1;
			sent_stop[h] = 1
		:: sent_stop[h] == 1 && qemu[h] == Q_RUNS ->
			d_step {
				sent_stop[h] = 0;
				migrate()
			}
		:: ready(h) && held[h] -> /* SPICE_MIGRATE_COMPLETED, or its time is over */
			d_step {
				held[h] = 0;
				viewers[h] = 0;
				kill_qemu()
			}
		:: qemu[h] == Q_MOVING && data[h] && told[peer] -> qemu[h] = Q_PRE
		:: qemu[h] == Q_DEVICE && data[h] && !sent[h] -> sent[h] = 1
		:: qemu[h] == Q_DEVICE && sent[h] ->
			qemu[h] = Q_POST;
			data[h] = 0
		:: (qemu[h] == Q_MOVING || qemu[h] == Q_PRE || qemu[h] == Q_DEVICE) && !data[h] -> qemu[h] = Q_RUNS
		:: sent_cont[h] && (qemu[h] == Q_POST || qemu[h] == Q_RUNS) ->
			qemu[h] = Q_RUNS;
			halted[h] = 0;
			sent_cont[h] = 0;
			if
			:: ready(h) && state[h] == S_IDLE && note[h] == NOTE_SOURCE ->
				note[h] = 0;
				note_ran[h] = 0;
				id[h] = 0
			:: else
			fi
		:: sent_cont[h] && qemu[h] == Q_LOADED && ready(h) ->
			if
			:: d_step {
				guest_goes_on_here();
				e = EV_CONT_OK
			}
			:: fault ->
				faults++;
				sent_cont[h] = 0;
				e = EV_CONT_ERROR
			fi
		:: qemu[h] == Q_LISTENS && data[peer] && !told[h] && ready(h) ->
			d_step {
				told[h] = 1;
				say(M_RECEIVING)
			}
		:: qemu[h] == Q_LISTENS && sent[peer] -> qemu[h] = Q_LOADED
		:: qemu[h] == Q_LOADED && !loaded[h] && ready(h) && is_target(h) ->
			loaded[h] = 1;
			e = EV_LOADED
		:: qemu[h] == Q_LISTENS && told[h] && !data[peer] && !sent[peer] && ready(h) ->
			told[h] = 0;
			e = EV_FAILED
		:: ready(h) && state[h] == T_GATE && !gate[h] ->
			gate[h] = 1;
			e = EV_GATE_OVER
		:: LEASE && ready(h) && state[h] == S_DOUBT && (lease_is_ours(h) || SEED_TAKE_ANY && lease_can_be_had(L_TAKE_BACK)) ->
			e = EV_LEASE /* a look that finds it elsewhere changes nothing */
		/* the lease's storage */
		:: ready(h) && asks[h] && !given_up[h] ->
			if
			:: d_step { lease_answers() }
			:: fault ->
				faults++;
				asks[h] = 0;
				e = EV_LEASE_FAILED
			fi
		:: given_up[h] ->
			if
			:: d_step { lease_comes_late() }
			:: given_up[h] = 0
			fi
		/* the link it has made */
		:: ready(h) && connecting[h] && up[peer] && state[h] != S_RETAKE ->
			connecting[h] = 0;
			link[h] = 1;
			link_id[h] = id[h];
			knows[h] = 1;
			e = (state[h] == S_DOUBT -> EV_REACHED : EV_LINK_UP)
		:: ready(h) && lost[h] ->
			lost[h] = 0;
			knows[h] = 0;
			if
			:: state[h] == S_DOUBT -> connecting[h] = 1
			:: else -> e = EV_LINK_LOST
			fi
		:: ready(h) && to_s[h] ->
			d_step {
				m = head(to_s[h]);
				to_s[h] = to_s[h] / 16;
				source_receives(m);
				m = 0
			}
		/* the links that others have made */
		:: ready(h) && to_t[peer] && may_take(to_t[peer]) ->
			d_step {
				m = head(to_t[peer]);
				to_t[peer] = to_t[peer] / 16;
				target_receives(m, FROM_LINK, link_id[peer]);
				m = 0
			}
		:: ready(h) && old_t[peer] && may_take(old_t[peer]) ->
			d_step {
				m = head(old_t[peer]);
				old_t[peer] = old_t[peer] / 16;
				target_receives(m, FROM_OLD, old_id[peer]);
				m = 0
			}
		:: ready(h) && old[peer] && !old_t[peer] ->
			old[peer] = 0;
			old_id[peer] = 0;
			if
			:: from[h] == FROM_OLD ->
				from[h] = FROM_NOBODY;
				prepares[h] = 0;
				asked[h] = 0;
				e = EV_LINK_LOST
			:: else
			fi
		/* people */
		:: ready(h) && attempts < ATTEMPTS && !active(h) && owner(h) && !dead[h] && !sent_cont[h] && !note[h] &&
			(OFFLINE && qemu[h] == Q_NONE || qemu[h] == Q_RUNS) ->
			attempts++;
			id[h] = attempts;
			note[h] = NOTE_SOURCE;
			was_running[h] = !halted[h];
			note_ran[h] = was_running[h];
			state[h] = S_IDLE;
			e = EV_MIGRATE
		:: !OFFLINE && ready(h) && !active(h) && qemu[h] == Q_NONE && !dead[h] && (owner(h) || SEED_START) &&
			(!LEASE || lease_is_free(h) && !given_up[h]) ->
			d_step {
				qemu[h] = Q_RUNS;
				halted[h] = 0;
				pauses = (paused -> 2 : pauses);
				stale[h] = 0;
				acquire()
			}
		:: PAUSED && pauses == 0 && ready(h) && (qemu[h] == Q_RUNS || qemu[h] == Q_MOVING) && !sent_stop[h] && !sent_cont[h] &&
			(!active(h) && owner(h) || state[h] >= S_CONNECT && state[h] <= S_PERFORM) ->
			d_step {
				pauses = 1;
				halted[h] = 1;
				was_running[h] = 0;
				note_ran[h] = note_ran[h] && SEED_PAUSE_NOT_NOTED
			}
		:: ready(h) && fault && is_source(h) && (!committed(state[h]) || SEED_CANCEL) && !waits[h] ->
			faults++;
			waits[h] = 1;
			cancelled[h] = 1;
			e = EV_CANCEL
		/* the operator's word, once: only what is true, from the other host's journal and its QEMU */
		:: ready(h) && !assumed && (state[h] == S_DOUBT || state[h] == S_RETAKE) && REC(peer, id[h]) == R_COMMITTED && runs(peer) ->
			assumed = 1;
			e = EV_ASSUME_THERE
		:: ready(h) && (state[h] == S_DOUBT || state[h] == S_RETAKE) &&
			(!assumed && REC(peer, id[h]) == R_ABORTED && qemu[peer] == Q_NONE ||
			 gone[peer] && !(assumed && lease_is_lost(h))) ->
			assumed = 1;
			e = EV_ASSUME_NOWHERE
		/* faults */
		:: fault && up[h] ->
			faults++;
			if
			:: d_step {
				keeper_dies();
				sent_cont[h] = 0
			}
			:: sent_cont[h] ->
				d_step {
					keeper_dies();
					if
					:: qemu[h] == Q_LOADED -> guest_goes_on_here()
					:: else ->
						qemu[h] = Q_RUNS;
						halted[h] = 0
					fi;
					sent_cont[h] = 0
				}
			:: d_step {
				host_dies()
			}
			:: GONE && !gone[peer] ->
				d_step {
					host_dies();
					gone[h] = 1
				}
			fi
		:: fault && qemu[h] != Q_NONE && qemu[h] != Q_DYING -> d_step {
			faults++;
			qemu_dies()
		}
		:: fault && ready(h) && runs(h) && is_source(h) -> d_step { /* the guest shuts down */
			faults++;
			qemu_dies();
			e = EV_GUEST_OFF
		}
		:: fault && data[h] -> d_step {
			faults++;
			data[h] = 0
		}
		:: fault && ready(h) && connecting[h] -> d_step { /* nobody answers; in doubt it is tried again */
			faults++;
			connecting[h] = state[h] == S_DOUBT;
			e = (state[h] == S_DOUBT -> NO_EVENT : EV_LINK_LOST)
		}
		:: fault && link[h] -> d_step { /* cut: each end notices in its own time */
			faults++;
			to_t[h] = 0;
			m = knows[h];
			close_link();
			knows[h] = m;
			lost[h] = m;
			m = 0
		}
		:: fault && head(to_t[h]) == M_LAST -> d_step {
			faults++;
			to_t[h] = to_t[h] / 16
		}
		:: fault && ready(h) && active(h) && !late[h] && has_deadline(state[h]) -> d_step {
			faults++;
			e = EV_DEADLINE
		}
		:: fault && ready(h) && active(h) && has_failed(state[h]) -> d_step {
			faults++;
			e = EV_FAILED
		}
		fi;
		take_step();
		d_step {
			must(!(runs(0) && runs(1)), "two run\n");
			must(!(owner(0) && owner(1)) || gone[0] || gone[1], "two own it\n");
			must(!(runs(0) && !owner(0)) && !(runs(1) && !owner(1)), "it runs where it must not\n");
			must(!paused || !runs(0) && !runs(1), "a guest that a person has paused runs\n");
			/* the operator's word may be the end of what a lost host has done since */
			must(!(runs(0) && stale[0]) && !(runs(1) && stale[1]) || assumed && (gone[0] || gone[1]),
			     "what runs is behind\n");
			must(!LEASE || !(runs(0) && holder != 0) && !(runs(1) && holder != 1), "it runs without its lease\n")
		}
	}
	od
}

/*
 * Nothing can happen any more: a deadline passes; without one this is the end. Then, on exactly one host, the guest runs
 * (or may be started), and nothing is left over anywhere. Together with "no cycle" this is: never none for ever.
 */
#define armed(host) (active(host) && has_deadline(state[host]) && !late[host] && !(state[host] == T_WAIT && told[host]))
#define here(host) (runs(host) || paused && (qemu[host] == Q_RUNS || qemu[host] == Q_POST))
#define clean(host)                                                                                                    \
	(up[host] && !active(host) && !note[host] && !waits[host] && !dead[host] && (here(host) || qemu[host] == Q_NONE))

/*
 * A host is gone for good. The other one runs the guest; or the guest was the lost host's; or only a person can go on: the
 * lost one has taken the lease. Without a lease it takes the operator's word to get out of doubt, given above.
 */
#define survives(host)                                                                                                 \
	must(lease_is_lost(host) || clean(host), "at the end: something is left over\n");                             \
	must(lease_is_lost(host) || OFFLINE || here(host) == owner(host), "at the end: none runs\n")

active proctype clock()
{
#ifdef RUNTIME
	c_code {
		PARAMETER(FAULTS);
		PARAMETER(ATTEMPTS);
		PARAMETER(LEASE);
		PARAMETER(OFFLINE);
		PARAMETER(GONE);
		PARAMETER(NOLIVE);
		PARAMETER(PAUSED);
		PARAMETER(SPICE);
		PARAMETER(SEED);
	};
#endif
	qemu[0] = (OFFLINE -> Q_NONE : Q_RUNS);
	atomic {
		run host(0);
		run host(1)
	}
	do
	:: timeout ->
		if
		:: armed(0) -> late[0] = 1
		:: armed(1) -> late[1] = 1
		:: !armed(0) && !armed(1) -> break
		fi
	od;
	must(!waits[0] && !waits[1], "at the end: a cancel is not answered\n");
	if
	:: gone[0] -> survives(1)
	:: gone[1] -> survives(0)
	:: else ->
		must(owner(0) != owner(1), "at the end: nobody owns it\n");
		must(OFFLINE || here(0) != here(1), "at the end: none runs\n");
		must(clean(0) && clean(1), "at the end: something is left over\n")
	fi
}
