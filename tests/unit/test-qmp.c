/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A QMP server that is nothing but the other end of a socketpair: each test says its lines and reads ours. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "qemu/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n"
#define GREETING_PLAIN "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n"
#define NEGOTIATED "{\"return\": {}, \"id\": 1}\r\n"
#define MIB (1U << 20)
#define LINE_MAX_BYTES (512U << 10)

/* What happened, in order, as text: "ready;stop=ok;event STOP;closed EPIPE;" */
typedef struct Fixture {
	sd_event *event;
	Qmp *qmp;
	int server;
	char *log;
	uint64_t at;
	int in_call;	     /* within qmp_command(): no reply may come */
	const char *free_on; /* log word at which the connection is freed */
	const char *ask_on;  /* log word at which another command is given */
	char *read;	     /* what the server has read and not looked at */
	size_t len;
	int passed; /* the last fd it got */
} Fixture;

typedef struct Asked {
	Fixture *f;
	char *name;
} Asked;

static void ask(Fixture *f, const char *name);

static void note(Fixture *f, const char *word)
{
	_cleanup_free_ char *before = f->log;

	assert_int_equal(f->in_call, 0);
	f->log = xasprintf("%s%s;", before ? before : "", word);
	if (f->ask_on && streq(f->ask_on, word)) {
		f->ask_on = NULL;
		ask(f, "again");
	}
	if (f->free_on && streq(f->free_on, word))
		f->qmp = qmp_free(f->qmp);
}

static void on_ready(void *userdata)
{
	note(userdata, "ready");
}

static void on_event(const char *name, json_object *data, uint64_t at, void *userdata)
{
	_cleanup_free_ char *word = xasprintf("event %s%s", name, data ? json_text(data) : "");
	Fixture *f = userdata;

	f->at = at;
	note(f, word);
}

static void on_closed(int error, void *userdata)
{
	_cleanup_free_ char *word = xasprintf("closed %s", strerrorname_np(-error));

	note(userdata, word);
}

static void on_reply(json_object *ret, const char *error, void *userdata)
{
	Asked *a = userdata;
	_cleanup_free_ char *word = xasprintf("%s=%s", a->name, error ? error : ret ? json_text(ret) : "null");
	Fixture *f = a->f;

	free(a->name);
	free(a);
	note(f, word);
}

static Asked *asked(Fixture *f, const char *name)
{
	Asked *a = xcalloc(1, sizeof(*a));

	*a = (Asked){.f = f, .name = xstrdup(name)};
	return a;
}

static void ask(Fixture *f, const char *name)
{
	f->in_call++;
	qmp_command(f->qmp, name, NULL, on_reply, asked(f, name));
	f->in_call--;
}

static void ask_fd(Fixture *f, const char *name, int fd)
{
	f->in_call++;
	qmp_command_fd(f->qmp, name, NULL, fd, on_reply, asked(f, name));
	f->in_call--;
}

static void run(Fixture *f)
{
	while (sd_event_run(f->event, 0) > 0)
		;
}

static void say_bytes(Fixture *f, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = send(f->server, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) {
			assert_true(errno == EAGAIN || errno == EPIPE);
			if (errno == EPIPE)
				return;
			run(f);
			continue;
		}
		text += n;
		len -= (size_t)n;
	}
}

static void say(Fixture *f, const char *text)
{
	say_bytes(f, text, strlen(text));
	run(f);
}

/* Reads one message of at most 64 KiB, with an fd if there is one. */
static ssize_t server_recv(Fixture *f)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov;
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	ssize_t n;

	f->read = xrealloc(f->read, f->len + 65536 + 1, 1);
	iov = (struct iovec){f->read + f->len, 65536};
	n = recvmsg(f->server, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n <= 0)
		return n;
	f->len += (size_t)n;
	c = CMSG_FIRSTHDR(&msg);
	if (c) {
		assert_int_equal(c->cmsg_type, SCM_RIGHTS);
		assert_int_equal(c->cmsg_len, CMSG_LEN(sizeof(int)));
		fd_close(f->passed);
		memcpy(&f->passed, CMSG_DATA(c), sizeof(int));
	}
	return n;
}

