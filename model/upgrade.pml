/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two QEMUs over the same memory on one host, the keeper that changes them over, and everything that can go wrong meanwhile.
 * As vmferry.pml: what the keeper decides comes from the rows (step.pml), this file is the world around.
 *
 * The record (which QEMU has the guest) and the note (an upgrade is under way) lie in the runtime directory: they outlive
 * the keeper, not the host. Each upgrade goes by memory that both have, or through a file; what is recorded of the file
 * outlives the host, the file itself may.
 *
 * A guest that runs has a lease, which other hosts want, too: each QEMU holds it, alone or with the other one, or does not.
 *
 * FAULTS: at most so many in a run; ATTEMPTS: upgrades, one after the other; PAUSED: 1 for a guest that was paused; SEED:
 * which of model/rows.py's bugs is in. RUNTIME: the verifier takes all of them from its environment.
 */
#ifdef RUNTIME
byte FAULTS, ATTEMPTS, PAUSED, SEED;
#endif
#ifndef RUNTIME
#ifndef FAULTS
#define FAULTS 1
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 1
#endif
#ifndef PAUSED
#define PAUSED 0
#endif
#ifndef SEED
#define SEED 0
#endif
#endif

#define HOSTS 1
#include "engine.pml"

/*
 * A QEMU. RUNS and MOVING have the guest, and run it unless it was paused; DEVICE: stopped, the devices' state goes; POST: all
 * is sent; OFF: the guest has shut down in it; DYING: SIGKILL is sent.
 */
#define Q_NONE 0
#define Q_RUNS 1
#define Q_MOVING 2
#define Q_DEVICE 3
#define Q_POST 4
#define Q_STARTS 5
#define Q_LISTENS 6
#define Q_LOADED 7
#define Q_OFF 8
#define Q_DYING 9
#define Q_LOADS 10 /* reads the file */

/* The record of the file, and how much of the guest is in it. */
#define NOT_SAVED 0
#define WRITING 1
#define WHOLE 2
#define USED 3
#define PART 1
#define FULL 2

/* What a QEMU holds of the lease. */
#define NOT_HELD 0
#define SHARED 1
#define ALONE 2

/* The two of them, and what the record says. Before another attempt the one that is left becomes the old one. */
#define OLD 0
#define NEW 1

/* ---- the keeper, beside its engine: all of it dies with it ---- */
bool cancelled, waits; /* a cancel was asked for; its asker waits for the answer */
bool loaded;	       /* the new one has said so */
bool answered;	       /* and has answered since */
bool told;	       /* a person has been told that it does not answer */
bool changed;	       /* the new one is the VM's QEMU */
bool asking;	       /* one was found and is asked how the guest is */
bool unreached;	       /* the new one was found, and did not answer */
bool shutoff;	       /* the guest has shut down, as far as the keeper knows */
bool by_file;	       /* this upgrade goes through a file */
bool fell_back;	       /* the old version is to load it, after the new one has not */
bool dead[2];	       /* a QEMU's end is still to be noticed */

/* ---- what outlives it ---- */
bool note, record;
byte qemu[2], lease[2];
bool sent_cont[2]; /* cont is on its way to that QEMU */
bool hung;	   /* the new one answers nothing; its process lives, and what it has said is on its way */
bool sent;	   /* all of the old one's state is on its way */
byte saved, file;  /* the record of the file; the file */
bool synced;	   /* all of the file is on its disk */
bool taken;	   /* the lease is another host's */
bool stale[2];	   /* the guest has run in the other one since it was here: this one must never run again */

byte attempts;
bool unwritten; /* the record that names the old one again */
bool excused; /* whoever had the guest was killed, or the guest has shut down: it may be gone */
bool unable;  /* the new version cannot load what the old one has written */
bool refused; /* the new one will not resume, though nothing is in its way */

#define mine changed
#define other (1 - changed)
#define busy (state[0] != S_IDLE)
#define awake(q) (!(q == NEW && hung))
#define alive(q) (qemu[q] != Q_NONE && qemu[q] != Q_DYING)
#define has(q) (!stale[q] && alive(q) && qemu[q] != Q_STARTS && qemu[q] != Q_LISTENS && qemu[q] != Q_LOADS)
#define kept (saved == WHOLE && file == FULL)
#define decided (record == NEW && !unwritten)
#define runs(q) (!PAUSED && (qemu[q] == Q_RUNS || qemu[q] == Q_MOVING && !file))

