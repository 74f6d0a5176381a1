/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "qemu/qmp.h"

/* What a QEMU may say. The first byte chooses: 1 a greeting first, 2 answers ask again, 4 the first event frees, 8 the
 * bytes come in two parts. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct Run {
	Qmp *qmp;
	uint8_t flags;
	unsigned int asked, answered, closed;
} Run;

static void on_reply(_unused_ json_object *ret, _unused_ const char *error, void *userdata);

static void ask(Run *r)
{
	r->asked++;
	qmp_command(r->qmp, "query-status", NULL, on_reply, r);
}

static void on_reply(_unused_ json_object *ret, _unused_ const char *error, void *userdata)
{
	Run *r = userdata;

	r->answered++;
	if ((r->flags & 2) && r->qmp && r->asked < 20)
		ask(r);
}

static void on_event(_unused_ const char *name, _unused_ json_object *data, _unused_ uint64_t at, void *userdata)
{
	Run *r = userdata;

	if (r->flags & 4)
		r->qmp = qmp_free(TAKE_PTR(r->qmp));
}

static void on_closed(_unused_ int error, void *userdata)
{
	Run *r = userdata;

	r->closed++;
}

static void run(sd_event *event)
{
	while (sd_event_run(event, 0) > 0)
		;
}

static void say(int fd, const void *data, size_t len)
{
	if (len > 0)
		(void)!send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char hello[] = "{\"QMP\": {\"capabilities\": [\"oob\"]}}\n{\"return\": {}, \"id\": 4}\n";
	static const QmpHandlers handlers = {.event = on_event, .closed = on_closed};
	sd_event *event = NULL;
	Run r = {0};
	size_t half;
	int fds[2];

	if (size == 0 || sd_event_new(&event) < 0)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 ||
	    qmp_new(event, fds[0], &handlers, &r, &r.qmp) < 0)
		abort();
	r.flags = *data++;
	size--;
	for (int i = 0; i < 3; i++)
		ask(&r);
	if (r.flags & 1)
		say(fds[1], hello, sizeof(hello) - 1);
	half = r.flags & 8 ? size / 2 : size;
	say(fds[1], data, half);
	run(event);
	say(fds[1], data + half, size - half);
	run(event);
	fd_close(fds[1]);
	run(event);
	r.qmp = qmp_free(TAKE_PTR(r.qmp));
	if (r.answered != r.asked || r.closed > 1)
		abort();
	sd_event_unref(event);
	return 0;
}
