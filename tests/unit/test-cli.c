/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

#include <cmocka.h>

#include "basic/text.h"
#include "cli/dest.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"

#define BIG 18446744073709551615ULL

static void test_duration(_unused_ void **state)
{
	static const struct {
		const char *text;
		uint64_t unit;
		int r;
		uint64_t usec;
	} cases[] = {
		{"300", USEC_PER_MSEC, 0, 300000},
		{"300ms", USEC_PER_SEC, 0, 300000},
		{"2s", USEC_PER_MSEC, 0, 2000000},
		{"90", USEC_PER_SEC, 0, 90000000},
		{"5m", 1, 0, 300000000},
		{"1h", 1, 0, 3600000000},
		{"0", 1, 0, 0},
		{"", 1, -EINVAL, 7},
		{"s", 1, -EINVAL, 7},
		{"-1", 1, -EINVAL, 7},
		{"+1", 1, -EINVAL, 7},
		{" 1", 1, -EINVAL, 7},
		{"1 s", 1, -EINVAL, 7},
		{"1.5s", 1, -EINVAL, 7},
		{"1d", 1, -EINVAL, 7},
		{"18446744073709551615", USEC_PER_SEC, -ERANGE, 7},
		{"18446744073709551616", 1, -ERANGE, 7},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		uint64_t usec = 7;

		assert_int_equal(text_parse_duration(cases[i].text, cases[i].unit, &usec), cases[i].r);
		assert_int_equal(usec, cases[i].usec);
	}
}

static const OptionSpec options[] = {
	{"flag", 'f', OPTION_FLAG, NULL, "flag", "a flag"},
	{"no-live", 0, OPTION_NO, NULL, "live", "not live"},
	{"switch", 0, OPTION_SWITCH, "on|off", "switch", "a switch"},
	{"text", 't', OPTION_TEXT, "TEXT", "text", "a text"},
	{"choice", 0, OPTION_CHOICE, "a|bc|d", "choice", "a choice"},
	{"rate", 'r', OPTION_RATE, "RATE", "rate", "a rate"},
	{"ms", 0, OPTION_MSEC, "MS", "ms", "a time"},
	{"sec", 0, OPTION_SEC, "S", "sec", "a time"},
	{"count", 0, OPTION_COUNT, "N", "count", "a number"},
	{"file", 0, OPTION_FILE, "FILE", "file", "a file"},
	{"file-text", 0, OPTION_TEXT, "TEXT", "file", NULL},
	{NULL},
};

