/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/process.h"
#include "basic/text.h"
#include "peer/link.h"
#include "peer/messages.h"
#include "wire-bus.h"

#define ID "0123456789abcdef0123456789abcdef"
#define TOKEN "fedcba9876543210fedcba9876543210"

/* The source's end and, where there is one, the target's, in one loop. */
typedef struct Pair {
	sd_event *event;
	Link *source, *target;
	bool up, target_lost, listen_for_signals;
	bool evasive; /* the target says something, but not the answer */
	Error *lost;
	char socket[64];
	int listening;
	sd_event_source *accept;
	size_t replies, pings;
	const char *fifo; /* up waits until somebody opens it */
	Error *failed;	  /* of a call */
	char wanted[33];  /* the stream asked for last */
	unsigned int wants;
	bool wants_data;
} Pair;

static char *program;

/* ---- the pair ---- */

static int on_signal(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)m;
	(void)error;
	assert_null(((Pair *)userdata)->lost);
	((Pair *)userdata)->replies++;
	return 0;
}

static void on_up(void *userdata)
{
	Pair *p = userdata;

	p->up = true;
	if (p->fifo)
		fd_close(open(p->fifo, O_RDONLY | O_CLOEXEC)); /* waits for its writer */
	if (p->listen_for_signals)
		assert_true(sd_bus_match_signal_async(link_bus(p->source), NULL, NULL, PEER_PATH, PEER_INTERFACE, "Log",
						      on_signal, NULL, p) >= 0);
}

static void on_lost(const Error *err, void *userdata)
{
	Pair *p = userdata;

	assert_null(p->lost);
	error_set(&p->lost, err->code, "%s", err->message);
	if (err->hint)
		error_hint(&p->lost, "%s", err->hint);
}

static void on_target_lost(const Error *err, void *userdata)
{
	(void)err;
	((Pair *)userdata)->target_lost = true;
}

static int on_ping(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Pair *p = userdata;

	p->pings++;
	if (!p->evasive)
		return link_ping_reply(m, NULL, error);
	assert_true(sd_bus_emit_signal(sd_bus_message_get_bus(m), PEER_PATH, PEER_INTERFACE, "Log", "is", 2, "x") >= 0);
	return 1;
}

/* The last words of a target: answers, and the end right behind them. */
static int on_finish(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Pair *p = userdata;

	(void)error;
	for (int i = 0; i < 3; i++)
		assert_true(sd_bus_emit_signal(sd_bus_message_get_bus(m), PEER_PATH, PEER_INTERFACE, "Log", "is", 2,
					       "x") >= 0);
	assert_true(sd_bus_reply_method_return(m, "") >= 0);
	p->target = link_free(p->target);
	return 1;
}

static int on_huge(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *reply = NULL;
	_cleanup_free_ char *huge = xcalloc(1, 2 << 20);

	(void)userdata;
	(void)error;
	assert_true(sd_bus_message_new_method_return(m, &reply) >= 0);
	assert_true(sd_bus_message_append_array(reply, 'y', huge, 2 << 20) >= 0);
	return sd_bus_send(NULL, reply, NULL);
}

static const sd_bus_vtable vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("Ping", "", "", on_ping, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Finish", "", "", on_finish, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Huge", "", "ay", on_huge, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_SIGNAL("Log", "is", 0),
	SD_BUS_VTABLE_END,
};

static int add_objects(sd_bus *bus, void *userdata)
{
	return sd_bus_add_object_vtable(bus, NULL, PEER_PATH, PEER_INTERFACE, vtable, userdata);
}

static int on_accept(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	static const LinkHandlers handlers = {.lost = on_target_lost};
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct pollfd in = {.fd = client, .events = POLLIN};
	Pair *p = userdata;
	char line[PREAMBLE_MAX];
	size_t have = 0;
	Preamble preamble;
	int r;

	(void)source;
	(void)revents;
	while ((r = preamble_read(client, line, &have)) == 0)
		assert_int_equal(poll(&in, 1, 20000), 1);
	assert_int_equal(r, 1);
	assert_int_equal(preamble_parse(line, &preamble, NULL), 0);
	assert_string_equal(preamble.name, "web1");
	assert_int_equal(fd_write_all(client, "vmferry/1 ok -\n", 15), 0);
	assert_int_equal(link_accept(p->event, client, 0, &handlers, p, add_objects, &p->target, NULL), 0);
	return 0;
}

