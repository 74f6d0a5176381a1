/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The sink: records in, in their order. What belongs to another connection, a child or an expectation, waits until that
 * one is here; so masters come before children, wherever they stand in the stream.
 */
#include "apply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "wire.h"

/* Those without their master are few; each delta looks at all of them. */
#define WAITING_MAX 4096

static CtApply *apply_alloc(const CtSelect *allowed, const CtApplyOptions *options)
{
	CtApply *a = xcalloc(1, sizeof(*a));

	ct_table_init(&a->table);
	ct_table_init(&a->waiting);
	a->labelled = CT_NONE;
	a->allowed = ct_select_copy(allowed);
	a->options = *options;
	a->foreign = options->foreign ? ct_select_copy(options->foreign) : NULL;
	a->helpers = strv_copy(options->helpers);
	return a;
}

int ct_apply_new(const CtSelect *allowed, const CtApplyOptions *options, CtApply **ret, Error **err)
{
	_cleanup_(ct_apply_freep)
	CtApply *a = apply_alloc(allowed, options);
	int r = ct_install_open(a, err);

	if (r < 0)
		return r;
	*ret = TAKE_PTR(a);
	return 0;
}

CtApply *ct_apply_new_of(const CtSelect *allowed, const CtApplyOptions *options, CtOther *other)
{
	CtApply *a = apply_alloc(allowed, options);

	a->other = other;
	return a;
}

void ct_apply_free(CtApply *a)
{
	if (!a)
		return;
	if (a->batch)
		fd_close(a->batch->fd);
	free(a->batch);
	ct_other_free(a->other);
	free(a->pending.items);
	free(a->retry.items);
	free(a->clash.items);
	free(a->lacking.items);
	strv_free(a->helpers);
	strv_free(a->no_helper);
	sd_event_source_disable_unref(a->settle_source);
	ct_sweep_free(a->sweep);
	ct_table_clear(&a->table);
	ct_table_clear(&a->waiting);
	ct_select_free(a->allowed);
	ct_select_free(a->foreign);
	free(a);
}

uint32_t ct_apply_seconds(void)
{
	return (uint32_t)(now_usec() / USEC_PER_SEC);
}

/* ---- masters ---- */

/* Index of a record's master, through which nothing is under way, or CT_NONE. It may be in the zone in another way. */
static uint32_t find_master(const CtApply *a, const CtRecord *record)
{
	uint32_t i = CT_NONE;
	CtKey key;

	if (!ct_record_master(record, &key))
		return CT_NONE;
	i = ct_install_find(a, &key);
	for (uint8_t dir = 0; i == CT_NONE && key.zone && dir <= CT_ZONE_MAX; dir++) {
		key.zone_dir = dir;
		i = ct_install_find(a, &key);
	}
	return i;
}

/*
 * Of GRE packets of PPTP only the key of the side they go to is in them. The other is told by a map of the PPTP helper
 * (gre_keymap_lookup() in nf_conntrack_proto_gre.c) that cannot be carried; without it both directions' tuples have 0 in its
 * place. With NAT the kernel makes the reply tuple itself: nothing can be done. Return: whether there was a key to forget.
 */
static bool forget_source_key(CtKey *key)
{
	if (key->protocol != IPPROTO_GRE || key->expect || !key->orig.a || !key->orig.b)
		return false;
	key->orig.a = 0;
	return true;
}

/* Let in what is complete; @master: index, or CT_NONE for a child that has to do without. */
static int let_in(CtApply *a, const CtRecord *record, bool replace, uint32_t master)
{
	CtRecord r = *record;
	unsigned lacks;

	if (r.key.expect)
		return ct_guard_expectation(a, record, &ct_table_at(&a->table, master)->record)
			       ? ct_install_put(a, record, false, 0)
			       : 0;
	if (!ct_guard_entry(a, record))
		return 0;
	if (!(r.status & IPS_NAT_MASK) && forget_source_key(&r.key))
		r.reply.a = 0;
	lacks = ct_guard_strip(a, &r);
	if ((r.has & CT_HAS_MASTER) && master == CT_NONE) {
		r.has &= (uint16_t)~CT_HAS_MASTER;
		lacks |= CT_ENTRY_NO_MASTER;
	}
	return ct_install_put(a, &r, replace, lacks);
}

static void forget_waiting(CtApply *a, const CtKey *key)
{
	uint32_t i = a->waiting.live ? ct_table_find(&a->waiting, key) : CT_NONE;

	if (i != CT_NONE)
		ct_table_remove(&a->waiting, i);
}

/* Let in those whose master is here by now. Return: how many, or negative errno. */
static int let_in_ready(CtApply *a)
{
	int r = 0, n = 0;

	for (uint32_t i = 0; r >= 0 && i < a->waiting.used; i++) {
		CtEntry *e = ct_table_at(&a->waiting, i);
		uint32_t master = e->record.key.family ? find_master(a, &e->record) : CT_NONE;

		if (master == CT_NONE)
			continue;
		r = let_in(a, &e->record, e->flags & CT_ENTRY_RENEWED, master);
		ct_table_remove(&a->waiting, i);
		n++;
	}
	return r < 0 ? r : n;
}

/* A child whose master does not come is made without it, and anew should it come after all. */
static int let_in_without(CtApply *a)
{
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < a->waiting.used; i++) {
		CtEntry *e = ct_table_at(&a->waiting, i);

		if (!e->record.key.family || e->record.key.expect || (e->flags & CT_ENTRY_SENT))
			continue;
		e->flags |= CT_ENTRY_SENT;
		r = let_in(a, &e->record, e->flags & CT_ENTRY_RENEWED, CT_NONE);
	}
	return r;
}

