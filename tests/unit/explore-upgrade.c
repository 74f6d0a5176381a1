/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "explore-upgrade.h"

#include <stdio.h>
#include <string.h>

#include "basic/text.h"

/* HAS: runs the guest, or keeps it paused. KILLED: SIGKILL was sent, it may still be there, and does nothing more. */
enum { OLD_HAS, OLD_MIGRATING, OLD_STOPPED, OLD_POST, OLD_KILLED, OLD_DEAD };
enum { NEW_NONE, NEW_STARTING, NEW_READY, NEW_LOADED, NEW_HAS, NEW_KILLED, NEW_DEAD };

#define STATES_MAX (1U << 18)

/* One byte each, so that states compare and hash as bytes. */
typedef struct State {
	/* what dies with the keeper */
	uint8_t up, state, event, cancelled, settling, cont, changed_over, load_seen, post_seen;
	/* ... and what does not */
	uint8_t old, new, record, note, old_seen, new_seen;
	/* for the rules */
	uint8_t new_ran, may_lose, unwritten, done, faults;
} State;

typedef struct Explorer {
	const MoveRow *rows;
	size_t n_rows;
	unsigned int faults;
	bool running, *used;
	State *states;
	uint32_t *parent, *buckets;
	const char **how;
	uint8_t *good;
	uint32_t (*edges)[2];
	size_t n, n_edges, edges_size, at, broken_at;
	const char *broken;
} Explorer;

static void breaks(Explorer *e, const char *rule)
{
	if (!e->broken) {
		e->broken = rule;
		e->broken_at = e->at;
	}
}

static uint32_t *bucket(Explorer *e, const State *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint32_t h = 2166136261U;

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * 16777619U;
	for (h %= 2 * STATES_MAX; e->buckets[h]; h = (h + 1) % (2 * STATES_MAX))
		if (memcmp(&e->states[e->buckets[h] - 1], s, sizeof(*s)) == 0)
			break;
	return &e->buckets[h];
}

static void add(Explorer *e, const State *s, const char *how)
{
	uint32_t *b = bucket(e, s);

	if (!*b) {
		if (e->n == STATES_MAX) {
			breaks(e, "more states than there is room for");
			return;
		}
		e->states[e->n] = *s;
		e->parent[e->n] = (uint32_t)e->at;
		e->how[e->n] = how;
		*b = (uint32_t)++e->n;
	}
	if (s->faults != e->states[e->at].faults)
		return; /* an end must be in reach without another fault */
	if (e->n_edges == e->edges_size) {
		e->edges_size = e->edges_size ? 2 * e->edges_size : 4096;
		e->edges = xrealloc(e->edges, e->edges_size, sizeof(*e->edges));
	}
	e->edges[e->n_edges][0] = (uint32_t)e->at;
	e->edges[e->n_edges++][1] = *b - 1;
}

/* ---- what the keeper does ---- */

static bool old_there(const State *s)
{
	return s->old != OLD_DEAD;
}

static bool new_there(const State *s)
{
	return s->new != NEW_NONE && s->new != NEW_DEAD;
}

static unsigned int facts(const Explorer *e, const State *s)
{
	unsigned int f = MOVE_FACT_OWNER;

	if (s->changed_over ? new_there(s) : old_there(s))
		f |= MOVE_FACT_ALIVE;
	if (s->changed_over ? old_there(s) : new_there(s))
		f |= MOVE_FACT_OTHER;
	if (s->load_seen)
		f |= MOVE_FACT_LOAD_DONE;
	if (s->old == OLD_POST)
		f |= MOVE_FACT_POST;
	if (e->running)
		f |= MOVE_FACT_WAS_RUNNING;
	if (s->cancelled)
		f |= MOVE_FACT_CANCELLED;
	return f;
}

static void kill_old(Explorer *e, State *s)
{
	if (!s->record)
		breaks(e, "the old one is killed before the record names the new one");
	if (s->new == NEW_DEAD)
		breaks(e, "the old one is killed although the new one is dead");
	if (s->new < NEW_LOADED)
		breaks(e, "the old one is killed before the new one has loaded");
	if (s->old < OLD_KILLED)
		s->old = OLD_KILLED;
	s->changed_over = 1;
}

static void cont_new(Explorer *e, State *s)
{
	if (!e->running)
		breaks(e, "a paused guest is resumed");
	if (s->old < OLD_KILLED)
		breaks(e, "the new one is resumed before the old one is killed");
	s->cont = 1;
}

static void kill_new(Explorer *e, State *s)
{
	if (s->changed_over || s->new == NEW_HAS)
		breaks(e, "the QEMU that has the guest is killed");
	if (s->new != NEW_NONE && s->new < NEW_KILLED)
		s->new = NEW_KILLED;
}

