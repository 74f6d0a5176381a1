/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include "basic/text.h"
#include "peer/destination.h"

static void test_parse(void **state)
{
	static const struct {
		const char *text, *host;
		unsigned int port;
	} rows[] = {
		{"hostb", "hostb", 0},
		{"root@hostb.example", "root@hostb.example", 0},
		{"10.0.0.2", "10.0.0.2", 0},
		{"ssh://hostb", "hostb", 0},
		{"ssh://hostb:2222", "hostb", 2222},
		{"ssh://root@hostb:1", "root@hostb", 1},
		{"ssh://hostb:65535", "hostb", 65535},
		{"ssh://[fd00::5]", "fd00::5", 0},
		{"ssh://[fd00::5]:22", "fd00::5", 22},
		{"ssh://root@[fe80::1%eth0]:22", "root@fe80::1%eth0", 22},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(destination_freep)
		Destination *d = NULL;
		_cleanup_error_ Error *err = NULL;

		assert_int_equal(destination_parse(rows[i].text, &d, &err), 0);
		assert_string_equal(d->text, rows[i].text);
		assert_string_equal(d->host, rows[i].host);
		assert_int_equal(d->port, rows[i].port);
		assert_null(d->exec);
	}
}

static void test_refused(void **state)
{
	static const char *const rows[] = {
		"",
		"-oProxyCommand=x",
		"root@-oProxyCommand=x",
		"-l@hostb",
		"ssh://",
		"ssh://-x",
		"ssh://root@-x",
		"ssh://[-x]",
		"hostb:22",
		"host b",
		"hostb;id",
		"hostb$(id)",
		"hostb/x",
		"a\nb",
		"ssh://hostb:",
		"ssh://hostb:0",
		"ssh://hostb:65536",
		"ssh://hostb:22x",
		"ssh://hostb:-1",
		"ssh://[fd00::5",
		"ssh://fd00::5",
		"ssh://a[b]",
		"ssh://[a]b",
		"ssh://root@",
		"[fd00::5]",
		"exec:",
		"exec:   ",
		"exec:'unclosed",
		"exec:sh -c 'a\nb'",
		"root@",
		"ssh://\x7f",
		"direct:",
		"direct:-oProxyCommand=x",
		"direct:exec:",
		"direct:direct:hostb",
	};
	_cleanup_free_ char *huge = xcalloc(1, 500);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_error_ Error *err = NULL;
		Destination *d = NULL;

		if (destination_parse(rows[i], &d, &err) != -EINVAL || !err || d)
			fail_msg("'%s' is taken", rows[i]);
	}
	memset(huge, 'a', 401);
	assert_int_equal(destination_parse(huge, &(Destination *){NULL}, NULL), -EINVAL);
}

static void assert_argv(const char *text, const DestinationOptions *options, char *const *extra, DestinationUse use,
			const char *expected)
{
	_cleanup_(destination_freep)
	Destination *d = NULL;
	_cleanup_strv_ char **argv = NULL;
	_cleanup_free_ char *joined = xstrdup("");

	assert_int_equal(destination_parse(text, &d, NULL), 0);
	assert_int_equal(destination_argv(d, options, extra, use, &argv, NULL), 0);
	for (size_t i = 0; argv[i]; i++) {
		_cleanup_free_ char *old = joined;

		joined = xasprintf("%s%s%s", old, i ? "|" : "", argv[i]);
	}
	assert_string_equal(joined, expected);
}

#define SSH_FIXED "-oBatchMode=yes|-oEscapeChar=none|-T"