static int setup(void **state)
{
	Pair *p = xcalloc(1, sizeof(*p));

	assert_true(sd_event_new(&p->event) >= 0);
	snprintf(p->socket, sizeof(p->socket), "/tmp/test-link.%d", (int)getpid());
	p->listening = unix_listen(p->socket, 0600);
	assert_true(sd_event_add_io(p->event, &p->accept, p->listening, EPOLLIN, on_accept, p) >= 0);
	*state = p;
	alarm(30); /* nothing here may wait for ever */
	return 0;
}

/* Runs the loop until every child is reaped. */
static int teardown(void **state)
{
	Pair *p = *state;

	p->source = link_free(p->source);
	p->target = link_free(p->target);
	while (waitpid(-1, NULL, WNOHANG | WNOWAIT) == 0 || errno != ECHILD) {
		siginfo_t si = {};

		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) < 0)
			break;
		assert_true(sd_event_run(p->event, 100000) >= 0);
	}
	sd_event_source_disable_unref(p->accept);
	fd_close(p->listening);
	unlink(p->socket);
	sd_event_unref(p->event);
	error_free(p->lost);
	error_free(p->failed);
	free(p);
	alarm(0);
	return 0;
}

static void run_until(Pair *p, const bool *what)
{
	while (!*what && !p->lost)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
}

static void run_until_lost(Pair *p)
{
	while (!p->lost)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
}

/* @command: a shell script; NULL: a relay to our own socket */
static void connect_to(Pair *p, const char *command, LinkOptions options)
{
	static const LinkHandlers handlers = {.up = on_up, .lost = on_lost};
	_cleanup_free_ char *text = options.want ? xstrdup("direct:hostb")
				    : command	 ? xasprintf("exec:sh -c '%s'", command)
						 : xasprintf("exec:%s --relay %s", program, p->socket);
	_cleanup_(destination_freep)
	Destination *d = NULL;
	_cleanup_error_ Error *err = NULL;

	assert_int_equal(destination_parse(text, &d, &err), 0);
	options.destination = d;
	options.preamble = (Preamble){.data = options.expect_token != NULL, .name = "web1", .id = ID, .token = TOKEN};
	if (!options.connect_usec)
		options.connect_usec = 20 * USEC_PER_SEC;
	assert_int_equal(link_connect(p->event, &options, &handlers, p, &p->source, &err), 0);
	assert_null(link_bus(p->source));
}

static int on_reply(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Pair *p = userdata;

	(void)error;
	if (sd_bus_message_is_method_error(m, NULL))
		error_set(&p->failed, -EIO, "%s", sd_bus_message_get_error(m)->name);
	else
		p->replies++;
	return 0;
}

static void call(Pair *p, const char *method)
{
	assert_true(sd_bus_call_method_async(link_bus(p->source), NULL, NULL, PEER_PATH, PEER_INTERFACE, method,
					     on_reply, p, "") >= 0);
}

/* ---- tests ---- */

static void test_calls(void **state)
{
	Pair *p = *state;

	connect_to(p, NULL, (LinkOptions){});
	run_until(p, &p->up);
	for (int i = 0; i < 50; i++)
		call(p, "Ping");
	while (p->replies < 50)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	assert_null(p->lost);
	p->source = link_free(p->source);
	run_until(p, &p->target_lost);
	assert_true(p->target_lost);
}

/* What is sent last, Abort or Forget, still arrives. */
static void test_last_words_of_the_source(void **state)
{
	Pair *p = *state;

	connect_to(p, NULL, (LinkOptions){});
	run_until(p, &p->up);
	call(p, "Ping");
	while (!p->replies)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	call(p, "Ping");
	p->source = link_free(p->source);
	run_until(p, &p->target_lost);
	assert_int_equal(p->pings, 2);
}

/* An answer with the end of the stream right behind it is an answer. */
static void test_last_words_of_the_target(void **state)
{
	Pair *p = *state;

	p->listen_for_signals = true;
	connect_to(p, NULL, (LinkOptions){});
	run_until(p, &p->up);
	call(p, "Finish");
	run_until_lost(p);
	assert_null(p->failed);
	assert_int_equal(p->replies, 4);
	assert_null(link_bus(p->source));
}

