/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's table for model/generate, a line for each state, event, action, fact and row:
 *
 *   state ID DEADLINE? COMMITTED?    event ID    action ID    fact ID    row STATE EVENT NEED NOT NEXT ACTION...
 *
 * in the order of their numbers; NEED and NOT are bits. With "replay": lines "row STATE EVENT FACTS NEXT ACTIONS" as
 * the model prints them, all numbers, ACTIONS to the base of the number of actions; each must be what move_step() says.
 */
#include <stdio.h>
#include <string.h>

#include "basic/macros.h"
#include "move/engine.h"

static const char *const states[] = {
#define X(id, name, deadline, text) [MOVE_##id] = #id,
	MOVE_STATES(X)
#undef X
};
static const char *const events[] = {
#define X(id, name, text) [MOVE_EV_##id] = #id,
	MOVE_EVENTS(X)
#undef X
};
static const char *const actions[] = {
#define X(id, name) [MOVE_DO_##id] = #id,
	MOVE_ACTIONS(X)
#undef X
};
static const char *const facts[] = {
#define X(id, bit) [bit] = #id,
	MOVE_FACTS(X)
#undef X
};

static int print_table(void)
{
	size_t n;
	const MoveRow *rows = move_rows(&n);

	for (size_t i = 0; i < ARRAY_SIZE(states); i++)
		printf("state %s %d\n", states[i], move_committed((MoveState)i));
	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		printf("event %s\n", events[i]);
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		printf("action %s\n", actions[i]);
	for (size_t i = 0; i < ARRAY_SIZE(facts); i++)
		printf("fact %s\n", facts[i]);
	for (size_t i = 0; i < n; i++) {
		const MoveRow *row = &rows[i];

		printf("row %s %s %u %u %s", states[row->state], events[row->event], row->need, row->not,
		       states[row->next]);
		for (size_t j = 0; j < MOVE_ROW_ACTIONS && row->actions[j] != MOVE_DO_NOTHING; j++)
			printf(" %s", actions[row->actions[j]]);
		printf("\n");
	}
	return 0;
}

static unsigned long pack(const MoveRow *row)
{
	unsigned long packed = 0;

	for (size_t i = MOVE_ROW_ACTIONS; i-- > 0;)
		packed = packed * _MOVE_ACTION_MAX + row->actions[i];
	return packed;
}

static int replay(void)
{
	unsigned int state, event, known, next;
	unsigned long todo, n = 0;
	char line[256];

	while (fgets(line, sizeof(line), stdin)) {
		const MoveRow *row;

		if (sscanf(line, " row %u %u %u %u %lu", &state, &event, &known, &next, &todo) != 5)
			continue;
		if (state >= _MOVE_STATE_MAX || event >= _MOVE_EVENT_MAX) {
			fprintf(stderr, "no such state or event: %s", line);
			return 1;
		}
		row = move_step((MoveState)state, (MoveEvent)event, known);
		if (!row || row->next != next || pack(row) != todo) {
			fprintf(stderr, "%s at %s, facts %#x: the model goes to %s, the engine %s%s\n", events[event],
				states[state], known, next < _MOVE_STATE_MAX ? states[next] : "nowhere",
				row ? "to " : "stays", row ? states[row->next] : "");
			return 1;
		}
		n++;
	}
	printf("%lu rows agree\n", n);
	return n == 0;
}

int main(int argc, char **argv)
{
	return argc > 1 && strcmp(argv[1], "replay") == 0 ? replay() : print_table();
}
