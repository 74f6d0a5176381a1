/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The door's own process: a bus with QEMU and nobody else on it, and the helper behind. */
#include "companions/vmstate-front.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>
#include <time.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/process.h"
#include "companions/vmstate.h"

/* A helper that is stopped is not waited for as long as one that is at work. */
#define STOPPED_USEC (10 * USEC_PER_MSEC)
/* A table that the helper has not called current for so long is not saved: ended connections are holes in a firewall. */
#define OLD_USEC (60 * USEC_PER_SEC)
/* A door that does nothing for so long is ended by the kernel. */
#define DEAD_USEC (3 * USEC_PER_SEC)
#define ALIVE_USEC (1 * USEC_PER_SEC)

#define DRIVER_NAME "org.freedesktop.DBus"
#define DRIVER_PATH "/org/freedesktop/DBus"
#define QEMU_NAME ":1.1"
#define HELPER_NAME ":1.0"

typedef struct Front {
	const DoorSpec *spec;
	pid_t helper, qemu;
	int listen_fd, fd; /* fd: -1 when the helper has gone */
	uint32_t number, loading; /* number of the load that the helper has not taken over yet, or 0 */
	DoorShared *shared;
	timer_t death;
	sd_event *event;
	sd_bus *bus; /* QEMU's */
} Front;

/*
 * While this process is stopped QEMU waits, and the guest. The helper sees that and has it go on; where it is stopped too, only
 * the kernel can do something: SIGKILL reaches also who is stopped, and QEMU sees the connection end.
 */
static void live_for(const Front *f, uint64_t usec)
{
	const struct itimerspec then = {.it_value = {.tv_sec = (time_t)(usec / USEC_PER_SEC),
						     .tv_nsec = (long)(usec % USEC_PER_SEC) * 1000}};

	(void)timer_settime(f->death, 0, &then, NULL);
}

/* ---- asking the helper ---- */

/*
 * An answer that lies there is taken, however late it is. Return: 0, -ETIMEDOUT: none has come, -ECANCELED: it is not to be
 * waited for, or another negative errno: the helper has gone.
 */
static int wait_for(Front *f, uint32_t number, uint64_t end)
{
	struct pollfd p = {.fd = f->fd, .events = POLLIN};

	for (;;) {
		uint64_t now = now_usec();
		DoorRequest answer;
		ssize_t n;

		(void)poll(&p, 1, now < end ? (int)((end - now + 999) / USEC_PER_MSEC) : 0);
		n = recv(f->fd, &answer, sizeof(answer), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN && now >= end)
			return -ETIMEDOUT;
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return n < 0 ? -errno : -EPIPE;
		if (n != sizeof(answer))
			continue;
		if (answer.number == f->loading)
			f->loading = 0;
		if (answer.number == number)
			return answer.late ? -ECANCELED : 0;
	}
}

static bool is_stopped(pid_t pid)
{
	return strchr("TtZX", process_state(pid)) != NULL;
}

static int wait_bounded(Front *f, uint32_t number, uint64_t begin, uint64_t usec)
{
	const uint64_t soon = usec < STOPPED_USEC ? usec : STOPPED_USEC;
	int r = wait_for(f, number, begin + soon);

	if (r == -ETIMEDOUT && !is_stopped(f->helper))
		r = wait_for(f, number, begin + usec);
	return r;
}

/* Have the helper do it, and wait as long as QEMU may be held for that. */
static void ask(Front *f, DoorWhat what, size_t len)
{
	const DoorRequest request = {.number = ++f->number, .what = what, .len = (uint32_t)len};
	const uint64_t begin = now_usec(), usec = what == DOOR_SAVE ? f->spec->save_usec : f->spec->load_usec;
	int r = -EPIPE;

	live_for(f, usec + DEAD_USEC);
	if (what == DOOR_LOAD)
		atomic_store(&f->shared->load_until, begin + usec);
	if (f->fd >= 0)
		r = send(f->fd, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
	if (r >= 0 && what == DOOR_LOAD)
		f->loading = request.number;
	if (r >= 0)
		r = wait_bounded(f, request.number, begin, usec);
	if (r < 0) {
		f->shared->late[what]++;
		if (what == DOOR_LOAD)
			atomic_store(&f->shared->load_until, now_usec());
	}
}

/* What the helper has written last, if it is not old. */
static size_t take_saved(const Front *f, uint8_t *to)
{
	uint64_t saved, now = now_usec();
	size_t len;

	do {
		saved = atomic_load(&f->shared->saved);
		len = saved & UINT32_MAX;
		if (len > VMSTATE_MAX)
			len = 0;
		memcpy(to, f->shared->save[saved >> 32 & 1], len);
	} while (saved != atomic_load(&f->shared->saved));
	if (len && now < atomic_load(&f->shared->current) + OLD_USEC)
		return len;
	memcpy(to, f->spec->none, f->spec->none_len);
	return f->spec->none_len;
}

static int on_save(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	static uint8_t data[VMSTATE_MAX];
	sd_bus_message *reply = NULL;
	Front *f = userdata;
	int r = sd_bus_message_new_method_return(m, &reply);

	ask(f, DOOR_SAVE, 0);
	if (r >= 0)
		r = sd_bus_message_append_array(reply, 'y', data, take_saved(f, data));
	if (r >= 0)
		r = sd_bus_send(f->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int on_load(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Front *f = userdata;
	const void *data = NULL;
	size_t len = 0;
	int r = sd_bus_message_read_array(m, 'y', &data, &len);

	if (r >= 0 && len <= VMSTATE_MAX && !f->loading) {
		memcpy(f->shared->load, data, len);
		ask(f, DOOR_LOAD, len);
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
	DoorRequest answer;
	ssize_t n = recv(fd, &answer, sizeof(answer), MSG_DONTWAIT);

	if (n == sizeof(answer) && answer.what == DOOR_QEMU)
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
static void detach(const Front *f)
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

static int on_alive(sd_event_source *source, uint64_t usec, void *userdata)
{
	live_for(userdata, DEAD_USEC);
	(void)sd_event_source_set_time(source, usec + ALIVE_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int live(Front *f)
{
	struct sigevent how = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};

	if (timer_create(CLOCK_MONOTONIC, &how, &f->death) < 0)
		return -errno;
	return sd_event_add_time_relative(f->event, NULL, CLOCK_MONOTONIC, 0, 0, on_alive, f);
}

_Noreturn void front_run(const DoorSpec *spec, pid_t helper_pid, int listen_fd, int fd, DoorShared *shared)
{
	Front f = {.spec = spec, .helper = helper_pid, .listen_fd = listen_fd, .fd = fd, .shared = shared};
	sd_event_source *helper = NULL;
	int r;

	detach(&f);
	r = sd_event_new(&f.event);
	if (r >= 0)
		r = live(&f);
	if (r >= 0)
		r = sd_event_add_io(f.event, NULL, f.listen_fd, EPOLLIN, on_connect, &f);
	if (r >= 0)
		r = sd_event_add_io(f.event, &helper, f.fd, EPOLLIN, on_helper, &f);
	if (r >= 0)
		r = sd_event_source_set_priority(helper, SD_EVENT_PRIORITY_IMPORTANT); /* it says who may come in */
	if (r >= 0)
		r = sd_event_add_post(f.event, NULL, on_post, &f);
	if (r >= 0)
		r = sd_event_loop(f.event);
	_exit(r < 0);
}
