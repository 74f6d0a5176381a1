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

#include "basic/crc32.h"
#include "basic/text.h"
#include "conntrack/cilium.h"
#include "conntrack/wire.h"

static CtRecord record_new(const char *src, const char *dst, uint8_t protocol, uint16_t a, uint16_t b)
{
	CtRecord r = {.key = {.family = strchr(src, ':') ? AF_INET6 : AF_INET, .protocol = protocol}};

	assert_int_equal(inet_pton(r.key.family, src, r.key.orig.src), 1);
	assert_int_equal(inet_pton(r.key.family, dst, r.key.orig.dst), 1);
	r.key.orig.a = htons(a);
	r.key.orig.b = htons(b);
	assert_true(ct_tuple_invert(&r.key.orig, protocol, &r.reply));
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT;
	r.status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED;
	r.timeout = 432000;
	if (protocol == IPPROTO_TCP) {
		r.tcp = (CtTcp){.state = TCP_CONNTRACK_ESTABLISHED, .wscale = {7, 10}, .flags = {0x33, 0x23}};
		r.has |= CT_HAS_TCP;
	}
	return r;
}

/* One batch with one record. Return: its length. */
static size_t batch_of(uint8_t *batch, CtWireOp op, const CtRecord *record)
{
	size_t len = CT_WIRE_HEADER + ct_wire_record(batch + CT_WIRE_HEADER, op, record);

	ct_wire_header(batch, len, 1);
	return len;
}

static int read_one(const uint8_t *batch, size_t len, CtWireOp *op, CtRecord *ret, const char **why)
{
	CtWireReader reader;
	int r;

	ct_wire_read(&reader, batch, len);
	r = ct_wire_next(&reader, op, ret);
	*why = reader.why;
	return r;
}

static void assert_same(const CtRecord *a, const CtRecord *b)
{
	assert_memory_equal(&a->key, &b->key, sizeof(a->key));
	assert_memory_equal(&a->reply, &b->reply, sizeof(a->reply));
	assert_int_equal(a->status, b->status);
	assert_int_equal(a->timeout, b->timeout);
	assert_int_equal(a->mark, b->mark);
	assert_memory_equal(&a->tcp, &b->tcp, sizeof(a->tcp));
	assert_int_equal(a->has & CT_HAS_TCP, b->has & CT_HAS_TCP);
	assert_true(ct_record_same_extra(a, b, CT_HAS_EXTRA));
}

static void assert_round_trip(CtWireOp op, const CtRecord *record)
{
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	size_t len = batch_of(batch, op, record);
	CtWireReader reader;
	CtRecord back;
	CtWireOp back_op;

	assert_true(len <= sizeof(batch));
	ct_wire_read(&reader, batch, len);
	assert_int_equal(ct_wire_next(&reader, &back_op, &back), 1);
	assert_int_equal(back_op, op);
	assert_same(record, &back);
}

/* docs/wire.md's example: these bytes never change for version 1. */
static void test_golden(void **state)
{
	static const char golden[] = "5646435401000000000000010000001875ad7cd6"
				     "0006"		/* put, TCP */
				     "0a000005c0000201" /* 10.0.0.5 192.0.2.1 */
				     "04d20050"		/* 1234 80 */
				     "000e00069780"	/* status, timeout */
				     "037a3323";	/* ESTABLISHED, scales 7 and 10, flags */
	CtRecord record = record_new("10.0.0.5", "192.0.2.1", IPPROTO_TCP, 1234, 80);
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	size_t len = batch_of(batch, CT_WIRE_PUT, &record);
	_cleanup_free_ char *hex = text_hex(batch, len);

	(void)state;
	assert_true(len - CT_WIRE_HEADER <= 32);
	assert_string_equal(hex, golden);
}

