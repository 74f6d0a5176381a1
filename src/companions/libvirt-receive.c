/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The target's end. It keeps the entries current while libvirt moves the guest, holds the gate of the hook, and resumes
 * the guest that libvirt left paused. Nobody but it may have to: it goes on when the other end is cut, until the guest
 * runs or is gone.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "companions/conntrack.h"
#include "companions/counters.h"
#include "companions/gate.h"
#include "companions/libvirt.h"
#include "conntrack/record.h"

#define SETTLE_MSEC 1000

/* What has become of the entries. */
typedef enum Stream { STREAM_OPEN, STREAM_WHOLE, STREAM_CUT } Stream;

typedef struct Receive {
	const Tool *tool;
	sd_event *event;
	sd_event_source *input_source, *bound, *others_source;
	Transfer transfer;
	Input input;
	char *others;	/* what ask_others()'s process has said */
	CtApply *apply; /* NULL until that is all */
	Gate *gate;
	Watch *watch;
	DomainLife arrival; /* what libvirt has made of the domain here */
	Stream stream;
	bool begun, whole;	  /* a first copy of the table is in; all of it, and the guest stands still */
	uint64_t paused_at, held; /* microseconds */
	const char *how;	  /* the gate opened */
	bool ready;		  /* libvirt is heard */
	bool came;		  /* it was seen to: a domain of that name may have been here before */
	bool stays;		  /* it runs at the source, and never here */
	bool asked;		  /* for the domain's state */
	char *why;		  /* it ends with an error */
} Receive;

static void receive_done(Receive *r)
{
	gate_free(r->gate);
	watch_free(r->watch);
	sd_event_source_disable_unref(r->input_source);
	sd_event_source_disable_unref(r->bound);
	sd_event_source_disable_unref(r->others_source);
	free(r->others);
	ct_apply_free(r->apply);
	input_done(&r->input);
	transfer_done(&r->transfer);
	sd_event_unref(r->event);
	free(r->why);
}

static void say(const char *what)
{
	printf("{\"event\":\"%s\"}\n", what);
	fflush(stdout);
}

static void say_end(const Receive *r, const char *what)
{
	bool rolled_back = streq(what, "rolled-back");
	json_object *o;
	CtApplyStats s;
	GateStats g;

	ct_apply_stats(r->apply, &s);
	gate_stats(r->gate, &g);
	o = json_build("event", "s", what, "received", "u", s.received, "applied", "u", s.applied, "refused", "u",
		       s.refused, "failed", "u", s.failed, "replaced", "u", s.replaced, "first_refused", "s",
		       *s.first_refused ? s.first_refused : NULL, "gate", "s", r->how, "held_usec", "u", r->held,
		       "hook_completed", "u", g.completed, "hook_timeout", "u", g.timeout, NULL);
	counters_extend(o, &(Counters){.imports = {.success = r->stream == STREAM_WHOLE && !rolled_back,
						   .aborted = r->stream != STREAM_WHOLE || rolled_back},
				       .waits = {.completed = g.completed, .timeout = g.timeout}});
	printf("%s\n", json_text(o));
	fflush(stdout);
	json_object_put(o);
}

/* ---- when it is over, and the guest's turn ---- */

static void give_up(Receive *r, int code, const char *why)
{
	free(r->why);
	r->why = xstrdup(why);
	(void)sd_event_exit(r->event, code);
}

static void resume(Receive *r, const char *how)
{
	if (r->how || r->stays)
		return;
	r->how = how;
	r->bound = sd_event_source_disable_unref(r->bound);
	watch_resume(r->watch);
}

static int on_bound(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	resume(userdata, "timeout");
	return 0;
}