/* The next line that we said; NULL if there is none. free() it */
static char *server_line(Fixture *f)
{
	char *newline, *line;

	while (!(newline = f->len ? memchr(f->read, '\n', f->len) : NULL)) {
		if (server_recv(f) <= 0)
			return NULL;
	}
	line = strndup(f->read, (size_t)(newline - f->read));
	f->len -= (size_t)(newline + 1 - f->read);
	memmove(f->read, newline + 1, f->len);
	return line;
}

static void expect(Fixture *f, const char *line)
{
	_cleanup_free_ char *got = server_line(f);

	if (!line) {
		assert_null(got);
		return;
	}
	assert_non_null(got);
	assert_string_equal(got, line);
}

static void logged(Fixture *f, const char *text)
{
	assert_string_equal(f->log ? f->log : "", text);
	free(TAKE_PTR(f->log));
}

static void begin(Fixture *f)
{
	static const QmpHandlers handlers = {.ready = on_ready, .event = on_event, .closed = on_closed};
	int fds[2];

	*f = (Fixture){.passed = -1};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	f->server = fds[1];
	assert_true(sd_event_new(&f->event) >= 0);
	assert_int_equal(qmp_new(f->event, fds[0], &handlers, f, &f->qmp), 0);
}

static void begin_ready(Fixture *f)
{
	begin(f);
	say(f, GREETING);
	expect(f, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]},\"id\":1}");
	say(f, NEGOTIATED);
	logged(f, "ready;");
}

static void end(Fixture *f)
{
	qmp_free(f->qmp);
	run(f);
	fd_close(f->server);
	fd_close(f->passed);
	sd_event_unref(f->event);
	free(f->log);
	free(f->read);
}

static void test_negotiation(void **state)
{
	Fixture f;

	(void)state;
	begin(&f);
	ask(&f, "stop");
	ask(&f, "yank");
	run(&f);
	expect(&f, NULL);
	say(&f, GREETING);
	expect(&f, "{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]},\"id\":3}");
	expect(&f, NULL);
	say(&f, "{\"return\": {}, \"id\": 3}\n");
	logged(&f, "ready;");
	expect(&f, "{\"execute\":\"stop\",\"id\":1}");
	expect(&f, "{\"execute\":\"yank\",\"id\":2}");
	say(&f, "{\"return\": {}, \"id\": 1}\n{\"id\": 2, \"return\": {\"a\": 1}, \"x-new\": [1]}\n");
	logged(&f, "stop={};yank={\"a\":1};");
	end(&f);
}

static void test_no_oob(void **state)
{
	Fixture f;

	(void)state;
	begin(&f);
	say(&f, GREETING_PLAIN);
	expect(&f, "{\"execute\":\"qmp_capabilities\",\"id\":1}");
	say(&f, NEGOTIATED);
	ask(&f, "yank");
	expect(&f, "{\"execute\":\"yank\",\"id\":2}");
	logged(&f, "ready;");
	end(&f);
	begin(&f);
	ask(&f, "stop");
	say(&f, GREETING);
	say(&f, "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 2}\n");
	logged(&f, "stop=connection closed;closed EPROTO;");
	end(&f);
}

static void test_errors(void **state)
{
	Fixture f;

	(void)state;
	begin_ready(&f);
	ask(&f, "a");
	ask(&f, "b");
	say(&f, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"bad\\nthing\\u001b[1m\"}, \"id\": 2}\n");
	say(&f, "{\"error\": {}, \"id\": 3}\n");
	logged(&f, "a=GenericError: bad?thing?[1m;b=GenericError: no description;");
	end(&f);
}

