/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the clients of VNC and SPICE connect. The keeper listens, and hands every connection to the QEMU that has the
 * guest (QAPI add_client); QEMU itself listens nowhere. So the port stays, whatever QEMU the guest is in, and what a
 * client says is QEMU's business: of it the keeper does not read a byte.
 *
 * One connection at a time is on its way to QEMU. The others wait in the kernel's queue, as all do while the guest goes
 * from one QEMU to another.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "basic/tcp.h"
#include "keeper/local.h"
#include "keeper/move.h"

#define PORT_FIRST 5900 /* the number that VNC's displays are counted from */
#define PORT_LAST 6099
#define QUEUE 64 /* a SPICE client makes about ten connections at once */
#define FD_NAME "vmferry-viewer"

/* A port of another VM is that VM's also while its keeper is away, and nobody listens there. */
static int listen_anywhere(const Keeper *k, const char *listen)
{
	bool taken[PORT_LAST - PORT_FIRST + 1] = {};
	int fd = -EADDRINUSE;

	local_ports(k->name, PORT_FIRST, ARRAY_SIZE(taken), taken);
	for (unsigned int i = 0; fd == -EADDRINUSE && i < ARRAY_SIZE(taken); i++)
		if (!taken[i])
			fd = tcp_listen(listen, PORT_FIRST + i, PORT_FIRST + i, QUEUE);
	return fd;
}

int viewers_listen(const Keeper *k, const VmDefinition *def, int *ret, Error **err)
{
	unsigned int here = tcp_port(k->viewers_fd), port = def->graphics_port;
	const char *listen = def->graphics_listen;
	int fd = -EADDRINUSE;

	*ret = -1;
	if (def->graphics == GRAPHICS_NONE ||
	    (here && (!port || port == here) && streq_null(k->def->graphics_listen, listen)))
		return 0;
	if (port || k->viewers_port)
		fd = tcp_listen(listen, port ? port : k->viewers_port, port ? port : k->viewers_port, QUEUE);
	if (fd == -EADDRINUSE && !port)
		fd = listen_anywhere(k, listen);
	if (fd >= 0) {
		*ret = fd;
		return 0;
	}
	if (fd != -EADDRINUSE)
		return error_set(err, fd, "graphics: cannot listen on %s: %s", listen, strerror(-fd));
	if (!port)
		return error_set(err, fd, "graphics: all ports of %s from %d to %d are taken", listen, PORT_FIRST,
				 PORT_LAST);
	error_set(err, fd, "graphics: port %u of %s is taken", port, listen);
	if (port == here)
		error_hint(err, "by this VM itself, for %s: change the port as well, or stop it first",
			   k->def->graphics_listen);
	error_hint(err, "ss -ltnp there says by whom; without port in graphics {} a free one is found");
	return fd;
}

/* ---- a client ---- */

static bool may_hand_over(const Keeper *k)
{
	return k->qmp && k->qmp_usable && !k->kill_sent && !k->viewer_pending && !move_switching(k->move);
}

static void on_handed_over(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;

	(void)ret;
	if (error) /* as one that has gone already, or does not speak TLS */
		log_debug("QEMU does not take a viewer: %s", error);
	k->viewer_pending = false;
	viewers_look(k);
}

/* Takes the fd. */
static void hand_over(Keeper *k, int fd)
{
	json_object *client =
		json_build("protocol", "s", graphics_type_to_string(k->def->graphics), "fdname", "s", FD_NAME, NULL);

	if (k->def->graphics_tls)
		json_extend(client, "tls", "b", 1, NULL);
	k->viewer_pending = true;
	qmp_command_fd(k->qmp, "getfd", json_build("fdname", "s", FD_NAME, NULL), fd, NULL, NULL);
	qmp_command(k->qmp, "add_client", client, on_handed_over, k);
}

static int on_viewer(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Keeper *k = userdata;
	int client = may_hand_over(k) ? accept4(fd, NULL, NULL, SOCK_CLOEXEC) : -1;

	(void)source;
	(void)revents;
	if (client >= 0)
		hand_over(k, client);
	viewers_look(k);
	return 0;
}

void viewers_look(Keeper *k)
{
	if (k->viewers_io)
		(void)sd_event_source_set_enabled(k->viewers_io, may_hand_over(k) ? SD_EVENT_ON : SD_EVENT_OFF);
}

/* ---- the listener ---- */

void viewers_open(Keeper *k, int fd)
{
	unsigned int before = k->viewers_port;

	if (fd < 0)
		return;
	viewers_close(k);
	k->viewers_fd = fd;
	k->viewers_port = tcp_port(fd);
	if (sd_event_add_io(k->event, &k->viewers_io, fd, EPOLLIN, on_viewer, k) < 0)
		log_error("clients of the graphics will not be seen");
	viewers_look(k);
	log_info("graphics: %s on %s, port %u", graphics_type_to_string(k->def->graphics), k->def->graphics_listen,
		 k->viewers_port);
	if (before && before != k->viewers_port)
		log_warning("graphics: it was port %u before", before);
}

int viewers_start(Keeper *k, Error **err)
{
	int fd, r = viewers_listen(k, k->def, &fd, err);

	viewers_open(k, fd);
	return r;
}

void viewers_close(Keeper *k)
{
	k->viewers_io = sd_event_source_disable_unref(k->viewers_io);
	k->viewers_fd = fd_close(k->viewers_fd);
}

json_object *viewers_json(const Keeper *k)
{
	return json_build("type", "s", graphics_type_to_string(k->def->graphics), "listen", "s",
			  k->def->graphics_listen, k->def->graphics_tls ? "tls_port" : "port", "u",
			  (uint64_t)tcp_port(k->viewers_fd), NULL);
}
