/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <inttypes.h>
#include <sys/socket.h>

#include "basic/fs.h"
#include "basic/text.h"
#include "peer/messages.h"
#include "wire-bus.h"

/* Every table, and how many fields version 1 of its message had when it was released: golden/FILE has them all. */
static const struct {
	const CookieTable *table;
	const char *file;
	size_t v1_fields;
} tables[] = {
	{&hello_cookie, "hello", 8},	       {&hello_reply, "hello-reply", 11}, {&prepare_cookie, "prepare", 16},
	{&prepare_reply, "prepare-reply", 12}, {&finish_cookie, "finish", 5},	  {&outcome_reply, "outcome-reply", 21},
};

static const char *golden_dir, *protocol;

/* ---- samples: a value for every field, made from its name ---- */

static void *member(const CookieField *field, void *data)
{
	return (char *)data + field->offset;
}

static char *sample_string(const CookieField *field, size_t max)
{
	_cleanup_free_ char *text = xasprintf("the %s", field->name);

	return text_clean(text, max);
}

static char **sample_strv(const CookieField *field)
{
	char **v = NULL;

	if (streq(field->name, COOKIE_MANDATORY)) {
		strv_add(&v, "conntrack");
		return v;
	}
	strv_push(&v, sample_string(field, COOKIE_WORD_MAX));
	strv_add(&v, "%s", "");
	strv_add(&v, "third");
	return v;
}

static void *sample_new(const CookieTable *table)
{
	void *data = xcalloc(1, table->size);

	for (size_t i = 0; i < table->n_fields; i++) {
		const CookieField *field = &table->fields[i];

		if (field->type == COOKIE_STRING)
			*(char **)member(field, data) = sample_string(field, field->max);
		else if (field->type == COOKIE_STRV)
			*(char ***)member(field, data) = sample_strv(field);
		else if (field->type == COOKIE_U64)
			*(uint64_t *)member(field, data) = field->max ? 40 / (i + 1) + 1 : UINT64_MAX - i;
		else
			*(bool *)member(field, data) = true;
	}
	return data;
}

static void sample_free(const CookieTable *table, void *data)
{
	cookie_clear(table, data);
	free(data);
}

static bool strv_equal(char *const *a, char *const *b)
{
	if (strv_length(a) != strv_length(b))
		return false;
	for (size_t i = 0; a && a[i]; i++)
		if (!streq(a[i], b[i]))
			return false;
	return true;
}

static bool field_equal(const CookieField *field, void *a, void *b)
{
	if (field->type == COOKIE_STRING)
		return streq_null(*(char **)member(field, a), *(char **)member(field, b));
	if (field->type == COOKIE_STRV)
		return strv_equal(*(char ***)member(field, a), *(char ***)member(field, b));
	if (field->type == COOKIE_U64)
		return *(uint64_t *)member(field, a) == *(uint64_t *)member(field, b);
	return *(bool *)member(field, a) == *(bool *)member(field, b);
}

static size_t equal_fields(const CookieTable *table, void *a, void *b)
{
	size_t n = 0;

	for (size_t i = 0; i < table->n_fields; i++)
		n += field_equal(&table->fields[i], a, b);
	return n;
}

/* ---- over the wire ---- */

static sd_bus_message *new_message(WireBus *wire)
{
	sd_bus_message *m = NULL;

	assert_true(sd_bus_message_new_signal(wire->bus, &m, PEER_PATH, PEER_INTERFACE, "Cookie") >= 0);
	return m;
}

/* A message's bytes as a client sends them. */
static uint8_t *cookie_bytes(const CookieTable *table, const void *data, size_t *ret_len)
{
	sd_bus_message *m;
	WireBus wire;
	uint8_t *bytes;

	wire_bus_open(&wire, false);
	m = new_message(&wire);
	assert_int_equal(cookie_append(m, table, data), 0);
	bytes = wire_bus_bytes(&wire, m, ret_len);
	sd_bus_message_unref(m);
	wire_bus_close(&wire);
	return bytes;
}

static int read_bytes(const CookieTable *table, const uint8_t *bytes, size_t len, void *data, Error **err)
{
	sd_bus_message *m;
	WireBus wire;
	int r;

	wire_bus_open(&wire, true);
	m = wire_bus_feed(&wire, bytes, len);
	assert_non_null(m);
	r = cookie_read(m, table, peer_features, data, err);
	wire_bus_close(&wire);
	return r;
}

