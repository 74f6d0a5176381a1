/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Runs the engine's rows: an event queue, deadlines, and a table from actions to functions. */
#include "keeper/move.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <unistd.h>

#include "keeper/fault.h"
#include "keeper/upgrade.h"

#define HOLD_USEC (1 * USEC_PER_SEC) /* the target's QEMU must receive within so long of STOP */

static const MoveDo actions[] = {
	[MOVE_DO_CONNECT] = do_connect,
	[MOVE_DO_HELLO] = do_hello,
	[MOVE_DO_PROVE] = do_prove,
	[MOVE_DO_SEND_PREPARE] = do_send_prepare,
	[MOVE_DO_OPEN_DATA] = do_open_data,
	[MOVE_DO_PREALLOCATE] = do_preallocate,
	[MOVE_DO_START_MIGRATE] = do_start_migrate,
	[MOVE_DO_LAST_DELTA] = do_last_delta,
	[MOVE_DO_CONTINUE] = do_continue,
	[MOVE_DO_JOURNAL_COMMIT] = do_journal_commit,
	[MOVE_DO_RELEASE_LEASE] = do_release_lease,
	[MOVE_DO_SEND_FINISH] = do_send_finish,
	[MOVE_DO_RECONNECT] = do_reconnect,
	[MOVE_DO_REACH] = do_reach,
	[MOVE_DO_DROP_LINK] = do_drop_link,
	[MOVE_DO_SEND_OUTCOME] = do_send_outcome,
	[MOVE_DO_ACQUIRE_LEASE] = do_acquire_lease,
	[MOVE_DO_RETAKE_LEASE] = do_retake_lease,
	[MOVE_DO_JOURNAL_OWNER] = do_journal_owner,
	[MOVE_DO_RESUME] = do_resume,
	[MOVE_DO_END] = do_end,
	[MOVE_DO_JOURNAL_GONE] = do_journal_gone,
	[MOVE_DO_KILL_QEMU] = do_kill_qemu,
	[MOVE_DO_FLUSH] = do_flush,
	[MOVE_DO_NOTE] = do_note,
	[MOVE_DO_FORGET] = do_forget,
	[MOVE_DO_SETTLE] = do_settle,
	[MOVE_DO_CONT_BACK] = do_cont_back,
	[MOVE_DO_SEND_ABORT] = do_send_abort,
	[MOVE_DO_START_QEMU] = do_start_qemu,
	[MOVE_DO_PREPARE_REPLY] = do_prepare_reply,
	[MOVE_DO_ARM_GATE] = do_arm_gate,
	[MOVE_DO_JOURNAL_COMMITTED] = do_journal_committed,
	[MOVE_DO_CONT] = do_cont,
	[MOVE_DO_SAY_RUNNING] = do_say_running,
	[MOVE_DO_SAY_LOST] = do_say_lost,
	[MOVE_DO_ANNOUNCE] = do_announce,
	[MOVE_DO_JOURNAL_ABORTED] = do_journal_aborted,
	[MOVE_DO_SAY_NEVER] = do_say_never,
	[MOVE_DO_NOTE_UPGRADE] = do_note_upgrade,
	[MOVE_DO_START_NEW] = do_start_new,
	[MOVE_DO_SET_UP_BOTH] = do_set_up_both,
	[MOVE_DO_START_UPGRADE] = do_start_upgrade,
	[MOVE_DO_ASK_NEW] = do_ask_new,
	[MOVE_DO_SAY_SILENT] = do_say_silent,
	[MOVE_DO_COMMIT_NEW] = do_commit_new,
	[MOVE_DO_KILL_OLD] = do_kill_old,
	[MOVE_DO_CONT_NEW] = do_cont_new,
	[MOVE_DO_KILL_NEW] = do_kill_new,
	[MOVE_DO_CLEAR_NEW] = do_clear_new,
	[MOVE_DO_TRY_LATER] = do_try_later,
	[MOVE_DO_START_SAVE] = do_start_save,
	[MOVE_DO_SYNC_FILE] = do_sync_file,
	[MOVE_DO_COMMIT_SAVE] = do_commit_save,
	[MOVE_DO_KILL_SAVED] = do_kill_saved,
	[MOVE_DO_START_FILL] = do_start_fill,
	[MOVE_DO_LOAD_FILE] = do_load_file,
	[MOVE_DO_USE_UP] = do_use_up,
	[MOVE_DO_FALL_BACK] = do_fall_back,
	[MOVE_DO_SHARE_LEASE] = do_share_lease,
	[MOVE_DO_OWN_LEASE] = do_own_lease,
};
static_assert(ARRAY_SIZE(actions) == _MOVE_ACTION_MAX, "a function for every action");

