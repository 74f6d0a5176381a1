/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the above */
#include <cmocka.h>

#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>

#include "conntrack/table.h"
#include "conntrack/wire.h"

static CtTable table;

static int setup(void **state)
{
	(void)state;
	ct_table_init(&table);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	ct_table_clear(&table);
	return 0;
}

/* Connection @n as an event or a dump shows it, whole. */
static CtRecord whole(uint32_t n, uint32_t id, uint8_t tcp_state)
{
	CtRecord r = {.key = {.family = AF_INET, .protocol = IPPROTO_TCP}, .id = id};

	memcpy(r.key.orig.src, &n, 4);
	memcpy(r.key.orig.dst, "\xc0\0\2\1", 4);
	r.key.orig.a = (uint16_t)n;
	(void)ct_tuple_invert(&r.key.orig, IPPROTO_TCP, &r.reply);
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_TCP | CT_HAS_ID;
	r.status = IPS_CONFIRMED;
	r.timeout = 100;
	r.tcp.state = tcp_state;
	return r;
}

/* An event with nothing but this. */
static CtRecord only(const CtRecord *from, unsigned has)
{
	CtRecord r = {.key = from->key};

	r.has = (uint16_t)(has | CT_HAS_ID);
	r.id = from->id;
	r.status = has & CT_HAS_STATUS ? from->status : 0;
	r.mark = has & CT_HAS_MARK ? from->mark : 0;
	if (has & CT_HAS_TCP)
		r.tcp = from->tcp;
	return r;
}

static const CtEntry *entry(const CtRecord *r)
{
	uint32_t i = ct_table_find(&table, &r->key);

	return i == CT_NONE ? NULL : ct_table_at(&table, i);
}

/* Hand out the next change; 'p'ut, 'r'eplace, 'd'elete or 0 for none, with the TCP state in @ret_state. */
static char next(uint8_t *ret_state)
{
	uint32_t i = ct_table_next_change(&table);
	CtEntry *e;
	char op;

	if (i == CT_NONE)
		return 0;
	e = ct_table_at(&table, i);
	if (ret_state)
		*ret_state = e->record.tcp.state;
	op = e->flags & CT_ENTRY_GONE ? 'd' : e->flags & CT_ENTRY_RENEWED ? 'r' : 'p';
	ct_table_handed_out(&table, i);
	return op;
}

static void test_merge(void **state)
{
	CtRecord r = whole(1, 10, TCP_CONNTRACK_SYN_SENT), e;
	uint8_t tcp;

	(void)state;
	ct_table_event(&table, &r, true);
	r.mark = 7;
	e = only(&r, CT_HAS_MARK);
	ct_table_event(&table, &e, false);
	r.tcp.state = TCP_CONNTRACK_ESTABLISHED;
	e = only(&r, CT_HAS_TCP);
	ct_table_event(&table, &e, false);
	assert_int_equal(entry(&r)->record.mark, 7);
	assert_int_equal(entry(&r)->record.status, IPS_CONFIRMED);
	assert_int_equal(table.n_dirty, 1);
	assert_int_equal(next(&tcp), 'p');
	assert_int_equal(tcp, TCP_CONNTRACK_ESTABLISHED);
	assert_int_equal(next(NULL), 0);
}

static void test_end(void **state)
{
	CtRecord r = whole(1, 10, TCP_CONNTRACK_ESTABLISHED);

	(void)state;
	/* never handed out: nothing to say */
	ct_table_event(&table, &r, true);
	ct_table_destroyed(&table, &r);
	assert_int_equal(next(NULL), 0);
	assert_null(entry(&r));
	/* handed out: said once */
	ct_table_event(&table, &r, true);
	assert_int_equal(next(NULL), 'p');
	ct_table_destroyed(&table, &r);
	assert_int_equal(table.live, 0);
	assert_int_equal(next(NULL), 'd');
	assert_int_equal(next(NULL), 0);
	assert_int_equal(table.gone, 0);
	/* of one never seen */
	ct_table_destroyed(&table, &r);
	assert_int_equal(next(NULL), 0);
}

static void test_same_tuple_again(void **state)
{
	CtRecord a = whole(1, 10, TCP_CONNTRACK_TIME_WAIT), b = whole(1, 11, TCP_CONNTRACK_SYN_SENT);

	(void)state;
	ct_table_event(&table, &a, true);
	assert_int_equal(next(NULL), 'p');
	ct_table_destroyed(&table, &a);
	ct_table_event(&table, &b, true);
	assert_int_equal(next(NULL), 'r');
	/* the kernel repeats a destroy event that it could not deliver */
	ct_table_destroyed(&table, &a);
	assert_int_equal(table.live, 1);
	assert_int_equal(next(NULL), 0);
	/* without a destroy event in between (overrun) */
	ct_table_event(&table, &a, true);
	assert_int_equal(next(NULL), 'r');
	ct_table_destroyed(&table, &a);
	ct_table_event(&table, &b, true);
	ct_table_destroyed(&table, &b);
	assert_int_equal(next(NULL), 'd');
	assert_int_equal(table.gone + table.live, 0);
}

