/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "explore.h"

#include <stdio.h>
#include <string.h>

#include "basic/text.h"

enum { SQ_RUN, SQ_MIGRATING, SQ_PRE, SQ_DEVICE, SQ_POST, SQ_DEAD };
enum { TQ_NONE, TQ_LISTEN, TQ_LOADED, TQ_RUN };
enum { DISK_NONE, DISK_COMMIT, DISK_OWNER, DISK_GONE, DISK_COMMITTED, DISK_ABORTED };
enum {
	MSG_NONE,
	MSG_PREPARE,
	MSG_LAST,
	MSG_FINISH,
	MSG_OUTCOME,
	MSG_ABORT, /* to the target */
	MSG_PREPARE_OK,
	MSG_RECEIVING,
	MSG_RUNNING,
	MSG_NEVER
}; /* to the source */
enum { FROM_NOBODY, FROM_LINK, FROM_OLD };

/* Who holds the lease, or held it last: a lock goes with the QEMU that has it, what it leaves behind does not. */
enum { LEASE_NOBODY, LEASE_SOURCE, LEASE_TARGET };

#define QUEUE 4
#define CONT_SENT 1
#define NO_EVENT _MOVE_EVENT_MAX

/* One byte each, so that states compare and hash as bytes. */
typedef struct State {
	/* source: what dies with the keeper */
	uint8_t s_up, s_state, s_enter, s_event, s_link, s_lost, s_cancelled, s_active, s_connecting;
	/* ... and what does not */
	uint8_t s_qemu, s_dead, s_disk, s_note, sent;
	/* target */
	uint8_t t_up, t_state, t_enter, t_event, t_restarted, t_barrier, t_gate, t_asked, t_from, t_told_active;
	uint8_t t_qemu, t_dead, t_disk, t_note, t_cont, t_ran;
	/* between: the link, and a former one that the target has not seen the end of */
	uint8_t link, to_t[QUEUE], to_s[QUEUE], old, old_to_t[QUEUE];
	uint8_t faults, offline;
	/* the lease: generation now, in the source's COMMIT record and in Finish */
	uint8_t lease, l_holder, l_last, l_gen, l_commit, l_finish;
} State;

/* All states found, by hash; edges without a fault, for the way to an end. */
typedef struct Explorer {
	const MoveRow *rows;
	size_t n_rows;
	unsigned int faults;
	bool *used;
	State *states;
	uint32_t *parent;
	const char **how;
	size_t n, size, *buckets, n_buckets;
	uint32_t (*edges)[2];
	size_t n_edges, edges_size;
	size_t at; /* the state whose successors are made */
	const char *broken;
	size_t broken_at;
} Explorer;

/* ---- the set of states ---- */

static size_t hash(const State *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint64_t h = 14695981039346656037ULL;

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * 1099511628211ULL;
	return (size_t)(h ^ h >> 29);
}

static size_t *bucket(Explorer *e, const State *s)
{
	size_t i = hash(s) & (e->n_buckets - 1);

	while (e->buckets[i] && memcmp(&e->states[e->buckets[i] - 1], s, sizeof(*s)) != 0)
		i = (i + 1) & (e->n_buckets - 1);
	return &e->buckets[i];
}

static void grow(Explorer *e)
{
	if (e->n < e->size)
		return;
	e->size = e->size ? 2 * e->size : 4096;
	e->states = xrealloc(e->states, e->size, sizeof(State));
	e->parent = xrealloc(e->parent, e->size, sizeof(uint32_t));
	e->how = xrealloc(e->how, e->size, sizeof(char *));
	free(e->buckets);
	e->n_buckets = 4 * e->size;
	e->buckets = xcalloc(e->n_buckets, sizeof(size_t));
	for (size_t i = 0; i < e->n; i++)
		*bucket(e, &e->states[i]) = i + 1;
}

static void breaks(Explorer *e, const char *rule)
{
	if (!e->broken) {
		e->broken = rule;
		e->broken_at = e->at;
	}
}

/* What must hold in every state. */
static void check(Explorer *e, const State *s)
{
	bool source_runs = s->s_qemu <= SQ_MIGRATING, target_runs = s->t_qemu == TQ_RUN;

	if (source_runs && target_runs)
		breaks(e, "two run");
	if (source_runs && s->t_ran)
		breaks(e, "it runs on the source after it ran on the target");
	if (s->t_disk == DISK_COMMITTED && s->s_disk != DISK_COMMIT && s->s_disk != DISK_GONE)
		breaks(e, "two own it");
	if (s->s_disk == DISK_GONE && s->t_disk != DISK_COMMITTED)
		breaks(e, "nobody owns it");
	if (target_runs && s->t_disk != DISK_COMMITTED)
		breaks(e, "it runs on the target without a record");
	if (s->lease && source_runs && s->l_holder != LEASE_SOURCE)
		breaks(e, "it runs on the source without the lease");
	if (s->lease && target_runs && s->l_holder != LEASE_TARGET)
		breaks(e, "it runs on the target without the lease");
}