/* ---- facts ---- */
#define fact_ALIVE (qemu[mine] != Q_NONE)
#define fact_OTHER (qemu[other] != Q_NONE && !unreached)
#define fact_LOAD_DONE loaded
#define fact_POST (qemu[OLD] == Q_POST)
#define fact_WAS_RUNNING (!PAUSED)
#define fact_CANCELLED cancelled
#define fact_OWNER 1

/* ---- actions ---- */

/* The record first: a write that failed once may have left it, and generations are used again. */
inline do_NOTE_UPGRADE()
{
	record = (SEED_RECORD_LEFT -> record : OLD);
	unwritten = unwritten && SEED_RECORD_LEFT;
	saved = (by_file -> WRITING : saved);
	note = 1
}

inline do_START_NEW()
{
	qemu[NEW] = Q_STARTS;
	hung = 0;
	stale[NEW] = 0
}

inline do_SET_UP_BOTH() { soon[h] = (by_file -> EV_TRIED : EV_DATA_READY) }

inline do_START_UPGRADE()
{
	qemu[OLD] = (qemu[OLD] == Q_RUNS || qemu[OLD] == Q_POST -> Q_MOVING : qemu[OLD]);
	sent = 0
}

inline do_SHARE_LEASE()
{
	lease[OLD] = (lease[OLD] == NOT_HELD -> NOT_HELD : SHARED);
	lease[NEW] = lease[OLD]
}

/* The other one's part goes first; what is its own already stays so. */
inline do_OWN_LEASE()
{
	must(!alive(other), "the lease is one QEMU's alone while both may have the guest\n");
	lease[other] = NOT_HELD;
	lease[mine] = (lease[mine] == NOT_HELD -> NOT_HELD : ALONE)
}

inline do_ASK_NEW() { soon[h] = EV_ANSWERS }
inline do_SAY_SILENT() { told = 1 }

inline do_COMMIT_NEW()
{
	must(answered, "the record names a new one that has not answered since it loaded\n");
	record = NEW;
	unwritten = 0
}

inline do_KILL_OLD()
{
	must(record == NEW, "the old one is killed before the record names the new one\n");
	must(qemu[NEW] != Q_NONE, "the old one is killed although the new one is dead\n");
	must(!alive(NEW) || has(NEW), "the old one is killed before the new one has the guest\n");
	must(!runs(OLD), "the old one is killed while it runs\n");
	must(PAUSED || !alive(NEW) || lease[NEW] != NOT_HELD, "the old one is killed before the new one has the lease\n");
	qemu[OLD] = (qemu[OLD] == Q_NONE -> Q_NONE : Q_DYING);
	sent_cont[OLD] = 0;
	changed = 1
}

inline do_CONT_NEW()
{
	must(record == mine, "the new one is resumed before the record names it\n");
	must(changed || fell_back, "the old one is resumed as the new one\n");
	must(!alive(other), "the new one is resumed before the old one is killed\n");
	must(!PAUSED, "a paused guest is resumed\n");
	sent_cont[mine] = qemu[mine] != Q_NONE
}

inline do_START_SAVE()
{
	must(qemu[NEW] == Q_NONE, "the guest is saved while the new one is there\n");
	file = PART;
	synced = 0;
	qemu[OLD] = (qemu[OLD] == Q_RUNS || qemu[OLD] == Q_POST -> Q_MOVING : qemu[OLD])
}

inline do_SYNC_FILE() { soon[h] = EV_SYNCED }

inline do_COMMIT_SAVE()
{
	must(file == FULL, "a file is recorded as whole that is not\n");
	saved = WHOLE
}

inline do_KILL_SAVED()
{
	must(kept, "a QEMU is killed before the record says that the file has the guest\n");
	lease[mine] = NOT_HELD;
	qemu[mine] = (qemu[mine] == Q_NONE -> Q_NONE : Q_DYING)
}

inline do_START_FILL()
{
	must(qemu[OLD] == Q_NONE && qemu[NEW] == Q_NONE, "two QEMUs, where there is memory for one\n");
	must(kept, "a QEMU starts for a file that does not have the guest\n");
	changed = !fell_back;
	record = mine;
	dead[OLD] = 0;
	dead[NEW] = 0;
	stale[mine] = 0;
	lease[mine] = (PAUSED -> NOT_HELD : ALONE);
	hung = 0;
	qemu[mine] = Q_STARTS
}

