/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The target's two ends: the guest is this host's, or has not run here and never will. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "keeper/move.h"
#include "keeper/tls.h"
#include "qemu/tap.h"

#define RETRY_FIRST_USEC (1 * USEC_PER_SEC)
#define RETRY_MOST_USEC (60 * USEC_PER_SEC)

static const unsigned int announce_ms[] = {0, 50, 200, 450, 800};

/* ---- owner ---- */

static int on_announce(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Keeper *k = m->k;

	(void)usec;
	for (size_t i = 0; k->qemu && i < k->def->n_nics; i++) {
		_cleanup_fd_ int fd = qemu_process_tap_fd(k->qemu, i);

		if (fd >= 0)
			(void)tap_announce(fd, &k->def->nics[i]);
	}
	if (++m->announced >= ARRAY_SIZE(announce_ms)) {
		m->announce_timer = sd_event_source_disable_unref(source);
		return 0;
	}
	sd_event_source_set_time(source, m->t.resumed + announce_ms[m->announced] * USEC_PER_MSEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

int do_announce(Move *m)
{
	Keeper *k = m->k;

	if (m->was_running)
		(void)sd_event_add_time(k->event, &m->announce_timer, CLOCK_MONOTONIC, m->t.resumed, 1, on_announce, m);
	sink_settle_begin(m);
	return 0;
}

/* Off the blackout: what a later keeper and a later start need. */
static void own(Move *m)
{
	Keeper *k = m->k;
	_cleanup_free_ char *file = xasprintf("definition.%s", m->id), *from = state_path(k->name, file);
	_cleanup_free_ char *to = state_path(k->name, "definition"), *note = state_path(k->name, "moved");
	_cleanup_free_ char *marker = runtime_path(k->name, "move");

	(void)rename(from, to);
	(void)unlink(note);
	(void)unlink(marker);
	room_free(TAKE_PTR(m->room));
	m->progress = sd_event_source_disable_unref(m->progress);
	k->arrived = true;
	move_fact(m, MOVE_FACT_OWNER, true);
	keeper_history(k, "arrived",
		       json_build("id", "s", m->id, "from", "s", m->from ? m->from->host_name : NULL, NULL));
	if (m->psk || m->prepare.psk)
		tls_remove(k, m->id);
	secret_clear(m->prepare.psk);
}

int do_say_running(Move *m)
{
	bool first = m->state != MOVE_T_OWNER, off = m->facts & MOVE_FACT_OFFLINE;

	target_answer(m, "running", m->k->qemu != NULL);
	if (!first)
		return 0;
	own(m);
	/* After a restart was_running is false for a guest that runs already. */
	if (!m->was_running && !(m->facts & MOVE_FACT_RESTARTED))
		keeper_lease_pause(m->k);
	m->k->incoming = off; /* without a guest there is nothing to keep */
	keeper_set_state(m->k, off ? VM_SHUTOFF : m->was_running ? VM_RUNNING : VM_PAUSED, "migrated");
	if (!off && m->was_running)
		machine_learn_suspended(m->k);
	return 0;
}

int do_say_lost(Move *m)
{
	log_error("the guest was taken over and is lost: QEMU died");
	target_answer(m, "running", false);
	own(m);
	m->k->incoming = false;
	keeper_set_state(m->k, VM_SHUTOFF, "crashed");
	if (!m->k->qemu)
		keeper_leave(m->k);
	return 0;
}

/* ---- the way back ---- */

/*
 * Over COMMITTED it must be durable before anything is said. Over nothing it need not: what a restart finds undecided
 * is killed, and asked again the same is said; so a full disk does not keep a QEMU here that nobody will ask for.
 */
int do_journal_aborted(Move *m)
{
	const JournalRecord *record = journal_find(m->k->journal, m->id);
	Error *err = NULL;
	int r = 0;

	if (m->apply)
		(void)ct_apply_rollback(m->apply);
	if (!record || record->kind != JOURNAL_ABORTED)
		r = target_tombstone(m->k, m->id, &err);
	move_error(m, err);
	return record && record->kind == JOURNAL_COMMITTED ? r : 0;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->retry_timer = sd_event_source_disable_unref(source);
	move_event(m, MOVE_EV_RETRY);
	return 0;
}

int do_try_later(Move *m)
{
	uint64_t pause = move_backoff(m->retries++, RETRY_FIRST_USEC, RETRY_MOST_USEC);

	m->retry_timer = sd_event_source_disable_unref(m->retry_timer);
	return sd_event_add_time_relative(m->k->event, &m->retry_timer, CLOCK_MONOTONIC, pause, 0, on_retry, m);
}

int do_say_never(Move *m)
{
	_cleanup_error_ Error *err = NULL;

	error_set(&err, -ECANCELED, "the migration was given up");
	target_answer(m, "never", false);
	if (m->prepare_message)
		bus_reply_error(m->prepare_message, "Failed", m->error ? m->error : err);
	m->prepare_message = sd_bus_message_unref(m->prepare_message);
	return 0;
}

void target_end(Move *m)
{
	Keeper *k = m->k;
	_cleanup_free_ char *file = xasprintf("definition.%s", m->id), *path = state_path(k->name, file);
	_cleanup_free_ char *marker = runtime_path(k->name, "move"), *definition = runtime_path(k->name, "definition");

	(void)unlink(path);
	(void)unlink(marker);
	(void)unlink(definition);
	m->from = NULL;
	secret_clear(m->prepare.psk);
	room_free(TAKE_PTR(m->room));
	m->progress = sd_event_source_disable_unref(m->progress);
	ct_apply_free(TAKE_PTR(m->apply));
	keeper_lease_drop(k);
	keeper_set_state(k, VM_SHUTOFF, "failed");
	keeper_history(k, "not taken",
		       json_build("id", "s", m->id, "why", "s", m->error ? m->error->message : NULL, NULL));
	keeper_check_idle(k);
}