/* Return: 0 or negative errno; nothing is under way then. */
static int apply_waiting(CtApply *a)
{
	int r, n = 1;

	if (a->other) {
		ct_apply_other_finish(a);
		return 0;
	}
	r = ct_install_finish(a);

	/* Children may be masters themselves. */
	while (r >= 0 && n > 0 && a->waiting.live) {
		n = let_in_ready(a);
		r = n < 0 ? n : ct_install_finish(a);
	}
	if (r >= 0 && a->waiting.live)
		r = let_in_without(a);
	return r < 0 ? r : ct_install_finish(a);
}

static int wait_for_master(CtApply *a, const CtRecord *record, bool replace)
{
	uint32_t i = ct_table_find(&a->waiting, &record->key);
	CtEntry *e;
	int r;

	if (i == CT_NONE && a->waiting.live >= WAITING_MAX) {
		r = apply_waiting(a);
		if (r < 0)
			return r;
	}
	if (i == CT_NONE && a->waiting.live >= WAITING_MAX) {
		if (!record->key.expect)
			return let_in(a, record, replace, CT_NONE);
		ct_apply_refuse(a, record, CT_REASON_GONE, NULL);
		return 0;
	}
	if (i == CT_NONE)
		i = ct_table_insert(&a->waiting, &record->key);
	e = ct_table_at(&a->waiting, i);
	e->flags = (uint16_t)(replace ? CT_ENTRY_RENEWED : e->flags & CT_ENTRY_RENEWED);
	ct_record_assign(&e->record, record);
	return 0;
}

/* ---- deltas ---- */

static int end_entry(CtApply *a, CtKey key)
{
	int r = ct_install_drop(a, &key);

	return r >= 0 && forget_source_key(&key) ? ct_install_drop(a, &key) : r;
}

static int apply_record(CtApply *a, CtWireOp op, const CtRecord *record)
{
	if (record->key.map != (a->other ? a->other->map : CT_MAP_KERNEL)) {
		ct_apply_refuse(a, record, CT_REASON_UNSUPPORTED, "of another kind of table than this one");
		return 0;
	}
	if (a->other)
		return ct_apply_other(a, op, record);
	switch (op) {
	case CT_WIRE_PUT:
	case CT_WIRE_REPLACE:
		if (record->has & CT_HAS_MASTER)
			return wait_for_master(a, record, op == CT_WIRE_REPLACE);
		forget_waiting(a, &record->key);
		return let_in(a, record, op == CT_WIRE_REPLACE, CT_NONE);
	case CT_WIRE_DELETE:
		forget_waiting(a, &record->key);
		return end_entry(a, record->key);
	}
	return 0;
}

static int apply_all(CtApply *a, const void *data, size_t len)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	int r = 0, s;

	ct_wire_read(&reader, data, len);
	while (r >= 0 && (s = ct_wire_next(&reader, &op, &record)) != 0) {
		a->stats.received++;
		if (s == -EINVAL)
			ct_apply_refuse(a, &record, CT_REASON_MALFORMED, reader.why);
		else
			r = apply_record(a, op, &record);
	}
	s = apply_waiting(a);
	return r < 0 ? r : s;
}

/*
 * Where no rule of the host uses labels, the kernel takes them without a word and keeps none: look once what became of
 * them.
 */
static int learn_labels(CtApply *a)
{
	int r;

	if (a->labels != LABELS_UNKNOWN || a->labelled == CT_NONE || !ct_table_in_use(&a->table, a->labelled) ||
	    !(ct_table_at(&a->table, a->labelled)->record.has & CT_HAS_LABELS))
		return 0;
	r = ct_install_look_up(a, &ct_table_at(&a->table, a->labelled)->record, false);
	if (r < 0 || !a->found_valid)
		return r;
	a->labels = a->found.has & CT_HAS_LABELS ? LABELS_KEPT : LABELS_LOST;
	for (uint32_t i = 0; a->labels == LABELS_LOST && i < a->table.used; i++)
		if (ct_table_at(&a->table, i)->record.has & CT_HAS_LABELS) {
			ct_table_at(&a->table, i)->record.has &= (uint16_t)~CT_HAS_LABELS;
			ct_apply_lacks(a, i, CT_ENTRY_NO_LABELS, true);
		}
	return 0;
}

int ct_apply_delta(CtApply *a, const void *data, size_t len, Error **err)
{
	const char *why;
	size_t n;
	int r;

	r = ct_wire_check(data, len, &n, &why);
	if (r < 0)
		return error_set(err, r, "Connection records: %s", why);
	a->now = ct_apply_seconds();
	r = apply_all(a, data, len);
	if (r >= 0)
		r = learn_labels(a);
	return r < 0 ? error_set(err, r, "Cannot install connections: %s", strerror(-r)) : 0;
}

int ct_apply_rollback(CtApply *a)
{
	int r = 0;

	if (a->other)
		return ct_apply_other_rollback(a);
	a->rolled_back = 0;
	for (uint32_t i = 0; r >= 0 && i < a->table.used; i++)
		if (ct_table_in_use(&a->table, i)) {
			r = ct_install_room(a, 1);
			ct_install_delete(a, i, OP_ROLLBACK);
		}
	if (r >= 0)
		r = ct_batch_flush(a->batch);
	if (r < 0)
		return r;
	ct_table_clear(&a->table);
	ct_table_init(&a->table);
	return (int)a->rolled_back;
}

void ct_apply_stats(const CtApply *a, CtApplyStats *ret)
{
	*ret = a->stats;
	ret->applied = a->table.live;
	for (uint32_t i = 0; a->waiting.live && i < a->waiting.used; i++)
		ret->reasons[CT_REASON_MASTER] += ct_table_at(&a->waiting, i)->record.key.expect;
}
