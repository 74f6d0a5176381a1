/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A keeper came back. What it does follows from the journal, from the note a migration leaves in the runtime directory,
 * and from what QEMU itself says; docs/protocol.md, "Restart".
 */
#include <errno.h>
#include <unistd.h>

#include "keeper/upgrade.h"

/* What move_save() left. Return: whether a migration was under way. */
static bool load_move(Move *m, bool *ret_target, bool *ret_resumed)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "move"), *text = NULL;
	_cleanup_json_ json_object *o = NULL;
	const char *id, *destination, *peer;
	size_t len;

	m->opt.live = true;
	if (file_read(path, 4096, &text, &len) < 0 || !(o = json_parse(text, len)))
		return false;
	if (!json_get_string(o, "id", &id) || !text_is_id(id) || !json_get_bool(o, "target", ret_target))
		return false;
	memcpy(m->id, id, sizeof(m->id));
	(void)json_get_bool(o, "resumed", ret_resumed);
	(void)json_get_bool(o, "running", &m->was_running);
	(void)json_get_bool(o, "live", &m->opt.live); /* else it was we who stopped the guest */
	if (json_get_string(o, "destination", &destination))
		m->opt.destination = xstrdup(destination);
	if (json_get_string(o, "lease_peer", &peer))
		m->prepared.lease_holder = xstrdup(peer);
	return true;
}

void move_begin_at(Move *m, MoveState state, const char *why)
{
	log_warning("%s: going on in %s", why, move_state_name(state));
	m->state = state;
	m->t.begun = m->t.phase_begun = now_usec();
	m->was_reason = m->k->before.reason ? m->k->before.reason : "keeper restarted";
	m->opt.conntrack = true;
	move_fact(m, MOVE_FACT_WAS_RUNNING, m->was_running);
	move_fact(m, MOVE_FACT_FOLLOW_DONE, true);
}

static void take_record(Move *m, const JournalRecord *record)
{
	memcpy(m->id, record->id, sizeof(m->id));
	m->was_running = record->running;
	m->lease_generation = record->lease_generation;
	free(m->opt.destination);
	m->opt.destination = xstrdup(record->peer);
	if (record->peer[0] && destination_parse(record->peer, &m->dest, NULL) < 0)
		log_error("the journal's destination '%s' cannot be used", record->peer);
}

static void recover_source(Move *m, const JournalRecord *record)
{
	_cleanup_free_ char *data = runtime_path(m->k->name, "data");
	Error *err = NULL;

	(void)unlink(data); /* a killed ssh leaves its socket */

	switch (record->kind) {
	case JOURNAL_COMMIT:
		take_record(m, record);
		move_begin_at(m, MOVE_S_DOUBT, "the guest was committed to another host");
		keeper_set_state(m->k, VM_IN_DOUBT, "committed, no answer");
		move_event(m, MOVE_EV_RESTART);
		return;
	case JOURNAL_GONE:
		take_record(m, record);
		move_begin_at(m, MOVE_S_DESTROY, "the guest has moved");
		move_event(m, MOVE_EV_RESTART);
		return;
	case JOURNAL_NONE:
	case JOURNAL_OWNER:
	case JOURNAL_COMMITTED:
	case JOURNAL_ABORTED:
	case _JOURNAL_KIND_MAX:
		break;
	}
	move_begin_at(m, MOVE_S_CANCEL, "a migration was under way when the keeper was killed");
	error_set(&err, -EINTR, "the keeper was restarted during the migration");
	move_error(m, err);
	move_event(m, MOVE_EV_RESTART);
}

