/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "basic/text.h"

#define SLAB 4096
#define SLOTS_MIN 1024

static_assert(sizeof(CtKey) == 44, "hashed as 11 words, no padding");
static_assert(sizeof(CtEntry) <= 160, "memory per followed connection");

static inline uint64_t rotl(uint64_t x, int n)
{
	return x << n | x >> (64 - n);
}

static inline void sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[1] = rotl(v[1], 13) ^ v[0];
	v[0] = rotl(v[0], 32);
	v[2] += v[3];
	v[3] = rotl(v[3], 16) ^ v[2];
	v[0] += v[3];
	v[3] = rotl(v[3], 21) ^ v[0];
	v[2] += v[1];
	v[1] = rotl(v[1], 17) ^ v[2];
	v[2] = rotl(v[2], 32);
}

/* SipHash-1-3 with a random key: guests and peers choose the tuples, and must not choose the slots. */
static uint32_t hash_of(const CtTable *table, const CtKey *key)
{
	uint64_t v[4] = {table->seed[0] ^ 0x736f6d6570736575, table->seed[1] ^ 0x646f72616e646f6d,
			 table->seed[0] ^ 0x6c7967656e657261, table->seed[1] ^ 0x7465646279746573};
	uint64_t words[6] = {};

	memcpy(words, key, sizeof(*key));
	words[5] |= (uint64_t)sizeof(*key) << 56;
	for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
		v[3] ^= words[i];
		sip_round(v);
		v[0] ^= words[i];
	}
	v[2] ^= 0xff;
	for (int i = 0; i < 3; i++)
		sip_round(v);
	return (uint32_t)(v[0] ^ v[1] ^ v[2] ^ v[3]);
}

static void slots_new(CtTable *table, uint32_t n)
{
	table->slots = xcalloc(n, sizeof(CtSlot));
	memset(table->slots, 0xff, n * sizeof(CtSlot));
	table->n_slots = n;
}

void ct_table_init(CtTable *table)
{
	*table = (CtTable){.free = CT_NONE, .dirty_first = CT_NONE, .dirty_last = CT_NONE};
	if (getrandom(table->seed, sizeof(table->seed), 0) != sizeof(table->seed))
		abort();
	slots_new(table, SLOTS_MIN);
}

void ct_table_clear(CtTable *table)
{
	for (uint32_t i = 0; i < table->used; i++)
		free(ct_table_at(table, i)->record.extra);
	for (size_t i = 0; i < table->n_slabs; i++)
		free(table->slabs[i]);
	free(table->slabs);
	free(table->slots);
	*table = (CtTable){};
}

static uint32_t next_slot(const CtTable *table, uint32_t slot)
{
	return (slot + 1) & (table->n_slots - 1);
}

static void slot_fill(CtTable *table, CtSlot what)
{
	uint32_t slot = what.hash & (table->n_slots - 1);

	while (table->slots[slot].index != CT_NONE)
		slot = next_slot(table, slot);
	table->slots[slot] = what;
}

/* Those behind it that would not be found any more across the gap move up (Knuth, 6.4, algorithm R). */
static void slot_clear(CtTable *table, uint32_t slot)
{
	uint32_t mask = table->n_slots - 1;

	for (uint32_t i = next_slot(table, slot); table->slots[i].index != CT_NONE; i = next_slot(table, i))
		if (((i - table->slots[i].hash) & mask) >= ((i - slot) & mask)) {
			table->slots[slot] = table->slots[i];
			slot = i;
		}
	table->slots[slot].index = CT_NONE;
}

static void grow_slots(CtTable *table)
{
	_cleanup_free_ CtSlot *old = table->slots;
	uint32_t n = table->n_slots;

	slots_new(table, n * 2);
	for (uint32_t i = 0; i < n; i++)
		if (old[i].index != CT_NONE)
			slot_fill(table, old[i]);
}

uint32_t ct_table_find(const CtTable *table, const CtKey *key)
{
	uint32_t hash = hash_of(table, key), slot = hash & (table->n_slots - 1);
	const CtSlot *s;

	for (; (s = &table->slots[slot])->index != CT_NONE; slot = next_slot(table, slot))
		if (s->hash == hash && memcmp(&ct_table_at(table, s->index)->record.key, key, sizeof(*key)) == 0)
			break;
	return s->index;
}

