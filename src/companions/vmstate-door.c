/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/vmstate-door.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-bus.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/process.h"
#include "basic/text.h"
#include "companions/vmstate.h"

/*
 * How long QEMU waits at most, by what the helper is seen to be at. One that is at work, or would be if this busy machine gave it
 * a CPU, does not hang: that would not make the pause shorter.
 */
#define STOPPED_MSEC 30
#define SAVE_MSEC 100
#define LOAD_MSEC 200 /* as the gate's */
#define WORKING_MSEC 1000

#define DRIVER_NAME "org.freedesktop.DBus"
#define DRIVER_PATH "/org/freedesktop/DBus"
#define QEMU_NAME ":1.1"
#define HELPER_NAME ":1.0"

typedef enum What { WHAT_SAVE, WHAT_LOAD, WHAT_QEMU } What;

typedef struct Request {
	uint32_t number;
	What what;
	uint32_t len; /* of what is to be loaded; in the answer: of what is to be saved. The helper's WHAT_QEMU: pid of who may come in */
} Request;

/* The helper writes what is saved, the door what is to be loaded: each until it has said so. */
typedef struct Shared {
	uint8_t save[VMSTATE_MAX], load[VMSTATE_MAX];
	_Atomic uint32_t late[2];
} Shared;

struct Door {
	const DoorHandlers *handlers;
	void *userdata;
	char *address;
	pid_t pid;
	int fd; /* SOCK_SEQPACKET, Requests both ways */
	sd_event_source *io;
	Shared *shared;
};

/* In the door's process. */
typedef struct Front {
	const DoorSpec *spec;
	pid_t helper, qemu;
	int listen_fd, fd; /* fd: -1 when the helper has gone */
	uint32_t number, loading; /* number of the load that the helper is at, or 0 */
	Shared *shared;
	sd_event *event;
	sd_bus *bus; /* QEMU's */
} Front;

/* ---- the door's side: asking the helper ---- */

/* An answer that lies there is taken, however late it is. Return: 0, -ETIMEDOUT, or negative errno: the helper has gone. */
static int wait_for(Front *f, uint32_t number, uint64_t end, Request *ret)
{
	struct pollfd p = {.fd = f->fd, .events = POLLIN};

	for (;;) {
		uint64_t now = now_usec();
		ssize_t n;

		(void)poll(&p, 1, now < end ? (int)((end - now + 999) / USEC_PER_MSEC) : 0);
		n = recv(f->fd, ret, sizeof(*ret), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN && now >= end)
			return -ETIMEDOUT;
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return n < 0 ? -errno : -EPIPE;
		if (n != sizeof(*ret))
			continue;
		if (ret->number == f->loading)
			f->loading = 0;
		if (ret->number == number)
			return 0;
	}
}

static bool is_stopped(pid_t pid)
{
	return strchr("TtZX", process_state(pid)) != NULL;
}

