/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What can be asked of both ends before anything moves. */
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

#include "apply.h"
#include "basic/clock.h"
#include "basic/text.h"

#define HELPERS_MAX 16

static void add_helper(CtSummary *s, const char *name)
{
	if (!strv_contains(s->helpers, name) && strv_length(s->helpers) < HELPERS_MAX)
		strv_push(&s->helpers, xstrdup(name));
}

void ct_table_summary(const CtTable *table, CtSummary *ret)
{
	*ret = (CtSummary){.entries = table->live};
	for (uint32_t i = 0; i < table->used; i++) {
		const CtEntry *e = ct_table_at(table, i);

		if (!ct_table_in_use(table, i) || (e->flags & CT_ENTRY_GONE))
			continue;
		ret->labelled += (e->record.has & CT_HAS_LABELS) != 0;
		if (e->record.has & CT_HAS_HELPER)
			add_helper(ret, e->record.extra->helper);
	}
}

void ct_summary_done(CtSummary *s)
{
	strv_free(s->helpers);
	*s = (CtSummary){};
}

static int read_until(sd_event *event, const CtSelect *select, uint64_t end, CtSummary *ret, Error **err)
{
	_cleanup_(ct_follow_freep)
	CtFollow *follow = NULL;
	CtFollowStats stats = {};
	int r = ct_follow_new(event, select, &follow, err);
	uint64_t now = now_usec();

	if (r < 0)
		return r;
	for (; r >= 0 && !stats.complete && now < end; now = now_usec()) {
		r = sd_event_run(event, end - now);
		ct_follow_stats(follow, &stats);
	}
	if (r < 0)
		return error_set(err, r, "Cannot read the connection tracking table: %s", strerror(-r));
	ct_follow_summary(follow, ret);
	return 0;
}

int ct_summary_read(const CtSelect *select, uint64_t usec, CtSummary *ret, Error **err)
{
	sd_event *event = NULL;
	int r = sd_event_new(&event);

	if (r < 0)
		return error_set(err, r, "Cannot make an event loop: %s", strerror(-r));
	r = read_until(event, select, now_usec() + usec, ret, err);
	sd_event_unref(event);
	return r;
}

/* UDP from the VM to the discard port of nobody. */
static bool probe_record(const CtApply *a, CtRecord *ret, CtExtra *store)
{
	static const uint8_t nobody[][16] = {{192, 0, 2, 1}, {0x20, 0x01, 0x0d, 0xb8, [15] = 1}};
	const CtAddress *vm = a->allowed->n_addresses ? &a->allowed->addresses[0] : NULL;

	if (!vm)
		return false;
	*store = (CtExtra){.labels = {1}};
	*ret = (CtRecord){.key = {.family = vm->family, .protocol = IPPROTO_UDP, .orig = {.a = 0x0900, .b = 0x0900}},
			  .status = IPS_CONFIRMED,
			  .timeout = 1,
			  .has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_LABELS,
			  .extra = store};
	memcpy(ret->key.orig.src, vm->bytes, 16);
	memcpy(ret->key.orig.dst, nobody[vm->family == AF_INET6], 16);
	return ct_tuple_invert(&ret->key.orig, IPPROTO_UDP, &ret->reply);
}

int ct_apply_keeps_labels(CtApply *a)
{
	CtBuild how = {.create = true, .timeout = 1};
	CtExtra extra;
	CtRecord r;
	int err;

	if (!probe_record(a, &r, &extra))
		return -ENODATA;
	a->found_valid = false;
	ct_build(ct_batch_add(a->batch, IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, r.key.family,
			      ct_apply_tag(OP_OTHER, 0)),
		 &r, &how);
	ct_build_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_GET, 0, r.key.family, ct_apply_tag(OP_LOOK_UP, 0)), &r.key);
	ct_build_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, r.key.family, ct_apply_tag(OP_OTHER, 0)), &r.key);
	err = ct_batch_flush(a->batch);
	if (err < 0 || !a->found_valid)
		return err < 0 ? err : -ENODATA;
	return (a->found.has & CT_HAS_LABELS) != 0;
}