static void cont_back(Explorer *e, State *s)
{
	if (s->new != NEW_NONE && s->new < NEW_KILLED)
		breaks(e, "the old one is resumed while the new one may run it");
	if (!e->running)
		breaks(e, "a paused guest is resumed");
	if (s->old == OLD_POST)
		s->old = OLD_HAS;
}

static void end(Explorer *e, State *s)
{
	if (s->changed_over && old_there(s))
		breaks(e, "the end is told while the old one is there");
	if (s->changed_over && e->running && s->new == NEW_LOADED)
		breaks(e, "the guest is left paused in the new one");
	if (!s->changed_over && (s->old == OLD_STOPPED || (s->old == OLD_POST && e->running)))
		breaks(e, "the guest is left paused in the old one");
	s->note = 0;
	s->done = 1;
}

static void act(Explorer *e, State *s, MoveAction action)
{
	if (action == MOVE_DO_NOTE_UPGRADE) {
		s->note = 1;
	} else if (action == MOVE_DO_START_NEW) {
		s->new = NEW_STARTING;
	} else if (action == MOVE_DO_START_UPGRADE && s->old == OLD_HAS) {
		s->old = OLD_MIGRATING;
	} else if (action == MOVE_DO_COMMIT_NEW) {
		s->record = 1;
	} else if (action == MOVE_DO_KILL_OLD) {
		kill_old(e, s);
	} else if (action == MOVE_DO_CONT_NEW) {
		cont_new(e, s);
	} else if (action == MOVE_DO_KILL_NEW) {
		kill_new(e, s);
	} else if (action == MOVE_DO_CLEAR_NEW) {
		s->record = 0;
	} else if (action == MOVE_DO_SETTLE) {
		s->settling = 1;
	} else if (action == MOVE_DO_CONT_BACK) {
		cont_back(e, s);
	} else if (action == MOVE_DO_END) {
		end(e, s);
	}
}

static bool may_fail(MoveAction action)
{
	return action == MOVE_DO_NOTE_UPGRADE || action == MOVE_DO_START_NEW || action == MOVE_DO_SET_UP_BOTH ||
	       action == MOVE_DO_START_UPGRADE || action == MOVE_DO_COMMIT_NEW || action == MOVE_DO_CLEAR_NEW;
}

static void crash(State *s)
{
	s->up = s->state = s->cancelled = s->settling = s->changed_over = s->load_seen = s->post_seen = 0;
	s->event = _MOVE_EVENT_MAX;
}

static void crash_now(Explorer *e, State s, const char *how)
{
	if (s.faults == e->faults || (!s.note && s.new == NEW_NONE))
		return;
	s.faults++;
	crash(&s);
	add(e, &s, how);
}

static void feed(Explorer *e, State s, MoveEvent event, const char *how)
{
	unsigned int now = facts(e, &s);
	const MoveRow *row = NULL;

	for (size_t i = 0; i < e->n_rows && !row; i++)
		if (e->rows[i].state == s.state && e->rows[i].event == event &&
		    (now & e->rows[i].need) == e->rows[i].need && !(now & e->rows[i].not ))
			row = &e->rows[i];
	for (size_t i = 0; row && i < MOVE_ROW_ACTIONS && row->actions[i] != MOVE_DO_NOTHING; i++) {
		if (may_fail(row->actions[i]) && s.faults < e->faults) {
			State failed = s;

			failed.faults++;
			failed.unwritten |= row->actions[i] == MOVE_DO_CLEAR_NEW;
			failed.event = MOVE_EV_ACTION_FAILED;
			add(e, &failed, move_action_name(row->actions[i]));
		}
		crash_now(e, s, move_action_name(row->actions[i]));
		act(e, &s, row->actions[i]);
		crash_now(e, s, move_action_name(row->actions[i]));
	}
	if (row && e->used)
		e->used[row - e->rows] = true;
	if (row && row->next != s.state) {
		s.state = (uint8_t)row->next;
		s.event = MOVE_EV_ENTER;
	}
	add(e, &s, how);
}

/* As upgrade_adopt() and upgrade_recover(); @old: a dying one is found alive, or not any more. */
static void restart(Explorer *e, State s, bool old)
{
	s.up = 1;
	if (!s.note) {
		/* The record says who has the guest, the other one is swept away. */
		if (s.new < NEW_KILLED && !s.record)
			s.new = NEW_KILLED;
		s.done = 1;
		add(e, &s, "the keeper comes back and finds no note");
		return;
	}
	if (!s.record)
		s.new = s.new != NEW_NONE &&s.new < NEW_KILLED ? NEW_KILLED : s.new;
	if (s.record && !old) {
		s.old = OLD_DEAD;
		s.changed_over = 1;
		s.state = MOVE_U_RESUME;
	} else {
		s.state = s.record ? MOVE_U_KILL : MOVE_U_BACK;
	}
	s.load_seen = s.record;
	if (s.changed_over ? !new_there(&s) : !old) {
		s.note = 0; /* nobody is left: the VM is off */
		s.state = MOVE_S_IDLE;
		s.done = 1;
		add(e, &s, "the keeper finds no guest");
		return;
	}
	feed(e, s, MOVE_EV_RESTART, "the keeper comes back");
}

