/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "qemu/process.h"

/* What the kernel says of huge pages for shared memory, and whether that costs a guest anything. */
static const struct {
	const char *setting;
	bool own_tmpfs;
	const char *words; /* NULL: no advice */
} cases[] = {
	{"always within_size advise [never] deny force\n", true, NULL},
	{"always within_size advise [never] deny force\n", false, "echo advise"},
	{"always within_size [advise] never deny force\n", false, NULL},
	{"[always] within_size advise never deny force\n", false, NULL},
	{"always within_size advise never [deny] force\n", true, "\"deny\""},
	{NULL, true, "no transparent huge pages"},
};

static void test_advice(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const char *advice = qemu_memory_advice_for(cases[i].setting, cases[i].own_tmpfs);

		assert_true(!advice == !cases[i].words);
		if (advice)
			assert_non_null(strstr(advice, cases[i].words));
	}
}

static void test_only_of_shared_memory(void **state)
{
	(void)state;
	assert_null(qemu_memory_advice(&(VmDefinition){.memory_backing = MEMORY_PRIVATE}));
	assert_null(qemu_memory_advice(&(VmDefinition){.memory_backing = MEMORY_HUGE}));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_advice),
		cmocka_unit_test(test_only_of_shared_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
