/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The door for people: who is connected, signals to all of them, and how an error goes over D-Bus. docs/control.md. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keeper/move.h"

#define CONTROL_PATH "/org/vmferry/vm"
#define CONTROL_INTERFACE "org.vmferry.VM1"
#define CLIENTS_MAX 64

/* ---- errors ---- */

static char *error_text(const Error *err)
{
	return xasprintf("%s%s%s", err ? err->message : "failed", err && err->hint ? "\n" : "",
			 err && err->hint ? err->hint : "");
}

int bus_error(sd_bus_error *error, const char *kind, const Error *err)
{
	_cleanup_free_ char *text = error_text(err), *name = xasprintf("org.vmferry.Error.%s", kind);

	return sd_bus_error_setf(error, name, "%s", text);
}

void bus_reply_error(sd_bus_message *m, const char *kind, const Error *err)
{
	_cleanup_free_ char *text = error_text(err), *name = xasprintf("org.vmferry.Error.%s", kind);

	sd_bus_reply_method_errorf(m, name, "%s", text);
}

int bus_error_read(sd_bus_message *reply, const char *what, Error **err)
{
	const sd_bus_error *e = sd_bus_message_get_error(reply);
	_cleanup_free_ char *message = NULL, *hint = NULL;
	const char *text, *newline;

	if (!e)
		return 0;
	if (sd_bus_error_has_name(e, SD_BUS_ERROR_NO_REPLY) || sd_bus_error_has_name(e, SD_BUS_ERROR_TIMEOUT)) {
		error_set(err, -ETIMEDOUT, "%s: no answer from the other host within the time limit", what);
		error_hint(err, "the limits are deadlines {} in host.conf");
		return -ETIMEDOUT;
	}
	text = e->message ? e->message : e->name;
	newline = strchr(text, '\n');
	message = text_clean(text, newline ? (size_t)(newline - text) : 512);
	error_set(err, -EREMOTEIO, "%s", message);
	if (newline) {
		hint = text_clean(newline + 1, 512);
		error_hint(err, "%s", hint);
	}
	return -EREMOTEIO;
}

/* ---- connections ---- */

static void client_free(Client *c)
{
	for (Client **at = &c->keeper->clients; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	if (c->keeper->relay == c && c->keeper->leaving)
		c->keeper->relay = NULL;
	else if (c->keeper->relay == c)
		direct_relay(c->keeper, NULL);
	sd_bus_flush_close_unref(c->bus);
	free(c);
}

static int on_disconnected(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)m;
	(void)error;
	client_free(userdata);
	return 0;
}

static int client_new(Keeper *k, int fd)
{
	static const sd_id128_t id = SD_ID128_MAKE(3a, 77, 0c, 51, 9e, 4b, 4d, 0e, b2, 60, 8f, 11, 5d, e3, 29, c8);
	Client *c = xcalloc(1, sizeof(*c));
	int r;

	c->keeper = k;
	c->next = k->clients;
	k->clients = c;
	r = sd_bus_new(&c->bus);
	if (r >= 0)
		r = sd_bus_set_fd(c->bus, fd, fd);
	if (r < 0)
		fd_close(fd);
	if (r >= 0)
		r = sd_bus_set_server(c->bus, true, id);
	if (r >= 0)
		r = sd_bus_set_anonymous(c->bus, true);
	if (r >= 0)
		r = sd_bus_set_trusted(c->bus, true);
	if (r >= 0)
		r = sd_bus_add_object_vtable(c->bus, NULL, CONTROL_PATH, CONTROL_INTERFACE, control_methods, k);
	if (r >= 0)
		r = sd_bus_match_signal_async(c->bus, NULL, NULL, "/org/freedesktop/DBus/Local",
					      "org.freedesktop.DBus.Local", "Disconnected", on_disconnected, NULL, c);
	if (r >= 0)
		r = sd_bus_start(c->bus);
	if (r >= 0)
		r = sd_bus_attach_event(c->bus, k->event, SD_EVENT_PRIORITY_NORMAL);
	if (r < 0)
		client_free(c);
	return r;
}

static int on_connect(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Keeper *k = userdata;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	size_t n = 0;

	(void)source;
	(void)revents;
	for (Client *c = k->clients; c; c = c->next)
		n++;
	if (client < 0)
		return 0;
	if (n >= CLIENTS_MAX || !unix_peer_is_us(client))
		fd_close(client);
	else
		(void)client_new(k, client);
	return 0;
}

int control_open(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, "control");
	int r;

	k->control_fd = r = unix_listen(path, 0600);
	if (r >= 0)
		r = sd_event_add_io(k->event, &k->control_io, k->control_fd, EPOLLIN, on_connect, k);
	return r < 0 ? error_set(err, r, "cannot listen on %s: %s", path, strerror(-r)) : 0;
}

void control_close(Keeper *k)
{
	while (k->clients)
		client_free(k->clients);
	k->control_io = sd_event_source_disable_unref(k->control_io);
	k->control_fd = fd_close(k->control_fd);
}

int control_want_stream(Client *client, const char *stream, bool data)
{
	return sd_bus_emit_signal(client->bus, CONTROL_PATH, CONTROL_INTERFACE, "StreamWanted", "sb", stream, (int)data);
}

void control_emit_text(Keeper *k, const char *member, const char *text)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, member, "s", text);
}

void control_emit_log(Keeper *k, LogLevel level, const char *message)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, "Log", "is", (int)level, message);
}

void control_emit_state(Keeper *k)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, "StateChanged", "ss",
					 vm_state_to_string(k->state), k->reason);
}