/* All at once: the first line, authentication, three signals and the end. @path: a file with the bytes */
static void write_last_words(const char *path)
{
	static const char begin[] = "vmferry/1 ok -\nOK " ID "\r\n";
	_cleanup_free_ uint8_t *bytes = NULL;
	uint8_t all[4096];
	sd_bus_message *m = NULL;
	WireBus wire;
	size_t len;

	wire_bus_open(&wire, true);
	assert_true(sd_bus_message_new_signal(wire.bus, &m, PEER_PATH, PEER_INTERFACE, "Log") >= 0);
	assert_true(sd_bus_message_append(m, "is", 2, "text") >= 0);
	bytes = wire_bus_bytes(&wire, m, &len);
	sd_bus_message_unref(m);
	wire_bus_close(&wire);
	memcpy(all, begin, sizeof(begin) - 1);
	for (size_t i = 0; i < 3; i++)
		memcpy(all + sizeof(begin) - 1 + i * len, bytes, len);
	assert_int_equal(file_write(path, all, sizeof(begin) - 1 + 3 * len, 0600, false), 0);
}

static void test_last_words_at_once(void **state)
{
	_cleanup_free_ char *command = NULL, *path = NULL, *fifo = NULL;
	Pair *p = *state;

	path = xasprintf("%s.bytes", p->socket);
	p->fifo = fifo = xasprintf("%s.closed", p->socket);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	command = xasprintf("cat %s; exec <&- >&-; echo >%s; exec sleep 1000", path, fifo);
	write_last_words(path);
	p->listen_for_signals = true;
	connect_to(p, command, (LinkOptions){});
	run_until_lost(p);
	assert_int_equal(p->replies, 3);
	unlink(path);
	unlink(fifo);
}

static void test_huge_message(void **state)
{
	Pair *p = *state;

	connect_to(p, NULL, (LinkOptions){});
	run_until(p, &p->up);
	call(p, "Huge");
	run_until_lost(p);
	assert_int_equal(p->lost->code, -EMSGSIZE);
	assert_int_equal(p->replies, 0);
}

/* Up, and then not a word: letting go of it must not wait for one. */
static void test_free_of_a_stuck_link(void **state)
{
	Pair *p = *state;

	connect_to(p, "echo vmferry/1 ok -; exec cat >/dev/null", (LinkOptions){});
	run_until(p, &p->up);
	call(p, "Ping");
	p->source = link_free(p->source);
}

/* The same when it does not even read, with more on the way than fits. */
static void test_free_of_a_full_link(void **state)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *m = NULL;
	_cleanup_free_ char *bytes = xcalloc(1, 500000);
	Pair *p = *state;

	connect_to(p, "echo vmferry/1 ok -; printf \"OK " ID "\\r\\n\"; exec sleep 1000", (LinkOptions){});
	run_until(p, &p->up);
	for (int i = 0; i < 8; i++) {
		m = sd_bus_message_unref(m);
		assert_true(sd_bus_message_new_method_call(link_bus(p->source), &m, NULL, PEER_PATH, PEER_INTERFACE,
							   "Delta") >= 0);
		assert_true(sd_bus_message_append_array(m, 'y', bytes, 500000) >= 0);
		assert_true(sd_bus_send(link_bus(p->source), m, NULL) >= 0);
	}
	assert_true(sd_event_run(p->event, 0) >= 0);
	p->source = link_free(p->source);
}

static void test_silence(void **state)
{
	Pair *p = *state;

	connect_to(p, "echo vmferry/1 ok -; exec cat >/dev/null", (LinkOptions){.silence_usec = 150 * USEC_PER_MSEC});
	run_until_lost(p);
	assert_true(p->up);
	assert_int_equal(p->lost->code, -ETIMEDOUT);
	assert_non_null(strstr(p->lost->message, "silent"));
}

/* Pings that are answered keep it; how they end shows that they were sent. */
static void test_pings(void **state)
{
	Pair *p = *state;

	connect_to(p, NULL, (LinkOptions){.silence_usec = 60 * USEC_PER_MSEC});
	run_until(p, &p->up);
	while (p->pings < 8)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	assert_null(p->lost);
}

