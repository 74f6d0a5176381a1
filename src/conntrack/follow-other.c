/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "basic/log.h"
#include "follow.h"

static void on_other_record(void *userdata, const CtRecord *record)
{
	CtFollow *f = userdata;

	if (ct_record_selected(record, f->select))
		ct_table_dump_record(&f->table, record);
}

static void on_other_done(void *userdata, int result, const Error *err)
{
	CtFollow *f = userdata;

	if (result < 0)
		log_debug("conntrack: %s", err ? err->message : strerror(-result));
	ct_table_dump_end(&f->table, result >= 0);
	f->stats.complete = result >= 0;
	f->stats.dumps += result >= 0;
	f->stats.interrupted += result < 0;
}

/* A read that was begun is not finished any more. */
int ct_follow_other_read(CtFollow *f, uint64_t usec, Error **err)
{
	_cleanup_error_ Error *own = NULL;
	int r;

	ct_table_dump_begin(&f->table);
	r = f->other->read(f->other, f->select, usec, on_other_record, f, &own);
	on_other_done(f, r, own);
	return r < 0 ? error_set(err, r, "%s", own ? own->message : strerror(-r)) : 0;
}

int ct_follow_other_begin(CtFollow *f)
{
	int r;

	ct_table_dump_begin(&f->table);
	r = f->other->read_begin(f->other, f->event, f->select, on_other_record, on_other_done, f);
	if (r < 0)
		on_other_done(f, r, NULL);
	return r;
}

int ct_follow_new_of(sd_event *event, const CtSelect *select, CtOther *other, CtFollow **ret, Error **err)
{
	_cleanup_(ct_follow_freep)
	CtFollow *f = ct_follow_alloc(select);
	int r;

	f->other = other;
	f->event = sd_event_ref(event);
	r = ct_follow_other_read(f, CT_OTHER_READ_USEC, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(f);
	return 0;
}
