/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include "basic/text.h"
#include "move/engine.h"

#define S(id) MOVE_##id
#define EV(id) MOVE_EV_##id
#define DO(id) MOVE_DO_##id
#define F(id) MOVE_FACT_##id
#define FACTS_ALL ((F(OTHER) << 1) - 1)

static const MoveRow *rows;
static size_t n_rows;

static bool is_source(MoveState state)
{
	return state < MOVE_T_IDLE;
}

static bool has_action(const MoveRow *row, MoveAction action)
{
	for (size_t i = 0; i < MOVE_ROW_ACTIONS; i++)
		if (row->actions[i] == action)
			return true;
	return false;
}

static bool has_event(MoveState state, MoveEvent event)
{
	for (size_t i = 0; i < n_rows; i++)
		if (rows[i].state == state && rows[i].event == event)
			return true;
	return false;
}

/* ---- names ---- */

static void test_names(void **state)
{
	(void)state;
	for (int i = 0; i < _MOVE_STATE_MAX; i++) {
		assert_true(*move_state_name((MoveState)i) && *move_state_meaning((MoveState)i));
		for (int j = 0; j < i; j++)
			assert_string_not_equal(move_state_name((MoveState)i), move_state_name((MoveState)j));
	}
	for (int i = 0; i < _MOVE_EVENT_MAX; i++)
		assert_true(*move_event_name((MoveEvent)i));
	for (int i = 1; i < _MOVE_ACTION_MAX; i++)
		for (int j = 0; j < i; j++)
			assert_string_not_equal(move_action_name((MoveAction)i), move_action_name((MoveAction)j));
	assert_null(move_phase(MOVE_S_IDLE));
	assert_null(move_phase(MOVE_T_OWNER));
	assert_string_equal(move_phase(MOVE_S_HELLO), "Begin");
	assert_string_equal(move_phase(MOVE_S_HOLD), "Perform");
	assert_string_equal(move_phase(MOVE_S_DOUBT), "Finish");
	assert_string_equal(move_phase(MOVE_T_GATE), "Finish");
}

/* ---- rows of the protocol, one by one ---- */

typedef struct Expected {
	MoveState state;
	MoveEvent event;
	unsigned int facts;
	MoveState next;
	MoveAction actions[MOVE_ROW_ACTIONS];
} Expected;

