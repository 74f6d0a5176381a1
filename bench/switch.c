/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A follower and a sink in two processes and namespaces, joined as two keepers are (src/keeper/follow.c, target.c):
 * D-Bus over a socket, a delta every interval, one under way at a time. The switch: read what the kernel has queued,
 * send what changed, and a mark after it; its answer is the barrier.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/text.h"
#include "ct-bench.h"

#define BENCH_PATH "/org/vmferry/Bench"
#define BENCH_INTERFACE "org.vmferry.Bench1"
#define DELTA_BYTES (128 * 1024)
#define SPACE_USEC (100 * USEC_PER_MSEC) /* between two switches, and up to an interval more */
#define WARM_USEC (2200 * USEC_PER_MSEC) /* until connections end as fast as they begin: see begin_churn() */

static void must(int r, const char *what)
{
	errno = r < 0 ? -r : 0;
	die_if(r < 0, what);
}

static sd_bus *bus_on(int fd, bool server, sd_event *event)
{
	sd_bus *bus = NULL;

	must(sd_bus_new(&bus), "sd_bus_new");
	must(sd_bus_set_fd(bus, fd, fd), "sd_bus_set_fd");
	if (server)
		must(sd_bus_set_server(bus, true, (sd_id128_t){.bytes = {1}}), "sd_bus_set_server");
	must(sd_bus_set_anonymous(bus, true), "sd_bus_set_anonymous");
	must(sd_bus_set_trusted(bus, true), "sd_bus_set_trusted");
	must(sd_bus_start(bus), "sd_bus_start");
	must(sd_bus_attach_event(bus, event, SD_EVENT_PRIORITY_NORMAL), "sd_bus_attach_event");
	return bus;
}

/* ---- target ---- */

typedef struct Target {
	CtApply *sink;
	uint64_t usec; /* in ct_apply_delta() since the last mark */
} Target;

static int on_delta(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Target *t = userdata;
	uint64_t usec = 0, start;
	CtApplyStats stats;
	const void *data;
	size_t len;
	int last;

	must(sd_bus_message_read(m, "b", &last), "Delta");
	must(sd_bus_message_read_array(m, 'y', &data, &len), "Delta");
	start = now_usec();
	if (len)
		must(ct_apply_delta(t->sink, data, len, NULL), "ct_apply_delta");
	t->usec += now_usec() - start;
	if (last) {
		usec = t->usec;
		t->usec = 0;
	}
	ct_apply_stats(t->sink, &stats);
	return sd_bus_reply_method_return(m, "tttt", usec, stats.applied, stats.refused, stats.failed);
}

static void target_run(const SwitchOptions *options, int fd)
{
	static const sd_bus_vtable vtable[] = {
		SD_BUS_VTABLE_START(0),
		SD_BUS_METHOD("Delta", "bay", "tttt", on_delta, SD_BUS_VTABLE_UNPRIVILEGED),
		SD_BUS_VTABLE_END,
	};
	sd_event *event = NULL;
	Target t = {};
	sd_bus *bus;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	enter_namespace(options->target);
	t.sink = sink_new(options->address);
	must(sd_event_new(&event), "sd_event_new");
	bus = bus_on(fd, true, event);
	must(sd_bus_add_object_vtable(bus, NULL, BENCH_PATH, BENCH_INTERFACE, vtable, &t), "vtable");
	must(sd_bus_set_exit_on_disconnect(bus, true), "sd_bus_set_exit_on_disconnect");
	(void)sd_event_loop(event);
	_exit(0);
}

/* ---- source ---- */

/* What one switch took, microseconds. */
typedef struct Sample {
	uint64_t drain, delta, barrier, total, applying;
	uint64_t events, records;
} Sample;

typedef struct Source {
	const SwitchOptions *options;
	sd_event *event;
	sd_bus *bus;
	CtFollow *follow;
	sd_event_source *timer;
	bool in_flight, full, switching;
	uint64_t answered; /* the mark was, at */
	Sample *now;
	uint64_t applied, refused, failed;
} Source;

static void send_next(Source *s);

static int on_reply(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Source *s = userdata;
	uint64_t usec;

	must(sd_bus_message_is_method_error(m, NULL) ? -EIO : 0, "Delta");
	must(sd_bus_message_read(m, "tttt", &usec, &s->applied, &s->refused, &s->failed), "Delta's reply");
	s->in_flight = false;
	if (s->now)
		s->now->applying = usec;
	if (s->full && !s->switching)
		send_next(s);
	return 0;
}

static int on_last_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Source *s = userdata;

	s->answered = now_usec();
	return on_reply(m, userdata, error);
}

static void send_delta(Source *s, const void *data, size_t len, bool last)
{
	sd_bus_message *call = NULL;

	must(sd_bus_message_new_method_call(s->bus, &call, NULL, BENCH_PATH, BENCH_INTERFACE, "Delta"), "Delta");
	must(sd_bus_message_append(call, "b", (int)last), "Delta");
	must(sd_bus_message_append_array(call, 'y', data, len), "Delta");
	must(sd_bus_call_async(s->bus, NULL, call, last ? on_last_reply : on_reply, s, 60 * USEC_PER_SEC), "Delta");
	sd_bus_message_unref(call);
}

static void send_next(Source *s)
{
	const uint8_t *data;
	size_t len, records;

	if (s->in_flight || s->switching)
		return;
	len = ct_follow_delta(s->follow, DELTA_BYTES, &data, &records);
	s->in_flight = len > 0;
	s->full = len > 0 && ct_follow_pending(s->follow);
	if (len > 0)
		send_delta(s, data, len, false);
}