/* Whatever is heard keeps it, too: an answer may be late behind what else goes through the same ssh. */
static void test_signs_of_life(void **state)
{
	Pair *p = *state;

	p->evasive = true;
	connect_to(p, NULL, (LinkOptions){.silence_usec = 60 * USEC_PER_MSEC});
	while (p->pings < 8 && !p->lost)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	assert_null(p->lost);
}

static void test_refusals(void **state)
{
	static const struct {
		const char *command;
		int code;
		const char *message, *hint;
	} rows[] = {
		{"printf \"vmferry/1 error no such VM\\\\tmake one\\\\n\"; exec cat >/dev/null", -EREMOTEIO,
		 "no such VM", "make one"},
		{"echo Welcome to hostb; exec cat >/dev/null", -EPROTO, "Welcome to hostb", "print nothing"},
		{"echo one; echo Permission denied >&2; exit 255", -EPROTO, "one", NULL},
		{"echo Permission denied >&2; exit 255", -ECONNREFUSED, "Permission denied", "key is not accepted"},
		{"exit 127", -ECONNREFUSED, "status 127", "not installed"},
		{"kill -9 $$", -ECONNREFUSED, "signal 9", NULL},
		{"echo vmferry/1 ok -; echo hello; exec cat >/dev/null", -EBADMSG, "no D-Bus", NULL},
	};
	Pair *p = *state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		connect_to(p, rows[i].command, (LinkOptions){});
		run_until_lost(p);
		if (!strstr(p->lost->message, rows[i].message) ||
		    (rows[i].hint && (!p->lost->hint || !strstr(p->lost->hint, rows[i].hint))))
			fail_msg("%s: %s (%s)", rows[i].command, p->lost->message, p->lost->hint);
		assert_true(p->lost->code == rows[i].code || rows[i].code == -ECONNREFUSED);
		p->source = link_free(p->source);
		error_free(TAKE_PTR(p->lost));
	}
}

static void test_connect_deadline(void **state)
{
	Pair *p = *state;

	connect_to(p, "exec cat >/dev/null", (LinkOptions){.connect_usec = 100 * USEC_PER_MSEC});
	run_until_lost(p);
	assert_int_equal(p->lost->code, -ETIMEDOUT);
	assert_false(p->up);
}

/* sshd turns some of many logins away: asked again until the time is over. */
static void test_busy_server(void **state)
{
	Pair *p = *state;
	_cleanup_free_ char *log = xasprintf("%s.log", p->socket), *command = NULL;

	command = xasprintf("echo x >>%s; test $(wc -l <%s) -ge 3 && echo vmferry/1 ok - && exec cat >/dev/null; "
			    "echo kex_exchange_identification: reset >&2; exit 255",
			    log, log);
	connect_to(p, command, (LinkOptions){});
	run_until(p, &p->up);
	assert_null(p->lost);
	unlink(log);
}

/* More on standard error than a pipe holds does not stop it. */
static void test_talkative(void **state)
{
	Pair *p = *state;

	connect_to(p,
		   "head -c 1000000 /dev/zero | tr \"\\\\0\" x >&2; echo >&2; echo the end >&2; echo vmferry/1 ok -; "
		   "exec cat >/dev/null",
		   (LinkOptions){});
	run_until(p, &p->up);
	assert_true(p->up);
	link_cut(p->source);
	run_until_lost(p);
	assert_non_null(strstr(p->lost->message, "the end"));
}

static void test_data(void **state)
{
	Pair *p = *state;
	char bytes[8];
	int fd;

	connect_to(p, "read line; echo vmferry/1 ok " TOKEN "; exec cat", (LinkOptions){.expect_token = TOKEN});
	run_until(p, &p->up);
	fd = link_take_fd(p->source);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "through", 8), 8);
	assert_int_equal(fd_nonblock(fd, false), 0);
	assert_int_equal(fd_read_all(fd, bytes, 8), 8);
	assert_string_equal(bytes, "through");
	fd_close(fd);
	p->source = link_free(p->source);
	connect_to(p, "read line; echo vmferry/1 ok " ID "; exec cat", (LinkOptions){.expect_token = TOKEN});
	run_until_lost(p);
	assert_int_equal(p->lost->code, -EPROTO);
}

/* ---- the relay: our standard input and output, and a socket ---- */

