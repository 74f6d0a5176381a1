/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest's connections on the source: followed from Hello on, sent as deltas, the last one at the switch. */
#include <errno.h>
#include <inttypes.h>

#include "keeper/move.h"

#define DELTA_USEC (10 * USEC_PER_MSEC)
#define DELTA_BYTES (128 * 1024)
#define RESYNC_USEC (2 * USEC_PER_SEC)
#define DELTA_TIMEOUT_USEC (10 * USEC_PER_SEC)

char **vm_addresses(const VmDefinition *def)
{
	char **all = NULL;

	for (size_t i = 0; i < def->n_nics; i++)
		for (size_t j = 0; def->nics[i].addresses && def->nics[i].addresses[j]; j++)
			strv_push(&all, xstrdup(def->nics[i].addresses[j]));
	return all;
}

int vm_select(const VmDefinition *def, CtSelect **ret, Error **err)
{
	_cleanup_strv_ char **addresses = vm_addresses(def);
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL;
	char zone[8];
	int r = ct_select_new(addresses, &select, err);

	if (r >= 0 && def->conntrack_mark)
		r = ct_select_mark(select, def->conntrack_mark, err);
	snprintf(zone, sizeof(zone), "%u", def->conntrack_zone);
	if (r >= 0 && def->conntrack_zone)
		r = ct_select_zone(select, zone, err);
	if (r < 0)
		return r;
	if (ct_select_empty(select))
		return 0;
	*ret = TAKE_PTR(select);
	return 1;
}

/* Nothing waits for the table any more. */
static void follow_done(Move *m)
{
	if (m->facts & MOVE_FACT_FOLLOW_DONE)
		return;
	move_fact(m, MOVE_FACT_FOLLOW_DONE, true);
	perform_followed(m);
	move_event(m, MOVE_EV_FOLLOWED);
}

static void lost(Move *m, const char *why)
{
	if (!m->delta_lost)
		move_warn(m, "connections could not be handed over: %s", why);
	m->delta_lost = true;
	follow_done(m);
}

static void send_next(Move *m);

static int on_delta_reply(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)error;
	m->delta_in_flight = false;
	if (bus_error_read(reply, "Delta", &err) < 0)
		lost(m, err->message);
	else if (m->delta_full)
		send_next(m);
	return 0;
}

static int on_last_reply(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;

	m->t.barrier_answered = now_usec();
	return on_delta_reply(reply, userdata, error);
}

static int send_delta(Move *m, const void *data, size_t len, bool last)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *call = NULL;
	sd_bus *bus = link_bus(m->link);
	int r = bus ? 0 : -ENOTCONN;

	if (r >= 0)
		r = sd_bus_message_new_method_call(bus, &call, NULL, PEER_PATH, PEER_INTERFACE, "Delta");
	if (r >= 0)
		r = sd_bus_message_append(call, "b", (int)last);
	if (r >= 0)
		r = sd_bus_message_append_array(call, 'y', data, len);
	if (r >= 0)
		r = sd_bus_call_async(bus, NULL, call, last ? on_last_reply : on_delta_reply, m, DELTA_TIMEOUT_USEC);
	return r;
}

/* Masquerade, and port forwarding from the host's own address: the answers go on coming to this host. */
static void warn_of_bound(Move *m)
{
	_cleanup_(ct_select_freep)
	CtSelect *own = NULL;
	char example[112];
	size_t n;

	if (ct_select_own(&own, NULL) < 0)
		return;
	n = ct_follow_bound(m->follow, own, example, sizeof(example));
	if (n)
		move_warn(m, "%zu connection%s translated to an address of this host: what moves cannot take that along (%s)", n,
			  n == 1 ? " is" : "s are", example);
}

/*
 * Whether the table is complete, and the target has all of it but for what changed a moment ago. It is no more when events were
 * lost: then a new dump runs.
 */
static void check_complete(Move *m)
{
	bool done = m->facts & MOVE_FACT_FOLLOW_DONE;
	CtFollowStats stats;

	ct_follow_stats(m->follow, &stats);
	if (done && !stats.complete && m->state < MOVE_S_HOLD) {
		log_debug("events of connections were lost: they are read anew");
		move_fact(m, MOVE_FACT_FOLLOW_DONE, false);
	}
	if (done || !stats.complete || m->state < MOVE_S_OPEN || m->delta_full)
		return;
	log_debug("the connection table is complete: %" PRIu64 " entries", stats.entries);
	if (!m->bound_told) {
		warn_of_bound(m);
		judge_target(m);
	}
	m->bound_told = true;
	follow_done(m);
}