static const Expected source_rows[] = {
	{S(S_IDLE), EV(MIGRATE), F(OWNER) | F(ALIVE), S(S_CONNECT), {DO(CONNECT)}},
	{S(S_IDLE), EV(MIGRATE), F(OWNER) | F(OFFLINE), S(S_CONNECT), {DO(CONNECT)}},
	{S(S_CONNECT), EV(LINK_UP), 0, S(S_HELLO), {DO(HELLO)}},
	{S(S_HELLO), EV(HELLO_OK), 0, S(S_PROVE), {DO(PROVE)}},
	{S(S_PROVE), EV(PROVED), 0, S(S_PREPARE), {DO(SEND_PREPARE)}},
	{S(S_PREPARE), EV(PREPARE_OK), 0, S(S_OPEN), {DO(OPEN_DATA)}},
	{S(S_PREPARE), EV(PREPARE_OK), F(OFFLINE), S(S_COMMIT), {0}},
	{S(S_OPEN), EV(DATA_READY), 0, S(S_PERFORM), {DO(PREALLOCATE), DO(START_MIGRATE)}},
	{S(S_PERFORM), EV(PRE_SWITCHOVER), 0, S(S_HOLD), {0}},
	{S(S_HOLD),
	 EV(ENTER),
	 F(LINK) | F(FOLLOW_DONE) | F(TARGET_ACTIVE),
	 S(S_SWITCHOVER),
	 {DO(LAST_DELTA), DO(CONTINUE)}},
	{S(S_SWITCHOVER), EV(POSTMIGRATE), 0, S(S_COMMIT), {0}},
	{S(S_COMMIT), EV(ENTER), F(LINK), S(S_RELEASE), {DO(JOURNAL_COMMIT)}},
	{S(S_COMMIT), EV(ENTER), 0, S(S_CANCEL), {0}},
	{S(S_COMMIT), EV(ENTER), F(LINK) | F(CANCELLED), S(S_CANCEL), {0}},
	{S(S_COMMIT), EV(ACTION_FAILED), F(LINK), S(S_CANCEL), {0}},
	{S(S_RELEASE), EV(ENTER), 0, S(S_RELEASE), {DO(RELEASE_LEASE)}},
	{S(S_RELEASE), EV(LEASE_DONE), 0, S(S_SEND), {0}},
	{S(S_RELEASE), EV(LEASE_FAILED), F(LINK), S(S_NEVER_LEASE), {DO(DROP_LINK)}},
	{S(S_RELEASE), EV(DEADLINE), F(LINK), S(S_NEVER_LEASE), {DO(DROP_LINK)}},
	{S(S_SEND), EV(ENTER), F(LINK), S(S_WAIT), {DO(SEND_FINISH)}},
	{S(S_SEND), EV(ENTER), 0, S(S_DOUBT), {DO(RECONNECT)}},
	{S(S_WAIT), EV(RUNNING), F(LINK), S(S_GONE), {0}},
	{S(S_WAIT), EV(NEVER), F(LINK), S(S_NEVER_LEASE), {0}},
	{S(S_WAIT), EV(LINK_LOST), 0, S(S_DOUBT), {DO(RECONNECT)}},
	{S(S_WAIT), EV(DEADLINE), F(LINK), S(S_DOUBT), {DO(DROP_LINK), DO(RECONNECT)}},
	{S(S_DOUBT), EV(REACHED), F(LINK), S(S_WAIT), {DO(SEND_OUTCOME)}},
	{S(S_DOUBT), EV(RESTART), 0, S(S_DOUBT), {DO(RECONNECT)}},
	{S(S_DOUBT), EV(LEASE), 0, S(S_RETAKE), {0}},
	{S(S_RETAKE), EV(ENTER), 0, S(S_RETAKE), {DO(RETAKE_LEASE)}},
	{S(S_RETAKE), EV(LEASE_DONE), 0, S(S_NEVER_RECORD), {DO(DROP_LINK)}},
	{S(S_RETAKE), EV(LEASE_FAILED), 0, S(S_DOUBT), {DO(REACH)}},
	{S(S_RETAKE), EV(DEADLINE), 0, S(S_DOUBT), {DO(REACH)}},
	{S(S_RETAKE), EV(ASSUME_THERE), 0, S(S_GONE), {DO(DROP_LINK)}},
	{S(S_RETAKE), EV(ASSUME_NOWHERE), 0, S(S_NEVER_LEASE), {DO(DROP_LINK)}},
	{S(S_DOUBT), EV(ASSUME_THERE), 0, S(S_GONE), {DO(DROP_LINK)}},
	{S(S_DOUBT), EV(ASSUME_NOWHERE), 0, S(S_NEVER_LEASE), {DO(DROP_LINK)}},
	{S(S_NEVER_LEASE), EV(ENTER), 0, S(S_NEVER_LEASE), {DO(ACQUIRE_LEASE)}},
	{S(S_NEVER_LEASE), EV(LEASE_DONE), 0, S(S_NEVER_RECORD), {0}},
	{S(S_NEVER_LEASE), EV(LEASE_FAILED), 0, S(S_DOUBT), {DO(DROP_LINK), DO(RECONNECT)}},
	{S(S_NEVER_LEASE), EV(DEADLINE), 0, S(S_DOUBT), {DO(DROP_LINK), DO(RECONNECT)}},
	{S(S_NEVER_RECORD), EV(ENTER), 0, S(S_NEVER_RESUME), {DO(JOURNAL_OWNER)}},
	{S(S_NEVER_RECORD), EV(ACTION_FAILED), 0, S(S_DOUBT), {DO(DROP_LINK), DO(RECONNECT)}},
	{S(S_NEVER_RESUME), EV(ENTER), F(ALIVE) | F(WAS_RUNNING), S(S_IDLE), {DO(RESUME), DO(END)}},
	{S(S_NEVER_RESUME), EV(ENTER), F(WAS_RUNNING), S(S_IDLE), {DO(END)}},
	{S(S_NEVER_RESUME), EV(ENTER), F(ALIVE), S(S_IDLE), {DO(END)}},
	{S(S_GONE), EV(ENTER), 0, S(S_DESTROY), {DO(JOURNAL_GONE)}},
	{S(S_GONE), EV(ACTION_FAILED), 0, S(S_DOUBT), {DO(DROP_LINK), DO(RECONNECT)}},
	{S(S_DESTROY), EV(ENTER), 0, S(S_DONE), {DO(KILL_QEMU), DO(FLUSH), DO(NOTE), DO(FORGET), DO(END)}},
	{S(S_CANCEL), EV(ENTER), F(ALIVE), S(S_CANCEL), {DO(SETTLE)}},
	{S(S_CANCEL),
	 EV(SETTLED),
	 F(ALIVE) | F(POST) | F(WAS_RUNNING),
	 S(S_IDLE),
	 {DO(CONT_BACK), DO(SEND_ABORT), DO(OWN_LEASE), DO(END)}},
	{S(S_CANCEL), EV(SETTLED), F(ALIVE) | F(POST), S(S_IDLE), {DO(SEND_ABORT), DO(OWN_LEASE), DO(END)}},
	{S(S_CANCEL), EV(QEMU_DEAD), 0, S(S_IDLE), {DO(SEND_ABORT), DO(END)}},
};

