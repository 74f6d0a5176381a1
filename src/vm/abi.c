/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdarg.h>
#include <stdio.h>

#include "basic/text.h"
#include "schema.h"

/*
 * Guest ABI check. What a guest can see is marked in the schema; here is only the walk over it. The order of disks and
 * of NICs counts: their PCI addresses follow from it.
 */

typedef struct Compare {
	char **differences;
	size_t n;
} Compare;

static void _printf_(2, 3) differ(Compare *c, const char *fmt, ...)
{
	_cleanup_free_ char *line = NULL;
	va_list ap;

	va_start(ap, fmt);
	line = xvasprintf(fmt, ap);
	va_end(ap);
	strv_push(&c->differences, TAKE_PTR(line));
	c->n++;
}

static char *list_text(char *const *list)
{
	char *text = xstrdup("");

	for (size_t i = 0; list && list[i]; i++) {
		_cleanup_free_ char *old = text;

		text = xasprintf("%s%s\"%s\"", old, i ? " " : "", list[i]);
	}
	return text;
}

static bool lists_equal(char *const *a, char *const *b)
{
	size_t n = strv_length(a);

	if (strv_length(b) != n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!streq(a[i], b[i]))
			return false;
	return true;
}

/* What the guest sees of a key, as text; NULL: nothing. */
static char *seen_text(const ConfKey *key, const void *object)
{
	_cleanup_free_ char *text = NULL;

	if (key->type == CONF_LIST) {
		char *const *list = *(char **const *)conf_field_const(key, object);

		return list ? list_text(list) : NULL;
	}
	text = conf_value_text(key, object);
	if (!(key->flags & CONF_PRESENCE))
		return TAKE_PTR(text);
	if (key->type == CONF_WORD && *(const int *)conf_field_const(key, object) == key->absent)
		return NULL;
	return text ? xstrdup("given") : NULL;
}

/* @x, @y: what is seen of them */
static bool differs(const ConfKey *key, const void *a, const void *b, const char *x, const char *y)
{
	if (key->differs)
		return key->differs(a, b);
	if (key->type == CONF_LIST)
		return !lists_equal(*(char **const *)conf_field_const(key, a),
				    *(char **const *)conf_field_const(key, b));
	return !streq_null(x, y);
}

static void compare_key(Compare *c, const char *place, const ConfKey *key, const void *a, const void *b)
{
	_cleanup_free_ char *x = NULL, *y = NULL;

	if (!(key->flags & (CONF_GUEST | CONF_PRESENCE)))
		return;
	x = seen_text(key, a);
	y = seen_text(key, b);
	if (differs(key, a, b, x, y))
		differ(c, "%s%s is %s here, %s there", place, key->name, x ? x : "not set", y ? y : "not set");
}

static void compare_keys(Compare *c, const char *place, const ConfSection *section, const void *a, const void *b)
{
	for (size_t i = 0; i < section->n_keys; i++)
		if (section->keys[i].type != CONF_SECTION)
			compare_key(c, place, &section->keys[i], a, b);
}

static const char *element(const ConfSection *section, const void *object, size_t i)
{
	return *(char *const *)((const char *)object + section->array_offset) + i * section->element_size;
}

static size_t length(const ConfSection *section, const void *object)
{
	return *(const size_t *)((const char *)object + section->count_offset);
}

static const char *title(const ConfSection *section, const char *object)
{
	return *(char *const *)(object + section->title_offset);
}

/* The element of @object titled @wanted, NULL if there is none. */
static const char *find(const ConfSection *section, const void *object, const char *wanted, size_t *ret_index)
{
	for (size_t i = 0; i < length(section, object); i++) {
		const char *e = element(section, object, i);

		if (streq(title(section, e), wanted)) {
			*ret_index = i;
			return e;
		}
	}
	return NULL;
}

static void compare_elements(Compare *c, const ConfSection *section, const void *a, const void *b)
{
	size_t j;

	for (size_t i = 0; i < length(section, a); i++) {
		const char *x = element(section, a, i), *y = find(section, b, title(section, x), &j);
		_cleanup_free_ char *place = xasprintf("%s %s: ", section->name, title(section, x));

		if (!y) {
			differ(c, "%s %s is here, not there", section->name, title(section, x));
			continue;
		}
		if (i != j)
			differ(c, "%splace is number %zu here, %zu there", place, i + 1, j + 1);
		compare_keys(c, place, section, x, y);
	}
	for (size_t i = 0; i < length(section, b); i++) {
		const char *wanted = title(section, element(section, b, i));

		if (!find(section, a, wanted, &j))
			differ(c, "%s %s is there, not here", section->name, wanted);
	}
}

/* A section with one word as its title: the guest sees whether it is there, if it sees it at all. */
static void compare_graphics(Compare *c, const VmDefinition *a, const VmDefinition *b)
{
	if ((a->graphics == GRAPHICS_NONE) != (b->graphics == GRAPHICS_NONE))
		differ(c, "graphics is %s here, %s there", graphics_type_to_string(a->graphics),
		       graphics_type_to_string(b->graphics));
}

size_t vm_abi_compare(const VmDefinition *a, const VmDefinition *b, char ***ret_differences)
{
	Compare c = {0};

	compare_keys(&c, "", &definition_schema, a, b);
	for (size_t i = 0; i < definition_schema.n_keys; i++) {
		const ConfSection *section = definition_schema.keys[i].section;

		if (section && section->element_size)
			compare_elements(&c, section, a, b);
	}
	compare_graphics(&c, a, b);
	*ret_differences = c.differences;
	return c.n;
}
