/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the above */
#include <cmocka.h>

#include <arpa/inet.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>

#include "conntrack/netlink.h"

static uint8_t buffer[2048] __attribute__((aligned(8)));

static CtRecord record_new(uint8_t family, uint8_t protocol)
{
	CtRecord r = {.key = {.family = family, .protocol = protocol}};

	memset(r.key.orig.src, 1, ct_address_length(family));
	memset(r.key.orig.dst, 2, ct_address_length(family));
	r.key.orig.a = htons(1000);
	r.key.orig.b = ct_protocol_is_icmp(protocol) ? htons(family == AF_INET ? 8 << 8 : 128 << 8) : htons(80);
	assert_true(ct_tuple_invert(&r.key.orig, protocol, &r.reply));
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_MARK;
	r.status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED;
	r.timeout = 77;
	r.mark = 0x1234;
	if (protocol == IPPROTO_TCP) {
		r.tcp = (CtTcp){.state = TCP_CONNTRACK_ESTABLISHED, .wscale = {7, 3}, .flags = {0x03, 0x13}};
		r.has |= CT_HAS_TCP;
	}
	return r;
}

static struct nlmsghdr *build(const CtRecord *r, bool create, bool liberal, uint32_t mask)
{
	CtBuild how = {.create = create, .liberal = liberal, .timeout = r->timeout, .mark_mask = mask};
	struct nlmsghdr *nlh = ct_message_begin(buffer, IPCTNL_MSG_CT_NEW, 0, r->key.family, 1);

	ct_build(nlh, r, &how);
	return nlh;
}

static void assert_same(const CtRecord *a, const CtRecord *b)
{
	assert_memory_equal(&a->key, &b->key, sizeof(a->key));
	assert_memory_equal(&a->reply, &b->reply, sizeof(a->reply));
	assert_int_equal(a->status, b->status);
	assert_int_equal(a->timeout, b->timeout);
	assert_int_equal(a->mark, b->mark);
	assert_memory_equal(&a->tcp, &b->tcp, sizeof(a->tcp));
	assert_int_equal(a->has, b->has);
}

/* What is built is parsed again as it was; IPv4 and IPv6, with and without zone. */
static void test_round_trip(void **state)
{
	static const uint8_t kinds[][2] = {
		{AF_INET, IPPROTO_TCP},	 {AF_INET6, IPPROTO_TCP},     {AF_INET, IPPROTO_UDP},
		{AF_INET6, IPPROTO_UDP}, {AF_INET, IPPROTO_ICMP},     {AF_INET6, IPPROTO_ICMPV6},
		{AF_INET, IPPROTO_GRE},	 {AF_INET6, IPPROTO_UDPLITE},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		for (uint8_t dir = 0; dir <= CT_ZONE_MAX + 1; dir++) {
			CtRecord r = record_new(kinds[i][0], kinds[i][1]), back;

			if (dir <= CT_ZONE_MAX) {
				r.key.zone = 300;
				r.key.zone_dir = dir;
			}
			assert_true(ct_parse(build(&r, true, false, UINT32_MAX), &back));
			if (r.key.protocol == IPPROTO_GRE)
				r.status |= IPS_FIXED_TIMEOUT; /* CT_GRE_SECONDS */
			assert_same(&r, &back);
		}
}

/* An expectation, and a child, of a master in a zone: the zone stands where the kernel takes one, and nowhere else. */
static void test_zones_of_masters(void **state)
{
	static CtExtra extra, store;

	(void)state;
	for (uint8_t dir = 0; dir <= CT_ZONE_MAX; dir++) {
		CtRecord r = record_new(AF_INET, IPPROTO_TCP), back;
		const struct nlattr *zone = NULL, *attr;
		struct nlmsghdr *nlh;

		extra = (CtExtra){.master = {.orig = r.key.orig, .protocol = IPPROTO_TCP}, .helper = "ftp"};
		memset(&extra.expect.mask, 0xff, sizeof(extra.expect.mask));
		memset(extra.expect.mask.src + 4, 0, 12);
		memset(extra.expect.mask.dst + 4, 0, 12);
		strcpy(extra.expect.function, "nat-follow-master");
		extra.expect.has_nat = 1;
		extra.expect.nat = r.key.orig;
		r.key.expect = 1;
		r.key.zone = 7;
		r.key.zone_dir = dir;
		r.extra = &extra;
		r.has = CT_HAS_EXPECT | CT_HAS_MASTER | CT_HAS_HELPER | CT_HAS_TIMEOUT;
		nlh = ct_message_begin(buffer, CT_EXPECT(IPCTNL_MSG_EXP_NEW), 0, AF_INET, 1);
		ct_build_expect(nlh, &r);
		assert_true(nlh->nlmsg_len <= CT_MESSAGE_MAX);
		mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg))
		{
			const struct nlattr *inner;

			if (mnl_attr_get_type(attr) == CTA_EXPECT_ZONE)
				zone = attr;
			if (mnl_attr_get_type(attr) > CTA_EXPECT_MASK)
				continue;
			mnl_attr_for_each_nested(inner, attr)
				assert_int_not_equal(mnl_attr_get_type(inner), CTA_TUPLE_ZONE);
		}
		assert_int_equal(zone != NULL, dir != CT_ZONE_REPLY);
		assert_true(ct_parse_all(nlh, &back, &store));
		assert_memory_equal(&back.key.orig, &r.key.orig, sizeof(r.key.orig));
		assert_true(back.key.expect);
		assert_int_equal(back.has, r.has);
		assert_true(ct_record_same_extra(&r, &back, CT_HAS_EXTRA));

		/* The child of that master. */
		r = record_new(AF_INET, IPPROTO_TCP);
		r.key.zone = 7;
		r.key.zone_dir = dir;
		r.extra = &extra;
		r.has |= CT_HAS_MASTER;
		nlh = build(&r, true, false, 0);
		mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg))
		{
			const struct nlattr *inner;

			if (mnl_attr_get_type(attr) != CTA_TUPLE_MASTER)
				continue;
			mnl_attr_for_each_nested(inner, attr)
				assert_int_not_equal(mnl_attr_get_type(inner), CTA_TUPLE_ZONE);
		}
	}
}

