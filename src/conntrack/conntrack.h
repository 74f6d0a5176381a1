/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * A VM's part of the kernel's connection tracking table: followed on one host, applied on another. facts: subscribe,
 * dump once, keep a merged table, hand out deltas; the last delta is bounded by churn, not by the number of entries.
 */

typedef struct CtAddress {
	uint8_t family; /* AF_INET, AF_INET6 */
	uint8_t bytes[16];
} CtAddress;

/*
 * Whose entries: an entry is the VM's if all that is given holds: one of its four addresses (original and reply source,
 * destination) is here, its mark is this under the mask, its zone is this. With nothing given there are none.
 */
typedef struct CtSelect {
	CtAddress *addresses;
	size_t n_addresses;
	bool by_address, by_mark, by_zone;
	uint32_t mark, mark_mask;
	uint16_t zone;
} CtSelect;

/** ct_select_new() - from text addresses ("10.0.0.5", "fd00::5"). Return: 0 or negative errno with @err set */
int ct_select_new(char *const *addresses, CtSelect **ret, Error **err);
/** ct_select_mark() - add a mark, "VALUE" or "VALUE/MASK" as nft and iptables write it. 0, or -EINVAL with @err set */
int ct_select_mark(CtSelect *select, const char *text, Error **err);
/** ct_select_zone() - add a zone, 0 to 65535, of any direction. Return: 0, or -EINVAL with @err set */
int ct_select_zone(CtSelect *select, const char *text, Error **err);
/** ct_select_empty() - whether nothing is given */
bool ct_select_empty(const CtSelect *select);
/** ct_select_join() - add the addresses of @more, which may be NULL, and take away those of @less */
void ct_select_join(CtSelect *select, const CtSelect *more, const CtSelect *less);
/** ct_select_own() - all addresses of this host's interfaces (getifaddrs(3)). Return: 0, or negative errno with @err set */
int ct_select_own(CtSelect **ret, Error **err);
void ct_select_free(CtSelect *select);
DEFINE_CLEANUP(CtSelect *, ct_select_free)

/* ---- following ---- */

typedef struct CtFollow CtFollow;
typedef struct CtOther CtOther; /* other.h */

typedef struct CtFollowStats {
	uint64_t entries;  /* in the table now */
	uint64_t events;   /* merged since the start */
	uint64_t overruns; /* ENOBUFS: dumped again and compared */
	uint64_t dumps;	   /* merged */
	uint64_t untold; /* changes that no event told, found by dumping again */
	uint64_t interrupted; /* dumps that the kernel said a change ran through (NLM_F_DUMP_INTR): done again */
	bool complete;	   /* a dump has been merged and no event was lost since */
} CtFollowStats;

/**
 * ct_follow_new() - subscribe and begin to dump, in the network namespace of the caller
 * @event: loop that drives it
 *
 * Return: 0, or negative errno with @err set (-EPERM without CAP_NET_ADMIN, -EPROTONOSUPPORT without nf_conntrack).
 */
int ct_follow_new(sd_event *event, const CtSelect *select, CtFollow **ret, Error **err);
/**
 * ct_follow_new_of() - follow another table than the kernel's, one without events: read whole and compare
 * @other: taken over, also in case of an error
 *
 * The table is read once before this returns. Return: 0 or negative errno with @err set.
 */
int ct_follow_new_of(sd_event *event, const CtSelect *select, CtOther *other, CtFollow **ret, Error **err);
void ct_follow_free(CtFollow *follow);
DEFINE_CLEANUP(CtFollow *, ct_follow_free)

/**
 * ct_follow_resync() - begin to dump again, beside the events; a dump that runs already does
 *
 * Finds what no event tells: the end of entries that were there before anybody listened (nf_conntrack_events = 2).
 * Walks the table of the whole host, so not at the switch. Return: 0 or negative errno.
 */
int ct_follow_resync(CtFollow *follow);

/**
 * ct_follow_mute() - hear nothing of new entries from here on
 *
 * For who makes many: where anybody in the namespace listens to NFNLGRP_CONNTRACK_NEW the kernel needs almost twice as long for each.
 * Ends and changes are heard of as before. Return: 0 or negative errno.
 */
int ct_follow_mute(CtFollow *follow);

/** ct_follow_unmute() - hear of new entries again, and begin to dump for those that were missed. Return: 0 or negative errno */
int ct_follow_unmute(CtFollow *follow);

/**
 * ct_follow_drain() - read all events the kernel has queued, now; another table is read once more, for 200 ms at most
 *
 * Return: number of events, or negative errno: what is known is old.
 */
int ct_follow_drain(CtFollow *follow);

