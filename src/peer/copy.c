/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/copy.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"

#define COPY_BUFFER 262144

typedef struct Way {
	int from, to;
	size_t begin, end;
	bool eof;
	char data[COPY_BUFFER];
} Way;

static int way_step(Way *way, short from_events, short to_events)
{
	ssize_t n;

	if (way->begin == way->end && (from_events & (POLLIN | POLLHUP | POLLERR)) && !way->eof) {
		n = read(way->from, way->data, sizeof(way->data));
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			way->eof = true;
		way->begin = 0;
		way->end = n > 0 ? (size_t)n : 0;
	}
	if (way->begin < way->end || (to_events & POLLERR)) {
		n = write(way->to, way->data + way->begin, way->end - way->begin);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		way->begin += n > 0 ? (size_t)n : 0;
	}
	if (way->eof && way->begin == way->end)
		shutdown(way->to, SHUT_WR);
	return 0;
}

static void poll_for(const Way *way, struct pollfd *from, struct pollfd *to)
{
	bool holds = way->begin < way->end;

	if (!holds && !way->eof)
		*from = (struct pollfd){.fd = way->from, .events = POLLIN};
	else
		*from = (struct pollfd){.fd = -1};
	*to = (struct pollfd){.fd = holds ? way->to : -1, .events = POLLOUT};
}

int copy_both(int in, int out, int sock)
{
	_cleanup_free_ Way *ways = xcalloc(2, sizeof(*ways));
	Way *there = &ways[0], *back = &ways[1];

	there->from = in;
	there->to = back->from = sock;
	back->to = out;
	fd_nonblock(sock, true);
	fd_nonblock(out, true);
	for (;;) {
		struct pollfd p[4];

		poll_for(there, &p[0], &p[1]);
		poll_for(back, &p[2], &p[3]);
		if (poll(p, ARRAY_SIZE(p), -1) < 0 && errno != EINTR)
			return -errno;
		if (way_step(there, p[0].revents, p[1].revents) < 0 || way_step(back, p[2].revents, p[3].revents) < 0)
			return -EPIPE;
		if ((there->eof && there->begin == there->end) || (back->eof && back->begin == back->end))
			return 0;
	}
}