static void test_dump_fills_only(void **state)
{
	CtRecord old = whole(1, 10, TCP_CONNTRACK_SYN_RECV), now = whole(1, 10, TCP_CONNTRACK_ESTABLISHED), e;
	uint8_t tcp = 0;

	(void)state;
	ct_table_dump_begin(&table);
	e = only(&now, CT_HAS_TCP);
	ct_table_event(&table, &e, false);
	assert_int_equal(next(NULL), 0); /* not enough to make it elsewhere */
	ct_table_dump_record(&table, &old);
	assert_int_equal(next(&tcp), 'p');
	assert_int_equal(tcp, TCP_CONNTRACK_ESTABLISHED);
	ct_table_dump_end(&table, true);
	assert_int_equal(table.live, 1);
}

static void test_dump_does_not_resurrect(void **state)
{
	CtRecord r = whole(1, 10, TCP_CONNTRACK_ESTABLISHED), b = whole(2, 20, TCP_CONNTRACK_ESTABLISHED);

	(void)state;
	ct_table_dump_begin(&table);
	ct_table_destroyed(&table, &r); /* never seen before */
	ct_table_dump_record(&table, &r);
	ct_table_dump_record(&table, &b);
	assert_int_equal(next(NULL), 'p');
	ct_table_destroyed(&table, &b); /* handed out, and then shown again by the same dump */
	assert_int_equal(next(NULL), 'd');
	ct_table_dump_record(&table, &b);
	assert_int_equal(next(NULL), 0);
	assert_int_equal(table.live, 0);
	ct_table_dump_end(&table, true);
	assert_int_equal(table.gone, 0);
	assert_null(entry(&r));
}

static void test_resync(void **state)
{
	CtRecord stays = whole(1, 10, TCP_CONNTRACK_ESTABLISHED), went = whole(2, 20, TCP_CONNTRACK_ESTABLISHED),
		 other = whole(3, 30, TCP_CONNTRACK_ESTABLISHED), late = whole(4, 40, TCP_CONNTRACK_SYN_SENT);
	uint8_t tcp;

	(void)state;
	ct_table_dump_begin(&table);
	ct_table_dump_record(&table, &stays);
	ct_table_dump_record(&table, &went);
	ct_table_dump_record(&table, &other);
	ct_table_dump_end(&table, true);
	while (next(NULL))
		;
	ct_table_dump_begin(&table);
	ct_table_event(&table, &late, true);
	stays.timeout = 5; /* ran on: no change */
	ct_table_dump_record(&table, &stays);
	other.id = 31;
	other.tcp.state = TCP_CONNTRACK_SYN_RECV;
	ct_table_dump_record(&table, &other);
	ct_table_dump_end(&table, true);
	assert_int_equal(next(&tcp), 'p');
	assert_int_equal(tcp, TCP_CONNTRACK_SYN_SENT);
	assert_int_equal(next(&tcp), 'r');
	assert_int_equal(tcp, TCP_CONNTRACK_SYN_RECV);
	assert_int_equal(next(NULL), 'd');
	assert_int_equal(next(NULL), 0);
	assert_int_equal(table.live, 3);
	assert_null(entry(&went));
}

static void test_interrupted_dump_deletes_nothing(void **state)
{
	CtRecord r = whole(1, 10, TCP_CONNTRACK_ESTABLISHED);

	(void)state;
	ct_table_event(&table, &r, true);
	assert_int_equal(next(NULL), 'p');
	ct_table_dump_begin(&table);
	ct_table_dump_end(&table, false);
	ct_table_dump_begin(&table);
	ct_table_dump_end(&table, false);
	assert_int_equal(next(NULL), 0);
	assert_int_equal(table.live, 1);
}

static void test_zones_are_apart(void **state)
{
	CtRecord a = whole(1, 10, TCP_CONNTRACK_ESTABLISHED), b = a;

	(void)state;
	b.key.zone = 5;
	ct_table_event(&table, &a, true);
	ct_table_event(&table, &b, true);
	assert_int_equal(table.live, 2);
	ct_table_destroyed(&table, &b);
	assert_non_null(entry(&a));
	assert_null(entry(&b));
}