static void add(Explorer *e, const State *s, const char *how)
{
	bool fault = s->faults != e->states[e->at].faults;
	size_t *b, found;

	grow(e);
	b = bucket(e, s);
	if (!*b) {
		e->states[e->n] = *s;
		e->parent[e->n] = (uint32_t)e->at;
		e->how[e->n] = how;
		*b = ++e->n;
		check(e, s);
		if (e->broken && e->broken_at == e->at)
			e->broken_at = e->n - 1;
	}
	found = *b - 1;
	if (fault)
		return;
	if (e->n_edges == e->edges_size) {
		e->edges_size = e->edges_size ? 2 * e->edges_size : 16384;
		e->edges = xrealloc(e->edges, e->edges_size, sizeof(*e->edges));
	}
	e->edges[e->n_edges][0] = (uint32_t)e->at;
	e->edges[e->n_edges++][1] = (uint32_t)found;
}

/* ---- the link ---- */

static void push(uint8_t *queue, uint8_t message)
{
	for (size_t i = 0; i < QUEUE; i++)
		if (!queue[i]) {
			queue[i] = message;
			return;
		}
}

static uint8_t pop(uint8_t *queue)
{
	uint8_t message = queue[0];

	memmove(queue, queue + 1, QUEUE - 1);
	queue[QUEUE - 1] = MSG_NONE;
	return message;
}

/* The source closes the link: what it said still reaches the target, then the end does. */
static void close_link(State *s)
{
	s->s_link = s->s_lost = 0;
	memset(s->to_s, 0, QUEUE);
	if (!s->link)
		return;
	s->link = 0;
	s->old = 1;
	memcpy(s->old_to_t, s->to_t, QUEUE);
	memset(s->to_t, 0, QUEUE);
	if (s->t_from == FROM_LINK)
		s->t_from = FROM_OLD;
}

/* The network does: what was on the way is lost, and each end sees it at its own time. */
static void cut_link(State *s)
{
	uint8_t link = s->s_link;

	close_link(s);
	memset(s->old_to_t, 0, QUEUE);
	s->s_link = link;
	s->s_lost = link;
}

static void say(State *s, uint8_t message)
{
	if (s->link)
		push(s->to_s, message);
}

/* ---- the lease ---- */

/* By compare and swap: free, and as it was left by whom it may be taken from. */
static bool lease_allows(const State *s, MoveAction action, bool target)
{
	bool alive = s->s_qemu != SQ_DEAD;

	if (!s->lease || s->offline)
		return true;
	if (action == MOVE_DO_ACQUIRE_LEASE && target)
		return s->l_holder == LEASE_NOBODY && s->l_last == LEASE_SOURCE && s->l_gen == s->l_finish;
	if (action == MOVE_DO_ACQUIRE_LEASE)
		return s->l_holder != LEASE_TARGET &&
		       (!alive || s->l_last == LEASE_SOURCE || s->l_gen == s->l_commit + 1);
	return action != MOVE_DO_RETAKE_LEASE || (s->l_holder != LEASE_TARGET && s->l_last == LEASE_SOURCE);
}

/* The lock is the QEMU's: without one only the generation is used up. */
static void lease_take(State *s, uint8_t who)
{
	bool alive = who == LEASE_SOURCE ? s->s_qemu != SQ_DEAD : s->t_qemu != TQ_NONE;

	if (!s->lease || s->l_holder == who)
		return;
	s->l_gen++;
	s->l_last = who;
	s->l_holder = alive ? who : LEASE_NOBODY;
}

static void lease_drop(State *s, uint8_t who)
{
	if (s->l_holder == who)
		s->l_holder = LEASE_NOBODY;
}

static void lease_do(State *s, MoveAction action, bool target)
{
	uint8_t who = target ? LEASE_TARGET : LEASE_SOURCE;

	if (s->offline)
		return;
	if (action == MOVE_DO_RELEASE_LEASE)
		lease_drop(s, who);
	else if (action == MOVE_DO_ACQUIRE_LEASE || action == MOVE_DO_RETAKE_LEASE)
		lease_take(s, who);
	else if (action == MOVE_DO_JOURNAL_COMMIT)
		s->l_commit = s->l_gen;
	else if (action == MOVE_DO_SEND_FINISH)
		s->l_finish = s->l_gen;
}

