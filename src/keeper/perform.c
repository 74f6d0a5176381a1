/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The source's Perform: start QEMU's migration, watch over it, switch, and the way back. Nothing slow stands between STOP
 * and RESUME.
 */
#include <errno.h>
#include <inttypes.h>

#include "keeper/move.h"

#define WATCHDOG_USEC (1 * USEC_PER_SEC)
#define RECEIVING_USEC (5 * USEC_PER_SEC) /* from QEMU's "active" to the target's word that it receives; the guest runs */

/* ---- the watchdog of rule 7: a silent peer must not freeze the guest ---- */

static void shut_sockets(Move *m)
{
	const char *address = m->hello.address;
	int n = 0;

	if (m->k->qemu && address && m->prepared.port)
		n = qemu_process_shutdown_sockets(m->k->qemu, address, (unsigned int)m->prepared.port);
	if (n > 0)
		log_warning("the data port %s:%" PRIu64 " is silent: %d of QEMU's connections to it are shut", address,
			    m->prepared.port, n);
	m->data = data_free(m->data);
}

void perform_silent(const Move *m, Error **err)
{
	if (!m->prepared.port) {
		error_set(err, -ETIMEDOUT, "the target's QEMU does not receive: the data channel leads somewhere else");
		error_hint(err, "see the target's log; another way: --transport=tls");
		return;
	}
	error_set(err, -ETIMEDOUT, "the target's QEMU does not receive: its data port %s:%" PRIu64 " is silent",
		  m->hello.address, m->prepared.port);
	error_hint(err, "see what listens on the target's migration-ports; another way: --transport=ssh");
}

static int on_not_receiving(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_PERFORM || m->facts & MOVE_FACT_TARGET_ACTIVE)
		return 0;
	perform_silent(m, &err);
	shut_sockets(m);
	move_fail(m, err);
	return 0;
}

static int on_watchdog(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	perform_silent(m, &err);
	shut_sockets(m);
	move_fail(m, err);
	return 0;
}

static void on_ping(json_object *ret, const char *error, void *userdata);

static int on_next_ping(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_PERFORM)
		return 0;
	m->ping_pending = true;
	(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC, 0, on_watchdog, m);
	machine_qmp(m->k, "query-status", NULL, on_ping, m);
	return 0;
}

static void on_ping(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (!m->ping_pending || error)
		return;
	m->ping_pending = false;
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
	if (m->state == MOVE_S_PERFORM && !m->ping_done)
		(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC / 4, 0,
						 on_next_ping, m);
}

static void stop_watchdog(Move *m)
{
	m->ping_done = true;
	m->ping_pending = false;
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
}

/* ---- start ---- */

void perform_hint(const char *error, Error **err)
{
	static const struct {
		const char *said, *hint;
	} hints[] = {
		{"duplicate yank instance",
		 "an earlier migration has failed and hangs in QEMU, a fault of QEMU's: the guest runs "
		 "on, but it can move again only when it has been stopped and started"},
		/* The run state postmigrate, which only running the guest ends. */
		{"previous migration",
		 "the guest was paused when a migration failed at its end: vmferry resume NAME, then "
		 "move it"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(hints); i++)
		if (strstr(error, hints[i].said))
			error_hint(err, "%s", hints[i].hint);
}

static void on_migrate_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || m->state != MOVE_S_PERFORM)
		return;
	error_set(&err, -EIO, "QEMU will not migrate: %s", error);
	perform_hint(error, &err);
	move_fail(m, err);
}

int do_start_migrate(Move *m)
{
	Keeper *k = m->k;

	if (!m->opt.live && m->was_running) {
		machine_qmp(k, "stop", NULL, NULL, NULL);
		keeper_set_state(k, VM_PAUSED, "migration");
	}
	log_info("QEMU migrates to %s", m->uri);
	m->ping_done = false;
	m->ping_pending = true;
	(void)sd_event_add_time_relative(k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC, 0, on_watchdog, m);
	machine_qmp(k, "migrate", json_build("uri", "s", m->uri, NULL), on_migrate_reply, m);
	machine_qmp(k, "query-status", NULL, on_ping, m);
	perform_watch(m);
	return 0;
}

/* ---- the switch ---- */

void perform_stop(Move *m)
{
	if (!move_is_target(m) && m->k->state == VM_RUNNING)
		keeper_set_state(m->k, VM_PAUSED, "migration");
}