/* What follows from what is known now. */
static void consider(Receive *r)
{
	bool over = r->stream != STREAM_OPEN, to_run = r->transfer.resume && !r->stays;

	if (r->arrival == LIFE_PAUSED && to_run && (over || r->whole))
		resume(r, r->stream == STREAM_CUT && !r->whole ? "cut" : "complete");
	if (r->arrival == LIFE_RUNNING || (r->arrival == LIFE_PAUSED && !to_run) || r->arrival == LIFE_GONE) {
		if (over)
			(void)sd_event_exit(r->event, 0);
	} else if (over && r->arrival != LIFE_PAUSED && !r->asked) {
		/* The other end has gone, or has heard of the end sooner than we. */
		r->asked = true;
		watch_ask(r->watch);
	}
}

static void on_arrival(Receive *r, DomainLife arrival)
{
	if (arrival == r->arrival || r->arrival == LIFE_RUNNING) /* whatever becomes of it then */
		return;
	r->arrival = arrival;
	r->came |= arrival == LIFE_COMING;
	if (arrival == LIFE_PAUSED && r->transfer.resume) {
		r->paused_at = now_usec();
		(void)sd_event_add_time_relative(r->event, &r->bound, CLOCK_MONOTONIC, r->transfer.bound, 1000,
						 on_bound, r);
		say("paused");
	} else if (arrival == LIFE_PAUSED) {
		say("paused");
	} else if (arrival == LIFE_RUNNING) {
		r->held = r->paused_at ? now_usec() - r->paused_at : 0;
		say("running");
	}
	consider(r);
}

static void on_life(void *userdata, DomainLife life)
{
	if (life != LIFE_LEAVING) /* onward: it was here */
		on_arrival(userdata, life);
}

/*
 * Of a domain that nobody saw coming, what it is tells of a migration that has succeeded only once the source says so:
 * another of that name may be here, paused by its user, and then libvirt refuses the migration.
 */
static void on_answer(void *userdata, DomainLife life)
{
	Receive *r = userdata;
	bool first = !r->ready;

	r->ready = true;
	if (first)
		say("ready");
	if (!r->came && life != LIFE_COMING && r->stream != STREAM_WHOLE)
		life = r->stream == STREAM_CUT ? LIFE_GONE : LIFE_NONE;
	if (life != LIFE_NONE)
		on_arrival(r, life);
}

static void on_refused(void *userdata, const char *why)
{
	give_up(userdata, -EIO, why);
}

/* Nothing more is heard of the domain, and the other end resumes it. */
static void on_lost(void *userdata, const char *why)
{
	say("deaf");
	give_up(userdata, -ENOTCONN, why);
}

static const WatchHandlers watch_handlers = {
	.life = on_life, .answer = on_answer, .refused = on_refused, .lost = on_lost};

/* ---- entries ---- */

static void stream_over(Receive *r, Stream how)
{
	r->input_source = sd_event_source_disable_unref(r->input_source);
	r->stream = how;
	consider(r);
}

/* The first: a whole table. Then, in turn: all of it since the guest stopped; it goes on, and so do changes. */
static void on_mark(Receive *r)
{
	r->whole = r->begun && !r->whole;
	if (!r->begun) {
		gate_ready(r->gate);
		say("initial");
	}
	r->begun = true;
	consider(r);
}

/* Return: 1 when there may be more at once, 0, or negative errno with @err set. */
static int take(Receive *r, Error **err)
{
	const uint8_t *batch;
	size_t len;
	int n = input_next(&r->input, &batch, &len, err);

	if (n == -EAGAIN)
		return 0;
	if (n > 0) {
		n = ct_apply_delta(r->apply, batch, len, err);
		if (n < 0)
			return n;
		if (len == CT_WIRE_HEADER)
			on_mark(r);
		n = !r->input.ended && !r->input.back;
	}
	r->stays = r->input.back;
	if (n == 0)
		stream_over(r, r->input.ended ? STREAM_WHOLE : STREAM_CUT);
	return n;
}

static int on_input(_unused_ sd_event_source *s, _unused_ int fd, _unused_ uint32_t revents, void *userdata)
{
	_cleanup_error_ Error *err = NULL;
	Receive *r = userdata;
	int n;

	do
		n = take(r, &err);
	while (n > 0);
	if (n < 0) {
		fprintf(stderr, "vmferry-libvirt: %s\n", err ? err->message : strerror(-n));
		stream_over(r, STREAM_CUT);
	}
	return 0;
}

