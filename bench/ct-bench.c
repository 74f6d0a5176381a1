/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ct-bench VERB: measures src/conntrack/ in network namespaces that bench/conntrack made. A JSON line on standard
 * output.
 */
#include "ct-bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"

#define BATCH_BYTES (128 * 1024) /* src/keeper/follow.c */

void die_if(bool failed, const char *what)
{
	if (!failed)
		return;
	fprintf(stderr, "ct-bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void die_error(int r, Error *err)
{
	if (r >= 0)
		return;
	fprintf(stderr, "ct-bench: %s\n", err->message);
	exit(1);
}

void enter_namespace(const char *name)
{
	_cleanup_free_ char *path = xasprintf("/run/netns/%s", name);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	die_if(fd < 0 || setns(fd, CLONE_NEWNET) < 0, path);
}

void print_json(json_object *o)
{
	printf("%s\n", json_text(o));
	fflush(stdout);
	json_object_put(o);
}

CtSelect *vm_select(const char *address)
{
	_cleanup_free_ char *copy = xstrdup(address);
	CtSelect *select = NULL;
	Error *err = NULL;

	die_error(ct_select_new((char *[]){copy, NULL}, &select, &err), err);
	return select;
}

CtApply *sink_new(const char *address)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = vm_select(address);
	CtApplyOptions options = {.max_entries = UINT32_MAX, .marks_mask = UINT32_MAX};
	CtApply *sink = NULL;
	Error *err = NULL;

	die_error(ct_apply_new(select, &options, &sink, &err), err);
	return sink;
}

uint64_t rss_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long size, resident = 0;

	die_if(!f || fscanf(f, "%lu %lu", &size, &resident) != 2, "/proc/self/statm");
	fclose(f);
	return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t cpu_usec(void)
{
	return clock_usec(CLOCK_PROCESS_CPUTIME_ID);
}

size_t write_entry(uint8_t *to, CtWireOp op, const char *address, uint32_t i)
{
	CtRecord r = {.key = {.family = AF_INET, .protocol = IPPROTO_TCP}};
	uint8_t peer[4] = {192, (uint8_t)(i >> 24), (uint8_t)(i >> 16), 1};

	die_if(inet_pton(AF_INET, address, r.key.orig.src) != 1, address);
	memcpy(r.key.orig.dst, peer, 4);
	r.key.orig.a = (uint16_t)i;
	r.key.orig.b = htons(80);
	(void)ct_tuple_invert(&r.key.orig, IPPROTO_TCP, &r.reply);
	r.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_TCP;
	r.status = IPS_CONFIRMED | IPS_SEEN_REPLY | IPS_ASSURED;
	r.timeout = 432000;
	r.tcp = (CtTcp){.state = TCP_CONNTRACK_ESTABLISHED, .wscale = {7, 7}, .flags = {0x23, 0x23}};
	return ct_wire_record(to, op, &r);
}

uint64_t apply_entries(CtApply *sink, CtWireOp op, const char *address, uint32_t first, uint32_t n,
		       uint64_t *ret_longest)
{
	_cleanup_free_ uint8_t *batch = xcalloc(1, BATCH_BYTES);
	uint64_t total = 0, longest = 0;

	for (uint32_t i = 0; i < n;) {
		size_t len = CT_WIRE_HEADER;
		uint32_t records = 0;
		uint64_t start;
		Error *err = NULL;

		for (; i < n && len + CT_WIRE_RECORD_MAX <= BATCH_BYTES; i++, records++)
			len += write_entry(batch + len, op, address, first + i);
		ct_wire_header(batch, len, records);
		start = now_usec();
		die_error(ct_apply_delta(sink, batch, len, &err), err);
		start = now_usec() - start;
		total += start;
		longest = start > longest ? start : longest;
	}
	if (ret_longest)
		*ret_longest = longest;
	return total;
}

/* ---- verbs ---- */

static uint32_t number(const char *text)
{
	uint64_t n;

	errno = EINVAL;
	die_if(text_parse_u64(text, &n) < 0 || n > INT32_MAX, text);
	return (uint32_t)n;
}

/* fill ADDRESS FIRST ENTRIES */
static void verb_fill(char **args)
{
	_cleanup_(ct_apply_freep)
	CtApply *sink = sink_new(args[0]);
	CtApplyStats stats;

	(void)apply_entries(sink, CT_WIRE_PUT, args[0], number(args[1]), number(args[2]), NULL);
	ct_apply_stats(sink, &stats);
	print_json(json_build("applied", "u", stats.applied, "failed", "u", stats.failed, NULL));
}

/* Longest part of ct_apply_settle_some(): so long does a keeper's loop serve nothing else. */
static uint64_t settle(CtApply *sink, uint64_t *ret_longest)
{
	uint64_t start = now_usec(), part, longest = 0;
	Error *err = NULL;
	int r;

	do {
		part = now_usec();
		r = ct_apply_settle_some(sink, &err);
		die_error(r, err);
		part = now_usec() - part;
		longest = part > longest ? part : longest;
	} while (r > 0);
	*ret_longest = longest;
	return now_usec() - start;
}

static double rate(uint64_t n, uint64_t usec)
{
	return usec ? (double)n * 1e6 / (double)usec : 0;
}

/* apply ADDRESS ENTRIES: rates and the settling of entries nobody touched; leaves nothing */
static void verb_apply(char **args)
{
	_cleanup_(ct_apply_freep)
	CtApply *sink = sink_new(args[0]);
	uint32_t n = number(args[1]);
	uint64_t longest, part, cpu, create, update, settled, undo;
	CtApplyStats stats;
	int undone;

	cpu = cpu_usec();
	create = apply_entries(sink, CT_WIRE_PUT, args[0], 0, n, &longest);
	cpu = cpu_usec() - cpu;
	update = apply_entries(sink, CT_WIRE_PUT, args[0], 0, n, NULL);
	settled = settle(sink, &part);
	ct_apply_stats(sink, &stats);
	undo = now_usec();
	undone = ct_apply_rollback(sink);
	undo = now_usec() - undo;
	die_if(undone < 0, "rollback");
	print_json(json_build("entries", "u", (uint64_t)n, "applied", "u", stats.applied, "create_per_cpu_s", "d",
			      rate(n, cpu), "create_per_s", "d", rate(n, create), "update_per_s", "d", rate(n, update),
			      "delete_per_s", "d", rate((uint64_t)undone, undo), "batch_longest_ms", "d",
			      (double)longest / 1e3, "settle_ms", "d", (double)settled / 1e3, "settle_longest_ms", "d",
			      (double)part / 1e3, NULL));
}

/* churn ADDRESS RATE COUNT PENDING TUPLES */
static void verb_churn(char **args)
{
	churn_run(&(Churn){.address = args[0],
			   .rate = number(args[1]),
			   .count = number(args[2]),
			   .pending = number(args[3]),
			   .tuples = number(args[4])});
}

static int on_end(sd_event_source *s, _unused_ int fd, _unused_ uint32_t revents, _unused_ void *userdata)
{
	return sd_event_exit(sd_event_source_get_event(s), 0);
}

/* listen ADDRESS: follow, and forget what changed, until standard input ends. Says "ready" when it listens. */
static void verb_listen(char **args)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = vm_select(args[0]);
	_cleanup_(ct_follow_freep)
	CtFollow *follow = NULL;
	sd_event *event = NULL;
	CtFollowStats stats;
	Error *err = NULL;

	die_if(sd_event_new(&event) < 0, "sd_event_new");
	die_error(ct_follow_new(event, select, &follow, &err), err);
	die_if(sd_event_add_io(event, NULL, STDIN_FILENO, EPOLLIN, on_end, NULL) < 0, "sd_event_add_io");
	printf("ready\n");
	fflush(stdout);
	(void)sd_event_loop(event);
	ct_follow_stats(follow, &stats);
	print_json(json_build("entries", "u", stats.entries, "events", "u", stats.events, "overruns", "u",
			      stats.overruns, "cpu_usec", "u", cpu_usec(), NULL));
	sd_event_unref(event);
}

