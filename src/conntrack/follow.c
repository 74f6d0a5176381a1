/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "follow.h"

#include <linux/netfilter/nf_conntrack_common.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "wire.h"

CtFollow *ct_follow_alloc(const CtSelect *select)
{
	CtFollow *f = xcalloc(1, sizeof(*f));

	f->event_fd = f->expect_fd = f->dump_fd = -1;
	f->select = ct_select_copy(select);
	ct_table_init(&f->table);
	return f;
}

void ct_follow_free(CtFollow *f)
{
	if (!f)
		return;
	ct_other_free(f->other);
	sd_event_unref(f->event);
	sd_event_source_disable_unref(f->event_source);
	sd_event_source_disable_unref(f->expect_source);
	sd_event_source_disable_unref(f->dump_source);
	fd_close(f->event_fd);
	fd_close(f->expect_fd);
	fd_close(f->dump_fd);
	ct_table_clear(&f->table);
	ct_select_free(f->select);
	free(f->delta);
	free(f);
}

int ct_follow_resync(CtFollow *f)
{
	if (f->table.dumping)
		return 0;
	return f->other ? ct_follow_other_begin(f) : ct_follow_kernel_dump(f);
}

int ct_follow_drain(CtFollow *f)
{
	if (f->other)
		return ct_follow_other_read(f, CT_OTHER_DRAIN_USEC, NULL);
	return ct_follow_kernel_events(f, INT32_MAX);
}

/* One change as a record; 0 bytes when there is nothing to say of it. */
static size_t write_change(CtFollow *f, uint32_t i, uint8_t *to)
{
	const CtEntry *e = ct_table_at(&f->table, i);
	CtRecord record = e->record;
	CtWireOp op = CT_WIRE_PUT;
	size_t n;

	if (record.has & CT_HAS_CILIUM)
		record.timeout = ct_record_left(&record, (uint32_t)(now_usec() / USEC_PER_SEC));
	if (e->flags & CT_ENTRY_GONE)
		op = CT_WIRE_DELETE;
	else if (e->flags & CT_ENTRY_RENEWED)
		op = CT_WIRE_REPLACE;
	n = ct_wire_record(to, op, &record);
	ct_table_handed_out(&f->table, i);
	return n;
}

size_t ct_follow_delta(CtFollow *f, size_t max, const uint8_t **ret, size_t *ret_records)
{
	size_t want, len = CT_WIRE_HEADER, count = 0;
	uint32_t i;

	assert(max >= 4096);
	if (f->n_adjusted)
		ct_follow_kernel_adjusted(f);
	want = CT_WIRE_HEADER + (size_t)f->table.n_dirty * CT_WIRE_RECORD_MAX;
	if (want > max)
		want = max;
	if (want > f->delta_size)
		f->delta = xrealloc(f->delta, f->delta_size = want, 1);
	while ((i = ct_table_next_change(&f->table)) != CT_NONE && len + CT_WIRE_RECORD_MAX <= want) {
		len += write_change(f, i, f->delta + len);
		count++;
	}
	if (ret_records)
		*ret_records = count;
	*ret = f->delta;
	if (!count)
		return 0;
	ct_wire_header(f->delta, len, (uint32_t)count);
	return len;
}

size_t ct_follow_snapshot(const CtFollow *f, uint8_t *to, size_t max, size_t *ret_records, size_t *ret_left)
{
	return ct_table_snapshot(&f->table, to, max, ret_records, ret_left);
}

static bool is_bound(const CtRecord *r, const CtSelect *own)
{
	return ((r->status & IPS_SRC_NAT) && ct_select_has(own, r->key.family, r->reply.dst)) ||
	       ((r->status & IPS_DST_NAT) && ct_select_has(own, r->key.family, r->key.orig.dst));
}

size_t ct_follow_bound(const CtFollow *f, const CtSelect *own, char *example, size_t size)
{
	size_t n = 0;

	*example = '\0';
	for (uint32_t i = 0; i < f->table.used; i++) {
		const CtEntry *e = ct_table_at(&f->table, i);

		if (!ct_table_in_use(&f->table, i) || (e->flags & CT_ENTRY_GONE) || e->record.key.expect ||
		    !is_bound(&e->record, own))
			continue;
		if (n++ == 0)
			ct_record_describe(&e->record, example, size);
	}
	return n;
}

void ct_follow_summary(const CtFollow *f, CtSummary *ret)
{
	ct_table_summary(&f->table, ret);
	ret->complete = f->stats.complete;
}

bool ct_follow_pending(const CtFollow *f)
{
	return f->n_adjusted || ct_table_next_change(&f->table) != CT_NONE;
}

void ct_follow_stats(const CtFollow *f, CtFollowStats *ret)
{
	*ret = f->stats;
	ret->entries = f->table.live;
	ret->untold = f->table.untold;
}