static const Expected upgrade_rows[] = {
	{S(S_IDLE), EV(UPGRADE), F(OWNER) | F(ALIVE), S(U_BEGIN), {0}},
	{S(U_BEGIN), EV(ENTER), F(ALIVE), S(U_START), {DO(NOTE_UPGRADE), DO(START_NEW)}},
	{S(U_START), EV(QEMU_READY), F(ALIVE) | F(OTHER), S(U_OPEN), {DO(SET_UP_BOTH)}},
	{S(U_OPEN), EV(DATA_READY), F(ALIVE) | F(OTHER), S(U_PERFORM), {DO(SHARE_LEASE), DO(START_UPGRADE)}},
	{S(U_PERFORM), EV(POSTMIGRATE), F(ALIVE) | F(OTHER), S(U_LOAD), {0}},
	{S(U_LOAD), EV(ENTER), F(ALIVE) | F(OTHER) | F(LOAD_DONE), S(U_LOOK), {DO(ASK_NEW)}},
	{S(U_LOAD), EV(LOADED), F(ALIVE) | F(OTHER), S(U_LOOK), {DO(ASK_NEW)}},
	{S(U_LOOK), EV(ANSWERS), F(ALIVE) | F(OTHER) | F(LOAD_DONE), S(U_CHECK), {0}},
	{S(U_LOOK), EV(DEADLINE), F(ALIVE) | F(OTHER) | F(LOAD_DONE), S(U_BACK), {0}},
	{S(U_CHECK), EV(ENTER), F(OTHER) | F(LOAD_DONE), S(U_KILL), {DO(COMMIT_NEW)}},
	{S(U_CHECK), EV(ENTER), F(OTHER) | F(LOAD_DONE) | F(CANCELLED), S(U_BACK), {0}},
	{S(U_CHECK), EV(ENTER), F(LOAD_DONE), S(U_BACK), {0}},
	{S(U_CHECK), EV(ACTION_FAILED), F(OTHER) | F(LOAD_DONE), S(U_BACK), {0}},
	{S(U_KILL), EV(ENTER), F(OTHER), S(U_RESUME), {DO(KILL_OLD)}},
	{S(U_KILL), EV(ENTER), F(ALIVE), S(U_BACK), {0}},
	{S(U_KILL), EV(RESTART), F(OTHER), S(U_RESUME), {DO(KILL_OLD)}},
	{S(U_KILL), EV(RESTART), F(ALIVE), S(U_BACK), {0}},
	{S(U_RESUME), EV(ENTER), F(ALIVE) | F(WAS_RUNNING), S(U_RESUMING), {DO(CONT_NEW)}},
	{S(U_RESUME), EV(ENTER), F(ALIVE), S(U_REAP), {0}},
	{S(U_RESUMING), EV(CONT_OK), F(ALIVE), S(U_REAP), {DO(ANNOUNCE)}},
	{S(U_RESUMING), EV(CONT_ERROR), F(ALIVE) | F(OTHER), S(U_RETRY), {0}},
	{S(U_RESUMING), EV(CONT_ERROR), F(ALIVE), S(U_REAP), {0}},
	{S(U_RESUMING), EV(DEADLINE), F(ALIVE), S(U_RESUMING), {DO(SAY_SILENT)}},
	{S(U_RETRY), EV(QEMU_GONE), F(ALIVE), S(U_RESUMING), {DO(CONT_NEW)}},
	{S(U_REAP), EV(QEMU_GONE), F(ALIVE), S(S_IDLE), {DO(OWN_LEASE), DO(END)}},
	{S(U_REAP), EV(ENTER), F(ALIVE), S(S_IDLE), {DO(OWN_LEASE), DO(END)}},
	{S(U_OPEN), EV(TRIED), F(ALIVE) | F(OTHER), S(U_TRIED), {DO(KILL_NEW)}},
	{S(U_TRIED), EV(NEW_DEAD), F(ALIVE), S(U_SAVE), {DO(START_SAVE)}},
	{S(U_TRIED), EV(CANCEL), F(ALIVE) | F(CANCELLED), S(U_BACK), {0}},
	{S(U_SAVE), EV(POSTMIGRATE), F(ALIVE), S(U_SYNC), {0}},
	{S(U_SAVE), EV(CANCEL), F(ALIVE) | F(CANCELLED), S(U_BACK), {0}},
	{S(U_SYNC), EV(ENTER), F(ALIVE), S(U_SYNC), {DO(SYNC_FILE)}},
	{S(U_SYNC), EV(ACTION_FAILED), F(ALIVE), S(U_BACK), {0}},
	{S(U_SYNC), EV(CANCEL), F(ALIVE) | F(CANCELLED), S(U_BACK), {0}},
	{S(U_SYNC), EV(SYNCED), F(ALIVE), S(U_SAVED), {0}},
	{S(U_SAVED), EV(ENTER), F(ALIVE), S(U_QUIT), {DO(COMMIT_SAVE)}},
	{S(U_SAVED), EV(ENTER), F(ALIVE) | F(CANCELLED), S(U_BACK), {0}},
	{S(U_SAVED), EV(ACTION_FAILED), F(ALIVE), S(U_BACK), {0}},
	{S(U_QUIT), EV(ENTER), F(ALIVE), S(U_QUIT), {DO(KILL_SAVED)}},
	{S(U_QUIT), EV(RESTART), F(ALIVE), S(U_QUIT), {DO(KILL_SAVED)}},
	{S(U_QUIT), EV(QEMU_DEAD), 0, S(U_EMPTY), {0}},
	{S(U_EMPTY), EV(ENTER), 0, S(U_FILL), {DO(START_FILL)}},
	{S(U_EMPTY), EV(RESTART), 0, S(U_FILL), {DO(START_FILL)}},
	{S(U_EMPTY), EV(ACTION_FAILED), 0, S(U_NEXT), {0}},
	{S(U_FILL), EV(QEMU_READY), F(ALIVE), S(U_RESTORE), {DO(LOAD_FILE)}},
	{S(U_RESTORE), EV(LOADED), F(ALIVE), S(U_RESTORED), {0}},
	{S(U_RESTORE), EV(FAILED), F(ALIVE), S(U_DRAIN), {0}},
	{S(U_RESTORE), EV(DEADLINE), F(ALIVE), S(U_DRAIN), {0}},
	{S(U_RESTORE), EV(QEMU_DEAD), 0, S(U_NEXT), {0}},
	{S(U_RESTORED), EV(ENTER), F(ALIVE), S(U_RESUME), {DO(USE_UP)}},
	{S(U_RESTORED), EV(ACTION_FAILED), F(ALIVE), S(U_DRAIN), {0}},
	{S(U_RESTORED), EV(QEMU_DEAD), 0, S(U_NEXT), {0}},
	{S(U_DRAIN), EV(ENTER), F(ALIVE), S(U_DRAIN), {DO(KILL_SAVED)}},
	{S(U_DRAIN), EV(QEMU_DEAD), 0, S(U_NEXT), {0}},
	{S(U_NEXT), EV(ENTER), 0, S(U_EMPTY), {DO(FALL_BACK)}},
	{S(U_NEXT), EV(ACTION_FAILED), 0, S(S_IDLE), {DO(END)}},
	{S(U_BACK), EV(ENTER), F(ALIVE) | F(OTHER), S(U_CLEAR), {DO(KILL_NEW)}},
	{S(U_CLEAR), EV(ENTER), F(ALIVE), S(S_CANCEL), {DO(CLEAR_NEW)}},
	{S(U_CLEAR), EV(ACTION_FAILED), F(ALIVE), S(S_CANCEL), {0}},
};

