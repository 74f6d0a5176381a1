/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The target's end. It keeps the entries current while libvirt moves the guest, holds the gate of the hook, and resumes
 * the guest that libvirt left paused. Nobody but it may have to: it goes on when the other end is cut, until the guest
 * runs or is gone.
 */
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
#include "companions/gate.h"
#include "companions/libvirt.h"

#define SETTLE_MSEC 1000
#define LINE_MAX_LEN 65536

/* What libvirt has made of the domain here. */
typedef enum Arrival {
	ARRIVAL_NONE,
	ARRIVAL_COMING,
	ARRIVAL_PAUSED, /* Finish is done, it is ours to resume */
	ARRIVAL_RUNNING,
	ARRIVAL_GONE,
} Arrival;

/* What has become of the entries. */
typedef enum Stream { STREAM_OPEN, STREAM_WHOLE, STREAM_CUT } Stream;

typedef struct Receive {
	const Tool *tool;
	sd_event *event;
	sd_event_source *input_source, *bound;
	Transfer transfer;
	Input input;
	CtApply *apply;
	Gate *gate;
	Helper *events, *shell;
	int shell_fd; /* its standard input */
	char *prefix; /* of the lines of virsh event that are about the domain */
	Arrival arrival;
	Stream stream;
	uint64_t paused_at, held; /* microseconds */
	const char *how;	  /* the gate opened */
	bool asked;		  /* for the domain's state */
} Receive;

static void receive_done(Receive *r)
{
	gate_free(r->gate);
	helper_free(r->events);
	helper_free(r->shell);
	fd_close(r->shell_fd);
	sd_event_source_disable_unref(r->input_source);
	sd_event_source_disable_unref(r->bound);
	ct_apply_free(r->apply);
	input_done(&r->input);
	transfer_done(&r->transfer);
	sd_event_unref(r->event);
	free(r->prefix);
}

static void say(const char *what)
{
	printf("{\"event\":\"%s\"}\n", what);
	fflush(stdout);
}

static void say_end(const Receive *r, const char *what)
{
	json_object *o;
	CtApplyStats s;
	GateStats g;

	ct_apply_stats(r->apply, &s);
	gate_stats(r->gate, &g);
	o = json_build("event", "s", what, "received", "u", s.received, "applied", "u", s.applied, "refused", "u",
		       s.refused, "failed", "u", s.failed, "replaced", "u", s.replaced, "first_refused", "s",
		       *s.first_refused ? s.first_refused : NULL, "gate", "s", r->how, "held_usec", "u", r->held,
		       "hook_completed", "u", g.completed, "hook_timeout", "u", g.timeout, NULL);
	printf("%s\n", json_text(o));
	fflush(stdout);
	json_object_put(o);
}

/* ---- when it is over, and the guest's turn ---- */

static void shell(Receive *r, const char *command)
{
	_cleanup_free_ char *name = virsh_quote(r->transfer.domain), *line = xasprintf("%s %s\n", command, name);

	(void)fd_write_all(r->shell_fd, line, strlen(line));
}

static void resume(Receive *r, const char *how)
{
	if (r->how)
		return;
	r->how = how;
	r->bound = sd_event_source_disable_unref(r->bound);
	shell(r, "resume");
}

static int on_bound(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	resume(userdata, "timeout");
	return 0;
}

/* What follows from what is known now. */
static void consider(Receive *r)
{
	bool over = r->stream != STREAM_OPEN;

	if (r->arrival == ARRIVAL_PAUSED && r->transfer.resume && over)
		resume(r, r->stream == STREAM_WHOLE ? "complete" : "cut");
	if (r->arrival == ARRIVAL_RUNNING || (r->arrival == ARRIVAL_PAUSED && !r->transfer.resume) ||
	    r->arrival == ARRIVAL_GONE) {
		if (over)
			(void)sd_event_exit(r->event, 0);
	} else if (over && r->arrival != ARRIVAL_PAUSED && !r->asked) {
		/* The other end has gone, or has heard of the end sooner than we. */
		r->asked = true;
		shell(r, "domstate --reason");
	}
}

static void on_arrival(Receive *r, Arrival arrival)
{
	if (arrival == r->arrival || r->arrival == ARRIVAL_RUNNING) /* whatever becomes of it then */
		return;
	r->arrival = arrival;
	if (arrival == ARRIVAL_PAUSED && r->transfer.resume) {
		r->paused_at = now_usec();
		(void)sd_event_add_time_relative(r->event, &r->bound, CLOCK_MONOTONIC, r->transfer.bound, 1000,
						 on_bound, r);
		say("paused");
	} else if (arrival == ARRIVAL_PAUSED) {
		say("paused");
	} else if (arrival == ARRIVAL_RUNNING) {
		r->held = r->paused_at ? now_usec() - r->paused_at : 0;
		say("running");
	}
	consider(r);
}

