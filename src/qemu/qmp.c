/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QMP client. QEMU's docs/interop/qmp-spec.rst.
 *
 * Commands wait in `queue` until they may be written, then in `sent` until they are answered. What may be written is
 * decided in one place, may_send():
 *  - before the negotiation is over only qmp_capabilities itself;
 *  - one command with an fd at a time: QEMU's socket keeps only the fds that came last (chardev/char-socket.c).
 *
 * The capability "oob" is asked for because QEMU then reads ahead while it executes (up to eight commands, monitor/qmp.c,
 * QMP_REQ_QUEUE_LEN_MAX), and not each command only after the answer to the one before. No command is given out of band:
 * what a silent peer holds up, none of those that QEMU has sets free (keeper/perform.c, watchdog).
 *
 * A line is held whole, and then parsed into objects; of "{},{},..." they are some 250 times as long as the text, and a
 * guest that has taken its QEMU over can say that. So LINE_MAX_BYTES is not far from what QEMU has to say: the longest
 * answer, query-blockstats with 64 disks, is 119 KB.
 *
 * Handlers may call anything, qmp_free() too: whoever calls one holds a reference and looks at `state` afterwards.
 */
#include "qmp.h"

#include <errno.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"

#define LINE_MAX_BYTES (512U << 10)
#define READ_BYTES (64U << 10)
#define KEEP_BYTES (2 * READ_BYTES)
#define ERROR_MAX_BYTES 1000
#define LAST_READS_MAX 1024

typedef enum QmpState {
	QMP_GREETING,	 /* nothing read yet */
	QMP_NEGOTIATING, /* qmp_capabilities sent */
	QMP_READY,
	QMP_CLOSED, /* closed() was called or is being called; commands are answered with an error */
	QMP_FREED,  /* only references from the stack are left */
} QmpState;

typedef struct Command {
	TAILQ_ENTRY(Command) entry;
	uint64_t id;
	char *text;
	size_t len, written;
	int fd;	      /* to pass along, -1: none or passed already */
	bool with_fd; /* had one */
	bool negotiation;
	QmpReply reply;
	void *userdata;
} Command;

TAILQ_HEAD(Commands, Command);

struct Qmp {
	unsigned int refs;
	QmpState state;
	int fd;
	int error; /* why the connection ends, once `deferred` has run */
	sd_event_source *io, *deferred;
	QmpHandlers handlers;
	void *userdata;
	struct Commands queue, sent;
	uint64_t next_id;
	unsigned int with_fd; /* how many of `sent` are such */
	char *data; /* not yet a whole line: `len` bytes, the first `scanned` have no newline */
	size_t len, scanned, size;
};

static const char closed_text[] = QMP_CONNECTION_CLOSED;

static void command_free(Command *c)
{
	if (!c)
		return;
	fd_close(c->fd);
	free(c->text);
	free(c);
}
DEFINE_CLEANUP(Command *, command_free)
#define _cleanup_command_ _cleanup_(command_freep)

static Qmp *qmp_unref(Qmp *q)
{
	if (--q->refs > 0)
		return NULL;
	free(q->data);
	free(q);
	return NULL;
}
DEFINE_CLEANUP(Qmp *, qmp_unref)

/* Held by all that call a handler. */
#define _cleanup_hold_ _unused_ _cleanup_(qmp_unrefp)

static Qmp *qmp_ref(Qmp *q)
{
	q->refs++;
	return q;
}

static bool qmp_open(const Qmp *q)
{
	return q->state < QMP_CLOSED;
}

/* Answers a command that is on no list any more. */
static void command_answer(Command *command, json_object *ret, const char *error)
{
	_cleanup_command_ Command *c = command;

	if (c->reply)
		c->reply(ret, error, c->userdata);
}

static Command *sent_take(Qmp *q, uint64_t id)
{
	Command *c;

	for (c = TAILQ_FIRST(&q->sent); c; c = TAILQ_NEXT(c, entry)) {
		if (c->id != id)
			continue;
		TAILQ_REMOVE(&q->sent, c, entry);
		q->with_fd -= c->with_fd;
		return c;
	}
	return NULL;
}

