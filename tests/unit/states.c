/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "states.h"

#include <ctype.h>

#include "basic/text.h"
#include "move/engine.h"

static const char *const fact_names[] = {
#define X(id, bit) [bit] = #id,
	MOVE_FACTS(X)
#undef X
};

static const char *const deadline_names[] = {
	[MOVE_DEADLINE_NONE] = "",	     [MOVE_DEADLINE_CONNECT] = "connect",
	[MOVE_DEADLINE_PREPARE] = "prepare", [MOVE_DEADLINE_NO_PROGRESS] = "no-progress",
	[MOVE_DEADLINE_HOLD] = "1 s",	     [MOVE_DEADLINE_SWITCHOVER] = "switchover",
	[MOVE_DEADLINE_FINISH] = "finish",
};

/* The tables: who carries out a state's rows, and how the diagram begins. */
typedef enum Side { SOURCE, UPGRADE, TARGET } Side;
static const char *const begins[] = {[SOURCE] = "idle", [UPGRADE] = "upgrade", [TARGET] = "t_idle"};

static bool on_side(MoveState state, Side side)
{
	return (state >= MOVE_T_IDLE ? TARGET : move_upgrading(state) ? UPGRADE : SOURCE) == side;
}

static void print_states(FILE *f, Side side)
{
	fprintf(f, "| state | phase | deadline | meaning |\n|---|---|---|---|\n");
	for (int i = 0; i < _MOVE_STATE_MAX; i++) {
		MoveState s = (MoveState)i;
		const char *phase = move_phase(s);

		if (on_side(s, side))
			fprintf(f, "| %s | %s | %s | %s |\n", move_state_name(s), phase ? phase : "",
				deadline_names[move_state_deadline(s)], move_state_meaning(s));
	}
}

static void print_facts(FILE *f, unsigned int facts, const char *before, bool *first)
{
	for (size_t bit = 0; bit < ARRAY_SIZE(fact_names); bit++) {
		if (!(facts & 1U << bit))
			continue;
		fprintf(f, "%s%s", *first ? "" : ", ", before);
		for (const char *p = fact_names[bit]; *p; p++)
			fputc(*p == '_' ? '-' : tolower((unsigned char)*p), f);
		*first = false;
	}
}

static void print_row(FILE *f, const MoveRow *row)
{
	bool first = true;

	fprintf(f, "| %s | %s | ", move_state_name(row->state), move_event_name(row->event));
	print_facts(f, row->need, "", &first);
	print_facts(f, row->not, "not ", &first);
	fprintf(f, " | %s | ", row->next == row->state ? "same" : move_state_name(row->next));
	for (size_t i = 0; i < MOVE_ROW_ACTIONS && row->actions[i] != MOVE_DO_NOTHING; i++)
		fprintf(f, "%s%s", i ? ", " : "", move_action_name(row->actions[i]));
	fprintf(f, " |\n");
}

static void print_rows(FILE *f, Side side)
{
	size_t n;
	const MoveRow *rows = move_rows(&n);

	fprintf(f, "| state | event | needs | next | actions, in order |\n|---|---|---|---|---|\n");
	for (size_t i = 0; i < n; i++)
		if (on_side(rows[i].state, side))
			print_row(f, &rows[i]);
}

/* Mermaid takes no '-' in a name. */
static void print_id(FILE *f, MoveState state)
{
	for (const char *p = move_state_name(state); *p; p++)
		fputc(*p == '-' ? '_' : *p, f);
}

/* One edge for all rows from one state to another; a word for the many ways of going wrong. */
static void print_edge(FILE *f, const MoveRow *rows, size_t n, size_t at)
{
	_cleanup_strv_ char **events = NULL;

	for (size_t i = 0; i < n; i++) {
		const char *event = move_event_name(rows[i].event);

		if (rows[i].state != rows[at].state || rows[i].next != rows[at].next)
			continue;
		if (i < at)
			return; /* drawn already */
		if (rows[i].event == MOVE_EV_ENTER)
			event = "at once";
		if (!strv_contains(events, event))
			strv_push(&events, xstrdup(event));
	}
	fprintf(f, "    ");
	print_id(f, rows[at].state);
	fprintf(f, " --> ");
	print_id(f, rows[at].next);
	fprintf(f, ": ");
	for (size_t i = 0; events[i] && strv_length(events) < 6; i++)
		fprintf(f, "%s%s", i ? ", " : "", events[i]);
	fprintf(f, "%s\n", strv_length(events) < 6 ? "" : "anything goes wrong");
}

static void print_diagram(FILE *f, Side side)
{
	size_t n;
	const MoveRow *rows = move_rows(&n);

	fprintf(f, "```mermaid\nstateDiagram-v2\n");
	for (int i = 0; i < _MOVE_STATE_MAX; i++)
		if (on_side((MoveState)i, side) && strchr(move_state_name((MoveState)i), '-')) {
			fprintf(f, "    state \"%s\" as ", move_state_name((MoveState)i));
			print_id(f, (MoveState)i);
			fprintf(f, "\n");
		}
	fprintf(f, "    [*] --> %s\n", begins[side]);
	for (size_t i = 0; i < n; i++)
		if (on_side(rows[i].state, side) && rows[i].next != rows[i].state)
			print_edge(f, rows, n, i);
	fprintf(f, "```\n");
}

static void print_events(FILE *f)
{
	static const char *const texts[] = {
#define X(id, name, text) [MOVE_EV_##id] = text,
		MOVE_EVENTS(X)
#undef X
	};

	fprintf(f, "| event | |\n|---|---|\n");
	for (int i = 0; i < _MOVE_EVENT_MAX; i++)
		fprintf(f, "| %s | %s |\n", move_event_name((MoveEvent)i), texts[i]);
}

static void print_side(FILE *f, const char *title, Side side)
{
	fprintf(f, "\n## %s\n\n", title);
	print_states(f, side);
	fprintf(f, "\n");
	print_rows(f, side);
	fprintf(f, "\n");
	print_diagram(f, side);
}

char *states_text(void)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	fprintf(f, "# States of a migration\n\n"
		   "Printed from `src/move/rows.h` and `src/move/engine.h` by `print-states`; do not edit: change the "
		   "rows, then\n"
		   "`ninja -C BUILD tests/unit/print-states && BUILD/tests/unit/print-states >docs/states.md`. A test "
		   "compares.\n\n"
		   "The first row that fits an event is taken: its actions are carried out in order, then the state "
		   "changes. An\n"
		   "action that fails leaves the state as it is, and *action-failed* follows. An event without a row "
		   "means nothing\n"
		   "in that state. Deadlines are those of `deadlines {}` in host.conf. What the source and the target "
		   "say to each\n"
		   "other is in [protocol.md](protocol.md).\n\n");
	print_events(f);
	print_side(f, "Source", SOURCE);
	fprintf(f, "\nFrom *release* on the source is committed: it does not run the guest, nor kill it, before the "
		   "target has said\n"
		   "which of the two is right.\n");
	print_side(f, "Upgrade", UPGRADE);
	fprintf(f,
		"\nFrom *upgrade-resume* on the guest is the new QEMU's, from *upgrade-quit* to *upgrade-restored* a file has "
		"it. The way\nback ends in *cancel* of the source's table.\n");
	print_side(f, "Target", TARGET);
	if (fclose(f) != 0)
		abort();
	return text;
}