/* A whole conversation, cut in two at every byte, and byte by byte. */
static void test_split(void **state)
{
	static const char text[] =
		GREETING "{\"return\": {}, \"id\": 2}\r\n"
			 "\r\n"
			 "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n"
			 "{\"return\": {\"status\": \"a\\nb\"}, \"id\": 1}\n"
			 "{\"event\": \"X\", \"data\": {\"n\": 18446744073709551615}}\n";
	Fixture f;

	(void)state;
	for (size_t at = 0; at <= sizeof(text) - 1; at++) {
		begin(&f);
		ask(&f, "query");
		for (size_t i = 0; at == 0 && i < sizeof(text) - 1; i++) {
			say_bytes(&f, text + i, 1);
			run(&f);
		}
		say_bytes(&f, text, at);
		run(&f);
		if (at > 0)
			say(&f, text + at);
		logged(&f, "ready;event STOP;query={\"status\":\"a\\nb\"};event X{\"n\":18446744073709551615};");
		end(&f);
	}
}

/* What QEMU still had to say to the client before us, before and after it greets us. */
static void test_answers_of_another(void **state)
{
	Fixture f;

	(void)state;
	begin(&f);
	ask(&f, "query");
	say(&f, "{\"return\": {}, \"id\": 7}\r\n{\"event\": \"RESUME\"}\r\n" GREETING
		"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 8}\r\n");
	logged(&f, "");
	say(&f, "{\"return\": {}, \"id\": 2}\r\n{\"return\": {}, \"id\": 1}\r\n");
	logged(&f, "ready;query={};");
	say(&f, "{\"return\": {}, \"id\": 7}\r\n");
	logged(&f, "closed EBADMSG;");
	end(&f);
}

static void test_garbage(void **state)
{
	static const char *const lines[] = {
		"hello\n",
		"[]\n",
		"1\n",
		"null\n",
		"{}\n",
		"{\"return\": {}}\n",
		"{\"return\": {}, \"id\": \"2\"}\n",
		"{\"return\": {}, \"id\": 3}\n",
		"{\"return\": {}, \"id\": -2}\n",
		"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n",
		"{\"error\": 1, \"id\": 2}\n",
		"{\"event\": 1}\n",
		"{\"return\": {}, \"id\": 2} x\n",
		"{\"return\": {\n",
		"\x16\x03\x01\n",
	};
	Fixture f;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		begin_ready(&f);
		ask(&f, "a");
		say(&f, lines[i]);
		logged(&f, "a=connection closed;closed EBADMSG;");
		end(&f);
	}
	begin(&f);
	say(&f, "{\"return-path\": {}, \"id\": 1}\n");
	logged(&f, "closed EBADMSG;");
	end(&f);
	begin_ready(&f);
	say_bytes(&f, "{\"event\": \"A\0B\"}\n", 18);
	run(&f);
	logged(&f, "closed EBADMSG;");
	end(&f);
}

static char *filled(size_t len, char c)
{
	char *p = xcalloc(len + 1, 1);

	memset(p, c, len);
	return p;
}

static void test_long_lines(void **state)
{
	_cleanup_free_ char *long_text = filled(LINE_MAX_BYTES - 100, 'x'), *reply = NULL, *want = NULL;
	Fixture f;

	(void)state;
	begin_ready(&f);
	ask(&f, "a");
	reply = xasprintf("{\"return\": {\"t\": \"%s\"}, \"id\": 2}\n{\"event\": \"E\"}\n", long_text);
	want = xasprintf("a={\"t\":\"%s\"};event E;", long_text);
	say(&f, reply);
	logged(&f, want);
	say_bytes(&f, long_text, LINE_MAX_BYTES - 100);
	run(&f);
	logged(&f, "");
	say_bytes(&f, long_text, 101);
	run(&f);
	logged(&f, "closed EBADMSG;");
	end(&f);
}

