/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The source's commit, the outcome, and both ends: the guest is there, or is ours again. */
#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#include "keeper/local.h"
#include "keeper/move.h"
#include "keeper/tls.h"
#include "keeper/upgrade.h"

#define RETRY_FIRST_USEC (250 * USEC_PER_MSEC)
#define RETRY_MOST_USEC (30 * USEC_PER_SEC)
#define OUTCOME_USEC (10 * USEC_PER_SEC)

/* ---- records ---- */

static int record(Move *m, JournalKind kind)
{
	JournalRecord r = {.kind = kind, .running = m->was_running, .lease_generation = m->lease_generation};
	Error *err = NULL;
	int n;

	memcpy(r.id, m->id, sizeof(r.id));
	if (m->opt.destination)
		snprintf(r.peer, sizeof(r.peer), "%s", m->opt.destination);
	n = journal_write(m->k->journal, &r, &err);
	move_error(m, err);
	return n;
}

int do_journal_commit(Move *m)
{
	int r;

	m->lease_generation = m->k->lease ? lease_generation(m->k->lease) : 0;
	r = record(m, JOURNAL_COMMIT);
	m->t.committed = now_usec();
	return r;
}

int do_journal_owner(Move *m)
{
	return record(m, JOURNAL_OWNER);
}

int do_journal_gone(Move *m)
{
	return record(m, JOURNAL_GONE);
}

/* ---- Finish and Outcome ---- */

static void take_error(Move *m)
{
	Error *err = NULL;
	_cleanup_free_ char *why = text_clean(m->outcome.reason ? m->outcome.reason : "no reason given", 512);

	error_set(&err, -EREMOTEIO, "the target did not take the guest: %s", why);
	if (m->outcome.hint && *m->outcome.hint) {
		_cleanup_free_ char *hint = text_clean(m->outcome.hint, 512);

		error_hint(&err, "%s", hint);
	}
	move_error(m, err);
}

static int on_outcome_reply(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;
	_cleanup_error_ Error *err = NULL;
	int r;

	(void)error;
	if (m->state != MOVE_S_WAIT)
		return 0;
	m->t.answered = now_usec();
	r = bus_error_read(reply, "Finish", &err);
	if (r >= 0)
		r = cookie_read(reply, &outcome_reply, peer_features, &m->outcome, &err);
	if (r >= 0 && !streq(m->outcome.id, m->id))
		r = error_set(&err, -EPROTO, "an answer for another migration");
	if (r < 0) {
		/* Not an answer: only Running and Never are. Ask again over a new connection. */
		log_warning("no outcome: %s", err->message);
		move_event(m, MOVE_EV_DEADLINE);
	} else if (streq(m->outcome.outcome, "running")) {
		move_event(m, MOVE_EV_RUNNING);
	} else if (streq(m->outcome.outcome, "never")) {
		take_error(m);
		move_event(m, MOVE_EV_NEVER);
	} else {
		move_event(m, MOVE_EV_DEADLINE);
	}
	return 0;
}

/* For people, while the target resumes: "completed" may come before the final figures. */
static void on_final_figures(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	if (error)
		return;
	(void)json_get_u64(ret, "ram.total", &m->ram_total);
	(void)json_get_u64(ret, "ram.transferred", &m->ram_transferred);
}

int do_send_finish(Move *m)
{
	FinishCookie cookie = {.id = m->id, .run_state = (char *)(m->was_running ? "running" : "paused")};
	int r;

	m->t.finish_sent = now_usec();
	cookie.lease_generation = m->lease_generation;
	cookie.since_stop_usec = m->t.stop ? m->t.finish_sent - m->t.stop : 0;
	r = source_call(m, "Finish", &finish_cookie, &cookie, m->deadlines.finish, on_outcome_reply);
	if (r < 0)
		move_event(m, MOVE_EV_LINK_LOST);
	machine_qmp(m->k, "query-migrate", NULL, on_final_figures, m);
	return 0; /* committed: there is no failure but the loss of the link */
}

int do_send_outcome(Move *m)
{
	sd_bus *bus = link_bus(m->link);
	int r = bus ? 0 : -ENOTCONN;

	cookie_clear(&outcome_reply, &m->outcome);
	if (r >= 0)
		r = sd_bus_call_method_async(bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Outcome", on_outcome_reply, m,
					     "s", m->id);
	if (r < 0)
		move_event(m, MOVE_EV_LINK_LOST);
	return 0;
}