inline do_LOAD_FILE()
{
	must(kept, "a file is loaded that does not have the guest\n");
	qemu[mine] = (qemu[mine] == Q_LISTENS -> Q_LOADS : qemu[mine])
}

inline do_USE_UP()
{
	must(qemu[mine] == Q_LOADED || qemu[mine] == Q_DYING || qemu[mine] == Q_NONE, "the file is used up before it is loaded\n");
	excused = excused || qemu[mine] != Q_LOADED;
	saved = USED
}

inline do_FALL_BACK() { fell_back = 1 }

inline do_ANNOUNCE() { skip }

inline do_KILL_NEW()
{
	must(!changed && qemu[NEW] != Q_RUNS, "the QEMU that has the guest is killed\n");
	qemu[NEW] = (qemu[NEW] == Q_NONE -> Q_NONE : Q_DYING)
}

inline do_CLEAR_NEW() { record = OLD }
inline do_SETTLE() { soon[h] = EV_SETTLED }

inline do_CONT_BACK()
{
	must(!alive(NEW), "the old one is resumed while the new one may run it\n");
	must(!PAUSED, "a paused guest is resumed\n");
	sent_cont[OLD] = qemu[OLD] == Q_POST
}

inline do_SEND_ABORT() { skip }

/* The note goes when nothing is under way any more: a cont that is not answered yet is. */
inline do_END()
{
	must(!changed || qemu[OLD] == Q_NONE, "the end is told while the old one is there\n");
	must(record == mine || unwritten || kept, "at the end the record names the wrong one\n");
	must(!kept || qemu[mine] == Q_NONE, "the end is told while a QEMU is there that does not have the guest\n");
	must(!kept || fell_back, "the end is told before the old version was tried\n");
	if
	:: kept && !SEED_FILE_DROPPED
	:: else ->
		file = 0;
		synced = 0;
		saved = NOT_SAVED
	fi;
	by_file = 0;
	fell_back = 0;
	cancelled = 0;
	waits = 0;
	soon[h] = 0;
	loaded = 0;
	answered = 0;
	told = 0;
	unreached = 0;
	note = note && sent_cont[OLD];
	qemu[mine] = (shutoff && qemu[mine] == Q_OFF -> Q_DYING : qemu[mine])
}

#define may_fail(a)                                                                                                    \
	(a == DO_NOTE_UPGRADE || a == DO_START_NEW || a == DO_SET_UP_BOTH || a == DO_SHARE_LEASE ||                    \
	 a == DO_START_UPGRADE || a == DO_COMMIT_NEW || a == DO_CLEAR_NEW || a == DO_START_SAVE || a == DO_SYNC_FILE || a == DO_COMMIT_SAVE || a == DO_START_FILL ||     \
	 a == DO_LOAD_FILE || a == DO_USE_UP)
#define cannot(a)                                                                                                      \
	(a == DO_START_NEW && !alive(OLD) || a == DO_SET_UP_BOTH && !(alive(OLD) && alive(NEW)) ||                     \
	 a == DO_ASK_NEW && !alive(NEW) || a == DO_SHARE_LEASE && !(alive(OLD) && alive(NEW)) || a == DO_START_FILL && taken && !PAUSED && !SEED_TAKEN ||    \
	 a == DO_START_UPGRADE && !(alive(OLD) && alive(NEW)) || a == DO_START_SAVE && !alive(OLD) ||                  \
	 a == DO_LOAD_FILE && !alive(mine) || a == DO_FALL_BACK && fell_back)

/* ---- keeper, QEMUs and host come and go ---- */

inline keeper_dies()
{
	engine_dies();
	cancelled = 0;
	waits = 0; /* its connection ends: that is an answer */
	loaded = 0;
	answered = 0;
	told = 0;
	changed = 0;
	asking = 0;
	unreached = 0;
	shutoff = 0;
	by_file = 0;
	fell_back = 0;
	dead[OLD] = 0;
	dead[NEW] = 0
}

/* What of a cont that the keeper has just sent QEMU reads. */
inline cont_is_read(q)
{
	if
	:: sent_cont[q] && (qemu[q] == Q_POST || qemu[q] == Q_LOADED) && awake(q) -> goes_on(q)
	:: else
	fi;
	sent_cont[q] = 0
}