/* One delta is under way at a time; before the target's Prepare is answered none. */
static void send_next(Move *m)
{
	const uint8_t *data;
	size_t len, records;

	if (!m->follow || m->state < MOVE_S_OPEN || m->state > MOVE_S_HOLD || m->delta_in_flight || m->delta_lost)
		return;
	len = ct_follow_delta(m->follow, DELTA_BYTES, &data, &records);
	m->delta_in_flight = len > 0;
	m->delta_full = len > 0 && ct_follow_pending(m->follow);
	if (len > 0 && send_delta(m, data, len, false) < 0)
		lost(m, "the link does not take them");
	check_complete(m);
}

/*
 * With nf_conntrack_events=2 entries older than the first listener send no events: while memory moves they are dumped
 * again from time to time, so that those that ended or changed are not handed over as they were.
 */
static void resync(Move *m)
{
	uint64_t now = now_usec();

	if (!m->follow_without_events || m->state != MOVE_S_PERFORM || now - m->resynced < RESYNC_USEC)
		return;
	m->resynced = now;
	(void)ct_follow_resync(m->follow);
}

static int on_delta_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	sd_event_source_set_time_relative(source, DELTA_USEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	send_next(m);
	resync(m);
	return 0;
}

void follow_start(Move *m)
{
	_cleanup_error_ Error *err = NULL;
	CtHost host;
	int r = vm_select(m->k->def, &m->select, &err);

	if (r == 0) {
		move_warn(m, "no address is given for any NIC: connections cannot be followed and might get dropped");
		return;
	}
	if (r >= 0)
		r = ct_follow_new(m->k->event, m->select, &m->follow, &err);
	if (r >= 0)
		r = sd_event_add_time_relative(m->k->event, &m->delta_timer, CLOCK_MONOTONIC, DELTA_USEC, 1000,
					       on_delta_timer, m);
	if (r < 0) {
		move_warn(m, "connections cannot be followed and might get dropped: %s",
			  err ? err->message : strerror(-r));
		ct_follow_free(TAKE_PTR(m->follow));
		return;
	}
	move_fact(m, MOVE_FACT_FOLLOW_DONE, false);
	ct_host_read(&host);
	m->follow_without_events = host.events == 2;
	m->resynced = now_usec();
	if (host.events == 0)
		move_warn(m,
			  "net.netfilter.nf_conntrack_events is 0 here: connections opened during the move might get "
			  "dropped (set it to 1)");
}

void follow_stop(Move *m)
{
	CtFollowStats stats;

	m->delta_timer = sd_event_source_disable_unref(m->delta_timer);
	if (!m->follow)
		return;
	ct_follow_stats(m->follow, &stats);
	m->followed = stats.entries;
	m->untold = stats.untold;
	ct_follow_free(TAKE_PTR(m->follow));
}

/*
 * The guest is stopped: what the kernel has queued, what is left to send, and a mark that this is all. Not waited for:
 * it is ordered before Finish on the same link, and the target's gate waits for the mark.
 */
int do_last_delta(Move *m)
{
	const uint8_t *data = NULL;
	size_t len = 0, records = 0;
	int r = 0;

	m->delta_timer = sd_event_source_disable_unref(m->delta_timer);
	m->hold_timer = sd_event_source_disable_unref(m->hold_timer);
	if (m->follow && !m->delta_lost) {
		CtFollowStats stats;

		(void)ct_follow_drain(m->follow);
		while (r >= 0 && (len = ct_follow_delta(m->follow, DELTA_BYTES, &data, &records)) > 0) {
			m->last_delta_entries += records;
			r = send_delta(m, data, len, false);
		}
		ct_follow_stats(m->follow, &stats);
		m->followed = stats.entries;
	}
	if (r >= 0)
		r = send_delta(m, "", 0, true);
	if (r < 0)
		lost(m, "the link does not take them");
	m->t.delta_done = now_usec();
	return 0;
}
