/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "basic/process.h"
#include "basic/text.h"

#define STDERR_KEEP 2048
#define COLLECT_MAX 128 /* KiB at a time */
#define GRACE_USEC (2 * USEC_PER_SEC)

struct Child {
	char *program;
	int err_fd;
	char said[STDERR_KEEP + 1]; /* the end of its standard error */
	size_t said_len;
	sd_event_source *exit_source, *err_source;
	siginfo_t status;
	bool ended;
	void (*exited)(void *userdata);
	void *userdata;
};

/* Takes what there is on its standard error, keeping the end. Return: false at its end. */
static bool collect(Child *child)
{
	char buffer[1024];
	ssize_t n = -1;

	/* Not without end: one that says more than we read would keep us here. */
	for (size_t i = 0; i < COLLECT_MAX && (n = read(child->err_fd, buffer, sizeof(buffer))) > 0; i++) {
		size_t len = (size_t)n, keep = STDERR_KEEP - len; /* len <= 1024 */

		if (child->said_len > keep) {
			memmove(child->said, child->said + child->said_len - keep, keep);
			child->said_len = keep;
		}
		memcpy(child->said + child->said_len, buffer, len);
		child->said_len += len;
	}
	child->said[child->said_len] = '\0';
	return n != 0;
}

/* Read as it comes: a full pipe would stop a talkative ssh, and the migration with it. */
static int on_stderr(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	(void)fd;
	(void)revents;
	return collect(userdata) ? 0 : sd_event_source_set_enabled(source, SD_EVENT_OFF);
}

static int on_exit_event(sd_event_source *source, const siginfo_t *si, void *userdata)
{
	Child *child = userdata;

	child->status = *si;
	child->ended = true;
	child->exit_source = sd_event_source_disable_unref(source);
	(void)collect(child);
	child->exited(child->userdata);
	return 0;
}