/* ---- actions ---- */

static unsigned int source_facts(const State *s)
{
	return (s->s_link ? MOVE_FACT_LINK : 0) | (s->s_cancelled ? MOVE_FACT_CANCELLED : 0) | MOVE_FACT_FOLLOW_DONE |
	       (s->s_active ? MOVE_FACT_TARGET_ACTIVE : 0) | (s->s_qemu == SQ_POST ? MOVE_FACT_POST : 0) |
	       (s->s_qemu != SQ_DEAD || s->s_dead ? MOVE_FACT_ALIVE : 0) |
	       (s->s_disk == DISK_NONE || s->s_disk == DISK_OWNER ? MOVE_FACT_OWNER : 0) | MOVE_FACT_WAS_RUNNING |
	       (s->offline ? MOVE_FACT_OFFLINE : 0);
}

static unsigned int target_facts(const State *s)
{
	return (s->t_qemu != TQ_NONE || s->t_dead ? MOVE_FACT_ALIVE : 0) |
	       (s->t_qemu >= TQ_LOADED || s->offline ? MOVE_FACT_LOAD_DONE : 0) |
	       (s->t_barrier ? MOVE_FACT_BARRIER_DONE : 0) | (s->t_gate ? MOVE_FACT_GATE_PASSED : 0) |
	       (s->t_restarted ? MOVE_FACT_RESTARTED : 0) | (s->t_disk == DISK_COMMITTED ? MOVE_FACT_OWNER : 0) |
	       MOVE_FACT_WAS_RUNNING | (s->offline ? MOVE_FACT_OFFLINE : 0);
}

static void settle(State *s)
{
	if (s->s_qemu == SQ_MIGRATING || s->s_qemu == SQ_PRE)
		s->s_qemu = SQ_RUN; /* it resumes by itself */
	s->s_event = MOVE_EV_SETTLED;
}

static void source_end(State *s)
{
	close_link(s);
	s->s_connecting = s->s_note = s->s_cancelled = s->s_active = 0;
	s->s_event = NO_EVENT;
}

/* What the source's actions do before the commit. */
static void source_begin(State *s, MoveAction action)
{
	if (action == MOVE_DO_CONNECT) {
		s->s_note = 1;
		s->s_connecting = 1;
	} else if (action == MOVE_DO_HELLO) {
		s->s_event = MOVE_EV_HELLO_OK;
	} else if (action == MOVE_DO_PROVE) {
		s->s_event = MOVE_EV_PROVED;
	} else if (action == MOVE_DO_SEND_PREPARE && s->link) {
		push(s->to_t, MSG_PREPARE);
	} else if (action == MOVE_DO_OPEN_DATA) {
		s->s_event = MOVE_EV_DATA_READY;
	} else if (action == MOVE_DO_START_MIGRATE && s->s_qemu == SQ_RUN) {
		s->s_qemu = SQ_MIGRATING;
	} else if (action == MOVE_DO_LAST_DELTA && s->link) {
		push(s->to_t, MSG_LAST);
	} else if (action == MOVE_DO_CONTINUE && s->s_qemu == SQ_PRE) {
		s->s_qemu = SQ_DEVICE;
	} else if (action == MOVE_DO_SETTLE) {
		settle(s);
	} else if (action == MOVE_DO_SEND_ABORT && s->link) {
		push(s->to_t, MSG_ABORT);
	}
}

static void source_do(Explorer *e, State *s, MoveAction action)
{
	source_begin(s, action);
	if (action == MOVE_DO_JOURNAL_COMMIT) {
		s->s_disk = DISK_COMMIT;
	} else if (action == MOVE_DO_JOURNAL_OWNER) {
		s->s_disk = DISK_OWNER;
	} else if (action == MOVE_DO_JOURNAL_GONE) {
		s->s_disk = DISK_GONE;
	} else if (action == MOVE_DO_SEND_FINISH) {
		if (s->s_disk != DISK_COMMIT)
			breaks(e, "Finish before the source's COMMIT");
		if (s->link)
			push(s->to_t, MSG_FINISH);
	} else if (action == MOVE_DO_SEND_OUTCOME && s->link) {
		push(s->to_t, MSG_OUTCOME);
	} else if (action == MOVE_DO_RECONNECT) {
		close_link(s);
		s->s_connecting = 1;
	} else if (action == MOVE_DO_DROP_LINK) {
		close_link(s);
		s->s_connecting = 0;
	} else if ((action == MOVE_DO_RESUME || action == MOVE_DO_CONT_BACK) && s->s_qemu == SQ_POST) {
		s->s_qemu = SQ_RUN;
	} else if (action == MOVE_DO_KILL_QEMU) {
		if (s->s_disk != DISK_GONE)
			breaks(e, "the source's QEMU is killed before GONE");
		s->s_qemu = SQ_DEAD;
		lease_drop(s, LEASE_SOURCE);
	} else if (action == MOVE_DO_END) {
		source_end(s);
	}
}

