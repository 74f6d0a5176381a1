/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/gate.h"

#include <ctype.h>
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/crc32.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"

#define WAITERS_MAX 16
#define NAME_MAX_LEN 40 /* more is cut, so that the path fits in sun_path */
#define QUESTION "wait\n"
#define ANSWER "ok\n"
#define SILENT_USEC (5 * USEC_PER_SEC) /* one that asks nothing is closed */

typedef struct Waiter {
	Gate *gate;
	int fd;
	size_t got; /* bytes of QUESTION */
	sd_event_source *io, *timer;
} Waiter;

struct Gate {
	sd_event *event;
	sd_event_source *io;
	char *path;
	int fd;
	uint64_t bound;
	ino_t inode; /* of the socket: a later gate of the same name takes the path over */
	bool ready;
	Waiter waiters[WAITERS_MAX];
	bool once;
	void (*other)(void *userdata, int fd);
	void *userdata;
	GateStats stats;
};

char *gate_path(const char *name)
{
	char text[NAME_MAX_LEN + 1];
	size_t i;

	for (i = 0; i < NAME_MAX_LEN && name[i]; i++)
		text[i] = isalnum((unsigned char)name[i]) || strchr("._-", name[i]) ? name[i] : '_';
	text[i] = '\0';
	return xasprintf("%s/.gates/%s.%08x", runtime_dir(), text, crc32_add(0, name, strlen(name)));
}

static void waiter_close(Waiter *w)
{
	w->io = sd_event_source_disable_unref(w->io);
	w->timer = sd_event_source_disable_unref(w->timer);
	w->fd = fd_close(w->fd);
	w->gate = NULL;
}

static void let_through(Waiter *w, uint64_t *count)
{
	(*count)++;
	(void)!write(w->fd, ANSWER, strlen(ANSWER)); /* a fresh socket has room; who has gone does not mind */
	waiter_close(w);
}

static bool waits(const Waiter *w)
{
	return w->gate && w->got == strlen(QUESTION);
}

static int on_bound(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	Waiter *w = userdata;

	if (waits(w))
		let_through(w, &w->gate->stats.timeout);
	else
		waiter_close(w);
	return 0;
}

static int set_timer(Waiter *w, uint64_t usec)
{
	w->timer = sd_event_source_disable_unref(w->timer);
	return sd_event_add_time_relative(w->gate->event, &w->timer, CLOCK_MONOTONIC, usec, 1000, on_bound, w);
}

/* Whether it is another's business. */
static bool hand_over(Waiter *w)
{
	Gate *gate = w->gate;
	char first;

	if (!gate->other || w->got || recv(w->fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) != 1 || first == QUESTION[0])
		return false;
	(void)fd_nonblock(w->fd, false);
	gate->other(gate->userdata, TAKE_FD(w->fd));
	waiter_close(w);
	return true;
}

static int on_question(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Waiter *w = userdata;
	char text[sizeof(QUESTION)];
	ssize_t n;

	if (hand_over(w))
		return 0;
	n = read(fd, text, strlen(QUESTION) - w->got);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	/* The end of the input too: who says it all and then leaves did not wait. */
	if (n <= 0 || memcmp(text, &QUESTION[w->got], (size_t)n) != 0) {
		waiter_close(w);
		return 0;
	}
	w->got += (size_t)n;
	if (w->got < strlen(QUESTION))
		return 0;
	(void)sd_event_source_set_enabled(w->io, SD_EVENT_OFF);
	if (w->gate->ready)
		gate_ready(w->gate);
	else
		(void)set_timer(w, w->gate->bound);
	return 0;
}

static int on_connect(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	int peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	Gate *gate = userdata;
	Waiter *w = NULL;

	for (size_t i = 0; i < WAITERS_MAX && !w; i++)
		if (!gate->waiters[i].gate)
			w = &gate->waiters[i];
	if (peer < 0 || !w) {
		fd_close(peer);
		return 0;
	}
	*w = (Waiter){.gate = gate, .fd = peer};
	if (sd_event_add_io(gate->event, &w->io, peer, EPOLLIN, on_question, w) < 0 ||
	    set_timer(w, SILENT_USEC) < 0)
		waiter_close(w);
	return 0;
}

