/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <linux/netfilter/nf_conntrack_common.h>

#include "netlink.h"
#include "table.h"

/* Between apply.c, which installs, and settle.c, which sets right afterwards. */

/*
 * Timeouts are not refreshed before the guest runs here, and the source does not hear of refreshes either: an entry is
 * held at least this long.
 */
#define CT_HOLD_SECONDS 600

/* What a message of the batch does, in the upper half of its tag; the lower half is the entry's index. */
typedef enum CtApplyOp {
	OP_CREATE,   /* first install; EEXIST: something lies there */
	OP_UPDATE,   /* of one of ours */
	OP_CLEAR,    /* make room for the OP_RECREATE that follows */
	OP_RECREATE, /* EEXIST: the reply tuple clashes with another entry */
	OP_FINAL,    /* the last try */
	OP_DELETE,   /* the source says it ended */
	OP_ROLLBACK,
	OP_SETTLE,  /* how does it look now? */
	OP_LOOK_UP, /* what is in the way? No index */
	OP_OTHER,   /* whose answer does not matter. No index */
} CtApplyOp;

static inline uint64_t ct_apply_tag(CtApplyOp op, uint32_t i)
{
	return (uint64_t)op << 32 | i;
}

typedef struct CtIndexes {
	uint32_t *items;
	size_t n, size;
} CtIndexes;

struct CtApply {
	CtSelect *allowed;
	CtApplyOptions options;
	CtTable table; /* what we installed */
	CtBatch *batch;
	CtIndexes retry, clash;
	CtIndexes lacking; /* refused as they were, to be made without what was not taken */
	CtTable waiting;   /* whole records whose master is not here yet */
	CtSelect *foreign;
	char **no_helper; /* names this kernel does not know */
	enum { LABELS_UNKNOWN, LABELS_KEPT, LABELS_LOST } labels;
	uint32_t labelled; /* index of an entry that was made with labels, or CT_NONE */
	uint64_t n_labelled;
	uint32_t settle_next; /* index that is settled next; 0: begin */
	sd_event_source *settle_source;
	void (*settle_done)(void *userdata, int result, const Error *err);
	void *settle_userdata;
	CtApplyStats stats;
	uint32_t now; /* second, monotonic, of the call that runs */
	uint64_t rolled_back;
	CtRecord found; /* what a look-up found */
	CtExtra found_extra;
	bool found_valid;
};

uint32_t ct_apply_seconds(void);

/** ct_apply_room() - flush unless @n more messages fit. Return: 0 or negative errno (there is room all the same) */
int ct_apply_room(CtApply *apply, unsigned n);

/*
 * The kernel keeps GRE's timeouts in the entry and cannot be told them: the first packet would set what is left to 0 (gre_timeout in
 * nf_conntrack_proto_gre.c). So GRE entries have a fixed timeout, as long as that of an idle TCP connection once there are answers.
 */
#define CT_GRE_SECONDS 432000

/** ct_apply_held() - the timeout an entry is given while it waits for its guest; a fixed one is never set right later */
static inline uint32_t ct_apply_held(const CtRecord *record)
{
	if (record->key.protocol == IPPROTO_GRE && !record->key.expect)
		return record->status & IPS_SEEN_REPLY ? CT_GRE_SECONDS : CT_HOLD_SECONDS;
	if (record->status & IPS_FIXED_TIMEOUT)
		return record->timeout ?: 1;
	return record->timeout > CT_HOLD_SECONDS ? record->timeout : CT_HOLD_SECONDS;
}

/** ct_settle_compare() - the kernel's present view of entry @i: decide what is to be set */
void ct_settle_compare(CtApply *apply, uint32_t i, const struct nlmsghdr *nlh);