static void target_answer(State *s, uint8_t message)
{
	if (s->t_asked)
		say(s, message);
	s->t_asked = 0;
}

static void target_cont(Explorer *e, State *s)
{
	if (s->t_disk != DISK_COMMITTED)
		breaks(e, "cont before COMMITTED");
	if (!s->t_restarted && s->t_qemu == TQ_LOADED && !s->t_barrier && !s->t_gate)
		breaks(e, "cont without the barrier or the end of its time");
	s->t_cont = CONT_SENT;
}

static void target_do(Explorer *e, State *s, MoveAction action)
{
	if (action == MOVE_DO_START_QEMU) {
		s->t_note = 1;
		s->t_qemu = s->offline ? TQ_NONE : TQ_LISTEN;
		s->t_event = MOVE_EV_QEMU_READY;
	} else if (action == MOVE_DO_PREPARE_REPLY && s->t_from == FROM_LINK) {
		say(s, MSG_PREPARE_OK);
	} else if (action == MOVE_DO_JOURNAL_COMMITTED) {
		s->t_disk = DISK_COMMITTED;
	} else if (action == MOVE_DO_JOURNAL_ABORTED) {
		s->t_disk = DISK_ABORTED;
	} else if (action == MOVE_DO_CONT) {
		target_cont(e, s);
	} else if (action == MOVE_DO_SAY_RUNNING || action == MOVE_DO_SAY_LOST) {
		target_answer(s, MSG_RUNNING);
		s->t_note = 0;
	} else if (action == MOVE_DO_KILL_QEMU && s->t_qemu != TQ_NONE) {
		s->t_qemu = TQ_NONE;
		s->t_cont = 0;
		s->t_dead = 1;
		lease_drop(s, LEASE_TARGET);
	} else if (action == MOVE_DO_SAY_NEVER) {
		if (s->t_disk != DISK_ABORTED || s->t_qemu != TQ_NONE)
			breaks(e, "Never before its record and the end of QEMU");
		if (s->t_from == FROM_LINK || s->t_asked)
			say(s, MSG_NEVER);
		s->t_asked = 0;
	} else if (action == MOVE_DO_END) {
		s->t_note = s->t_barrier = s->t_gate = s->t_restarted = s->t_from = s->t_told_active = 0;
		s->t_event = NO_EVENT;
	}
}

/* ---- one event ---- */

static const MoveRow *find_row(const Explorer *e, uint8_t state, MoveEvent event, unsigned int facts)
{
	for (size_t i = 0; i < e->n_rows; i++) {
		const MoveRow *row = &e->rows[i];

		if (row->state == state && row->event == event && (facts & row->need) == row->need &&
		    !(facts & row->not ))
			return row;
	}
	return NULL;
}

/* An action that may fail: those whose failure the table foresees, and a journal. */
static bool may_fail(const Explorer *e, const State *s, const MoveRow *row, MoveAction action)
{
	/* A tombstone over nothing may fail to be durable: nothing was promised before it. */
	if (action == MOVE_DO_JOURNAL_ABORTED)
		return s->t_disk == DISK_COMMITTED;
	return action != MOVE_DO_END && row->event != MOVE_EV_ACTION_FAILED &&
	       find_row(e, row->state, MOVE_EV_ACTION_FAILED, 0);
}

static void source_dies(State *s);
static void target_dies(State *s);

/*
 * Runs the row for an event. After each action the keeper may die (a fault), and an action may fail (a fault): then the
 * state stays and ACTION_FAILED follows.
 */
