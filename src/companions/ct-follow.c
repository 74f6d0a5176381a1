/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dump and follow: entries to standard output. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <unistd.h>

#include "basic/clock.h"
#include "companions/conntrack.h"

#define DELTA_BYTES (1 << 20)

typedef struct Following {
	const Tool *tool;
	CtFollow *follow;
	sd_event *event;
	uint64_t interval, resync; /* microseconds; resync 0: events tell all */
	uint64_t resynced;
	uint64_t records, bytes;
	uint64_t dumps; /* as last said */
	bool switching; /* told to; once the first dump is there */
	size_t marks;	/* asked for before that */
	bool polled;	/* a table without events */
} Following;

static void following_done(Following *f)
{
	ct_follow_free(f->follow);
	sd_event_unref(f->event);
}

static void say(const Following *f, const char *what)
{
	CtFollowStats s;

	ct_follow_stats(f->follow, &s);
	tool_say(f->tool,
		 json_build("event", "s", what, "entries", "u", s.entries, "events", "u", s.events, "overruns", "u",
			    s.overruns, "interrupted", "u", s.interrupted, "records", "u", f->records, "bytes", "u", f->bytes, NULL),
		 "%s: %" PRIu64 " entries, %" PRIu64 " events, %" PRIu64 " bytes written%s", what, s.entries, s.events, f->bytes,
		 s.overruns ? ", events were lost and made up for" : "");
}

static int write_deltas(Following *f)
{
	const uint8_t *data;
	size_t len, n;
	int r = 0;

	while (r >= 0 && (len = ct_follow_delta(f->follow, DELTA_BYTES, &data, &n)) > 0) {
		r = output_write(STDOUT_FILENO, tool_format(f->tool, FORMAT_WIRE), data, len);
		f->records += n;
		f->bytes += len;
	}
	return r;
}

static int switch_now(Following *f)
{
	f->switching = true;
	return f->dumps ? sd_event_exit(f->event, 0) : 0;
}

/* All that has changed until now, and a batch of no records behind it: who asked knows that it is there. */
static int write_mark(Following *f)
{
	int r = ct_follow_drain(f->follow);

	if (r >= 0)
		r = write_deltas(f);
	return r < 0 ? r : output_begun(STDOUT_FILENO, tool_format(f->tool, FORMAT_WIRE));
}

/* All that a dump found is written. */
static int after_dump(Following *f, uint64_t dumps)
{
	int r = f->dumps ? 0 : output_begun(STDOUT_FILENO, tool_format(f->tool, FORMAT_WIRE));

	say(f, f->dumps ? "resynced" : "complete");
	f->dumps = dumps;
	for (; r >= 0 && f->marks; f->marks--)
		r = write_mark(f);
	return r >= 0 && f->switching ? switch_now(f) : r;
}