/* Random events against a plain array: what was handed out in the end is what there is. */
static void test_random(void **state)
{
	enum { N = 3000, STEPS = 60000 };
	static uint8_t truth[N], mirror[N];
	unsigned seed = 3;

	(void)state;
	for (int step = 0; step < STEPS; step++) {
		uint32_t n = (uint32_t)rand_r(&seed) % N;
		CtRecord r = whole(n, n, (uint8_t)(1 + rand_r(&seed) % 9));

		if (rand_r(&seed) % 3 == 0) {
			if (truth[n])
				ct_table_destroyed(&table, &r);
			truth[n] = 0;
		} else {
			ct_table_event(&table, &r, !truth[n]);
			truth[n] = r.tcp.state;
		}
		for (int k = rand_r(&seed) % 3; k > 0 && ct_table_next_change(&table) != CT_NONE; k--) {
			uint32_t i = ct_table_next_change(&table), which;
			CtEntry *e = ct_table_at(&table, i);

			memcpy(&which, e->record.key.orig.src, 4);
			mirror[which] = e->flags & CT_ENTRY_GONE ? 0 : e->record.tcp.state;
			ct_table_handed_out(&table, i);
		}
	}
	while (ct_table_next_change(&table) != CT_NONE) {
		uint32_t i = ct_table_next_change(&table), which;

		memcpy(&which, ct_table_at(&table, i)->record.key.orig.src, 4);
		mirror[which] =
			ct_table_at(&table, i)->flags & CT_ENTRY_GONE ? 0 : ct_table_at(&table, i)->record.tcp.state;
		ct_table_handed_out(&table, i);
	}
	assert_memory_equal(truth, mirror, N);
	assert_int_equal(table.gone, 0);
}

static void test_owner(void **state)
{
	CtAddress vm = {.family = AF_INET, .bytes = {10, 0, 0, 5}};
	CtSelect select = {.addresses = &vm, .n_addresses = 1, .by_address = true};
	CtRecord r = whole(1, 1, 3);

	(void)state;
	memcpy(r.reply.dst, vm.bytes, 4); /* as where a translation leads to, not the guest's side */
	assert_true(ct_record_selected(&r, &select));
	assert_false(ct_record_owned(&r, &select));
	memcpy(r.key.orig.dst, vm.bytes, 4);
	assert_false(ct_record_owned(&r, &select));
	memcpy(r.reply.src, vm.bytes, 4);
	assert_true(ct_record_owned(&r, &select));
	memset(r.reply.src, 1, 4);
	memcpy(r.key.orig.src, vm.bytes, 4);
	assert_true(ct_record_owned(&r, &select));
	r.key.family = AF_INET6;
	assert_false(ct_record_owned(&r, &select));
}

/* What does not fit is what is missed least: of 60,000 in 1 MiB the 30,000 in use stay. */
static void test_snapshot(void **state)
{
	enum { N = 60000, MAX = 1 << 20 };
	_cleanup_free_ uint8_t *to = malloc(MAX);
	size_t n, left, len, used = 0;
	CtExtra extra = {.master = {.orig = whole(7, 7, TCP_CONNTRACK_ESTABLISHED).key.orig, .protocol = IPPROTO_TCP}};
	uint32_t timeout = UINT32_MAX;
	CtWireReader reader;
	CtRecord r;
	CtWireOp op;
	bool child;

	(void)state;
	len = ct_table_snapshot(&table, to, MAX, &n, &left);
	assert_int_equal(len, CT_WIRE_HEADER);
	for (uint32_t i = 1; i <= N; i++) {
		r = whole(i, i, i % 2 ? TCP_CONNTRACK_ESTABLISHED : TCP_CONNTRACK_TIME_WAIT);
		r.status |= IPS_SEEN_REPLY | IPS_ASSURED;
		r.timeout = i * 7919 % 432000;
		if (i % 4 == 1) {
			r.has |= CT_HAS_MASTER;
			r.extra = &extra;
		}
		ct_table_event(&table, &r, true);
	}
	len = ct_table_snapshot(&table, to, MAX, &n, &left);
	assert_true(len <= MAX && len > MAX - CT_WIRE_RECORD_MAX);
	assert_true(n >= N / 2 + 1000);
	assert_int_equal(n + left, N);
	ct_wire_read(&reader, to, len);
	while (ct_wire_next(&reader, &op, &r) == 1) {
		assert_int_equal(op, CT_WIRE_PUT);
		child = r.has & CT_HAS_MASTER;
		assert_true((r.tcp.state == TCP_CONNTRACK_ESTABLISHED) == (used < N / 2));
		assert_true(child == (used >= N / 4 && used < N / 2));
		assert_true(r.timeout <= timeout || used == N / 2 || used == N / 4);
		timeout = r.timeout;
		used++;
	}
	assert_int_equal(used, n);
	assert_true(ct_wire_length(to) < 64 << 10);
	len = ct_table_snapshot(&table, to, 1 << 10, &n, &left);
	assert_true(len <= 1 << 10 && n >= 30);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_snapshot),
		TEST(test_merge),
		TEST(test_end),
		TEST(test_same_tuple_again),
		TEST(test_dump_fills_only),
		TEST(test_dump_does_not_resurrect),
		TEST(test_resync),
		TEST(test_interrupted_dump_deletes_nothing),
		TEST(test_zones_are_apart),
		TEST(test_random),
		TEST(test_owner),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
