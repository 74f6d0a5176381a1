/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <linux/netfilter/nf_conntrack_common.h>

#include "netlink.h"
#include "other.h"
#include "table.h"
#include "wire.h"

/*
 * Inside of the sink: apply.c reads records and puts them in order, guard.c says which may come in, install.c brings
 * them to the kernel, or apply-other.c to another table, settle.c sets them right afterwards, sweep.c deletes what lay here before, reason.c counts.
 */

/*
 * Timeouts are not refreshed before the guest runs here, and the source does not hear of refreshes either: an entry is
 * held at least this long.
 */
#define CT_HOLD_SECONDS 600

#define CT_ENTRY_LACKS (CT_ENTRY_NO_HELPER | CT_ENTRY_NO_LABELS | CT_ENTRY_NO_MASTER | CT_ENTRY_NO_MARK)

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
	OP_SWEEP,   /* it lay here before. No index */
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

typedef struct CtSweep CtSweep;

struct CtApply {
	CtSelect *allowed;
	CtApplyOptions options;
	CtTable table; /* what we installed */
	CtBatch *batch;
	CtOther *other;	   /* in place of the kernel, or NULL */
	CtIndexes pending; /* not written there yet */
	CtIndexes retry, clash;
	CtIndexes lacking; /* refused as they were, to be made without what was not taken */
	CtTable waiting;   /* whole records that have a master, until it is here */
	CtSelect *foreign;
	char **helpers;
	char **no_helper; /* names this kernel does not know */
	enum { LABELS_UNKNOWN, LABELS_KEPT, LABELS_LOST } labels;
	uint32_t labelled;    /* index of an entry that was made with labels, or CT_NONE */
	uint32_t settle_next; /* index that is settled next; 0: begin */
	uint64_t settle_at;   /* microsecond of the monotonic clock */
	sd_event_source *settle_source;
	void (*settle_done)(void *userdata, int result, const Error *err);
	void *settle_userdata;
	CtSweep *sweep;
	CtApplyStats stats;
	uint32_t now; /* second, monotonic, of the call that runs */
	uint64_t rolled_back;
	CtRecord found; /* what a look-up found */
	CtExtra found_extra;
	bool found_valid;
};

/** ct_apply_seconds() - the monotonic clock, in whole seconds */
uint32_t ct_apply_seconds(void);

/*
 * The kernel keeps GRE's timeouts in the entry and cannot be told them: the first packet would set what is left to 0
 * (gre_timeout in nf_conntrack_proto_gre.c). So GRE entries have a fixed timeout, as long as that of an idle TCP
 * connection once there are answers.
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

/** ct_indexes_add() - append */
void ct_indexes_add(CtIndexes *list, uint32_t i);

/* ---- reason.c ---- */

/** ct_apply_refuse() - count a record that is not let in; @why in place of the reason's text, or NULL */
void ct_apply_refuse(CtApply *apply, const CtRecord *record, CtReason reason, const char *why);
/** ct_apply_fail() - count entry @i, which the kernel refused with negative errno @error, and forget it */
void ct_apply_fail(CtApply *apply, uint32_t i, int error);
/** ct_apply_fail_because() - the same, with the reason for people, or NULL for that of CT_REASON_... @reason */
void ct_apply_fail_because(CtApply *apply, uint32_t i, CtReason reason, const char *why);
/** ct_apply_lacks() - entry @i is here without (or with) what these CT_ENTRY_NO_... say */
void ct_apply_lacks(CtApply *apply, uint32_t i, unsigned flags, bool lacks);
/** ct_apply_forget() - remove entry @i from the table and from the counts */
void ct_apply_forget(CtApply *apply, uint32_t i);

/* ---- guard.c ---- */

/** ct_guard_entry() - whether a connection is let in. Return: false when it was refused, and counted */
bool ct_guard_entry(CtApply *apply, const CtRecord *record);
/** ct_guard_expectation() - the same for an expectation of @master, which is one of ours */
bool ct_guard_expectation(CtApply *apply, const CtRecord *record, const CtRecord *master);
/** ct_guard_strip() - take away what is not let in along with an entry. Return: CT_ENTRY_NO_... of what that was */
unsigned ct_guard_strip(const CtApply *apply, CtRecord *record);

/**
 * ct_guard_name() - which of its tuples names an entry of the VM's and of nobody else: one that begins at the VM
 *
 * Return: CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, or 0 when neither does.
 */
unsigned ct_guard_name(const CtApply *apply, const CtRecord *record);

/* ---- install.c: nothing is under way for long after ct_install_finish() ---- */

/** ct_install_open() - the socket and its batch. Return: 0 or negative errno with @err set */
int ct_install_open(CtApply *apply, Error **err);
/** ct_install_room() - flush unless @n more messages fit. Return: 0 or negative errno (there is room all the same) */
int ct_install_room(CtApply *apply, unsigned n);
/**
 * ct_install_put() - make an entry, or bring it up to date
 * @replace: another connection than the one that is here
 * @lacks:   CT_ENTRY_NO_... of what it comes without
 */
int ct_install_put(CtApply *apply, const CtRecord *record, bool replace, unsigned lacks);
/** ct_install_drop() - delete one of ours; what we did not install is left alone */
int ct_install_drop(CtApply *apply, const CtKey *key);
/** ct_install_delete() - queue the deletion of entry @i. There must be room */
void ct_install_delete(CtApply *apply, uint32_t i, CtApplyOp op);
/** ct_install_look_up() - ask for the entry under the original or the reply tuple. apply->found_valid says whether */
int ct_install_look_up(CtApply *apply, const CtRecord *record, bool reply);
/** ct_install_finish() - second and third tries; after this nothing is under way. Return: 0 or negative errno */
int ct_install_finish(CtApply *apply);
/** ct_install_find() - index of an entry of ours that nothing is under way for, or CT_NONE */
uint32_t ct_install_find(const CtApply *apply, const CtKey *key);

/* ---- apply-other.c: another table than the kernel's ---- */

/** ct_apply_other() - take a record in, or have what was taken in end. Return: 0 or negative errno */
int ct_apply_other(CtApply *apply, CtWireOp op, const CtRecord *record);
/** ct_apply_other_finish() - write what is pending. What cannot be written is counted as failed */
void ct_apply_other_finish(CtApply *apply);
/** ct_apply_other_rollback() - have all end. Return: number of entries, or negative errno */
int ct_apply_other_rollback(CtApply *apply);

/* ---- settle.c, sweep.c ---- */

/** ct_settle_compare() - the kernel's present view of entry @i: decide what is to be set */
void ct_settle_compare(CtApply *apply, uint32_t i, const struct nlmsghdr *nlh);
void ct_sweep_free(CtSweep *sweep);
