/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "basic/text.h"

#define QUEUE 8

enum { GATE_OPEN, GATE_PASSED, GATE_SHUT };

/* Both ways; SOCK_SEQPACKET keeps them apart. */
typedef struct Message {
	unsigned int number; /* 0: nobody has asked */
	int r;
	char error[1024], hint[512], data[WORKER_DATA];
} Message;

typedef struct Request {
	unsigned int number;
	uint64_t until; /* CLOCK_MONOTONIC; 0: for ever */
	WorkerDone done;
	void *userdata;
} Request;

struct Worker {
	sd_event *event;
	WorkerJob job;
	Worker **once; /* of worker_run(): where its caller has it */
	bool *freed;   /* who calls back wants to know */
	int pidfd, sock;
	sd_event_source *io, *timer;
	Request queue[QUEUE]; /* answered in this order */
	size_t queued;
	unsigned int last;
	bool late;	   /* it has not answered in time */
	_Atomic int *gate; /* shared with the worker */
};

/* ---- in the worker ---- */

static _Atomic int *own_gate;

static bool pass(_Atomic int *gate, int to)
{
	int open = GATE_OPEN;

	return atomic_compare_exchange_strong(gate, &open, to);
}

bool worker_may(void)
{
	return !own_gate || pass(own_gate, GATE_PASSED);
}

/* All others are the keeper's: closed here, they are closed when it closes them. */
static int keep_only(int sock, int keep)
{
	int first = sock < keep || keep < 0 ? sock : keep, second = sock < keep || keep < 0 ? keep : sock;
	unsigned int next = STDERR_FILENO + 1;

	for (int i = 0; i < 2; i++) {
		int fd = i == 0 ? first : second;

		if (fd < (int)next)
			continue;
		if (fd > (int)next && close_range(next, (unsigned int)fd - 1, 0) < 0)
			return -errno;
		next = (unsigned int)fd + 1;
	}
	return close_range(next, ~0U, 0) < 0 ? -errno : 0;
}

static void send_answer(int sock, unsigned int number, int r, WorkerAnswer *answer)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {};
	Message message = {.number = number, .r = r};
	struct iovec iov = {&message, sizeof(message)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (answer->err) {
		snprintf(message.error, sizeof(message.error), "%s", answer->err->message);
		snprintf(message.hint, sizeof(message.hint), "%s", answer->err->hint ? answer->err->hint : "");
	}
	memcpy(message.data, answer->data, sizeof(message.data));
	if (answer->fd >= 0) {
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		control.header = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &answer->fd, sizeof(int));
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0)
		_exit(1);
	error_free(answer->err);
}

static void serve_one(const WorkerJob *job, int sock)
{
	WorkerAnswer answer = {.fd = -1};
	Message message;
	ssize_t n = recv(sock, &message, sizeof(message), 0);

	if (n != (ssize_t)sizeof(message))
		_exit(0); /* the keeper has closed it */
	send_answer(sock, message.number, job->serve(message.data, &answer, job->userdata), &answer);
}

/* Behind one that was given up, and is not gone yet. */
static bool take_turn(const char *path)
{
	int fd = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;

	return !path || (fd >= 0 && flock(fd, LOCK_EX) == 0);
}

static void __attribute__((noreturn)) work(const WorkerJob *job, int sock, pid_t parent)
{
	log_set_sink(NULL, NULL);
	(void)log_open(NULL);
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent || keep_only(sock, job->keep_fd) < 0 ||
	    !take_turn(job->lock))
		_exit(1);
	for (;;) {
		struct pollfd p[] = {{.fd = sock, .events = POLLIN},
				     {.fd = job->watch_fd ? job->watch_fd(job->userdata) : -1, .events = POLLIN}};

		if (poll(p, ARRAY_SIZE(p), -1) < 0)
			_exit(1);
		if (p[1].revents) {
			WorkerAnswer answer = {.fd = -1};
			int r = job->notice(&answer, job->userdata);

			if (r < 0)
				send_answer(sock, 0, r, &answer);
		}
		if (p[0].revents)
			serve_one(job, sock);
	}
}

