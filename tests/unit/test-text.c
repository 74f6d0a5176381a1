/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include "basic/text.h"

static void test_parse_u64(void **state)
{
	static const struct {
		const char *text;
		int r;
		uint64_t value;
	} rows[] = {
		{"0", 0, 0},	     {"42", 0, 42},	  {"18446744073709551615", 0, UINT64_MAX},
		{"", -EINVAL, 0},    {" 1", -EINVAL, 0},  {"1 ", -EINVAL, 0},
		{"-1", -EINVAL, 0},  {"+1", -EINVAL, 0},  {"18446744073709551616", -ERANGE, 0},
		{"0x1", -EINVAL, 0}, {"1e3", -EINVAL, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint64_t v = 77;

		assert_int_equal(text_parse_u64(rows[i].text, &v), rows[i].r);
		assert_int_equal(v, rows[i].r == 0 ? rows[i].value : 77);
	}
}

static void test_parse_mark(void **state)
{
	static const struct {
		const char *text;
		int r;
		uint32_t value, mask;
	} rows[] = {
		{"0", 0, 0, UINT32_MAX},
		{"0x100/0xff00", 0, 0x100, 0xff00},
		{"4294967295", 0, UINT32_MAX, UINT32_MAX},
		{"", -EINVAL, 0, 0},
		{"-1", -EINVAL, 0, 0},
		{"4294967296", -EINVAL, 0, 0},
		{"1/", -EINVAL, 0, 0},
		{"1/2", -EINVAL, 0, 0},
		{"0/0", -EINVAL, 0, 0},
		{"1/1x", -EINVAL, 0, 0},
	};
	uint32_t value, mask;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		assert_int_equal(text_parse_mark(rows[i].text, &value, &mask), rows[i].r);
		if (rows[i].r == 0 && (value != rows[i].value || mask != rows[i].mask))
			fail_msg("%s: %x/%x", rows[i].text, value, mask);
	}
}

static void test_parse_size(void **state)
{
	static const struct {
		const char *text;
		int r;
		uint64_t value;
	} rows[] = {
		{"0", 0, 0},
		{"512", 0, 512},
		{"1K", 0, 1024},
		{"2m", 0, 2ULL << 20},
		{"3G", 0, 3ULL << 30},
		{"4T", 0, 4ULL << 40},
		{"16777215T", 0, 16777215ULL << 40},
		{"16777216T", -ERANGE, 0},
		{"18446744073709551615", 0, UINT64_MAX},
		{"18446744073709551615K", -ERANGE, 0},
		{"K", -EINVAL, 0},
		{"", -EINVAL, 0},
		{"1P", -EINVAL, 0},
		{"1KB", -EINVAL, 0},
		{"1 K", -EINVAL, 0},
		{"1.5G", -EINVAL, 0},
		{"-1K", -EINVAL, 0},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		uint64_t v = 77;

		assert_int_equal(text_parse_size(rows[i].text, &v), rows[i].r);
		assert_int_equal(v, rows[i].r == 0 ? rows[i].value : 77);
	}
}

static void test_split_words(void **state)
{
	static const struct {
		const char *text;
		const char *words[5];
	} rows[] = {
		{"ssh", {"ssh"}},
		{"  ssh\t-v  host\n", {"ssh", "-v", "host"}},
		{"sh -c 'a b  c'", {"sh", "-c", "a b  c"}},
		{"a'b c'd", {"ab cd"}},
		{"\"a\\\"b\" 'a\\b'", {"a\"b", "a\\b"}},
		{"a\\ b c", {"a b", "c"}},
		{"'' x \"\"", {"", "x", ""}},
		{"$HOME `id` ;", {"$HOME", "`id`", ";"}},
		{"a\\", {"a\\"}},
		{"", {NULL}},
		{"   ", {NULL}},
		{"'a", {NULL}},
		{"a \"b", {NULL}},
		{"\"a\\\"", {NULL}},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_strv_ char **words = NULL;
		size_t n = strv_length((char *const *)(uintptr_t)rows[i].words);

		assert_int_equal(strv_split_words(rows[i].text, &words), n ? 0 : -EINVAL);
		assert_int_equal(strv_length(words), n);
		for (size_t j = 0; j < n; j++)
			assert_string_equal(words[j], rows[i].words[j]);
	}
}

