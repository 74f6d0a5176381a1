/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "companions/virsh-words.h"

static const struct {
	const char *words, *dname, *refused;
	bool suspend, postcopy;
} cases[] = {
	{.words = "--live --p2p --persistent --undefinesource --compressed --auto-converge --verbose"},
	{.words = "--suspend --live", .suspend = true},
	{.words = "--dname web2", .dname = "web2"},
	{.words = "--dname=web2 --suspend", .dname = "web2", .suspend = true},
	{.words = "--dname= --suspend", .dname = "", .suspend = true},
	{.words = "--dname --suspend", .dname = "--suspend"},
	{.words = "--dname"},
	{.words = "--xml --offline --suspend", .suspend = true},
	{.words = "--xml=--offline --live"},
	{.words = "--timeout 60 --timeout-postcopy", .postcopy = true},
	{.words = "--timeout --timeout-postcopy"},
	{.words = "--timeout=60 --timeout-suspend --dname web2", .dname = "web2"},
	{.words = "--postcopy-bandwidth 5 --live"},
	{.words = "--postcopy-bandwidth --postcopy"},
	{.words = "--postcopy", .postcopy = true},
	{.words = "--postcopy-after-precopy", .postcopy = true},
	{.words = "--offline", .refused = "--offline"},
	{.words = "--live --postcopy-resume", .refused = "--postcopy-resume"},
	{.words = "tcp://10.99.0.2 --live spice://h 10.99.0.2 web2", .dname = "web2"},
	{.words = "--migrateuri tcp://10.99.0.2 spice://h 10.99.0.2 web2 5 file.xml", .dname = "web2"},
	{.words = "--dname web2 a b c 60", .dname = "web2"},
	{.words = "-- a b c --suspend", .dname = "--suspend"},
	{.words = "--no-such-option web2 --suspend", .suspend = true},
	{.words = "--migrate-disks vda --disks-port 49500 --copy-storage-all"},
};

static void test_words(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_strv_ char **words = NULL;
		VirshWords got;

		assert_int_equal(strv_split_words(cases[i].words, &words), 0);
		virsh_words_read(words, &got);
		if (cases[i].dname)
			assert_string_equal(got.dname, cases[i].dname);
		else
			assert_null(got.dname);
		if (cases[i].refused)
			assert_string_equal(got.refused, cases[i].refused);
		else
			assert_null(got.refused);
		assert_int_equal(got.suspend, cases[i].suspend);
		assert_int_equal(got.postcopy, cases[i].postcopy);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_words),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
