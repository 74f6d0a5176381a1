/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * By which way QEMU's stream goes: as asked for, or the best that works. A data address is proved before it is used:
 * the target's keeper answers there with its token (prove.c).
 */
#include <errno.h>
#include <inttypes.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "basic/tcp.h"
#include "keeper/move.h"

#define PROVE_USEC (1 * USEC_PER_SEC)
#define PROVE_TOKEN_LEN 32 /* text_random_id() */

static void choose(Move *m, const char *transport, char *reason)
{
	m->prove_io = sd_event_source_disable_unref(m->prove_io);
	m->prove_timer = sd_event_source_disable_unref(m->prove_timer);
	m->prove_fd = fd_close(m->prove_fd);
	m->transport = transport;
	m->transport_reason = reason;
	log_info("transport: %s (%s)", transport, reason);
	move_event(m, MOVE_EV_PROVED);
}

static TransportChoice wanted(const Move *m)
{
	return m->opt.transport ? (TransportChoice)transport_choice_from_string(m->opt.transport)
				: m->k->conf->transport;
}

static void proved(Move *m)
{
	if (wanted(m) == CHOICE_TCP)
		choose(m, "tcp", xasprintf("asked for; %s is proved", m->hello.address));
	else
		choose(m, "tls", xasprintf("%s is proved", m->hello.address));
}

/* Without a direct way QEMU's stream goes as the control link goes, if that is not against what was asked for. */
static void not_proved(Move *m, const char *why)
{
	Error *err = NULL;

	if (wanted(m) == CHOICE_AUTO) {
		choose(m, link_login(m->link) ? "ssh" : "tunnel", xstrdup(why));
		return;
	}
	error_set(&err, -EHOSTUNREACH, "%s", why);
	error_hint(&err, "open migration-ports in the target's firewall, set migration-address there, or use "
			 "--transport=ssh");
	move_fail(m, err);
}

static void no_answer(Move *m, const char *what)
{
	_cleanup_free_ char *why =
		xasprintf("the data address %s port %" PRIu64 ": %s", m->hello.address, m->hello.port, what);

	not_proved(m, why);
}

static int on_prove_timeout(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	Move *m = userdata;
	_cleanup_free_ char *why = xasprintf("the data address %s port %" PRIu64 " did not answer within 1 s",
					     m->hello.address, m->hello.port);

	not_proved(m, why);
	return 0;
}

static int on_prove_io(_unused_ sd_event_source *source, int fd, _unused_ uint32_t revents, void *userdata)
{
	Move *m = userdata;
	ssize_t n = read(fd, m->prove_line + m->prove_have, PROVE_TOKEN_LEN - m->prove_have);

	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		no_answer(m, n < 0 ? strerror(errno) : "somebody else answers there");
		return 0;
	}
	m->prove_have += (size_t)n;
	if (m->prove_have < PROVE_TOKEN_LEN)
		return 0;
	m->prove_line[PROVE_TOKEN_LEN] = '\0';
	if (m->hello.token && text_equal_secret(m->prove_line, m->hello.token))
		proved(m);
	else
		not_proved(m, "somebody else answers on the data address");
	return 0;
}

static int prove_connect(Move *m)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int r;

	m->prove_fd = r = tcp_socket(m->hello.address, (unsigned int)m->hello.port, &sa, &len);
	if (r < 0)
		return r;
	if (connect(m->prove_fd, (struct sockaddr *)&sa, len) < 0 && errno != EINPROGRESS)
		return -errno;
	r = sd_event_add_io(m->k->event, &m->prove_io, m->prove_fd, EPOLLIN, on_prove_io, m);
	return r < 0 ? r
		     : sd_event_add_time_relative(m->k->event, &m->prove_timer, CLOCK_MONOTONIC, PROVE_USEC, 0,
						  on_prove_timeout, m);
}

/* A way that needs no address of the target's. */
static int choose_asked_for(Move *m, TransportChoice way)
{
	Error *err = NULL;

	if (way == CHOICE_SSH && !m->dest->host) {
		error_set(&err, -EINVAL, "transport ssh needs an ssh destination");
		error_hint(&err, "with exec: and --direct use --transport=tunnel");
		move_error(m, err);
		return -EINVAL;
	}
	choose(m, transport_choice_to_string(way), xstrdup("asked for"));
	return 0;
}

int do_prove(Move *m)
{
	TransportChoice way = wanted(m);
	int r;

	if (m->facts & MOVE_FACT_OFFLINE) {
		choose(m, "none", xstrdup("the VM is off"));
		return 0;
	}
	if (way == CHOICE_SSH || way == CHOICE_TUNNEL || way == CHOICE_UNIX)
		return choose_asked_for(m, way);
	if (m->opt.data_address) {
		free(m->hello.address);
		m->hello.address = xstrdup(m->opt.data_address);
	}
	if (!m->hello.address || !m->hello.port) {
		not_proved(m, "the target offers no data address (migration-address in its host.conf)");
		return 0;
	}
	r = prove_connect(m);
	if (r < 0)
		no_answer(m, strerror(-r));
	return 0;
}