/* All that is on the command line is from the destination and host.conf: there is nothing of a VM that could be. */
static void test_argv(void **state)
{
	static const DestinationOptions none = {}, own = {.ssh = "ssh -i '/root/a key' -v",
							  .remote_command = "sudo vmferry receive"};

	(void)state;
	assert_argv("hostb", &none, NULL, DESTINATION_COMMAND, "ssh|" SSH_FIXED "|--|hostb|vmferry receive");
	assert_argv("ssh://root@[fd00::5]:22", &none, NULL, DESTINATION_COMMAND,
		    "ssh|" SSH_FIXED "|-p22|--|root@fd00::5|vmferry receive");
	assert_argv("hostb", &own, NULL, DESTINATION_COMMAND, "ssh|-i|/root/a key|-v|" SSH_FIXED "|--|hostb|sudo vmferry receive");
	assert_argv("hostb", &(DestinationOptions){.ssh = ""}, NULL, DESTINATION_COMMAND,
		    "ssh|" SSH_FIXED "|--|hostb|vmferry receive");
	assert_argv("exec:ip netns exec b 'vm ferry' receive", &own, NULL, DESTINATION_LOGIN, "ip|netns|exec|b|vm ferry|receive");
}

/* One login, which later commands and forwards go through; whatever the user's own configuration says of such. */
static void test_login(void **state)
{
	static const DestinationOptions login = {.login = "/run/s", .aes = true}, slow = {.login = "/run/s"};
	static const struct {
		const char *path;
		bool usable;
	} rows[] = {
		{"/run/vmferry/web1/ssh.0123abcd", true},
		{"/run/a b/ssh", false},
		{"/run/%h/ssh", false},
		{"/run/${HOME}/ssh", false},
		{"/run/a\"b/ssh", false},
		{"/run/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/01234567", true},
		{"/run/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/012345678", false},
	};
	char *extra[] = {(char *)"-L/a:/b", NULL};

	(void)state;
	assert_argv("hostb", &login, NULL, DESTINATION_LOGIN,
		    "ssh|" SSH_FIXED "|-oControlMaster=yes|-oControlPath=/run/s|-oControlPersist=no|"
		    "-oCiphers=^aes256-gcm@openssh.com|--|hostb|vmferry receive");
	assert_argv("hostb", &slow, NULL, DESTINATION_LOGIN,
		    "ssh|" SSH_FIXED "|-oControlMaster=yes|-oControlPath=/run/s|-oControlPersist=no|--|hostb|vmferry receive");
	assert_argv("hostb", &login, NULL, DESTINATION_COMMAND,
		    "ssh|" SSH_FIXED "|-oControlMaster=no|-oControlPath=/run/s|--|hostb|vmferry receive");
	assert_argv("ssh://hostb:2222", &login, extra, DESTINATION_FORWARD,
		    "ssh|" SSH_FIXED "|-oControlMaster=no|-oControlPath=/run/s|-Oforward|-L/a:/b|-p2222|--|hostb");
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (destination_login_usable(rows[i].path) != rows[i].usable)
			fail_msg("%s", rows[i].path);
}

/* A client's business: there is nothing here that could be run. */
static void test_direct(void **state)
{
	_cleanup_(destination_freep)
	Destination *d = NULL;
	_cleanup_error_ Error *err = NULL;
	char **argv = NULL;

	(void)state;
	assert_int_equal(destination_parse("direct:exec:touch /tmp/x", &d, NULL), 0);
	assert_true(d->direct);
	assert_null(d->exec);
	assert_null(d->host);
	assert_int_equal(destination_argv(d, &(DestinationOptions){}, NULL, DESTINATION_COMMAND, &argv, &err), -EINVAL);
	assert_null(argv);
}

static void test_bad_ssh(void **state)
{
	_cleanup_(destination_freep)
	Destination *d = NULL;
	_cleanup_error_ Error *err = NULL;
	char **argv = NULL;

	(void)state;
	assert_int_equal(destination_parse("hostb", &d, NULL), 0);
	assert_int_equal(destination_argv(d, &(DestinationOptions){.ssh = "ssh 'x"}, NULL, DESTINATION_COMMAND, &argv, &err),
			 -EINVAL);
	assert_null(argv);
	assert_non_null(err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_argv),
		cmocka_unit_test(test_login),
		cmocka_unit_test(test_direct),
		cmocka_unit_test(test_bad_ssh),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