static void test_end(void **state)
{
	uint8_t batch[CT_WIRE_HEADER];
	_cleanup_free_ char *hex = NULL;
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;

	(void)state;
	ct_wire_end(batch);
	hex = text_hex(batch, sizeof(batch));
	assert_string_equal(hex, "5646435401010000000000000000000031b25938");
	assert_int_equal(ct_wire_length(batch), CT_WIRE_HEADER);
	ct_wire_read(&reader, batch, sizeof(batch));
	assert_int_equal(ct_wire_next(&reader, &op, &record), 0);
	assert_true(reader.ended);
	assert_false(reader.back);
	ct_wire_back(batch);
	ct_wire_read(&reader, batch, sizeof(batch));
	assert_int_equal(ct_wire_next(&reader, &op, &record), 0);
	assert_true(reader.back && !reader.ended);
	batch[5] = 4; /* a flag of later */
	ct_wire_read(&reader, batch, sizeof(batch));
	assert_int_equal(ct_wire_next(&reader, &op, &record), -EBADMSG);
	assert_string_equal(reader.why, "unknown version of the format");
	batch[0] = 0;
	assert_int_equal(ct_wire_length(batch), 0);
}

static void test_golden_all(void **state)
{
	static const char golden[] = "1d11"				/* replace, IPv6, reply, attributes; UDP */
				     "fd000000000000000000000000000005" /* original */
				     "fd000000000000000000000000000009"
				     "13880035"
				     "20010db8000000000000000100000000" /* reply */
				     "fd000000000000000000000000000005"
				     "00351388"
				     "00280000001e" /* status, timeout */
				     "000b"	    /* bytes of attributes */
				     "010400000042" /* mark */
				     "8203000701" /* zone 7, original direction */;
	CtRecord record = record_new("fd00::5", "fd00::9", IPPROTO_UDP, 5000, 53);
	uint8_t bytes[CT_WIRE_RECORD_MAX];
	_cleanup_free_ char *hex = NULL;

	(void)state;
	inet_pton(AF_INET6, "2001:db8::1:0:0", record.reply.src);
	record.status = IPS_CONFIRMED | IPS_DST_NAT;
	record.timeout = 30;
	record.mark = 0x42;
	record.has |= CT_HAS_MARK;
	record.key.zone = 7;
	record.key.zone_dir = CT_ZONE_ORIG;
	hex = text_hex(bytes, ct_wire_record(bytes, CT_WIRE_REPLACE, &record));
	assert_string_equal(hex, golden);
}

static CtExtra extra; /* of the record made last */

static CtRecord record_extra(const char *src, const char *dst, uint8_t protocol, uint16_t a, uint16_t b)
{
	CtRecord r = record_new(src, dst, protocol, a, b);

	extra = (CtExtra){};
	r.extra = &extra;
	return r;
}

static CtTuple tuple_of(const char *src, const char *dst, uint16_t a, uint16_t b)
{
	return record_new(src, dst, IPPROTO_UDP, a, b).key.orig;
}

static CtRecord record_labels_helper(void)
{
	CtRecord r = record_extra("10.0.0.5", "192.0.2.1", IPPROTO_UDP, 4660, 69);

	memset(extra.labels, 0xa5, CT_LABELS);
	strcpy(extra.helper, "tftp");
	r.has |= CT_HAS_LABELS | CT_HAS_HELPER;
	return r;
}

static CtRecord record_child(void)
{
	CtRecord r = record_extra("10.0.0.5", "192.0.2.1", IPPROTO_UDP, 4660, 69);

	extra.master = (CtMaster){.orig = tuple_of("10.0.0.5", "192.0.2.1", 1234, 21), .protocol = IPPROTO_TCP};
	extra.seqadj[0] = (CtSeqadj){.position = 0x01020304, .before = 5, .after = (uint32_t)-6};
	extra.seqadj[1] = (CtSeqadj){.position = 7, .before = 8, .after = 9};
	r.has |= CT_HAS_MASTER | CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY;
	return r;
}

static CtRecord record_sctp(void)
{
	CtRecord r = record_extra("10.0.0.5", "192.0.2.1", IPPROTO_SCTP, 1000, 2000);

	extra.sctp = (CtSctp){.vtag = {htonl(0xdeadbeef), htonl(0x12345678)}, .state = 4};
	r.has |= CT_HAS_SCTP;
	return r;
}

static CtRecord record_dccp(void)
{
	CtRecord r = record_extra("10.0.0.5", "192.0.2.1", IPPROTO_DCCP, 1000, 2000);

	extra.dccp = (CtDccp){.handshake = 0x0102030405060708, .state = 4, .role = 1};
	r.has |= CT_HAS_DCCP;
	return r;
}

