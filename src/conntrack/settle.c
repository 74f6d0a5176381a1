/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdlib.h>
#include <string.h>

#include "apply.h"
#include "basic/clock.h"

/*
 * The guest runs here. Entries whose packets have come meanwhile got their state and timeout from the kernel; only
 * those nobody touched still have the long timeout we gave them. So each is looked at before it is set.
 */

/* A source's last known timeout may lack refreshes it never heard of: no shorter than UDP's for a single packet. */
#define TIMEOUT_MIN 30

static bool untouched(const CtEntry *e, const CtRecord *now, uint32_t age)
{
	int64_t expected = (int64_t)ct_apply_held(&e->record) - age;

	return llabs(expected - now->timeout) <= 2 &&
	       (!(now->has & CT_HAS_TCP) || now->tcp.state == e->record.tcp.state);
}

/* An established connection may be silent for days; what is known of its timeout may be older than its last packet. */
static uint32_t true_timeout(const CtRecord *r)
{
	if (r->key.protocol == IPPROTO_GRE || (r->status & IPS_FIXED_TIMEOUT))
		return 0;
	if (r->timeout >= CT_HOLD_SECONDS || ((r->has & CT_HAS_TCP) && r->tcp.state == TCP_CONNTRACK_ESTABLISHED))
		return 0;
	return r->timeout > TIMEOUT_MIN ? r->timeout : TIMEOUT_MIN;
}

/*
 * Of a connection whose SYN was seen elsewhere the kernel does not know what may be acknowledged; to strict window
 * checks the SYN+ACK would be invalid. Such a one stays liberal.
 */
static bool opening(const CtRecord *now)
{
	return now->tcp.state == TCP_CONNTRACK_SYN_SENT || now->tcp.state == TCP_CONNTRACK_SYN_SENT2;
}

void ct_settle_compare(CtApply *a, uint32_t i, const struct nlmsghdr *nlh)
{
	CtEntry *e = ct_table_at(&a->table, i);
	const uint8_t *flags = e->record.tcp.flags;
	CtRecord now;

	e->flags &= (uint16_t) ~(CT_ENTRY_UNTOUCHED | CT_ENTRY_LENIENT);
	if (!ct_parse(nlh, &now))
		return;
	if (true_timeout(&e->record) && untouched(e, &now, a->now - e->held))
		e->flags |= CT_ENTRY_UNTOUCHED;
	if ((now.has & e->record.has & CT_HAS_TCP) && !opening(&now) &&
	    (((now.tcp.flags[0] ^ flags[0]) | (now.tcp.flags[1] ^ flags[1])) & IP_CT_TCP_FLAG_BE_LIBERAL))
		e->flags |= CT_ENTRY_LENIENT;
}

static void ask(CtApply *a, uint32_t i)
{
	const CtKey *key = &ct_table_at(&a->table, i)->record.key;

	ct_build_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_GET, 0, key->family, ct_apply_tag(OP_SETTLE, i)), key);
}

static void set(CtApply *a, uint32_t i)
{
	CtEntry *e = ct_table_at(&a->table, i);
	uint32_t timeout = e->flags & CT_ENTRY_UNTOUCHED ? true_timeout(&e->record) : 0;
	bool strict = e->flags & CT_ENTRY_LENIENT;

	if (!(e->flags & (CT_ENTRY_UNTOUCHED | CT_ENTRY_LENIENT)))
		return;
	e->flags &= (uint16_t) ~(CT_ENTRY_UNTOUCHED | CT_ENTRY_LENIENT);
	ct_build_settle(ct_batch_add(a->batch, IPCTNL_MSG_CT_NEW, 0, e->record.key.family, ct_apply_tag(OP_OTHER, 0)),
			&e->record, timeout, strict);
}

static bool is_entry(const CtApply *a, uint32_t i)
{
	return ct_table_in_use(&a->table, i) && !ct_table_at(&a->table, i)->record.key.expect;
}

/* One batch of questions from index @first on, and one of changes. Return: 0 or negative errno. */
static int settle_group(CtApply *a, uint32_t first, uint32_t *ret_next)
{
	uint32_t end = first;
	int r;

	for (; end < a->table.used && !ct_batch_full(a->batch, 1); end++)
		if (is_entry(a, end))
			ask(a, end);
	r = ct_batch_flush(a->batch);
	for (uint32_t i = first; r >= 0 && i < end; i++)
		if (is_entry(a, i))
			set(a, i);
	*ret_next = end;
	return r < 0 ? r : ct_batch_flush(a->batch);
}

/* One group takes about a millisecond. */
int ct_apply_settle_some(CtApply *a, Error **err)
{
	int r = 0;

	a->now = ct_apply_seconds();
	if (a->other)
		return 0;
	if (a->settle_next < a->table.used)
		r = settle_group(a, a->settle_next, &a->settle_next);
	if (r < 0)
		return error_set(err, r, "Cannot set connections right: %s", strerror(-r));
	if (a->settle_next < a->table.used)
		return 1;
	a->settle_next = 0;
	return 0;
}

int ct_apply_settle(CtApply *a, Error **err)
{
	int r;

	while (ct_apply_sweep_some(a) > 0)
		;
	while ((r = ct_apply_settle_some(a, err)) > 0)
		;
	return r;
}

static void settle_ended(CtApply *a, int result, const Error *err)
{
	a->settle_source = sd_event_source_disable_unref(a->settle_source);
	a->settle_done(a->settle_userdata, result, err);
}

static int on_settle(_unused_ sd_event_source *s, void *userdata)
{
	_cleanup_error_ Error *err = NULL;
	CtApply *a = userdata;
	int r = ct_apply_settle_some(a, &err);

	if (r <= 0)
		settle_ended(a, r, err);
	return 0;
}

/* Where nothing else is to do, over and over. */
static int add_idle(CtApply *a, sd_event *event, sd_event_handler_t handler)
{
	sd_event_source *source = NULL;
	int r = sd_event_add_defer(event, &source, handler, a);

	if (r >= 0)
		r = sd_event_source_set_priority(source, SD_EVENT_PRIORITY_IDLE);
	if (r >= 0)
		r = sd_event_source_set_enabled(source, SD_EVENT_ON);
	if (r < 0) {
		sd_event_source_disable_unref(source);
		return r;
	}
	sd_event_source_disable_unref(a->settle_source);
	a->settle_source = source;
	return 0;
}

static int on_delay_over(sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	CtApply *a = userdata;
	int r = add_idle(a, sd_event_source_get_event(s), on_settle);

	if (r < 0)
		settle_ended(a, r, NULL);
	return 0;
}

/* What could not be swept ends by its timeouts: no reason to stop. */
static int on_sweep(sd_event_source *s, void *userdata)
{
	sd_event_source *timer = NULL;
	CtApply *a = userdata;
	int r;

	if (ct_apply_sweep_some(a) > 0)
		return 0;
	r = sd_event_add_time(sd_event_source_get_event(s), &timer, CLOCK_MONOTONIC, a->settle_at, 0, on_delay_over, a);
	if (r < 0) {
		settle_ended(a, r, NULL);
		return 0;
	}
	sd_event_source_disable_unref(a->settle_source);
	a->settle_source = timer;
	return 0;
}

int ct_apply_settle_begin(CtApply *a, sd_event *event, uint64_t delay,
			  void (*done)(void *userdata, int result, const Error *err), void *userdata)
{
	a->settle_next = 0;
	a->settle_at = now_usec() + delay;
	a->settle_done = done;
	a->settle_userdata = userdata;
	return add_idle(a, event, on_sweep);
}