/* ---- virsh ---- */

/* "event 'lifecycle' for domain 'NAME': Suspended Paused": virsh-domain-event.c, virshDomainEventToString() and Detail
 */
static const struct {
	const char *begins;
	Arrival arrival;
} words[] = {
	{"Started Migrated", ARRIVAL_COMING},
	{"Suspended Paused", ARRIVAL_PAUSED},
	{"Resumed", ARRIVAL_RUNNING},
	{"Stopped", ARRIVAL_GONE},
	{"Crashed", ARRIVAL_GONE},
};

static void on_event_line(_unused_ Helper *h, char *line, void *userdata)
{
	Receive *r = userdata;
	const char *what = startswith(line, r->prefix);

	for (size_t i = 0; what && i < ARRAY_SIZE(words); i++)
		if (startswith(what, words[i].begins))
			on_arrival(r, words[i].arrival);
}

/* libvirtd has ended, or never was: nothing more is heard of the domain, and the other end resumes it. */
static void on_virsh_ended(_unused_ Helper *h, _unused_ int status, void *userdata)
{
	Receive *r = userdata;

	say("deaf");
	(void)sd_event_exit(r->event, -ENOTCONN);
}

/* Answers of domstate --reason, after the end of the input. A domain that is still coming is waited for. */
static const struct {
	const char *begins;
	Arrival arrival;
} states[] = {
	{"error:", ARRIVAL_GONE},
	{"shut off", ARRIVAL_GONE},
	{"paused (user)", ARRIVAL_PAUSED},
	{"running", ARRIVAL_RUNNING},
};

static void on_shell_line(_unused_ Helper *h, char *line, void *userdata)
{
	Receive *r = userdata;

	if (r->how && startswith(line, "error:")) {
		fprintf(stderr, "vmferry-libvirt: %s\n", line);
		(void)sd_event_exit(r->event, -EIO);
	}
	for (size_t i = 0; r->asked && i < ARRAY_SIZE(states); i++)
		if (startswith(line, states[i].begins))
			on_arrival(r, states[i].arrival);
}

static const HelperHandlers event_handlers = {.line = on_event_line, .ended = on_virsh_ended};
static const HelperHandlers shell_handlers = {.line = on_shell_line, .ended = on_virsh_ended};

static int start_events(Receive *r, Error **err)
{
	_cleanup_strv_ char **argv = virsh_words(NULL);
	static const char *const more[] = {"event", "--event", "lifecycle", "--loop"};

	for (size_t i = 0; i < ARRAY_SIZE(more); i++)
		strv_push(&argv, xstrdup(more[i]));
	r->prefix = xasprintf("event 'lifecycle' for domain '%s': ", r->transfer.domain);
	return helper_start(r->event,
			    &(HelperSpec){.name = "virsh event",
					  .argv = argv,
					  .in = -1,
					  .out = HELPER_LINES,
					  .err = STDERR_FILENO,
					  .handlers = &event_handlers,
					  .userdata = r},
			    &r->events, err);
}

/* One that is connected already resumes the guest sooner than one to be started. */
static int start_shell(Receive *r, Error **err)
{
	_cleanup_strv_ char **argv = virsh_words(NULL);
	int pipes[2], e;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	r->shell_fd = pipes[1];
	/* Both in one stream: errors are answers too. */
	e = helper_start(r->event,
			 &(HelperSpec){.name = "virsh",
				       .argv = argv,
				       .in = pipes[0],
				       .out = HELPER_LINES,
				       .err = HELPER_LINES,
				       .handlers = &shell_handlers,
				       .userdata = r},
			 &r->shell, err);
	fd_close(pipes[0]);
	return e;
}

/* ---- entries ---- */

static void stream_over(Receive *r, Stream how)
{
	r->input_source = sd_event_source_disable_unref(r->input_source);
	r->stream = how;
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
		if (len == CT_WIRE_HEADER) {
			gate_ready(r->gate);
			say("initial");
		}
		n = !r->input.ended;
	}
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

static int set_up(Receive *r, Error **err)
{
	const CtApplyOptions options = {.max_entries = 1000000, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER};
	int e = transfer_read(STDIN_FILENO, &r->transfer, err);

	if (e >= 0)
		e = sd_event_new(&r->event);
	if (e >= 0)
		e = ct_apply_new(r->transfer.select, &options, &r->apply, err);
	if (e >= 0)
		e = gate_new(r->event, r->transfer.domain, r->transfer.bound, &r->gate, err);
	if (e >= 0)
		e = start_events(r, err);
	if (e >= 0)
		e = start_shell(r, err);
	if (e >= 0)
		e = fd_nonblock(STDIN_FILENO, true);
	if (e >= 0)
		e = sd_event_add_io(r->event, &r->input_source, STDIN_FILENO, EPOLLIN, on_input, r);
	return e;
}