static void feed(Explorer *e, State s, bool target, MoveEvent event, const char *how)
{
	uint8_t *state = target ? &s.t_state : &s.s_state, *enter = target ? &s.t_enter : &s.s_enter, before = *state;
	const MoveRow *row = find_row(e, *state, event, target ? target_facts(&s) : source_facts(&s));
	bool faults_left = s.faults < e->faults;

	if (row && e->used)
		e->used[row - e->rows] = true;
	for (size_t i = 0; row && i < MOVE_ROW_ACTIONS && row->actions[i] != MOVE_DO_NOTHING; i++) {
		if (faults_left && may_fail(e, &s, row, row->actions[i])) {
			State failed = s;

			failed.faults++;
			feed(e, failed, target, MOVE_EV_ACTION_FAILED, "an action fails");
		}
		if (faults_left && i > 0) {
			State dead = s;

			dead.faults++;
			(target ? target_dies : source_dies)(&dead);
			add(e, &dead,
			    target ? "the target's keeper dies in a row" : "the source's keeper dies in a row");
		}
		if (!lease_allows(&s, row->actions[i], target)) {
			feed(e, s, target, MOVE_EV_ACTION_FAILED, "the lease is not to be had");
			return;
		}
		lease_do(&s, row->actions[i], target);
		if (target)
			target_do(e, &s, row->actions[i]);
		else
			source_do(e, &s, row->actions[i]);
	}
	if (row) {
		*state = row->next;
		*enter = row->next != before;
	}
	add(e, &s, how);
}

/* ---- keepers, QEMUs and hosts die and come back ---- */

static void source_dies(State *s)
{
	close_link(s);
	s->s_up = s->s_enter = s->s_connecting = s->s_cancelled = s->s_active = s->s_dead = 0;
	s->s_event = NO_EVENT;
	s->s_state = MOVE_S_IDLE;
}

static void target_dies(State *s)
{
	uint8_t link = s->s_link;

	close_link(s);
	s->s_link = s->s_lost = link;
	s->t_up = s->t_enter = s->t_restarted = s->t_barrier = s->t_gate = s->t_asked = s->t_from = s->t_dead = 0;
	s->t_told_active = s->old = 0;
	memset(s->old_to_t, 0, QUEUE);
	s->t_event = NO_EVENT;
	s->t_state = MOVE_T_IDLE;
}

static void source_restarts(Explorer *e, State s)
{
	s.s_up = 1;
	if (s.s_disk == DISK_COMMIT)
		s.s_state = MOVE_S_DOUBT;
	else if (s.s_disk == DISK_GONE)
		s.s_state = MOVE_S_DESTROY;
	else if (s.s_note)
		s.s_state = MOVE_S_CANCEL;
	else {
		add(e, &s, "the source's keeper comes back");
		return;
	}
	feed(e, s, false, MOVE_EV_RESTART, "the source's keeper comes back");
}

static void target_restarts(Explorer *e, State s)
{
	s.t_up = 1;
	s.t_state = s.t_disk == DISK_COMMITTED ? MOVE_T_OWNER : MOVE_T_IDLE;
	if (s.t_qemu == TQ_NONE || !s.t_note) {
		s.t_note = 0;
		add(e, &s, "the target's keeper comes back");
		return;
	}
	s.t_restarted = 1;
	s.t_state = s.t_disk == DISK_COMMITTED ? MOVE_T_CONT : MOVE_T_ABORT;
	feed(e, s, true, MOVE_EV_RESTART, "the target's keeper comes back");
}

static void kill_source_qemu(State *s)
{
	s->s_qemu = SQ_DEAD;
	s->s_dead = s->s_up;
	lease_drop(s, LEASE_SOURCE);
}

static void kill_target_qemu(State *s)
{
	s->t_qemu = TQ_NONE;
	s->t_cont = 0;
	s->t_dead = s->t_up;
	lease_drop(s, LEASE_TARGET);
}

/* A person cancels, the guest shuts down, a step fails. */
static void event_faults(Explorer *e, const State *now)
{
	State s = *now;

	s.faults++;
	if (s.s_up && s.s_note && !s.s_enter && !move_committed(s.s_state) && s.s_state != MOVE_S_CANCEL) {
		feed(e, s, false, MOVE_EV_FAILED, "a step of the source fails");
		feed(e, s, false, MOVE_EV_GUEST_OFF, "the guest shuts down");
		s.s_cancelled = 1;
		feed(e, s, false, MOVE_EV_CANCEL, "a person cancels");
	}
	s = *now;
	s.faults++;
	if (s.t_up && s.t_note && !s.t_enter && find_row(e, s.t_state, MOVE_EV_FAILED, 0))
		feed(e, s, true, MOVE_EV_FAILED, "a step of the target fails");
	if (s.to_t[0] == MSG_LAST) {
		pop(s.to_t);
		add(e, &s, "the last delta cannot be sent");
	}
}