static uint32_t take_index(CtTable *table)
{
	uint32_t i = table->free;

	if (i != CT_NONE) {
		table->free = ct_table_at(table, i)->next;
		return i;
	}
	if (table->used == table->n_slabs * SLAB) {
		table->slabs = xrealloc(table->slabs, table->n_slabs + 1, sizeof(*table->slabs));
		table->slabs[table->n_slabs++] = xcalloc(SLAB, sizeof(CtEntry));
	}
	return table->used++;
}

uint32_t ct_table_insert(CtTable *table, const CtKey *key)
{
	uint32_t i;

	if (table->live + table->gone >= table->n_slots / 2)
		grow_slots(table);
	i = take_index(table);
	*ct_table_at(table, i) = (CtEntry){.record.key = *key};
	slot_fill(table, (CtSlot){.hash = hash_of(table, key), .index = i});
	table->live++;
	return i;
}

static void dirty_add(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	if (e->flags & CT_ENTRY_DIRTY)
		return;
	e->flags |= CT_ENTRY_DIRTY;
	e->dirty_prev = table->dirty_last;
	e->dirty_next = CT_NONE;
	if (table->dirty_last == CT_NONE)
		table->dirty_first = i;
	else
		ct_table_at(table, table->dirty_last)->dirty_next = i;
	table->dirty_last = i;
	table->n_dirty++;
}

static void dirty_remove(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	if (!(e->flags & CT_ENTRY_DIRTY))
		return;
	e->flags &= (uint16_t)~CT_ENTRY_DIRTY;
	if (e->dirty_prev == CT_NONE)
		table->dirty_first = e->dirty_next;
	else
		ct_table_at(table, e->dirty_prev)->dirty_next = e->dirty_next;
	if (e->dirty_next == CT_NONE)
		table->dirty_last = e->dirty_prev;
	else
		ct_table_at(table, e->dirty_next)->dirty_prev = e->dirty_prev;
	table->n_dirty--;
}

void ct_table_remove(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);
	uint32_t slot = hash_of(table, &e->record.key) & (table->n_slots - 1);

	dirty_remove(table, i);
	if (e->flags & CT_ENTRY_GONE)
		table->gone--;
	else
		table->live--;
	while (table->slots[slot].index != i)
		slot = next_slot(table, slot);
	slot_clear(table, slot);
	ct_record_clear(&e->record);
	*e = (CtEntry){.next = table->free};
	table->free = i;
}

/* Forget a deleted entry once nobody needs to know of it any more. */
static void forget(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	if ((e->flags & CT_ENTRY_GONE) && !(e->flags & CT_ENTRY_DIRTY) && !table->dumping)
		ct_table_remove(table, i);
}

static void bury(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	e->flags |= CT_ENTRY_GONE;
	table->live--;
	table->gone++;
	if (e->flags & CT_ENTRY_SENT)
		dirty_add(table, i);
	else
		dirty_remove(table, i);
	forget(table, i);
}

/* Another connection takes the place of the one that was here, which may be gone already. */
static void renew(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	if (e->flags & CT_ENTRY_GONE) {
		e->flags &= (uint16_t)~CT_ENTRY_GONE;
		table->live++;
		table->gone--;
	}
	if (e->flags & CT_ENTRY_SENT)
		e->flags |= CT_ENTRY_RENEWED;
	dirty_remove(table, i);
	e->record = (CtRecord){.key = e->record.key, .extra = e->record.extra};
}

static bool same_id(const CtRecord *a, const CtRecord *b)
{
	return !(a->has & b->has & CT_HAS_ID) || a->id == b->id;
}

static void changed(CtTable *table, uint32_t i)
{
	if (ct_record_complete(&ct_table_at(table, i)->record))
		dirty_add(table, i);
}

void ct_table_event(CtTable *table, const CtRecord *record, bool is_new)
{
	uint32_t i = ct_table_find(table, &record->key);
	CtEntry *e;

	if (i == CT_NONE) {
		i = ct_table_insert(table, &record->key);
		e = ct_table_at(table, i);
	} else {
		e = ct_table_at(table, i);
		if ((e->flags & CT_ENTRY_GONE) && !is_new && same_id(&e->record, record))
			return; /* an update that overtook the end of its connection */
		if ((e->flags & CT_ENTRY_GONE) || !same_id(&e->record, record))
			renew(table, i);
	}
	ct_record_merge(&e->record, record);
	e->seen = e->spoken = table->dump;
	changed(table, i);
}

