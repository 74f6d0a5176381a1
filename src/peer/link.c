/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/link.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "basic/text.h"
#include "peer/child.h"
#include "peer/messages.h"
#include "peer/pump.h"

#define PINGS_MISSED_MAX 3
#define COMMAND_HINT "the command there must be vmferry receive, and print nothing else; try: ssh HOST vmferry --version"

struct Link {
	sd_event *event;
	LinkHandlers handlers;
	void *userdata;

	/* connecting */
	char **argv;
	char *ssh_auth_sock;
	char *login; /* the socket by which others go through our command's login, NULL: none */
	int (*want)(const char *stream, bool data, void *userdata, Error **err);
	void *want_userdata;
	char stream[33]; /* the one that was asked for */
	char *hello;	 /* the first line */
	char *expect_token;
	bool data;
	uint64_t deadline;
	unsigned int attempts;
	char line[PREAMBLE_MAX];
	size_t line_have;
	sd_event_source *io, *timer;
	Child *child;
	int fd;

	/* up */
	bool up, dead;
	Pump *pump;
	sd_bus *bus;
	uint64_t ping_every;
	unsigned int pings_missed;
	sd_event_source *ping_timer;
};

static int start_attempt(Link *link, Error **err);

/*
 * @graceful: what was sent last (Abort, Forget) still gets through, if it can without waiting: sd-bus has written it already
 * unless the link is stuck, and sd_bus_flush() would wait for ever for a peer that is.
 */
static void drop_stream(Link *link, bool graceful)
{
	if (graceful && link->pump)
		pump_flush(link->pump);
	link->io = sd_event_source_disable_unref(link->io);
	link->timer = sd_event_source_disable_unref(link->timer);
	link->ping_timer = sd_event_source_disable_unref(link->ping_timer);
	link->child = child_free(link->child, graceful);
	if (link->login)
		(void)unlink(link->login); /* a command that was killed leaves it */
	link->pump = pump_free(link->pump);
	link->fd = fd_close(link->fd);
}

static void lost(Link *link, const Error *err)
{
	if (link->dead)
		return;
	link->dead = true;
	drop_stream(link, false);
	link->handlers.lost(err, link->userdata);
}

static void lost_because(Link *link, int code, const char *why)
{
	_cleanup_error_ Error *err = NULL;

	error_set(&err, code, "%s", why);
	lost(link, err);
}

/*
 * Pings. Whatever comes is a sign of life, not the answer alone: where memory goes through the same ssh, an answer may stand behind
 * megabytes of it, and so may a ping, but they go on coming, each end's as often as it sends them.
 */

/* Its bytes have been heard: on_ping_timer(). */
static int on_pong(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)m;
	(void)userdata;
	(void)error;
	return 0;
}

static int on_ping_timer(sd_event_source *source, uint64_t usec, void *userdata)
{
	Link *link = userdata;

	(void)usec;
	if (pump_heard(link->pump))
		link->pings_missed = 0;
	if (link->pings_missed >= PINGS_MISSED_MAX) {
		lost_because(link, -ETIMEDOUT, "the other host has gone silent: the link is cut");
		return 0;
	}
	link->pings_missed++;
	(void)sd_bus_call_method_async(link->bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Ping", on_pong, link, "");
	sd_event_source_set_time_relative(source, link->ping_every);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

int link_ping_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)userdata;
	(void)error;
	return sd_bus_reply_method_return(m, "");
}

/* ---- the bus ---- */

static void on_pump_closed(int error, void *userdata)
{
	Link *link = userdata;
	_cleanup_error_ Error *err = NULL;

	if (error == -EMSGSIZE || error == -EBADMSG)
		error_set(&err, error, error == -EMSGSIZE ? "the other host sent a message over 1 MiB" :
							    "the other host sent bytes that are no D-Bus message");
	else if (link->child) {
		child_explain(link->child, &err);
		error_prefix(&err, "the other host closed the link: ");
	} else
		error_set(&err, -EPIPE,
			  link->want ? "the client's relay ended" : "the other host closed the link");
	lost(link, err);
}