/**
 * ct_follow_delta() - what changed since the last call, as wire records
 * @max:  at most so many bytes (at least 4096); what does not fit comes next time
 * @ret:  the bytes, owned by the follower, valid until the next call
 * @ret_records: number of records in them, may be NULL
 *
 * Return: number of bytes, 0 when nothing changed.
 */
size_t ct_follow_delta(CtFollow *follow, size_t max, const uint8_t **ret, size_t *ret_records);

/**
 * ct_follow_snapshot() - all entries there are now as batches of wire records, none of more than 1000
 * @to, @max: where to, and at most so many bytes (at least CT_WIRE_HEADER); what ct_follow_delta() says is not changed by it
 * @ret_records: number of records in it
 * @ret_left: entries that found no room. Those in use by both sides and with the most time left come first, and masters
 * before what belongs to them
 *
 * Return: number of bytes.
 */
size_t ct_follow_snapshot(const CtFollow *follow, uint8_t *to, size_t max, size_t *ret_records, size_t *ret_left);

/**
 * ct_follow_bound() - how many entries are translated (NAT) from or to one of the host's own addresses
 * @own:     see ct_select_own()
 * @example: one of them for people, "" if there is none
 *
 * Those stay behind: the answers go on coming to this host.
 */
size_t ct_follow_bound(const CtFollow *follow, const CtSelect *own, char *example, size_t size);

/** ct_follow_pending() - whether ct_follow_delta() has something to say (not counting what is still in the socket) */
bool ct_follow_pending(const CtFollow *follow);

/** ct_follow_stats() - the counters up to now */
void ct_follow_stats(const CtFollow *follow, CtFollowStats *ret);

/* What a target should know of a VM's entries before they come. */
typedef struct CtSummary {
	uint64_t entries;
	uint64_t labelled; /* with labels */
	char **helpers;	   /* names in use, each once; the first 16 */
	bool complete;	   /* all of the table was seen */
} CtSummary;

/** ct_follow_summary() - of what is known now; ct_summary_done() it */
void ct_follow_summary(const CtFollow *follow, CtSummary *ret);

/**
 * ct_summary_read() - the same by a dump of its own
 * @usec: wait so long at most; what has been seen by then is told
 *
 * Return: 0 or negative errno with @err set.
 */
int ct_summary_read(const CtSelect *select, uint64_t usec, CtSummary *ret, Error **err);
void ct_summary_done(CtSummary *summary);

/* ---- applying ---- */

typedef struct CtApply CtApply;

typedef struct CtApplyOptions {
	uint64_t max_entries; /* more are refused */
	uint32_t marks_mask;  /* bits of the mark that are taken over; 0: none, and no labels */
	char *const *helpers; /* connections with these, and what they expect, are taken over; "*": any; NULL: none */
	/* Addresses of others here, copied: no entry may translate traffic to or from them. NULL: none are known */
	const CtSelect *foreign;
} CtApplyOptions;

/* For CtApplyOptions.helpers, in the block it is written in */
#define CT_ANY_HELPER ((char *const[]){(char[]){"*"}, NULL})

/* Why an entry is not there, or not there with all it had. */
typedef enum CtReason {
	CT_REASON_NOT_OURS,  /* refused */
	CT_REASON_FOREIGN,
	CT_REASON_MALFORMED,
	CT_REASON_LIMIT,
	CT_REASON_NOT_ALLOWED,
	CT_REASON_TAKEN,
	CT_REASON_FULL, /* the kernel would not */
	CT_REASON_EXISTS,
	CT_REASON_UNSUPPORTED,
	CT_REASON_GONE,
	CT_REASON_OTHER,
	CT_REASON_HELPER, /* it is there, but without something */
	CT_REASON_LABELS,
	CT_REASON_MASTER,
	CT_REASON_MARK,
	_CT_REASON_MAX
} CtReason;

/** ct_reason_lost() - whether such an entry is not there at all */
static inline bool ct_reason_lost(CtReason reason)
{
	return reason < CT_REASON_HELPER;
}

/** ct_reason_name() - a word for a reason ("not-ours"); @ret_text: the same for people, may be NULL */
const char *ct_reason_name(CtReason reason, const char **ret_text);
/** ct_reason_from_name() - Return: the reason, or -EINVAL */
int ct_reason_from_name(const char *name);

typedef struct CtApplyStats {
	uint64_t received;	 /* records */
	uint64_t applied;	 /* entries installed now */
	uint64_t refused;	 /* not this VM's, over the limit, or malformed in a field */
	uint64_t failed;	 /* the kernel would not take them */
	uint64_t replaced;	 /* lay there already and were deleted first */
	uint64_t swept;		 /* lay there already, and the source has them no more: deleted */
	uint64_t reasons[_CT_REASON_MAX]; /* how many for each; those of ct_reason_lost() sum up to refused and failed */
	char first_refused[160]; /* reason and tuple of the first one refused or failed, for people; "" if none */
} CtApplyStats;

