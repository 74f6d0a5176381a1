/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <endian.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

#include "netlink.h"

/*
 * What the kernel takes back. Of the status only these bits can be set by us; NAT bits come with the NAT attributes,
 * EXPECTED needs its master, and CONFIRMED is a must.
 */
#define STATUS_MASK (IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED | IPS_FIXED_TIMEOUT)

static void put_ip(struct nlmsghdr *nlh, uint8_t family, const CtTuple *tuple)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, CTA_TUPLE_IP);
	size_t len = ct_address_length(family);

	mnl_attr_put(nlh, family == AF_INET ? CTA_IP_V4_SRC : CTA_IP_V6_SRC, len, tuple->src);
	mnl_attr_put(nlh, family == AF_INET ? CTA_IP_V4_DST : CTA_IP_V6_DST, len, tuple->dst);
	mnl_attr_nest_end(nlh, nest);
}

static void put_proto(struct nlmsghdr *nlh, uint8_t protocol, const CtTuple *tuple)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, CTA_TUPLE_PROTO);
	bool v4 = protocol == IPPROTO_ICMP;
	uint8_t icmp[2];

	mnl_attr_put_u8(nlh, CTA_PROTO_NUM, protocol);
	if (ct_protocol_has_ports(protocol)) {
		mnl_attr_put_u16(nlh, CTA_PROTO_SRC_PORT, tuple->a);
		mnl_attr_put_u16(nlh, CTA_PROTO_DST_PORT, tuple->b);
	} else if (ct_protocol_is_icmp(protocol)) {
		memcpy(icmp, &tuple->b, 2);
		mnl_attr_put_u16(nlh, v4 ? CTA_PROTO_ICMP_ID : CTA_PROTO_ICMPV6_ID, tuple->a);
		mnl_attr_put_u8(nlh, v4 ? CTA_PROTO_ICMP_TYPE : CTA_PROTO_ICMPV6_TYPE, icmp[0]);
		mnl_attr_put_u8(nlh, v4 ? CTA_PROTO_ICMP_CODE : CTA_PROTO_ICMPV6_CODE, icmp[1]);
	}
	mnl_attr_nest_end(nlh, nest);
}

static void put_tuple_in(struct nlmsghdr *nlh, uint16_t type, const CtKey *key, const CtTuple *tuple, uint16_t zone)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, type);

	put_ip(nlh, key->family, tuple);
	put_proto(nlh, key->protocol, tuple);
	if (zone)
		mnl_attr_put_u16(nlh, CTA_TUPLE_ZONE, htons(zone));
	mnl_attr_nest_end(nlh, nest);
}

/* Of another connection: the kernel takes no zone in there. */
static void put_tuple(struct nlmsghdr *nlh, uint16_t type, const CtKey *key, const CtTuple *tuple)
{
	put_tuple_in(nlh, type, key, tuple, 0);
}

static void put_orig(struct nlmsghdr *nlh, const CtKey *key)
{
	put_tuple_in(nlh, CTA_TUPLE_ORIG, key, &key->orig, key->zone_dir == CT_ZONE_ORIG ? key->zone : 0);
}

static void put_reply_tuple(struct nlmsghdr *nlh, const CtKey *key, const CtTuple *tuple)
{
	put_tuple_in(nlh, CTA_TUPLE_REPLY, key, tuple, key->zone_dir == CT_ZONE_REPLY ? key->zone : 0);
}

static void put_zone(struct nlmsghdr *nlh, const CtKey *key)
{
	if (key->zone && key->zone_dir == CT_ZONE_BOTH)
		mnl_attr_put_u16(nlh, CTA_ZONE, htons(key->zone));
}

void ct_build_key(struct nlmsghdr *nlh, const CtKey *key)
{
	put_orig(nlh, key);
	put_zone(nlh, key);
}

void ct_build_reply_key(struct nlmsghdr *nlh, const CtRecord *record)
{
	put_reply_tuple(nlh, &record->key, &record->reply);
	put_zone(nlh, &record->key);
}