int do_drop_link(Move *m)
{
	move_fact(m, MOVE_FACT_LINK, false);
	m->link = link_free(m->link);
	m->retry_timer = sd_event_source_disable_unref(m->retry_timer);
	return 0;
}

static void tell_in_doubt(Move *m)
{
	json_object *result;

	if (m->reported || m->reconnects < 4)
		return;
	m->reported = true;
	m->status = "in-doubt";
	result = report_result(m);
	log_error("in doubt: the guest was committed to %s and there is no answer; it stays paused here, and is asked "
		  "for "
		  "again and again",
		  m->opt.destination);
	control_emit_text(m->k, "Finished", json_text(result));
	json_object_put(result);
}

int do_reach(Move *m)
{
	_cleanup_error_ Error *err = NULL;

	tell_in_doubt(m);
	if (source_connect(m, &err) < 0) {
		log_info("in doubt: %s", err->message);
		(void)do_reconnect(m);
	}
	return 0;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->retry_timer = sd_event_source_disable_unref(source);
	if (m->state == MOVE_S_DOUBT && m->lease_generation && !(m->facts & MOVE_FACT_OFFLINE))
		move_event(m, MOVE_EV_LEASE);
	else if (m->state == MOVE_S_DOUBT)
		(void)do_reach(m);
	return 0;
}

/* Growing pauses. From the loop: the old link may be the one that calls us. */
int do_reconnect(Move *m)
{
	uint64_t pause = move_backoff(m->reconnects, RETRY_FIRST_USEC, RETRY_MOST_USEC);

	if (m->reconnects++ == 0 && m->lease_generation)
		pause = 0; /* the lease may decide at once */
	m->retry_timer = sd_event_source_disable_unref(m->retry_timer);
	(void)sd_event_add_time_relative(m->k->event, &m->retry_timer, CLOCK_MONOTONIC, pause, 0, on_retry, m);
	return 0;
}

void move_retry_now(Move *m)
{
	if (m->retry_timer)
		(void)sd_event_source_set_time_relative(m->retry_timer, 0);
}

/* ---- ours again ---- */

static void drop_note(Move *m)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "move");

	(void)unlink(path);
}

/* QEMU throws away what a connection that ends has still in its queue: until cont is answered, the note says what is
 * due. */
static void on_cont_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (error) {
		log_error("the guest does not resume: %s", error);
		return;
	}
	if (m->cont_due && !move_active(m))
		drop_note(m);
	m->cont_due = false;
	keeper_set_state(m->k, VM_RUNNING, m->up ? "upgrade failed" : "migration failed");
}

int do_resume(Move *m)
{
	log_warning("the guest resumes here");
	m->cont_due = true;
	machine_qmp(m->k, "cont", NULL, on_cont_reply, m);
	return 0;
}

int do_cont_back(Move *m)
{
	return do_resume(m);
}

int do_send_abort(Move *m)
{
	sd_bus *bus = link_bus(m->link);

	if (bus)
		(void)sd_bus_call_method_async(bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Abort", NULL, NULL, "s",
					       m->id);
	return 0;
}

/* ---- gone ---- */

int do_kill_qemu(Move *m)
{
	if (!graphics_hold(m))
		machine_kill(m->k);
	return 0;
}

int do_flush(Move *m)
{
	_cleanup_strv_ char **others = NULL;
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL, *spare = NULL;
	_cleanup_error_ Error *err = NULL;
	int r = 0;

	follow_stop(m);
	if (!m->k->def || !m->opt.conntrack)
		return 0;
	r = vm_select(m->k->def, &select, &err);
	if (r == 0)
		return 0;
	others = local_addresses(m->k->name);
	if (r >= 0 && others)
		r = ct_select_new(others, &spare, &err);
	if (r >= 0)
		r = ct_flush(select, spare, &err);
	if (r < 0)
		move_warn(m, "the guest's connections are not flushed here: %s", err ? err->message : strerror(-r));
	else
		log_info("%d connection entr%s flushed here", r, r == 1 ? "y" : "ies");
	return 0;
}

int do_note(Move *m)
{
	_cleanup_free_ char *path = state_path(m->k->name, "moved"), *arrived = state_path(m->k->name, "definition");
	_cleanup_json_ json_object *note = json_build(
		"to", "s", m->hello.host_name ? m->hello.host_name : m->opt.destination, "destination", "s",
		m->opt.destination, "at", "u", clock_usec(CLOCK_REALTIME) / USEC_PER_SEC, "id", "s", m->id, NULL);
	const char *text = json_text(note);

	(void)file_write(path, text, strlen(text), 0600, false);
	(void)unlink(arrived); /* a definition that arrived leaves with the VM */
	return 0;
}