/* ---- in the keeper ---- */

static int on_gone(sd_event_source *source, int pidfd, uint32_t revents, void *userdata)
{
	(void)revents;
	(void)userdata;
	waitid(P_PIDFD, (id_t)pidfd, NULL, WEXITED | WNOHANG);
	sd_event_source_disable_unref(source);
	return 0;
}

/* Reaped when it ends, whenever that is. */
static void give_up(sd_event *event, int pidfd)
{
	sd_event_source *source = NULL;

	(void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (sd_event_add_io(event, &source, pidfd, EPOLLIN, on_gone, NULL) < 0) {
		fd_close(pidfd);
		return;
	}
	(void)sd_event_source_set_io_fd_own(source, true);
	(void)sd_event_source_set_floating(source, true);
	sd_event_source_unref(source);
}

Worker *worker_free(Worker *w)
{
	if (!w)
		return NULL;
	if (w->freed)
		*w->freed = true;
	sd_event_source_disable_unref(w->io);
	sd_event_source_disable_unref(w->timer);
	if (w->gate)
		(void)pass(w->gate, GATE_SHUT);
	if (w->pidfd >= 0)
		give_up(w->event, w->pidfd);
	fd_close(w->sock);
	if (w->gate)
		munmap(w->gate, sizeof(*w->gate));
	free(w);
	return NULL;
}

static void arm(Worker *w);

/* The last thing that is done here: it may free @w. */
static void finish(Worker *w, size_t i, WorkerAnswer *answer)
{
	Request request = w->queue[i];

	w->queued--;
	memmove(w->queue + i, w->queue + i + 1, (w->queued - i) * sizeof(w->queue[0]));
	arm(w);
	if (w->once) {
		*w->once = NULL;
		worker_free(w);
	}
	request.done(answer, request.userdata);
}

static int on_time(sd_event_source *source, uint64_t usec, void *userdata)
{
	WorkerAnswer answer = {.r = -ETIMEDOUT, .fd = -1};
	Worker *w = userdata;

	(void)source;
	(void)usec;
	for (size_t i = 0; i < w->queued; i++)
		if (w->queue[i].until && w->queue[i].until <= now_usec()) {
			w->late = true;
			finish(w, i, &answer);
			return 0;
		}
	arm(w);
	return 0;
}

static void arm(Worker *w)
{
	uint64_t first = 0;

	w->timer = sd_event_source_disable_unref(w->timer);
	for (size_t i = 0; i < w->queued; i++)
		if (w->queue[i].until && (!first || w->queue[i].until < first))
			first = w->queue[i].until;
	if (first)
		(void)sd_event_add_time(w->event, &w->timer, CLOCK_MONOTONIC, first, 1, on_time, w);
}

static int attached_fd(struct msghdr *msg)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);
	int fd = -1;

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(int));
	return fd;
}

/* All that wait hear of it. */
static void died(Worker *w)
{
	bool freed = false, *outer = w->freed;

	w->io = sd_event_source_disable_unref(w->io);
	w->freed = &freed;
	while (!freed && w->queued > 0) {
		WorkerAnswer answer = {.r = -EPIPE, .fd = -1};

		error_set(&answer.err, -EPIPE, "a process that looks after storage has ended");
		finish(w, 0, &answer);
		error_free(answer.err);
	}
	if (!freed)
		w->freed = outer;
	else if (outer)
		*outer = true;
}

static void dispatch(Worker *w, const Message *message, int fd)
{
	WorkerAnswer answer = {.r = message->r, .fd = fd};

	if (answer.r < 0 && message->error[0]) {
		error_set(&answer.err, answer.r, "%s", message->error);
		if (message->hint[0])
			error_hint(&answer.err, "%s", message->hint);
	}
	memcpy(answer.data, message->data, sizeof(answer.data));
	if (message->number == 0 && w->job.noticed) {
		w->job.noticed(&answer, w->job.owner);
	} else {
		for (size_t i = 0; i < w->queued; i++)
			if (w->queue[i].number == message->number) {
				finish(w, i, &answer);
				break;
			}
	}
	error_free(answer.err);
	fd_close(answer.fd);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Worker *w = userdata;
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	Message message;
	struct iovec iov = {&message, sizeof(message)};
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	(void)source;
	(void)revents;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n == (ssize_t)sizeof(message))
		dispatch(w, &message, attached_fd(&msg));
	else
		died(w);
	return 0;
}