inline goes_on(q)
{
	file = (file == FULL && saved == WRITING -> PART : file);
	qemu[q] = Q_RUNS;
	stale[1 - q] = alive(1 - q) && qemu[1 - q] != Q_STARTS && qemu[1 - q] != Q_LISTENS
}

inline qemu_goes(q)
{
	qemu[q] = Q_NONE;
	hung = hung && q == OLD;
	lease[q] = NOT_HELD;
	sent_cont[q] = 0;
	stale[q] = 0;
	dead[q] = up[h]
}

/* save_adopt(): the file has the guest. Whatever QEMU is there has not run it, and goes. */
inline goes_on_from_file()
{
	by_file = 1;
	changed = qemu[NEW] != Q_NONE;
	note = 1;
	urgent[h] = EV_RESTART;
	state[h] = (qemu[mine] == Q_NONE -> U_EMPTY : U_QUIT)
}

/*
 * machine_adopt(): with a note, the old one has the guest unless only the new one is there and named by the record; without, who the
 * record names, else who is there. Who has no business here is killed, who has the guest is asked. A dying one may be found, or
 * nobody any more. When a file is used up, who the state file names has the guest.
 */
inline looks_for_qemu()
{
	if
	:: note && saved == USED ->
		by_file = 1;
		fell_back = record == OLD;
		changed = record == NEW;
		qemu[other] = (qemu[other] == Q_NONE -> Q_NONE : Q_DYING)
	:: note && saved != USED ->
		by_file = saved != NOT_SAVED;
		changed = record == NEW && qemu[OLD] == Q_NONE && qemu[NEW] != Q_NONE;
		qemu[NEW] = (record == OLD && qemu[NEW] != Q_NONE -> Q_DYING : qemu[NEW])
	:: !note ->
		changed = (qemu[record] == Q_NONE -> 1 - record : record);
		qemu[other] = (qemu[other] == Q_NONE -> Q_NONE : Q_DYING);
		file = 0;
		synced = 0;
		saved = NOT_SAVED
	fi;
	asking = 1;
	if
	:: qemu[mine] == Q_NONE -> keeper_knows()
	:: else
	fi
}

inline keeper_begins()
{
	up[h] = 1;
	dead[OLD] = 0;
	dead[NEW] = 0;
	saved = (saved == WHOLE && file != FULL -> NOT_SAVED : saved);
	saved = (saved == USED && SEED_USED_AGAIN -> WHOLE : saved);
	if
	:: saved == WHOLE && !SEED_SAVED_UNSEEN -> goes_on_from_file()
	:: else -> looks_for_qemu()
	fi
}

/* upgrade_recover(): it has said how the guest is, or there is nobody to ask. */
inline keeper_knows()
{
	asking = 0;
	shutoff = qemu[mine] == Q_OFF && !(note && SEED_UNSEEN_OFF);
	qemu[mine] = (shutoff -> Q_DYING : qemu[mine]);
	if
	:: note && saved == USED ->
		urgent[h] = EV_RESTART;
		state[h] = U_RESUME
	:: note && saved != USED ->
		loaded = record == NEW;
		unreached = record == NEW && !changed && qemu[NEW] == Q_DYING;
		urgent[h] = EV_RESTART;
		state[h] = (record == OLD -> U_BACK : (changed -> U_RESUME : U_KILL))
	:: !note && qemu[mine] == Q_NONE -> record = OLD
	:: else
	fi
}

inline leave_state() { skip }

#include "step.pml"

