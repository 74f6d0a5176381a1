/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <endian.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

#include "netlink.h"

/* The payload of an attribute that must be @len bytes long, or NULL. */
static const void *payload(const struct nlattr *attr, size_t len)
{
	return mnl_attr_get_payload_len(attr) >= len ? mnl_attr_get_payload(attr) : NULL;
}

static uint32_t get_u32(const struct nlattr *attr)
{
	uint32_t v = 0;

	if (payload(attr, 4))
		memcpy(&v, mnl_attr_get_payload(attr), 4);
	return ntohl(v);
}

static uint16_t get_u16_raw(const struct nlattr *attr)
{
	uint16_t v = 0;

	if (payload(attr, 2))
		memcpy(&v, mnl_attr_get_payload(attr), 2);
	return v;
}

static uint8_t get_u8(const struct nlattr *attr)
{
	const uint8_t *p = payload(attr, 1);

	return p ? *p : 0;
}

static void parse_ip(const struct nlattr *nest, CtTuple *tuple, unsigned *have)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		unsigned type = mnl_attr_get_type(attr);
		size_t len = type <= CTA_IP_V4_DST ? 4 : 16;
		bool src = type == CTA_IP_V4_SRC || type == CTA_IP_V6_SRC;

		if (type < CTA_IP_V4_SRC || type > CTA_IP_V6_DST || !payload(attr, len))
			continue;
		memcpy(src ? tuple->src : tuple->dst, mnl_attr_get_payload(attr), len);
		*have |= src ? 1 : 2;
	}
}

static void parse_proto(const struct nlattr *nest, CtTuple *tuple, uint8_t *protocol)
{
	uint8_t icmp[2] = {};
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_PROTO_NUM:
			*protocol = get_u8(attr);
			break;
		case CTA_PROTO_SRC_PORT:
		case CTA_PROTO_ICMP_ID:
		case CTA_PROTO_ICMPV6_ID:
			tuple->a = get_u16_raw(attr);
			break;
		case CTA_PROTO_DST_PORT:
			tuple->b = get_u16_raw(attr);
			break;
		case CTA_PROTO_ICMP_TYPE:
		case CTA_PROTO_ICMPV6_TYPE:
			icmp[0] = get_u8(attr);
			break;
		case CTA_PROTO_ICMP_CODE:
		case CTA_PROTO_ICMPV6_CODE:
			icmp[1] = get_u8(attr);
			break;
		default:
			break;
		}
	}
	if (ct_protocol_is_icmp(*protocol))
		memcpy(&tuple->b, icmp, 2);
}

/* Return: whether both addresses were there. */
static bool parse_tuple(const struct nlattr *nest, CtTuple *tuple, CtRecord *record, uint8_t zone_dir)
{
	const struct nlattr *attr;
	unsigned have = 0;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_TUPLE_IP:
			parse_ip(attr, tuple, &have);
			break;
		case CTA_TUPLE_PROTO:
			parse_proto(attr, tuple, &record->key.protocol);
			break;
		case CTA_TUPLE_ZONE:
			record->key.zone = ntohs(get_u16_raw(attr));
			record->key.zone_dir = zone_dir;
			break;
		default:
			break;
		}
	}
	return have == 3;
}

static void parse_tcp(const struct nlattr *nest, CtTcp *tcp)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_PROTOINFO_TCP_STATE:
			tcp->state = get_u8(attr);
			break;
		case CTA_PROTOINFO_TCP_WSCALE_ORIGINAL:
			tcp->wscale[0] = get_u8(attr);
			break;
		case CTA_PROTOINFO_TCP_WSCALE_REPLY:
			tcp->wscale[1] = get_u8(attr);
			break;
		case CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: /* struct nf_ct_tcp_flags: flags, then mask */
			tcp->flags[0] = get_u8(attr);
			break;
		case CTA_PROTOINFO_TCP_FLAGS_REPLY:
			tcp->flags[1] = get_u8(attr);
			break;
		default:
			break;
		}
	}
}

static void parse_sctp(const struct nlattr *nest, CtSctp *sctp)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_PROTOINFO_SCTP_STATE:
			sctp->state = get_u8(attr);
			break;
		case CTA_PROTOINFO_SCTP_VTAG_ORIGINAL:
			sctp->vtag[0] = htonl(get_u32(attr));
			break;
		case CTA_PROTOINFO_SCTP_VTAG_REPLY:
			sctp->vtag[1] = htonl(get_u32(attr));
			break;
		default:
			break;
		}
	}
}

static void parse_dccp(const struct nlattr *nest, CtDccp *dccp)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_PROTOINFO_DCCP_STATE:
			dccp->state = get_u8(attr);
			break;
		case CTA_PROTOINFO_DCCP_ROLE:
			dccp->role = get_u8(attr);
			break;
		case CTA_PROTOINFO_DCCP_HANDSHAKE_SEQ:
			if (payload(attr, 8))
				memcpy(&dccp->handshake, mnl_attr_get_payload(attr), 8);
			dccp->handshake = be64toh(dccp->handshake);
			break;
		default:
			break;
		}
	}
}

