/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "move/engine.h"

#define F(fact) MOVE_FACT_##fact

/* Up to five actions a row, each named without its prefix. */
#define DO1(a) MOVE_DO_##a
#define DO2(a, ...) MOVE_DO_##a, DO1(__VA_ARGS__)
#define DO3(a, ...) MOVE_DO_##a, DO2(__VA_ARGS__)
#define DO4(a, ...) MOVE_DO_##a, DO3(__VA_ARGS__)
#define DO5(a, ...) MOVE_DO_##a, DO4(__VA_ARGS__)
#define DO_PICK(_1, _2, _3, _4, _5, name, ...) name
#define DO(...) DO_PICK(__VA_ARGS__, DO5, DO4, DO3, DO2, DO1, )(__VA_ARGS__)

#define ROW(state_, event_, need_, not_, next_, ...)                                                                   \
	{MOVE_##state_, MOVE_EV_##event_, need_, not_, MOVE_##next_, {DO(__VA_ARGS__)}},
static const MoveRow rows[] = {
#include "move/rows.h"
};
#undef ROW

const MoveRow *move_rows(size_t *ret_n)
{
	*ret_n = ARRAY_SIZE(rows);
	return rows;
}

const MoveRow *move_step(MoveState state, MoveEvent event, unsigned int facts)
{
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const MoveRow *row = &rows[i];

		if (row->state == state && row->event == event && (facts & row->need) == row->need &&
		    !(facts & row->not ))
			return row;
	}
	return NULL;
}

static const struct {
	const char *name, *meaning;
	MoveDeadline deadline;
} states[] = {
#define X(id, name_, deadline_, text) [MOVE_##id] = {name_, text, MOVE_DEADLINE_##deadline_},
	MOVE_STATES(X)
#undef X
};
static_assert(ARRAY_SIZE(states) == _MOVE_STATE_MAX, "a name for every state");

static const char *const event_names[] = {
#define X(id, name, text) [MOVE_EV_##id] = name,
	MOVE_EVENTS(X)
#undef X
};
static_assert(ARRAY_SIZE(event_names) == _MOVE_EVENT_MAX, "a name for every event");

static const char *const action_names[] = {
#define X(id, name) [MOVE_DO_##id] = name,
	MOVE_ACTIONS(X)
#undef X
};
static_assert(ARRAY_SIZE(action_names) == _MOVE_ACTION_MAX, "a name for every action");

const char *move_state_name(MoveState state)
{
	return states[state].name;
}

const char *move_state_meaning(MoveState state)
{
	return states[state].meaning;
}

MoveDeadline move_state_deadline(MoveState state)
{
	return states[state].deadline;
}

const char *move_event_name(MoveEvent event)
{
	return event_names[event];
}

const char *move_action_name(MoveAction action)
{
	return action_names[action];
}

bool move_committed(MoveState state)
{
	return (state >= MOVE_S_RELEASE && state <= MOVE_S_DONE) || (state >= MOVE_U_QUIT && state <= MOVE_U_REAP);
}

bool move_upgrading(MoveState state)
{
	return state >= MOVE_U_BEGIN && state <= MOVE_U_CLEAR;
}

const char *move_phase(MoveState state)
{
	static const struct {
		MoveState first, last;
		const char *phase;
	} phases[] = {
		{MOVE_S_CONNECT, MOVE_S_HELLO, "Begin"},	{MOVE_S_PROVE, MOVE_S_OPEN, "Prepare"},
		{MOVE_S_PERFORM, MOVE_S_SWITCHOVER, "Perform"}, {MOVE_S_COMMIT, MOVE_S_RETAKE, "Finish"},
		{MOVE_S_NEVER_LEASE, MOVE_S_DONE, "Confirm"},	{MOVE_S_CANCEL, MOVE_S_CANCEL, "Cancel"},
		{MOVE_U_BEGIN, MOVE_U_OPEN, "Prepare"},		{MOVE_U_PERFORM, MOVE_U_LOOK, "Perform"},
		{MOVE_U_TRIED, MOVE_U_TRIED, "Prepare"},	{MOVE_U_SAVE, MOVE_U_SYNC, "Perform"},
		{MOVE_U_CHECK, MOVE_U_RETRY, "Finish"},		{MOVE_U_REAP, MOVE_U_REAP, "Confirm"},
		{MOVE_U_BACK, MOVE_U_CLEAR, "Cancel"},
		{MOVE_T_PREP, MOVE_T_PREP, "Prepare"},		{MOVE_T_WAIT, MOVE_T_WAIT, "Perform"},
		{MOVE_T_GATE, MOVE_T_RESUMING, "Finish"},	{MOVE_T_ABORT, MOVE_T_NEVER, "Cancel"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(phases); i++)
		if (state >= phases[i].first && state <= phases[i].last)
			return phases[i].phase;
	return NULL;
}