static CtRecord record_expectation(bool nat)
{
	CtRecord r = record_extra("192.0.2.1", "10.0.0.5", IPPROTO_TCP, 0, 40000);

	r.key.expect = 1;
	r.has = CT_HAS_TIMEOUT | CT_HAS_EXPECT | CT_HAS_MASTER | CT_HAS_HELPER | CT_HAS_STATUS | CT_HAS_REPLY;
	r.status = 0;
	r.timeout = 300;
	r.tcp = (CtTcp){};
	extra.master = (CtMaster){.orig = tuple_of("10.0.0.5", "192.0.2.1", 1234, 21), .protocol = IPPROTO_TCP};
	strcpy(extra.helper, "ftp");
	extra.expect =
		(CtExpect){.mask = tuple_of("255.255.255.255", "255.255.255.255", 0, 0xffff), .flags = 2, .class = 1};
	if (!nat)
		return r;
	extra.expect.has_nat = 1;
	extra.expect.nat_dir = 1;
	extra.expect.nat = tuple_of("10.0.0.5", "0.0.0.0", 40000, 0);
	strcpy(extra.expect.function, "nat-follow-master");
	return r;
}

/* One of each attribute that few entries have; docs/wire.md. */
static void test_golden_extras(void **state)
{
	static const char head[] = "0a000005c0000201";
	static const char expect[] = "3006" /* put, expectation, attributes; TCP */
				     "c00002010a00000500009c40"
				     "00000000012c";			      /* status 0, timeout */
	static const char helper_master[] = "0403667470"		      /* ftp */
					    "050d060a000005c000020104d20015"; /* master */
	const struct {
		CtRecord (*make)(void);
		const char *start, *rest;
	} cases[] = {
		{record_labels_helper, "1011",
		 "12340045000e00069780"
		 "0018"
		 "0310a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"
		 "040474667470"},
		{record_child, "1011",
		 "12340045000e00069780"
		 "002b"
		 "050d060a000005c000020104d20015"
		 "860c0102030400000005fffffffa"
		 "870c000000070000000800000009"},
		{record_sctp, "1084", "03e807d0000e00069780000b880904deadbeef12345678"},
		{record_dccp, "1021", "03e807d0000e00069780000c890a04010102030405060708"},
	};
	uint8_t bytes[CT_WIRE_RECORD_MAX];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		CtRecord r = cases[i].make();
		_cleanup_free_ char *want = xasprintf("%s%s%s", cases[i].start, head, cases[i].rest);
		_cleanup_free_ char *hex = text_hex(bytes, ct_wire_record(bytes, CT_WIRE_PUT, &r));

		assert_string_equal(hex, want);
		assert_round_trip(CT_WIRE_PUT, &r);
	}
	for (int nat = 0; nat < 2; nat++) {
		CtRecord r = record_expectation(nat);
		_cleanup_free_ char *want =
			xasprintf("%s%s%s%s", expect, nat ? "0048" : "002b", helper_master,
				  nat ? "8a32ffffffffffffffff0000ffff0000000200000001"
					"020a000005000000009c4000006e61742d666f6c6c6f772d6d6173746572"
				      : "8a15ffffffffffffffff0000ffff000000020000000100");
		_cleanup_free_ char *hex = text_hex(bytes, ct_wire_record(bytes, CT_WIRE_PUT, &r));

		assert_string_equal(hex, want);
		assert_round_trip(CT_WIRE_PUT, &r);
	}
}

/* The largest record there can be, and what is left alone of a deleted one. */
static void test_largest(void **state)
{
	CtRecord r = record_extra("fd00::5", "fd00::9", IPPROTO_TCP, 1, 2);
	uint8_t bytes[CT_WIRE_RECORD_MAX];
	CtRecord gone;

	(void)state;
	memset(&extra, 'x', sizeof(extra));
	extra.helper[CT_NAME - 1] = extra.expect.function[CT_FUNCTION - 1] = '\0';
	memset(&r.reply, 1, sizeof(r.reply));
	r.mark = 1;
	r.key.zone = 1;
	r.has |= CT_HAS_MARK | CT_HAS_EXTRA;
	assert_true(ct_wire_record(bytes, CT_WIRE_PUT, &r) <= CT_WIRE_RECORD_MAX);
	gone = r;
	assert_int_equal(ct_wire_record(bytes, CT_WIRE_DELETE, &gone), 2 + 36 + 2 + 5);
}