proctype host(bit h)
{
	byte e;
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
		:: !up[h] -> d_step { keeper_begins() }
		:: ready(h) && late[h] ->
			late[h] = 0;
			e = EV_DEADLINE
		:: ready(h) && soon[h] == EV_DATA_READY && alive(OLD) && alive(NEW) && !hung ->
			soon[h] = NO_EVENT;
			e = EV_DATA_READY
		:: ready(h) && soon[h] == EV_TRIED && alive(OLD) && alive(NEW) && !hung ->
			soon[h] = NO_EVENT;
			e = EV_TRIED
		:: ready(h) && soon[h] == EV_ANSWERS && alive(NEW) && !hung ->
			soon[h] = NO_EVENT;
			answered = 1;
			e = EV_ANSWERS
		:: ready(h) && soon[h] == EV_SETTLED && alive(OLD) ->
			soon[h] = NO_EVENT;
			e = EV_SETTLED;
			if
			:: file && qemu[OLD] == Q_MOVING -> qemu[OLD] = Q_POST /* it was stopped before, and stays so */
			:: !file && (qemu[OLD] == Q_MOVING || qemu[OLD] == Q_DEVICE) -> d_step { goes_on(OLD) }
			:: qemu[OLD] == Q_DEVICE -> /* it was too late to cancel */
				qemu[OLD] = Q_POST;
				sent = 1
			:: else
			fi
		/* the end of a QEMU */
		:: qemu[OLD] == Q_DYING -> d_step { qemu_goes(OLD) }
		:: qemu[NEW] == Q_DYING -> d_step { qemu_goes(NEW) }
		:: ready(h) && asking && (alive(mine) && awake(mine) || dead[mine]) -> d_step { keeper_knows() }
		:: ready(h) && dead[mine] ->
			dead[mine] = 0;
			if
			:: busy -> e = EV_QEMU_DEAD
			:: asking && !SEED_UNASKED -> d_step { keeper_begins() }
			:: else -> /* the VM is off, the runtime directory goes */
				asking = 0;
				note = 0;
				record = OLD
			fi
		:: ready(h) && dead[other] ->
			dead[other] = 0;
			e = (changed -> EV_QEMU_GONE : EV_NEW_DEAD)
		/* the file */
		:: qemu[OLD] == Q_MOVING && file == PART -> d_step {
			qemu[OLD] = Q_POST;
			file = FULL
		}
		:: ready(h) && state[h] == U_SAVE && qemu[OLD] == Q_POST -> e = (file == FULL -> EV_POSTMIGRATE : EV_FAILED)
		:: ready(h) && soon[h] == EV_SYNCED ->
			soon[h] = NO_EVENT;
			synced = 1;
			e = EV_SYNCED
		:: fault && soon[h] == EV_SYNCED -> /* its disk does not answer; a person sees to that, or cancels */
			faults++;
			soon[h] = NO_EVENT
		:: ready(h) && state[h] == U_SYNC && soon[h] == NO_EVENT && !waits ->
			waits = 1;
			cancelled = 1;
			e = EV_CANCEL
		:: ready(h) && state[h] == U_FILL && qemu[mine] == Q_STARTS && awake(mine) ->
			qemu[mine] = Q_LISTENS;
			e = EV_QEMU_READY
		:: qemu[OLD] == Q_LOADS -> qemu[OLD] = Q_LOADED
		:: qemu[NEW] == Q_LOADS && !unable && !hung -> qemu[NEW] = Q_LOADED
		:: qemu[NEW] == Q_LOADS && unable && !hung -> d_step { qemu_goes(NEW) }
		:: fault && qemu[NEW] == Q_LOADS && !unable ->
			faults++;
			unable = 1
		:: fault && qemu[OLD] == Q_MOVING && file == PART -> /* it cannot be written, or the write was cancelled */
			faults++;
			qemu[OLD] = Q_POST
		:: ready(h) && state[h] == U_RESTORE && qemu[mine] == Q_LOADED -> e = EV_LOADED
		/* the old one */
		:: qemu[OLD] == Q_MOVING && (qemu[NEW] == Q_LISTENS || qemu[NEW] == Q_LOADED) -> qemu[OLD] = Q_DEVICE
		:: qemu[OLD] == Q_DEVICE && !sent && qemu[NEW] == Q_LISTENS -> sent = 1
		:: qemu[OLD] == Q_DEVICE && sent && alive(NEW) -> qemu[OLD] = Q_POST
		:: (qemu[OLD] == Q_MOVING || qemu[OLD] == Q_DEVICE) && !alive(NEW) && !file -> /* it resumes by itself */
			d_step { goes_on(OLD) }
		:: ready(h) && (state[h] == U_PERFORM || state[h] == U_LOAD) && qemu[OLD] == Q_RUNS -> e = EV_FAILED
		:: ready(h) && state[h] == U_PERFORM && qemu[OLD] == Q_POST -> e = EV_POSTMIGRATE
		:: sent_cont[OLD] && qemu[OLD] == Q_POST -> d_step {
			goes_on(OLD);
			sent_cont[OLD] = 0;
			note = note && busy
		}
		/* the new one */
		:: qemu[NEW] == Q_STARTS && !hung && (!up[h] || ready(h)) && state[h] != U_FILL ->
			qemu[NEW] = Q_LISTENS;
			e = (up[h] -> EV_QEMU_READY : NO_EVENT)
		:: qemu[NEW] == Q_LISTENS && !hung && sent && (qemu[OLD] == Q_DEVICE || qemu[OLD] == Q_POST) -> qemu[NEW] = Q_LOADED
		:: ready(h) && qemu[NEW] == Q_LOADED && !changed && !loaded && busy && !by_file ->
			loaded = 1;
			e = EV_LOADED
		:: ready(h) && sent_cont[mine] && awake(mine) && (changed || fell_back) && (qemu[mine] == Q_LOADED || qemu[mine] == Q_RUNS) ->
			if
			:: d_step {
				goes_on(mine);
				e = EV_CONT_OK
			}
			:: qemu[mine] == Q_LOADED && qemu[other] != Q_NONE -> e = EV_CONT_ERROR /* its disks are still locked */
			:: qemu[mine] == Q_LOADED && fault ->
				faults++;
				refused = qemu[other] == Q_NONE;
				e = EV_CONT_ERROR
			fi;
			sent_cont[mine] = 0
		:: ready(h) && sent_cont[mine] && awake(mine) && (changed || fell_back) && qemu[mine] == Q_OFF ->
			sent_cont[mine] = 0;
			e = EV_CONT_ERROR
		/* the guest has shut down: QEMU stays, and who hears of it kills it */
		:: ready(h) && qemu[mine] == Q_OFF && !shutoff && !SEED_UNSEEN_OFF ->
			shutoff = 1;
			e = (busy -> EV_GUEST_OFF : NO_EVENT);
			qemu[mine] = (!busy || !committed(state[h]) -> Q_DYING : qemu[mine])
		/* people */
		:: ready(h) && !busy && !asking && attempts < ATTEMPTS && !note && has(mine) && awake(mine) && !sent_cont[mine] &&
			(qemu[mine] == Q_RUNS || PAUSED) && qemu[other] != Q_DYING ->
			d_step {
				attempts++;
				if
				:: changed ->
					qemu[OLD] = Q_RUNS;
					qemu[NEW] = Q_NONE;
					lease[OLD] = lease[NEW];
					lease[NEW] = NOT_HELD;
					changed = 0;
					record = OLD
				:: else -> qemu[OLD] = Q_RUNS
				fi;
				dead[OLD] = 0;
				dead[NEW] = 0;
				stale[OLD] = 0;
				sent = 0;
				refused = 0;
				unable = 0
			};
			if
			:: by_file = 0
			:: by_file = 1
			fi;
			e = EV_UPGRADE
		/* vmferry start, when neither version took the guest */
		:: ready(h) && !busy && kept && qemu[OLD] == Q_NONE && qemu[NEW] == Q_NONE && fault ->
			faults++;
			by_file = 1;
			note = 1;
			urgent[h] = EV_RESTART;
			state[h] = U_EMPTY
		:: ready(h) && fault && busy && state[h] != S_CANCEL && !committed(state[h]) && !waits ->
			faults++;
			waits = 1;
			cancelled = 1;
			e = EV_CANCEL
		/* vmferry resume, after the new one has refused with nothing in its way */
		:: ready(h) && !busy && !asking && refused && qemu[mine] == Q_LOADED && awake(mine) ->
			refused = 0;
			d_step { goes_on(mine) }
		/* a person who knows that it does not answer sees to it that it does */
		:: hung && changed && (told || !busy) -> hung = 0
		/* faults */
		:: fault && alive(NEW) && !hung ->
			faults++;
			hung = 1
		:: fault && lease[OLD] == NOT_HELD && lease[NEW] == NOT_HELD && !taken ->
			faults++;
			taken = 1
		:: fault && up[h] ->
			faults++;
			if
			:: d_step {
				keeper_dies();
				sent_cont[OLD] = 0;
				sent_cont[NEW] = 0
			}
			:: sent_cont[OLD] || sent_cont[NEW] ->
				d_step {
					keeper_dies();
					cont_is_read(OLD);
					cont_is_read(NEW)
				}
			:: d_step { /* the host */
				keeper_dies();
				qemu_goes(OLD);
				qemu_goes(NEW);
				note = 0;
				record = OLD;
				excused = excused || !kept;
				file = (file && !synced -> PART : file)
			}
			:: file -> d_step { /* the host, and a file in a tmpfs */
				keeper_dies();
				qemu_goes(OLD);
				qemu_goes(NEW);
				note = 0;
				record = OLD;
				file = 0;
				excused = 1
			}
			fi
		:: fault && alive(OLD) -> d_step {
			faults++;
			/* once it is decided, and the new one lives, the guest outlives the old one */
			excused = excused || !(decided && has(NEW)) && has(OLD) && !kept;
			qemu_goes(OLD)
		}
		:: fault && alive(NEW) -> d_step {
			faults++;
			/* as long as the old one is there, the guest outlives the new one */
			excused = excused || !has(OLD) && !kept;
			qemu_goes(NEW)
		}
		/* the same, but nobody sees it yet */
		:: fault && has(OLD) -> d_step {
			faults++;
			excused = excused || !(decided && has(NEW)) && !kept;
			qemu[OLD] = Q_DYING
		}
		:: fault && has(NEW) -> d_step {
			faults++;
			excused = excused || !kept;
			qemu[NEW] = Q_DYING
		}
		:: fault && (runs(OLD) || runs(NEW)) -> d_step { /* the guest shuts down */
			faults++;
			excused = 1;
			qemu[runs(NEW)] = Q_OFF
		}
		:: fault && (qemu[OLD] == Q_MOVING || qemu[OLD] == Q_DEVICE) && !file -> d_step { /* the stream breaks */
			faults++;
			goes_on(OLD)
		}
		:: fault && ready(h) && busy && !late[h] && has_deadline(state[h]) -> d_step {
			faults++;
			e = EV_DEADLINE
		}
		:: fault && ready(h) && busy && has_failed(state[h]) -> d_step {
			faults++;
			e = EV_FAILED
		}
		fi;
		take_step();
		d_step {
			unwritten = unwritten || state[h] == U_CLEAR && urgent[h] == EV_ACTION_FAILED;
			must(!(runs(OLD) && runs(NEW)), "both run\n");
			must(!(runs(OLD) && stale[OLD]) && !(runs(NEW) && stale[NEW]), "what runs is behind\n");
			must(!((runs(OLD) || runs(NEW)) && kept), "it runs although the file has the guest\n");
			must(!(runs(NEW) && record == OLD), "the new one runs before the record names it\n");
			must(!(runs(OLD) && decided && has(NEW)), "the old one runs after the record names the new one\n");
			must(!(runs(OLD) && lease[OLD] == NOT_HELD) && !(runs(NEW) && lease[NEW] == NOT_HELD), "it runs without its lease\n");
			must(!(lease[OLD] == ALONE && lease[NEW] != NOT_HELD) && !(lease[NEW] == ALONE && lease[OLD] != NOT_HELD), "two hold what is one's alone\n");
			must(!((runs(OLD) || runs(NEW)) && taken), "it runs although another host has the lease\n");
			must(excused || has(OLD) || has(NEW) || kept, "the guest is lost\n")
		}
	}
	od
}