/* switch SOURCE TARGET ADDRESS ROUNDS RATE INTERVAL_MS stop|go-on */
static void verb_switch(char **args)
{
	switch_run(&(SwitchOptions){.source = args[0],
				    .target = args[1],
				    .address = args[2],
				    .rounds = number(args[3]),
				    .rate = number(args[4]),
				    .interval_ms = number(args[5]),
				    .churn_goes_on = streq(args[6], "go-on")});
}

static const struct {
	const char *name, *args;
	int n;
	void (*run)(char **args);
} verbs[] = {
	{"fill", "ADDRESS FIRST ENTRIES", 3, verb_fill},
	{"apply", "ADDRESS ENTRIES", 2, verb_apply},
	{"churn", "ADDRESS RATE COUNT PENDING TUPLES", 5, verb_churn},
	{"listen", "ADDRESS", 1, verb_listen},
	{"switch", "SOURCE TARGET ADDRESS ROUNDS RATE INTERVAL_MS stop|go-on", 7, verb_switch},
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
		if (streq(argv[1], verbs[i].name) && argc == verbs[i].n + 2) {
			verbs[i].run(argv + 2);
			return 0;
		}
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(stderr, "%s ct-bench %s %s\n", i ? "      " : "usage:", verbs[i].name, verbs[i].args);
	return 2;
}