static const Expected target_rows[] = {
	{S(T_IDLE), EV(PREPARE), 0, S(T_PREP), {DO(PREALLOCATE), DO(START_QEMU)}},
	{S(T_PREP), EV(QEMU_READY), F(ALIVE), S(T_WAIT), {DO(PREPARE_REPLY)}},
	{S(T_WAIT), EV(FINISH), F(ALIVE), S(T_GATE), {DO(ARM_GATE)}},
	{S(T_WAIT), EV(OUTCOME), F(ALIVE) | F(LOAD_DONE), S(T_ABORT), {0}},
	{S(T_WAIT), EV(ABORT), F(ALIVE), S(T_ABORT), {0}},
	{S(T_WAIT), EV(LINK_LOST), F(ALIVE), S(T_ABORT), {0}},
	{S(T_WAIT), EV(QEMU_DEAD), 0, S(T_ABORT), {0}},
	{S(T_GATE), EV(ENTER), F(LOAD_DONE) | F(BARRIER_DONE), S(T_LEASE), {0}},
	{S(T_GATE), EV(LOADED), F(LOAD_DONE) | F(BARRIER_DONE), S(T_LEASE), {0}},
	{S(T_GATE), EV(BARRIER), F(LOAD_DONE) | F(BARRIER_DONE), S(T_LEASE), {0}},
	{S(T_GATE), EV(GATE_OVER), F(LOAD_DONE) | F(GATE_PASSED), S(T_LEASE), {0}},
	{S(T_GATE), EV(QEMU_DEAD), F(LOAD_DONE), S(T_ABORT), {0}},
	{S(T_GATE), EV(FAILED), 0, S(T_ABORT), {0}},
	{S(T_LEASE), EV(ENTER), F(ALIVE), S(T_LEASE), {DO(ACQUIRE_LEASE)}},
	{S(T_LEASE), EV(LEASE_DONE), F(ALIVE), S(T_JOURNAL), {0}},
	{S(T_LEASE), EV(LEASE_FAILED), F(ALIVE), S(T_ABORT), {0}},
	{S(T_LEASE), EV(DEADLINE), F(ALIVE), S(T_ABORT), {0}},
	{S(T_LEASE), EV(QEMU_DEAD), 0, S(T_ABORT), {0}},
	{S(T_JOURNAL), EV(ENTER), F(ALIVE) | F(LOAD_DONE), S(T_CONT), {DO(JOURNAL_COMMITTED)}},
	{S(T_JOURNAL), EV(ENTER), F(LOAD_DONE), S(T_ABORT), {0}},
	{S(T_JOURNAL), EV(ENTER), F(LOAD_DONE) | F(OFFLINE), S(T_OWNER), {DO(JOURNAL_COMMITTED), DO(SAY_RUNNING)}},
	{S(T_JOURNAL), EV(ACTION_FAILED), F(ALIVE) | F(LOAD_DONE), S(T_ABORT), {0}},
	{S(T_CONT), EV(ENTER), F(ALIVE), S(T_RESUMING), {DO(CONT)}},
	{S(T_CONT), EV(RESTART), F(ALIVE) | F(RESTARTED), S(T_RESUMING), {DO(CONT)}},
	{S(T_CONT), EV(ENTER), 0, S(T_ABORT), {0}},
	{S(T_CONT), EV(RESTART), F(RESTARTED), S(T_OWNER), {DO(SAY_LOST)}},
	{S(T_RESUMING), EV(CONT_OK), F(ALIVE), S(T_OWNER), {DO(SAY_RUNNING), DO(ANNOUNCE)}},
	{S(T_RESUMING), EV(CONT_ERROR), F(ALIVE), S(T_ABORT), {0}},
	{S(T_RESUMING), EV(CONT_ERROR), F(ALIVE) | F(RESTARTED), S(T_OWNER), {DO(KILL_QEMU), DO(SAY_LOST)}},
	{S(T_RESUMING), EV(QEMU_DEAD), 0, S(T_OWNER), {DO(SAY_LOST)}},
	{S(T_ABORT), EV(ENTER), F(ALIVE), S(T_KILL), {DO(JOURNAL_ABORTED)}},
	{S(T_ABORT), EV(RESTART), F(ALIVE), S(T_KILL), {DO(JOURNAL_ABORTED)}},
	{S(T_ABORT), EV(OUTCOME), F(ALIVE), S(T_KILL), {DO(JOURNAL_ABORTED)}},
	{S(T_KILL), EV(ENTER), F(ALIVE), S(T_REAP), {DO(KILL_QEMU)}},
	{S(T_KILL), EV(ENTER), 0, S(T_NEVER), {0}},
	{S(T_REAP), EV(QEMU_DEAD), 0, S(T_NEVER), {0}},
	{S(T_NEVER), EV(ENTER), 0, S(T_NEVER), {DO(RELEASE_LEASE)}},
	{S(T_NEVER), EV(LEASE_DONE), 0, S(T_IDLE), {DO(SAY_NEVER), DO(END)}},
	{S(T_NEVER), EV(LEASE_FAILED), 0, S(T_IDLE), {DO(SAY_NEVER), DO(END)}},
	{S(T_NEVER), EV(DEADLINE), 0, S(T_IDLE), {DO(SAY_NEVER), DO(END)}},
};