/* A NAT mapping to exactly one address and, where the protocol has one, port or ICMP identifier. */
static void put_nat(struct nlmsghdr *nlh, uint16_t type, const CtKey *key, const uint8_t *address, uint16_t port)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, type), *proto;
	size_t len = ct_address_length(key->family);
	bool v4 = key->family == AF_INET;

	mnl_attr_put(nlh, v4 ? CTA_NAT_V4_MINIP : CTA_NAT_V6_MINIP, len, address);
	mnl_attr_put(nlh, v4 ? CTA_NAT_V4_MAXIP : CTA_NAT_V6_MAXIP, len, address);
	if (ct_protocol_has_ports(key->protocol) || ct_protocol_is_icmp(key->protocol)) {
		proto = mnl_attr_nest_start(nlh, CTA_NAT_PROTO);
		mnl_attr_put_u16(nlh, CTA_PROTONAT_PORT_MIN, port);
		mnl_attr_put_u16(nlh, CTA_PROTONAT_PORT_MAX, port);
		mnl_attr_nest_end(nlh, proto);
	}
	mnl_attr_nest_end(nlh, nest);
}

/*
 * With NAT the reply tuple given is the plain inverse, and the kernel makes the real one of the mappings; the real one
 * given at once is accepted, but sets no NAT bit and the packets stay untranslated.
 */
static void put_reply(struct nlmsghdr *nlh, const CtRecord *record)
{
	const CtKey *key = &record->key;
	bool icmp = ct_protocol_is_icmp(key->protocol);
	CtTuple inverse;

	if (!(record->status & IPS_NAT_MASK) || !ct_tuple_invert(&key->orig, key->protocol, &inverse)) {
		put_reply_tuple(nlh, key, &record->reply);
		return;
	}
	put_reply_tuple(nlh, key, &inverse);
	if (record->status & IPS_DST_NAT)
		put_nat(nlh, CTA_NAT_DST, key, record->reply.src, record->reply.a);
	if (record->status & IPS_SRC_NAT)
		put_nat(nlh, CTA_NAT_SRC, key, record->reply.dst, icmp ? record->reply.a : record->reply.b);
}

static void put_flags(struct nlmsghdr *nlh, const uint8_t flags[2], uint8_t mask)
{
	for (int i = 0; i < 2; i++) {
		struct nf_ct_tcp_flags value = {.flags = flags[i], .mask = mask};

		mnl_attr_put(nlh, i ? CTA_PROTOINFO_TCP_FLAGS_REPLY : CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, sizeof(value),
			     &value);
	}
}

/*
 * A dump's flags carry mask 0; played back as they are, none would be kept. The scales are taken only when both sides have their
 * flag (nlattr_to_tcp() in the kernel), so also where just the SYN has been seen: the answer sets its own side's flag anew.
 *
 * The highest acknowledgement seen is not told, so the flag that it is known must not be taken along: it would count as 0 there,
 * and a reset with a sequence number in the upper half as one from before it, which is invalid.
 */
static void put_tcp(struct nlmsghdr *nlh, const CtTcp *tcp, bool liberal)
{
	struct nlattr *info = mnl_attr_nest_start(nlh, CTA_PROTOINFO),
		      *nest = mnl_attr_nest_start(nlh, CTA_PROTOINFO_TCP);
	uint8_t more = (liberal ? IP_CT_TCP_FLAG_BE_LIBERAL : 0) |
		       (tcp->wscale[0] | tcp->wscale[1] ? IP_CT_TCP_FLAG_WINDOW_SCALE : 0);
	uint8_t less = liberal ? IP_CT_TCP_FLAG_MAXACK_SET : 0;
	uint8_t flags[2] = {(tcp->flags[0] & ~less) | more, (tcp->flags[1] & ~less) | more};

	mnl_attr_put_u8(nlh, CTA_PROTOINFO_TCP_STATE, tcp->state);
	mnl_attr_put_u8(nlh, CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, tcp->wscale[0]);
	mnl_attr_put_u8(nlh, CTA_PROTOINFO_TCP_WSCALE_REPLY, tcp->wscale[1]);
	put_flags(nlh, flags, 0xff);
	mnl_attr_nest_end(nlh, nest);
	mnl_attr_nest_end(nlh, info);
}

static void put_sctp(struct nlmsghdr *nlh, const CtSctp *sctp)
{
	struct nlattr *info = mnl_attr_nest_start(nlh, CTA_PROTOINFO),
		      *nest = mnl_attr_nest_start(nlh, CTA_PROTOINFO_SCTP);

	mnl_attr_put_u8(nlh, CTA_PROTOINFO_SCTP_STATE, sctp->state);
	mnl_attr_put_u32(nlh, CTA_PROTOINFO_SCTP_VTAG_ORIGINAL, sctp->vtag[0]);
	mnl_attr_put_u32(nlh, CTA_PROTOINFO_SCTP_VTAG_REPLY, sctp->vtag[1]);
	mnl_attr_nest_end(nlh, nest);
	mnl_attr_nest_end(nlh, info);
}

