/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
/* after the above */
#include <cmocka.h>

#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>

#include "basic/text.h"
#include "conntrack/save.h"

/* Lines that are written as they were read. */
static const char *const lines[] = {
	"-A -t 1 -u SEEN_REPLY,ASSURED -s 10.0.0.5 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.5 -p tcp --sport 1 --dport 80 "
	"--reply-port-src 80 --reply-port-dst 1 --state ESTABLISHED --mark 7\n",
	"-A -t 999 -u UNSET -w 5 -s 10.0.0.1 -d 10.0.0.2 -g 10.0.0.5 -n 10.0.0.9 -p udp --sport 1 --dport 80 "
	"--reply-port-src 8080 --reply-port-dst 4000\n",
	"-A -t 5 -u FIXED_TIMEOUT --orig-zone 7 -s fd00::5 -d fd00::2 -r fd00::2 -q fd00::5 -p icmpv6 --icmpv6-type 128 "
	"--icmpv6-code 0 --icmpv6-id 77\n",
	"-A -t 5 -u UNSET --reply-zone 65535 -s 10.0.0.5 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.5 -p 89\n",
	"-A -t 5 -u UNSET -s 10.0.0.5 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.5 -p gre --srckey 1 --dstkey 2 --reply-key-src 2 "
	"--reply-key-dst 1\n",
	"-D -s 10.0.0.5 -d 10.0.0.2 -r 10.0.0.2 -q 10.0.0.5 -p udp --sport 1 --dport 2 --reply-port-src 2 --reply-port-dst 1\n",
};

static int read_copy(const char *line, CtRecord *ret, CtWireOp *op, const char **why)
{
	_cleanup_free_ char *copy = strndup(line, strcspn(line, "\n"));

	*why = "";
	return ct_save_read(copy, ret, op, why);
}

static void test_round_trip(void **state)
{
	char text[CT_SAVE_LINE_MAX];
	const char *why;
	CtRecord record;
	CtWireOp op;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		assert_int_equal(read_copy(lines[i], &record, &op, &why), 1);
		assert_int_equal(ct_save_write(&record, op, text), strlen(lines[i]));
		assert_string_equal(text, lines[i]);
	}
}

static void test_meaning(void **state)
{
	CtRecord record;
	const char *why;
	CtWireOp op;

	(void)state;
	assert_int_equal(read_copy(lines[0], &record, &op, &why), 1);
	assert_int_equal(op, CT_WIRE_PUT);
	assert_int_equal(record.status, IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED);
	assert_int_equal(record.tcp.state, TCP_CONNTRACK_ESTABLISHED);
	assert_int_equal(record.tcp.flags[0], IP_CT_TCP_FLAG_BE_LIBERAL); /* no window is known */
	assert_true(ct_record_complete(&record));
	assert_int_equal(read_copy(lines[1], &record, &op, &why), 1);
	assert_int_equal(record.status & IPS_NAT_MASK, IPS_NAT_MASK);
	assert_int_equal(record.key.zone, 5);
	/* what a line leaves out follows from the rest */
	assert_int_equal(read_copy("-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p udp --sport 3 --dport 4", &record, &op, &why), 1);
	assert_memory_equal(record.reply.src, record.key.orig.dst, 16);
	assert_int_equal(record.reply.a, record.key.orig.b);
	assert_int_equal(record.status & IPS_NAT_MASK, 0);
}

static void test_nothing(void **state)
{
	CtRecord record;
	const char *why;
	CtWireOp op;

	(void)state;
	assert_int_equal(read_copy("", &record, &op, &why), 0);
	assert_int_equal(read_copy("[0]", &record, &op, &why), 0);
	assert_int_equal(read_copy("# -A", &record, &op, &why), 0);
}

static void test_bad(void **state)
{
	static const char *const bad[] = {
		"x",
		"-A",
		"-A -t",
		"-A -t -1 -s 10.0.0.5 -d 10.0.0.2 -p udp",
		"-A -t 1 -s 10.0.0.5 -d fd00::1 -p udp",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p udp --sport 65536",
		"-A -t 4294967296 -s 10.0.0.5 -d 10.0.0.2 -p udp",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p 256",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p tcp",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p tcp --state NONE",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p icmp --icmp-type 3",
		"-A -t 1 -s 10.0.0.5 -d 10.0.0.2 -p udp --exec reboot",
		"-A -t 1 -d 10.0.0.2 -p udp",
	};
	CtRecord record;
	const char *why;
	CtWireOp op;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(read_copy(bad[i], &record, &op, &why), -EINVAL);
		assert_true(*why);
	}
}

/* What few protocols have: as it was written it is read. */
static void test_states(void **state)
{
	static const char *const texts[] = {
		"-A -t 60 -u SEEN_REPLY,ASSURED -s 10.0.0.5 -d 10.0.0.9 -r 10.0.0.9 -q 10.0.0.5 -p sctp --sport 1 --dport 2 "
		"--reply-port-src 2 --reply-port-dst 1 --state ESTABLISHED --orig-vtag 3735928559 --reply-vtag 7\n",
		"-A -t 60 -u SEEN_REPLY -s 10.0.0.5 -d 10.0.0.9 -r 10.0.0.9 -q 10.0.0.5 -p dccp --sport 1 --dport 2 "
		"--reply-port-src 2 --reply-port-dst 1 --state OPEN --role server\n",
	};
	char back[CT_SAVE_LINE_MAX];
	const char *why = NULL;
	CtRecord record;
	CtWireOp op;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		_cleanup_free_ char *line = xstrdup(texts[i]);

		line[strlen(line) - 1] = '\0';
		assert_int_equal(ct_save_read(line, &record, &op, &why), 1);
		ct_save_write(&record, op, back);
		assert_string_equal(back, texts[i]);
	}
	strcpy(back, "-A -t 60 -s 10.0.0.5 -d 10.0.0.9 -p sctp --sport 1 --dport 2 --state OPEN");
	assert_int_equal(ct_save_read(back, &record, &op, &why), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_states),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_meaning),
		cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_bad),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