static void check_rows(const Expected *expected, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const Expected *e = &expected[i];
		const MoveRow *row = move_step(e->state, e->event, e->facts);

		if (!row || row->next != e->next || memcmp(row->actions, e->actions, sizeof(e->actions)) != 0)
			fail_msg("%s, %s, facts %x", move_state_name(e->state), move_event_name(e->event), e->facts);
	}
}

static void test_protocol_rows(void **state)
{
	static const struct {
		MoveState state;
		MoveEvent event;
		unsigned int facts;
	} nothing[] = {
		{S(S_IDLE), EV(MIGRATE), F(ALIVE)}, /* not the owner */
		{S(S_IDLE), EV(MIGRATE), F(OWNER)}, /* no guest, and not offline */
		{S(S_HOLD), EV(RECEIVING), F(LINK) | F(FOLLOW_DONE) | F(TARGET_ACTIVE) | F(CANCELLED)},
		{S(S_HOLD), EV(ENTER), F(FOLLOW_DONE) | F(TARGET_ACTIVE)},
		{S(S_WAIT), EV(CANCEL), F(LINK)}, /* too late */
		{S(S_DOUBT), EV(CANCEL), 0},
		{S(S_DOUBT), EV(LEASE), F(OFFLINE)}, /* nobody held it */
		{S(S_DOUBT), EV(ACTION_FAILED), 0},  /* the lease is not ours: go on asking */
		{S(S_WAIT), EV(QEMU_DEAD), F(LINK)}, /* not for the source to decide any more */
		{S(S_DOUBT), EV(QEMU_DEAD), 0},
		{S(S_IDLE), EV(UPGRADE), F(OWNER)}, /* no guest */
		{S(S_IDLE), EV(UPGRADE), F(ALIVE)}, /* not the owner */
		{S(U_RESUME), EV(CANCEL), F(ALIVE)}, /* too late */
		{S(U_RESUMING), EV(CANCEL), F(ALIVE)},
		{S(U_QUIT), EV(CANCEL), F(ALIVE)},
		{S(U_RESTORE), EV(CANCEL), F(ALIVE)},
		{S(U_RESTORED), EV(ENTER), 0}, /* its end comes, and decides */
		{S(U_REAP), EV(ENTER), F(ALIVE) | F(OTHER)},
		{S(U_REAP), EV(CANCEL), F(ALIVE)},
		{S(T_IDLE), EV(PREPARE), F(OWNER)}, /* the guest is here */
		{S(T_IDLE), EV(FINISH), 0},
		{S(T_GATE), EV(LOADED), F(LOAD_DONE)},
		{S(T_GATE), EV(BARRIER), F(BARRIER_DONE)},
		{S(T_GATE), EV(GATE_OVER), F(GATE_PASSED)},
		{S(T_GATE), EV(LINK_LOST), F(ALIVE)}, /* being carried out */
		{S(T_GATE), EV(OUTCOME), F(ALIVE)},
		{S(T_RESUMING), EV(OUTCOME), F(ALIVE)},
		{S(T_RESUMING), EV(LINK_LOST), F(ALIVE)},
		{S(T_RESUMING), EV(DEADLINE), F(ALIVE)},
		{S(T_OWNER), EV(ABORT), F(ALIVE)},
		{S(T_OWNER), EV(LINK_LOST), F(ALIVE)},
		{S(T_OWNER), EV(PREPARE), F(ALIVE) | F(OWNER)},
	};

	(void)state;
	check_rows(source_rows, ARRAY_SIZE(source_rows));
	check_rows(upgrade_rows, ARRAY_SIZE(upgrade_rows));
	check_rows(target_rows, ARRAY_SIZE(target_rows));
	for (size_t i = 0; i < ARRAY_SIZE(nothing); i++)
		if (move_step(nothing[i].state, nothing[i].event, nothing[i].facts))
			fail_msg("%s, %s, facts %x: not nothing", move_state_name(nothing[i].state),
				 move_event_name(nothing[i].event), nothing[i].facts);
}

