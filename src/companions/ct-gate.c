/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * gate, wait and send. A gate is a UNIX socket on the target: one sends entries to it, in a frame or in wire format,
 * another asks it to wait until they are here. They are applied by a child of their own, so that who waits is let
 * through in time whatever becomes of them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "companions/conntrack.h"
#include "companions/counters.h"
#include "companions/gate.h"

typedef enum State { STATE_PENDING, STATE_RUNNING, STATE_DONE, STATE_FAILED, STATE_TIMED_OUT, _STATE_MAX } State;
static const char *const state_names[] = {
	[STATE_PENDING] = "pending", [STATE_RUNNING] = "in-progress", [STATE_DONE] = "done",
	[STATE_FAILED] = "failed",   [STATE_TIMED_OUT] = "timed-out",
};
static_assert(ARRAY_SIZE(state_names) == _STATE_MAX, "a name for each");

/* What a child says once all has been read. */
typedef struct Result {
	int result;
	uint64_t applied, refused, failed;
	char why[160];
} Result;

/* One transfer: a child that applies what comes over a connection. */
typedef struct Transfer {
	int fd; /* the connection, to cut it; -1: none */
	int result_fd;
	pid_t pid; /* 0: none */
	sd_event_source *result_source, *exit_source;
	bool told;
} Transfer;

typedef struct Import {
	const Tool *tool;
	sd_event *event;
	Gate *gate;
	State state;	  /* of the last transfer */
	GateStats before; /* when it began */
	Transfer transfer;
	int next_fd; /* a newer connection, whose turn is when the child of the older one has ended; or -1 */
	Counters count;
} Import;

static void start_transfer(Import *g, int fd);

/* A result is good for one switch: who has been let through takes it along. */
static State state_now(const Import *g)
{
	GateStats s;

	gate_stats(g->gate, &s);
	if (s.timeout > g->before.timeout && g->state == STATE_RUNNING)
		return STATE_TIMED_OUT;
	return s.completed > g->before.completed ? STATE_PENDING : g->state;
}

static json_object *counters(const Import *g)
{
	Counters count = g->count;
	json_object *o;
	GateStats s;

	gate_stats(g->gate, &s);
	count.waits.completed = s.completed;
	count.waits.timeout = s.timeout;
	o = json_build("state", "s", state_names[state_now(g)], NULL);
	counters_extend(o, &count);
	return o;
}