/* Each value alone: what it becomes, or NULL for an error, which must have a hint. */
static void test_values(_unused_ void **state)
{
	static const struct {
		const char *name, *value, *json;
	} cases[] = {
		{"flag", NULL, "{\"flag\":true}"},
		{"no-live", NULL, "{\"live\":false}"},
		{"switch", "on", "{\"switch\":true}"},
		{"switch", "off", "{\"switch\":false}"},
		{"switch", "yes", NULL},
		{"text", "x y", "{\"text\":\"x y\"}"},
		{"text", "", NULL},
		{"choice", "bc", "{\"choice\":\"bc\"}"},
		{"choice", "d", "{\"choice\":\"d\"}"},
		{"choice", "b", NULL},
		{"choice", "a|bc", NULL},
		{"choice", "", NULL},
		{"rate", "500M", "{\"rate\":524288000}"},
		{"rate", "1g", "{\"rate\":1073741824}"},
		{"rate", "0", NULL},
		{"rate", "5X", NULL},
		{"rate", "-1", NULL},
		{"rate", "9223372036854775808", NULL},
		{"ms", "300", "{\"ms\":300}"},
		{"ms", "2s", "{\"ms\":2000}"},
		{"ms", "0", NULL},
		{"ms", "fast", NULL},
		{"sec", "90", "{\"sec\":90}"},
		{"sec", "5m", "{\"sec\":300}"},
		{"sec", "10ms", NULL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_object *values = json_object_new_object();
		_cleanup_error_ Error *err = NULL;
		int r = option_value(option_find(options, cases[i].name), cases[i].value, values, &err);

		assert_int_equal(r, cases[i].json ? 0 : -EINVAL);
		assert_string_equal(json_text(values), cases[i].json ? cases[i].json : "{}");
		assert_true(!err == !!cases[i].json && (!err || err->hint));
	}
}

/* Whole command lines, split at blanks. */
static void test_parse(_unused_ void **state)
{
	static const struct {
		const char *line;
		bool stop;
		int r;
		const char *json, *words;
	} cases[] = {
		{"x", false, 1, "{}", ""},
		{"x a b", false, 1, "{}", ""},
		{"x a -f b", false, 2, "{\"flag\":true}", "--flag "},
		{"x a -f b", true, 1, "{}", ""},
		{"x -f -r 1K --text=z a", false, 5, "{\"flag\":true,\"rate\":1024,\"text\":\"z\"}",
		 "--flag --rate=1K --text=z "},
		{"x --te z -- --flag", false, 4, "{\"text\":\"z\"}", "--text=z "},
		{"x --text --flag", false, 3, "{\"text\":\"--flag\"}", "--text=--flag "},
		{"x --what", false, -EINVAL, "{}", ""},
		{"x -q", false, -EINVAL, "{}", ""},
		{"x --text", false, -EINVAL, "{}", ""},
		{"x -t", false, -EINVAL, "{}", ""},
		{"x --flag=1", false, -EINVAL, "{}", ""},
		{"x --rate=no", false, -EINVAL, "{}", ""},
		{"x --file=/nonexistent", false, -ENOENT, "{}", ""},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_object *values = json_object_new_object();
		_cleanup_strv_ char **argv = NULL, **words = NULL;
		_cleanup_free_ char *joined = xstrdup("");
		_cleanup_error_ Error *err = NULL;
		const OptionSet sets[] = {{NULL, values}, {options, values}, {NULL, NULL}};

		assert_int_equal(strv_split_words(cases[i].line, &argv), 0);
		assert_int_equal(options_parse(sets, (int)strv_length(argv), argv, cases[i].stop, &words, &err),
				 cases[i].r);
		assert_string_equal(json_text(values), cases[i].json);
		for (size_t j = 0; words && words[j]; j++) {
			_cleanup_free_ char *before = joined;

			joined = xasprintf("%s%s ", before, words[j]);
		}
		assert_string_equal(joined, cases[i].words);
		assert_true(!err == (cases[i].r >= 0));
	}
}

/* A file goes to another host as its text. */
static void test_file_words(_unused_ void **state)
{
	_cleanup_json_ json_object *values = json_object_new_object();
	_cleanup_strv_ char **words = NULL;
	char path[] = "/tmp/test-cli.XXXXXX", *argv[3] = {(char[]){"x"}, NULL, NULL};
	_cleanup_free_ char *option = NULL;
	const OptionSet sets[] = {{options, values}, {NULL, NULL}};
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	assert_int_equal(dprintf(fd, "cpus = 2\n"), 9);
	close(fd);
	option = xasprintf("--file=%s", path);
	argv[1] = option;
	assert_int_equal(options_parse(sets, 2, argv, false, &words, NULL), 2);
	assert_string_equal(json_text(values), "{\"file\":\"cpus = 2\\n\"}");
	assert_string_equal(words[0], "--file-text=cpus = 2\n");
	unlink(path);
}

static void test_format(_unused_ void **state)
{
	static const struct {
		uint64_t v;
		const char *size, *msec;
	} cases[] = {
		{0, "0 B", "0 ms"},
		{1, "1 B", "1 ms"},
		{999, "999 B", "999 ms"},
		{1023, "1023 B", "1.0 s"},
		{1024, "1.0 KiB", "1.0 s"},
		{1536, "1.5 KiB", "1.5 s"},
		{9999, "9.8 KiB", "9.9 s"},
		{10200, "10 KiB", "10 s"},
		{125000, "122 KiB", "2 min 5 s"},
		{11040000, "11 MiB", "3 h 4 min"},
		{1048575, "1.0 MiB", "17 min 28 s"},
		{BIG, "16 EiB", NULL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_free_ char *size = format_size(cases[i].v), *msec = format_msec(cases[i].v);

		assert_string_equal(size, cases[i].size);
		if (cases[i].msec)
			assert_string_equal(msec, cases[i].msec);
	}
	for (uint64_t n = 0; n < 3; n++) {
		_cleanup_free_ char *count = format_count(n, "connection");

		assert_string_equal(count, n == 0 ? "0 connections" : n == 1 ? "1 connection" : "2 connections");
	}
}

static void test_progress(_unused_ void **state)
{
	static const struct {
		const char *json, *text;
	} cases[] = {
		{"{\"phase\":\"Perform\",\"percent\":43,\"rate\":641728512,\"dirty_rate\":20971520,\"left_ms\":3000,"
		 "\"predicted_pause_ms\":45}",
		 "Perform 43 %  612 MiB/s  dirty 20 MiB/s  3.0 s left  pause ~45 ms"},
		{"{\"phase\":\"Begin\"}", "Begin"},
		{"{\"phase\":\"Perform\",\"percent\":99.4,\"rate\":-1}", "Perform 99 %"},
		{"{\"phase\":\"a\\u001b[2J\",\"percent\":\"x\"}", "a?[2J 0 %"},
		{"{}", ""},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_object *o = json_parse(cases[i].json, strlen(cases[i].json));
		_cleanup_free_ char *text = progress_text(o);

		assert_string_equal(text, cases[i].text);
	}
}

static void test_text(_unused_ void **state)
{
	static const struct {
		const char *text, *safe;
	} cases[] = {
		{"plain", "plain"},
		{"a\n\tb\x7f\x1b[2J", "a??b??[2J"},
		{"write { \xe2\x80\xa6 }", "write { \xe2\x80\xa6 }"},
		{"\xc3\xa9\xf0\x9f\x9a\xa2", "\xc3\xa9\xf0\x9f\x9a\xa2"},
		{"\xc2\x9b"
		 "2J",
		 "??2J"},
		{"\xc0\x80\xe0\x80\x80", "?????"},
		{"\xed\xa0\x80\xf4\x90\x80\x80\xf5", "????????"},
		{"cut \xe2\x80", "cut ??"},
		{"\xff\xe2x", "??x"},
	};
	_cleanup_free_ char *endless = xcalloc(1, 5000), *cut = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_free_ char *safe = format_text(cases[i].text);

		assert_string_equal(safe, cases[i].safe);
	}
	memset(endless, 'x', 4999);
	cut = format_text(endless);
	assert_int_equal(strlen(cut), 1024);
}

static void test_ms(_unused_ void **state)
{
	static const struct {
		const char *json, *text;
	} cases[] = {
		{"[45]", "45 ms"},     {"[45.04]", "45.0 ms"}, {"[0.05]", "0.1 ms"},
		{"[99.96]", "100 ms"}, {"[3200.9]", "3.2 s"},  {"[-1.5]", "0 ms"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_object *o = json_parse(cases[i].json, strlen(cases[i].json));
		_cleanup_free_ char *text = format_ms(json_object_array_get_idx(o, 0));

		assert_string_equal(text, cases[i].text);
	}
}

static void test_time(_unused_ void **state)
{
	static const struct {
		const char *json, *text;
	} cases[] = {
		{"[1740000000]", "2025-02-19 21:20:00"},
		{"[1740000000.5]", "2025-02-19 21:20:00"},
		{"[\"now\\n\"]", "now?"},
		{"[null]", ""},
	};

	setenv("TZ", "UTC", 1);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_json_ json_object *o = json_parse(cases[i].json, strlen(cases[i].json));
		_cleanup_free_ char *text = format_time(json_object_array_get_idx(o, 0));

		assert_string_equal(text, cases[i].text);
	}
}

/* login: what ssh is given for ssh:// addresses; NULL: refused or no such address */
static void test_dest(_unused_ void **state)
{
	static const struct {
		const char *dest;
		int r;
		const char *login, *port;
	} cases[] = {
		{"b", 0, NULL, NULL},
		{"b.example.org", 0, NULL, NULL},
		{"10.0.0.2", 0, NULL, NULL},
		{"ssh://b", 0, "b", NULL},
		{"ssh://b/", 0, "b", NULL},
		{"ssh://root@b:2222", 0, "root@b", "2222"},
		{"ssh://root@[fd00::1]:22", 0, "root@fd00::1", "22"},
		{"ssh://[fe80::1%eth0]", 0, "fe80::1%eth0", NULL},
		{"exec:sh -c 'x y'", 0, NULL, NULL},
		{"", -EINVAL, NULL, NULL},
		{"-oProxyCommand=x", -EINVAL, NULL, NULL},
		{"ssh://-oProxyCommand=x", -EINVAL, NULL, NULL},
		{"ssh://-l@b", -EINVAL, NULL, NULL},
		{"ssh://a b", -EINVAL, NULL, NULL},
		{"ssh://", -EINVAL, NULL, NULL},
		{"ssh://@b", -EINVAL, NULL, NULL},
		{"ssh://b:0", -EINVAL, NULL, NULL},
		{"ssh://b:65536", -EINVAL, NULL, NULL},
		{"ssh://b:", -EINVAL, NULL, NULL},
		{"ssh://b:22x", -EINVAL, NULL, NULL},
		{"ssh://[fd00::1", -EINVAL, NULL, NULL},
		{"ssh://[fd00::1]x", -EINVAL, NULL, NULL},
		{"ssh://b/path", -EINVAL, NULL, NULL},
		{"tcp://b", -EINVAL, NULL, NULL},
		{"root@b", -EINVAL, NULL, NULL},
		{"b:22", -EINVAL, NULL, NULL},
		{"b;reboot", -EINVAL, NULL, NULL},
		{"exec:", -EINVAL, NULL, NULL},
		{"exec:a 'b", -EINVAL, NULL, NULL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_free_ char *login = NULL, *port = NULL;
		_cleanup_error_ Error *err = NULL;

		assert_int_equal(dest_check(cases[i].dest, &err), cases[i].r);
		assert_true(!err == (cases[i].r == 0) && (!err || err->hint));
		assert_int_equal(ssh_url_parse(cases[i].dest, &login, &port, NULL), cases[i].login ? 0 : -EINVAL);
		assert_true(streq_null(login, cases[i].login) && streq_null(port, cases[i].port));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_duration),   cmocka_unit_test(test_values), cmocka_unit_test(test_parse),
		cmocka_unit_test(test_file_words), cmocka_unit_test(test_format), cmocka_unit_test(test_progress),
		cmocka_unit_test(test_time),	   cmocka_unit_test(test_dest),	  cmocka_unit_test(test_text),
		cmocka_unit_test(test_ms),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