/* ---- every state, event and set of facts ---- */

/* What the rows of a state look at; no other fact makes a difference there. */
static unsigned int facts_of(MoveState state)
{
	unsigned int facts = 0;

	for (size_t i = 0; i < n_rows; i++)
		if (rows[i].state == state)
			facts |= rows[i].need | rows[i].not ;
	return facts;
}

static void check_step(const MoveRow *row, MoveState s, MoveEvent event)
{
	assert_true(row->state == s && row->event == event);
	assert_int_equal(is_source(row->next), is_source(s));
	if (move_committed(s)) {
		assert_int_not_equal(row->next, MOVE_S_CANCEL);
		assert_true(move_committed(row->next) ||
			    ((s == MOVE_S_NEVER_RESUME || s == MOVE_U_REAP || s == MOVE_U_NEXT) &&
			     row->next == MOVE_S_IDLE));
	} else if (move_committed(row->next)) {
		assert_true((s == MOVE_S_COMMIT && row->actions[0] == MOVE_DO_JOURNAL_COMMIT) ||
			    (s == MOVE_U_KILL && row->actions[0] == MOVE_DO_KILL_OLD) ||
			    (s == MOVE_U_SAVED && row->actions[0] == MOVE_DO_COMMIT_SAVE));
		assert_int_equal(row->actions[1], MOVE_DO_NOTHING);
	}
	if (row->next == MOVE_U_KILL)
		assert_true(row->actions[0] == MOVE_DO_COMMIT_NEW && row->actions[1] == MOVE_DO_NOTHING);
	assert_true(!move_upgrading(row->next) || move_upgrading(s) || s == MOVE_S_IDLE);
	if (row->next == MOVE_T_CONT)
		assert_int_equal(row->actions[0], MOVE_DO_JOURNAL_COMMITTED);
	if (row->next == MOVE_T_OWNER && s < MOVE_T_CONT)
		assert_int_equal(row->actions[0], MOVE_DO_JOURNAL_COMMITTED);
	if (row->next == MOVE_S_DESTROY)
		assert_int_equal(row->actions[0], MOVE_DO_JOURNAL_GONE);
	if (row->next == MOVE_T_KILL)
		assert_int_equal(row->actions[0], MOVE_DO_JOURNAL_ABORTED);
}

static void test_every_step(void **state)
{
	_cleanup_free_ bool *taken = xcalloc(n_rows, sizeof(bool));

	(void)state;
	for (int s = 0; s < _MOVE_STATE_MAX; s++)
		for (int event = 0; event < _MOVE_EVENT_MAX; event++)
			for (unsigned int facts = 0; facts <= FACTS_ALL; facts++) {
				const MoveRow *row;

				if (!has_event((MoveState)s, (MoveEvent)event) && facts > 0)
					break;
				if (facts & ~facts_of((MoveState)s))
					continue;
				row = move_step((MoveState)s, (MoveEvent)event, facts);
				if (!row)
					continue;
				taken[row - rows] = true;
				check_step(row, (MoveState)s, (MoveEvent)event);
			}
	for (size_t i = 0; i < n_rows; i++)
		if (!taken[i])
			fail_msg("row %zu (%s, %s) is never taken", i, move_state_name(rows[i].state),
				 move_event_name(rows[i].event));
}

