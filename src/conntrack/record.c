/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "record.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_sctp.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "basic/text.h"

bool ct_protocol_has_ports(uint8_t protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP:
	case IPPROTO_GRE:
		return true;
	default:
		return false;
	}
}

/* Question and answer, both ways: invmap[] of nf_conntrack_proto_icmp.c and nf_conntrack_proto_icmpv6.c. */
static const uint8_t icmp_pairs[][2] = {
	{ICMP_ECHO, ICMP_ECHOREPLY},
	{ICMP_TIMESTAMP, ICMP_TIMESTAMPREPLY},
	{ICMP_INFO_REQUEST, ICMP_INFO_REPLY},
	{ICMP_ADDRESS, ICMP_ADDRESSREPLY},
};
static const uint8_t icmp6_pairs[][2] = {
	{ICMP6_ECHO_REQUEST, ICMP6_ECHO_REPLY}, {139, 140}, /* node information, RFC 4620 */
};

static bool icmp_invert(const uint8_t pairs[][2], size_t n, uint8_t type, uint8_t *ret)
{
	for (size_t i = 0; i < n; i++)
		for (int side = 0; side < 2; side++)
			if (pairs[i][side] == type) {
				*ret = pairs[i][!side];
				return true;
			}
	return false;
}

bool ct_tuple_invert(const CtTuple *tuple, uint8_t protocol, CtTuple *ret)
{
	uint8_t icmp[2];

	memcpy(ret->src, tuple->dst, 16);
	memcpy(ret->dst, tuple->src, 16);
	if (!ct_protocol_is_icmp(protocol)) {
		ret->a = tuple->b;
		ret->b = tuple->a;
		return true;
	}
	ret->a = tuple->a;
	memcpy(icmp, &tuple->b, 2);
	if (!(protocol == IPPROTO_ICMP ? icmp_invert(icmp_pairs, ARRAY_SIZE(icmp_pairs), icmp[0], icmp)
				       : icmp_invert(icmp6_pairs, ARRAY_SIZE(icmp6_pairs), icmp[0], icmp)))
		return false;
	memcpy(&ret->b, icmp, 2);
	return true;
}

static const struct {
	unsigned has;
	size_t offset, size;
	size_t compared; /* bytes of it whose change counts as one; 0: all */
} extras[] = {
	{CT_HAS_LABELS, offsetof(CtExtra, labels), sizeof((CtExtra){}.labels)},
	{CT_HAS_HELPER, offsetof(CtExtra, helper), sizeof((CtExtra){}.helper)},
	{CT_HAS_SEQADJ, offsetof(CtExtra, seqadj[0]), sizeof(CtSeqadj)},
	{CT_HAS_SEQADJ_REPLY, offsetof(CtExtra, seqadj[1]), sizeof(CtSeqadj)},
	{CT_HAS_MASTER, offsetof(CtExtra, master), sizeof(CtMaster)},
	{CT_HAS_SCTP, offsetof(CtExtra, sctp), sizeof(CtSctp)},
	{CT_HAS_DCCP, offsetof(CtExtra, dccp), sizeof(CtDccp)},
	{CT_HAS_EXPECT, offsetof(CtExtra, expect), sizeof(CtExpect)},
	{CT_HAS_CILIUM, offsetof(CtExtra, cilium), sizeof(CtCilium), offsetof(CtCilium, rx_flags) + 1},
};

static void take_extra(CtRecord *record, const CtRecord *from, unsigned has)
{
	if (!(has & CT_HAS_EXTRA) || !from->extra)
		return;
	if (!record->extra)
		record->extra = xcalloc(1, sizeof(CtExtra));
	for (size_t i = 0; i < ARRAY_SIZE(extras); i++)
		if (has & extras[i].has)
			memcpy((char *)record->extra + extras[i].offset, (char *)from->extra + extras[i].offset,
			       extras[i].size);
}

void ct_record_assign(CtRecord *to, const CtRecord *from)
{
	CtExtra *own = to->extra;

	*to = *from;
	to->extra = own;
	take_extra(to, from, from->has);
}

void ct_record_clear(CtRecord *record)
{
	free(record->extra);
	*record = (CtRecord){};
}