/* Answers what was asked up to now; what the answers lead to being asked is left. */
static void answer_all(Qmp *q)
{
	uint64_t below = q->next_id;
	Command *c;

	for (;;) {
		c = TAILQ_FIRST(&q->sent);
		if (c) {
			sent_take(q, c->id);
		} else {
			c = TAILQ_FIRST(&q->queue);
			if (!c || c->id >= below)
				return;
			TAILQ_REMOVE(&q->queue, c, entry);
		}
		command_answer(c, NULL, closed_text);
	}
}

static void stop_io(Qmp *q)
{
	q->io = sd_event_source_disable_unref(q->io);
	q->fd = fd_close(q->fd);
}

/* The caller holds a reference. */
static void finish(Qmp *q, int error)
{
	if (!qmp_open(q))
		return;
	q->state = QMP_CLOSED;
	stop_io(q);
	answer_all(q);
	if (q->state == QMP_CLOSED && q->handlers.closed)
		q->handlers.closed(error, q->userdata);
}

/* The next turn of the loop ends the connection, or answers commands given after its end. */
static void defer(Qmp *q, int error)
{
	if (q->error == 0)
		q->error = error;
	sd_event_source_set_enabled(q->deferred, SD_EVENT_ONESHOT);
}

/* --- writing --- */

static bool may_send(const Qmp *q, const Command *c)
{
	if (c->written > 0 || c->negotiation)
		return true;
	if (q->state != QMP_READY)
		return false;
	return !c->with_fd || q->with_fd == 0;
}

