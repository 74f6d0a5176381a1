/* SPDX-License-Identifier: GPL-2.0-or-later */
/* virsh, ssh and our own tools as children that are listened to. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/process.h"
#include "companions/libvirt.h"

#define LINE_LEN 8192
#define END_MSEC 1000
#define ANSWER_MAX (4 << 20)

/* What is compared with is virsh's English. */
static char *const plain_words[] = {(char[]){"LC_ALL=C"}, NULL};

struct Helper {
	pid_t pid; /* 0: reaped */
	int status, fd;
	sd_event_source *io, *exit;
	char text[LINE_LEN];
	size_t used;
	const HelperHandlers *handlers;
	void *userdata;
};

static void tell_if_over(Helper *h)
{
	if (!h->pid && h->fd < 0 && h->handlers->ended)
		h->handlers->ended(h, h->status, h->userdata);
}

static void hand_out(Helper *h)
{
	char *end;

	while ((end = memchr(h->text, '\n', h->used))) {
		char line[LINE_LEN];
		size_t len = (size_t)(end - h->text);

		memcpy(line, h->text, len);
		line[len] = '\0';
		h->used -= len + 1;
		memmove(h->text, end + 1, h->used);
		h->handlers->line(h, line, h->userdata);
	}
	if (h->used == sizeof(h->text)) /* no line of ours is that long */
		h->used = 0;
}

static int on_readable(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Helper *h = userdata;
	ssize_t n = read(fd, h->text + h->used, sizeof(h->text) - h->used);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n > 0) {
		h->used += (size_t)n;
		hand_out(h);
		return 0;
	}
	h->io = sd_event_source_disable_unref(h->io);
	h->fd = fd_close(h->fd);
	tell_if_over(h);
	return 0;
}

static int on_exit_event(_unused_ sd_event_source *s, const siginfo_t *si, void *userdata)
{
	Helper *h = userdata;

	h->pid = 0;
	h->status = si->si_code == CLD_EXITED ? W_EXITCODE(si->si_status, 0) : W_EXITCODE(0, si->si_status);
	h->exit = sd_event_source_disable_unref(h->exit);
	tell_if_over(h);
	return 0;
}

static size_t child_fds(const HelperSpec *spec, int lines, SpawnFd *fds)
{
	const int wanted[] = {spec->in, spec->out, spec->err};
	size_t n = 0;

	for (int i = 0; i < 3; i++)
		if (wanted[i] != -1)
			fds[n++] = (SpawnFd){.fd = wanted[i] == HELPER_LINES ? lines : wanted[i], .number = i};
	return n;
}

static int spawn(const HelperSpec *spec, int lines, Error **err)
{
	SpawnFd fds[3];
	const Spawn how = {
		.argv = spec->argv,
		.env = plain_words,
		.fds = fds,
		.n_fds = child_fds(spec, lines, fds),
		.setsid = !spec->foreground,
		/* libvirt cancels a migration whose virsh has gone, unless it makes it by itself (--p2p): receive knows
		   what to do then. */
		.bound = !spec->outlives,
	};

	return process_spawn(&how, NULL, err);
}

int helper_start(sd_event *event, const HelperSpec *spec, Helper **ret, Error **err)
{
	_cleanup_fd_ int ours = -1, theirs = -1;
	Helper *h;
	int pipes[2], r;
	pid_t pid;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	ours = pipes[0];
	theirs = pipes[1];
	pid = spawn(spec, theirs, err);
	if (pid < 0)
		return (int)pid;
	(void)fd_nonblock(ours, true);
	h = xcalloc(1, sizeof(*h));
	*h = (Helper){.pid = pid, .fd = TAKE_FD(ours), .handlers = spec->handlers, .userdata = spec->userdata};
	r = sd_event_add_io(event, &h->io, h->fd, EPOLLIN, on_readable, h);
	if (r >= 0)
		r = sd_event_add_child(event, &h->exit, pid, WEXITED, on_exit_event, h);
	if (r < 0) {
		helper_free(h);
		return error_set(err, r, "Cannot watch %s: %s", spec->name, strerror(-r));
	}
	*ret = h;
	return 0;
}

void helper_signal(Helper *h, int number)
{
	if (h && h->pid)
		(void)kill(h->pid, number);
}

bool helper_running(const Helper *h)
{
	return h && h->pid;
}

/* It may be stopped, or not care. */
static void end(pid_t pid)
{
	struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};

	(void)kill(pid, SIGTERM);
	(void)kill(pid, SIGCONT);
	if (p.fd < 0 || poll(&p, 1, END_MSEC) <= 0)
		(void)kill(pid, SIGKILL);
	fd_close(p.fd);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

Helper *helper_free(Helper *h)
{
	if (!h)
		return NULL;
	sd_event_source_disable_unref(h->io);
	sd_event_source_disable_unref(h->exit);
	fd_close(h->fd);
	if (h->pid)
		end(h->pid);
	free(h);
	return NULL;
}

/* ---- virsh ---- */

char *virsh_quote(const char *word)
{
	char *quoted = xcalloc(strlen(word) * 4 + 3, 1), *to = quoted;

	*to++ = '\'';
	for (; *word; word++) {
		if (*word == '\'')
			to = stpcpy(to, "'\\'");
		*to++ = *word;
	}
	*to = '\'';
	return quoted;
}

char **virsh_words(const char *uri)
{
	char **words = NULL;

	strv_push(&words, xstrdup("virsh"));
	strv_push(&words, xstrdup("--quiet"));
	if (uri) {
		strv_push(&words, xstrdup("--connect"));
		strv_push(&words, xstrdup(uri));
	}
	return words;
}

/* All that comes until the end of it, or until @deadline. Return: whether that was the end. */
static bool read_text(int fd, char *text, size_t max, uint64_t deadline)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	for (size_t used = 0; used < max;) {
		uint64_t now = now_usec();
		int n = poll(&p, 1, !deadline ? -1 : now < deadline ? (int)((deadline - now) / USEC_PER_MSEC) + 1 : 0);
		ssize_t got = n > 0 ? read(fd, text + used, max - used) : -1;

		if (n == 0 || (n > 0 && got == 0))
			return n > 0;
		used += got > 0 ? (size_t)got : 0;
	}
	return true;
}

int virsh_ask(const char *uri, const char *commands, uint64_t usec, char **ret, Error **err)
{
	_cleanup_free_ char *text = xcalloc(ANSWER_MAX + 1, 1);
	_cleanup_strv_ char **words = virsh_words(uri);
	int pipes[2], status = 0;
	pid_t pid;

	strv_push(&words, xstrdup(commands));
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	const SpawnFd fds[] = {{pipes[1], STDOUT_FILENO}, {STDIN_FILENO, STDIN_FILENO}, {STDERR_FILENO, STDERR_FILENO}};
	const Spawn how = {.argv = words, .env = plain_words, .fds = fds, .n_fds = err ? 3 : 1};

	pid = process_spawn(&how, NULL, err);
	fd_close(pipes[1]);
	if (pid > 0 && !read_text(pipes[0], text, ANSWER_MAX, usec ? now_usec() + usec : 0))
		(void)kill(pid, SIGKILL);
	fd_close(pipes[0]);
	if (pid < 0)
		return (int)pid;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return error_set(err, -EIO, "virsh says no, see above");
	*ret = TAKE_PTR(text);
	return 0;
}