void ct_table_destroyed(CtTable *table, const CtRecord *record)
{
	uint32_t i = ct_table_find(table, &record->key);
	CtEntry *e;

	if (i == CT_NONE) {
		if (!table->dumping)
			return;
		/* The running dump may still show it. */
		i = ct_table_insert(table, &record->key);
		ct_record_assign(&ct_table_at(table, i)->record, record);
	}
	e = ct_table_at(table, i);
	/* A late word of an earlier connection: the kernel repeats a destroy event it could not deliver. */
	if ((e->flags & CT_ENTRY_GONE) || !same_id(&e->record, record))
		return;
	e->seen = e->spoken = table->dump;
	bury(table, i);
}

void ct_table_dump_begin(CtTable *table)
{
	table->dump++;
	table->dumping = true;
}

/* Events are complete from the dump's beginning on: of what they spoke of, the dump can only fill gaps. */
static void dump_under_event(CtTable *table, uint32_t i, const CtRecord *record)
{
	CtEntry *e = ct_table_at(table, i);

	if ((e->flags & CT_ENTRY_GONE) || !same_id(&e->record, record) || !(record->has & ~e->record.has))
		return;
	ct_record_fill(&e->record, record);
	changed(table, i);
}

void ct_table_answer(CtTable *table, const CtRecord *record)
{
	uint32_t i = ct_table_find(table, &record->key);
	CtRecord adjusted = *record;
	CtEntry *e;

	if (i == CT_NONE)
		return;
	e = ct_table_at(table, i);
	adjusted.has &= CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY;
	if (adjusted.has && !(e->flags & CT_ENTRY_GONE) && same_id(&e->record, record) &&
	    !ct_record_same_extra(&e->record, record, adjusted.has)) {
		ct_record_merge(&e->record, &adjusted);
		changed(table, i);
	}
	dump_under_event(table, i, record);
}

/* What a receiver would do differently: a timeout that ran on is no change. */
static bool differs(const CtRecord *a, const CtRecord *b)
{
	return ((a->has ^ b->has) & ~(CT_HAS_MARK | CT_HAS_ID)) || a->status != b->status || a->mark != b->mark ||
	       memcmp(&a->reply, &b->reply, sizeof(a->reply)) != 0 || memcmp(&a->tcp, &b->tcp, sizeof(a->tcp)) != 0 ||
	       !ct_record_same_extra(a, b, CT_HAS_EXTRA) || ct_record_refreshed(a, b);
}

void ct_table_dump_record(CtTable *table, const CtRecord *record)
{
	uint32_t i = ct_table_find(table, &record->key);
	CtEntry *e;
	bool change;

	if (i == CT_NONE) {
		i = ct_table_insert(table, &record->key);
	} else if (ct_table_at(table, i)->spoken == table->dump) {
		dump_under_event(table, i, record);
		return;
	}
	e = ct_table_at(table, i);
	change = (e->flags & CT_ENTRY_GONE) || !same_id(&e->record, record) || differs(&e->record, record);
	if ((e->flags & CT_ENTRY_GONE) || !same_id(&e->record, record))
		renew(table, i);
	if (change || !(record->has & CT_HAS_CILIUM)) /* what a refresh is compared with is what was told */
		ct_record_assign(&e->record, record);
	e->seen = table->dump;
	table->untold += change && table->dump > 1;
	if (change)
		changed(table, i);
}

void ct_table_dump_end(CtTable *table, bool complete)
{
	table->dumping = false;
	if (table->dump == 1 && !table->gone)
		return; /* the first: all there is was seen by it or spoken of meanwhile */
	for (uint32_t i = 0; i < table->used; i++) {
		CtEntry *e = ct_table_at(table, i);

		if (!ct_table_in_use(table, i))
			continue;
		if (e->flags & CT_ENTRY_GONE)
			forget(table, i);
		else if (complete && e->seen != table->dump) {
			table->untold++;
			bury(table, i);
		}
	}
}

void ct_table_handed_out(CtTable *table, uint32_t i)
{
	CtEntry *e = ct_table_at(table, i);

	dirty_remove(table, i);
	e->flags &= (uint16_t) ~(CT_ENTRY_RENEWED | CT_ENTRY_SENT);
	if (!(e->flags & CT_ENTRY_GONE))
		e->flags |= CT_ENTRY_SENT;
	forget(table, i);
}