/* What takes no time must not stop half way: entering leads on, whatever the facts are. */
static void test_passing_states(void **state)
{
	static const MoveState passing[] = {
		S(S_COMMIT),	   S(S_RELEASE), S(S_SEND),    S(S_NEVER_LEASE), S(S_NEVER_RECORD),
		S(S_NEVER_RESUME), S(S_GONE),	 S(S_DESTROY), S(S_CANCEL),	 S(T_LEASE),
		S(T_JOURNAL),	   S(T_CONT),	 S(T_ABORT),   S(T_KILL),	 S(T_NEVER),
		S(U_BEGIN),	   S(U_CHECK),	 S(U_KILL),    S(U_RESUME),	 S(U_BACK),
		S(U_CLEAR),	   S(U_SAVED),	 S(U_QUIT),    S(U_EMPTY),	 S(U_DRAIN),
		S(U_NEXT),	   S(U_SYNC),
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(passing); i++)
		for (unsigned int facts = 0; facts <= FACTS_ALL; facts++)
			assert_non_null(move_step(passing[i], MOVE_EV_ENTER, facts));
}

/* Before the commit everything that goes wrong leads back, whatever the facts are. */
static void test_the_way_back(void **state)
{
	static const MoveEvent wrong[] = {EV(CANCEL),	 EV(LINK_LOST), EV(FAILED),
					  EV(QEMU_DEAD), EV(DEADLINE),	EV(GUEST_OFF)};
	static const MoveEvent wrong_there[] = {EV(OUTCOME),  EV(ABORT),     EV(LINK_LOST),
						EV(DEADLINE), EV(QEMU_DEAD), EV(FAILED)};
	static const MoveEvent wrong_in_place[] = {EV(CANCEL), EV(NEW_DEAD), EV(FAILED), EV(QEMU_DEAD), EV(DEADLINE)};

	(void)state;
	for (unsigned int facts = 0; facts <= FACTS_ALL; facts++) {
		for (MoveState s = MOVE_S_CONNECT; s < MOVE_S_COMMIT; s++)
			for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
				assert_int_equal(move_step(s, wrong[i], facts)->next, MOVE_S_CANCEL);
		for (MoveState s = MOVE_U_START; s <= MOVE_U_LOOK; s++)
			for (size_t i = 0; i < ARRAY_SIZE(wrong_in_place); i++)
				assert_int_equal(move_step(s, wrong_in_place[i], facts)->next, MOVE_U_BACK);
		for (MoveState s = MOVE_T_PREP; s <= MOVE_T_WAIT; s++)
			for (size_t i = 0; i < ARRAY_SIZE(wrong_there); i++)
				assert_int_equal(move_step(s, wrong_there[i], facts)->next, MOVE_T_ABORT);
	}
	for (int s = 0; s < _MOVE_STATE_MAX; s++)
		if (move_state_deadline((MoveState)s) != MOVE_DEADLINE_NONE)
			assert_true(has_event((MoveState)s, MOVE_EV_DEADLINE));
	for (size_t i = 0; i < n_rows; i++)
		if (rows[i].actions[0] != MOVE_DO_NOTHING && has_event(rows[i].state, MOVE_EV_DEADLINE))
			assert_true(has_event(rows[i].state, MOVE_EV_ACTION_FAILED) ||
				    has_event(rows[i].state, MOVE_EV_LEASE_FAILED) || move_committed(rows[i].state));
}

/* ---- order of actions, along all ways through the table ---- */

/* By this row, or by what it is the end of. */
static bool has_done(const MoveRow *row, MoveAction action)
{
	bool end = row->event == MOVE_EV_LEASE_DONE || row->event == MOVE_EV_SYNCED;

	for (size_t i = 0; i < n_rows && end; i++)
		if (rows[i].state == row->state && rows[i].event == MOVE_EV_ENTER && has_action(&rows[i], action))
			return true;
	return has_action(row, action);
}

/* The states that can be reached from @from by rows without @without and @nor. */
static void reach(MoveState from, MoveAction without, MoveAction nor, bool reached[_MOVE_STATE_MAX])
{
	bool more = true;

	memset(reached, 0, _MOVE_STATE_MAX * sizeof(bool));
	reached[from] = true;
	while (more) {
		more = false;
		for (size_t i = 0; i < n_rows; i++)
			if (reached[rows[i].state] && !reached[rows[i].next] && rows[i].event != MOVE_EV_RESTART &&
			    (without == MOVE_DO_NOTHING || !has_done(&rows[i], without)) &&
			    (nor == MOVE_DO_NOTHING || !has_done(&rows[i], nor)))
				reached[rows[i].next] = more = true;
	}
}