static void test_kinds(void **state)
{
	CtRecord tcp6 = record_new("fd00::5", "fd00::9", IPPROTO_TCP, 1, 2);
	CtRecord icmp = record_new("10.0.0.5", "10.0.0.9", IPPROTO_ICMP, 77, 8 << 8);
	CtRecord icmp6 = record_new("fd00::5", "fd00::9", IPPROTO_ICMPV6, 77, 128 << 8);
	CtRecord esp = record_new("10.0.0.5", "10.0.0.9", IPPROTO_ESP, 0, 0);
	CtRecord gone = {.key = tcp6.key};

	(void)state;
	assert_round_trip(CT_WIRE_PUT, &tcp6);
	assert_round_trip(CT_WIRE_PUT, &icmp);
	assert_round_trip(CT_WIRE_PUT, &icmp6);
	assert_round_trip(CT_WIRE_REPLACE, &esp);
	(void)ct_tuple_invert(&gone.key.orig, IPPROTO_TCP, &gone.reply);
	assert_round_trip(CT_WIRE_DELETE, &gone);
	gone.key.zone = 9;
	assert_round_trip(CT_WIRE_DELETE, &gone);
}

static CtRecord record_random(unsigned *seed)
{
	static const uint8_t protocols[] = {IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP, IPPROTO_SCTP, IPPROTO_GRE, 89};
	bool v6 = rand_r(seed) % 2;
	CtRecord r = {.key.protocol = protocols[(size_t)rand_r(seed) % ARRAY_SIZE(protocols)]};

	r.key.family = v6 ? AF_INET6 : AF_INET;
	if (v6 && r.key.protocol == IPPROTO_ICMP)
		r.key.protocol = IPPROTO_ICMPV6;
	for (size_t i = 0; i < ct_address_length(r.key.family); i++) {
		r.key.orig.src[i] = (uint8_t)rand_r(seed);
		r.key.orig.dst[i] = (uint8_t)rand_r(seed);
	}
	r.key.orig.a = (uint16_t)rand_r(seed);
	r.key.orig.b = ct_protocol_is_icmp(r.key.protocol) ? htons(v6 ? 128 << 8 : 8 << 8) : (uint16_t)rand_r(seed);
	(void)ct_tuple_invert(&r.key.orig, r.key.protocol, &r.reply);
	if (rand_r(seed) % 3 == 0)
		memset(r.reply.dst, rand_r(seed) & 0xff, ct_address_length(r.key.family));
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT;
	r.status = (uint16_t)rand_r(seed);
	r.timeout = (uint32_t)rand_r(seed) % CT_WIRE_TIMEOUT_MAX;
	if (rand_r(seed) % 2) {
		r.mark = (uint32_t)rand_r(seed);
		r.has |= CT_HAS_MARK;
	}
	if (rand_r(seed) % 4 == 0) {
		r.key.zone = (uint16_t)(1 + rand_r(seed) % 65535);
		r.key.zone_dir = (uint8_t)(rand_r(seed) % (CT_ZONE_MAX + 1));
	}
	if (r.key.protocol == IPPROTO_TCP) {
		r.tcp = (CtTcp){.state = (uint8_t)(1 + rand_r(seed) % 9), .wscale = {14, (uint8_t)(rand_r(seed) % 15)}};
		r.tcp.flags[0] = (uint8_t)rand_r(seed);
		r.has |= CT_HAS_TCP;
	}
	return r;
}

static void test_thousand(void **state)
{
	enum { N = 1000 };
	_cleanup_free_ CtRecord *records = xcalloc(N, sizeof(CtRecord));
	_cleanup_free_ uint8_t *batch = xcalloc(N + 1, CT_WIRE_RECORD_MAX);
	size_t len = CT_WIRE_HEADER, n = 0;
	CtWireReader reader;
	const char *why = NULL;
	unsigned seed = 1;
	CtRecord back;
	CtWireOp op;

	(void)state;
	for (size_t i = 0; i < N; i++) {
		records[i] = record_random(&seed);
		len += ct_wire_record(batch + len, i % 2 ? CT_WIRE_REPLACE : CT_WIRE_PUT, &records[i]);
	}
	ct_wire_header(batch, len, N);
	assert_int_equal(ct_wire_check(batch, len, &n, &why), 0);
	assert_int_equal(n, N);
	ct_wire_read(&reader, batch, len);
	for (size_t i = 0; i < N; i++) {
		assert_int_equal(ct_wire_next(&reader, &op, &back), 1);
		assert_int_equal(op, i % 2 ? CT_WIRE_REPLACE : CT_WIRE_PUT);
		assert_same(&records[i], &back);
	}
	assert_int_equal(ct_wire_next(&reader, &op, &back), 0);
}

