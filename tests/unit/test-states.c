/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <string.h>

#include "basic/fs.h"
#include "states.h"

static const char *path;

/* docs/states.md says what the table says. */
static void test_same(void **state)
{
	_cleanup_free_ char *made = states_text(), *kept = NULL;

	(void)state;
	assert_int_equal(file_read(path, 1 << 20, &kept, NULL), 0);
	if (strcmp(made, kept) != 0)
		fail_msg("%s is not what print-states prints: print it again", path);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_same)};

	path = argc > 1 ? argv[1] : "docs/states.md";
	return cmocka_run_group_tests(tests, NULL, NULL);
}