/* What few entries have goes through the kernel's form and back. */
static void test_extras(void **state)
{
	static CtExtra extra, store;
	CtRecord r = record_new(AF_INET6, IPPROTO_SCTP), back;
	struct nlmsghdr *nlh = ct_message_begin(buffer, IPCTNL_MSG_CT_NEW, 0, AF_INET6, 1);

	(void)state;
	extra = (CtExtra){.helper = "Q.931", .master = {.orig = r.key.orig, .protocol = IPPROTO_TCP}};
	extra.sctp.vtag[1] = 2;
	extra.sctp.state = 3;
	memset(extra.labels, 0x11, sizeof(extra.labels));
	memset(extra.seqadj, 0x22, sizeof(extra.seqadj));
	r.extra = &extra;
	r.key.zone = 9;
	r.key.zone_dir = CT_ZONE_ORIG;
	r.status |= IPS_NAT_MASK;
	r.has |= CT_HAS_LABELS | CT_HAS_HELPER | CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY | CT_HAS_MASTER | CT_HAS_SCTP;
	ct_build_as_is(nlh, &r);
	assert_true(ct_parse_all(nlh, &back, &store));
	assert_same(&r, &back);
	assert_true(ct_record_same_extra(&r, &back, CT_HAS_EXTRA));
	assert_true(build(&r, true, true, UINT32_MAX)->nlmsg_len <= CT_MESSAGE_MAX);
	strcpy(extra.helper, "two words");
	nlh = ct_message_begin(buffer, IPCTNL_MSG_CT_NEW, 0, AF_INET6, 1);
	ct_build_as_is(nlh, &r);
	assert_true(ct_parse_all(nlh, &back, &store));
	assert_false(back.has & CT_HAS_HELPER); /* nobody would take it */
}

static const struct nlattr *find(const struct nlmsghdr *nlh, uint16_t type)
{
	const struct nlattr *attr;

	mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg)) if (mnl_attr_get_type(attr) == type) return attr;
	return NULL;
}

static const struct nlattr *find_in(const struct nlattr *nest, uint16_t type)
{
	const struct nlattr *attr;

	assert_non_null(nest);
	mnl_attr_for_each_nested(attr, nest) if (mnl_attr_get_type(attr) == type) return attr;
	return NULL;
}