static int start_bus(Link *link, bool server, int (*setup)(sd_bus *bus, void *userdata), Error **err)
{
	static const sd_id128_t server_id = SD_ID128_MAKE(6b, 1d, 4e, 0a, 5c, 2f, 47, 99, 8a, 31, 0f, d2, 77, c4, 9e, 15);
	_cleanup_fd_ int inside = -1;
	int r;

	r = pump_new(link->event, TAKE_FD(link->fd), server, on_pump_closed, link, &link->pump, &inside);
	if (r >= 0)
		r = sd_bus_new(&link->bus);
	if (r >= 0)
		r = sd_bus_set_fd(link->bus, inside, inside);
	if (r >= 0) {
		TAKE_FD(inside);
		r = server ? sd_bus_set_server(link->bus, true, server_id) : 0;
	}
	if (r >= 0)
		r = sd_bus_set_anonymous(link->bus, true);
	if (r >= 0)
		r = sd_bus_set_trusted(link->bus, true);
	if (r >= 0)
		r = sd_bus_negotiate_fds(link->bus, false);
	if (r >= 0 && setup)
		r = setup(link->bus, link->userdata);
	if (r >= 0)
		r = sd_bus_start(link->bus);
	if (r >= 0)
		r = sd_bus_attach_event(link->bus, link->event, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0 && link->ping_every)
		r = sd_event_add_time_relative(link->event, &link->ping_timer, CLOCK_MONOTONIC, link->ping_every, 0,
					       on_ping_timer, link);
	if (r < 0)
		return error_set(err, r, "cannot start D-Bus on the link: %s", strerror(-r));
	link->up = true;
	return 0;
}

/* ---- connecting ---- */

static void accepted(Link *link)
{
	_cleanup_error_ Error *err = NULL;

	link->io = sd_event_source_disable_unref(link->io);
	link->timer = sd_event_source_disable_unref(link->timer);
	if (link->data)
		link->up = true;
	else if (start_bus(link, false, NULL, &err) < 0) {
		lost(link, err);
		return;
	}
	link->handlers.up(link->userdata);
}

static int on_line(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Link *link = userdata;
	_cleanup_error_ Error *err = NULL;
	char token[33];
	int r;

	(void)revents;
	r = preamble_read(fd, link->line, &link->line_have);
	if (r == 0)
		return 0;
	if (r == -EPIPE || r == -ECONNRESET) {
		/* Its exit status says more than the end of its stream: wait for it, the timer bounds that. */
		sd_event_source_set_enabled(source, SD_EVENT_OFF);
		return 0;
	}
	if (r < 0) {
		error_set(&err, r, "no answer line from the target's command");
		error_hint(&err, COMMAND_HINT);
	} else {
		r = preamble_answer(link->line, token, &err);
	}
	if (r >= 0 && link->expect_token && !text_equal_secret(token, link->expect_token))
		r = error_set(&err, -EPROTO, "the other end of the data channel does not know this migration");
	if (r < 0)
		lost(link, err);
	else
		accepted(link);
	return 0;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *userdata)
{
	Link *link = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)source;
	(void)usec;
	link->timer = sd_event_source_disable_unref(link->timer);
	if (start_attempt(link, &err) < 0)
		lost(link, err);
	return 0;
}

/* A random pause that grows: sshd's MaxStartups turns some of many simultaneous logins away. */
static uint64_t retry_pause(unsigned int attempts)
{
	uint32_t random = 0;
	uint64_t most = 400 * USEC_PER_MSEC * (attempts < 5 ? attempts : 5);

	(void)!getrandom(&random, sizeof(random), 0);
	return 50 * USEC_PER_MSEC + random % most;
}

/* Return: whether there will be another attempt. */
static bool again(Link *link)
{
	uint64_t pause = retry_pause(link->attempts);

	if (link->up || now_usec() + pause >= link->deadline)
		return false;
	log_debug("sshd is busy, trying again in %" PRIu64 " ms", pause / USEC_PER_MSEC);
	drop_stream(link, false);
	return sd_event_add_time_relative(link->event, &link->timer, CLOCK_MONOTONIC, pause, 0, on_retry, link) >= 0;
}

static void on_child_exit(void *userdata)
{
	Link *link = userdata;
	_cleanup_error_ Error *err = NULL;

	if (!link->up && child_busy_server(link->child) && again(link))
		return;
	if (link->up && link->pump)
		return; /* the stream's end is what counts */
	child_explain(link->child, &err);
	if (!link->up && !err->hint)
		error_hint(&err, COMMAND_HINT);
	lost(link, err);
}

static int on_connect_deadline(sd_event_source *source, uint64_t usec, void *userdata)
{
	Link *link = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)source;
	(void)usec;
	error_set(&err, -ETIMEDOUT, "no answer from the target within the time limit");
	error_hint(&err, "see what this says: ssh HOST vmferry receive; the limit is deadlines { connect } in host.conf");
	lost(link, err);
	return 0;
}

/* The first line fits any socket's buffer: what cannot be written at once is no stream of ours. */
static int begin_stream(Link *link)
{
	int r = fd_nonblock(link->fd, true);

	if (r == 0)
		r = fd_write_all(link->fd, link->hello, strlen(link->hello));
	if (r == 0)
		r = sd_event_add_io(link->event, &link->io, link->fd, EPOLLIN, on_line, link);
	/* What a command has said comes before its end. */
	return r < 0 ? r : sd_event_source_set_priority(link->io, SD_EVENT_PRIORITY_NORMAL - 1);
}