bool move_is_target(const Move *m)
{
	return m->state >= MOVE_T_IDLE;
}

bool move_active(const Move *m)
{
	return m->state != MOVE_S_IDLE && m->state != MOVE_S_DONE && m->state != MOVE_T_IDLE &&
	       m->state != MOVE_T_OWNER;
}

bool move_switching(const Move *m)
{
	if (m->state == MOVE_U_PERFORM)
		return m->up->way != WAY_COPY || m->t.stop;
	return (m->state >= MOVE_S_HOLD && m->state <= MOVE_S_DONE) ||
	       (m->state >= MOVE_U_LOAD && m->state <= MOVE_U_NEXT);
}

/* ---- errors and warnings ---- */

void move_error(Move *m, Error *err)
{
	const char *phase = move_phase(m->state);

	if (!err)
		return;
	if (m->error) {
		log_warning("and then: %s", err->message);
		error_free(err);
		return;
	}
	log_error("%s: %s", phase ? phase : "migration", err->message);
	m->error = err;
	m->error_phase = phase ? phase : "Begin";
}

void move_fail(Move *m, Error *err)
{
	move_error(m, err);
	move_event(m, MOVE_EV_FAILED);
}

void move_warn(Move *m, const char *fmt, ...)
{
	_cleanup_free_ char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	text = xvasprintf(fmt, ap);
	va_end(ap);
	if (strv_length(m->warnings) >= MOVE_WARNINGS_MAX || strv_contains(m->warnings, text))
		return;
	log_warning("%s", text);
	strv_push(&m->warnings, TAKE_PTR(text));
}

/* ---- deadlines ---- */

static uint64_t deadline_usec(const Move *m)
{
	const HostDeadlines *d = &m->deadlines;

	switch (move_state_deadline(m->state)) {
	case MOVE_DEADLINE_NONE:
		return 0;
	case MOVE_DEADLINE_CONNECT:
		return d->connect;
	case MOVE_DEADLINE_PREPARE:
		return d->prepare;
	case MOVE_DEADLINE_NO_PROGRESS:
		/* An upgrade is not held between memory and devices. */
		return m->state == MOVE_U_PERFORM && m->was_running && m->opt.live && m->t.stop ? d->switchover : d->no_progress;
	case MOVE_DEADLINE_HOLD:
		return HOLD_USEC;
	case MOVE_DEADLINE_SWITCHOVER:
		return d->switchover;
	case MOVE_DEADLINE_FINISH:
		return d->finish;
	}
	return 0;
}

/* What has not happened, for people. */
static const char *const late[_MOVE_STATE_MAX] = {
	[MOVE_S_CONNECT] = "no answer from the target",
	[MOVE_S_HELLO] = "Hello: no answer from the target",
	[MOVE_S_PROVE] = "the target's data address is not proved",
	[MOVE_S_PREPARE] = "Prepare: no answer from the target",
	[MOVE_S_OPEN] = "the data channel is not ready",
	[MOVE_S_PERFORM] = "no progress: not a byte of memory moved",
	[MOVE_S_HOLD] = "the target is not ready for the switch",
	[MOVE_S_SWITCHOVER] = "the state of the guest's devices did not move",
	[MOVE_U_START] = "the new QEMU did not get ready",
	[MOVE_U_OPEN] = "a QEMU did not answer",
	[MOVE_U_PERFORM] = "the state of the guest's devices did not move",
	[MOVE_U_LOAD] = "the new QEMU did not load the guest's state",
	[MOVE_U_LOOK] = "the new QEMU has loaded the guest's state, and has not answered since",
	[MOVE_U_TRIED] = "the new QEMU did not end",
	[MOVE_U_SAVE] = "no progress: not a byte of memory was written to the file",
	[MOVE_U_FILL] = "QEMU did not get ready",
	[MOVE_U_RESTORE] = "no progress: QEMU did not read a byte of the file",
	[MOVE_T_PREP] = "QEMU there did not get ready",
	[MOVE_T_GATE] = "QEMU there did not load the guest's state",
};