/* ---- life ---- */

/* It is to end, but not before the guest has gone on: as when the other end is cut. */
static int on_terminate(_unused_ sd_event_source *s, _unused_ const struct signalfd_siginfo *si, void *userdata)
{
	Receive *r = userdata;

	if (r->stream == STREAM_OPEN)
		stream_over(r, STREAM_CUT);
	return 0;
}

static int watch_signals(Receive *r)
{
	static const int signals[] = {SIGTERM};

	signal(SIGHUP, SIG_IGN); /* the end of the ssh session */
	return tool_signals(r->event, signals, ARRAY_SIZE(signals), on_terminate, r);
}

/*
 * Addresses of other domains here are asked for by a process of its own: virsh takes its time, and libvirt may need us
 * meanwhile. To be called before watch_new(), which makes a thread.
 */
static int ask_others(const Receive *r, int *ret)
{
	_cleanup_strv_ char **addresses = NULL;
	int ends[2], null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid = null < 0 || pipe2(ends, O_CLOEXEC) < 0 ? -1 : fork();

	if (pid != 0)
		fd_close(null);
	if (pid < 0)
		return -EAGAIN;
	if (pid > 0) {
		fd_close(ends[1]);
		*ret = ends[0];
		return 0;
	}
	(void)dup2(null, STDIN_FILENO);
	(void)dup2(null, STDOUT_FILENO);
	addresses = domain_neighbours(NULL, r->transfer.domain, NULL);
	for (size_t i = 0; addresses && addresses[i]; i++)
		dprintf(ends[1], "%s ", addresses[i]);
	_exit(0);
}

/* They, as far as libvirt knows them, and the host's own. */
static CtSelect *others_here(const Receive *r)
{
	_cleanup_strv_ char **addresses = NULL;
	CtSelect *all = NULL, *theirs = NULL;

	if (r->others)
		(void)strv_split_words(r->others, &addresses);
	if (ct_select_own(&all, NULL) < 0)
		all = xcalloc(1, sizeof(*all));
	if (strv_length(addresses) && ct_select_new(addresses, &theirs, NULL) >= 0)
		ct_select_join(all, theirs, NULL);
	ct_select_free(theirs);
	return all;
}

/* Whatever the source says, a guest that comes gets no entry of one that is here. */
static void take_away(CtSelect *from, const CtSelect *others, const char *domain)
{
	bool by_address = from->by_address;
	char text[INET6_ADDRSTRLEN];

	for (size_t i = 0; i < from->n_addresses; i++) {
		const CtAddress *a = &from->addresses[i];

		if (ct_select_has(others, a->family, a->bytes))
			fprintf(stderr, "vmferry-libvirt: warning: %s is not taken for %s's: it is another's here\n",
				inet_ntop(a->family, a->bytes, text, sizeof(text)), domain);
	}
	ct_select_join(from, NULL, others);
	from->by_address = by_address; /* without any left, no entry is its */
}

static int open_apply(Receive *r, Error **err)
{
	CtSelect *others = others_here(r);
	const CtApplyOptions options = {
		.max_entries = 1000000, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER, .foreign = others};
	int e;

	take_away(r->transfer.select, others, r->transfer.domain);
	e = ct_apply_new(r->transfer.select, &options, &r->apply, err);
	ct_select_free(others);
	return e;
}

static int take_entries(Receive *r, Error **err)
{
	int e = r->stream == STREAM_OPEN ? open_apply(r, err) : 0;

	if (e < 0 || !r->apply)
		return e;
	(void)ct_apply_survey(r->apply, r->event); /* what one of us left here that was killed */
	e = fd_nonblock(STDIN_FILENO, true);
	if (e >= 0)
		e = sd_event_add_io(r->event, &r->input_source, STDIN_FILENO, EPOLLIN, on_input, r);
	return e;
}