static void block_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGHUP, SIG_IGN); /* the end of the ssh session */
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

static int finish(Receive *r, Error **err)
{
	if (r->arrival != ARRIVAL_RUNNING && r->arrival != ARRIVAL_PAUSED) {
		int n = ct_apply_rollback(r->apply);

		say_end(r, "rolled-back");
		return n < 0 ? error_set(err, n, "Cannot delete what was installed: %s", strerror(-n)) : 0;
	}
	say_end(r, r->stream == STREAM_WHOLE ? "done" : "incomplete");
	if (!into_background())
		return 0;
	(void)poll(NULL, 0, SETTLE_MSEC);
	return ct_apply_settle(r->apply, err);
}

int libvirt_receive(const Tool *tool, Error **err)
{
	_cleanup_(receive_done)
	Receive r = {.tool = tool, .shell_fd = -1, .input = {.fd = STDIN_FILENO, .format = FORMAT_WIRE}};
	int e;

	block_signals();
	e = set_up(&r, err);
	if (e < 0)
		return e;
	say("ready");
	e = sd_event_loop(r.event);
	if (e == -ENOTCONN || e == -EIO)
		return error_set(err, e,
				 e == -EIO ? "libvirt does not resume %s" : "virsh has ended; not heard of %s any more",
				 r.transfer.domain);
	return e < 0 ? e : finish(&r, err);
}

/* ---- the line before the entries ---- */

void transfer_done(Transfer *t)
{
	free(t->domain);
	ct_select_free(t->select);
}

json_object *transfer_json(const Tool *tool, const char *domain, char *const *addresses, bool resume_it, uint64_t bound)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; addresses && addresses[i]; i++)
		json_object_array_add(list, json_object_new_string(addresses[i]));
	return json_build("version", "u", (uint64_t)1, "domain", "s", domain, "addresses", "o", list, "mark", "s",
			  tool_text(tool, "mark", NULL), "zone", "s", tool_text(tool, "zone", NULL), "resume", "b",
			  resume_it, "bound_usec", "u", bound, NULL);
}

static int read_line(int fd, char *to, size_t max)
{
	for (size_t i = 0; i < max; i++) {
		ssize_t n = fd_read_all(fd, to + i, 1);

		if (n <= 0)
			return n < 0 ? (int)n : -ENODATA;
		if (to[i] == '\n')
			return (int)i;
	}
	return -EMSGSIZE;
}

static int parse_select(json_object *o, CtSelect **ret, Error **err)
{
	_cleanup_strv_ char **addresses = NULL;
	json_object *list;
	const char *text;
	int r;

	if (json_get_array(o, "addresses", &list))
		for (size_t i = 0; i < json_object_array_length(list); i++)
			strv_push(&addresses,
				  xstrdup(json_object_get_string(json_object_array_get_idx(list, i)) ?: ""));
	r = ct_select_new(addresses, ret, err);
	if (r >= 0 && json_get_string(o, "mark", &text))
		r = ct_select_mark(*ret, text, err);
	if (r >= 0 && json_get_string(o, "zone", &text))
		r = ct_select_zone(*ret, text, err);
	return r;
}

static int parse_transfer(json_object *o, Transfer *t, Error **err)
{
	const char *domain = "";
	uint64_t version = 0;

	if (!json_get_u64(o, "version", &version) || version != 1)
		return error_set(err, -EPROTO, "the other end speaks version %" PRIu64 ", this one 1", version);
	if (!json_get_string(o, "domain", &domain) || !*domain || strpbrk(domain, "\n\r") ||
	    !json_get_bool(o, "resume", &t->resume) || !json_get_u64(o, "bound_usec", &t->bound) ||
	    t->bound > 60 * USEC_PER_SEC)
		return error_set(err, -EPROTO, "the other end's first line is incomplete");
	t->domain = xstrdup(domain);
	return parse_select(o, &t->select, err);
}

int transfer_read(int fd, Transfer *ret, Error **err)
{
	_cleanup_free_ char *line = xcalloc(LINE_MAX_LEN, 1);
	_cleanup_json_ json_object *o = NULL;
	int len = read_line(fd, line, LINE_MAX_LEN);

	if (len < 0)
		return error_set(err, len, "Cannot read the first line: %s", strerror(-len));
	o = json_parse(line, (size_t)len);
	return o ? parse_transfer(o, ret, err) : error_set(err, -EPROTO, "the first line is not JSON");
}