/** ct_apply_new() - a sink for one VM's entries. @allowed: its addresses. Return: 0 or negative errno with @err set */
int ct_apply_new(const CtSelect *allowed, const CtApplyOptions *options, CtApply **ret, Error **err);
/**
 * ct_apply_new_of() - the same for another table than the kernel's
 * @other: taken over
 *
 * Not for what asks the kernel: ct_apply_survey(), ct_apply_keeps_labels(). What ends, also by a roll-back, is given one
 * more second: see other.h.
 */
CtApply *ct_apply_new_of(const CtSelect *allowed, const CtApplyOptions *options, CtOther *other);
/** ct_apply_free() - entries stay as they are */
void ct_apply_free(CtApply *apply);
DEFINE_CLEANUP(CtApply *, ct_apply_free)

/**
 * ct_apply_delta() - check, install, update or delete what the wire records say; the kernel has answered on return
 *
 * New entries are made liberal (TCP) and with a timeout that outlives a long migration; ct_apply_settle() sets both
 * right. Entries that lie there already are deleted first. Single entries that fail are counted, not errors.
 *
 * Return: 0; -EBADMSG with @err set when the bytes are no wire records (nothing of them is applied); or negative errno.
 */
int ct_apply_delta(CtApply *apply, const void *data, size_t len, Error **err);

/** ct_apply_settle() - after the guest runs here: true timeouts, strict window checks again. 0 or negative errno */
int ct_apply_settle(CtApply *apply, Error **err);

/**
 * ct_apply_settle_some() - a part of ct_apply_settle() that takes about a millisecond
 *
 * Return: 1 when there is more to do, 0 when all is done, or negative errno with @err set.
 */
int ct_apply_settle_some(CtApply *apply, Error **err);

/**
 * ct_apply_settle_begin() - the guest runs here: sweep now, settle later, from a loop that stays free for others
 * @delay: microseconds until the settling, for the packets that are under way
 * @done: called once, from the loop, with 0 or negative errno and the error; may free @apply
 *
 * ct_apply_free() ends it without a call. Return: 0 or negative errno.
 */
int ct_apply_settle_begin(CtApply *apply, sd_event *event, uint64_t delay,
			  void (*done)(void *userdata, int result, const Error *err), void *userdata);

/**
 * ct_apply_survey() - begin to look, from a loop, for entries of the VM that lie here already
 *
 * To be called before the first delta, when the VM does not run here: what lies here then and is not in the source's
 * table either at the end is old, and ct_apply_sweep_some() deletes it. Connections with addresses of others here
 * (CtApplyOptions.foreign) are theirs too and are left alone. Return: 0 or negative errno.
 */
int ct_apply_survey(CtApply *apply, sd_event *event);

/**
 * ct_apply_keeps_labels() - whether a rule of this host uses labels, without which the kernel keeps none
 *
 * An entry from one of the VM's addresses to one that is for documentation only (RFC 5737, RFC 3849) is made, read and
 * deleted at once. For before the first delta, when the VM does not run here. Return: 1, 0, or negative errno.
 */
int ct_apply_keeps_labels(CtApply *apply);

/** ct_apply_survey_wait() - wait for the end of the survey. Return: 0 or negative errno */
int ct_apply_survey_wait(CtApply *apply);

/** ct_apply_sweep_some() - delete a part of what is old. Return: 1 when there is more, 0, or negative errno */
int ct_apply_sweep_some(CtApply *apply);

/** ct_apply_rollback() - the VM did not come: delete what we installed. Return: number deleted or negative errno */
int ct_apply_rollback(CtApply *apply);

/** ct_apply_stats() - the counters up to now */
void ct_apply_stats(const CtApply *apply, CtApplyStats *ret);

/* ---- the rest ---- */

/**
 * ct_flush() - delete a VM's entries after it has left
 * @select: its addresses
 * @spare:  entries that carry one of these as well, or that @select shares with it, stay; may be NULL
 *
 * Return: number deleted, or negative errno with @err set.
 */
int ct_flush(const CtSelect *select, const CtSelect *spare, Error **err);

typedef struct CtHost {
	bool available;	     /* nf_conntrack is there and we may use it */
	uint64_t count, max; /* entries now and the limit: nf_conntrack_count, nf_conntrack_max */
	int events;	     /* net.netfilter.nf_conntrack_events: 0, 1, 2; -1 unknown */
	bool tcp_loose;	     /* net.netfilter.nf_conntrack_tcp_loose */
} CtHost;

/** ct_host_read() - what this host can do (pre-flight) */
void ct_host_read(CtHost *ret);