static void put_dccp(struct nlmsghdr *nlh, const CtDccp *dccp)
{
	struct nlattr *info = mnl_attr_nest_start(nlh, CTA_PROTOINFO),
		      *nest = mnl_attr_nest_start(nlh, CTA_PROTOINFO_DCCP);

	mnl_attr_put_u8(nlh, CTA_PROTOINFO_DCCP_STATE, dccp->state);
	mnl_attr_put_u8(nlh, CTA_PROTOINFO_DCCP_ROLE, dccp->role);
	mnl_attr_put_u64(nlh, CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ, htobe64(dccp->handshake));
	mnl_attr_nest_end(nlh, nest);
	mnl_attr_nest_end(nlh, info);
}

static void put_seqadj(struct nlmsghdr *nlh, uint16_t type, const CtSeqadj *adj)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, type);

	mnl_attr_put_u32(nlh, CTA_SEQADJ_CORRECTION_POS, htonl(adj->position));
	mnl_attr_put_u32(nlh, CTA_SEQADJ_OFFSET_BEFORE, htonl(adj->before));
	mnl_attr_put_u32(nlh, CTA_SEQADJ_OFFSET_AFTER, htonl(adj->after));
	mnl_attr_nest_end(nlh, nest);
}

static void put_master(struct nlmsghdr *nlh, uint16_t type, const CtRecord *record)
{
	CtKey master;

	(void)ct_record_master(record, &master);
	put_tuple(nlh, type, &master, &master.orig);
}

static void put_helper(struct nlmsghdr *nlh, const char *name)
{
	struct nlattr *nest = mnl_attr_nest_start(nlh, CTA_HELP);

	mnl_attr_put_strz(nlh, CTA_HELP_NAME, name);
	mnl_attr_nest_end(nlh, nest);
}

/* What can be changed later comes with every message, the rest only with the first. */
static void put_extra(struct nlmsghdr *nlh, const CtRecord *record, bool create, bool labels)
{
	const CtExtra *x = record->extra;

	if ((record->has & CT_HAS_LABELS) && (create || labels))
		mnl_attr_put(nlh, CTA_LABELS, CT_LABELS, x->labels);
	if (record->has & CT_HAS_SEQADJ)
		put_seqadj(nlh, CTA_SEQ_ADJ_ORIG, &x->seqadj[0]);
	if (record->has & CT_HAS_SEQADJ_REPLY)
		put_seqadj(nlh, CTA_SEQ_ADJ_REPLY, &x->seqadj[1]);
	if (record->has & CT_HAS_SCTP)
		put_sctp(nlh, &x->sctp);
	if (record->has & CT_HAS_DCCP)
		put_dccp(nlh, &x->dccp);
	if (create && (record->has & CT_HAS_HELPER))
		put_helper(nlh, x->helper);
	if (create && (record->has & CT_HAS_MASTER))
		put_master(nlh, CTA_TUPLE_MASTER, record);
}

void ct_build_expect_key(struct nlmsghdr *nlh, const CtKey *key)
{
	put_tuple(nlh, CTA_EXPECT_TUPLE, key, &key->orig);
	if (key->zone)
		mnl_attr_put_u16(nlh, CTA_EXPECT_ZONE, htons(key->zone));
}

