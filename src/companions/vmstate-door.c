/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/vmstate-door.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "basic/text.h"
#include "companions/vmstate-front.h"

struct Door {
	const DoorHandlers *handlers;
	void *userdata;
	char *address;
	pid_t pid;
	int fd;
	sd_event_source *io, *child;
	DoorShared *shared;
};

/* Written beside what is valid, which the front may be reading. */
static void put(Door *d, size_t (*write_to)(void *userdata, uint8_t *to))
{
	uint64_t generation = (atomic_load(&d->shared->saved) >> 32) + 1;
	size_t len = write_to(d->userdata, d->shared->save[generation & 1]);

	atomic_store(&d->shared->saved, generation << 32 | len);
	atomic_store(&d->shared->current, now_usec());
}

void door_lay_down(Door *d, bool same)
{
	if (same)
		atomic_store(&d->shared->current, now_usec());
	else
		put(d, d->handlers->copy);
}

static int on_request(sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Door *d = userdata;
	DoorRequest q;
	ssize_t n = recv(fd, &q, sizeof(q), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n != sizeof(q)) { /* it has ended: on_child() */
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		return 0;
	}
	if (q.what == DOOR_SAVE)
		put(d, d->handlers->save);
	else if (q.len <= VMSTATE_MAX)
		q.late = !d->handlers->load(d->userdata, d->shared->load, q.len, &d->shared->load_until);
	(void)send(fd, &q, sizeof(q), MSG_DONTWAIT | MSG_NOSIGNAL);
	return 0;
}

/* Whoever stops it does not know that a guest may wait for it. */
static int on_child(_unused_ sd_event_source *s, const siginfo_t *what, void *userdata)
{
	Door *d = userdata;

	if (what->si_code == CLD_STOPPED) {
		log_warning("the door to QEMU was stopped: goes on");
		(void)kill(d->pid, SIGCONT);
	} else if (what->si_code != CLD_CONTINUED && what->si_code != CLD_TRAPPED) {
		d->handlers->gone(d->userdata);
	}
	return 0;
}

/* An abstract name that the kernel chooses (unix(7), autobind): nothing to clean up, and no directory QEMU may not enter. */
static int listen_somewhere(char **ret_address)
{
	struct sockaddr_un name = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(name);
	_cleanup_fd_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof(sa_family_t)) < 0 || listen(fd, 4) < 0 ||
	    getsockname(fd, (struct sockaddr *)&name, &len) < 0)
		return -errno;
	*ret_address = xasprintf("unix:abstract=%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path) - 1), name.sun_path + 1);
	return TAKE_FD(fd);
}

static int start(Door *d, const DoorSpec *spec)
{
	_cleanup_fd_ int listen_fd = listen_somewhere(&d->address), theirs = -1;
	pid_t helper = getpid();
	int pair[2];

	if (listen_fd < 0)
		return listen_fd;
	d->shared = mmap(NULL, sizeof(DoorShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (d->shared == MAP_FAILED) {
		d->shared = NULL;
		return -errno;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	d->fd = pair[0];
	theirs = pair[1];
	d->pid = fork();
	if (d->pid == 0)
		front_run(spec, helper, listen_fd, theirs, d->shared);
	return d->pid < 0 ? -errno : 0;
}

static int watch(Door *d, sd_event *event)
{
	int r = sd_event_add_io(event, &d->io, d->fd, EPOLLIN, on_request, d);

	if (r >= 0)
		r = sd_event_add_child(event, &d->child, d->pid, WEXITED | WSTOPPED, on_child, d);
	return r < 0 ? r : sd_event_source_set_enabled(d->child, SD_EVENT_ON);
}

int door_open(sd_event *event, const DoorSpec *spec, const DoorHandlers *handlers, void *userdata, Door **ret, Error **err)
{
	Door *d = xcalloc(1, sizeof(*d));
	int r;

	*d = (Door){.handlers = handlers, .userdata = userdata, .fd = -1};
	r = start(d, spec);
	if (r >= 0)
		r = watch(d, event);
	if (r < 0) {
		door_free(d, true);
		return error_set(err, r, "Cannot make a bus for QEMU: %s", strerror(-r));
	}
	*ret = d;
	return 0;
}

const char *door_address(const Door *d)
{
	return d->address;
}

void door_let_in(const Door *d, pid_t qemu)
{
	const DoorRequest q = {.what = DOOR_QEMU, .len = (uint32_t)qemu};

	(void)send(d->fd, &q, sizeof(q), MSG_DONTWAIT | MSG_NOSIGNAL);
}

void door_late(const Door *d, DoorLate *ret)
{
	*ret = (DoorLate){.save = d->shared->late[DOOR_SAVE], .load = d->shared->late[DOOR_LOAD]};
}

Door *door_free(Door *d, bool end)
{
	if (!d)
		return NULL;
	sd_event_source_disable_unref(d->io);
	sd_event_source_disable_unref(d->child);
	fd_close(d->fd);
	if (end && d->pid > 0) {
		(void)kill(d->pid, SIGKILL);
		while (waitpid(d->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (d->shared)
		(void)munmap(d->shared, sizeof(DoorShared));
	free(d->address);
	free(d);
	return NULL;
}