int child_start(sd_event *event, char *const *argv, const char *ssh_auth_sock, int in, int out,
		void (*exited)(void *userdata), void *userdata, Child **ret, Error **err)
{
	_cleanup_strv_ char **env = NULL;
	_cleanup_fd_ int rd = -1, wr = -1;
	SpawnFd fds[3];
	size_t n = 0;
	Child *child;
	int pair[2], r;
	pid_t pid;

	if (pipe2(pair, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot start %s: %m", argv[0]);
	rd = pair[0];
	wr = pair[1];
	fd_nonblock(rd, true);
	if (in >= 0)
		fds[n++] = (SpawnFd){ .fd = in, .number = 0 };
	if (out >= 0)
		fds[n++] = (SpawnFd){ .fd = out, .number = 1 };
	fds[n++] = (SpawnFd){ .fd = wr, .number = 2 };
	if (ssh_auth_sock)
		strv_add(&env, "SSH_AUTH_SOCK=%s", ssh_auth_sock);
	pid = process_spawn(&(Spawn){ .argv = argv,
				      .env = env,
				      .fds = fds,
				      .n_fds = n,
				      .setsid = true,
				      .bound = in < 0 }, /* ssh -N has no stream of ours that would end */
			    NULL, err);
	if (pid < 0)
		return pid;
	child = xcalloc(1, sizeof(*child));
	child->program = xstrdup(argv[0]);
	child->err_fd = TAKE_FD(rd);
	child->exited = exited;
	child->userdata = userdata;
	r = sd_event_add_io(event, &child->err_source, child->err_fd, EPOLLIN, on_stderr, child);
	if (r >= 0)
		r = sd_event_add_child(event, &child->exit_source, pid, WEXITED, on_exit_event, child);
	if (r < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		child_free(child, false);
		return error_set(err, r, "cannot watch %s: %s", argv[0], strerror(-r));
	}
	*ret = child;
	return 0;
}

/* A child that is left to itself: reaped when it ends, helped along when it does not. */
typedef struct Orphan {
	sd_event_source *exit_source, *timer;
} Orphan;

/* The loop owns a source from here on, and frees it with itself at the latest. */
static void source_hand_over(sd_event_source *source)
{
	(void)sd_event_source_set_floating(source, true);
	sd_event_source_unref(source);
}

static void source_drop(sd_event_source *source)
{
	sd_event_source_ref(source);
	(void)sd_event_source_set_floating(source, false);
	sd_event_source_disable_unref(source);
}

static int on_orphan_exit(sd_event_source *source, const siginfo_t *si, void *userdata)
{
	Orphan *orphan = userdata;

	(void)si;
	source_drop(orphan->timer);
	source_drop(source);
	return 0;
}

static int on_orphan_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	Orphan *orphan = userdata;

	(void)source;
	(void)usec;
	return sd_event_source_send_child_signal(orphan->exit_source, SIGTERM, NULL, 0);
}

static void leave_alone(sd_event_source *running, bool graceful)
{
	sd_event *event = sd_event_source_get_event(running);
	Orphan *orphan = xcalloc(1, sizeof(*orphan));
	pid_t pid = 0;

	(void)sd_event_source_get_child_pid(running, &pid);
	if (!graceful)
		(void)sd_event_source_send_child_signal(running, SIGTERM, NULL, 0);
	sd_event_source_disable_unref(running);
	if (sd_event_add_time_relative(event, &orphan->timer, CLOCK_MONOTONIC, GRACE_USEC, 0, on_orphan_late, orphan) < 0 ||
	    sd_event_add_child(event, &orphan->exit_source, pid, WEXITED, on_orphan_exit, orphan) < 0) {
		sd_event_source_disable_unref(orphan->timer);
		free(orphan);
		return;
	}
	(void)sd_event_source_set_destroy_callback(orphan->exit_source, free);
	source_hand_over(orphan->timer);
	source_hand_over(orphan->exit_source);
}

static void forget(Child *child)
{
	sd_event_source_disable_unref(child->err_source);
	fd_close(child->err_fd);
	free(child->program);
	free(child);
}

Child *child_free(Child *child, bool graceful)
{
	if (!child)
		return NULL;
	if (child->exit_source)
		leave_alone(TAKE_PTR(child->exit_source), graceful);
	forget(child);
	return NULL;
}

void child_leave(Child *child, bool kill)
{
	if (!child)
		return;
	if (child->exit_source && kill)
		(void)sd_event_source_send_child_signal(child->exit_source, SIGTERM, NULL, 0);
	sd_event_source_disable_unref(child->exit_source);
	forget(child);
}

void child_kill(Child *child)
{
	if (child && child->exit_source)
		sd_event_source_send_child_signal(child->exit_source, SIGKILL, NULL, 0);
}

/* What ssh says and what to do about it. */
static const struct {
	const char *said;
	const char *hint;
} ssh_hints[] = {
	{ "Permission denied", "this host's key is not accepted there; try: ssh HOST vmferry --version" },
	{ "Host key verification failed", "accept the host's key once by hand: ssh HOST" },
	{ "Could not resolve", "no such host name; check the spelling and the DNS or ssh's config" },
	{ "Connection refused", "is sshd running there, and on this port?" },
	{ "No route to host", "check the network between the hosts" },
	{ "timed out", "check the network and the firewall between the hosts" },
	{ "command not found", "vmferry is not installed there, or set remote-command in host.conf" },
	{ "No such file", "vmferry is not installed there, or set remote-command in host.conf" },
	{ "not found", "vmferry is not installed there, or set remote-command in host.conf" },
};

static char *last_line(const char *text)
{
	size_t end = strlen(text), begin;

	while (end > 0 && (text[end - 1] == '\n' || text[end - 1] == '\r'))
		end--;
	begin = end;
	while (begin > 0 && text[begin - 1] != '\n')
		begin--;
	return text_clean(text + begin, end - begin);
}

int child_explain(Child *child, Error **err)
{
	_cleanup_free_ char *line = NULL;

	(void)collect(child);
	line = last_line(child->said);
	if (!child->ended)
		error_set(err, -ECONNABORTED, "%s closed its stream%s%s", child->program, *line ? ": " : "", line);
	else if (child->status.si_code != CLD_EXITED)
		error_set(err, -ECONNABORTED, "%s was killed by signal %d%s%s", child->program,
			  child->status.si_status, *line ? ": " : "", line);
	else
		error_set(err, -ECONNREFUSED, "%s ended with status %d%s%s", child->program, child->status.si_status,
			  *line ? ": " : "", line);
	for (size_t i = 0; i < ARRAY_SIZE(ssh_hints); i++)
		if (strstr(child->said, ssh_hints[i].said))
			error_hint(err, "%s", ssh_hints[i].hint);
	if (child->ended && child->status.si_code == CLD_EXITED && child->status.si_status == 127)
		error_hint(err, "vmferry is not installed there, or set remote-command in host.conf");
	return -ECONNREFUSED;
}

bool child_succeeded(const Child *child)
{
	return child->ended && child->status.si_code == CLD_EXITED && child->status.si_status == 0;
}

bool child_busy_server(Child *child)
{
	static const char *const signs[] = { "Connection closed by", "Connection reset by",
					     "kex_exchange_identification", "Exceeded MaxStartups" };

	(void)collect(child);
	if (!child->ended || child->status.si_code != CLD_EXITED || child->status.si_status != 255)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(signs); i++)
		if (strstr(child->said, signs[i]))
			return true;
	return false;
}