static void parse_protoinfo(const struct nlattr *nest, CtRecord *record, CtExtra *store)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_PROTOINFO_TCP:
			parse_tcp(attr, &record->tcp);
			record->has |= CT_HAS_TCP;
			break;
		case CTA_PROTOINFO_SCTP:
			if (store) {
				parse_sctp(attr, &store->sctp);
				record->has |= CT_HAS_SCTP;
			}
			break;
		case CTA_PROTOINFO_DCCP:
			if (store) {
				parse_dccp(attr, &store->dccp);
				record->has |= CT_HAS_DCCP;
			}
			break;
		default:
			break;
		}
	}
}

/* A name that fits into @size bytes and is not empty. */
static bool parse_name(const struct nlattr *attr, char *ret, size_t size)
{
	size_t n = strnlen(mnl_attr_get_payload(attr), mnl_attr_get_payload_len(attr));

	if (!n || n >= size)
		return false;
	memcpy(ret, mnl_attr_get_payload(attr), n);
	ret[n] = '\0';
	return ct_name_valid(ret, size);
}

static void parse_seqadj(const struct nlattr *nest, CtSeqadj *adj)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_SEQADJ_CORRECTION_POS:
			adj->position = get_u32(attr);
			break;
		case CTA_SEQADJ_OFFSET_BEFORE:
			adj->before = get_u32(attr);
			break;
		case CTA_SEQADJ_OFFSET_AFTER:
			adj->after = get_u32(attr);
			break;
		default:
			break;
		}
	}
}

static const struct nlattr *find(const struct nlattr *nest, uint16_t type)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest) if (mnl_attr_get_type(attr) == type) return attr;
	return NULL;
}

static void parse_master(const struct nlattr *attr, CtRecord *record, CtExtra *store)
{
	CtRecord scratch = {};

	if (!parse_tuple(attr, &store->master.orig, &scratch, CT_ZONE_ORIG))
		return;
	store->master.protocol = scratch.key.protocol;
	record->has |= CT_HAS_MASTER;
}

static void parse_extra(const struct nlattr *attr, CtRecord *record, CtExtra *store)
{
	const struct nlattr *name;

	switch (mnl_attr_get_type(attr)) {
	case CTA_LABELS:
		if (payload(attr, 4)) {
			size_t n = mnl_attr_get_payload_len(attr);

			memcpy(store->labels, mnl_attr_get_payload(attr), n < CT_LABELS ? n : CT_LABELS);
			record->has |= CT_HAS_LABELS;
		}
		break;
	case CTA_HELP:
		name = find(attr, CTA_HELP_NAME);
		if (name && parse_name(name, store->helper, CT_NAME))
			record->has |= CT_HAS_HELPER;
		break;
	case CTA_SEQ_ADJ_ORIG:
		parse_seqadj(attr, &store->seqadj[0]);
		record->has |= CT_HAS_SEQADJ;
		break;
	case CTA_SEQ_ADJ_REPLY:
		parse_seqadj(attr, &store->seqadj[1]);
		record->has |= CT_HAS_SEQADJ_REPLY;
		break;
	case CTA_TUPLE_MASTER:
		parse_master(attr, record, store);
		break;
	default:
		break;
	}
}

static void parse_expect_nat(const struct nlattr *nest, CtExpect *e)
{
	const struct nlattr *dir = find(nest, CTA_EXPECT_NAT_DIR), *tuple = find(nest, CTA_EXPECT_NAT_TUPLE);
	CtRecord scratch = {};

	if (!dir || !tuple || !parse_tuple(tuple, &e->nat, &scratch, CT_ZONE_ORIG))
		return;
	e->nat_dir = (uint8_t)get_u32(dir);
	e->has_nat = 1;
}

/* The kernel's tuple carries numbers under its mask; so does ours. */
static void mask_key(CtTuple *tuple, const CtTuple *mask)
{
	for (size_t i = 0; i < sizeof(*tuple); i++)
		((uint8_t *)tuple)[i] &= ((const uint8_t *)mask)[i];
}

static void parse_expect_attribute(const struct nlattr *attr, CtRecord *ret, CtExtra *store, unsigned *have)
{
	CtRecord scratch = {};

	switch (mnl_attr_get_type(attr)) {
	case CTA_EXPECT_MASTER:
		parse_master(attr, ret, store);
		break;
	case CTA_EXPECT_TUPLE:
		*have |= parse_tuple(attr, &ret->key.orig, ret, CT_ZONE_ORIG) ? 1 : 0;
		break;
	case CTA_EXPECT_MASK:
		*have |= parse_tuple(attr, &store->expect.mask, &scratch, CT_ZONE_ORIG) ? 2 : 0;
		break;
	case CTA_EXPECT_TIMEOUT:
		ret->timeout = get_u32(attr);
		ret->has |= CT_HAS_TIMEOUT;
		break;
	case CTA_EXPECT_ID:
		ret->id = get_u32(attr);
		ret->has |= CT_HAS_ID;
		break;
	case CTA_EXPECT_HELP_NAME:
		ret->has |= parse_name(attr, store->helper, CT_NAME) ? CT_HAS_HELPER : 0;
		break;
	case CTA_EXPECT_ZONE:
		ret->key.zone = ntohs(get_u16_raw(attr));
		break;
	case CTA_EXPECT_FLAGS:
		store->expect.flags = get_u32(attr);
		break;
	case CTA_EXPECT_CLASS:
		store->expect.class = get_u32(attr);
		break;
	case CTA_EXPECT_NAT:
		parse_expect_nat(attr, &store->expect);
		break;
	case CTA_EXPECT_FN:
		if (!parse_name(attr, store->expect.function, CT_FUNCTION))
			store->expect.function[0] = '\0';
		break;
	default:
		break;
	}
}

