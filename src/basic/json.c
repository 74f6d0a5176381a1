/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "json.h"

#include <stdarg.h>

#include "text.h"

json_object *json_member(json_object *o, const char *path)
{
	_cleanup_free_ char *copy = xstrdup(path);
	char *save = NULL;

	for (char *name = strtok_r(copy, ".", &save); name; name = strtok_r(NULL, ".", &save))
		if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, name, &o))
			return NULL;
	return o;
}

bool json_get_string(json_object *o, const char *path, const char **ret)
{
	o = json_member(o, path);
	if (!json_object_is_type(o, json_type_string))
		return false;
	*ret = json_object_get_string(o);
	return true;
}

bool json_get_u64(json_object *o, const char *path, uint64_t *ret)
{
	o = json_member(o, path);
	if (!json_object_is_type(o, json_type_int) || json_object_get_int64(o) < 0)
		return false;
	*ret = json_object_get_uint64(o);
	return true;
}

bool json_get_bool(json_object *o, const char *path, bool *ret)
{
	o = json_member(o, path);
	if (!json_object_is_type(o, json_type_boolean))
		return false;
	*ret = json_object_get_boolean(o);
	return true;
}

static bool get_type(json_object *o, const char *path, json_type type, json_object **ret)
{
	o = json_member(o, path);
	if (!json_object_is_type(o, type))
		return false;
	*ret = o;
	return true;
}

bool json_get_object(json_object *o, const char *path, json_object **ret)
{
	return get_type(o, path, json_type_object, ret);
}

bool json_get_array(json_object *o, const char *path, json_object **ret)
{
	return get_type(o, path, json_type_array, ret);
}

json_object *json_parse(const char *text, size_t len)
{
	json_tokener *tok;
	json_object *o;

	if (len > INT32_MAX)
		return NULL;
	tok = json_tokener_new_ex(32);
	if (!tok)
		abort();
	o = json_tokener_parse_ex(tok, text, (int)len);
	if (json_tokener_get_error(tok) != json_tokener_success) {
		json_object_put(o);
		o = NULL;
	} else {
		for (size_t i = json_tokener_get_parse_end(tok); i < len; i++)
			if (!strchr(" \t\r\n", text[i]) || !text[i]) {
				json_object_put(o);
				o = NULL;
				break;
			}
	}
	json_tokener_free(tok);
	return o;
}

static void extend(json_object *o, const char *name, va_list ap)
{
	for (; name; name = va_arg(ap, const char *)) {
		const char *type = va_arg(ap, const char *);
		json_object *value = NULL;

		switch (*type) {
		case 's': {
			const char *s = va_arg(ap, const char *);

			value = s ? json_object_new_string(s) : NULL;
			break;
		}
		case 'u':
			value = json_object_new_uint64(va_arg(ap, uint64_t));
			break;
		case 'i':
			value = json_object_new_int64(va_arg(ap, int64_t));
			break;
		case 'b':
			value = json_object_new_boolean(va_arg(ap, int));
			break;
		case 'd':
			value = json_object_new_double(va_arg(ap, double));
			json_object_set_serializer(value, json_object_double_to_json_string, (void *)(uintptr_t) "%.2f",
						   NULL);
			break;
		case 'o':
			value = va_arg(ap, json_object *);
			break;
		default:
			abort();
		}
		if (value)
			json_object_object_add(o, name, value);
	}
}

void json_extend(json_object *o, const char *name, ...)
{
	va_list ap;

	va_start(ap, name);
	extend(o, name, ap);
	va_end(ap);
}

json_object *json_build(const char *name, ...)
{
	json_object *o = json_object_new_object();
	va_list ap;

	va_start(ap, name);
	extend(o, name, ap);
	va_end(ap);
	return o;
}

const char *json_text(json_object *o)
{
	return json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}
