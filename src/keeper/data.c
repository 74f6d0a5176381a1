/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data channels whose two ends the keepers own: ssh (a UNIX socket that the control link's ssh forwards), tunnel (a
 * second start of the destination's command), unix (the same machine). Both ends prove who they are by tokens through
 * the channel itself before QEMU gets the connected fd: QEMU's own listener must not be touched.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keeper/move.h"
#include "peer/child.h"

#define READY_USEC (5 * USEC_PER_SEC)

struct Data {
	Move *m;
	void (*opened)(Move *m, int fd, const Error *err);
	/* tunnel */
	Link *link;
	/* ssh */
	Child *child;
	char *local_path;
	/* ssh, unix: the exchange of tokens */
	int fd;
	char line[PREAMBLE_MAX];
	size_t line_have;
	sd_event_source *io, *timer;
	int handed; /* a copy of what QEMU got: shut before QEMU is told to cancel, whoever holds the other end */
};

static void fill_preamble(const Move *m, Preamble *p)
{
	*p = (Preamble){.data = true};
	memcpy(p->name, m->k->name, strlen(m->k->name) + 1);
	memcpy(p->id, m->id, sizeof(p->id));
	memcpy(p->token, m->token, sizeof(p->token));
}

static void quiet(Data *d)
{
	d->io = sd_event_source_disable_unref(d->io);
	d->timer = sd_event_source_disable_unref(d->timer);
}

static void done(Data *d, int fd, const Error *err)
{
	void (*opened)(Move *, int, const Error *) = d->opened;

	quiet(d);
	if (!opened)
		return;
	d->opened = NULL;
	if (fd >= 0) {
		(void)fd_nonblock(fd, false);
		d->handed = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	}
	opened(d->m, fd, err);
}

static void failed(Data *d, int code, const char *what, const char *why)
{
	_cleanup_error_ Error *err = NULL;

	error_set(&err, code, "%s: %s", what, why);
	done(d, -1, err);
}

/* ---- tokens ---- */

static int on_answer(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Data *d = userdata;
	_cleanup_error_ Error *err = NULL;
	char token[33];
	int r;

	(void)source;
	(void)revents;
	r = preamble_read(fd, d->line, &d->line_have);
	if (r == 0)
		return 0;
	if (r < 0)
		r = error_set(&err, r,
			      "the far end of the data channel closed it (does its sshd allow "
			      "AllowStreamLocalForwarding?)");
	else
		r = preamble_answer(d->line, token, &err);
	if (r >= 0 && (!d->m->prepared.token || !text_equal_secret(token, d->m->prepared.token)))
		r = error_set(&err, -EPROTO, "the other end of the data channel does not know this migration");
	done(d, r < 0 ? -1 : TAKE_FD(d->fd), err);
	return 0;
}

static int exchange(Data *d, const char *path)
{
	_cleanup_free_ char *text = NULL;
	Preamble p;
	int r;

	fill_preamble(d->m, &p);
	text = preamble_text(&p);
	d->fd = r = unix_connect(path);
	if (r >= 0)
		r = fd_write_all(d->fd, text, strlen(text));
	if (r >= 0 || r == -EPIPE || r == -ECONNRESET) /* an end at once is read as any other */
		r = fd_nonblock(d->fd, true);
	return r < 0 ? r : sd_event_add_io(d->m->k->event, &d->io, d->fd, EPOLLIN, on_answer, d);
}

/* ---- ssh ---- */

static void on_forwarded(void *userdata)
{
	Data *d = userdata;
	_cleanup_error_ Error *err = NULL;
	int r;

	if (!child_succeeded(d->child)) {
		child_explain(d->child, &err);
		done(d, -1, err);
		return;
	}
	r = exchange(d, d->local_path);
	if (r < 0)
		failed(d, r, d->local_path, strerror(-r));
}

/* One more channel of the control link's login: no second one, which takes its time and may be turned away
 * (MaxStartups). */
static int start_ssh(Data *d, Error **err)
{
	Move *m = d->m;
	_cleanup_strv_ char **extra = NULL, **argv = NULL;
	DestinationOptions how = source_reach(m);
	int r;

	how.login = link_login(m->link);
	if (!how.login) {
		error_set(err, -ENOTSUP, "ssh can have no socket in %s", runtime_dir());
		error_hint(err, "its path is too long or has odd characters; use --transport=tunnel");
		return -ENOTSUP;
	}
	if (!m->prepared.data_socket || m->prepared.data_socket[0] != '/' ||
	    strpbrk(m->prepared.data_socket, ": \"'%\\$`"))
		return error_set(err, -EPROTO, "the target names no usable data socket");
	d->local_path = runtime_path(m->k->name, "data");
	(void)unlink(d->local_path);
	strv_add(&extra, "-L%s:%s", d->local_path, m->prepared.data_socket);
	r = destination_argv(m->dest, &how, extra, DESTINATION_FORWARD, &argv, err);
	if (r >= 0)
		r = child_start(m->k->event, argv, NULL, -1, -1, on_forwarded, d, &d->child, err);
	return r < 0 ? error_set(err, r, "cannot start ssh: %s", strerror(-r)) : 0;
}

/* ---- tunnel ---- */

static void on_tunnel_up(void *userdata)
{
	Data *d = userdata;

	done(d, link_take_fd(d->link), NULL);
}

static void on_tunnel_lost(const Error *err, void *userdata)
{
	done(userdata, -1, err);
}

static int start_tunnel(Data *d, Error **err)
{
	static const LinkHandlers handlers = {.up = on_tunnel_up, .lost = on_tunnel_lost};
	Move *m = d->m;
	LinkOptions options = {
		.destination = m->dest,
		.how = source_reach(m),
		.connect_usec = m->deadlines.connect,
		.expect_token = m->prepared.token ? m->prepared.token : "",
	};

	options.how.login = link_login(m->link);
	options.want = direct_want;
	options.want_userdata = m->k;
	fill_preamble(m, &options.preamble);
	return link_connect(m->k->event, &options, &handlers, d, &d->link, err);
}

/* ---- any ---- */

static int on_timeout(sd_event_source *source, uint64_t usec, void *userdata)
{
	Data *d = userdata;

	(void)source;
	(void)usec;
	failed(d, -ETIMEDOUT, d->local_path ? d->local_path : "data channel", "not ready within its time");
	return 0;
}

static int start(Data *d, Error **err)
{
	Move *m = d->m;
	int r;

	if (streq(m->transport, "tunnel"))
		return start_tunnel(d, err);
	if (streq(m->transport, "ssh")) {
		r = start_ssh(d, err);
	} else {
		const char *path = m->prepared.data_socket ? m->prepared.data_socket : "";

		r = *path == '/' ? exchange(d, path) : -EINVAL;
		if (r < 0) {
			error_set(err, r, "%s: %s", path, strerror(-r));
			error_hint(err, "transport unix is for two vmferry hosts on one machine");
		}
	}
	if (r >= 0)
		r = sd_event_add_time_relative(m->k->event, &d->timer, CLOCK_MONOTONIC, READY_USEC, 0, on_timeout, d);
	return r;
}

int data_open(Move *m, void (*opened)(Move *m, int fd, const Error *err), Error **err)
{
	Data *d;
	int r;

	m->data = data_free(m->data);
	d = m->data = xcalloc(1, sizeof(*d));
	d->m = m;
	d->opened = opened;
	d->fd = d->handed = -1;
	r = start(d, err);
	if (r < 0)
		m->data = data_free(d);
	return r;
}

Link *data_link(const Data *d)
{
	return d ? d->link : NULL;
}

Data *data_free(Data *d)
{
	if (!d)
		return NULL;
	quiet(d);
	d->link = link_free(d->link);
	d->child = child_free(d->child, false);
	fd_close(d->fd);
	if (d->handed >= 0)
		(void)shutdown(d->handed, SHUT_RDWR);
	fd_close(d->handed);
	if (d->local_path)
		(void)unlink(d->local_path);
	free(d->local_path);
	free(d);
	return NULL;
}
