/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Data channels whose two ends the keepers own: ssh (a forwarded UNIX socket), tunnel (a second start of the
 * destination's command), unix (the same machine). Both ends prove who they are by tokens through the channel itself
 * before QEMU gets the connected fd: QEMU's own listener must not be touched.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keeper/move.h"
#include "peer/child.h"

#define READY_USEC (5 * USEC_PER_SEC)
#define READY_WORD "vmferry-forward-ready"

struct Data {
	Move *m;
	void (*opened)(Move *m, int fd, const Error *err);
	/* tunnel */
	Link *link;
	/* ssh */
	Child *child;
	int ready_fd;
	char ready[64];
	size_t ready_have;
	sd_event_source *ready_io;
	char *local_path;
	/* ssh, unix: the exchange of tokens */
	int fd;
	char line[PREAMBLE_MAX];
	size_t line_have;
	unsigned int attempts;
	sd_event_source *io, *timer;
	int handed; /* a copy of what QEMU got: shut before QEMU is told to cancel, whoever holds the other end */
};

static int data_retry(Data *d);

static void fill_preamble(const Move *m, Preamble *p)
{
	*p = (Preamble){.data = true};
	memcpy(p->name, m->k->name, strlen(m->k->name) + 1);
	memcpy(p->id, m->id, sizeof(p->id));
	memcpy(p->token, m->token, sizeof(p->token));
}

static void quiet(Data *d)
{
	d->ready_io = sd_event_source_disable_unref(d->ready_io);
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
	if (r >= 0)
		r = fd_nonblock(d->fd, true);
	return r < 0 ? r : sd_event_add_io(d->m->k->event, &d->io, d->fd, EPOLLIN, on_answer, d);
}

/* ---- ssh ---- */

static int on_ready(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Data *d = userdata;
	ssize_t n = read(fd, d->ready + d->ready_have, sizeof(d->ready) - 1 - d->ready_have);
	int r;

	(void)revents;
	if (n <= 0) {
		if (n == 0)
			sd_event_source_set_enabled(source, SD_EVENT_OFF); /* its exit tells why */
		return 0;
	}
	d->ready_have += (size_t)n;
	d->ready[d->ready_have] = '\0';
	if (!strstr(d->ready, READY_WORD))
		return 0;
	d->ready_io = sd_event_source_disable_unref(d->ready_io);
	r = exchange(d, d->local_path);
	if (r < 0)
		failed(d, r, d->local_path, strerror(-r));
	return 0;
}

static void on_ssh_exit(void *userdata)
{
	Data *d = userdata;
	_cleanup_error_ Error *err = NULL;

	child_explain(d->child, &err);
	if (child_busy_server(d->child) && d->opened && data_retry(d) >= 0)
		return;
	done(d, -1, err);
}

/* LocalCommand runs when login and forwarding are done: a word on its stdout, so that nobody polls for the socket. */
static int start_ssh(Data *d, Error **err)
{
	Move *m = d->m;
	_cleanup_strv_ char **extra = NULL, **argv = NULL;
	DestinationOptions how = {.ssh = m->opt.ssh ? m->opt.ssh : getenv("VMFERRY_SSH")};
	_cleanup_fd_ int wr = -1;
	int pair[2], r;

	if (!m->prepared.data_socket || m->prepared.data_socket[0] != '/' ||
	    strpbrk(m->prepared.data_socket, ": \"'%\\$`"))
		return error_set(err, -EPROTO, "the target names no usable data socket");
	free(d->local_path);
	d->local_path = runtime_path(m->k->name, "data");
	(void)unlink(d->local_path);
	strv_add(&extra, "-oExitOnForwardFailure=yes");
	strv_add(&extra, "-oStreamLocalBindUnlink=yes");
	strv_add(&extra, "-oStreamLocalBindMask=0177");
	strv_add(&extra, "-oPermitLocalCommand=yes");
	strv_add(&extra, "-oLocalCommand=echo " READY_WORD);
	strv_add(&extra, "-oControlPath=none");
	strv_add(&extra, "-L%s:%s", d->local_path, m->prepared.data_socket);
	r = destination_argv(m->dest, &how, extra, true, &argv, err);
	if (r < 0)
		return r;
	if (pipe2(pair, O_CLOEXEC) < 0)
		return error_set(err, -errno, "pipe: %m");
	fd_close(d->ready_fd);
	d->ready_fd = pair[0];
	wr = pair[1];
	fd_nonblock(d->ready_fd, true);
	d->ready_have = 0;
	r = child_start(m->k->event, argv, m->opt.ssh_auth_sock, -1, wr, on_ssh_exit, d, &d->child, err);
	if (r >= 0)
		r = sd_event_add_io(m->k->event, &d->ready_io, d->ready_fd, EPOLLIN, on_ready, d);
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
		.how = {.ssh = m->opt.ssh ? m->opt.ssh : getenv("VMFERRY_SSH"),
			.ssh_auth_sock = m->opt.ssh_auth_sock,
			.remote_command = m->opt.remote_command ? m->opt.remote_command : m->k->conf->remote_command},
		.connect_usec = m->deadlines.connect,
		.expect_token = m->prepared.token ? m->prepared.token : "",
	};

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
	uint64_t limit = streq(m->transport, "ssh") ? m->deadlines.connect : READY_USEC;
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
		r = sd_event_add_time_relative(m->k->event, &d->timer, CLOCK_MONOTONIC, limit, 0, on_timeout, d);
	return r;
}

/* sshd turned the login away because it had too many: once more, after a moment. */
static int on_again(sd_event_source *source, uint64_t usec, void *userdata)
{
	Data *d = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)source;
	(void)usec;
	quiet(d);
	d->child = child_free(d->child, false);
	if (start(d, &err) < 0)
		done(d, -1, err);
	return 0;
}

static int data_retry(Data *d)
{
	if (++d->attempts > 5)
		return -ETIMEDOUT;
	quiet(d);
	return sd_event_add_time_relative(d->m->k->event, &d->timer, CLOCK_MONOTONIC,
					  (100 + (uint64_t)d->attempts * 150 + now_usec() % 300) * USEC_PER_MSEC, 0,
					  on_again, d);
}

int data_open(Move *m, void (*opened)(Move *m, int fd, const Error *err), Error **err)
{
	Data *d;
	int r;

	m->data = data_free(m->data);
	d = m->data = xcalloc(1, sizeof(*d));
	d->m = m;
	d->opened = opened;
	d->fd = d->ready_fd = d->handed = -1;
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
	fd_close(d->ready_fd);
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