static void test_close_pending(void **state)
{
	Fixture f;

	(void)state;
	begin(&f);
	f.server = fd_close(f.server);
	run(&f);
	logged(&f, "closed EPIPE;");
	ask(&f, "late");
	ask(&f, "later");
	f.ask_on = "late=connection closed";
	run(&f);
	logged(&f, "late=connection closed;later=connection closed;again=connection closed;");
	end(&f);

	begin_ready(&f);
	ask(&f, "a");
	ask(&f, "b");
	f.ask_on = "a=connection closed";
	f.server = fd_close(f.server);
	run(&f);
	logged(&f, "a=connection closed;b=connection closed;closed EPIPE;again=connection closed;");
	end(&f);
}

/* QEMU's last words are heard even when what finds its end is a write. */
static void test_last_words(void **state)
{
	Fixture f;

	(void)state;
	begin_ready(&f);
	ask(&f, "quit");
	say_bytes(&f, "{\"return\": {}, \"id\": 2}\n{\"event\": \"SHUTDOWN\"}\n", 47);
	f.server = fd_close(f.server);
	ask(&f, "a");
	run(&f);
	logged(&f, "quit={};event SHUTDOWN;a=connection closed;closed EPIPE;");
	end(&f);
}

static void test_free_pending(void **state)
{
	Fixture f;

	(void)state;
	begin_ready(&f);
	ask(&f, "a");
	for (int i = 0; i < 8; i++)
		ask(&f, "b");
	f.qmp = qmp_free(f.qmp);
	assert_non_null(strstr(f.log, "a=connection closed;b=connection closed;"));
	assert_null(strstr(f.log, "closed E"));
	end(&f);
	assert_null(qmp_free(NULL));
}

static void test_free_in_handler(void **state)
{
	static const struct {
		const char *free_on, *say, *log;
	} cases[] = {
		{"ready", NEGOTIATED "{\"event\": \"A\"}\n", "ready;a=connection closed;b=connection closed;"},
		{"event A", NEGOTIATED "{\"event\": \"A\"}\n{\"event\": \"B\"}\n",
		 "ready;event A;a=connection closed;b=connection closed;"},
		{"a={}", NEGOTIATED "{\"return\": {}, \"id\": 2}\n{\"return\": {}, \"id\": 3}\n",
		 "ready;a={};b=connection closed;"},
		{"a=connection closed", NEGOTIATED "x\n", "ready;a=connection closed;b=connection closed;"},
		{"b=connection closed", NEGOTIATED "x\n", "ready;a=connection closed;b=connection closed;"},
		{"closed EBADMSG", NEGOTIATED "x\ny\n",
		 "ready;a=connection closed;b=connection closed;closed EBADMSG;"},
	};
	Fixture f;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		begin(&f);
		say(&f, GREETING);
		ask(&f, "a");
		ask(&f, "b");
		f.free_on = cases[i].free_on;
		say(&f, cases[i].say);
		assert_null(f.qmp);
		logged(&f, cases[i].log);
		end(&f);
	}
}

/* Nothing waits for an answer: QEMU reads ahead, and what it does not read the socket holds. */
static void test_in_flight(void **state)
{
	Fixture f;

	(void)state;
	begin_ready(&f);
	for (int i = 2; i < 22; i++)
		ask(&f, "a");
	for (int i = 2; i < 22; i++) {
		_cleanup_free_ char *want = xasprintf("{\"execute\":\"a\",\"id\":%d}", i);

		expect(&f, want);
	}
	expect(&f, NULL);
	end(&f);
}

/* Whether no copy of a pipe's reading end is left. */
static bool unread(int writing_end)
{
	struct pollfd p = {.fd = writing_end};

	return poll(&p, 1, 0) == 1 && (p.revents & POLLERR);
}