static int on_timer(sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	Source *s = userdata;

	sd_event_source_set_time_relative(source, s->options->interval_ms * USEC_PER_MSEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	send_next(s);
	return 0;
}

static void source_begin(Source *s, int fd)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = vm_select(s->options->address);
	Error *err = NULL;

	must(sd_event_new(&s->event), "sd_event_new");
	s->bus = bus_on(fd, false, s->event);
	must(ct_follow_new(s->event, select, &s->follow, &err), err ? err->message : "ct_follow_new");
	must(sd_event_add_time_relative(s->event, &s->timer, CLOCK_MONOTONIC, 0, 1000, on_timer, s), "timer");
}

/* Until the target has all but what changed a moment ago. Return: microseconds. */
static uint64_t first_sync(Source *s)
{
	uint64_t start = now_usec();
	CtFollowStats stats;

	do {
		must(sd_event_run(s->event, UINT64_MAX), "source");
		ct_follow_stats(s->follow, &stats);
	} while (!stats.complete || s->in_flight || s->full || !s->applied);
	return now_usec() - start;
}

static int on_over(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	*(bool *)userdata = true;
	return 0;
}

/* Follow on for a while that ends anywhere between two deltas. */
static void follow_on(Source *s, uint64_t usec)
{
	uint64_t some = (uint64_t)random() % (s->options->interval_ms * USEC_PER_MSEC);
	sd_event_source *timer = NULL;
	bool over = false;

	must(sd_event_add_time_relative(s->event, &timer, CLOCK_MONOTONIC, usec + some, 1, on_over, &over), "timer");
	while (!over)
		must(sd_event_run(s->event, UINT64_MAX), "source");
	sd_event_source_disable_unref(timer);
}

/* do_last_delta() of the keeper, and its answer. */
static void switch_now(Source *s, Sample *sample)
{
	const uint8_t *data;
	size_t len, records;
	uint64_t start = now_usec(), at;
	int n;

	s->switching = true;
	s->answered = 0;
	s->now = sample;
	n = ct_follow_drain(s->follow);
	must(n, "ct_follow_drain");
	sample->events = (uint64_t)n;
	at = now_usec();
	sample->drain = at - start;
	while ((len = ct_follow_delta(s->follow, DELTA_BYTES, &data, &records)) > 0) {
		sample->records += records;
		send_delta(s, data, len, false);
	}
	send_delta(s, "", 0, true);
	sample->delta = now_usec() - at;
	while (!s->answered)
		must(sd_event_run(s->event, UINT64_MAX), "source");
	sample->total = s->answered - start;
	sample->barrier = sample->total - sample->drain - sample->delta;
	s->now = NULL;
	s->switching = s->full = false;
}

static json_object *sample_json(const Sample *s)
{
	return json_build("total_ms", "d", (double)s->total / 1e3, "drain_ms", "d", (double)s->drain / 1e3, "delta_ms",
			  "d", (double)s->delta / 1e3, "barrier_ms", "d", (double)s->barrier / 1e3, "applying_ms", "d",
			  (double)s->applying / 1e3, "events", "u", s->events, "records", "u", s->records, NULL);
}

/* Half of the connections live for a second; a tuple comes again after two. */
static pid_t begin_churn(const SwitchOptions *o)
{
	if (!o->rate)
		return 0;
	return churn_start(&(Churn){.address = o->address, .rate = o->rate, .pending = o->rate, .tuples = 2 * o->rate});
}

static json_object *rounds(Source *s, pid_t churn)
{
	json_object *list = json_object_new_array();

	for (uint32_t i = 0; i < s->options->rounds; i++) {
		bool stop = churn && (!s->options->churn_goes_on || i + 1 == s->options->rounds);
		Sample sample = {};

		follow_on(s, SPACE_USEC);
		if (stop)
			kill(churn, SIGSTOP);
		switch_now(s, &sample);
		if (stop && i + 1 < s->options->rounds)
			kill(churn, SIGCONT);
		json_object_array_add(list, sample_json(&sample));
	}
	return list;
}

void switch_run(const SwitchOptions *options)
{
	Source s = {.options = options};
	uint64_t rss, synced, start, cpu;
	json_object *list;
	CtFollowStats stats;
	pid_t churn;
	int pair[2];

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), "socketpair");
	if (fork() == 0) {
		close(pair[0]);
		target_run(options, pair[1]);
	}
	close(pair[1]);
	enter_namespace(options->source);
	churn = begin_churn(options);
	rss = rss_bytes();
	source_begin(&s, pair[0]);
	synced = first_sync(&s);
	ct_follow_stats(s.follow, &stats);
	rss = rss_bytes() - rss;
	if (churn)
		follow_on(&s, WARM_USEC);
	start = now_usec();
	cpu = cpu_usec();
	list = rounds(&s, churn);
	cpu = cpu_usec() - cpu;
	start = now_usec() - start;
	/* A last switch when all is still: what is compared afterwards. */
	follow_on(&s, SPACE_USEC);
	switch_now(&s, &(Sample){});
	ct_follow_stats(s.follow, &stats);
	print_json(json_build("entries", "u", stats.entries, "applied", "u", s.applied, "refused", "u", s.refused,
			      "failed", "u", s.failed, "overruns", "u", stats.overruns, "events", "u", stats.events,
			      "first_sync_ms", "d", (double)synced / 1e3, "bytes_per_entry", "d",
			      (double)rss / (double)stats.entries, "follower_cpu", "d", (double)cpu / (double)start,
			      "switches", "o", list, NULL));
	if (churn) {
		kill(churn, SIGTERM);
		kill(churn, SIGCONT);
		(void)waitpid(churn, NULL, 0);
	}
	sd_event_source_disable_unref(s.timer);
	ct_follow_free(s.follow);
	sd_bus_close_unref(s.bus);
	sd_event_unref(s.event);
	while (wait(NULL) > 0)
		;
}