/* Every cut and every changed byte is noticed, and nothing is read outside. */
static void test_damage(void **state)
{
	CtRecord record = record_new("10.0.0.5", "192.0.2.1", IPPROTO_TCP, 1234, 80);
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	size_t len, n;
	const char *why;

	(void)state;
	record.mark = 5;
	record.has |= CT_HAS_MARK;
	len = batch_of(batch, CT_WIRE_PUT, &record);
	for (size_t cut = 1; cut < len; cut++) {
		_cleanup_free_ uint8_t *copy = xcalloc(1, cut);

		memcpy(copy, batch, cut);
		assert_int_equal(ct_wire_check(copy, cut, &n, &why), -EBADMSG);
	}
	for (size_t i = 0; i < len; i++) {
		batch[i] ^= 0x10;
		assert_int_equal(ct_wire_check(batch, len, &n, &why), -EBADMSG);
		batch[i] ^= 0x10;
	}
	assert_int_equal(ct_wire_check(batch, len, &n, &why), 0);
	assert_int_equal(ct_wire_check(batch, 0, &n, &why), 0);
	assert_int_equal(n, 0);
}

/* A record with a right checksum in which one byte is another. */
typedef struct Hostile {
	size_t at; /* in the record */
	uint8_t value;
	int result;
	const char *why;
} Hostile;

static void test_hostile_fields(void **state)
{
	static const Hostile cases[] = {
		{0, 0x03, -EBADMSG, "unknown kind of record"},
		{0, 0x40, -EBADMSG, "unknown kind of record"},
		{0, 0x80, -EBADMSG, "unknown kind of record"},
		{0, 0x28, -EBADMSG, "unknown kind of record"},
		{0, 0x20, -EINVAL, "an expectation that lacks something"},
		{0, 0x0a, -EBADMSG, "unknown kind of record"},
		{0, 0x04, -EBADMSG, "truncated record"},
		{0, 0x10, -EBADMSG, "truncated attributes"},
		{0, 0x02, -EBADMSG, "more bytes than records"},
		{1, IPPROTO_UDP, -EBADMSG, "more bytes than records"},
		{20, 0, -EINVAL, "unknown TCP state"},
		{20, 10, -EINVAL, "unknown TCP state"},
		{20, 99, -EINVAL, "unknown TCP state"},
		{21, 0xf0, -EINVAL, "window scale out of range"},
		{21, 0x0f, -EINVAL, "window scale out of range"},
		{21, 0xee, 1, ""},
	};
	CtRecord record = record_new("10.0.0.5", "192.0.2.1", IPPROTO_TCP, 1234, 80), back;
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	CtWireReader reader;
	CtWireOp op;
	int r;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_t len = batch_of(batch, CT_WIRE_PUT, &record);

		batch[CT_WIRE_HEADER + cases[i].at] = cases[i].value;
		ct_wire_header(batch, len, 1);
		ct_wire_read(&reader, batch, len);
		r = ct_wire_next(&reader, &op, &back);
		if (r == 1 && cases[i].result == -EBADMSG) /* found out behind it */
			r = ct_wire_next(&reader, &op, &back);
		assert_int_equal(r, cases[i].result);
		assert_string_equal(reader.why, cases[i].why);
	}
}

/* A UDP record with attribute bytes of our own. */
static int read_attributes(const char *attributes, size_t n, CtRecord *ret, const char **why)
{
	CtRecord record = record_new("10.0.0.5", "192.0.2.1", IPPROTO_UDP, 1, 2);
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	size_t len = batch_of(batch, CT_WIRE_PUT, &record);
	CtWireOp op;

	batch[CT_WIRE_HEADER] |= 0x10;
	batch[len++] = 0;
	batch[len++] = (uint8_t)n;
	memcpy(batch + len, attributes, n);
	len += n;
	ct_wire_header(batch, len, 1);
	return read_one(batch, len, &op, ret, why);
}

