/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "companions/conntrack.h"
#include "companions/counters.h"

/* The state itself: a VM's entries as bytes, from a table that is kept current, and bytes as entries of the kernel's. */
typedef struct State State;

/**
 * struct StateSpec - whose entries, and how
 * @format:       of what is saved, FORMAT_WIRE or FORMAT_SAVE
 * @max_entries:  load no more
 * @settle_usec:  what was loaded is set right so long afterwards
 */
typedef struct StateSpec {
	const CtSelect *select;
	Format format;
	uint64_t max_entries, settle_usec;
} StateSpec;

/**
 * struct StateReport - what has become of it
 * @followed: entries there are now
 * @migrated: saved or loaded last
 * @late:     of the last load: made after QEMU had been answered, so while the guest ran
 * @count:    of saves that were asked for, and loads; not of what a door did without us
 */
typedef struct StateReport {
	uint64_t followed;
	uint32_t migrated, late;
	Counters count;
} StateReport;

/** state_new() - begin to follow; returns once the whole table is known. Return: 0 or negative errno with @err set */
int state_new(sd_event *event, const StateSpec *spec, State **ret, Error **err);
State *state_free(State *state);

/** state_save() - what QEMU asks for: 1 to VMSTATE_MAX bytes to @to. Return: their number */
size_t state_save(State *state, uint8_t *to);

/** state_copy() - the same, when QEMU has not asked. Return: number of bytes */
size_t state_copy(State *state, uint8_t *to);

/** state_changes() - never 0, and another number when there has been a change */
uint64_t state_changes(const State *state);

/**
 * state_load() - make entries of bytes, most missed first
 * @until: microsecond of the monotonic clock at which QEMU is answered at the latest; may be made earlier meanwhile
 *
 * What is not made by then is made afterwards by the loop, and counted. A load that is not through yet ends with this one.
 * Return: whether all is done.
 */
bool state_load(State *state, const void *data, size_t len, const _Atomic uint64_t *until);

/** state_finish() - do now what is left of a load */
void state_finish(State *state);

/** state_settle_behind() - have what was loaded set right by a child, if that is still to come */
void state_settle_behind(State *state);

void state_report(const State *state, StateReport *ret);