static void test_round_trip(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		const CookieTable *table = tables[i].table;
		void *sample = sample_new(table), *back = xcalloc(1, table->size);
		_cleanup_error_ Error *err = NULL;
		size_t len;
		_cleanup_free_ uint8_t *bytes = cookie_bytes(table, sample, &len);

		if (read_bytes(table, bytes, len, back, &err) < 0)
			fail_msg("%s", err->message);
		assert_int_equal(equal_fields(table, sample, back), table->n_fields);
		sample_free(table, sample);
		sample_free(table, back);
	}
}

/* A real pair, client and server, nobody's bytes in between. */
static void test_real_pair(void **state)
{
	HelloCookie *hello = sample_new(&hello_cookie), back = {};
	sd_bus *client = NULL;
	sd_bus_message *m = NULL, *got = NULL;
	int pair[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	for (int i = 0; i < 2; i++) {
		sd_bus *bus = NULL;

		assert_true(sd_bus_new(&bus) >= 0);
		assert_true(sd_bus_set_fd(bus, pair[i], pair[i]) >= 0);
		if (i == 1)
			assert_true(sd_bus_set_server(bus, true, (sd_id128_t){}) >= 0);
		assert_true(sd_bus_set_anonymous(bus, true) >= 0);
		assert_true(sd_bus_start(bus) >= 0);
		if (i == 0) {
			client = bus;
			assert_true(sd_bus_message_new_method_call(client, &m, NULL, PEER_PATH, PEER_INTERFACE,
								   "Hello") >= 0);
			assert_int_equal(cookie_append(m, &hello_cookie, hello), 0);
			assert_true(sd_bus_send(client, m, NULL) >= 0);
			continue;
		}
		while (!got) {
			assert_true(sd_bus_process(client, NULL) >= 0);
			assert_true(sd_bus_process(bus, &got) >= 0);
		}
		assert_int_equal(cookie_read(got, &hello_cookie, peer_features, &back, NULL), 0);
		sd_bus_message_unref(got);
		sd_bus_close_unref(bus);
	}
	assert_int_equal(equal_fields(&hello_cookie, hello, &back), hello_cookie.n_fields);
	sd_bus_message_unref(m);
	sd_bus_close_unref(client);
	sample_free(&hello_cookie, hello);
	cookie_clear(&hello_cookie, &back);
}

/* Bytes of version 1, kept: whatever is added to the tables, these are read as they were meant. */
static void test_golden(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		const CookieTable *table = tables[i].table;
		_cleanup_free_ char *path = xasprintf("%s/%s.1", golden_dir, tables[i].file), *bytes = NULL;
		void *sample = sample_new(table), *back = xcalloc(1, table->size);
		_cleanup_error_ Error *err = NULL;
		size_t len;

		if (getenv("VMFERRY_WRITE_GOLDEN")) {
			_cleanup_free_ uint8_t *fresh = cookie_bytes(table, sample, &len);

			assert_int_equal(file_write(path, fresh, len, 0644, false), 0);
		}
		assert_int_equal(file_read(path, 65536, &bytes, &len), 0);
		if (read_bytes(table, (uint8_t *)bytes, len, back, &err) < 0)
			fail_msg("%s: %s", path, err->message);
		assert_int_equal(equal_fields(table, sample, back), tables[i].v1_fields);
		sample_free(table, sample);
		sample_free(table, back);
	}
}