static void test_nat(void **state)
{
	CtRecord r = record_new(AF_INET, IPPROTO_TCP), back;
	const struct nlattr *dst, *src, *proto;
	struct nlmsghdr *nlh;
	CtTuple inverse;

	(void)state;
	memcpy(r.reply.src, "\x0a\0\0\x05", 4);
	r.reply.a = htons(8080);
	memcpy(r.reply.dst, "\x0a\0\0\x01", 4);
	r.reply.b = htons(4000);
	r.status |= IPS_NAT_MASK | IPS_NAT_DONE_MASK | IPS_EXPECTED | IPS_OFFLOAD;
	nlh = build(&r, true, false, 0);
	assert_true(ct_parse(nlh, &back));
	(void)ct_tuple_invert(&r.key.orig, IPPROTO_TCP, &inverse);
	assert_memory_equal(&back.reply, &inverse, sizeof(inverse));
	assert_int_equal(back.status, IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED);
	assert_false(back.has & CT_HAS_MARK);
	dst = find(nlh, CTA_NAT_DST);
	src = find(nlh, CTA_NAT_SRC);
	assert_memory_equal(mnl_attr_get_payload(find_in(dst, CTA_NAT_V4_MINIP)), r.reply.src, 4);
	assert_memory_equal(mnl_attr_get_payload(find_in(src, CTA_NAT_V4_MAXIP)), r.reply.dst, 4);
	proto = find_in(dst, CTA_NAT_PROTO);
	assert_int_equal(mnl_attr_get_u16(find_in(proto, CTA_PROTONAT_PORT_MIN)), htons(8080));
	proto = find_in(src, CTA_NAT_PROTO);
	assert_int_equal(mnl_attr_get_u16(find_in(proto, CTA_PROTONAT_PORT_MAX)), htons(4000));
	nlh = build(&r, false, false, 0); /* an update with NAT would be EOPNOTSUPP */
	assert_null(find(nlh, CTA_NAT_DST));
	assert_null(find(nlh, CTA_NAT_SRC));
	assert_null(find(nlh, CTA_TUPLE_REPLY));
}

static void test_tcp_flags(void **state)
{
	CtRecord r = record_new(AF_INET, IPPROTO_TCP), back;
	const struct nf_ct_tcp_flags *flags;
	struct nlmsghdr *nlh;
	const struct nlattr *tcp;

	(void)state;
	r.tcp.flags[1] |= IP_CT_TCP_FLAG_MAXACK_SET; /* what it says is known is not carried */
	nlh = build(&r, true, true, 0);
	tcp = find_in(find(nlh, CTA_PROTOINFO), CTA_PROTOINFO_TCP);
	flags = mnl_attr_get_payload(find_in(tcp, CTA_PROTOINFO_TCP_FLAGS_REPLY));
	assert_int_equal(flags->flags, 0x13 | IP_CT_TCP_FLAG_BE_LIBERAL);
	assert_int_equal(flags->mask, 0xff);
	nlh = ct_message_begin(buffer, IPCTNL_MSG_CT_NEW, 0, AF_INET, 1);
	ct_build_settle(nlh, &r, 0, true);
	assert_true(ct_parse(nlh, &back));
	assert_int_equal(back.has, CT_HAS_TCP); /* no status, no timeout, and of TCP only the flags: */
	tcp = find_in(find(nlh, CTA_PROTOINFO), CTA_PROTOINFO_TCP);
	assert_null(find_in(tcp, CTA_PROTOINFO_TCP_STATE));
	flags = mnl_attr_get_payload(find_in(tcp, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL));
	assert_int_equal(flags->flags & flags->mask, 0);
	assert_int_equal(flags->mask, IP_CT_TCP_FLAG_BE_LIBERAL);
}

/* The kernel takes scales only from two sides that have their flag, also where the other has said nothing yet. */
static void test_window_scale(void **state)
{
	CtRecord r = record_new(AF_INET, IPPROTO_TCP), back;

	(void)state;
	r.tcp = (CtTcp){.state = TCP_CONNTRACK_SYN_SENT, .wscale = {7, 0}, .flags = {0x03, 0}};
	assert_true(ct_parse(build(&r, true, false, 0), &back));
	assert_int_equal(back.tcp.flags[1], IP_CT_TCP_FLAG_WINDOW_SCALE);
	r.tcp = (CtTcp){.state = TCP_CONNTRACK_SYN_SENT, .flags = {0x02, 0}};
	assert_true(ct_parse(build(&r, true, false, 0), &back));
	assert_int_equal(back.tcp.flags[1], 0);
}