static void faults(Explorer *e, const State *now)
{
	State s;

#define FAULT(condition, how, ...)                                                                                     \
	if (condition) {                                                                                               \
		s = *now;                                                                                              \
		s.faults++;                                                                                            \
		__VA_ARGS__;                                                                                           \
		add(e, &s, how);                                                                                       \
	}
	FAULT(now->link, "the link is cut", cut_link(&s))
	FAULT(now->s_up, "the source's keeper dies", source_dies(&s))
	FAULT(now->t_up, "the target's keeper dies", target_dies(&s))
	FAULT(now->s_qemu != SQ_DEAD, "the source's QEMU dies", kill_source_qemu(&s))
	FAULT(now->t_qemu != TQ_NONE, "the target's QEMU dies", kill_target_qemu(&s))
	FAULT(now->s_up, "the source's host dies", source_dies(&s), kill_source_qemu(&s), s.s_note = 0)
	FAULT(now->t_up, "the target's host dies", target_dies(&s), kill_target_qemu(&s), s.t_note = 0)
#undef FAULT
	event_faults(e, now);
}

/* ---- what happens by itself ---- */

static void source_receives(Explorer *e, State s)
{
	uint8_t message = pop(s.to_s);

	if (message == MSG_PREPARE_OK) {
		feed(e, s, false, MOVE_EV_PREPARE_OK, "PrepareOK comes");
	} else if (message == MSG_RECEIVING) {
		s.s_active = 1;
		feed(e, s, false, MOVE_EV_RECEIVING, "Receiving comes");
	} else if (message == MSG_RUNNING) {
		feed(e, s, false, MOVE_EV_RUNNING, "Running comes");
	} else {
		feed(e, s, false, MOVE_EV_NEVER, "Never comes");
	}
}

static void source_qemu_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.s_qemu == SQ_MIGRATING && s.t_qemu == TQ_LISTEN) {
		s.s_qemu = SQ_PRE;
		feed(e, s, false, MOVE_EV_PRE_SWITCHOVER, "pre-switchover");
	} else if (s.s_qemu == SQ_DEVICE) {
		s.s_qemu = SQ_POST;
		s.sent = 1;
		feed(e, s, false, MOVE_EV_POSTMIGRATE, "postmigrate");
	}
	s = *now;
	if (s.s_dead) {
		s.s_dead = 0;
		feed(e, s, false, MOVE_EV_QEMU_DEAD, "the source sees its QEMU dead");
	}
}

static void source_event(Explorer *e, State s)
{
	MoveEvent event = s.s_event;

	s.s_event = NO_EVENT;
	if (event == MOVE_EV_SETTLED && s.s_qemu == SQ_DEVICE) {
		State back = s;

		back.s_qemu = SQ_RUN; /* cancelled in time, or not */
		feed(e, back, false, event, "settled");
		s.s_qemu = SQ_POST;
		s.sent = 1;
	}
	feed(e, s, false, event, "what the source waits for");
}

static void source_link_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.s_lost) {
		s.s_lost = s.s_link = 0;
		feed(e, s, false, MOVE_EV_LINK_LOST, "the source sees the link lost");
		s = *now;
	}
	if (s.to_s[0])
		source_receives(e, s);
	if (s.s_connecting && s.t_up) {
		s.s_connecting = 0;
		s.link = s.s_link = 1;
		feed(e, s, false, s.s_state == MOVE_S_DOUBT ? MOVE_EV_REACHED : MOVE_EV_LINK_UP, "the link is up");
	}
}

static void source_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (!s.s_up) {
		source_restarts(e, s);
		return;
	}
	if (s.s_enter) {
		s.s_enter = 0;
		feed(e, s, false, MOVE_EV_ENTER, move_state_name(s.s_state));
		return;
	}
	source_link_steps(e, now);
	source_qemu_steps(e, now);
	if (s.s_event != NO_EVENT)
		source_event(e, s);
	if (move_state_deadline(s.s_state) != MOVE_DEADLINE_NONE)
		feed(e, s, false, MOVE_EV_DEADLINE, "the source's deadline");
	if (s.s_state == MOVE_S_DOUBT && s.lease)
		feed(e, s, false, MOVE_EV_LEASE, "the source looks at the lease");
	if (s.s_state == MOVE_S_IDLE && s.s_qemu == SQ_DEAD && !s.s_dead && source_facts(&s) & MOVE_FACT_OWNER &&
	    s.l_holder != LEASE_TARGET) {
		s.s_qemu = SQ_RUN;
		lease_take(&s, LEASE_SOURCE);
		add(e, &s, "start on the source");
	}
}

/* As the keeper does: a decided or unknown migration is answered from the journal. */
static void target_asked(Explorer *e, State s, bool link)
{
	bool active = s.t_state != MOVE_T_IDLE && s.t_state != MOVE_T_OWNER;

	s.t_asked = link;
	if (active) {
		s.t_from = link ? FROM_LINK : FROM_OLD;
		feed(e, s, true, MOVE_EV_OUTCOME, "Outcome comes");
		return;
	}
	if (s.t_disk == DISK_NONE)
		s.t_disk = DISK_ABORTED;
	target_answer(&s, s.t_disk == DISK_COMMITTED ? MSG_RUNNING : MSG_NEVER);
	add(e, &s, "Outcome is answered from the journal");
}