bool ct_record_same_extra(const CtRecord *a, const CtRecord *b, unsigned has)
{
	if ((a->has ^ b->has) & has & CT_HAS_EXTRA)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(extras); i++)
		if ((a->has & has & extras[i].has) &&
		    memcmp((char *)a->extra + extras[i].offset, (char *)b->extra + extras[i].offset,
			   extras[i].compared ?: extras[i].size) != 0)
			return false;
	return true;
}

bool ct_record_refreshed(const CtRecord *a, const CtRecord *b)
{
	return (a->has & b->has & CT_HAS_CILIUM) &&
	       b->extra->cilium.expires > a->extra->cilium.expires + a->timeout / 4;
}

uint32_t ct_record_left(const CtRecord *record, uint32_t now)
{
	uint32_t expires = record->extra->cilium.expires;

	return expires > now ? expires - now : 1;
}

bool ct_name_valid(const char *name, size_t size)
{
	size_t n = strnlen(name, size);

	for (size_t i = 0; i < n; i++)
		if (name[i] <= ' ' || name[i] > '~')
			return false;
	return n > 0 && n < size;
}

bool ct_record_master(const CtRecord *record, CtKey *ret)
{
	if (!(record->has & CT_HAS_MASTER))
		return false;
	*ret = (CtKey){.orig = record->extra->master.orig,
		       .family = record->key.family,
		       .protocol = record->extra->master.protocol,
		       .zone = record->key.zone,
		       .zone_dir = record->key.zone_dir};
	return true;
}

static void take(CtRecord *record, const CtRecord *from, unsigned has)
{
	if (has & CT_HAS_REPLY)
		record->reply = from->reply;
	if (has & CT_HAS_STATUS)
		record->status = from->status;
	if (has & CT_HAS_TIMEOUT)
		record->timeout = from->timeout;
	if (has & CT_HAS_MARK)
		record->mark = from->mark;
	if (has & CT_HAS_ID)
		record->id = from->id;
	if (has & CT_HAS_TCP)
		record->tcp = from->tcp;
	take_extra(record, from, has);
	record->has |= has;
}

void ct_record_merge(CtRecord *record, const CtRecord *from)
{
	take(record, from, from->has);
}

void ct_record_fill(CtRecord *record, const CtRecord *from)
{
	take(record, from, from->has & ~record->has);
}

bool ct_record_complete(const CtRecord *record)
{
	unsigned need = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT;

	if (record->key.expect)
		need = CT_HAS_EXPECT | CT_HAS_MASTER | CT_HAS_TIMEOUT;
	else if (record->key.map == CT_MAP_CILIUM)
		need |= CT_HAS_CILIUM;
	else if (record->key.protocol == IPPROTO_TCP)
		need |= CT_HAS_TCP;
	return (record->has & need) == need;
}

/* All but the addresses. A mark that is not told is 0: the kernel leaves that one out. */
static bool rest_selected(const CtRecord *record, const CtSelect *select)
{
	return !ct_select_empty(select) && (!select->by_zone || record->key.zone == select->zone) &&
	       (!select->by_mark || (record->mark & select->mark_mask) == select->mark);
}

bool ct_record_selected(const CtRecord *record, const CtSelect *select)
{
	uint8_t family = record->key.family;

	if (!rest_selected(record, select) || !select->by_address)
		return rest_selected(record, select);
	return ct_select_has(select, family, record->key.orig.src) ||
	       ct_select_has(select, family, record->key.orig.dst) ||
	       ((record->has & CT_HAS_REPLY) &&
		(ct_select_has(select, family, record->reply.src) || ct_select_has(select, family, record->reply.dst)));
}

bool ct_record_owned(const CtRecord *record, const CtSelect *select)
{
	uint8_t family = record->key.family;

	if (!rest_selected(record, select) || !select->by_address)
		return rest_selected(record, select);
	return ct_select_has(select, family, record->key.orig.src) ||
	       ((record->has & CT_HAS_REPLY) && ct_select_has(select, family, record->reply.src));
}

static const struct {
	uint8_t protocol;
	const char *name;
} protocols[] = {
	{IPPROTO_TCP, "tcp"},	{IPPROTO_UDP, "udp"},	{IPPROTO_ICMP, "icmp"}, {IPPROTO_ICMPV6, "icmpv6"},
	{IPPROTO_SCTP, "sctp"}, {IPPROTO_DCCP, "dccp"}, {IPPROTO_GRE, "gre"},	{IPPROTO_UDPLITE, "udplite"},
};

