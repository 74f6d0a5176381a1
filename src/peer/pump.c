/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/pump.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "peer/frame.h"

#define PUMP_BUFFER 65536

typedef struct Lane {
	uint8_t data[PUMP_BUFFER];
	size_t begin, end;
} Lane;

/* Two ends; lane i carries from end i to end 1 - i. End 0 is the peer, end 1 is sd-bus. */
struct Pump {
	sd_event *event;
	int fd[2];
	sd_event_source *source[2];
	Lane lane[2];
	FrameCheck check;
	int error;
	bool heard;
	sd_event_source *later;
	void (*closed)(int error, void *userdata);
	void *userdata;
};

static uint32_t wanted_events(const Pump *pump, int end)
{
	const Lane *out = &pump->lane[1 - end], *in = &pump->lane[end];

	return (in->begin == in->end ? (uint32_t)EPOLLIN : 0) | (out->begin != out->end ? (uint32_t)EPOLLOUT : 0);
}

/* After the bus's own events. */
#define LATER_PRIORITY (SD_EVENT_PRIORITY_NORMAL + 10)

static int on_later(sd_event_source *source, void *userdata)
{
	Pump *pump = userdata;
	void (*closed)(int, void *) = pump->closed;

	(void)source;
	pump->closed = NULL;
	shutdown(pump->fd[1], SHUT_RDWR);
	closed(pump->error, pump->userdata);
	return 0;
}

/*
 * The end of the stream is told when sd-bus has read what came before it: an answer may be the last thing said. Until then
 * sd-bus sees no end, for it would fail the calls under way before anybody could say why.
 */
static void finish(Pump *pump, int error)
{
	for (int end = 0; end < 2; end++)
		pump->source[end] = sd_event_source_disable_unref(pump->source[end]);
	pump->error = error;
	if (error != -EMSGSIZE && error != -EBADMSG &&
	    sd_event_add_defer(pump->event, &pump->later, on_later, pump) >= 0 &&
	    sd_event_source_set_priority(pump->later, LATER_PRIORITY) >= 0)
		return;
	on_later(NULL, pump);
}

/* Writes what lane @from holds. Return: 0, or a negative errno that ends the pump. */
static int lane_flush(Pump *pump, int from)
{
	Lane *lane = &pump->lane[from];

	while (lane->begin < lane->end) {
		ssize_t n = send(pump->fd[1 - from], lane->data + lane->begin, lane->end - lane->begin,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		lane->begin += (size_t)n;
	}
	lane->begin = lane->end = 0;
	return 0;
}

/* Reads once into an empty lane. Return: 1, or 0 for nothing there, or negative errno; -ENODATA is the end. */
static int lane_fill(Pump *pump, int from)
{
	Lane *lane = &pump->lane[from];
	ssize_t n;

	if (lane->begin != lane->end)
		return 0;
	n = recv(pump->fd[from], lane->data, sizeof(lane->data), MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ENODATA;
	if (from == 0) {
		int r = frame_check(&pump->check, lane->data, (size_t)n);

		pump->heard = true;
		if (r < 0)
			return r;
	}
	lane->end = (size_t)n;
	return 1;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Pump *pump = userdata;
	int r = 0;

	(void)source;
	(void)fd;
	(void)revents;
	for (int from = 0; from < 2; from++) {
		do {
			r = lane_flush(pump, from);
			if (r == 0)
				r = lane_fill(pump, from);
		} while (r > 0);
		if (r < 0) {
			finish(pump, r == -ENODATA ? 0 : r);
			return 0;
		}
	}
	for (int end = 0; end < 2; end++)
		sd_event_source_set_io_events(pump->source[end], wanted_events(pump, end));
	return 0;
}

int pump_new(sd_event *event, int fd, bool from_client, void (*closed)(int error, void *userdata), void *userdata,
	     Pump **ret, int *ret_inside)
{
	_cleanup_fd_ int outside = fd, inside = -1;
	Pump *pump;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return -errno;
	inside = pair[1];
	pump = xcalloc(1, sizeof(*pump));
	pump->event = event;
	pump->fd[0] = TAKE_FD(outside);
	pump->fd[1] = pair[0];
	pump->check.from_client = from_client;
	pump->closed = closed;
	pump->userdata = userdata;
	for (int end = 0; end < 2; end++) {
		r = sd_event_add_io(event, &pump->source[end], pump->fd[end], EPOLLIN, on_io, pump);
		if (r < 0) {
			pump_free(pump);
			return r;
		}
	}
	*ret = pump;
	*ret_inside = TAKE_FD(inside);
	return 0;
}

void pump_flush(Pump *pump)
{
	while (lane_flush(pump, 1) == 0 && lane_fill(pump, 1) > 0)
		;
}

bool pump_heard(Pump *pump)
{
	bool heard = pump->heard;

	pump->heard = false;
	return heard;
}

void pump_cut(Pump *pump)
{
	shutdown(pump->fd[0], SHUT_RDWR);
}

Pump *pump_free(Pump *pump)
{
	if (!pump)
		return NULL;
	sd_event_source_disable_unref(pump->later);
	for (int end = 0; end < 2; end++) {
		sd_event_source_disable_unref(pump->source[end]);
		fd_close(pump->fd[end]);
	}
	free(pump);
	return NULL;
}