static int on_timer(sd_event_source *s, uint64_t usec, void *userdata)
{
	Following *f = userdata;
	CtFollowStats stats;
	int r = write_deltas(f);

	ct_follow_stats(f->follow, &stats);
	if (r >= 0 && stats.dumps > f->dumps)
		r = after_dump(f, stats.dumps);
	if (f->resync && usec - f->resynced >= f->resync) {
		f->resynced = usec;
		(void)ct_follow_resync(f->follow);
	}
	if (r >= 0)
		r = sd_event_source_set_time(s, usec + f->interval);
	if (r < 0)
		return sd_event_exit(f->event, r);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

/* SIGUSR1: switch. SIGUSR2: dump again. SIGTERM, SIGINT: leave, the table is not whole. */
static int on_signal(_unused_ sd_event_source *s, const struct signalfd_siginfo *si, void *userdata)
{
	Following *f = userdata;

	switch (si->ssi_signo) {
	case SIGUSR1:
		return switch_now(f);
	case SIGUSR2:
		return ct_follow_resync(f->follow);
	default:
		return sd_event_exit(f->event, -EINTR);
	}
}

/* A byte asks for a mark, the end of it is the switch. */
static int on_stdin(sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Following *f = userdata;
	char bytes[256];
	ssize_t n = read(fd, bytes, sizeof(bytes));
	int r = 0;

	if (n <= 0) {
		sd_event_source_set_enabled(s, SD_EVENT_OFF);
		return switch_now(f);
	}
	if (!f->dumps)
		f->marks += (size_t)n;
	for (; f->dumps && r >= 0 && n > 0; n--)
		r = write_mark(f);
	return r < 0 ? sd_event_exit(f->event, r) : 0;
}

static int watch_signals(Following *f)
{
	static const int signals[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};

	return tool_signals(f->event, signals, ARRAY_SIZE(signals), on_signal, f);
}

static int begin(Following *f, Error **err)
{
	CtOther *other = NULL;
	int r = sd_event_new(&f->event);

	if (r < 0)
		return error_set(err, r, "Cannot make an event loop: %s", strerror(-r));
	r = tool_other(f->tool, &other, err);
	if (r < 0)
		return r;
	f->polled = other != NULL;
	return other ? ct_follow_new_of(f->event, f->tool->select, other, &f->follow, err)
		     : ct_follow_new(f->event, f->tool->select, &f->follow, err);
}

static int written(int r, Error **err)
{
	if (r == -EPIPE)
		return error_set(err, r, "who reads the entries has gone");
	return r < 0 ? error_set(err, r, "Cannot write the entries: %s", strerror(-r)) : 0;
}

static int warn_of_host(Following *f)
{
	CtHost host;

	f->resynced = now_usec();
	f->resync = tool_number(f->tool, "resync", 2000) * USEC_PER_MSEC;
	if (f->polled)
		return 0;
	ct_host_read(&host);
	f->resync = host.events == 2 ? f->resync : 0;
	if (host.events == 0)
		tool_say(f->tool, json_build("event", "s", "warning", "what", "s", "no-events", NULL),
			 "warning: net.netfilter.nf_conntrack_events is 0: changes are not seen (set it to 1)");
	return 0;
}

static int follow_loop(Following *f, Error **err)
{
	int r = watch_signals(f);

	f->interval = tool_number(f->tool, "interval", 10) * USEC_PER_MSEC;
	if (r >= 0)
		r = sd_event_add_time_relative(f->event, NULL, CLOCK_MONOTONIC, f->interval, 1000, on_timer, f);
	if (r >= 0) /* -EPERM: a file */
		(void)sd_event_add_io(f->event, NULL, STDIN_FILENO, EPOLLIN, on_stdin, f);
	if (r >= 0)
		r = sd_event_loop(f->event);
	if (r == -EINTR)
		return error_set(err, r, "stopped before the switch: what was written is not the whole table");
	return written(r, err);
}

/* The switch: what the kernel has queued, what is left to write, and the mark that this is all. */
static int follow_last(Following *f, Error **err)
{
	uint64_t start = now_usec();
	int r = ct_follow_drain(f->follow);

	if (r < 0)
		return error_set(err, r, "Cannot read the table at the switch: %s: what was written may be old", strerror(-r));
	r = write_deltas(f);
	if (r >= 0)
		r = output_end(STDOUT_FILENO, tool_format(f->tool, FORMAT_WIRE));
	if (r < 0)
		return written(r, err);
	say(f, "last");
	tool_say(f->tool, json_build("event", "s", "switched", "usec", "u", now_usec() - start, NULL), "switched in %" PRIu64 " us",
		 now_usec() - start);
	return 0;
}

int tool_follow(const Tool *tool, Error **err)
{
	_cleanup_(following_done) Following f = {.tool = tool};
	int r = begin(&f, err);

	if (r >= 0)
		r = warn_of_host(&f);
	if (r >= 0)
		r = follow_loop(&f, err);
	return r < 0 ? r : follow_last(&f, err);
}

static int write_frame(Following *f)
{
	_cleanup_free_ uint8_t *batch = NULL;
	size_t n, left, size;
	CtFollowStats s;

	ct_follow_stats(f->follow, &s);
	size = (1 + s.entries) * (CT_WIRE_HEADER + CT_WIRE_RECORD_MAX);
	batch = xcalloc(1, size);
	return output_frame(STDOUT_FILENO, batch, ct_follow_snapshot(f->follow, batch, size, &n, &left));
}

int tool_dump(const Tool *tool, Error **err)
{
	_cleanup_(following_done) Following f = {.tool = tool};
	CtFollowStats stats = {};
	int r = begin(&f, err);

	if (r >= 0)
		ct_follow_stats(f.follow, &stats); /* another table has been read already */
	while (r >= 0 && !stats.complete) {
		r = sd_event_run(f.event, UINT64_MAX);
		ct_follow_stats(f.follow, &stats);
	}
	if (r >= 0)
		r = tool_format(tool, FORMAT_WIRE) == FORMAT_FRAME ? write_frame(&f) : write_deltas(&f);
	if (r >= 0)
		r = output_end(STDOUT_FILENO, tool_format(tool, FORMAT_WIRE));
	return written(r, err);
}