static int on_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	const char *what = late[m->state] ? late[m->state] : move_state_meaning(m->state);
	_cleanup_error_ Error *err = NULL;

	(void)usec;
	m->deadline = sd_event_source_disable_unref(source);
	if (move_lease_late(m, &err))
		move_error(m, TAKE_PTR(err));
	if (m->state == MOVE_S_HOLD && !(m->facts & MOVE_FACT_TARGET_ACTIVE))
		perform_silent(m, &err);
	error_set(&err, -ETIMEDOUT, "%s within %.1f s", what, (double)deadline_usec(m) / (double)USEC_PER_SEC);
	error_hint(&err, "the limits are deadlines {} in host.conf, or --deadline");
	if (!move_committed(m->state) || (move_upgrading(m->state) && m->state != MOVE_U_RESUMING))
		move_error(m, TAKE_PTR(err));
	move_event(m, MOVE_EV_DEADLINE);
	return 0;
}

static void arm_deadline(Move *m)
{
	uint64_t usec = deadline_usec(m);

	m->deadline = sd_event_source_disable_unref(m->deadline);
	if (usec)
		(void)sd_event_add_time_relative(m->k->event, &m->deadline, CLOCK_MONOTONIC, usec, 0, on_deadline, m);
}

void move_progress_made(Move *m)
{
	uint64_t usec = deadline_usec(m);

	if (m->deadline && usec)
		(void)sd_event_source_set_time_relative(m->deadline, usec);
}

/* ---- states ---- */

static void note_phase(Move *m, MoveState next)
{
	const char *was = move_phase(m->state), *is = move_phase(next);
	uint64_t now = now_usec();

	if (was && is && streq(was, is))
		return;
	for (size_t i = 0; was && i < MOVE_PHASES; i++) {
		if (i == m->n_phases) {
			m->phases[i].name = was;
			m->n_phases++;
		}
		if (streq(m->phases[i].name, was)) {
			m->phases[i].usec += now - m->t.phase_begun;
			break;
		}
	}
	if (was)
		m->t.phase_begun = now; /* the first one has begun with the migration */
}

void move_end_phase(Move *m)
{
	note_phase(m, MOVE_S_IDLE);
}

/* The one place where a migration's state changes. */
static void set_state(Move *m, MoveState next)
{
	if (next == m->state)
		return;
	log_debug("migration: %s -> %s", move_state_name(m->state), move_state_name(next));
	note_phase(m, next);
	move_lease_leave(m);
	m->state = next;
	viewers_look(m->k);
	arm_deadline(m);
	if (next == MOVE_S_HOLD)
		perform_hold(m);
	if (next == MOVE_S_DOUBT)
		keeper_set_state(m->k, VM_IN_DOUBT, "committed, no answer");
}

/*
 * What the journal must say of this migration when an action is carried out, on either side; 0: never there. Actions
 * that are not here are safe under any record. The model holds the same rules (must() in model/vmferry.pml).
 */
#define K(kind) (1U << JOURNAL_##kind)
static const struct {
	MoveAction action;
	unsigned int source, target;
} legal[] = {
	{MOVE_DO_JOURNAL_COMMIT, K(NONE), 0}, {MOVE_DO_SEND_FINISH, K(COMMIT), 0},
	{MOVE_DO_SEND_OUTCOME, K(COMMIT), 0}, {MOVE_DO_JOURNAL_OWNER, K(COMMIT), 0},
	{MOVE_DO_RESUME, K(OWNER), 0},	      {MOVE_DO_CONT_BACK, K(NONE) | K(OWNER), 0},
	{MOVE_DO_JOURNAL_GONE, K(COMMIT), 0}, {MOVE_DO_KILL_QEMU, K(GONE), K(NONE) | K(ABORTED) | K(COMMITTED)},
	{MOVE_DO_FORGET, K(GONE), 0},	      {MOVE_DO_JOURNAL_COMMITTED, 0, K(NONE)},
	{MOVE_DO_CONT, 0, K(COMMITTED)},      {MOVE_DO_SAY_RUNNING, 0, K(COMMITTED)},
	{MOVE_DO_SAY_LOST, 0, K(COMMITTED)},  {MOVE_DO_SAY_NEVER, 0, K(NONE) | K(ABORTED)},
};
#undef K

