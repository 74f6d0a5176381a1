/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sink's boundary: what a peer's records may become here. No kernel is asked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the above */
#include <cmocka.h>

#include <arpa/inet.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>

#include "basic/text.h"
#include "conntrack/apply.h"

#define VM "10.0.0.5"
#define PUBLIC "203.0.113.7"
#define REMOTE "192.0.2.1"
#define OTHER_VM "10.0.0.6"

static CtApply apply;
static CtExtra extra;

static int setup(void **state)
{
	char *vm[] = {(char[]){VM}, (char[]){"fd00::5"}, NULL}, *others[] = {(char[]){OTHER_VM}, NULL};

	(void)state;
	apply = (CtApply){.options = {.marks_mask = UINT32_MAX}};
	extra = (CtExtra){};
	ct_table_init(&apply.table);
	assert_int_equal(ct_select_new(vm, &apply.allowed, NULL), 0);
	assert_int_equal(ct_select_new(others, &apply.foreign, NULL), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ct_select_free(apply.allowed);
	ct_select_free(apply.foreign);
	ct_table_clear(&apply.table);
	strv_free(apply.helpers);
	strv_free(apply.no_helper);
	return 0;
}

static void address(const char *text, uint8_t *to)
{
	memset(to, 0, 16);
	assert_int_equal(inet_pton(strchr(text, ':') ? AF_INET6 : AF_INET, text, to), 1);
}

static CtTuple tuple(const char *src, const char *dst, uint16_t a, uint16_t b)
{
	CtTuple t = {.a = htons(a), .b = htons(b)};

	address(src, t.src);
	address(dst, t.dst);
	return t;
}

static CtRecord connection(const char *src, const char *dst)
{
	CtRecord r = {.key = {.family = AF_INET, .protocol = IPPROTO_TCP, .orig = tuple(src, dst, 1000, 21)}};

	assert_true(ct_tuple_invert(&r.key.orig, IPPROTO_TCP, &r.reply));
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_TCP;
	r.status = IPS_CONFIRMED;
	r.extra = &extra;
	return r;
}

/* Whether an entry is let in; if not, for @reason alone. */
static bool let_in(const CtRecord *r, CtReason reason)
{
	uint64_t before = apply.stats.reasons[reason], refused = apply.stats.refused;

	if (ct_guard_entry(&apply, r))
		return true;
	assert_int_equal(apply.stats.reasons[reason], before + 1);
	assert_int_equal(apply.stats.refused, refused + 1);
	return false;
}

static void test_owner(void **state)
{
	CtRecord out = connection(VM, REMOTE), in = connection(REMOTE, VM), none = connection(REMOTE, OTHER_VM);
	CtRecord neighbours = connection(OTHER_VM, VM);

	(void)state;
	assert_true(let_in(&out, CT_REASON_NOT_OURS));
	assert_true(let_in(&in, CT_REASON_NOT_OURS));
	assert_true(let_in(&neighbours, CT_REASON_NOT_OURS));
	assert_false(let_in(&none, CT_REASON_NOT_OURS));
	assert_string_equal(apply.stats.first_refused, "not of this VM's addresses: tcp 192.0.2.1:1000 -> 10.0.0.6:21");
}

/* Answers that come from elsewhere, or go elsewhere, only with the bits that have the kernel translate them. */
static void test_translation_is_said(void **state)
{
	CtRecord snat = connection(VM, REMOTE), dnat = connection(REMOTE, PUBLIC), hole = connection(VM, REMOTE);

	(void)state;
	address(PUBLIC, snat.reply.dst);
	assert_false(let_in(&snat, CT_REASON_MALFORMED));
	snat.status |= IPS_DST_NAT; /* the other one */
	assert_false(let_in(&snat, CT_REASON_MALFORMED));
	snat.status |= IPS_SRC_NAT;
	assert_true(let_in(&snat, CT_REASON_MALFORMED));
	address(VM, dnat.reply.src);
	assert_false(let_in(&dnat, CT_REASON_MALFORMED));
	dnat.status |= IPS_DST_NAT;
	assert_true(let_in(&dnat, CT_REASON_MALFORMED));
	/* "Answers" of anybody to anybody. */
	hole.reply = tuple("198.51.100.9", "198.51.100.10", 1, 22);
	assert_false(let_in(&hole, CT_REASON_MALFORMED));
	hole = connection(VM, REMOTE);
	hole.reply.b = htons(22); /* another port, for an answer that is let through */
	assert_false(let_in(&hole, CT_REASON_MALFORMED));
}

static void test_nobody_is_hijacked(void **state)
{
	CtRecord in = connection(REMOTE, OTHER_VM), out = connection(VM, REMOTE);

	(void)state;
	in.status |= IPS_DST_NAT;
	address(VM, in.reply.src);
	assert_false(let_in(&in, CT_REASON_FOREIGN));
	out.status |= IPS_SRC_NAT;
	address(OTHER_VM, out.reply.dst);
	assert_false(let_in(&out, CT_REASON_FOREIGN));
	address(PUBLIC, out.reply.dst);
	assert_true(let_in(&out, CT_REASON_FOREIGN));
}

static void test_strip(void **state)
{
	CtRecord r = connection(VM, REMOTE);

	(void)state;
	r.has |= CT_HAS_HELPER | CT_HAS_LABELS | CT_HAS_MARK;
	strcpy(extra.helper, "ftp");
	r.mark = 0x105;
	strv_push(&apply.helpers, xstrdup("tftp"));
	apply.options.marks_mask = 0xff;
	assert_int_equal(ct_guard_strip(&apply, &r), CT_ENTRY_NO_HELPER | CT_ENTRY_NO_MARK);
	assert_int_equal(r.has & (CT_HAS_HELPER | CT_HAS_LABELS), CT_HAS_LABELS);
	apply.options.marks_mask = 0;
	assert_int_equal(ct_guard_strip(&apply, &r), CT_ENTRY_NO_LABELS | CT_ENTRY_NO_MARK);
	apply.options.marks_mask = UINT32_MAX;
	strv_push(&apply.helpers, xstrdup("*"));
	r.has |= CT_HAS_HELPER | CT_HAS_LABELS;
	assert_int_equal(ct_guard_strip(&apply, &r), 0);
	strv_push(&apply.no_helper, xstrdup("ftp"));
	assert_int_equal(ct_guard_strip(&apply, &r), CT_ENTRY_NO_HELPER);
}

/* The master's server opens a connection to the VM at @dst. */
static CtRecord expectation(const char *src, const char *dst)
{
	CtRecord r = {
		.key = {.family = AF_INET, .protocol = IPPROTO_TCP, .expect = 1, .orig = tuple(src, dst, 0, 40000)}};

	extra = (CtExtra){.expect.mask = tuple("255.255.255.255", "255.255.255.255", 0, 0xffff), .helper = "ftp"};
	r.has = CT_HAS_EXPECT | CT_HAS_MASTER | CT_HAS_TIMEOUT | CT_HAS_HELPER;
	r.extra = &extra;
	return r;
}

static bool expected(const CtRecord *r, const CtRecord *master)
{
	return ct_guard_expectation(&apply, r, master);
}

static void test_expectations(void **state)
{
	CtRecord master = connection(VM, REMOTE), masked = connection(VM, REMOTE), e;

	(void)state;
	e = expectation(REMOTE, VM);
	assert_false(expected(&e, &master));
	assert_int_equal(apply.stats.reasons[CT_REASON_NOT_ALLOWED], 1);
	strv_push(&apply.helpers, xstrdup("ftp"));
	assert_true(expected(&e, &master));
	memset(extra.expect.mask.src, 0, 16); /* from anywhere, as SIP's */
	assert_true(expected(&e, &master));
	extra.expect.mask.src[3] = 1;
	assert_false(expected(&e, &master));
	e = expectation(REMOTE, VM);
	memset(extra.expect.mask.dst, 0, 16);
	assert_false(expected(&e, &master));
	e = expectation(VM, REMOTE);
	assert_true(expected(&e, &master));
	/* To the VM's peer from anywhere, or between two others. */
	memset(extra.expect.mask.src, 0, 16);
	assert_false(expected(&e, &master));
	e = expectation(REMOTE, "198.51.100.9");
	assert_false(expected(&e, &master));
	/* By the address that the VM went out with, and only if that leads to the VM. */
	masked.status |= IPS_SRC_NAT;
	address(PUBLIC, masked.reply.dst);
	e = expectation(REMOTE, PUBLIC);
	assert_false(expected(&e, &masked));
	strcpy(extra.expect.function, "nat-follow-master");
	assert_true(expected(&e, &masked));
	extra.expect.has_nat = 1;
	address(VM, extra.expect.nat.src);
	assert_true(expected(&e, &masked));
	address("198.51.100.9", extra.expect.nat.src);
	assert_false(expected(&e, &masked));
	assert_int_equal(apply.stats.reasons[CT_REASON_NOT_OURS], 6);
}

/* Deleted unseen is only what a tuple that begins at the VM names. */
static void test_names(void **state)
{
	CtRecord out = connection(VM, REMOTE), in = connection(REMOTE, PUBLIC);

	(void)state;
	assert_int_equal(ct_guard_name(&apply, &out), CTA_TUPLE_ORIG);
	address(VM, in.reply.src);
	assert_int_equal(ct_guard_name(&apply, &in), CTA_TUPLE_REPLY);
	apply.allowed->by_address = false;
	apply.allowed->by_mark = true;
	assert_int_equal(ct_guard_name(&apply, &out), 0);
	apply.allowed->by_zone = true;
	assert_int_equal(ct_guard_name(&apply, &out), CTA_TUPLE_ORIG);
}

/* What entries lack is counted as long as they are there. */
static void test_lacks(void **state)
{
	CtRecord r = connection(VM, REMOTE);
	uint32_t i = ct_table_insert(&apply.table, &r.key);

	(void)state;
	ct_apply_lacks(&apply, i, CT_ENTRY_NO_HELPER | CT_ENTRY_NO_MARK, true);
	ct_apply_lacks(&apply, i, CT_ENTRY_NO_HELPER, true);
	assert_int_equal(apply.stats.reasons[CT_REASON_HELPER], 1);
	assert_int_equal(apply.stats.reasons[CT_REASON_MARK], 1);
	ct_apply_lacks(&apply, i, CT_ENTRY_NO_MARK, false);
	assert_int_equal(apply.stats.reasons[CT_REASON_MARK], 0);
	ct_apply_forget(&apply, i);
	assert_int_equal(apply.stats.reasons[CT_REASON_HELPER], 0);
	for (CtReason n = 0; n < _CT_REASON_MAX; n++)
		assert_int_equal(ct_reason_from_name(ct_reason_name(n, NULL)), n);
	assert_true(ct_reason_from_name("nonsense") < 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_owner, setup, teardown),
		cmocka_unit_test_setup_teardown(test_translation_is_said, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nobody_is_hijacked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_strip, setup, teardown),
		cmocka_unit_test_setup_teardown(test_expectations, setup, teardown),
		cmocka_unit_test_setup_teardown(test_names, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lacks, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
