/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ct-bench.h"

#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <stdio.h>

#include "basic/clock.h"
#include "basic/json.h"
#include "basic/text.h"
#include "conntrack/wire.h"

#define ROUNDS 20

/* The VM has 10.0.0.5; entry @i goes to an address and port of its own. */
static size_t write_entry(uint8_t *to, CtWireOp op, uint32_t i)
{
	CtRecord r = {.key = {.family = AF_INET, .protocol = IPPROTO_TCP}};
	uint8_t vm[4] = {10, 0, 0, 5}, peer[4] = {192, (uint8_t)(i >> 24), (uint8_t)(i >> 16), 1};

	memcpy(r.key.orig.src, vm, 4);
	memcpy(r.key.orig.dst, peer, 4);
	r.key.orig.a = (uint16_t)i;
	r.key.orig.b = 80;
	(void)ct_tuple_invert(&r.key.orig, IPPROTO_TCP, &r.reply);
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_TCP;
	r.status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED;
	r.timeout = 432000;
	r.tcp = (CtTcp){.state = TCP_CONNTRACK_ESTABLISHED, .wscale = {7, 7}, .flags = {0x33, 0x33}};
	return ct_wire_record(to, op, &r);
}

/* A batch of @n entries from @first on; free() it. */
static uint8_t *make_batch(CtWireOp op, uint32_t first, uint32_t n, size_t *ret_len)
{
	uint8_t *batch = xcalloc(1, CT_WIRE_HEADER + (size_t)n * CT_WIRE_RECORD_MAX);
	size_t len = CT_WIRE_HEADER;

	for (uint32_t i = 0; i < n; i++)
		len += write_entry(batch + len, op, first + i);
	ct_wire_header(batch, len, n);
	*ret_len = len;
	return batch;
}

/* Return: microseconds. */
static uint64_t apply(CtApply *sink, CtWireOp op, uint32_t first, uint32_t n)
{
	size_t len;
	_cleanup_free_ uint8_t *batch = make_batch(op, first, n, &len);
	uint64_t start = now_usec();

	if (ct_apply_delta(sink, batch, len, NULL) < 0)
		abort();
	return now_usec() - start;
}

static uint64_t hand_out(CtFollow *follow, size_t *ret_records)
{
	uint64_t start = now_usec();
	const uint8_t *data;
	size_t n;

	*ret_records = 0;
	if (ct_follow_drain(follow) < 0)
		abort();
	while (ct_follow_delta(follow, 1 << 20, &data, &n) > 0)
		*ret_records += n;
	return now_usec() - start;
}

static uint64_t first_dump(sd_event *event, CtFollow *follow)
{
	uint64_t start = now_usec();
	CtFollowStats s;

	do {
		if (sd_event_run(event, 0) < 0)
			abort();
		ct_follow_stats(follow, &s);
	} while (!s.complete);
	return now_usec() - start;
}

static double rate(uint64_t n, uint64_t usec)
{
	return usec ? (double)n * 1e6 / (double)usec : 0;
}

int ct_bench(uint32_t entries, uint32_t churn)
{
	char *words[] = {(char[]){"10.0.0.5"}, NULL};
	CtApplyOptions options = {.max_entries = 4000000, .marks_mask = UINT32_MAX};
	uint64_t create, update, dump, first, idle, settle, start, delta = 0, worst = 0, seen = 0;
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL;
	_cleanup_(ct_follow_freep)
	CtFollow *follow = NULL;
	_cleanup_(ct_apply_freep)
	CtApply *sink = NULL;
	sd_event *event = NULL;
	CtApplyStats stats;
	size_t n;

	if (ct_select_new(words, &select, NULL) < 0 || ct_apply_new(select, &options, &sink, NULL) < 0 ||
	    sd_event_new(&event) < 0)
		return 1;
	create = apply(sink, CT_WIRE_PUT, 0, entries);
	update = apply(sink, CT_WIRE_PUT, 0, entries);
	ct_apply_stats(sink, &stats);
	if (ct_follow_new(event, select, &follow, NULL) < 0)
		return 1;
	dump = first_dump(event, follow);
	first = hand_out(follow, &n);
	idle = hand_out(follow, &n);
	for (uint32_t i = 0; i < ROUNDS; i++) {
		uint64_t t;

		apply(sink, CT_WIRE_PUT, entries + i * churn, churn / 2);
		apply(sink, CT_WIRE_DELETE, i * (churn / 2), churn / 2);
		t = hand_out(follow, &n);
		delta += t;
		worst = t > worst ? t : worst;
		seen += n;
	}
	start = now_usec();
	(void)ct_apply_settle(sink, NULL);
	settle = now_usec() - start;
	start = now_usec();
	n = (size_t)ct_apply_rollback(sink);
	printf("%s\n", json_text(json_build("entries", "u", (uint64_t)entries, "applied", "u", stats.applied,
					    "create_per_s", "d", rate(entries, create), "update_per_s", "d",
					    rate(entries, update), "delete_per_s", "d", rate(n, now_usec() - start),
					    "dump_ms", "d", (double)dump / 1e3, "first_delta_ms", "d",
					    (double)first / 1e3, "idle_delta_us", "u", idle, "churn_per_delta", "u",
					    (uint64_t)churn, "records_per_delta", "d", (double)seen / ROUNDS,
					    "delta_ms", "d", (double)delta / 1e3 / ROUNDS, "delta_worst_ms", "d",
					    (double)worst / 1e3, "settle_ms", "d", (double)settle / 1e3, NULL)));
	sd_event_unref(event);
	return 0;
}