static int relay(const char *path)
{
	int fd = unix_connect(path);
	struct pollfd p[2] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
	char data[65536];

	if (fd < 0)
		return 1;
	while (poll(p, 2, -1) > 0)
		for (int i = 0; i < 2; i++) {
			ssize_t n = p[i].revents ? read(p[i].fd, data, sizeof(data)) : -1;

			if (n == 0 || (n > 0 && fd_write_all(i ? STDOUT_FILENO : fd, data, (size_t)n) < 0))
				return 0;
		}
	return 1;
}

/* ---- a stream that somebody else makes ---- */

static int on_want(const char *stream, bool data, void *userdata, Error **err)
{
	Pair *p = userdata;

	(void)err;
	assert_int_equal(data, p->wants_data);
	assert_true(text_is_id(stream));
	memcpy(p->wanted, stream, sizeof(p->wanted));
	p->wants++;
	return 0;
}

static void test_given(void **state)
{
	Pair *p = *state;
	int fd;

	connect_to(p, NULL, (LinkOptions){.want = on_want, .want_userdata = p});
	assert_int_equal(p->wants, 1);
	assert_true(link_wants(p->source, p->wanted));
	assert_true(link_wants(p->source, NULL));
	assert_false(link_wants(p->source, ID));
	fd = unix_connect(p->socket);
	assert_int_equal(link_give(p->source, fd, NULL), 0);
	assert_int_equal(link_give(p->source, dup(fd), NULL), -EALREADY);
	run_until(p, &p->up);
	assert_false(link_wants(p->source, NULL));
	call(p, "Ping");
	while (p->replies < 1)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	p->target = link_free(p->target);
	run_until_lost(p);
	assert_non_null(strstr(p->lost->message, "relay"));
}

/* What is no stream socket is nothing to talk over. */
static void test_given_nonsense(void **state)
{
	Pair *p = *state;
	_cleanup_error_ Error *err = NULL;
	int pipes[2];

	connect_to(p, NULL, (LinkOptions){.want = on_want, .want_userdata = p});
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	assert_int_equal(link_give(p->source, pipes[1], &err), -ENOTSOCK);
	fd_close(pipes[0]);
}

/* A busy server: it is asked for under another name, after a pause. What is refused otherwise is lost. */
static void test_not_given(void **state)
{
	Pair *p = *state;
	_cleanup_error_ Error *err = NULL;
	char first[33];

	connect_to(p, NULL, (LinkOptions){.want = on_want, .want_userdata = p});
	memcpy(first, p->wanted, sizeof(first));
	error_set(&err, -ECONNREFUSED, "no way there");
	link_refuse(p->source, true, err);
	while (p->wants < 2 && !p->lost)
		assert_true(sd_event_run(p->event, UINT64_MAX) >= 0);
	assert_null(p->lost);
	assert_string_not_equal(first, p->wanted);
	assert_false(link_wants(p->source, first));
	link_refuse(p->source, false, err);
	assert_non_null(p->lost);
	assert_string_equal(p->lost->message, "no way there");
	assert_false(link_wants(p->source, NULL));
}

static void test_never_given(void **state)
{
	Pair *p = *state;

	connect_to(p, NULL, (LinkOptions){.want = on_want, .want_userdata = p, .connect_usec = 50 * USEC_PER_MSEC});
	run_until_lost(p);
	assert_int_equal(p->lost->code, -ETIMEDOUT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(test_calls),
		TEST(test_last_words_of_the_source),
		TEST(test_last_words_of_the_target),
		TEST(test_last_words_at_once),
		TEST(test_huge_message),
		TEST(test_free_of_a_stuck_link),
		TEST(test_free_of_a_full_link),
		TEST(test_silence),
		TEST(test_pings),
		TEST(test_signs_of_life),
		TEST(test_refusals),
		TEST(test_connect_deadline),
		TEST(test_busy_server),
		TEST(test_talkative),
		TEST(test_data),
		TEST(test_given),
		TEST(test_given_nonsense),
		TEST(test_not_given),
		TEST(test_never_given),
	};
	sigset_t mask;

	if (argc > 2 && streq(argv[1], "--relay"))
		return relay(argv[2]);
	program = process_own_binary();
	sigemptyset(&mask);
	sigaddset(&mask, SIGCHLD);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
