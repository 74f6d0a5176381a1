/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "peer/preamble.h"

#define ID "0123456789abcdef0123456789abcdef"
#define TOKEN "fedcba9876543210fedcba9876543210"

static void test_parse(void **state)
{
	static const struct {
		const char *line;
		bool data;
		const char *name, *token, *peer;
	} rows[] = {
		{"vmferry/1 peer web1 " ID " -", false, "web1", "", ""},
		{"vmferry/1 peer web1 " ID, false, "web1", "", ""},
		{"vmferry/1 peer web1 " ID " - host-a", false, "web1", "", "host-a"},
		{"vmferry/1 data w.e-b_1 " ID " " TOKEN, true, "w.e-b_1", TOKEN, ""},
		{"vmferry/1 data web1 " ID " " TOKEN " host-a", true, "web1", TOKEN, "host-a"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_error_ Error *err = NULL;
		Preamble p;

		assert_int_equal(preamble_parse(rows[i].line, &p, &err), 0);
		assert_int_equal(p.data, rows[i].data);
		assert_string_equal(p.name, rows[i].name);
		assert_string_equal(p.id, ID);
		assert_string_equal(p.token, rows[i].token);
		assert_string_equal(p.peer, rows[i].peer);
	}
}

static void test_refused(void **state)
{
	static const char *const rows[] = {
		"",
		"vmferry/2 peer web1 " ID " -",
		"vmferry/1",
		"vmferry/1 ",
		"vmferry/1 peer",
		"vmferry/1 peer web1",
		"vmferry/1 peer web1 0123",
		"vmferry/1 peer web1 0123456789ABCDEF0123456789ABCDEF -",
		"vmferry/1 peer ../x " ID " -",
		"vmferry/1 peer -x " ID " -",
		"vmferry/1 peer aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa " ID " -",
		"vmferry/1 data web1 " ID,
		"vmferry/1 data web1 " ID " -",
		"vmferry/1 data web1 " ID " xyz",
		"vmferry/1 talk web1 " ID " -",
		"vmferry/1 peer web1 " ID " - "
		"0123456789012345678901234567890123456789012345678901234567890123456789",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_error_ Error *err = NULL;
		Preamble p = {.name = "untouched"};

		assert_int_equal(preamble_parse(rows[i], &p, &err), -EPROTO);
		assert_non_null(err);
		assert_string_equal(p.name, "untouched");
	}
}

static void test_text(void **state)
{
	static const Preamble rows[] = {
		{.name = "web1", .id = ID},
		{.name = "web1", .id = ID, .peer = "host-a"},
		{.data = true, .name = "web1", .id = ID, .token = TOKEN},
		{.data = true, .name = "web1", .id = ID, .token = TOKEN, .peer = "host-a"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_free_ char *text = preamble_text(&rows[i]);
		Preamble back;

		assert_int_equal(text[strlen(text) - 1], '\n');
		text[strlen(text) - 1] = '\0';
		assert_int_equal(preamble_parse(text, &back, NULL), 0);
		assert_memory_equal(&back, &rows[i], sizeof(back));
	}
}

static void test_answer(void **state)
{
	_cleanup_error_ Error *refusal = NULL, *err = NULL, *garbage = NULL;
	_cleanup_free_ char *text = NULL;
	char token[33] = "untouched";

	(void)state;
	assert_int_equal(preamble_answer("vmferry/1 ok -", token, NULL), 0);
	assert_string_equal(token, "");
	assert_int_equal(preamble_answer("vmferry/1 ok " TOKEN, token, NULL), 0);
	assert_string_equal(token, TOKEN);
	assert_int_equal(preamble_answer("vmferry/1 ok nothing", token, NULL), -EPROTO);
	assert_int_equal(preamble_answer("Last login: today\x1b", token, &garbage), -EPROTO);
	assert_non_null(strstr(garbage->message, "Last login: today?"));
	error_set(&refusal, -EPERM, "no\tsuch\nVM");
	error_hint(&refusal, "make one");
	text = preamble_refusal(refusal);
	assert_string_equal(text, "vmferry/1 error no?such?VM\tmake one\n");
	text[strlen(text) - 1] = '\0';
	assert_int_equal(preamble_answer(text, token, &err), -EREMOTEIO);
	assert_string_equal(err->message, "no?such?VM");
	assert_string_equal(err->hint, "make one");
	assert_int_equal(preamble_answer("vmferry/1 error ", token, NULL), -EREMOTEIO);
	assert_int_equal(preamble_answer("vmferry/1 error\n", token, NULL), -EPROTO);
}

static void test_long_refusal(void **state)
{
	_cleanup_free_ char *huge = xcalloc(1, 5001), *text = NULL, *none = preamble_refusal(NULL);
	_cleanup_error_ Error *err = NULL;

	(void)state;
	memset(huge, 'x', 5000);
	error_set(&err, -EPERM, "%s", huge);
	error_hint(&err, "%s", huge);
	text = preamble_refusal(err);
	assert_true(strlen(text) < PREAMBLE_MAX);
	assert_string_equal(none, "vmferry/1 error refused\t\n");
}

/* One byte at a time, and with what follows the line in the same packet. */
static void test_read(void **state)
{
	static const char text[] = "vmferry/1 peer web1 " ID " -\n";
	char line[PREAMBLE_MAX], rest[16];
	size_t have = 0;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	assert_int_equal(preamble_read(pair[0], line, &have), 0);
	for (size_t i = 0; i < sizeof(text) - 1; i++) {
		assert_int_equal(write(pair[1], text + i, 1), 1);
		assert_int_equal(preamble_read(pair[0], line, &have), i == sizeof(text) - 2);
	}
	assert_memory_equal(line, text, sizeof(text) - 2);
	assert_int_equal(line[sizeof(text) - 2], 0);
	have = 0;
	assert_int_equal(fd_write_all(pair[1], "one\ntwo\n", 8), 0);
	assert_int_equal(preamble_read(pair[0], line, &have), 1);
	assert_string_equal(line, "one");
	assert_int_equal(read(pair[0], rest, sizeof(rest)), 4);
	assert_memory_equal(rest, "two\n", 4);
	fd_close(pair[1]);
	assert_int_equal(preamble_read(pair[0], line, &have), -EPIPE);
	fd_close(pair[0]);
}

static int read_line(const char *data, size_t len)
{
	char line[PREAMBLE_MAX];
	size_t have = 0;
	int pair[2], r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	assert_int_equal(fd_write_all(pair[1], data, len), 0);
	do
		r = preamble_read(pair[0], line, &have);
	while (r == 0 && recv(pair[0], line, 1, MSG_PEEK) > 0);
	fd_close(pair[0]);
	fd_close(pair[1]);
	return r;
}

static void test_read_limits(void **state)
{
	_cleanup_free_ char *data = xcalloc(1, 4 * PREAMBLE_MAX);

	(void)state;
	memset(data, 'x', 4 * PREAMBLE_MAX);
	assert_int_equal(read_line(data, PREAMBLE_MAX), 0);
	assert_int_equal(read_line(data, PREAMBLE_MAX + 1), -EPROTO);
	assert_int_equal(read_line(data, 4 * PREAMBLE_MAX), -EPROTO);
	data[PREAMBLE_MAX - 1] = '\n';
	assert_int_equal(read_line(data, PREAMBLE_MAX), 1);
	data[PREAMBLE_MAX - 1] = 'x';
	data[PREAMBLE_MAX] = '\n';
	assert_int_equal(read_line(data, PREAMBLE_MAX + 1), -EPROTO);
	assert_int_equal(read_line("a\0b\n", 4), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),	    cmocka_unit_test(test_refused),	 cmocka_unit_test(test_text),
		cmocka_unit_test(test_answer),	    cmocka_unit_test(test_long_refusal), cmocka_unit_test(test_read),
		cmocka_unit_test(test_read_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