static int start(Worker *w, Error **err)
{
	int sock[2], r;
	pid_t pid, parent = getpid();
	void *page = mmap(NULL, sizeof(*w->gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock) < 0)
		r = -errno;
	else
		r = 0;
	if (page != MAP_FAILED)
		w->gate = page;
	if (r < 0)
		return r;
	w->sock = sock[0];
	pid = fork();
	if (pid == 0) {
		own_gate = w->gate;
		work(&w->job, sock[1], parent);
	}
	r = pid < 0 ? -errno : 0;
	fd_close(sock[1]);
	if (r < 0)
		return error_set(err, r, "cannot start a process: %s", strerror(-r));
	w->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (w->pidfd < 0) {
		r = -errno;
		(void)kill(pid, SIGKILL);
		return r;
	}
	return sd_event_add_io(w->event, &w->io, w->sock, EPOLLIN, on_io, w);
}

int worker_new(sd_event *event, const WorkerJob *job, Worker **ret, Error **err)
{
	Worker *w = xcalloc(1, sizeof(*w));
	int r;

	*w = (Worker){.event = event, .job = *job, .pidfd = -1, .sock = -1};
	r = start(w, err);
	if (r < 0) {
		worker_free(w);
		return error_set(err, r, "cannot start a process for what storage may delay: %s", strerror(-r));
	}
	*ret = w;
	return 0;
}

int worker_ask(Worker *w, const void *request, size_t len, uint64_t usec, WorkerDone done, void *userdata)
{
	Message message = {.number = w->last + 1};

	if (w->late)
		return -ETIMEDOUT; /* its gate may not be opened again */
	if (w->queued == QUEUE || len > sizeof(message.data))
		return -EBUSY;
	if (message.number == 0)
		message.number++;
	memcpy(message.data, request, len);
	if (w->queued == 0)
		atomic_store(w->gate, GATE_OPEN);
	if (send(w->sock, &message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return -errno;
	w->last = message.number;
	w->queue[w->queued++] = (Request){message.number, usec ? now_usec() + usec : 0, done, userdata};
	arm(w);
	return 0;
}

bool worker_busy(const Worker *w)
{
	return w->queued > 0;
}

void worker_wait(Worker *w, uint64_t usec)
{
	uint64_t until = now_usec() + usec, now;
	_cleanup_free_ bool *freed = xcalloc(1, sizeof(*freed)); /* outlives @w */

	w->freed = freed;
	while (!*freed && w->queued > 0 && (now = now_usec()) < until) {
		struct pollfd p = {.fd = w->sock, .events = POLLIN};

		if (poll(&p, 1, (int)((until - now + USEC_PER_MSEC - 1) / USEC_PER_MSEC)) > 0)
			(void)on_io(NULL, w->sock, 0, w);
	}
	if (!*freed)
		w->freed = NULL;
}

bool worker_stop(Worker *w)
{
	return pass(w->gate, GATE_SHUT);
}

int worker_run(sd_event *event, WorkerServe serve, void *context, int keep_fd, uint64_t usec, WorkerDone done,
	       void *userdata, Worker **ret, Error **err)
{
	const WorkerJob job = {.serve = serve, .userdata = context, .keep_fd = keep_fd};
	int r = worker_new(event, &job, ret, err);

	if (r < 0)
		return r;
	r = worker_ask(*ret, "", 0, usec, done, userdata);
	if (r < 0) {
		*ret = worker_free(*ret);
		return error_set(err, r, "cannot reach a process of ours: %s", strerror(-r));
	}
	(*ret)->once = ret;
	return 0;
}