/* The kernel answers EINVAL to a zone in the tuples of an expectation and in that of a master. */
static void test_expectation(void **state)
{
	CtExtra extra = {.helper = "ftp",
			 .master = {.protocol = IPPROTO_TCP, .orig.a = htons(5), .orig.b = htons(21)},
			 .expect = {.mask.b = 0xffff, .has_nat = 1, .function = "nat-follow-master"}};
	static const uint16_t tuples[] = {CTA_EXPECT_MASTER, CTA_EXPECT_TUPLE, CTA_EXPECT_MASK};

	(void)state;
	for (uint8_t dir = 0; dir <= CT_ZONE_MAX; dir++) {
		CtRecord r = record_new(AF_INET, IPPROTO_TCP), back;
		struct nlmsghdr *nlh = ct_message_begin(buffer, CT_EXPECT(IPCTNL_MSG_EXP_NEW), 0, AF_INET, 1);
		CtExtra store;

		r.extra = &extra;
		r.has |= CT_HAS_MASTER | CT_HAS_HELPER | CT_HAS_EXPECT;
		r.key.expect = 1;
		r.key.zone = 300;
		r.key.zone_dir = dir;
		ct_build_expect(nlh, &r);
		for (size_t i = 0; i < ARRAY_SIZE(tuples); i++)
			assert_null(find_in(find(nlh, tuples[i]), CTA_TUPLE_ZONE));
		assert_int_equal(find(nlh, CTA_EXPECT_ZONE) != NULL, dir != CT_ZONE_REPLY);
		assert_true(ct_parse_all(nlh, &back, &store));
		assert_string_equal(store.expect.function, "nat-follow-master");
	}
}

static void test_mark_mask(void **state)
{
	CtRecord r = record_new(AF_INET, IPPROTO_UDP), back;

	(void)state;
	assert_true(ct_parse(build(&r, false, false, 0xff00), &back));
	assert_int_equal(back.mark, 0x1200);
	assert_non_null(find((struct nlmsghdr *)buffer, CTA_MARK_MASK));
}

static void test_largest_fits_a_batch(void **state)
{
	CtRecord r = record_new(AF_INET6, IPPROTO_TCP);

	(void)state;
	r.status |= IPS_NAT_MASK;
	r.key.zone = 5;
	assert_true(build(&r, true, true, UINT32_MAX)->nlmsg_len <= CT_BATCH_BYTES / CT_BATCH_MESSAGES);
	r.key.zone_dir = CT_ZONE_ORIG;
	assert_true(build(&r, true, true, UINT32_MAX)->nlmsg_len <= CT_BATCH_BYTES / CT_BATCH_MESSAGES);
}

static void test_select(void **state)
{
	char *good[] = {(char[]){"10.0.0.5"}, (char[]){"fd00::5"}, NULL};
	char *bad[] = {(char[]){"10.0.0.5"}, (char[]){"10.0.0.0/8"}, NULL};
	char *zero[] = {(char[]){"::"}, NULL};
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL;
	_cleanup_error_ Error *err = NULL;
	CtSelect *none = NULL;
	CtRecord r = record_new(AF_INET, IPPROTO_UDP);
	struct nlmsghdr *nlh;

	(void)state;
	assert_int_equal(ct_select_new(bad, &none, &err), -EINVAL);
	assert_string_equal(err->message, "'10.0.0.0/8' is not an address of a VM");
	assert_int_equal(ct_select_new(zero, &none, NULL), -EINVAL);
	assert_null(none);
	assert_int_equal(ct_select_new(good, &select, NULL), 0);
	nlh = build(&r, true, false, 0);
	assert_false(ct_parse_selected(nlh, select));
	memcpy(r.reply.dst, "\x0a\0\0\x05", 4);
	assert_true(ct_parse_selected(build(&r, true, false, 0), select));
	assert_true(ct_record_selected(&r, select));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zones_of_masters), cmocka_unit_test(test_extras),
		cmocka_unit_test(test_round_trip),	 cmocka_unit_test(test_nat),
		cmocka_unit_test(test_tcp_flags),	 cmocka_unit_test(test_mark_mask),
		cmocka_unit_test(test_window_scale),	 cmocka_unit_test(test_expectation),
		cmocka_unit_test(test_select),		 cmocka_unit_test(test_largest_fits_a_batch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