static void target_receives(Explorer *e, State s, uint8_t message, bool link)
{
	uint8_t from = link ? FROM_LINK : FROM_OLD;

	if (message == MSG_PREPARE && s.t_state == MOVE_T_IDLE && s.t_disk == DISK_NONE) {
		s.t_from = from;
		feed(e, s, true, MOVE_EV_PREPARE, "Prepare comes");
	} else if (message == MSG_PREPARE) {
		if (link)
			say(&s, MSG_NEVER); /* refused: the call fails */
		add(e, &s, "Prepare is refused");
	} else if (message == MSG_LAST) {
		s.t_barrier = s.t_from == from;
		feed(e, s, true, MOVE_EV_BARRIER, "the last delta comes");
	} else if (message == MSG_ABORT) {
		feed(e, s, true, MOVE_EV_ABORT, "Abort comes");
	} else if (message == MSG_FINISH && s.t_from == from && s.t_state == MOVE_T_WAIT) {
		s.t_asked = link;
		feed(e, s, true, MOVE_EV_FINISH, "Finish comes");
	} else {
		target_asked(e, s, link);
	}
}

static void target_qemu_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.t_qemu == TQ_LISTEN && s.sent) {
		s.t_qemu = TQ_LOADED;
		feed(e, s, true, MOVE_EV_LOADED, "loaded");
	} else if (s.t_qemu == TQ_LISTEN && s.s_qemu == SQ_MIGRATING && !s.t_told_active) {
		s.t_told_active = 1;
		if (s.t_from == FROM_LINK)
			say(&s, MSG_RECEIVING);
		add(e, &s, "the target receives");
	} else if (s.t_qemu == TQ_LISTEN && s.t_told_active && (s.s_qemu == SQ_RUN || s.s_qemu == SQ_DEAD)) {
		feed(e, s, true, MOVE_EV_FAILED, "the data stream breaks");
	}
	s = *now;
	if (s.t_dead) {
		s.t_dead = 0;
		feed(e, s, true, s.t_state == MOVE_T_REAP ? MOVE_EV_QEMU_GONE : MOVE_EV_QEMU_DEAD,
		     "the target sees its QEMU dead");
	}
}

/* cont reaches QEMU whether or not the keeper lives to see the answer. */
static void target_cont_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (!s.t_cont)
		return;
	s.t_cont = 0;
	if (s.t_qemu == TQ_NONE) {
		add(e, &s, "cont reaches nobody");
		return;
	}
	if (s.t_qemu == TQ_LOADED || (s.t_qemu == TQ_RUN && s.t_restarted))
		feed(e, s, true, s.t_up ? MOVE_EV_CONT_ERROR : NO_EVENT, "cont fails");
	s.t_qemu = TQ_RUN;
	s.t_ran = 1;
	feed(e, s, true, s.t_up ? MOVE_EV_CONT_OK : NO_EVENT, "cont works");
}

static void target_link_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.to_t[0]) {
		uint8_t message = pop(s.to_t);

		target_receives(e, s, message, true);
		s = *now;
	}
	if (s.old && s.old_to_t[0]) {
		uint8_t message = pop(s.old_to_t);

		target_receives(e, s, message, false);
	} else if (s.old) {
		bool ours = s.t_from == FROM_OLD;

		s.old = 0;
		if (ours)
			s.t_from = FROM_NOBODY;
		feed(e, s, true, ours ? MOVE_EV_LINK_LOST : NO_EVENT, "the target sees the end of a link");
	}
}

static void target_steps(Explorer *e, const State *now)
{
	State s = *now;

	target_cont_steps(e, now);
	if (!s.t_up) {
		target_restarts(e, s);
		return;
	}
	if (s.t_enter) {
		s.t_enter = 0;
		feed(e, s, true, MOVE_EV_ENTER, move_state_name(s.t_state));
		return;
	}
	target_link_steps(e, now);
	target_qemu_steps(e, now);
	if (s.t_event != NO_EVENT) {
		s.t_event = NO_EVENT;
		feed(e, s, true, now->t_event, "the incoming QEMU listens");
		s = *now;
	}
	if (s.t_state == MOVE_T_GATE && !s.t_gate) {
		s.t_gate = 1;
		feed(e, s, true, MOVE_EV_GATE_OVER, "the time for the barrier is over");
		s = *now;
	}
	if (move_state_deadline(s.t_state) != MOVE_DEADLINE_NONE)
		feed(e, s, true, MOVE_EV_DEADLINE, "the target's deadline");
	if (s.t_state == MOVE_T_OWNER && s.t_qemu == TQ_NONE && !s.t_dead && s.t_disk == DISK_COMMITTED &&
	    s.l_holder != LEASE_SOURCE) {
		s.t_qemu = TQ_RUN;
		lease_take(&s, LEASE_TARGET);
		s.t_ran = 1;
		add(e, &s, "start on the target");
	}
}