static ino_t inode_of(const char *path)
{
	struct stat st;

	return lstat(path, &st) < 0 ? 0 : st.st_ino;
}

static int listen_at(Gate *gate)
{
	gate->fd = unix_listen(gate->path, 0600);
	gate->inode = inode_of(gate->path);
	return gate->fd < 0 ? gate->fd : sd_event_add_io(gate->event, &gate->io, gate->fd, EPOLLIN, on_connect, gate);
}

static int open_gate(Gate *gate, Gate **ret, Error **err)
{
	int r = listen_at(gate);

	if (r < 0) {
		error_set(err, r, "Cannot listen at %s: %s", gate->path, strerror(-r));
		gate_free(gate);
		return r;
	}
	*ret = gate;
	return 0;
}

int gate_new(sd_event *event, const char *name, uint64_t bound, Gate **ret, Error **err)
{
	_cleanup_free_ char *dir = xasprintf("%s/.gates", runtime_dir());
	Gate *gate = xcalloc(1, sizeof(*gate));

	*gate = (Gate){.event = event, .fd = -1, .bound = bound, .path = gate_path(name)};
	(void)dir_make(dir, 0755); /* without it the socket says why */
	return open_gate(gate, ret, err);
}

int gate_new_at(sd_event *event, const char *path, uint64_t bound, void (*other)(void *userdata, int fd), void *userdata,
		Gate **ret, Error **err)
{
	Gate *gate = xcalloc(1, sizeof(*gate));

	*gate = (Gate){.event = event,
		       .fd = -1,
		       .bound = bound,
		       .path = xstrdup(path),
		       .once = true,
		       .other = other,
		       .userdata = userdata};
	return open_gate(gate, ret, err);
}

void gate_ready(Gate *gate)
{
	gate->ready = true;
	for (size_t i = 0; i < WAITERS_MAX; i++)
		if (waits(&gate->waiters[i])) {
			let_through(&gate->waiters[i], &gate->stats.completed);
			gate->ready = !gate->once;
		}
}

void gate_close(Gate *gate)
{
	gate->ready = false;
}

void gate_forget(Gate *gate)
{
	gate->fd = fd_close(gate->fd);
	for (size_t i = 0; i < WAITERS_MAX; i++)
		if (gate->waiters[i].gate)
			gate->waiters[i].fd = fd_close(gate->waiters[i].fd);
}

void gate_stats(const Gate *gate, GateStats *ret)
{
	*ret = gate->stats;
}

Gate *gate_free(Gate *gate)
{
	if (!gate)
		return NULL;
	for (size_t i = 0; i < WAITERS_MAX; i++)
		if (gate->waiters[i].gate)
			let_through(&gate->waiters[i], &gate->stats.timeout);
	sd_event_source_disable_unref(gate->io);
	if (gate->fd >= 0 && gate->inode == inode_of(gate->path))
		(void)unlink(gate->path);
	fd_close(gate->fd);
	free(gate->path);
	free(gate);
	return NULL;
}

/* Return: 1 at the answer, or negative errno. */
static int await_answer(int fd, uint64_t end)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char text[sizeof(ANSWER)];
	size_t got = 0;

	while (got < strlen(ANSWER)) {
		uint64_t now = now_usec();
		ssize_t n;

		if (now >= end || poll(&p, 1, (int)((end - now + 999) / USEC_PER_MSEC)) == 0)
			return -ETIMEDOUT;
		n = recv(fd, text + got, strlen(ANSWER) - got, MSG_DONTWAIT);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		got += n > 0 ? (size_t)n : 0;
	}
	return memcmp(text, ANSWER, got) == 0 ? 1 : -EBADMSG;
}

int gate_wait_at(const char *path, uint64_t bound)
{
	_cleanup_fd_ int fd = unix_connect(path);

	if (fd == -ENOENT || fd == -ECONNREFUSED)
		return 0;
	if (fd < 0)
		return fd;
	if (send(fd, QUESTION, strlen(QUESTION), MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)strlen(QUESTION))
		return -EPIPE;
	return await_answer(fd, now_usec() + bound);
}

int gate_wait(const char *name, uint64_t bound)
{
	_cleanup_free_ char *path = gate_path(name);

	return gate_wait_at(path, bound);
}