/* ---- what may happen ---- */

static void old_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.old == OLD_MIGRATING || s.old == OLD_STOPPED) {
		if (s.new >= NEW_KILLED) {
			s.old = OLD_HAS; /* return-path: it resumes by itself */
			if (s.up)
				feed(e, s, MOVE_EV_FAILED, "the stream breaks");
			else
				add(e, &s, "the stream breaks");
		} else {
			s.old++;
			add(e, &s, "the old one goes on");
		}
	} else if (s.old == OLD_POST && s.up && !s.post_seen && !s.changed_over) {
		s.post_seen = 1;
		feed(e, s, MOVE_EV_POSTMIGRATE, "the old one says that it has sent everything");
	}
	s = *now;
	if (s.old == OLD_DEAD && !s.old_seen && s.up) {
		s.old_seen = 1;
		feed(e, s, s.changed_over ? MOVE_EV_QEMU_GONE : MOVE_EV_QEMU_DEAD, "the old one is seen dead");
	}
}

static void new_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.new == NEW_STARTING && s.up) {
		s.new = NEW_READY;
		feed(e, s, MOVE_EV_QEMU_READY, "the new one is ready");
	} else if (s.new == NEW_READY && s.old == OLD_POST) {
		s.new = NEW_LOADED;
		add(e, &s, "loaded");
	}
	s = *now;
	if (s.new == NEW_LOADED && s.up && !s.load_seen) {
		s.load_seen = 1;
		feed(e, s, MOVE_EV_LOADED, "the new one says loaded");
	}
	s = *now;
	if (s.new == NEW_DEAD && !s.new_seen && s.up) {
		s.new_seen = 1;
		feed(e, s, s.changed_over ? MOVE_EV_QEMU_DEAD : MOVE_EV_NEW_DEAD, "the new one is seen dead");
	}
}

/* cont reaches QEMU whether or not the keeper lives to see the answer. */
static void cont_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (!s.cont)
		return;
	s.cont = 0;
	if (s.new == NEW_LOADED || s.new == NEW_HAS) {
		if (s.up && s.faults < e->faults && s.new == NEW_LOADED &&old_there(&s)) {
			s.faults++;
			feed(e, s, MOVE_EV_CONT_ERROR, "cont fails");
			s.faults--;
		}
		s.new = NEW_HAS;
		s.new_ran = 1;
	}
	if (s.up && s.new == NEW_HAS)
		feed(e, s, MOVE_EV_CONT_OK, "cont works");
	else
		add(e, &s, "cont is carried out");
}

static void keeper_steps(Explorer *e, const State *now)
{
	State s = *now;

	if (s.state == MOVE_U_OPEN)
		feed(e, s, MOVE_EV_DATA_READY, "both are set up");
	if (move_state_deadline((MoveState)s.state) != MOVE_DEADLINE_NONE)
		feed(e, s, MOVE_EV_DEADLINE, "the deadline passes");
	if (s.settling && s.old != OLD_KILLED) {
		s.settling = 0;
		if (s.old == OLD_MIGRATING || s.old == OLD_STOPPED)
			s.old = OLD_HAS;
		if (s.old != OLD_DEAD)
			feed(e, s, MOVE_EV_SETTLED, "settled");
	}
	s = *now;
	if (!s.cancelled && !s.done && move_upgrading((MoveState)s.state) && !move_committed((MoveState)s.state)) {
		s.cancelled = 1;
		feed(e, s, MOVE_EV_CANCEL, "a person cancels");
	}
}

static void faults(Explorer *e, const State *now)
{
	State s = *now;

	if (s.faults == e->faults || s.done)
		return;
	crash_now(e, s, "the keeper is killed");
	s.faults++;
	if (s.old < OLD_KILLED) {
		s.may_lose = 1;
		s.old = OLD_KILLED;
		add(e, &s, "the old one is killed");
	}
	s = *now;
	s.faults++;
	if (new_there(&s) && s.new != NEW_KILLED) {
		s.may_lose |= s.new >= NEW_LOADED;
		s.new = NEW_KILLED;
		add(e, &s, "the new one is killed");
	}
}

static void deaths(Explorer *e, const State *now)
{
	State s = *now;

	if (s.old == OLD_KILLED) {
		s.old = OLD_DEAD;
		add(e, &s, "the old one is gone");
	}
	s = *now;
	if (s.new == NEW_KILLED) {
		s.new = NEW_DEAD;
		add(e, &s, "the new one is gone");
	}
}