/* A keeper that would break a rule dies instead: the next one goes on from the journal. */
static void assert_legal(const Move *m, MoveAction action)
{
	const JournalRecord *record = journal_find(m->k->journal, m->id);
	JournalKind kind = record ? record->kind : JOURNAL_NONE;

	for (size_t i = 0; i < ARRAY_SIZE(legal); i++)
		if (legal[i].action == action)
			assert((move_is_target(m) ? legal[i].target : legal[i].source) & 1U << kind);
}

/* An event says when it is done. */
static bool goes_on(MoveAction action)
{
	return action == MOVE_DO_RELEASE_LEASE || action == MOVE_DO_ACQUIRE_LEASE || action == MOVE_DO_RETAKE_LEASE;
}

static int run_actions(Move *m, const MoveRow *row)
{
	for (size_t i = 0; i < MOVE_ROW_ACTIONS && row->actions[i] != MOVE_DO_NOTHING; i++) {
		int r;

		log_debug("migration: %s", move_action_name(row->actions[i]));
		assert_legal(m, row->actions[i]);
		r = fault_point(m, row->actions[i], true);
		if (r >= 0)
			r = actions[row->actions[i]](m);
		if (r < 0 && goes_on(row->actions[i]))
			move_event(m, MOVE_EV_LEASE_FAILED);
		else if (r < 0)
			return r;
		else if (!goes_on(row->actions[i]))
			(void)fault_point(m, row->actions[i], false);
	}
	return 0;
}

/* A QEMU's exit may be known to the kernel before it is an event here: nothing is committed on a dead one. */
static void look_at(Move *m, const QemuProcess *qemu, MoveFact fact)
{
	struct pollfd p = {.fd = qemu ? qemu->pidfd : -1, .events = POLLIN};

	if (qemu && poll(&p, 1, 0) > 0)
		move_fact(m, fact, false);
}

static void step(Move *m, MoveEvent event)
{
	MoveState before = m->state;
	const MoveRow *row;

	look_at(m, m->k->qemu, MOVE_FACT_ALIVE);
	if (m->up)
		look_at(m, m->up->other, MOVE_FACT_OTHER);
	row = move_step(m->state, event, m->facts);
	if (!row) {
		log_debug("migration: %s means nothing in %s", move_event_name(event), move_state_name(m->state));
		return;
	}
	log_debug("migration: %s in %s", move_event_name(event), move_state_name(m->state));
	if (run_actions(m, row) < 0) {
		move_event(m, MOVE_EV_ACTION_FAILED);
		return;
	}
	set_state(m, row->next);
	if (m->state != before)
		move_event(m, MOVE_EV_ENTER);
}

/* ENTER goes first: a state is entered before anything else happens in it. */
void move_event(Move *m, MoveEvent event)
{
	if (m->queued == MOVE_QUEUE) {
		log_error("migration: more events than the queue holds, %s dropped", move_event_name(event));
		return;
	}
	if (event == MOVE_EV_ENTER || event == MOVE_EV_ACTION_FAILED) {
		memmove(m->queue + 1, m->queue, m->queued * sizeof(m->queue[0]));
		m->queue[0] = event;
	} else {
		m->queue[m->queued] = event;
	}
	m->queued++;
	if (m->draining)
		return;
	m->draining = true;
	while (m->queued > 0) {
		MoveEvent next = m->queue[0];

		m->queued--;
		memmove(m->queue, m->queue + 1, m->queued * sizeof(m->queue[0]));
		step(m, next);
	}
	m->draining = false;
}

void move_fact(Move *m, MoveFact fact, bool on)
{
	m->facts = on ? m->facts | fact : m->facts & ~(unsigned int)fact;
}

uint64_t move_backoff(unsigned int n, uint64_t first, uint64_t most)
{
	uint64_t pause = first << (n < 16 ? n : 16);

	return pause < most ? pause : most;
}

/* ---- what people do ---- */

void move_cancel(Move *m)
{
	_cleanup_error_ Error *err = NULL;

	if (!m->error) {
		error_set(&err, -ECANCELED, "cancelled");
		m->status = "cancelled";
	}
	move_error(m, TAKE_PTR(err));
	move_fact(m, MOVE_FACT_CANCELLED, true);
	move_event(m, MOVE_EV_CANCEL);
}