const char *ct_protocol_name(uint8_t protocol)
{
	for (size_t i = 0; i < ARRAY_SIZE(protocols); i++)
		if (protocols[i].protocol == protocol)
			return protocols[i].name;
	return NULL;
}

int ct_protocol_number(const char *text)
{
	uint64_t n;

	for (size_t i = 0; i < ARRAY_SIZE(protocols); i++)
		if (streq(protocols[i].name, text))
			return protocols[i].protocol;
	return text_parse_u64(text, &n) < 0 || n > UINT8_MAX ? -EINVAL : (int)n;
}

/* enum tcp_conntrack of nf_conntrack_tcp.h; "LISTEN" is what is called SYN_SENT2 today. */
static const char *const tcp_states[TCP_CONNTRACK_MAX] = {
	[TCP_CONNTRACK_NONE] = "NONE",	       [TCP_CONNTRACK_SYN_SENT] = "SYN_SENT",
	[TCP_CONNTRACK_SYN_RECV] = "SYN_RECV", [TCP_CONNTRACK_ESTABLISHED] = "ESTABLISHED",
	[TCP_CONNTRACK_FIN_WAIT] = "FIN_WAIT", [TCP_CONNTRACK_CLOSE_WAIT] = "CLOSE_WAIT",
	[TCP_CONNTRACK_LAST_ACK] = "LAST_ACK", [TCP_CONNTRACK_TIME_WAIT] = "TIME_WAIT",
	[TCP_CONNTRACK_CLOSE] = "CLOSE",       [TCP_CONNTRACK_LISTEN] = "SYN_SENT2",
};

const char *ct_tcp_state_name(uint8_t state)
{
	return state < TCP_CONNTRACK_MAX ? tcp_states[state] : NULL;
}

/* enum sctp_conntrack of nf_conntrack_sctp.h */
static const char *const sctp_states[] = {
	[SCTP_CONNTRACK_NONE] = "NONE",
	[SCTP_CONNTRACK_CLOSED] = "CLOSED",
	[SCTP_CONNTRACK_COOKIE_WAIT] = "COOKIE_WAIT",
	[SCTP_CONNTRACK_COOKIE_ECHOED] = "COOKIE_ECHOED",
	[SCTP_CONNTRACK_ESTABLISHED] = "ESTABLISHED",
	[SCTP_CONNTRACK_SHUTDOWN_SENT] = "SHUTDOWN_SENT",
	[SCTP_CONNTRACK_SHUTDOWN_RECD] = "SHUTDOWN_RECD",
	[SCTP_CONNTRACK_SHUTDOWN_ACK_SENT] = "SHUTDOWN_ACK_SENT",
	[SCTP_CONNTRACK_HEARTBEAT_SENT] = "HEARTBEAT_SENT",
};

const char *ct_sctp_state_name(uint8_t state)
{
	return state < ARRAY_SIZE(sctp_states) ? sctp_states[state] : NULL;
}

/* enum ct_dccp_states of nf_conntrack_dccp.h, which is not in every uapi any more */
static const char *const dccp_states[] = {"NONE",     "REQUEST", "RESPOND",  "PARTOPEN", "OPEN",
					  "CLOSEREQ", "CLOSING", "TIMEWAIT", "IGNORE",	 "INVALID"};
static_assert(ARRAY_SIZE(dccp_states) == CT_DCCP_STATES, "a name for each");

const char *ct_dccp_state_name(uint8_t state)
{
	return state < ARRAY_SIZE(dccp_states) ? dccp_states[state] : NULL;
}

void ct_record_describe(const CtRecord *record, char *ret, size_t size)
{
	const CtKey *key = &record->key;
	char src[INET6_ADDRSTRLEN] = "?", dst[INET6_ADDRSTRLEN] = "?", number[8];
	const char *name = ct_protocol_name(key->protocol);

	inet_ntop(key->family, key->orig.src, src, sizeof(src));
	inet_ntop(key->family, key->orig.dst, dst, sizeof(dst));
	snprintf(number, sizeof(number), "%u", key->protocol);
	if (ct_protocol_has_ports(key->protocol))
		snprintf(ret, size, key->family == AF_INET ? "%s %s:%u -> %s:%u" : "%s [%s]:%u -> [%s]:%u",
			 name ?: number, src, ntohs(key->orig.a), dst, ntohs(key->orig.b));
	else
		snprintf(ret, size, "%s %s -> %s", name ?: number, src, dst);
}