int do_forget(Move *m)
{
	sd_bus *bus = link_bus(m->link);

	if (bus)
		(void)sd_bus_call_method_async(bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Forget", NULL, NULL, "s",
					       m->id);
	return 0;
}

/* ---- the end of an attempt ---- */

static void summary(Move *m, json_object *result)
{
	const char *status = m->status;

	if (m->opt.check_only)
		return;
	log_info("migration %s: %s", m->id, status);
	if (streq(status, "completed") && m->followed)
		log_info("%" PRIu64 " %s migrated", m->outcome.ct_applied,
			 m->outcome.ct_applied == 1 ? "entry" : "entries");
	json_object_put(m->k->last_result);
	m->k->last_result = json_object_get(result);
	keeper_history(m->k,
		       streq(status, "completed")   ? "moved"
		       : streq(status, "cancelled") ? "cancelled"
						    : "failed",
		       json_object_get(result));
	control_emit_text(m->k, "Finished", json_text(result));
}

void move_answer_check(Move *m, json_object *answer)
{
	if (m->check_message)
		sd_bus_reply_method_return(m->check_message, "s", json_text(answer));
	json_object_put(answer);
	m->check_message = sd_bus_message_unref(m->check_message);
}

void move_let_go(Move *m)
{
	sd_event_source **all[] = {&m->timeout,	 &m->progress,	  &m->hold_timer, &m->watchdog,
				   &m->prove_io, &m->prove_timer, &m->retry_timer, &m->spice_timer};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		*all[i] = sd_event_source_disable_unref(*all[i]);
	if (m->psk)
		tls_remove(m->k, m->id);
	secret_clear(m->psk);
	source_drop_probes(m->k);
	follow_stop(m);
	m->data = data_free(m->data);
	m->link = link_free(m->link);
	if (!m->cont_due)
		drop_note(m);
}

static void finish_source(Move *m)
{
	_cleanup_json_ json_object *result = NULL;
	bool gone = m->state == MOVE_S_DONE || m->state == MOVE_S_DESTROY;

	m->t.ended = now_usec();
	move_end_phase(m);
	if (gone)
		m->status = "completed";
	else if (!m->status || streq(m->status, "in-doubt"))
		m->status = "failed";
	move_let_go(m);
	if (gone)
		warn_of_reasons(m);
	result = report_result(m);
	if (gone)
		keeper_set_state(m->k, VM_SHUTOFF, "migrated");
	summary(m, result);
	if (m->check_message)
		move_answer_check(m, report_check(m));
	wait_done(m->k, WAIT_CANCEL);
	if (gone)
		keeper_leave(m->k);
	else if (!m->k->qemu && !m->k->incoming)
		keeper_without_guest(m->k);
	else
		keeper_check_idle(m->k);
}

static int on_qemu_reaped(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->progress = sd_event_source_disable_unref(source);
	finish_source(m);
	return 0;
}

void confirm_qemu_gone(Move *m)
{
	if (m->state == MOVE_S_DONE && !m->t.ended)
		finish_source(m);
}

int do_end(Move *m)
{
	bool target = move_is_target(m), gone = m->state == MOVE_S_DESTROY;

	if (m->up)
		return upgrade_end(m);
	if (target) {
		target_end(m);
		return 0;
	}
	if (gone && m->k->qemu)
		return 0; /* told when QEMU, its taps and its files are gone: confirm_qemu_gone() */
	if (gone) {
		m->progress = sd_event_source_disable_unref(m->progress);
		return sd_event_add_time_relative(m->k->event, &m->progress, CLOCK_MONOTONIC, 0, 1, on_qemu_reaped, m);
	}
	if (m->state == MOVE_S_NEVER_RESUME && !m->was_running)
		keeper_lease_pause(m->k);
	if (m->state == MOVE_S_NEVER_RESUME && !m->k->qemu)
		keeper_set_state(m->k, VM_SHUTOFF, "failed"); /* cold start is allowed */
	if (m->k->qemu && (m->k->state == VM_PAUSED || m->k->state == VM_IN_DOUBT) && !m->was_running)
		keeper_set_state(m->k, VM_PAUSED, m->was_reason);
	finish_source(m);
	return 0;
}
