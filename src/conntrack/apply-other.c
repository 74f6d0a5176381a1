/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sink of another table than the kernel's: what was let in is collected and written together. */
#include "apply.h"

#include <stdlib.h>

#include "basic/text.h"

#define PENDING_MAX 8192
#define ENDING_SECONDS 1 /* nothing can be deleted */

static void add_pending(CtApply *a, uint32_t i)
{
	CtEntry *e = ct_table_at(&a->table, i);

	if (e->flags & CT_ENTRY_BUSY)
		return;
	e->flags |= CT_ENTRY_BUSY;
	ct_indexes_add(&a->pending, i);
}

/* Write what is pending, once. Return: 0 or negative errno with @err set. */
static int write_pending(CtApply *a, Error **err)
{
	_cleanup_free_ const CtRecord **records = xcalloc(a->pending.n + 1, sizeof(*records));

	for (size_t n = 0; n < a->pending.n; n++)
		records[n] = &ct_table_at(&a->table, a->pending.items[n])->record;
	return a->pending.n ? a->other->write(a->other, records, a->pending.n, err) : 0;
}

static void written(CtApply *a, uint32_t i, int result, const Error *err)
{
	CtEntry *e = ct_table_at(&a->table, i);

	e->flags &= (uint16_t)~CT_ENTRY_BUSY;
	if (e->flags & CT_ENTRY_ENDING)
		ct_apply_forget(a, i);
	else if (result < 0)
		ct_apply_fail_because(a, i, CT_REASON_OTHER, err->message);
	else
		e->flags |= CT_ENTRY_SENT;
}

static int finish(CtApply *a)
{
	_cleanup_error_ Error *err = NULL;
	int r = write_pending(a, &err);

	for (size_t n = 0; n < a->pending.n; n++)
		written(a, a->pending.items[n], r, err);
	a->pending.n = 0;
	return r;
}

void ct_apply_other_finish(CtApply *a)
{
	(void)finish(a);
}

static void end(CtApply *a, uint32_t i)
{
	CtEntry *e = ct_table_at(&a->table, i);

	e->record.timeout = ENDING_SECONDS;
	e->flags |= CT_ENTRY_ENDING;
	add_pending(a, i);
}

static void put(CtApply *a, const CtRecord *record)
{
	uint32_t i = ct_table_find(&a->table, &record->key);

	if (!ct_guard_entry(a, record))
		return;
	if (i == CT_NONE && a->table.live >= a->options.max_entries) {
		ct_apply_other_finish(a); /* some may end */
		i = ct_table_find(&a->table, &record->key);
	}
	if (i == CT_NONE && a->table.live >= a->options.max_entries) {
		ct_apply_refuse(a, record, CT_REASON_LIMIT, NULL);
		return;
	}
	if (i == CT_NONE)
		i = ct_table_insert(&a->table, &record->key);
	ct_record_assign(&ct_table_at(&a->table, i)->record, record);
	ct_table_at(&a->table, i)->flags &= (uint16_t)~CT_ENTRY_ENDING;
	add_pending(a, i);
}

int ct_apply_other(CtApply *a, CtWireOp op, const CtRecord *record)
{
	uint32_t i;

	if (op != CT_WIRE_DELETE)
		put(a, record);
	else if ((i = ct_table_find(&a->table, &record->key)) != CT_NONE)
		end(a, i);
	if (a->pending.n >= PENDING_MAX)
		ct_apply_other_finish(a);
	return 0;
}

int ct_apply_other_rollback(CtApply *a)
{
	int n = 0, r = 0;

	for (uint32_t i = 0; r >= 0 && i < a->table.used; i++) {
		if (!ct_table_in_use(&a->table, i))
			continue;
		end(a, i);
		n++;
		if (a->pending.n >= PENDING_MAX)
			r = finish(a);
	}
	if (r >= 0)
		r = finish(a);
	return r < 0 ? r : n;
}
