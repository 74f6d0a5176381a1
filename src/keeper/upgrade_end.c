/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An upgrade's end, and how the next keeper goes on with one. */
#include "keeper/upgrade.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>


/* ---- the end ---- */

/* What the upgrade leaves behind, or takes away again. */
static void tidy_up(Move *m)
{
	_cleanup_free_ char *next = runtime_path(m->k->name, "definition.next");
	_cleanup_free_ char *now = runtime_path(m->k->name, "definition");

	if (m->up->changed_over && m->k->qemu)
		machine_link_agent(m->k);
	if (m->up->changed_over && !m->up->restored)
		(void)rename(next, now);
	else
		(void)unlink(next);
	vm_definition_free(TAKE_PTR(m->up->def));
}

static void tell_state(Move *m)
{
	Keeper *k = m->k;

	if (!k->qemu || k->state == VM_SHUTOFF || !(m->up->changed_over || m->up->restored))
		return;
	if (m->was_running && m->up->resumed) {
		keeper_set_state(k, VM_RUNNING, m->up->changed_over ? "upgraded" : "upgrade failed");
		machine_learn_suspended(k);
	} else if (m->was_running || m->up->restored) {
		keeper_set_state(k, VM_PAUSED, m->was_running ? "upgraded" : m->was_reason);
	}
}

static const char *status_of(const Move *m)
{
	if (m->status)
		return m->status; /* "cancelled" */
	return m->up->changed_over && !m->error ? "completed" : "failed";
}

int upgrade_end(Move *m)
{
	Keeper *k = m->k;
	_cleanup_json_ json_object *result = NULL;

	m->t.ended = now_usec();
	if (!k->qemu && m->up->changed_over && !m->error) {
		Error *err = NULL;

		error_set(&err, -EPIPE, "the new QEMU ended after the guest was its own");
		move_error(m, err);
	}
	m->status = status_of(m);
	tidy_up(m); /* before the note goes: a keeper that finds none takes the definition that is there */
	room_free(TAKE_PTR(m->room));
	move_let_go(m);
	save_end(m); /* and a file after that: a keeper that finds no note knows that it is of no use */
	tell_state(m);
	if (m->opt.check_only) {
		move_answer_check(m, report_upgrade_check(m));
	} else {
		result = report_upgrade(m);
		log_info("upgrade %s: %s", m->id, m->status);
		json_object_put(k->last_result);
		k->last_result = json_object_get(result);
		keeper_history(k, streq(m->status, "completed") ? "upgraded" : "not upgraded", json_object_get(result));
		control_emit_text(k, "Finished", json_text(result));
	}
	wait_done(k, WAIT_CANCEL);
	if (k->ready_fd >= 0) /* the VM was started, and a file had its guest */
		keeper_say_ready(k, k->qemu ? NULL : m->error);
	if (k->qemu && k->state == VM_SHUTOFF)
		machine_kill(k); /* the guest was shut down meanwhile */
	if (!k->qemu)
		machine_check_off(k);
	return 0;
}

/* ---- a keeper came back ---- */

static bool load_note(Move *m, Upgrade *up)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "move"), *text = NULL;
	_cleanup_json_ json_object *o = NULL;
	bool upgrade = false, copy = false;
	const char *way = "";
	uint64_t old, fresh;
	size_t len;

	if (file_read(path, 4096, &text, &len) < 0 || !(o = json_parse(text, len)))
		return false;
	if (!json_get_bool(o, "upgrade", &upgrade) || !upgrade || !json_get_u64(o, "old", &old) ||
	    !json_get_u64(o, "fresh", &fresh) || old == fresh)
		return false;
	(void)json_get_bool(o, "copy", &copy); /* a keeper of before this one's version */
	(void)json_get_string(o, "way", &way);
	up->way = streq(way, "save") ? WAY_SAVE : copy || streq(way, "copy") ? WAY_COPY : WAY_IN_PLACE;
	up->old = (unsigned int)old;
	up->fresh = (unsigned int)fresh;
	return true;
}

static int adopt_both(Keeper *k, Upgrade *up, QemuProcess **old, QemuProcess **fresh, Error **err)
{
	int r = machine_adopt_generation(k, up->old, old, err);

	if (r >= 0)
		r = machine_adopt_generation(k, up->fresh, fresh, err);
	return r;
}