void ct_build_expect(struct nlmsghdr *nlh, const CtRecord *record)
{
	const CtExpect *e = &record->extra->expect;
	struct nlattr *nest;

	put_master(nlh, CTA_EXPECT_MASTER, record);
	put_tuple(nlh, CTA_EXPECT_TUPLE, &record->key, &record->key.orig);
	if (record->key.zone && record->key.zone_dir != CT_ZONE_REPLY) /* the master is looked for by its original tuple */
		mnl_attr_put_u16(nlh, CTA_EXPECT_ZONE, htons(record->key.zone));
	put_tuple(nlh, CTA_EXPECT_MASK, &record->key, &e->mask);
	mnl_attr_put_u32(nlh, CTA_EXPECT_TIMEOUT, htonl(record->timeout));
	mnl_attr_put_u32(nlh, CTA_EXPECT_FLAGS, htonl(e->flags));
	mnl_attr_put_u32(nlh, CTA_EXPECT_CLASS, htonl(e->class));
	if (record->has & CT_HAS_HELPER)
		mnl_attr_put_strz(nlh, CTA_EXPECT_HELP_NAME, record->extra->helper);
	if (e->function[0])
		mnl_attr_put_strz(nlh, CTA_EXPECT_FN, e->function);
	if (!e->has_nat)
		return;
	nest = mnl_attr_nest_start(nlh, CTA_EXPECT_NAT);
	mnl_attr_put_u32(nlh, CTA_EXPECT_NAT_DIR, htonl(e->nat_dir));
	put_tuple(nlh, CTA_EXPECT_NAT_TUPLE, &record->key, &e->nat);
	mnl_attr_nest_end(nlh, nest);
}

/* An update must not try to change EXPECTED, which the kernel set along with the master. GRE: see CT_GRE_SECONDS. */
static uint32_t status_to_set(const CtRecord *record, bool create)
{
	uint32_t expected = !create && (record->has & CT_HAS_MASTER) ? IPS_EXPECTED : 0;
	uint32_t fixed = record->key.protocol == IPPROTO_GRE ? IPS_FIXED_TIMEOUT : 0;

	return (record->status & STATUS_MASK) | IPS_CONFIRMED | expected | fixed;
}

void ct_build(struct nlmsghdr *nlh, const CtRecord *record, const CtBuild *how)
{
	ct_build_key(nlh, &record->key);
	if (how->create)
		put_reply(nlh, record);
	mnl_attr_put_u32(nlh, CTA_STATUS, htonl(status_to_set(record, how->create)));
	mnl_attr_put_u32(nlh, CTA_TIMEOUT, htonl(how->timeout));
	if ((record->has & CT_HAS_MARK) && how->mark_mask && (record->mark || !how->create)) {
		mnl_attr_put_u32(nlh, CTA_MARK, htonl(record->mark & how->mark_mask));
		if (how->mark_mask != UINT32_MAX && !how->create)
			mnl_attr_put_u32(nlh, CTA_MARK_MASK, htonl(how->mark_mask));
	}
	if (record->has & CT_HAS_TCP)
		put_tcp(nlh, &record->tcp, how->liberal);
	put_extra(nlh, record, how->create, how->labels);
}

void ct_build_as_is(struct nlmsghdr *nlh, const CtRecord *record)
{
	ct_build_key(nlh, &record->key);
	put_reply_tuple(nlh, &record->key, &record->reply);
	mnl_attr_put_u32(nlh, CTA_STATUS, htonl(record->status));
	mnl_attr_put_u32(nlh, CTA_TIMEOUT, htonl(record->timeout));
	if (record->mark)
		mnl_attr_put_u32(nlh, CTA_MARK, htonl(record->mark));
	if (record->has & CT_HAS_TCP)
		put_tcp(nlh, &record->tcp, false);
	put_extra(nlh, record, true, true);
}

void ct_build_filter(struct nlmsghdr *nlh, const CtSelect *select)
{
	if (select->by_mark) {
		mnl_attr_put_u32(nlh, CTA_MARK, htonl(select->mark));
		mnl_attr_put_u32(nlh, CTA_MARK_MASK, htonl(select->mark_mask));
	}
	if (select->by_zone)
		mnl_attr_put_u16(nlh, CTA_ZONE, htons(select->zone));
}

void ct_build_settle(struct nlmsghdr *nlh, const CtRecord *record, uint32_t timeout, bool strict)
{
	struct nlattr *info, *nest;

	ct_build_key(nlh, &record->key);
	if (timeout)
		mnl_attr_put_u32(nlh, CTA_TIMEOUT, htonl(timeout));
	if (!strict || !(record->has & CT_HAS_TCP))
		return;
	info = mnl_attr_nest_start(nlh, CTA_PROTOINFO);
	nest = mnl_attr_nest_start(nlh, CTA_PROTOINFO_TCP);
	put_flags(nlh, record->tcp.flags, IP_CT_TCP_FLAG_BE_LIBERAL);
	mnl_attr_nest_end(nlh, nest);
	mnl_attr_nest_end(nlh, info);
}
