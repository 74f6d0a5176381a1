/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "record.h"

/*
 * A table of connections that is not the kernel's, such as Cilium's: it is read whole and written in pieces, it tells
 * no events, and nothing can be deleted from it.
 */

#define CT_OTHER_READ_USEC 5000000 /* for all of it */
#define CT_OTHER_DRAIN_USEC 200000 /* the same while the guest is stopped */

/** CtOtherRecord - takes a record of the table; valid during the call */
typedef void (*CtOtherRecord)(void *userdata, const CtRecord *record);
/** CtOtherDone - the table is through: 0, or negative errno with the error */
typedef void (*CtOtherDone)(void *userdata, int result, const Error *err);

/**
 * struct CtOther - a table, and its methods
 * @map: CT_MAP_... of its records
 * @read: read what belongs to @select, within @usec. Records go to @record only after all of it was read. A read that
 *        was begun is given up, without a call. Return: 0 or negative errno with @err set
 * @read_begin: the same from a loop; @done is called once, if this returns 0
 * @write: write records; one with a timeout of 1 s is to end. Return: 0 or negative errno with @err set, nothing is
 * known of what was written then
 * @free: free it
 */
struct CtOther {
	uint8_t map;
	int (*read)(CtOther *other, const CtSelect *select, uint64_t usec, CtOtherRecord record, void *userdata,
		    Error **err);
	int (*read_begin)(CtOther *other, sd_event *event, const CtSelect *select, CtOtherRecord record,
			  CtOtherDone done, void *userdata);
	int (*write)(CtOther *other, const CtRecord *const *records, size_t n, Error **err);
	void (*free)(CtOther *other);
};

/** ct_other_free() - NULL is fine */
static inline void ct_other_free(CtOther *other)
{
	if (other)
		other->free(other);
}
DEFINE_CLEANUP(CtOther *, ct_other_free)