/* Through a file: the one who wrote it has the guest, or, once it is used up, the one that the state file names. */
static int adopt_saved(Keeper *k, Upgrade *up, Error **err)
{
	int r = saved_read(k->name, &up->saved, err);

	if (r < 0 && r != -ENOENT)
		return r;
	if (!up->saved || up->saved->kind != SAVED_USED)
		return 0;
	up->restored = true;
	up->fell_back = up->saved->fell_back;
	up->changed_over = !up->fell_back;
	return 1;
}

int upgrade_adopt(Keeper *k, Error **err)
{
	Move *m = k->move;
	_cleanup_qemu_process_ QemuProcess *old = NULL, *fresh = NULL;
	_cleanup_free_ char *next = runtime_path(k->name, "definition.next"),
			    *now = runtime_path(k->name, "definition");
	Upgrade *up = xcalloc(1, sizeof(*up));
	bool committed;
	int r;

	m->up = upgrade_free(m->up);
	*up = (Upgrade){.m = m, .save_fd = -1, .serial_fd = -1, .viewers_fd = -1, .stream = {-1, -1}};
	if (!load_note(m, up)) {
		upgrade_free(up);
		return 0;
	}
	m->up = up;
	up->from_binary = xstrdup("");
	up->to_binary = xstrdup("");
	if (up->way == WAY_SAVE) {
		r = adopt_saved(k, up, err);
		if (r != 0)
			return r < 0 ? r : machine_adopt_generation(k, k->generation, &k->qemu, err);
	}
	r = adopt_both(k, up, &old, &fresh, err);
	if (r < 0)
		return r;
	committed = k->generation == up->fresh;
	if (fresh && !(committed && !old)) {
		r = second_watch(up, TAKE_PTR(fresh));
		/* Whatever the old one still has to do with it ends now. */
		if (!committed)
			second_kill(up);
	}
	k->qemu = old ? TAKE_PTR(old) : committed ? TAKE_PTR(fresh) : NULL;
	if (k->qemu && k->qemu->generation == up->fresh) {
		up->changed_over = true;
		(void)rename(next, now);
	}
	if (r < 0)
		return error_set(err, r, "cannot watch the other QEMU: %s", strerror(-r));
	return k->qemu ? 1 : 0;
}

/* The definition of the new one, and its QMP, for the rest of the way. */
static int reach_new(Upgrade *up)
{
	_cleanup_free_ char *path = runtime_path(up->m->k->name, "definition.next");
	_cleanup_error_ Error *err = NULL;
	int r = vm_definition_load(up->m->k->name, path, &up->def, &err);

	return r < 0 ? r : second_connect(up);
}

void upgrade_recover(Move *m, const char *run_state)
{
	Keeper *k = m->k;
	Upgrade *up = m->up;
	bool committed = up->restored || (up->way != WAY_SAVE && k->generation == up->fresh);
	Error *err = NULL;

	move_fact(m, MOVE_FACT_OTHER, up->other && !up->other_killed);
	move_fact(m, MOVE_FACT_LOAD_DONE, committed);
	if (committed && up->other && reach_new(up) < 0) {
		second_kill(up);
		move_fact(m, MOVE_FACT_OTHER, false);
	}
	if (k->state == VM_SHUTOFF)
		log_info("the guest has shut down");
	else if (!k->qemu)
		error_set(&err, -EPIPE, "the QEMU that had the guest ended while no keeper was there");
	else if (streq(run_state, "running") || m->was_running)
		keeper_keep_state(k, VM_RUNNING, "unpaused");
	else
		keeper_keep_state(k, VM_PAUSED, "stopped by QEMU");
	if ((!committed || up->fell_back) && !err)
		error_set(&err, -EINTR, "the keeper was restarted during the upgrade");
	move_error(m, err);
	move_begin_at(m,
		      !committed	 ? MOVE_U_BACK
		      : up->changed_over || up->restored ? MOVE_U_RESUME
					 : MOVE_U_KILL,
		      "an upgrade was under way when the keeper was killed");
	move_event(m, MOVE_EV_RESTART);
}