/* ---- ends ---- */

static bool is_end(const State *s)
{
	if (!s->s_up || !s->t_up || s->s_enter || s->t_enter || s->s_note || s->t_note || s->s_dead || s->t_dead)
		return false;
	if (s->s_state == MOVE_S_IDLE && s->t_state == MOVE_T_IDLE && (s->s_qemu == SQ_RUN || s->s_qemu == SQ_DEAD))
		return (s->s_disk == DISK_NONE || s->s_disk == DISK_OWNER) && s->t_disk != DISK_COMMITTED &&
		       s->t_qemu == TQ_NONE;
	return s->s_state == MOVE_S_DONE && s->t_state == MOVE_T_OWNER && s->s_disk == DISK_GONE &&
	       s->t_disk == DISK_COMMITTED && s->s_qemu == SQ_DEAD;
}

/* From every state an end must be in reach without another fault: backwards from the ends, as often as it takes. */
static void check_ends(Explorer *e)
{
	_cleanup_free_ uint8_t *good = xcalloc(e->n, 1);
	bool more = true;

	for (size_t i = 0; i < e->n; i++)
		good[i] = is_end(&e->states[i]);
	while (more) {
		more = false;
		for (size_t i = e->n_edges; i-- > 0;)
			if (good[e->edges[i][1]] && !good[e->edges[i][0]])
				good[e->edges[i][0]] = more = true;
	}
	for (size_t i = 0; i < e->n && !e->broken; i++)
		if (!good[i]) {
			e->at = i;
			breaks(e, "no end can be reached");
		}
}

static void print_state(const State *s)
{
	fprintf(stderr,
		"    S %s%s qemu=%d disk=%d link=%d lost=%d  T %s%s qemu=%d disk=%d from=%d asked=%d cont=%d ran=%d "
		"old=%d  lease %d/%d gen=%d commit=%d finish=%d\n",
		s->s_up ? "" : "(dead) ", move_state_name(s->s_state), s->s_qemu, s->s_disk, s->s_link, s->s_lost,
		s->t_up ? "" : "(dead) ", move_state_name(s->t_state), s->t_qemu, s->t_disk, s->t_from, s->t_asked,
		s->t_cont, s->t_ran, s->old, s->l_holder, s->l_last, s->l_gen, s->l_commit, s->l_finish);
}

static void print_way(const Explorer *e, size_t i)
{
	if (i != 0)
		print_way(e, e->parent[i]);
	fprintf(stderr, "%s\n", e->how[i]);
	print_state(&e->states[i]);
}

ExploreResult explore(const MoveRow *rows, size_t n_rows, const ExploreOptions *options)
{
	Explorer e = {.rows = rows, .n_rows = n_rows, .faults = options->faults, .used = options->used};
	State s = {.s_up = 1, .t_up = 1, .t_state = MOVE_T_IDLE, .s_event = NO_EVENT, .t_event = NO_EVENT};

	s.offline = options->offline;
	s.s_qemu = options->offline ? SQ_DEAD : SQ_RUN;
	s.lease = options->lease;
	s.l_last = LEASE_SOURCE;
	s.l_holder = options->lease && !options->offline ? LEASE_SOURCE : LEASE_NOBODY;

	grow(&e);
	e.states[0] = s;
	e.how[0] = "begin";
	e.parent[0] = 0;
	*bucket(&e, &s) = ++e.n;
	feed(&e, s, false, MOVE_EV_MIGRATE, "migrate");
	for (e.at = 1; e.at < e.n && !e.broken; e.at++) {
		s = e.states[e.at];
		source_steps(&e, &s);
		target_steps(&e, &s);
		if (s.faults < e.faults)
			faults(&e, &s);
	}
	if (!e.broken)
		check_ends(&e);
	if (e.broken && options->trace) {
		print_way(&e, e.broken_at);
		fprintf(stderr, "broken: %s\n", e.broken);
	}
	free(e.states);
	free(e.parent);
	free(e.how);
	free(e.buckets);
	free(e.edges);
	return (ExploreResult){.states = e.n, .broken = e.broken};
}