static void recover_target(Move *m, const char *run_state)
{
	const JournalRecord *record = journal_find(m->k->journal, m->id);
	Error *err = NULL;

	move_fact(m, MOVE_FACT_RESTARTED, true);
	m->k->incoming = true;
	m->gate = "none";
	if (!record || record->kind != JOURNAL_COMMITTED) {
		move_begin_at(m, MOVE_T_ABORT, "a migration to this host was not committed");
		error_set(&err, -EINTR, "the target's keeper was restarted during the migration");
		move_error(m, err);
		move_event(m, MOVE_EV_RESTART);
		return;
	}
	m->was_running = record->running;
	/* Loaded and never run: finish what was committed. Else it has run: it is ours as it is. */
	move_begin_at(m, MOVE_T_CONT, "the guest was taken over");
	if (streq(run_state, "running"))
		m->was_running = false;
	move_event(m, MOVE_EV_RESTART);
	if (streq(run_state, "running"))
		keeper_set_state(m->k, VM_RUNNING, "migrated");
}

static void on_status(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;
	Move *m = k->move;
	const JournalRecord *last = journal_last(k->journal);
	bool target = false, resumed = false, moving, off;
	const char *status = "";

	if (error || !json_get_string(ret, "status", &status))
		return; /* QEMU's exit decides */
	moving = load_move(m, &target, &resumed);
	k->recovering = false;
	log_info("QEMU says: %s", status);
	keeper_say_ready(k, NULL);
	/* It shut down when no keeper was there to hear of it. */
	off = streq(status, "shutdown") && !(moving && target) && last->kind != JOURNAL_COMMIT &&
	      last->kind != JOURNAL_GONE;
	if (off)
		keeper_set_state(k, VM_SHUTOFF, "shutdown");
	if (m->up) {
		upgrade_recover(m, status);
	} else if (moving && target) {
		recover_target(m, status);
	} else if (last->kind == JOURNAL_COMMIT || last->kind == JOURNAL_GONE || moving) {
		if (streq(status, "running"))
			keeper_set_state(k, VM_RUNNING, "keeper restarted");
		recover_source(m, last);
	} else if (off) {
		/* only QEMU is left */
	} else if (streq(status, "running") || streq(status, "suspended")) {
		keeper_keep_state(k, VM_RUNNING, streq(status, "suspended") ? "suspended" : "unpaused");
	} else if (streq(status, "prelaunch") || (streq(status, "paused") && k->before.state == VM_STARTING)) {
		log_warning("the guest had not been started yet: starting it");
		machine_boot(k);
	} else {
		keeper_keep_state(k, VM_PAUSED, "stopped by QEMU");
	}
	if (off)
		machine_kill(k);
	else if (!(moving && target))
		keeper_lease_settle(k);
	if (k->lease_error && k->state == VM_RUNNING)
		keeper_lease_lost(k, TAKE_PTR(k->lease_error));
}

void move_recover(Keeper *k, bool qemu)
{
	Move *m = k->move;
	bool target = false, resumed = false, moving;

	k->recovering = qemu;
	if (qemu) {
		machine_qmp(k, "query-status", NULL, on_status, k);
		return;
	}
	moving = load_move(m, &target, &resumed);
	if (m->up)
		upgrade_recover(m, "");
	else if (moving && target)
		recover_target(m, "");
	else
		recover_source(m, journal_last(k->journal));
}

/* A migration has to be brought to its end without a guest, too; and of an upgrade the other QEMU may have it. */
bool move_recover_dead(Keeper *k)
{
	JournalKind last = journal_last(k->journal)->kind;
	_cleanup_error_ Error *err = NULL;
	int r;

	if (!k->recovering || (last != JOURNAL_COMMIT && last != JOURNAL_GONE && !move_noted(k)))
		return false;
	log_warning("QEMU died before it said how the guest is");
	r = machine_adopt(k, &err);
	if (r < 0) {
		log_error("%s", err->message);
		k->leaving = true;
		return sd_event_exit(k->event, r) >= 0;
	}
	if (r == 0)
		keeper_say_ready(k, NULL);
	move_recover(k, r > 0);
	return true;
}

bool move_noted(Keeper *k)
{
	_cleanup_free_ char *path = runtime_path(k->name, "move");

	return access(path, F_OK) == 0;
}