static void test_vm_name(void **state)
{
	static const char *const good[] = {"a", "web1", "A.b_c-d", "0",
					   "abcdefghijabcdefghijabcdefghijabcdefghijabcdefgh"};
	static const char *const bad[] = {
		"",    "-a",  ".",    "..",	  "_a",
		"a/b", "a b", "a\nb", "\xc3\xa4", "abcdefghijabcdefghijabcdefghijabcdefghijabcdefghi"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(vm_name_valid(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(vm_name_valid(bad[i]));
}

static void test_ids(void **state)
{
	_cleanup_free_ char *a = text_random_id(), *b = text_random_id(), *hex = text_hex("\x00\x7f\xff", 3);

	(void)state;
	assert_string_equal(hex, "007fff");
	assert_true(text_is_id(a) && text_is_id(b));
	assert_string_not_equal(a, b);
	assert_false(text_is_id(""));
	assert_false(text_is_id("0123456789ABCDEF0123456789ABCDEF"));
	assert_false(text_is_id("0123456789abcdef0123456789abcdef0"));
	assert_true(text_equal_secret(a, a));
	assert_false(text_equal_secret(a, b));
	assert_false(text_equal_secret("ab", "abc"));
	assert_true(text_equal_secret("", ""));
}

static void test_secrets(void **state)
{
	char key[] = "0123456789abcdef", nothing[sizeof(key)] = "";

	(void)state;
	secret_clear(key);
	assert_memory_equal(key, nothing, sizeof(key));
	secret_clear(key);
	secret_clear(NULL);
	secret_free(NULL);
	secret_free(xstrdup("0123"));
}

static void test_clean(void **state)
{
	static const struct {
		const char *text;
		size_t max;
		const char *clean;
	} rows[] = {
		{"all right", 100, "all right"},
		{"a\x1b[31mb\n\t", 100, "a?[31mb??"},
		{"\xc3\xa4\x7f~", 100, "???~"},
		{"cut here", 3, "cut"},
		{"", 5, ""},
		{"x", 0, ""},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_free_ char *clean = text_clean(rows[i].text, rows[i].max);

		assert_string_equal(clean, rows[i].clean);
	}
}

static void test_strv(void **state)
{
	_cleanup_strv_ char **v = NULL, **copy = NULL;

	(void)state;
	assert_int_equal(strv_length(NULL), 0);
	assert_false(strv_contains(NULL, "a"));
	assert_null(strv_copy(NULL));
	strv_add(&v, "%d-%s", 1, "one");
	strv_push(&v, xstrdup("two"));
	copy = strv_copy(v);
	assert_int_equal(strv_length(copy), 2);
	assert_string_equal(copy[0], "1-one");
	assert_true(strv_contains(copy, "two"));
	assert_false(strv_contains(copy, "tw"));
}

static void test_error(void **state)
{
	_cleanup_error_ Error *err = NULL;

	(void)state;
	assert_int_equal(error_set(NULL, -EIO, "nobody asks"), -EIO);
	error_hint(&err, "no error yet");
	error_prefix(&err, "no error yet");
	assert_null(err);
	assert_int_equal(error_set(&err, -EIO, "first %d", 1), -EIO);
	assert_int_equal(error_set(&err, -EPERM, "second"), -EPERM);
	error_prefix(&err, "disk %s: ", "vda");
	error_hint(&err, "do this");
	error_hint(&err, "or that");
	assert_int_equal(err->code, -EIO);
	assert_string_equal(err->message, "disk vda: first 1");
	assert_string_equal(err->hint, "do this");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse_u64), cmocka_unit_test(test_parse_mark), cmocka_unit_test(test_parse_size), cmocka_unit_test(test_split_words),
		cmocka_unit_test(test_vm_name),	  cmocka_unit_test(test_ids),	     cmocka_unit_test(test_clean), cmocka_unit_test(test_secrets),
		cmocka_unit_test(test_strv),	  cmocka_unit_test(test_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
