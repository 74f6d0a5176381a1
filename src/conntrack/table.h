/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "record.h"

/*
 * The merged table: entries by original tuple and zone, in slabs, named by index. The follower feeds it events and
 * dumps and takes from it what changed; the sink keeps in it what it installed.
 *
 * Dumps and events race. Between ct_table_dump_begin() and ct_table_dump_end() an entry that an event spoke of takes
 * from the dump only what it lacks, and an entry that an event deleted is remembered, so that older data of a dump
 * never overwrite newer data of an event. What neither spoke of by the end is gone.
 */

#define CT_NONE UINT32_MAX

enum {
	CT_ENTRY_DIRTY = 1 << 0,     /* in the list of changes */
	CT_ENTRY_GONE = 1 << 1,	     /* deleted, remembered until handed out and for as long as a dump runs */
	CT_ENTRY_SENT = 1 << 2,	     /* the other side has it: the follower's peer, the sink's kernel */
	CT_ENTRY_RENEWED = 1 << 3,   /* another connection than the one handed out, with the same tuple */
	CT_ENTRY_BUSY = 1 << 4,	     /* sink: a message about it waits for the kernel's answer */
	CT_ENTRY_UNTOUCHED = 1 << 5, /* sink: no packet since, the timeout is still the one we gave */
	CT_ENTRY_LENIENT = 1 << 6,   /* sink: window checks are still off */
	CT_ENTRY_NO_HELPER = 1 << 7, /* sink: it is there, but without these */
	CT_ENTRY_NO_LABELS = 1 << 8,
	CT_ENTRY_NO_MASTER = 1 << 9,
	CT_ENTRY_NO_MARK = 1 << 10,
	CT_ENTRY_ENDING = 1 << 11, /* sink of another table: it was told to end, and is forgotten once that is written */
};

typedef struct CtEntry {
	CtRecord record;
	uint32_t next; /* of the unused ones */
	uint32_t dirty_prev, dirty_next;
	uint32_t seen;	 /* number of the dump that saw it last, or ran when an event spoke of it */
	uint32_t spoken; /* number of the dump that ran when an event spoke of it */
	uint32_t held;	 /* sink: second at which it got its present timeout */
	uint16_t flags;
} CtEntry;

/* Where a key's search begins, and goes on: what it meets there is not read unless its hash is the same. */
typedef struct CtSlot {
	uint32_t hash;
	uint32_t index; /* CT_NONE: empty */
} CtSlot;

typedef struct CtTable {
	CtEntry **slabs;
	size_t n_slabs;
	CtSlot *slots;
	uint32_t n_slots; /* a power of two, at least half of them empty */
	uint32_t used;	    /* indexes ever handed out */
	uint32_t free;	    /* list of unused ones */
	uint32_t live;	    /* entries that are not gone */
	uint32_t gone;
	uint32_t dirty_first, dirty_last, n_dirty;
	uint32_t dump; /* number of the latest dump, 0: none yet */
	bool dumping;
	uint64_t untold; /* changes found by a later dump than the first */
	uint64_t seed[2];
} CtTable;

/** ct_table_init() - an empty table */
void ct_table_init(CtTable *table);
/** ct_table_clear() - free all that is in it; ct_table_init() makes it usable again */
void ct_table_clear(CtTable *table);

/** ct_table_at() - the entry of an index; the address stays while the entry lives */
static inline CtEntry *ct_table_at(const CtTable *table, uint32_t i)
{
	return &table->slabs[i >> 12][i & 4095];
}

/** ct_table_in_use() - whether an index below @table->used names an entry; a free one has no family */
static inline bool ct_table_in_use(const CtTable *table, uint32_t i)
{
	return ct_table_at(table, i)->record.key.family != 0;
}

/** ct_table_find() - index of the entry with this key, or CT_NONE */
uint32_t ct_table_find(const CtTable *table, const CtKey *key);
/** ct_table_insert() - a new entry, all of it zero but the key, which must not be there yet */
uint32_t ct_table_insert(CtTable *table, const CtKey *key);
/** ct_table_remove() - forget an entry at once */
void ct_table_remove(CtTable *table, uint32_t i);

/** ct_table_event() - the kernel said that an entry is new (@is_new) or has changed */
void ct_table_event(CtTable *table, const CtRecord *record, bool is_new);
/** ct_table_destroyed() - the kernel said that an entry is gone */
void ct_table_destroyed(CtTable *table, const CtRecord *record);

/** ct_table_answer() - what the kernel answered when it was asked for one entry: fills gaps of what is known of it; of
 * sequence adjustments no event tells, so these are taken over */
void ct_table_answer(CtTable *table, const CtRecord *record);

/** ct_table_dump_begin() - a dump of the kernel's table begins; what events speak of from here on is newer than it */
void ct_table_dump_begin(CtTable *table);
/** ct_table_dump_record() - an entry of the dump; of what an event spoke of since it began, only gaps are filled */
void ct_table_dump_record(CtTable *table, const CtRecord *record);
/** ct_table_dump_end() - @complete: the dump was whole, what it did not show is gone */
void ct_table_dump_end(CtTable *table, bool complete);

/** ct_table_next_change() - the change that waits longest, or CT_NONE */
static inline uint32_t ct_table_next_change(const CtTable *table)
{
	return table->dirty_first;
}
/** ct_table_summary() - see ct_follow_summary() */
void ct_table_summary(const CtTable *table, CtSummary *ret);

/** ct_table_snapshot() - see ct_follow_snapshot() */
size_t ct_table_snapshot(const CtTable *table, uint8_t *to, size_t max, size_t *ret_records, size_t *ret_left);

/** ct_table_handed_out() - a change was handed out: off the list; the entry may be forgotten by this */
void ct_table_handed_out(CtTable *table, uint32_t i);