static int on_hold_over(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->hold_timer = sd_event_source_disable_unref(source);
	if (!(m->facts & MOVE_FACT_FOLLOW_DONE)) {
		move_warn(m, "the connection table was not complete in time: some connections might get dropped");
		move_fact(m, MOVE_FACT_FOLLOW_DONE, true);
		move_event(m, MOVE_EV_FOLLOWED);
	}
	return 0;
}

void perform_hold(Move *m)
{
	m->t.hold = now_usec();
	if (!m->t.stop)
		m->t.stop = m->t.hold; /* a paused guest does not stop */
	if (!(m->facts & MOVE_FACT_FOLLOW_DONE))
		(void)sd_event_add_time(m->k->event, &m->hold_timer, CLOCK_MONOTONIC, m->t.stop + m->deadlines.gate, 1,
					on_hold_over, m);
}

static void on_continue_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || m->state != MOVE_S_SWITCHOVER)
		return;
	error_set(&err, -EIO, "QEMU will not switch over: %s", error);
	move_fail(m, err);
}

int do_continue(Move *m)
{
	machine_qmp(m->k, "migrate-continue", json_build("state", "s", "pre-switchover", NULL), on_continue_reply, m);
	return 0;
}

/* ---- QEMU's word ---- */

static void on_failure_details(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *why = NULL;
	Error *err = NULL;

	if (m->state < MOVE_S_OPEN || m->state > MOVE_S_SWITCHOVER)
		return;
	if (!error)
		(void)json_get_string(ret, "error-desc", &why);
	error_set(&err, -EIO, "QEMU's migration failed%s%s", why ? ": " : "", why ? why : "");
	error_hint(&err, "the target's log says more: %s/%s/log there", state_dir(), m->k->name);
	move_fail(m, err);
}

void perform_migration_event(Move *m, const char *status)
{
	if (m->state == MOVE_S_CANCEL) {
		(void)do_settle(m);
	} else if (streq(status, "active")) {
		stop_watchdog(m);
		(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, RECEIVING_USEC, 0,
						 on_not_receiving, m);
	} else if (streq(status, "pre-switchover")) {
		stop_watchdog(m);
		move_event(m, MOVE_EV_PRE_SWITCHOVER);
	} else if (streq(status, "completed")) {
		m->t.postmigrate = now_usec();
		move_fact(m, MOVE_FACT_POST, true);
		move_event(m, MOVE_EV_POSTMIGRATE);
	} else if (streq(status, "failed") || streq(status, "cancelled")) {
		stop_watchdog(m);
		machine_qmp(m->k, "query-migrate", NULL, on_failure_details, m);
	}
}

/* ---- the way back: migrate_cancel, and wait until it settles ---- */

static const char *const unsettled[] = {"setup",	  "cancelling", "active",      "postcopy-active",
					"pre-switchover", "device",	"wait-unplug", NULL};

static int on_settle_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_CANCEL)
		return 0;
	shut_sockets(m);
	return do_settle(m);
}

static void on_settle_status(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *status = "";

	if (m->state != MOVE_S_CANCEL)
		return;
	if (error || !json_get_string(ret, "status", &status) || streq(status, "finish-migrate"))
		return; /* QEMU's exit, its next event, or the timer goes on from here */
	move_fact(m, MOVE_FACT_POST, streq(status, "postmigrate") || (streq(status, "paused") && !m->opt.live));
	if (streq(status, "running") && m->k->state != VM_RUNNING)
		keeper_set_state(m->k, VM_RUNNING, "migration cancelled");
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
	move_event(m, MOVE_EV_SETTLED);
}

static void on_settle_migration(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *status = "none";

	if (m->state != MOVE_S_CANCEL || error)
		return;
	(void)json_get_string(ret, "status", &status);
	if (strv_contains((char *const *)(uintptr_t)unsettled, status))
		return;
	machine_qmp(m->k, "query-status", NULL, on_settle_status, m);
}

int do_settle(Move *m)
{
	m->data = data_free(m->data);
	stop_watchdog(m);
	if (m->settle_tries++ == 0)
		machine_qmp(m->k, "migrate_cancel", NULL, NULL, NULL);
	machine_qmp(m->k, "query-migrate", NULL, on_settle_migration, m);
	(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC,
					 m->settle_tries > 3 ? USEC_PER_SEC : 300 * USEC_PER_MSEC, 0, on_settle_late,
					 m);
	return 0;
}
