/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include "basic/text.h"
#include "peer/frame.h"
#include "wire-bus.h"

static const char client_auth[] = "\0AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n";
static const char server_auth[] = "OK 6b1d4e0a5c2f47998a310fd277c49e15\r\n";

typedef struct Stream {
	uint8_t data[8192];
	size_t len;
} Stream;

static void put(Stream *stream, const void *data, size_t len)
{
	assert_true(stream->len + len <= sizeof(stream->data));
	if (data)
		memcpy(stream->data + stream->len, data, len);
	stream->len += len;
}

static void put_auth(Stream *stream, bool client)
{
	put(stream, client ? client_auth : server_auth, client ? sizeof(client_auth) - 1 : sizeof(server_auth) - 1);
}

static void put_header(Stream *stream, char endian, uint8_t type, uint32_t body, uint32_t fields)
{
	uint8_t h[16] = {(uint8_t)endian, type, 0, 1};

	for (int i = 0; i < 4; i++) {
		h[4 + i] = (uint8_t)(body >> (endian == 'l' ? 8 * i : 24 - 8 * i));
		h[8 + i] = 1;
		h[12 + i] = (uint8_t)(fields >> (endian == 'l' ? 8 * i : 24 - 8 * i));
	}
	put(stream, h, sizeof(h));
}

static int check_all(const Stream *stream, bool from_client)
{
	FrameCheck check = {.from_client = from_client};

	return frame_check(&check, stream->data, stream->len);
}

/* The same result wherever the stream is cut in two, and byte by byte. */
static void assert_check(const Stream *stream, bool from_client, int expected)
{
	FrameCheck single = {.from_client = from_client};
	int r = 0;

	assert_int_equal(check_all(stream, from_client), expected);
	for (size_t cut = 0; cut <= stream->len; cut++) {
		FrameCheck check = {.from_client = from_client};

		r = frame_check(&check, stream->data, cut);
		if (r == 0)
			r = frame_check(&check, stream->data + cut, stream->len - cut);
		assert_int_equal(r, expected);
	}
	r = 0;
	for (size_t i = 0; i < stream->len && r == 0; i++)
		r = frame_check(&single, stream->data + i, 1);
	assert_int_equal(r, expected);
}

static void test_messages(void **state)
{
	static const uint32_t sizes[][2] = {{0, 0}, {0, 1}, {5, 7}, {100, 8}, {1, 9}, {300, 0}};

	(void)state;
	for (int client = 0; client < 2; client++) {
		Stream stream = {};

		put_auth(&stream, client);
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			put_header(&stream, i & 1 ? 'l' : 'B', 1 + i % 4, sizes[i][0], sizes[i][1]);
			put(&stream, NULL, ((sizes[i][1] + 7) & ~7U) + sizes[i][0]);
		}
		assert_check(&stream, client, 0);
	}
}

static void test_size(void **state)
{
	static const struct {
		uint32_t body, fields;
		int r;
	} rows[] = {
		{FRAME_MESSAGE_MAX - 16, 0, 0},	    {FRAME_MESSAGE_MAX - 15, 0, -EMSGSIZE},
		{FRAME_MESSAGE_MAX - 24, 1, 0},	    {FRAME_MESSAGE_MAX - 23, 1, -EMSGSIZE},
		{0, FRAME_MESSAGE_MAX, -EMSGSIZE},  {UINT32_MAX, 0, -EMSGSIZE},
		{0, UINT32_MAX, -EMSGSIZE},	    {UINT32_MAX, UINT32_MAX, -EMSGSIZE},
		{60 * 1024 * 1024, 100, -EMSGSIZE}, {0, UINT32_MAX - 6, -EMSGSIZE},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		for (int big = 0; big < 2; big++) {
			Stream stream = {};

			put_auth(&stream, true);
			put_header(&stream, big ? 'B' : 'l', 1, rows[i].body, rows[i].fields);
			assert_check(&stream, true, rows[i].r);
		}
}

static void test_garbage(void **state)
{
	static const struct {
		char endian;
		uint8_t type, version;
	} rows[] = {{'x', 1, 1}, {0, 1, 1}, {'l', 0, 1}, {'l', 5, 1}, {'l', 1, 2}, {'B', 1, 0}};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		Stream stream = {};

		put_auth(&stream, false);
		put_header(&stream, rows[i].endian, rows[i].type, 0, 0);
		stream.data[stream.len - 13] = rows[i].version;
		assert_check(&stream, false, -EBADMSG);
	}
}

/* Any byte of authentication made wrong, and ends that sd-bus would take for something else than we do. */
static void test_auth(void **state)
{
	static const char *const wrong[] = {
		"AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n",
		"\1AUTH ANONYMOUS\r\n",
		"l\1\0\1",
	};
	static const char early_begin[] = "\0BEGIN\r\n", line_feed[] = "\0AUTH ANONYMOUS x\nBEGIN\r\n";

	(void)state;
	for (int client = 0; client < 2; client++) {
		Stream good = {};

		put_auth(&good, client);
		assert_check(&good, client, 0);
		for (size_t i = 0; i < good.len; i++) {
			Stream bad = good;

			bad.data[i] ^= 0x40;
			assert_int_equal(check_all(&bad, client), -EBADMSG);
		}
	}
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		Stream stream = {};

		put(&stream, wrong[i], strlen(wrong[i]));
		assert_check(&stream, true, -EBADMSG);
	}
	assert_int_equal(check_all(&(Stream){.len = 4096}, true), -EBADMSG);
	assert_int_equal(check_all(&(Stream){.len = 4096}, false), -EBADMSG);
	for (int i = 0; i < 2; i++) {
		Stream stream = {};

		put(&stream, i ? line_feed : early_begin, i ? sizeof(line_feed) - 1 : sizeof(early_begin) - 1);
		assert_check(&stream, true, -EBADMSG);
	}
}

/* What this machine's sd-bus really says. */
static void test_real_bus(void **state)
{
	sd_bus_message *m = NULL;
	Stream stream = {};
	uint8_t *bytes;
	WireBus wire;
	size_t len;

	(void)state;
	wire_bus_open(&wire, true);
	assert_true(sd_bus_message_new_signal(wire.bus, &m, "/a", "a.b", "C") >= 0);
	assert_true(sd_bus_message_append(m, "sat", "text", 2, (uint64_t)1, (uint64_t)2) >= 0);
	bytes = wire_bus_bytes(&wire, m, &len);
	put_auth(&stream, false);
	put(&stream, bytes, len);
	put(&stream, bytes, len);
	assert_check(&stream, false, 0);
	free(bytes);
	sd_bus_message_unref(m);
	wire_bus_close(&wire);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_messages), cmocka_unit_test(test_size),	  cmocka_unit_test(test_garbage),
		cmocka_unit_test(test_auth),	 cmocka_unit_test(test_real_bus),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
