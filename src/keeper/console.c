/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The serial console: QEMU's socket on one side, any number of clients of RUNTIME_DIR/NAME/console on the other, and
 * console.log, capped and rotated by us because QEMU would let a guest fill the disk.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/keeper.h"

#define CONSOLE_CLIENTS_MAX 16
#define CONSOLE_LOG_MAX (1024 * 1024)

typedef struct Viewer {
	Console *console;
	int fd;
	sd_event_source *io;
} Viewer;

struct Console {
	sd_event *event;
	int guest_fd, listen_fd, log_fd;
	char *log_path;
	sd_event_source *guest_io, *listen_io;
	Viewer viewers[CONSOLE_CLIENTS_MAX];
};

static void viewer_drop(Viewer *v)
{
	v->io = sd_event_source_disable_unref(v->io);
	v->fd = fd_close(v->fd);
}

static void log_bytes(Console *c, const char *data, size_t len)
{
	struct stat st;

	if (c->log_fd < 0)
		return;
	(void)fd_write_all(c->log_fd, data, len);
	if (fstat(c->log_fd, &st) == 0 && st.st_size > CONSOLE_LOG_MAX) {
		_cleanup_free_ char *old = xasprintf("%s.1", c->log_path);

		(void)rename(c->log_path, old);
		fd_close(c->log_fd);
		c->log_fd = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	}
}

/* Return: whether there was something. */
static bool read_guest(Console *c)
{
	char data[4096];
	ssize_t n;

	n = recv(c->guest_fd, data, sizeof(data), MSG_DONTWAIT);
	if (n <= 0) {
		if (n == 0 || errno != EAGAIN)
			sd_event_source_set_enabled(c->guest_io, SD_EVENT_OFF);
		return false;
	}
	log_bytes(c, data, (size_t)n);
	for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++) {
		Viewer *v = &c->viewers[i];

		/* A client that does not read loses output; it never holds the guest up. */
		if (v->fd >= 0 && send(v->fd, data, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
			viewer_drop(v);
	}
	return true;
}

static int on_guest(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	(void)source;
	(void)fd;
	(void)revents;
	(void)read_guest(userdata);
	return 0;
}

static int on_viewer(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Viewer *v = userdata;
	char data[1024];
	ssize_t n;

	(void)source;
	(void)revents;
	n = recv(fd, data, sizeof(data), MSG_DONTWAIT);
	if (n > 0)
		(void)!send(v->console->guest_fd, data, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
	else if (n == 0 || errno != EAGAIN)
		viewer_drop(v);
	return 0;
}

static int on_listen(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Console *c = userdata;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)source;
	(void)revents;
	for (size_t i = 0; client >= 0 && i < CONSOLE_CLIENTS_MAX; i++) {
		Viewer *v = &c->viewers[i];

		if (v->fd >= 0)
			continue;
		v->console = c;
		v->fd = client;
		if (sd_event_add_io(c->event, &v->io, client, EPOLLIN, on_viewer, v) < 0)
			viewer_drop(v);
		return 0;
	}
	fd_close(client);
	return 0;
}

int console_open(Keeper *k, Error **err)
{
	_cleanup_free_ char *listen_path = runtime_path(k->name, "console");
	_cleanup_free_ char *guest_path = xasprintf("%s/serial", k->qemu->dir);
	Console *c;
	int r;

	if (k->def->serial == SERIAL_NONE)
		return 0;
	k->console = console_free(k->console);
	c = k->console = xcalloc(1, sizeof(*c));
	c->event = k->event;
	c->log_fd = c->listen_fd = -1;
	for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++)
		c->viewers[i].fd = -1;
	c->guest_fd = r = unix_connect(guest_path);
	if (r >= 0 && k->def->serial == SERIAL_LOG) {
		c->log_path = runtime_path(k->name, "console.log");
		c->log_fd = r = open(c->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (r < 0)
			r = -errno;
	}
	if (r >= 0)
		c->listen_fd = r = unix_listen(listen_path, 0600);
	if (r >= 0)
		r = sd_event_add_io(k->event, &c->guest_io, c->guest_fd, EPOLLIN, on_guest, c);
	if (r >= 0)
		r = sd_event_add_io(k->event, &c->listen_io, c->listen_fd, EPOLLIN, on_listen, c);
	return r < 0 ? error_set(err, r, "cannot open the serial console: %s", strerror(-r)) : 0;
}

void console_switch(Keeper *k, int guest_fd)
{
	Console *c = k->console;

	if (!c || guest_fd < 0) {
		fd_close(guest_fd);
		return;
	}
	while (read_guest(c))
		; /* what the guest said to the old one last */
	c->guest_io = sd_event_source_disable_unref(c->guest_io);
	fd_close(c->guest_fd);
	c->guest_fd = guest_fd;
	if (sd_event_add_io(c->event, &c->guest_io, guest_fd, EPOLLIN, on_guest, c) < 0)
		log_error("the serial console is lost");
}

Console *console_free(Console *c)
{
	if (!c)
		return NULL;
	for (size_t i = 0; i < CONSOLE_CLIENTS_MAX; i++)
		viewer_drop(&c->viewers[i]);
	sd_event_source_disable_unref(c->guest_io);
	sd_event_source_disable_unref(c->listen_io);
	fd_close(c->guest_fd);
	fd_close(c->listen_fd);
	fd_close(c->log_fd);
	free(c->log_path);
	free(c);
	return NULL;
}