static void steps(Explorer *e, const State *now)
{
	State s = *now;

	deaths(e, now);
	if (s.up && s.event != _MOVE_EVENT_MAX) {
		MoveEvent event = (MoveEvent)s.event;

		s.event = _MOVE_EVENT_MAX;
		feed(e, s, event, move_state_name((MoveState)s.state));
		faults(e, now);
		return;
	}
	if (!s.up) {
		restart(e, s, s.old < OLD_KILLED);
		if (s.old == OLD_KILLED)
			restart(e, s, true);
	} else {
		keeper_steps(e, now);
	}
	old_steps(e, now);
	new_steps(e, now);
	cont_steps(e, now);
	faults(e, now);
}

/* ---- rules ---- */

static void check(Explorer *e, const State *s)
{
	bool old = s->old == OLD_HAS || s->old == OLD_MIGRATING;

	if (old && s->new == NEW_HAS)
		breaks(e, "both run");
	if (old && s->new_ran)
		breaks(e, "the old one runs after the new one has");
	if (s->done && !s->may_lose && s->old >= OLD_KILLED && s->new >= NEW_KILLED)
		breaks(e, "the guest is lost");
}

static bool is_end(const Explorer *e, const State *s)
{
	bool in_old = s->old == OLD_HAS || (!e->running && s->old == OLD_POST);
	bool in_new = s->new == NEW_HAS || (!e->running && s->new == NEW_LOADED);

	if (!s->up || !s->done || s->event != _MOVE_EVENT_MAX || s->note)
		return false;
	if (s->may_lose && s->old == OLD_DEAD && !in_new)
		return true;
	if (in_old)
		return (s->record == 0 || s->unwritten) && (s->new == NEW_NONE || s->new == NEW_DEAD);
	return in_new && s->record == 1 && s->old == OLD_DEAD;
}

/* Backwards from the ends, as often as it takes. */
static void check_ends(Explorer *e)
{
	bool more = true;

	for (size_t i = 0; i < e->n; i++)
		e->good[i] = is_end(e, &e->states[i]);
	while (more) {
		more = false;
		for (size_t i = e->n_edges; i-- > 0;)
			if (e->good[e->edges[i][1]] && !e->good[e->edges[i][0]])
				e->good[e->edges[i][0]] = more = true;
	}
	for (size_t i = 1; i < e->n && !e->broken; i++)
		if (!e->good[i]) {
			e->at = i;
			breaks(e, "no end can be reached");
		}
}

static void print_way(const Explorer *e, size_t i)
{
	const State *s = &e->states[i];

	if (i != 0)
		print_way(e, e->parent[i]);
	fprintf(stderr, "%s\n    %s%s old=%d new=%d record=%d note=%d changed=%d cont=%d lose=%d done=%d\n", e->how[i],
		s->up ? "" : "(dead) ", move_state_name((MoveState)s->state), s->old, s->new, s->record, s->note,
		s->changed_over, s->cont, s->may_lose, s->done);
}

UpgradeExplored explore_upgrade(const MoveRow *rows, size_t n_rows, unsigned int n_faults, bool running, bool *used,
				bool trace)
{
	Explorer e = {.rows = rows, .n_rows = n_rows, .faults = n_faults, .running = running, .used = used};
	State s = {.up = 1, .state = MOVE_S_IDLE, .event = _MOVE_EVENT_MAX};
	UpgradeExplored result;

	e.states = xcalloc(STATES_MAX, sizeof(*e.states));
	e.parent = xcalloc(STATES_MAX, sizeof(*e.parent));
	e.how = xcalloc(STATES_MAX, sizeof(*e.how));
	e.good = xcalloc(STATES_MAX, 1);
	e.buckets = xcalloc(2 * STATES_MAX, sizeof(*e.buckets));
	add(&e, &s, "begin");
	feed(&e, s, MOVE_EV_UPGRADE, "upgrade");
	e.at = 1; /* before that it is none */
	for (; e.at < e.n && !e.broken; e.at++) {
		s = e.states[e.at];
		check(&e, &s);
		if (!s.done || s.event != _MOVE_EVENT_MAX || !is_end(&e, &s))
			steps(&e, &s);
	}
	if (!e.broken)
		check_ends(&e);
	if (e.broken && trace) {
		print_way(&e, e.broken_at);
		fprintf(stderr, "broken: %s\n", e.broken);
	}
	result = (UpgradeExplored){.states = e.n, .broken = e.broken};
	free(e.states);
	free(e.parent);
	free(e.how);
	free(e.good);
	free(e.buckets);
	free(e.edges);
	return result;
}