static int ask(Front *f, What what, size_t len, Request *ret)
{
	uint64_t begin = now_usec(), bound = (what == WHAT_SAVE ? SAVE_MSEC : LOAD_MSEC) * USEC_PER_MSEC;
	const Request request = {.number = ++f->number, .what = what, .len = (uint32_t)len};
	int r = -EPIPE;

	if (f->fd >= 0)
		r = send(f->fd, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
	if (r >= 0 && what == WHAT_LOAD)
		f->loading = request.number;
	if (r >= 0)
		r = wait_for(f, request.number, begin + STOPPED_MSEC * USEC_PER_MSEC, ret);
	if (r == -ETIMEDOUT && !is_stopped(f->helper))
		r = wait_for(f, request.number, begin + bound, ret);
	if (r == -ETIMEDOUT && process_state(f->helper) == 'R')
		r = wait_for(f, request.number, begin + WORKING_MSEC * USEC_PER_MSEC, ret);
	if (r < 0)
		f->shared->late[what]++;
	return r;
}

static int on_save(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Front *f = userdata;
	sd_bus_message *reply = NULL;
	Request answer = {};
	int r = sd_bus_message_new_method_return(m, &reply);
	bool in_time = ask(f, WHAT_SAVE, 0, &answer) >= 0 && answer.len && answer.len <= VMSTATE_MAX;

	if (r >= 0)
		r = sd_bus_message_append_array(reply, 'y', in_time ? f->shared->save : f->spec->none,
						in_time ? answer.len : f->spec->none_len);
	if (r >= 0)
		r = sd_bus_send(f->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int on_load(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Front *f = userdata;
	const void *data = NULL;
	Request answer;
	size_t len = 0;
	int r = sd_bus_message_read_array(m, 'y', &data, &len);

	if (r >= 0 && len <= VMSTATE_MAX && !f->loading) {
		memcpy(f->shared->load, data, len);
		(void)ask(f, WHAT_LOAD, len, &answer);
	}
	return sd_bus_reply_method_return(m, NULL);
}

/* ---- the bus that QEMU believes to be on: itself and the helper ---- */

static int get_id(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface,
		  _unused_ const char *property, sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	const Front *f = userdata;

	return sd_bus_message_append(reply, "s", f->spec->id);
}

static int on_hello(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	return sd_bus_reply_method_return(m, "s", QEMU_NAME);
}

static int on_owners(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	return sd_bus_reply_method_return(m, "as", 1, HELPER_NAME);
}

static int on_owner(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	return sd_bus_reply_method_return(m, "s", HELPER_NAME);
}

static int on_match(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	return sd_bus_reply_method_return(m, NULL);
}

static int on_start(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	return sd_bus_reply_method_return(m, "u", 2U); /* DBUS_START_REPLY_ALREADY_RUNNING */
}

static const sd_bus_vtable driver_table[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("Hello", "", "s", on_hello, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("ListQueuedOwners", "s", "as", on_owners, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("GetNameOwner", "s", "s", on_owner, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("StartServiceByName", "su", "u", on_start, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("AddMatch", "s", "", on_match, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("RemoveMatch", "s", "", on_match, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};
static const sd_bus_vtable vmstate_table[] = VMSTATE_TABLE(get_id, on_save, on_load);

/* ---- its life: as long as QEMU is connected or the helper is there ---- */

static void leave_if_alone(Front *f)
{
	if (!f->bus && f->fd < 0)
		(void)sd_event_exit(f->event, 0);
}

static int on_disconnected(_unused_ sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Front *f = userdata;

	f->bus = sd_bus_flush_close_unref(f->bus);
	leave_if_alone(f);
	return 0;
}

static int serve_qemu(Front *f, int fd)
{
	static const sd_id128_t id = SD_ID128_MAKE(5e, 03, 9b, 6d, 71, 2a, 48, c0, a5, 1f, 66, 3c, 90, d8, 2b, e7);
	int r = sd_bus_new(&f->bus);

	if (r >= 0)
		r = sd_bus_set_fd(f->bus, fd, fd);
	if (r < 0)
		fd_close(fd);
	if (r >= 0)
		r = sd_bus_set_server(f->bus, true, id);
	if (r >= 0)
		r = sd_bus_set_trusted(f->bus, true);
	if (r >= 0)
		r = sd_bus_add_object_vtable(f->bus, NULL, DRIVER_PATH, DRIVER_NAME, driver_table, f);
	if (r >= 0)
		r = sd_bus_add_object_vtable(f->bus, NULL, VMSTATE_PATH, VMSTATE_NAME, vmstate_table, f);
	if (r >= 0)
		r = sd_bus_match_signal_async(f->bus, NULL, NULL, "/org/freedesktop/DBus/Local", "org.freedesktop.DBus.Local",
					      "Disconnected", on_disconnected, NULL, f);
	if (r >= 0)
		r = sd_bus_start(f->bus);
	return r < 0 ? r : sd_bus_attach_event(f->bus, f->event, SD_EVENT_PRIORITY_NORMAL);
}

static int on_connect(_unused_ sd_event_source *s, int listen_fd, _unused_ uint32_t revents, void *userdata)
{
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	socklen_t len = sizeof(struct ucred);
	struct ucred who = {};
	Front *f = userdata;

	if (fd < 0)
		return 0;
	if (f->bus || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 || who.pid != f->qemu)
		fd_close(fd);
	else if (serve_qemu(f, fd) < 0)
		f->bus = sd_bus_flush_close_unref(f->bus);
	return 0;
}

/* Whom to let in, an answer that came too late, or the end of the helper. */
static int on_helper(sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Front *f = userdata;
	Request answer;
	ssize_t n = recv(fd, &answer, sizeof(answer), MSG_DONTWAIT);

	if (n == sizeof(answer) && answer.what == WHAT_QEMU)
		f->qemu = (pid_t)answer.len;
	else if (n == sizeof(answer) && answer.number == f->loading)
		f->loading = 0;
	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return 0;
	sd_event_source_disable_unref(s);
	f->fd = fd_close(f->fd);
	leave_if_alone(f);
	return 0;
}

/* What QEMU said together with the end of its login sd-bus has read, but takes up only when it is asked to. */
static int on_post(_unused_ sd_event_source *s, void *userdata)
{
	Front *f = userdata;

	while (f->bus && sd_bus_process(f->bus, NULL) > 0)
		;
	return 0;
}

/* Who waits for what the helper says must not wait for the door's end; signals end the helper, which ends the door. */
static void detach(Front *f)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), keep[] = {f->listen_fd, f->fd};
	unsigned next = 3;

	for (int fd = 0; null >= 0 && fd < 3; fd++)
		(void)dup2(null, fd);
	if (keep[0] > keep[1])
		keep[0] = f->fd, keep[1] = f->listen_fd;
	for (size_t i = 0; i < ARRAY_SIZE(keep); next = (unsigned)keep[i++] + 1)
		if (next < (unsigned)keep[i])
			(void)close_range(next, (unsigned)keep[i] - 1, 0);
	(void)close_range(next, ~0U, 0);
	(void)prctl(PR_SET_NAME, "vmstate-door");
}

_Noreturn static void run(Front *f)
{
	sd_event_source *helper = NULL;
	int r;

	detach(f);
	r = sd_event_new(&f->event);
	if (r >= 0)
		r = sd_event_add_io(f->event, NULL, f->listen_fd, EPOLLIN, on_connect, f);
	if (r >= 0)
		r = sd_event_add_io(f->event, &helper, f->fd, EPOLLIN, on_helper, f);
	if (r >= 0)
		r = sd_event_source_set_priority(helper, SD_EVENT_PRIORITY_IMPORTANT); /* it says who may come in */
	if (r >= 0)
		r = sd_event_add_post(f->event, NULL, on_post, f);
	if (r >= 0)
		r = sd_event_loop(f->event);
	_exit(r < 0);
}

/* ---- the helper's side ---- */

static int on_request(sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Door *d = userdata;
	Request q;
	ssize_t n = recv(fd, &q, sizeof(q), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n != sizeof(q)) { /* it has ended: door_stands() tells */
		(void)sd_event_source_set_enabled(s, SD_EVENT_OFF);
		return 0;
	}
	if (q.what == WHAT_SAVE)
		q.len = (uint32_t)d->handlers->save(d->userdata, d->shared->save, VMSTATE_MAX);
	else if (q.len <= VMSTATE_MAX)
		d->handlers->load(d->userdata, d->shared->load, q.len);
	(void)send(fd, &q, sizeof(q), MSG_DONTWAIT | MSG_NOSIGNAL);
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
	d->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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
		run(&(Front){.spec = spec, .helper = helper, .listen_fd = listen_fd, .fd = theirs, .shared = d->shared});
	return d->pid < 0 ? -errno : 0;
}

int door_open(sd_event *event, const DoorSpec *spec, const DoorHandlers *handlers, void *userdata, Door **ret, Error **err)
{
	Door *d = xcalloc(1, sizeof(*d));
	int r;

	*d = (Door){.handlers = handlers, .userdata = userdata, .fd = -1};
	r = start(d, spec);
	if (r >= 0)
		r = sd_event_add_io(event, &d->io, d->fd, EPOLLIN, on_request, d);
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
	const Request q = {.what = WHAT_QEMU, .len = (uint32_t)qemu};

	(void)send(d->fd, &q, sizeof(q), MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool door_stands(const Door *d)
{
	return !is_stopped(d->pid);
}

void door_late(const Door *d, DoorLate *ret)
{
	*ret = (DoorLate){.save = d->shared->late[WHAT_SAVE], .load = d->shared->late[WHAT_LOAD]};
}

Door *door_free(Door *d, bool end)
{
	if (!d)
		return NULL;
	sd_event_source_disable_unref(d->io);
	fd_close(d->fd);
	if (end && d->pid > 0) {
		(void)kill(d->pid, SIGKILL);
		while (waitpid(d->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (d->shared)
		(void)munmap(d->shared, sizeof(Shared));
	free(d->address);
	free(d);
	return NULL;
}
