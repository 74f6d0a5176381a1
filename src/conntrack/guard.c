/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The boundary: which records of a peer become entries here. Nothing is asked of the kernel. */
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

#include "apply.h"
#include "basic/text.h"

static bool same_address(const CtRecord *r, const uint8_t *a, const uint8_t *b)
{
	return memcmp(a, b, ct_address_length(r->key.family)) == 0;
}

static bool allowed(const CtApply *a, const CtRecord *r, const uint8_t *address)
{
	return ct_select_has(a->allowed, r->key.family, address);
}

/*
 * A reply tuple that is not the inverse of the original one is a translation, and must be said to be one: without the
 * bits the kernel would let packets of any two hosts through as answers, untouched. GRE that was made here before has only
 * the keys of the sides its packets go to (ct_apply's forget_source_key()), one for each direction.
 */
static bool explained(const CtRecord *r)
{
	bool icmp = ct_protocol_is_icmp(r->key.protocol), id, src, dst;
	bool keys = r->key.protocol == IPPROTO_GRE && !r->key.orig.a && !r->reply.a;
	CtTuple inverse;

	if (!ct_tuple_invert(&r->key.orig, r->key.protocol, &inverse))
		return false;
	id = icmp && r->reply.a != inverse.a;
	dst = memcmp(r->reply.src, inverse.src, 16) != 0 || (!icmp && !keys && r->reply.a != inverse.a);
	src = memcmp(r->reply.dst, inverse.dst, 16) != 0 || (!icmp && !keys && r->reply.b != inverse.b);
	return !(icmp && r->reply.b != inverse.b) && (!id || (r->status & IPS_NAT_MASK)) &&
	       (!dst || (r->status & IPS_DST_NAT)) && (!src || (r->status & IPS_SRC_NAT));
}

/*
 * The original destination of a translated connection may be any address that led to the VM, and the reply's
 * destination any that the VM went out with. What can be checked is that it is none of another VM here and none of the
 * host's own: its traffic would go to the VM.
 */
static bool takes_foreign(const CtApply *a, const CtRecord *r)
{
	if (!a->foreign)
		return false;
	return (!same_address(r, r->key.orig.dst, r->reply.src) &&
		ct_select_has(a->foreign, r->key.family, r->key.orig.dst)) ||
	       (!same_address(r, r->key.orig.src, r->reply.dst) &&
		ct_select_has(a->foreign, r->key.family, r->reply.dst));
}

bool ct_guard_entry(CtApply *a, const CtRecord *r)
{
	if (!ct_record_owned(r, a->allowed))
		ct_apply_refuse(a, r, CT_REASON_NOT_OURS, NULL);
	else if (!r->key.map && !explained(r))
		ct_apply_refuse(a, r, CT_REASON_MALFORMED, "the answers come from elsewhere without a translation");
	else if (takes_foreign(a, r))
		ct_apply_refuse(a, r, CT_REASON_FOREIGN, NULL);
	else
		return true;
	return false;
}

static bool helper_allowed(const CtApply *a, const char *name)
{
	return strv_contains(a->helpers, "*") || strv_contains(a->helpers, name);
}

static bool all_are(const uint8_t *mask, size_t n, uint8_t value)
{
	for (size_t i = 0; i < n; i++)
		if (mask[i] != value)
			return false;
	return true;
}

/* The address by which others know the VM in this connection. */
static const uint8_t *public_address(const CtApply *a, const CtRecord *master)
{
	return allowed(a, master, master->key.orig.src) ? master->reply.dst : master->key.orig.dst;
}

/*
 * An expectation opens a hole: of the two ends it gives one must be the VM, or the address by which the master knows
 * it, and then the packets must be led to the VM as the master's are.
 */
static bool expectation_is_ours(const CtApply *a, const CtRecord *r, const CtRecord *master)
{
	const CtExpect *e = &r->extra->expect;
	size_t n = ct_address_length(r->key.family);
	bool any_source = all_are(e->mask.src, n, 0);

	if (!all_are(e->mask.dst, n, 0xff) || (!any_source && !all_are(e->mask.src, n, 0xff)))
		return false;
	if (e->has_nat && !all_are(e->nat.src, n, 0) && !same_address(r, e->nat.src, master->key.orig.src) &&
	    !same_address(r, e->nat.src, master->key.orig.dst) && !same_address(r, e->nat.src, master->reply.src) &&
	    !same_address(r, e->nat.src, master->reply.dst))
		return false;
	if (!a->allowed->by_address || allowed(a, r, r->key.orig.dst) ||
	    (!any_source && allowed(a, r, r->key.orig.src)))
		return true;
	return same_address(r, r->key.orig.dst, public_address(a, master)) && e->function[0];
}

bool ct_guard_expectation(CtApply *a, const CtRecord *r, const CtRecord *master)
{
	const char *helper = r->has & CT_HAS_HELPER	   ? r->extra->helper
			     : master->has & CT_HAS_HELPER ? master->extra->helper
							   : NULL;

	if (!expectation_is_ours(a, r, master))
		ct_apply_refuse(a, r, CT_REASON_NOT_OURS, NULL);
	else if (!helper || !helper_allowed(a, helper))
		ct_apply_refuse(a, r, CT_REASON_NOT_ALLOWED, NULL);
	else
		return true;
	return false;
}

unsigned ct_guard_strip(const CtApply *a, CtRecord *r)
{
	unsigned lacks = 0;

	if ((r->has & CT_HAS_HELPER) &&
	    (!helper_allowed(a, r->extra->helper) || strv_contains(a->no_helper, r->extra->helper))) {
		r->has &= (uint16_t)~CT_HAS_HELPER;
		lacks |= CT_ENTRY_NO_HELPER;
	}
	if ((r->has & CT_HAS_LABELS) && (!a->options.marks_mask || a->labels == LABELS_LOST)) {
		r->has &= (uint16_t)~CT_HAS_LABELS;
		lacks |= CT_ENTRY_NO_LABELS;
	}
	if (r->mark & ~a->options.marks_mask)
		lacks |= CT_ENTRY_NO_MARK; /* the rest of it is taken */
	return lacks;
}

/* Whoever made an entry of which a tuple begins at the VM, it is the VM's: that is ct_record_owned(). */
unsigned ct_guard_name(const CtApply *a, const CtRecord *r)
{
	if (!a->allowed->by_address)
		return a->allowed->by_zone ? CTA_TUPLE_ORIG : 0;
	if (allowed(a, r, r->key.orig.src) || (r->key.expect && allowed(a, r, r->key.orig.dst)))
		return CTA_TUPLE_ORIG;
	return !r->key.expect && allowed(a, r, r->reply.src) ? CTA_TUPLE_REPLY : 0;
}