bool move_user_may_pause(const Move *m)
{
	return m->state >= MOVE_S_CONNECT && m->state <= MOVE_S_PERFORM;
}

void move_user_paused(Move *m, bool paused)
{
	if (!move_active(m))
		return;
	m->was_running = !paused;
	m->was_reason = paused ? "user" : "unpaused";
	move_fact(m, MOVE_FACT_WAS_RUNNING, !paused);
	if (!m->up)
		move_save(m); /* the next keeper must know it as well */
}

/* ---- QEMU's word ---- */

void move_qemu_event(Move *m, const char *name, json_object *data, uint64_t at)
{
	const char *status;

	if (m->up) {
		upgrade_qemu_event(m, name, data, at);
		return;
	}
	if (streq(name, "STOP")) {
		m->t.stop = at;
		perform_stop(m);
	} else if (streq(name, "RESUME")) {
		m->t.resumed = at;
		if (move_is_target(m))
			return;
		/* A person; or a cancelled or failed migration, which resumes by itself. */
		keeper_set_state(m->k, VM_RUNNING, move_user_may_pause(m) ? "unpaused" : "migration cancelled");
		wait_done(m->k, WAIT_RUNNING);
	} else if (streq(name, "MIGRATION") && json_get_string(data, "status", &status)) {
		log_debug("QEMU: migration %s", status);
		if (move_is_target(m))
			target_migration_event(m, status);
		else
			perform_migration_event(m, status);
	}
}

/* ---- life ---- */

Move *move_new(Keeper *k)
{
	Move *m = xcalloc(1, sizeof(*m));

	m->k = k;
	m->deadlines = k->conf->deadlines;
	m->prove_fd = -1;
	m->state = MOVE_S_IDLE;
	return m;
}

static void drop_sources(Move *m)
{
	sd_event_source **all[] = {&m->deadline,    &m->timeout,    &m->progress,	&m->hold_timer,
				   &m->watchdog,    &m->prove_io,   &m->prove_timer,	&m->retry_timer,
				   &m->delta_timer, &m->gate_timer, &m->announce_timer, &m->spice_timer};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		*all[i] = sd_event_source_disable_unref(*all[i]);
}

static void drop_contents(Move *m)
{
	drop_sources(m);
	m->up = upgrade_free(m->up);
	room_free(m->room);
	m->data = data_free(m->data);
	m->link = link_free(m->link);
	ct_follow_free(m->follow);
	ct_apply_free(m->apply);
	ct_select_free(m->select);
	sd_bus_message_unref(m->prepare_message);
	sd_bus_message_unref(m->finish_message);
	cookie_clear(&hello_reply, &m->hello);
	cookie_clear(&prepare_reply, &m->prepared);
	cookie_clear(&outcome_reply, &m->outcome);
	cookie_clear(&prepare_cookie, &m->prepare);
	move_options_clear(&m->opt);
	destination_free(m->dest);
	error_free(m->error);
	strv_free(m->warnings);
	sd_bus_message_unref(m->check_message);
	fd_close(m->prove_fd);
	free(m->transport_reason);
	secret_free(m->token);
	secret_free(m->psk);
	free(m->uri);
	free(m->outcome_text);
	free(m->ct_problem);
}

void move_reset(Move *m)
{
	Move fresh = {.k = m->k,
		      .state = m->state,
		      .facts = m->facts & (MOVE_FACT_ALIVE | MOVE_FACT_OWNER),
		      .draining = m->draining,
		      .queued = m->queued,
		      .deadlines = m->k->conf->deadlines,
		      .prove_fd = -1};

	memcpy(fresh.queue, m->queue, sizeof(m->queue));
	drop_contents(m);
	*m = fresh;
}

Move *move_free(Move *m)
{
	if (!m)
		return NULL;
	drop_contents(m);
	free(m);
	return NULL;
}

void move_save(Move *m)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "move");
	_cleanup_json_ json_object *o =
		json_build("id", "s", m->id, "target", "b", (int)move_is_target(m), "running", "b", (int)m->was_running,
			   "live", "b", (int)m->opt.live, "destination", "s", m->opt.destination, "resumed", "b", (int)(m->state == MOVE_T_OWNER),
			   "lease_peer", "s", m->prepared.lease_holder, NULL);
	const char *text = json_text(o);

	(void)file_write(path, text, strlen(text), 0600, false);
}