/* docs/protocol.md has every field of every table, with type and limit as they are. */
static void test_documented(void **state)
{
	static const char *const types[] = {
		[COOKIE_STRING] = "string", [COOKIE_STRV] = "list", [COOKIE_U64] = "number", [COOKIE_BOOL] = "bool"};
	_cleanup_free_ char *text = NULL;

	(void)state;
	assert_int_equal(file_read(protocol, 1 << 20, &text, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		_cleanup_free_ char *title = xasprintf("\n### %s\n", tables[i].table->name), *section = NULL;
		const char *at = strstr(text, title), *end;

		assert_non_null(at);
		end = strstr(at + strlen(title), "\n##");
		section = strndup(at, end ? (size_t)(end - at) : strlen(at));
		for (size_t j = 0; j < tables[i].table->n_fields; j++) {
			const CookieField *field = &tables[i].table->fields[j];
			_cleanup_free_ char *limit = field->max ? xasprintf("%" PRIu64 " ", field->max) : xstrdup("");
			_cleanup_free_ char *row = xasprintf("\n| %s | %s | %s|%s |", field->name, types[field->type],
							     limit, field->required ? " yes" : "");

			if (!strstr(section, row))
				fail_msg("%s: no row%s", tables[i].table->name, row);
		}
	}
}

/* ---- refused ---- */

/* A Finish cookie from entries, sealed and ready to be read. */
static sd_bus_message *finish_message(WireBus *wire, const char *contents, ...)
{
	sd_bus_message *m = new_message(wire);
	va_list ap;

	va_start(ap, contents);
	assert_true(sd_bus_message_appendv(m, contents, ap) >= 0);
	va_end(ap);
	assert_true(sd_bus_message_seal(m, 1, 0) >= 0);
	assert_true(sd_bus_message_rewind(m, true) >= 0);
	return m;
}

static void assert_read(sd_bus_message *m, const CookieTable *table, int expected, const char *says)
{
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ char *data = xcalloc(1, table->size), *zero = xcalloc(1, table->size);
	int r = cookie_read(m, table, peer_features, data, &err);

	if (r != expected || (r < 0 && !strstr(err->message, says)))
		fail_msg("%d: %s; expected: %s", r, err ? err->message : "read", says);
	if (r < 0)
		assert_memory_equal(data, zero, table->size);
	cookie_clear(table, data);
	sd_bus_message_unref(m);
}

#define ID "0123456789abcdef0123456789abcdef"

static void test_refused(void **state)
{
	WireBus wire;

	(void)state;
	wire_bus_open(&wire, false);
#define READ(expected, says, ...) assert_read(finish_message(&wire, __VA_ARGS__), &finish_cookie, expected, says)
	READ(0, "", "a{sv}", 2, "id", "s", ID, "since_stop_usec", "t", (uint64_t)7);
	READ(-EPROTO, "id is missing", "a{sv}", 1, "since_stop_usec", "t", (uint64_t)7);
	READ(-EPROTO, "since_stop_usec is missing", "a{sv}", 1, "id", "s", ID);
	READ(-EPROTO, "id is missing", "a{sv}", 0);
	READ(-EPROTO, "since_stop_usec is of the wrong type", "a{sv}", 2, "id", "s", ID, "since_stop_usec", "u", 7);
	READ(-EPROTO, "id is of the wrong type", "a{sv}", 2, "id", "as", 1, ID, "since_stop_usec", "t", (uint64_t)7);
	READ(-EPROTO, "id is of the wrong type", "a{sv}", 2, "id", "o", "/a", "since_stop_usec", "t", (uint64_t)7);
	READ(-EPROTO, "mandatory is of the wrong type", "a{sv}", 1, "mandatory", "s", "x");
	READ(-EPROTO, "id comes twice", "a{sv}", 3, "id", "s", ID, "since_stop_usec", "t", (uint64_t)7, "id", "s", ID);
	READ(-EPROTO, "id is over its limit", "a{sv}", 2, "id", "s", ID "0", "since_stop_usec", "t", (uint64_t)7);
	READ(-ENOTSUP, "'time-travel'", "a{sv}", 3, "id", "s", ID, "since_stop_usec", "t", (uint64_t)7, "mandatory",
	     "as", 2, "lease", "time-travel");
	READ(-EPROTO, "field mandatory has characters it cannot have", "a{sv}", 3, "id", "s", ID, "since_stop_usec",
	     "t", (uint64_t)7, "mandatory", "as", 1, "a\nb");
	READ(0, "", "a{sv}", 3, "id", "s", ID, "since_stop_usec", "t", (uint64_t)7, "mandatory", "as", 2, "lease",
	     "conntrack");
	READ(0, "", "a{sv}", 4, "colour", "s", "blue", "id", "s", ID, "shape", "a(sv)", 1, "x", "ai", 1, 2,
	     "since_stop_usec", "t", (uint64_t)7);
	READ(-EPROTO, "malformed", "s", "text");
	READ(-EPROTO, "malformed", "a{ss}", 1, "id", ID);
#undef READ
	wire_bus_close(&wire);
}

static void test_limits(void **state)
{
	_cleanup_free_ char *word = xcalloc(1, COOKIE_WORD_MAX + 2);
	WireBus wire;

	(void)state;
	wire_bus_open(&wire, false);
	memset(word, 'x', COOKIE_WORD_MAX + 1);
	assert_read(finish_message(&wire, "a{sv}", 1, "mandatory", "as", 1, word), &finish_cookie, -EPROTO,
		    "mandatory is over its limit");
	assert_read(finish_message(&wire, "a{sv}", 1, "port", "t", (uint64_t)65536), &prepare_reply, -EPROTO,
		    "port is over its limit");
	assert_read(finish_message(&wire, "a{sv}", 1, "port", "t", (uint64_t)65535), &prepare_reply, 0, "");
	for (size_t n = 32; n <= 33; n++) {
		sd_bus_message *m = new_message(&wire);
		_cleanup_strv_ char **v = NULL;

		while (strv_length(v) < n)
			strv_add(&v, "w");
		assert_true(sd_bus_message_open_container(m, 'a', "{sv}") >= 0);
		assert_true(sd_bus_message_open_container(m, 'e', "sv") >= 0);
		assert_true(sd_bus_message_append(m, "s", "warnings") >= 0);
		assert_true(sd_bus_message_open_container(m, 'v', "as") >= 0);
		assert_true(sd_bus_message_append_strv(m, v) >= 0);
		for (int i = 0; i < 3; i++)
			assert_true(sd_bus_message_close_container(m) >= 0);
		assert_true(sd_bus_message_seal(m, 1, 0) >= 0);
		assert_read(m, &prepare_reply, n == 32 ? 0 : -EPROTO, "warnings is over its limit");
	}
	for (size_t n = COOKIE_ENTRIES_MAX; n <= COOKIE_ENTRIES_MAX + 1; n++) {
		sd_bus_message *m = new_message(&wire);

		assert_true(sd_bus_message_open_container(m, 'a', "{sv}") >= 0);
		for (size_t i = 0; i < n; i++)
			assert_true(sd_bus_message_append(m, "{sv}", "unknown", "b", 1) >= 0);
		assert_true(sd_bus_message_close_container(m) >= 0);
		assert_true(sd_bus_message_seal(m, 1, 0) >= 0);
		assert_read(m, &prepare_reply, n == COOKIE_ENTRIES_MAX ? 0 : -EPROTO, "more than 128 entries");
	}
	wire_bus_close(&wire);
}

/* Any bytes of an answer for people are made fit to be read: an outcome must never be lost to a long or odd reason. */
static void test_text_for_people(void **state)
{
	_cleanup_free_ char *huge = xcalloc(1, 10001);
	_cleanup_strv_ char **warnings = NULL;
	OutcomeReply reply = {
		.id = (char *)ID, .outcome = (char *)"never", .reason = huge, .hint = (char *)"\xff\xfe\n"};
	OutcomeReply back = {};
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ uint8_t *bytes = NULL;
	size_t len;

	(void)state;
	memset(huge, 'x', 10000);
	while (strv_length(warnings) < 40)
		strv_add(&warnings, "%s", huge);
	reply.warnings = warnings;
	bytes = cookie_bytes(&outcome_reply, &reply, &len);
	if (read_bytes(&outcome_reply, bytes, len, &back, &err) < 0)
		fail_msg("%s", err->message);
	assert_string_equal(back.outcome, "never");
	assert_int_equal(strlen(back.reason), 512);
	assert_string_equal(back.hint, "???");
	assert_int_equal(strv_length(back.warnings), 32);
	assert_int_equal(strlen(back.warnings[31]), COOKIE_WORD_MAX);
	cookie_clear(&outcome_reply, &back);
}

/* What the other end would refuse, and nothing that could be cut, is not sent. */
static void test_append_refused(void **state)
{
	_cleanup_free_ char *huge = xcalloc(1, 65538);
	char *words[] = {huge, NULL};
	WireBus wire;

	(void)state;
	memset(huge, 'x', 65537);
	wire_bus_open(&wire, false);
	for (int i = 0; i < 3; i++) {
		sd_bus_message *m = new_message(&wire);
		PrepareCookie cookie = {.definition = i == 0 ? huge : NULL,
					.disk_proofs = i == 1 ? words : NULL,
					.channels = i == 2 ? 17 : 0};

		assert_int_equal(cookie_append(m, &prepare_cookie, &cookie), i == 2 ? -ERANGE : -E2BIG);
		sd_bus_message_unref(m);
	}
	wire_bus_close(&wire);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_real_pair),
		cmocka_unit_test(test_golden),	       cmocka_unit_test(test_refused),
		cmocka_unit_test(test_limits),	       cmocka_unit_test(test_text_for_people),
		cmocka_unit_test(test_append_refused), cmocka_unit_test(test_documented),
	};

	golden_dir = argc > 1 ? argv[1] : "tests/unit/golden";
	protocol = argc > 2 ? argv[2] : "docs/protocol.md";
	return cmocka_run_group_tests(tests, NULL, NULL);
}