static void answer_status(const Import *g, int fd)
{
	json_object *o = counters(g);
	_cleanup_free_ char *line = xasprintf("%s\n", json_text(o));

	json_object_put(o);
	(void)send(fd, line, strlen(line), MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* A connection that does not ask to wait: "status\n", said at once, or entries. */
static void on_other(void *userdata, int fd)
{
	_cleanup_fd_ int its = fd;
	char line[16] = "";

	if (recv(fd, line, sizeof(line) - 1, MSG_PEEK | MSG_DONTWAIT) > 0 && line[0] != 's')
		start_transfer(userdata, TAKE_FD(its));
	else if (streq(line, "status\n"))
		answer_status(userdata, fd);
}

/* ---- transfers ---- */

static void say_result(const Import *g, const Result *r)
{
	tool_say(g->tool,
		 json_build("event", "s", "imported", "state", "s", state_names[g->state], "applied", "u", r->applied,
			    "refused", "u", r->refused, "failed", "u", r->failed, "why", "s", r->why, NULL),
		 "import %s: %" PRIu64 " entries%s%s", r->result < 0 ? "failed" : "done", r->applied,
		 *r->why ? ": " : "", r->why);
}

/* The child has read all, or ended without a word. */
static int on_result(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Result r = {.result = -EIO, .why = "the program that applies them has ended"};
	Import *g = userdata;
	bool late = state_now(g) == STATE_TIMED_OUT, cut;

	if (read(fd, &r, sizeof(r)) != sizeof(r))
		r.result = -EIO;
	r.why[sizeof(r.why) - 1] = '\0';
	cut = r.result == -EPIPE || g->next_fd >= 0;
	g->transfer.told = true;
	g->transfer.result_source = sd_event_source_disable_unref(g->transfer.result_source);
	g->count.imports.success += r.result >= 0;
	g->count.imports.aborted += r.result < 0 && cut;
	g->count.imports.error += r.result < 0 && !cut;
	g->state = r.result < 0 ? STATE_FAILED : STATE_DONE;
	say_result(g, &r);
	/* Who it was for has gone on without it: it is not the next one's. A newer one is to be waited for. */
	if (late || g->next_fd >= 0)
		g->state = STATE_PENDING;
	else
		gate_ready(g->gate);
	return 0;
}

static void transfer_done(Transfer *t)
{
	t->result_source = sd_event_source_disable_unref(t->result_source);
	t->exit_source = sd_event_source_disable_unref(t->exit_source);
	t->result_fd = fd_close(t->result_fd);
	t->fd = fd_close(t->fd);
	t->pid = 0;
}

static int on_exit_of_child(_unused_ sd_event_source *s, _unused_ const siginfo_t *si, void *userdata)
{
	Import *g = userdata;
	if (!g->transfer.told)
		(void)on_result(NULL, g->transfer.result_fd, 0, g);
	transfer_done(&g->transfer);
	if (g->next_fd >= 0)
		start_transfer(g, TAKE_FD(g->next_fd));
	return 0;
}

static void tell(void *userdata, int result, const CtApplyStats *stats, const char *why)
{
	const int *fd = userdata;
	Result r = {.result = result, .applied = stats->applied, .refused = stats->refused, .failed = stats->failed};

	snprintf(r.why, sizeof(r.why), "%s", *why ? why : stats->first_refused);
	(void)!write(*fd, &r, sizeof(r));
}

/* In the child. What a cut stream brought is undone: a retry starts clean. */
_Noreturn static void apply_in_child(const Import *g, int fd, int result)
{
	_cleanup_error_ Error *err = NULL;
	sigset_t none;
	char first = 0;

	gate_forget(g->gate);
	fd_close(g->next_fd);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	(void)recv(fd, &first, 1, MSG_PEEK);
	_exit(tool_apply_from(g->tool, fd, first == 'V' ? FORMAT_WIRE : FORMAT_FRAME, true, tell, &result, &err) < 0);
}

static int fork_transfer(Import *g, int fd)
{
	Transfer *t = &g->transfer;
	int pipes[2];

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	*t = (Transfer){.fd = fd, .result_fd = pipes[0], .pid = fork()};
	if (t->pid == 0)
		apply_in_child(g, fd, pipes[1]);
	fd_close(pipes[1]);
	if (t->pid < 0)
		return -errno;
	if (sd_event_add_io(g->event, &t->result_source, t->result_fd, EPOLLIN, on_result, g) < 0)
		return -ENOMEM;
	return sd_event_add_child(g->event, &t->exit_source, t->pid, WEXITED, on_exit_of_child, g);
}

/* End the running one: cut its stream, which undoes it, or leave what is through as it is. */
static void cut(Transfer *t)
{
	if (t->told)
		(void)kill(t->pid, SIGKILL);
	else
		(void)shutdown(t->fd, SHUT_RDWR);
}

static void start_transfer(Import *g, int fd)
{
	int r;

	gate_close(g->gate);
	gate_stats(g->gate, &g->before);
	g->state = STATE_RUNNING;
	if (g->transfer.pid) {
		fd_close(g->next_fd);
		g->next_fd = fd;
		cut(&g->transfer);
		return;
	}
	r = fork_transfer(g, fd);
	if (r >= 0)
		return;
	g->count.imports.error++;
	g->state = STATE_FAILED;
	transfer_done(&g->transfer);
	gate_ready(g->gate);
}

/* ---- the verbs ---- */

static void import_done(Import *g)
{
	if (g->transfer.pid)
		cut(&g->transfer);
	transfer_done(&g->transfer);
	fd_close(g->next_fd);
	gate_free(g->gate);
	sd_event_unref(g->event);
}

static int open_gate(Import *g, Error **err)
{
	const char *path = g->tool->args[0];
	int other = unix_connect(path);

	if (other >= 0) {
		fd_close(other);
		return error_set(err, -EADDRINUSE, "%s: another gate listens there", path);
	}
	return gate_new_at(g->event, path, tool_number(g->tool, "hold", 200) * USEC_PER_MSEC, on_other, g, &g->gate,
			   err);
}

static int set_up(Import *g, Error **err)
{
	static const int signals[] = {SIGTERM, SIGINT};
	int r = sd_event_new(&g->event);

	if (r >= 0)
		r = tool_signals(g->event, signals, ARRAY_SIZE(signals), NULL, NULL);
	return r < 0 ? r : open_gate(g, err);
}

int tool_gate(const Tool *tool, Error **err)
{
	_cleanup_(import_done)
	Import g = {.tool = tool, .next_fd = -1, .transfer = {.fd = -1, .result_fd = -1}};
	json_object *o;
	int r = set_up(&g, err);

	if (r < 0)
		return r;
	tool_say(tool, json_build("event", "s", "listening", "socket", "s", tool->args[0], NULL), "listens on %s",
		 tool->args[0]);
	r = sd_event_loop(g.event);
	o = counters(&g);
	json_extend(o, "event", "s", "ended", NULL);
	tool_say(tool, o, "%" PRIu64 " imports done, %" PRIu64 " cut, %" PRIu64 " failed", g.count.imports.success,
		 g.count.imports.aborted, g.count.imports.error);
	return r;
}

/* A migration never fails by this. */
int tool_wait(const Tool *tool, _unused_ Error **err)
{
	uint64_t begin = now_usec();
	int r = gate_wait_at(tool->args[0], tool_number(tool, "limit", 300) * USEC_PER_MSEC);
	const char *said = r > 0 ? "ok" : r == 0 ? "no gate" : strerror(-r);

	tool_say(tool, json_build("event", "s", "waited", "answer", "s", said, "usec", "u", now_usec() - begin, NULL),
		 "%s: %s", tool->args[0], said);
	return 0;
}

int tool_send(const Tool *tool, Error **err)
{
	_cleanup_fd_ int fd = unix_connect(tool->args[0]);
	static uint8_t buffer[65536];
	ssize_t n;
	int r = 0;

	if (fd < 0)
		return error_set(err, fd, "Cannot reach a gate at %s: %s", tool->args[0], strerror(-fd));
	while (r >= 0 && (n = read(STDIN_FILENO, buffer, sizeof(buffer))) != 0)
		if (n > 0)
			r = fd_write_all(fd, buffer, (size_t)n);
		else if (errno != EINTR)
			r = -errno;
	return r < 0 ? error_set(err, r, "Cannot send the entries to %s: %s", tool->args[0], strerror(-r)) : 0;
}