static bool before_in_row(const MoveRow *row, MoveAction first, MoveAction then)
{
	for (size_t i = 0; i < MOVE_ROW_ACTIONS; i++) {
		if (row->actions[i] == first)
			return true;
		if (row->actions[i] == then)
			return false;
	}
	return false;
}

static void test_order(void **state)
{
	static const struct {
		MoveState from;
		MoveAction first, then;
		MoveAction instead; /* this one does as well as the first */
	} orders[] = {
		{S(S_IDLE), DO(JOURNAL_COMMIT), DO(RELEASE_LEASE)},
		{S(S_IDLE), DO(JOURNAL_COMMIT), DO(SEND_FINISH)},
		{S(S_IDLE), DO(JOURNAL_COMMIT), DO(SEND_OUTCOME)},
		{S(S_IDLE), DO(JOURNAL_COMMIT), DO(JOURNAL_GONE)},
		{S(S_IDLE), DO(JOURNAL_GONE), DO(KILL_QEMU)},
		{S(S_IDLE), DO(JOURNAL_GONE), DO(FORGET)},
		{S(S_IDLE), DO(JOURNAL_OWNER), DO(RESUME)},
		{S(S_IDLE), DO(ACQUIRE_LEASE), DO(RESUME), DO(RETAKE_LEASE)},
		{S(S_IDLE), DO(LAST_DELTA), DO(CONTINUE)},
		{S(S_IDLE), DO(COMMIT_NEW), DO(KILL_OLD)},
		{S(S_IDLE), DO(KILL_OLD), DO(CONT_NEW), DO(USE_UP)},
		{S(S_IDLE), DO(KILL_NEW), DO(START_SAVE)},
		{S(S_IDLE), DO(SYNC_FILE), DO(COMMIT_SAVE)},
		{S(S_IDLE), DO(COMMIT_SAVE), DO(KILL_SAVED)},
		{S(S_IDLE), DO(COMMIT_SAVE), DO(START_FILL)},
		{S(S_IDLE), DO(LOAD_FILE), DO(USE_UP)},
		{S(S_IDLE), DO(NOTE_UPGRADE), DO(START_NEW)},
		{S(S_IDLE), DO(KILL_NEW), DO(CLEAR_NEW)},
		{S(T_IDLE), DO(JOURNAL_COMMITTED), DO(CONT)},
		{S(T_IDLE), DO(ACQUIRE_LEASE), DO(JOURNAL_COMMITTED)},
		{S(T_IDLE), DO(JOURNAL_COMMITTED), DO(SAY_RUNNING)},
		{S(T_IDLE), DO(JOURNAL_COMMITTED), DO(SAY_LOST)},
		{S(T_IDLE), DO(JOURNAL_COMMITTED), DO(ANNOUNCE)},
		{S(T_IDLE), DO(JOURNAL_ABORTED), DO(SAY_NEVER)},
		{S(T_IDLE), DO(ARM_GATE), DO(JOURNAL_COMMITTED)},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
		bool reached[_MOVE_STATE_MAX], done = false;

		reach(orders[i].from, orders[i].first, orders[i].instead, reached);
		for (size_t j = 0; j < n_rows; j++) {
			if (!has_action(&rows[j], orders[i].then) || rows[j].event == MOVE_EV_RESTART ||
			    is_source(rows[j].state) != is_source(orders[i].from))
				continue;
			done = true;
			if (reached[rows[j].state] && !before_in_row(&rows[j], orders[i].first, orders[i].then))
				fail_msg("%s without %s, in %s", move_action_name(orders[i].then),
					 move_action_name(orders[i].first), move_state_name(rows[j].state));
		}
		assert_true(done);
	}
}

static void test_every_state_reached(void **state)
{
	bool source[_MOVE_STATE_MAX], target[_MOVE_STATE_MAX];

	(void)state;
	reach(MOVE_S_IDLE, MOVE_DO_NOTHING, MOVE_DO_NOTHING, source);
	reach(MOVE_T_IDLE, MOVE_DO_NOTHING, MOVE_DO_NOTHING, target);
	for (int s = 0; s < _MOVE_STATE_MAX; s++)
		assert_true(source[s] || target[s]);
}

/* A record is the first action of its row, and the only durable one: a crash between two would matter. */
static void test_records(void **state)
{
	(void)state;
	for (size_t i = 0; i < n_rows; i++)
		for (size_t j = 1; j < MOVE_ROW_ACTIONS; j++)
			assert_false(strstr(move_action_name(rows[i].actions[j]), "journal ") &&
				     rows[i].actions[j] != MOVE_DO_PREALLOCATE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_protocol_rows),
		cmocka_unit_test(test_every_step),
		cmocka_unit_test(test_passing_states),
		cmocka_unit_test(test_the_way_back),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_every_state_reached),
		cmocka_unit_test(test_records),
	};

	rows = move_rows(&n_rows);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