static ssize_t command_write(Qmp *q, Command *c)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = c->text + c->written, .iov_len = c->len - c->written};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (c->fd >= 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		control.header = (struct cmsghdr){
			.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &c->fd, sizeof(int));
	}
	do {
		n = sendmsg(q->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	c->fd = fd_close(c->fd);
	return n;
}

/* Writes what may be written now. Calls no handler. */
static void flush_queue(Qmp *q)
{
	Command *c;
	ssize_t n;

	while (qmp_open(q) && q->error == 0 && (c = TAILQ_FIRST(&q->queue)) && may_send(q, c)) {
		n = command_write(q, c);
		if (n == -EAGAIN) {
			sd_event_source_set_io_events(q->io, EPOLLIN | EPOLLOUT);
			return;
		}
		if (n < 0) {
			defer(q, n == -ECONNRESET ? -EPIPE : (int)n);
			break;
		}
		c->written += (size_t)n;
		if (c->written < c->len)
			continue;
		TAILQ_REMOVE(&q->queue, c, entry);
		TAILQ_INSERT_TAIL(&q->sent, c, entry);
		q->with_fd += c->with_fd;
	}
	if (q->io)
		sd_event_source_set_io_events(q->io, EPOLLIN);
}

static Command *command_new(Qmp *q, const char *name, json_object *arguments, int fd)
{
	Command *c = xcalloc(1, sizeof(*c));
	_cleanup_json_ json_object *o = NULL;

	c->id = q->next_id++;
	c->fd = fd;
	c->with_fd = fd >= 0;
	o = json_build("execute", "s", name, "arguments", "o", arguments, "id", "u", c->id, NULL);
	c->text = xasprintf("%s\n", json_text(o));
	c->len = strlen(c->text);
	return c;
}

static void submit(Qmp *q, Command *c)
{
	if (c->negotiation) /* before all that waits for it */
		TAILQ_INSERT_HEAD(&q->queue, c, entry);
	else
		TAILQ_INSERT_TAIL(&q->queue, c, entry);
	if (qmp_open(q))
		flush_queue(q);
	else if (q->state == QMP_CLOSED)
		defer(q, 0);
}

void qmp_command_fd(Qmp *q, const char *name, json_object *arguments, int fd, QmpReply reply, void *userdata)
{
	Command *c = command_new(q, name, arguments, fd);

	c->reply = reply;
	c->userdata = userdata;
	submit(q, c);
}

void qmp_command(Qmp *q, const char *name, json_object *arguments, QmpReply reply, void *userdata)
{
	qmp_command_fd(q, name, arguments, -1, reply, userdata);
}

/* --- reading --- */

static void on_capabilities(_unused_ json_object *ret, const char *error, void *userdata)
{
	Qmp *q = userdata;

	if (!qmp_open(q))
		return;
	if (error) {
		defer(q, -EPROTO);
		return;
	}
	q->state = QMP_READY;
	flush_queue(q);
	if (q->handlers.ready)
		q->handlers.ready(q->userdata);
}

static bool offers_oob(json_object *greeting)
{
	json_object *capabilities;

	if (!json_get_array(greeting, "QMP.capabilities", &capabilities))
		return false;
	for (size_t i = 0; i < json_object_array_length(capabilities); i++) {
		json_object *name = json_object_array_get_idx(capabilities, i);

		if (json_object_is_type(name, json_type_string) && streq(json_object_get_string(name), "oob"))
			return true;
	}
	return false;
}

static int handle_greeting(Qmp *q, json_object *o)
{
	json_object *arguments = NULL, *enable, *qmp;
	Command *c;

	if (!json_get_object(o, "QMP", &qmp))
		return -EBADMSG;
	if (offers_oob(o)) {
		enable = json_object_new_array();
		json_object_array_add(enable, json_object_new_string("oob"));
		arguments = json_build("enable", "o", enable, NULL);
	}
	q->state = QMP_NEGOTIATING;
	c = command_new(q, "qmp_capabilities", arguments, -1);
	c->negotiation = true;
	c->reply = on_capabilities;
	c->userdata = q;
	submit(q, c);
	return 0;
}

static uint64_t event_time(json_object *o)
{
	uint64_t now = now_usec(), real = clock_usec(CLOCK_REALTIME), sec, usec, age;

	if (!json_get_u64(o, "timestamp.seconds", &sec) || !json_get_u64(o, "timestamp.microseconds", &usec))
		return now;
	if (sec > real / USEC_PER_SEC || usec >= USEC_PER_SEC)
		return now;
	usec += sec * USEC_PER_SEC;
	age = usec < real ? real - usec : 0;
	return age < now ? now - age : 0;
}

static int handle_event(Qmp *q, const char *name, json_object *o)
{
	json_object *data = NULL;

	json_get_object(o, "data", &data);
	if (q->handlers.event)
		q->handlers.event(name, data, event_time(o), q->userdata);
	return 0;
}

static int handle_reply(Qmp *q, json_object *o)
{
	_cleanup_free_ char *text = NULL, *clean = NULL;
	const char *class = "GenericError", *desc = "no description";
	json_object *ret = NULL, *error;
	bool failed = json_get_object(o, "error", &error);
	Command *c;
	uint64_t id;

	if (!failed && !json_object_object_get_ex(o, "return", &ret))
		return -EBADMSG;
	if (!json_get_u64(o, "id", &id))
		return -EBADMSG;
	c = sent_take(q, id);
	if (!c)
		return q->state == QMP_NEGOTIATING ? 0 : -EBADMSG; /* not_ours() */
	flush_queue(q);
	if (failed) {
		json_get_string(error, "class", &class);
		json_get_string(error, "desc", &desc);
		text = xasprintf("%s: %s", class, desc);
		clean = text_clean(text, ERROR_MAX_BYTES);
	}
	command_answer(c, ret, clean);
	return 0;
}

/*
 * A client that has just gone, as a keeper that was killed, may have left a command under way: QEMU gives its answer, and an event,
 * to whoever is connected by then. In-band commands are answered in turn, so all of them come before the answer to ours.
 */
static bool not_ours(json_object *o)
{
	return json_object_object_get_ex(o, "event", NULL) || json_object_object_get_ex(o, "return", NULL) ||
	       json_object_object_get_ex(o, "error", NULL);
}

static int handle_line(Qmp *q, const char *line, size_t len)
{
	_cleanup_json_ json_object *o = NULL;
	const char *name;

	if (len > 0 && line[len - 1] == '\r')
		len--;
	if (len == 0)
		return 0;
	if (len > LINE_MAX_BYTES)
		return -EBADMSG;
	o = json_parse(line, len);
	if (!json_object_is_type(o, json_type_object))
		return -EBADMSG;
	if (q->state == QMP_GREETING)
		return not_ours(o) ? 0 : handle_greeting(q, o);
	if (json_get_string(o, "event", &name))
		return handle_event(q, name, o);
	return handle_reply(q, o);
}

static int handle_lines(Qmp *q)
{
	size_t start = 0;
	char *newline;
	int r = 0;

	while (r == 0 && qmp_open(q) && (newline = memchr(q->data + q->scanned, '\n', q->len - q->scanned))) {
		q->scanned = (size_t)(newline - q->data) + 1;
		r = handle_line(q, q->data + start, q->scanned - 1 - start);
		start = q->scanned;
	}
	q->len -= start;
	q->scanned = q->len;
	if (start > 0 && q->len > 0)
		memmove(q->data, q->data + start, q->len);
	if (q->len == 0 && q->size > KEEP_BYTES) {
		free(TAKE_PTR(q->data));
		q->size = 0;
	}
	return r == 0 && q->len > LINE_MAX_BYTES ? -EBADMSG : r;
}

/* One read. Return: 1 if there may be more, 0 if not now, -EPIPE at the end, or negative errno. */
static int read_some(Qmp *q)
{
	ssize_t n;
	int r;

	if (q->size - q->len < READ_BYTES) {
		q->size = q->size * 2 > q->len + READ_BYTES ? q->size * 2 : q->len + READ_BYTES;
		q->data = xrealloc(q->data, q->size, 1);
	}
	n = recv(q->fd, q->data + q->len, q->size - q->len, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : errno == ECONNRESET ? -EPIPE : -errno;
	if (n == 0)
		return -EPIPE;
	q->len += (size_t)n;
	r = handle_lines(q);
	return r < 0 ? r : 1;
}

static int on_io(_unused_ sd_event_source *s, _unused_ int fd, uint32_t revents, void *userdata)
{
	Qmp *q = userdata;
	_cleanup_hold_ Qmp *hold = qmp_ref(q);
	int r;

	if (revents & EPOLLOUT)
		flush_queue(q);
	if ((revents & ~(uint32_t)EPOLLOUT) == 0)
		return 0;
	r = read_some(q);
	if (r < 0)
		finish(q, r);
	return 0;
}

static int on_deferred(_unused_ sd_event_source *s, void *userdata)
{
	Qmp *q = userdata;
	_cleanup_hold_ Qmp *hold = qmp_ref(q);
	int r = 1;

	if (q->state == QMP_CLOSED) {
		answer_all(q);
		return 0;
	}
	/* Writing failed; but what QEMU said before it went (SHUTDOWN, a reply) still lies in the socket. */
	for (unsigned int i = 0; i < LAST_READS_MAX && r > 0 && qmp_open(q); i++)
		r = read_some(q);
	finish(q, q->error);
	return 0;
}

int qmp_new(sd_event *event, int fd, const QmpHandlers *handlers, void *userdata, Qmp **ret)
{
	Qmp *q;
	int r = fd_nonblock(fd, true);

	if (r < 0)
		return r;
	q = xcalloc(1, sizeof(*q));
	*q = (Qmp){.refs = 1, .fd = fd, .handlers = *handlers, .userdata = userdata, .next_id = 1};
	TAILQ_INIT(&q->queue);
	TAILQ_INIT(&q->sent);
	r = sd_event_add_io(event, &q->io, fd, EPOLLIN, on_io, q);
	if (r >= 0)
		r = sd_event_add_defer(event, &q->deferred, on_deferred, q);
	if (r >= 0)
		r = sd_event_source_set_enabled(q->deferred, SD_EVENT_OFF);
	if (r < 0) {
		q->fd = -1;
		qmp_free(q);
		return r;
	}
	*ret = q;
	return 0;
}

void qmp_set_handlers(Qmp *q, const QmpHandlers *handlers, void *userdata)
{
	q->handlers = *handlers;
	q->userdata = userdata;
}

Qmp *qmp_free(Qmp *q)
{
	if (!q || q->state == QMP_FREED)
		return NULL;
	q->state = QMP_FREED;
	q->deferred = sd_event_source_disable_unref(q->deferred);
	stop_io(q);
	while (!TAILQ_EMPTY(&q->sent) || !TAILQ_EMPTY(&q->queue))
		answer_all(q);
	return qmp_unref(q);
}