static void test_attributes(void **state)
{
	CtRecord record;
	const char *why;

	(void)state;
	assert_int_equal(read_attributes("\x7f\x02hi\x01\x04\0\0\0\x09", 10, &record, &why), 1);
	assert_int_equal(record.mark, 9);
	assert_int_equal(read_attributes("\xff\x02hi", 4, &record, &why), -EINVAL);
	assert_string_equal(why, "needs a feature that is not known here");
	assert_int_equal(read_attributes("\x7f\x03hi", 4, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x7f", 1, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x01\x03hi!", 5, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x82\x03\0\x01\x03", 5, &record, &why), -EINVAL);
	assert_int_equal(read_attributes("\x82\x03\0\0\x01", 5, &record, &why), -EINVAL);
	assert_int_equal(read_attributes("", 0, &record, &why), 1);
	assert_int_equal(read_attributes("\x04\x10xxxxxxxxxxxxxxxx", 18, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x04\x03"
					 "a b",
					 5, &record, &why),
			 -EINVAL);
	assert_string_equal(why, "not a helper's name");
	assert_int_equal(read_attributes("\x04\0", 2, &record, &why), -EINVAL);
	assert_int_equal(read_attributes("\x03\x02xx", 4, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x05\x02xx", 4, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x86\x02xx", 4, &record, &why), -EBADMSG);
	assert_int_equal(read_attributes("\x88\x09\x04xxxxxxxx", 11, &record, &why), -EINVAL);
	assert_string_equal(why, "unknown SCTP state"); /* of a UDP entry */
	assert_int_equal(read_attributes("\x89\x0a\x04\0xxxxxxxx", 12, &record, &why), -EINVAL);
	assert_int_equal(read_attributes("\x8a\x15xxxxxxxxxxxx\0\0\0\0\0\0\0\0\0", 23, &record, &why), -EINVAL);
	assert_string_equal(why, "an expectation that is none");
}

/* An expectation in which one byte of its own attribute is another. */
static void test_hostile_expectations(void **state)
{
	static const Hostile cases[] = {
		{12, 0x80, -EINVAL, "unknown kind of expectation"}, /* flags */
		{15, 0x08, -EINVAL, "unknown kind of expectation"},
		{19, 0x04, -EINVAL, "unknown kind of expectation"}, /* class */
		{20, 3, -EINVAL, "unknown kind of expectation"},    /* direction of NAT */
		{20, 0, -EINVAL, "not a function's name"},	    /* its tuple is read as one */
		{33, ' ', -EINVAL, "not a function's name"},
		{20, 1, 1, ""},
	};
	CtRecord record = record_expectation(true), back;
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	CtWireReader reader;
	CtWireOp op;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		size_t len = batch_of(batch, CT_WIRE_PUT, &record);
		int r;

		batch[len - 50 + cases[i].at] = cases[i].value;
		ct_wire_header(batch, len, 1);
		ct_wire_read(&reader, batch, len);
		r = ct_wire_next(&reader, &op, &back);
		if (cases[i].at == 20 && cases[i].value == 0)
			assert_true(r < 0);
		else
			assert_int_equal(r, cases[i].result);
		if (r == cases[i].result)
			assert_string_equal(reader.why, cases[i].why);
	}
}

static void test_limits(void **state)
{
	CtRecord record = record_new("10.0.0.5", "192.0.2.1", IPPROTO_ICMP, 1, 8 << 8), back;
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	const char *why;
	size_t len, n;
	CtWireOp op;

	(void)state;
	record.timeout = UINT32_MAX;
	len = batch_of(batch, CT_WIRE_PUT, &record);
	assert_int_equal(read_one(batch, len, &op, &back, &why), 1);
	assert_int_equal(back.timeout, CT_WIRE_TIMEOUT_MAX);
	batch[CT_WIRE_HEADER + 12] = 3; /* destination unreachable has no answer */
	ct_wire_header(batch, len, 1);
	assert_int_equal(read_one(batch, len, &op, &back, &why), -EINVAL);
	batch[CT_WIRE_HEADER + 1] = IPPROTO_ICMPV6;
	ct_wire_header(batch, len, 1);
	assert_int_equal(read_one(batch, len, &op, &back, &why), -EINVAL);
	ct_wire_header(batch, len, UINT32_MAX);
	assert_int_equal(ct_wire_check(batch, len, &n, &why), -EBADMSG);
}

static void test_crc(void **state)
{
	(void)state;
	assert_int_equal(crc32_add(0, "123456789", 9), 0xcbf43926); /* the check value of CRC-32/ISO-HDLC */
	assert_int_equal(crc32_add(crc32_add(0, "1234", 4), "56789", 5), 0xcbf43926);
}

/* An entry as the agent writes it, to a record, to wire bytes and back to the same entry, but for the reports' times. */
static void test_cilium(void **state)
{
	static const uint8_t entry[CT_CILIUM_ENTRY] = {
		192, 0, 2, 1, 10, 0, 0, 5, 0x01, 0xbb, 0x9c, 0x40, 6, 1,
		1, 0, 0, 0, 0, 0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
		0x40, 0x1f, 0, 0, 0x13, 0x04, 0x01, 0x02, 0x1b, 0x12, 5, 0, 0, 0,
	};
	static const uint8_t golden[] = {
		0x10, 6, 10, 0, 0, 5, 192, 0, 2, 1, 0x9c, 0x40, 0x01, 0xbb, 0, 0x0e, 0, 0, 0x1f, 0x40, 7, 0, 0, 0, 0, 45,
		0x8b, 43, 1, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3,
		0, 0, 0, 0, 0, 0, 0, 4, 0x04, 0x13, 0x01, 0x02, 0x1b, 0x12, 0, 0, 0, 5,
	};
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX], again[CT_CILIUM_ENTRY];
	CtRecord record, back;
	CtExtra own = {};
	CtWireReader reader;
	CtWireOp op;
	size_t len;

	(void)state;
	assert_true(ct_cilium_read(entry, 1000, &own, &record));
	assert_int_equal(own.cilium.expires, 9000);
	len = batch_of(batch, CT_WIRE_PUT, &record);
	assert_int_equal(len, CT_WIRE_HEADER + sizeof(golden));
	assert_memory_equal(batch + CT_WIRE_HEADER, golden, sizeof(golden));
	ct_wire_read(&reader, batch, len);
	assert_int_equal(ct_wire_next(&reader, &op, &back), 1);
	assert_memory_equal(&back.key, &record.key, sizeof(back.key));
	ct_cilium_write(&back, again);
	assert_memory_equal(again, entry, sizeof(again));
	len = batch_of(batch, CT_WIRE_DELETE, &record);
	ct_wire_read(&reader, batch, len);
	assert_int_equal(ct_wire_next(&reader, &op, &back), 1);
	assert_memory_equal(&back.key, &record.key, sizeof(back.key));
}