/*
 * Nothing can happen any more: a deadline passes; without one this is the end. Then one QEMU is there, it has the guest, runs it
 * unless it was paused, and nothing is left over. Only where whoever had the guest was killed, or it has shut down, there may be none.
 */
#define armed (busy && has_deadline(state[0]) && !late[0] && !told)

active proctype clock()
{
#ifdef RUNTIME
	c_code {
		PARAMETER(FAULTS);
		PARAMETER(ATTEMPTS);
		PARAMETER(PAUSED);
		PARAMETER(SEED);
	};
#endif
	qemu[OLD] = Q_RUNS;
	lease[OLD] = (PAUSED -> NOT_HELD : ALONE);
	run host(0);
	do
	:: timeout ->
		if
		:: armed -> late[0] = 1
		:: !armed -> break
		fi
	od;
	must(!waits, "at the end: a cancel is not answered\n");
	must(up[0] && !busy && !asking && !note && !dead[OLD] && !dead[NEW], "at the end: something is left over\n");
	must(qemu[other] == Q_NONE, "at the end: two QEMUs\n");
	must(kept || saved == NOT_SAVED && file == 0, "at the end: a file is left over\n");
	must(lease[mine] != SHARED, "at the end: the lease is not one QEMU's alone\n");
	must((excused || kept) && qemu[mine] == Q_NONE || PAUSED && has(mine) || runs(mine), "at the end: none runs\n")
}
