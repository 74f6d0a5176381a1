/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "qemu/announce.h"

/* Byte by byte, taken down by hand from the RFCs; the checksum of the second was computed independently. */
static const uint8_t arp[ANNOUNCE_ARP_BYTES] = {
	0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x08, 0x06, /* Ethernet */
	0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01,					    /* request */
	0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x0a, 0x00, 0x00, 0x05,			    /* sender */
	0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x00, 0x05,			    /* target */
};

static const uint8_t na[ANNOUNCE_NA_BYTES] = {
	0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, 0x86, 0xdd, /* Ethernet */
	0x60, 0x00, 0x00, 0x00, 0x00, 0x20, 0x3a, 0xff,					    /* 32 bytes, ICMPv6, 255 */
	0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	0x00, 0x05, 0xff, 0x02, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	0x00, 0x00, 0x00, 0x01, 0x88, 0x00, 0xd5, 0xd7, 0x20, 0x00, 0x00, 0x00, /* override */
	0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
	0x00, 0x05, 0x02, 0x01, 0x52, 0x54, 0x00, 0x12, 0x34, 0x56, /* link layer */
};

static void test_arp(void **state)
{
	uint8_t frame[ANNOUNCE_FRAME_MAX];
	size_t len = 0;

	(void)state;
	memset(frame, 0xaa, sizeof(frame));
	assert_int_equal(announce_frame("52:54:00:12:34:56", "10.0.0.5", frame, &len), 0);
	assert_int_equal(len, sizeof(arp));
	assert_memory_equal(frame, arp, sizeof(arp));
	assert_int_equal(frame[sizeof(arp)], 0xaa);
}

static void test_na(void **state)
{
	uint8_t frame[ANNOUNCE_FRAME_MAX];
	size_t len = 0;

	(void)state;
	assert_int_equal(announce_frame("52:54:00:12:34:56", "fd00::5", frame, &len), 0);
	assert_int_equal(len, sizeof(na));
	assert_memory_equal(frame, na, sizeof(na));
}

/* A receiver sums the pseudo-header and the message with its checksum: all ones, whatever the address (RFC 1071). */
static void test_na_checksum(void **state)
{
	static const char *const addresses[] = {"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::1",
						"fe80::5054:ff:fe12:3456", "fd00:1234:5678:9abc:def0:1:2:3"};
	uint8_t frame[ANNOUNCE_FRAME_MAX];
	size_t len;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(addresses); i++) {
		uint32_t sum = 32 + 58;

		assert_int_equal(announce_frame("52:54:00:ff:ff:ff", addresses[i], frame, &len), 0);
		for (size_t at = 22; at < len; at += 2)
			sum += (uint32_t)(frame[at] << 8 | frame[at + 1]);
		while (sum >> 16)
			sum = (sum & 0xffff) + (sum >> 16);
		assert_int_equal(sum, 0xffff);
	}
}

static void test_refused(void **state)
{
	static const struct {
		const char *mac, *address;
	} cases[] = {
		{NULL, "10.0.0.5"},
		{"", "10.0.0.5"},
		{"52:54:00:12:34", "10.0.0.5"},
		{"52:54:00:12:34:56", ""},
		{"52:54:00:12:34:56", "10.0.0"},
		{"52:54:00:12:34:56", "10.0.0.5/24"},
		{"52:54:00:12:34:56", "fd00::5%lo"},
		{"52:54:00:12:34:56", "web1"},
	};
	uint8_t frame[ANNOUNCE_FRAME_MAX];
	size_t len = 7;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_int_equal(announce_frame(cases[i].mac, cases[i].address, frame, &len), -EINVAL);
	assert_int_equal(len, 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_arp),
		cmocka_unit_test(test_na),
		cmocka_unit_test(test_na_checksum),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
