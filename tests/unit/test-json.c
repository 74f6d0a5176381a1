/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include "basic/json.h"
#include "basic/text.h"

static json_object *parse(const char *text)
{
	return json_parse(text, strlen(text));
}

static void test_parse(void **state)
{
	static const char *const good[] = {"{}", " {\"a\": [1, 2]} \r\n", "[]"};
	static const char *const bad[] = {"", " ", "{", "{}}", "{} x", "{\"a\":}", "nonsense", "[1"};
	static const char zero[] = "{}\0";
	_cleanup_free_ char *deep = xcalloc(1, 201);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		_cleanup_json_ json_object *o = parse(good[i]);

		assert_non_null(o);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_null(parse(bad[i]));
	assert_null(json_parse(zero, 3));
	memset(deep, '[', 100);
	memset(deep + 100, ']', 100);
	assert_null(parse(deep));
}

static void test_get(void **state)
{
	_cleanup_json_ json_object *o =
		parse("{\"s\": \"text\", \"u\": 18446744073709551615, \"n\": -1, \"b\": true, \"d\": 1.5, \"z\": null,"
		      "\"o\": {\"p\": {\"q\": 7}}, \"a\": [1]}");
	const char *s = "untouched";
	json_object *sub = NULL;
	uint64_t u = 77;
	bool b = false;

	(void)state;
	assert_true(json_get_string(o, "s", &s));
	assert_string_equal(s, "text");
	assert_true(json_get_u64(o, "u", &u));
	assert_int_equal(u, UINT64_MAX);
	assert_true(json_get_u64(o, "o.p.q", &u));
	assert_int_equal(u, 7);
	assert_true(json_get_bool(o, "b", &b) && b);
	assert_true(json_get_object(o, "o.p", &sub));
	assert_true(json_get_array(o, "a", &sub));
	assert_int_equal(json_object_array_length(sub), 1);
}

static void test_get_refused(void **state)
{
	_cleanup_json_ json_object *o = parse("{\"s\": \"5\", \"n\": -1, \"d\": 1.5, \"z\": null, \"i\": 1}");
	const char *s = "untouched";
	json_object *sub = NULL;
	uint64_t u = 77;
	bool b = true;

	(void)state;
	assert_false(json_get_u64(o, "n", &u));
	assert_false(json_get_u64(o, "d", &u));
	assert_false(json_get_u64(o, "s", &u));
	assert_false(json_get_u64(o, "z", &u));
	assert_false(json_get_u64(o, "s.t", &u));
	assert_false(json_get_u64(o, "missing", &u));
	assert_false(json_get_u64(NULL, "i", &u));
	assert_false(json_get_bool(o, "i", &b));
	assert_false(json_get_string(o, "i", &s));
	assert_false(json_get_string(o, "z", &s));
	assert_false(json_get_object(o, "s", &sub));
	assert_false(json_get_array(o, "z", &sub));
	assert_int_equal(u, 77);
	assert_true(b);
	assert_string_equal(s, "untouched");
	assert_null(sub);
}

static void test_build(void **state)
{
	_cleanup_json_ json_object *o =
		json_build("s", "s", "a/\"b\"", "none", "s", NULL, "u", "u", UINT64_MAX, "i", "i", (int64_t)-1, "b",
			   "b", 1, "o", "o", json_object_new_array(), "no", "o", NULL, NULL);

	(void)state;
	json_extend(o, "more", "u", (uint64_t)1, NULL);
	assert_string_equal(json_text(o),
			    "{\"s\":\"a/\\\"b\\\"\",\"u\":18446744073709551615,\"i\":-1,\"b\":true,\"o\":[],"
			    "\"more\":1}");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_get),
		cmocka_unit_test(test_get_refused),
		cmocka_unit_test(test_build),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
