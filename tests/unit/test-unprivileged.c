/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "qemu/unprivileged.h"

static void test_users(void **state)
{
	static const struct {
		const char *user;
		int r;
		const char *message;
	} rows[] = {
		{"nobody", 0, NULL},
		{"no-such-user", -ENOENT, "no user no-such-user"},
		{"root", -EPERM, "never runs as root"},
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_error_ Error *err = NULL;
		Unprivileged u = {0};

		assert_int_equal(unprivileged_look_up(rows[i].user, &u, &err), rows[i].r);
		assert_int_equal(u.uid != 0, rows[i].r == 0);
		if (rows[i].r < 0)
			assert_non_null(strstr(err->message, rows[i].message));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_users),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