/* Each is well formed, and refused. */
static void test_cilium_refused(void **state)
{
	static const uint8_t entry[CT_CILIUM_ENTRY] = {192, 0, 2, 1, 10, 0, 0, 5, 0, 80, 4, 0, 17, 0, [46] = 60};
	CtExtra own = {};
	CtRecord good, bad;

	(void)state;
	assert_true(ct_cilium_read(entry, 0, &own, &good));
	for (int what = 0; what < 3; what++) {
		uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
		const char *why;
		CtWireOp op;

		bad = good;
		if (what == 0)
			bad.key.zone = 5;
		else if (what == 1)
			bad.key.family = AF_INET6;
		else
			bad.has &= (uint16_t)~CT_HAS_CILIUM;
		assert_int_equal(read_one(batch, batch_of(batch, CT_WIRE_PUT, &bad), &op, &bad, &why), -EINVAL);
		assert_non_null(strstr(why, "Cilium"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_end),
		cmocka_unit_test(test_crc),
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_golden_all),
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_thousand),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_attributes),
		cmocka_unit_test(test_hostile_fields),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_golden_extras),
		cmocka_unit_test(test_largest),
		cmocka_unit_test(test_hostile_expectations),
		cmocka_unit_test(test_cilium),
		cmocka_unit_test(test_cilium_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