/* include/uapi/linux/netfilter/nfnetlink_conntrack.h: enum ctattr_expect */
static bool parse_expect(const struct nlmsghdr *nlh, CtRecord *ret, CtExtra *store)
{
	const struct nlattr *attr;
	unsigned have = 0;

	ret->key.expect = 1;
	mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg)) parse_expect_attribute(attr, ret, store, &have);
	if (have & 2) {
		ret->has |= CT_HAS_EXPECT;
		mask_key(&ret->key.orig, &store->expect.mask);
	}
	return have & 1;
}

static void parse_number(const struct nlattr *attr, CtRecord *record, uint32_t *ret, unsigned has)
{
	*ret = get_u32(attr);
	record->has |= has;
}

static bool parse_entry(const struct nlmsghdr *nlh, CtRecord *ret, CtExtra *store)
{
	const struct nlattr *attr;
	bool orig = false;

	mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg))
	{
		switch (mnl_attr_get_type(attr)) {
		case CTA_TUPLE_ORIG:
			orig = parse_tuple(attr, &ret->key.orig, ret, CT_ZONE_ORIG);
			break;
		case CTA_TUPLE_REPLY:
			if (parse_tuple(attr, &ret->reply, ret, CT_ZONE_REPLY))
				ret->has |= CT_HAS_REPLY;
			break;
		case CTA_ZONE:
			ret->key.zone = ntohs(get_u16_raw(attr));
			ret->key.zone_dir = CT_ZONE_BOTH;
			break;
		case CTA_STATUS:
			parse_number(attr, ret, &ret->status, CT_HAS_STATUS);
			break;
		case CTA_TIMEOUT:
			parse_number(attr, ret, &ret->timeout, CT_HAS_TIMEOUT);
			break;
		case CTA_MARK:
			parse_number(attr, ret, &ret->mark, CT_HAS_MARK);
			break;
		case CTA_ID:
			parse_number(attr, ret, &ret->id, CT_HAS_ID);
			break;
		case CTA_PROTOINFO:
			parse_protoinfo(attr, ret, store);
			break;
		default:
			if (store)
				parse_extra(attr, ret, store);
			break;
		}
	}
	return orig;
}

static bool parse(const struct nlmsghdr *nlh, CtRecord *ret, CtExtra *store)
{
	bool expect = nlh->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK_EXP;

	*ret = (CtRecord){.extra = store};
	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(struct nfgenmsg) || (expect && !store))
		return false;
	ret->key.family = ((const struct nfgenmsg *)mnl_nlmsg_get_payload(nlh))->nfgen_family;
	if (ret->key.family != AF_INET && ret->key.family != AF_INET6)
		return false;
	return expect ? parse_expect(nlh, ret, store) : parse_entry(nlh, ret, store);
}

bool ct_parse(const struct nlmsghdr *nlh, CtRecord *ret)
{
	return parse(nlh, ret, NULL);
}

bool ct_parse_all(const struct nlmsghdr *nlh, CtRecord *ret, CtExtra *store)
{
	*store = (CtExtra){};
	return parse(nlh, ret, store);
}

bool ct_parse_selected(const struct nlmsghdr *nlh, const CtSelect *select)
{
	const struct nlattr *tuple, *nest, *attr;
	uint8_t family;

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(struct nfgenmsg))
		return false;
	if (!select->by_address)
		return true;
	family = ((const struct nfgenmsg *)mnl_nlmsg_get_payload(nlh))->nfgen_family;
	if (family != AF_INET && family != AF_INET6)
		return false;
	mnl_attr_for_each(tuple, nlh, sizeof(struct nfgenmsg))
	{
		if (mnl_attr_get_type(tuple) != CTA_TUPLE_ORIG && mnl_attr_get_type(tuple) != CTA_TUPLE_REPLY)
			continue;
		mnl_attr_for_each_nested(nest, tuple)
		{
			if (mnl_attr_get_type(nest) != CTA_TUPLE_IP)
				continue;
			mnl_attr_for_each_nested(
				attr, nest) if (payload(attr, ct_address_length(family)) &&
						ct_select_has(select, family, mnl_attr_get_payload(attr))) return true;
		}
	}
	return false;
}