/* QEMU keeps the fds that came last: one on its way at a time, and what comes after it keeps its place. */
static void test_fds(void **state)
{
	Fixture f;
	int a[2], b[2];

	(void)state;
	begin_ready(&f);
	assert_int_equal(pipe2(a, O_CLOEXEC), 0);
	assert_int_equal(pipe2(b, O_CLOEXEC), 0);
	ask_fd(&f, "getfd", a[0]);
	ask_fd(&f, "getfd", b[0]);
	ask(&f, "cont");
	expect(&f, "{\"execute\":\"getfd\",\"id\":2}");
	expect(&f, NULL);
	assert_false(unread(a[1]));
	f.passed = fd_close(f.passed);
	assert_true(unread(a[1]));
	say(&f, "{\"return\": {}, \"id\": 2}\n");
	expect(&f, "{\"execute\":\"getfd\",\"id\":3}");
	expect(&f, "{\"execute\":\"cont\",\"id\":4}");
	assert_false(unread(b[1]));
	end(&f);
	assert_true(unread(b[1]));
	fd_close(a[1]);
	fd_close(b[1]);

	begin(&f);
	assert_int_equal(pipe2(a, O_CLOEXEC), 0);
	ask_fd(&f, "getfd", a[0]);
	f.qmp = qmp_free(f.qmp);
	assert_true(unread(a[1]));
	fd_close(a[1]);
	end(&f);
}

/* More than the socket takes: order and bytes stay. */
static void test_blocked(void **state)
{
	_cleanup_free_ char *long_text = filled(MIB, 'y');
	Fixture f;

	(void)state;
	begin_ready(&f);
	for (int i = 0; i < 5; i++)
		qmp_command(f.qmp, "a", json_build("t", "s", long_text, NULL), NULL, NULL);
	run(&f);
	for (int id = 2; id < 7; id++) {
		_cleanup_free_ char *got = NULL, *want = xasprintf("{\"execute\":\"a\",\"arguments\":{\"t\":\"%s\"},\"id\":%d}",
								   long_text, id);

		while (!(got = server_line(&f)))
			run(&f);
		assert_string_equal(got, want);
	}
	run(&f);
	expect(&f, NULL);
	end(&f);
}

static void say_event_at(Fixture *f, uint64_t real)
{
	_cleanup_free_ char *text =
		xasprintf("{\"event\": \"E\", \"timestamp\": {\"seconds\": %llu, \"microseconds\": %llu}}\n",
			  (unsigned long long)(real / USEC_PER_SEC), (unsigned long long)(real % USEC_PER_SEC));

	say(f, text);
}

static void test_event_time(void **state)
{
	uint64_t real = clock_usec(CLOCK_REALTIME), now = now_usec();
	Fixture f;

	(void)state;
	begin_ready(&f);
	say_event_at(&f, real - 2 * USEC_PER_SEC);
	assert_in_range(f.at, now - 2 * USEC_PER_SEC - 10 * USEC_PER_MSEC, now - 2 * USEC_PER_SEC + 10 * USEC_PER_MSEC);
	say_event_at(&f, real + 3600 * USEC_PER_SEC);
	assert_in_range(f.at, now, now_usec());
	say(&f, "{\"event\": \"E\"}\n");
	assert_in_range(f.at, now, now_usec());
	say(&f, "{\"event\": \"E\", \"timestamp\": {\"seconds\": -1, \"microseconds\": -1}}\n");
	assert_in_range(f.at, now, now_usec());
	say(&f, "{\"event\": \"E\", \"timestamp\": {\"seconds\": 18446744073709551615, \"microseconds\": 1}}\n");
	assert_in_range(f.at, now, now_usec());
	say(&f, "{\"event\": \"E\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 0}}\n");
	assert_int_equal(f.at, 0);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_negotiation),   cmocka_unit_test(test_no_oob),
		cmocka_unit_test(test_errors),	      cmocka_unit_test(test_split),
		cmocka_unit_test(test_answers_of_another),
		cmocka_unit_test(test_garbage),	      cmocka_unit_test(test_long_lines),
		cmocka_unit_test(test_close_pending), cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_free_pending),  cmocka_unit_test(test_free_in_handler),
		cmocka_unit_test(test_in_flight),
		cmocka_unit_test(test_fds),	      cmocka_unit_test(test_blocked),
		cmocka_unit_test(test_event_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