static int start_command(Link *link, Error **err)
{
	_cleanup_fd_ int theirs = -1;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(err, -errno, "socketpair: %m");
	link->fd = pair[0];
	theirs = pair[1];
	r = begin_stream(link);
	return r < 0 ? r
		     : child_start(link->event, link->argv, link->ssh_auth_sock, theirs, theirs, on_child_exit, link,
				   &link->child, err);
}

static int ask_for_stream(Link *link, Error **err)
{
	_cleanup_free_ char *stream = text_random_id();

	memcpy(link->stream, stream, sizeof(link->stream));
	return link->want(link->stream, link->data, link->want_userdata, err);
}

static int start_attempt(Link *link, Error **err)
{
	int r;

	link->attempts++;
	link->line_have = 0;
	r = sd_event_add_time(link->event, &link->timer, CLOCK_MONOTONIC, link->deadline, 0, on_connect_deadline, link);
	if (r >= 0)
		r = link->want ? ask_for_stream(link, err) : start_command(link, err);
	return r < 0 ? error_set(err, r, "cannot reach the target: %s", strerror(-r)) : 0;
}

/* ---- a stream that a client opens ---- */

bool link_wants(const Link *link, const char *stream)
{
	return link && link->want && !link->up && !link->dead && (!stream || streq(link->stream, stream));
}

int link_give(Link *link, int fd, Error **err)
{
	int domain = 0, type = 0, r;
	socklen_t len = sizeof(int);

	if (link->fd >= 0) {
		fd_close(fd);
		return error_set(err, -EALREADY, "the stream is there already");
	}
	link->fd = fd;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) < 0 || domain != AF_UNIX ||
	    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 || type != SOCK_STREAM)
		r = -ENOTSOCK;
	else
		r = begin_stream(link);
	return r < 0 ? error_set(err, r, "the client's stream cannot be used: %s", strerror(-r)) : 0;
}

void link_refuse(Link *link, bool busy, const Error *err)
{
	if (!busy || !again(link))
		lost(link, err);
}

static Link *link_new(sd_event *event, const LinkHandlers *handlers, void *userdata, uint64_t silence_usec)
{
	Link *link = xcalloc(1, sizeof(*link));

	link->event = event;
	link->handlers = *handlers;
	link->userdata = userdata;
	link->fd = -1;
	/* A cut right after an answer is noticed when the last of them has had as long as the others. */
	link->ping_every = silence_usec / (PINGS_MISSED_MAX + 1);
	return link;
}

static int connect_argv(Link *link, const LinkOptions *options, Error **err)
{
	bool first = options->how.login && !options->preamble.data;

	if (first)
		link->login = xstrdup(options->how.login);
	return destination_argv(options->destination, &options->how, NULL, first ? DESTINATION_LOGIN : DESTINATION_COMMAND,
				&link->argv, err);
}

int link_connect(sd_event *event, const LinkOptions *options, const LinkHandlers *handlers, void *userdata, Link **ret,
		 Error **err)
{
	Link *link = link_new(event, handlers, userdata, options->preamble.data ? 0 : options->silence_usec);
	int r;

	link->ssh_auth_sock = xstrdup(options->how.ssh_auth_sock);
	link->want = options->destination->direct ? options->want : NULL;
	link->want_userdata = options->want_userdata;
	link->hello = preamble_text(&options->preamble);
	link->expect_token = xstrdup(options->expect_token);
	link->data = options->preamble.data;
	link->deadline = now_usec() + options->connect_usec;
	r = link->want ? 0 : connect_argv(link, options, err);
	if (r >= 0)
		r = start_attempt(link, err);
	if (r < 0) {
		link_free(link);
		return r;
	}
	*ret = link;
	return 0;
}

int link_accept(sd_event *event, int fd, uint64_t silence_usec, const LinkHandlers *handlers, void *userdata,
		int (*setup)(sd_bus *bus, void *userdata), Link **ret, Error **err)
{
	Link *link = link_new(event, handlers, userdata, silence_usec);
	int r;

	link->fd = fd;
	r = start_bus(link, true, setup, err);
	if (r < 0) {
		link_free(link);
		return r;
	}
	*ret = link;
	return 0;
}

sd_bus *link_bus(Link *link)
{
	return link && link->up && !link->dead ? link->bus : NULL;
}

const char *link_login(const Link *link)
{
	return link && link->up && !link->dead ? link->login : NULL;
}

int link_take_fd(Link *link)
{
	return TAKE_FD(link->fd);
}

void link_cut(Link *link)
{
	if (!link)
		return;
	if (link->child)
		child_kill(link->child);
	if (link->pump)
		pump_cut(link->pump);
}

Link *link_free(Link *link)
{
	if (!link)
		return NULL;
	drop_stream(link, link->up && !link->dead);
	sd_bus_close_unref(link->bus);
	strv_free(link->argv);
	free(link->ssh_auth_sock);
	free(link->login);
	free(link->hello);
	free(link->expect_token);
	free(link);
	return NULL;
}