static int on_others(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	_cleanup_error_ Error *err = NULL;
	char text[4096];
	Receive *r = userdata;
	ssize_t n = read(fd, text, sizeof(text) - 1);

	if (n < 0 && errno == EINTR)
		return 0;
	if (n > 0) {
		_cleanup_free_ char *before = r->others;

		text[n] = '\0';
		r->others = xasprintf("%s%s", before ?: "", text);
		return 0;
	}
	r->others_source = sd_event_source_disable_unref(r->others_source);
	n = take_entries(r, &err);
	if (n < 0)
		give_up(r, (int)n, err ? err->message : strerror((int)-n));
	return 0;
}

static int hear_others(Receive *r)
{
	int fd = -1, e = ask_others(r, &fd);

	if (e >= 0)
		e = sd_event_add_io(r->event, &r->others_source, fd, EPOLLIN, on_others, r);
	if (e >= 0)
		e = sd_event_source_set_io_fd_own(r->others_source, true);
	else
		fd_close(fd);
	return e;
}

static int set_up(Receive *r, Error **err)
{
	int e = transfer_read(STDIN_FILENO, &r->transfer, err);

	if (e >= 0)
		e = sd_event_new(&r->event);
	if (e >= 0)
		e = watch_signals(r);
	if (e >= 0)
		e = hear_others(r);
	if (e >= 0)
		e = watch_new(r->event, NULL, r->transfer.domain, &watch_handlers, r, &r->watch, err);
	if (e >= 0)
		e = gate_new(r->event, r->transfer.domain, r->transfer.bound, &r->gate, err);
	return e;
}

/* The other end need not wait while the guest's packets settle. Return: whether this is the process that goes on. */
static bool into_background(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	pid_t pid = fork();

	if (pid != 0)
		return pid < 0;
	(void)setsid();
	for (int fd = 0; null >= 0 && fd < 3; fd++)
		(void)dup2(null, fd);
	return true;
}

/* Entries that lay here before and that the source does not have are old, if all of the source's came. */
static int settle(Receive *r, Error **err)
{
	int more = r->stream == STREAM_WHOLE && ct_apply_survey_wait(r->apply) >= 0;

	while (more > 0)
		more = ct_apply_sweep_some(r->apply);
	(void)poll(NULL, 0, SETTLE_MSEC);
	return ct_apply_settle(r->apply, err);
}

static int finish(Receive *r, Error **err)
{
	int n;

	if (r->stays && r->arrival == LIFE_PAUSED)
		fprintf(stderr,
			"vmferry-libvirt: %s runs at the source, and libvirt left another here, paused: end it\n",
			r->transfer.domain);
	if (r->arrival != LIFE_RUNNING && (r->arrival != LIFE_PAUSED || r->stays)) {
		n = ct_apply_rollback(r->apply);
		say_end(r, "rolled-back");
		return n < 0 ? error_set(err, n, "Cannot delete what was installed: %s", strerror(-n)) : 0;
	}
	say_end(r, r->stream == STREAM_WHOLE ? "done" : "incomplete");
	r->watch = watch_free(r->watch); /* a thread is not for two processes */
	if (!into_background())
		return 0;
	n = settle(r, err);
	_exit(n < 0); /* whatever a thread that did not end holds is the other process's */
}

int libvirt_receive(const Tool *tool, Error **err)
{
	_cleanup_(receive_done)
	Receive r = {.tool = tool, .input = {.fd = STDIN_FILENO, .format = FORMAT_WIRE}};
	int e;

	e = set_up(&r, err);
	if (e < 0)
		return e;
	e = sd_event_loop(r.event);
	if (r.why)
		return error_set(err, e, "%s: %s", r.transfer.domain, r.why);
	if (e >= 0 && !r.apply) /* nothing has come yet */
		e = open_apply(&r, err);
	return e < 0 ? e : finish(&r, err);
}
