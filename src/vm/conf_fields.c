/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conf.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "basic/text.h"

/* Fields of structs, by schema: check, store, write, copy, free. */

static const char *const false_words[] = {"false", "no", "off"};
static const char *const true_words[] = {"true", "yes", "on"};

/* Return: 0, 1 or -EINVAL. */
static int parse_bool(const char *value)
{
	for (size_t i = 0; i < ARRAY_SIZE(true_words); i++) {
		if (streq(value, true_words[i]))
			return 1;
		if (streq(value, false_words[i]))
			return 0;
	}
	return -EINVAL;
}

static char *size_text(uint64_t size)
{
	static const char units[] = "KMGT";
	unsigned int unit = 0;

	for (; unit < 4 && size && size % 1024 == 0; unit++)
		size /= 1024;
	return unit ? xasprintf("%" PRIu64 "%c", size, units[unit - 1]) : xasprintf("%" PRIu64, size);
}

static int number_hint(const ConfKey *key, Error **err)
{
	_cleanup_free_ char *min = NULL, *max = NULL, *step = NULL;

	if (key->type == CONF_NUMBER) {
		error_hint(err, "a whole number from %" PRIu64 " to %" PRIu64, key->min, key->max);
		return -EINVAL;
	}
	min = size_text(key->min);
	max = size_text(key->max);
	step = size_text(key->step);
	error_hint(err, "a number with K, M, G or T, from %s to %s%s%s, like \"2G\"", min, max,
		   key->step > 1 ? ", a multiple of " : "", key->step > 1 ? step : "");
	return -EINVAL;
}

static int check_number(const ConfKey *key, const char *value, Error **err)
{
	bool size = key->type == CONF_SIZE;
	_cleanup_free_ char *clean = text_clean(value, 60);
	uint64_t v;
	int r = size ? text_parse_size(value, &v) : text_parse_u64(value, &v);

	if (r == -ERANGE)
		error_set(err, -EINVAL, "%s is too large", clean);
	else if (r < 0)
		error_set(err, -EINVAL, "\"%s\" is not a %s", clean, size ? "size" : "number");
	else if (v < key->min)
		error_set(err, -EINVAL, "%s is too small", clean);
	else if (v > key->max)
		error_set(err, -EINVAL, "%s is too large", clean);
	else if (key->step > 1 && v % key->step)
		error_set(err, -EINVAL, "%s is not a multiple", clean);
	else
		return 0;
	return number_hint(key, err);
}

static int check_bool(const char *value, Error **err)
{
	_cleanup_free_ char *clean = text_clean(value, 60);

	if (parse_bool(value) >= 0)
		return 0;
	error_set(err, -EINVAL, "\"%s\" is neither true nor false", clean);
	error_hint(err, "true or false");
	return -EINVAL;
}

static int check_word(const ConfKey *key, const char *value, Error **err)
{
	_cleanup_free_ char *clean = text_clean(value, 60), *words = name_table_words(key->words, 0);

	if (name_table_find(key->words, value) >= 0)
		return 0;
	error_set(err, -EINVAL, "\"%s\" is not known", clean);
	error_hint(err, "one of %s", words);
	return -EINVAL;
}

int conf_value(const ConfKey *key, const char *value, char **ret, Error **err)
{
	int r = 0;

	switch (key->type) {
	case CONF_TEXT:
	case CONF_LIST:
		if (key->check)
			return key->check(value, ret, err);
		break;
	case CONF_NUMBER:
	case CONF_SIZE:
		r = check_number(key, value, err);
		break;
	case CONF_BOOL:
		r = check_bool(value, err);
		break;
	case CONF_WORD:
		r = check_word(key, value, err);
		break;
	case CONF_SECTION:
		r = -EINVAL;
		break;
	}
	if (r == 0)
		*ret = xstrdup(value);
	return r;
}

static uint64_t scale_of(const ConfKey *key)
{
	return key->scale ? key->scale : 1;
}

static void store_number(const ConfKey *key, void *field, uint64_t v)
{
	v *= scale_of(key);
	if (key->size == sizeof(uint64_t))
		*(uint64_t *)field = v;
	else
		*(unsigned int *)field = (unsigned int)v;
}

void conf_store(const ConfKey *key, void *object, const char *value)
{
	void *field = conf_field(key, object);
	uint64_t v = 0;

	if (key->store) {
		key->store(object, value);
		return;
	}
	switch (key->type) {
	case CONF_TEXT:
		free(*(char **)field);
		*(char **)field = xstrdup(value);
		break;
	case CONF_LIST:
		strv_push(field, xstrdup(value));
		break;
	case CONF_NUMBER:
		text_parse_u64(value, &v);
		store_number(key, field, v);
		break;
	case CONF_SIZE:
		text_parse_size(value, &v);
		store_number(key, field, v);
		break;
	case CONF_BOOL:
		*(bool *)field = parse_bool(value) == 1;
		break;
	case CONF_WORD:
		*(int *)field = name_table_find(key->words, value);
		break;
	case CONF_SECTION:
		break;
	}
}

char *conf_value_text(const ConfKey *key, const void *object)
{
	const void *field = conf_field_const(key, object);
	uint64_t v;

	switch (key->type) {
	case CONF_TEXT:
		return xstrdup(*(char *const *)field);
	case CONF_NUMBER:
	case CONF_SIZE:
		v = key->size == sizeof(uint64_t) ? *(const uint64_t *)field : *(const unsigned int *)field;
		v /= scale_of(key);
		return key->type == CONF_SIZE ? size_text(v) : xasprintf("%" PRIu64, v);
	case CONF_BOOL:
		return xstrdup(*(const bool *)field ? "true" : "false");
	case CONF_WORD:
		return xstrdup(key->words->names[*(const int *)field]);
	case CONF_LIST:
	case CONF_SECTION:
		break;
	}
	return NULL;
}

/* The elements of an array section, or the object itself for one whose fields are the parent's. */
static size_t instances(const ConfSection *section, const void *object, char **ret_first)
{
	if (!section->element_size) {
		*ret_first = (char *)object;
		return 1;
	}
	*ret_first = *(char *const *)((const char *)object + section->array_offset);
	return *(const size_t *)((const char *)object + section->count_offset);
}

static void clear_instances(const ConfSection *section, void *object)
{
	char *element;
	size_t n = instances(section, object, &element);
	void *array = element;

	for (size_t i = 0; i < n; i++, element += section->element_size) {
		conf_clear(section, element);
		if (section->element_size)
			free(*(char **)(element + section->title_offset));
	}
	if (section->element_size)
		free(array);
}

void conf_clear(const ConfSection *section, void *object)
{
	for (size_t i = 0; i < section->n_keys; i++) {
		const ConfKey *key = &section->keys[i];

		if (key->store)
			continue;
		if (key->type == CONF_SECTION)
			clear_instances(key->section, object);
		else if (key->type == CONF_TEXT)
			free(*(char **)conf_field(key, object));
		else if (key->type == CONF_LIST)
			strv_free(*(char ***)conf_field(key, object));
	}
}

static void copy_instances(const ConfSection *section, const void *from, void *to)
{
	char *element, *copy;
	size_t n = instances(section, from, &element);

	if (!section->element_size) {
		if (section->title_words)
			*(int *)((char *)to + section->title_offset) =
				*(const int *)((const char *)from + section->title_offset);
		conf_copy(section, from, to);
		return;
	}
	copy = xcalloc(n, section->element_size);
	*(void **)((char *)to + section->array_offset) = copy;
	*(size_t *)((char *)to + section->count_offset) = n;
	for (size_t i = 0; i < n; i++, element += section->element_size, copy += section->element_size) {
		*(char **)(copy + section->title_offset) = xstrdup(*(char **)(element + section->title_offset));
		conf_copy(section, element, copy);
	}
}

void conf_copy(const ConfSection *section, const void *from, void *to)
{
	for (size_t i = 0; i < section->n_keys; i++) {
		const ConfKey *key = &section->keys[i];
		const void *source = conf_field_const(key, from);
		void *target = conf_field(key, to);

		if (key->type == CONF_SECTION)
			copy_instances(key->section, from, to);
		else if (key->type == CONF_TEXT)
			*(char **)target = xstrdup(*(char *const *)source);
		else if (key->type == CONF_LIST)
			*(char ***)target = strv_copy(*(char **const *)source);
		else
			memcpy(target, source, key->size);
	}
}

static void put_quoted(FILE *f, const char *s)
{
	fputc('"', f);
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			fputc('\\', f);
		fputc(*s, f);
	}
	fputc('"', f);
}

static void put_list(FILE *f, char *const *list)
{
	fputs("{ ", f);
	for (size_t i = 0; list[i]; i++) {
		fputs(i ? ", " : "", f);
		put_quoted(f, list[i]);
	}
	fputs(" }", f);
}

/* As if the key were not there. */
static bool is_fallback(const ConfKey *key, const char *value)
{
	static const char *const nothing[] = {
		[CONF_NUMBER] = "0",
		[CONF_SIZE] = "0",
		[CONF_BOOL] = "false",
	};
	const char *fallback = key->fallback	 ? key->fallback
			       : key->type <= CONF_BOOL ? nothing[key->type]
							: NULL;

	return !(key->flags & (CONF_REQUIRED | CONF_PINNED)) && streq_null(value, fallback);
}

static void put_key(FILE *f, const char *indent, const ConfKey *key, const void *object)
{
	_cleanup_free_ char *value = conf_value_text(key, object);
	char *const *list = key->type == CONF_LIST ? *(char **const *)conf_field_const(key, object) : NULL;

	if (list ? false : !value || is_fallback(key, value))
		return;
	fprintf(f, "%s%s = ", indent, key->name);
	if (list)
		put_list(f, list);
	else if (key->type == CONF_NUMBER || key->type == CONF_BOOL)
		fputs(value, f);
	else if (value)
		put_quoted(f, value);
	fputc('\n', f);
}

static char *keys_text(const char *indent, const ConfSection *section, const void *object);

static void put_section(FILE *f, const ConfSection *section, const void *object)
{
	char *element;
	size_t n = instances(section, object, &element);

	if (section->title_words && *(const int *)((const char *)object + section->title_offset) == 0)
		return;
	for (size_t i = 0; i < n; i++, element += section->element_size) {
		_cleanup_free_ char *keys = keys_text("\t", section, element);
		const char *title = NULL;

		if (section->title_words)
			title = section->title_words->names[*(int *)(element + section->title_offset)];
		else if (section->titled)
			title = *(char **)(element + section->title_offset);
		if (title || *keys)
			fprintf(f, "%s%s%s {\n%s}\n", section->name, title ? " " : "", title ? title : "", keys);
	}
}

static char *keys_text(const char *indent, const ConfSection *section, const void *object)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		abort();
	for (size_t i = 0; i < section->n_keys; i++) {
		if (section->keys[i].type == CONF_SECTION)
			put_section(f, section->keys[i].section, object);
		else
			put_key(f, indent, &section->keys[i], object);
	}
	if (fclose(f) != 0)
		abort();
	return text;
}

char *conf_text(const ConfSection *root, const void *object)
{
	return keys_text("", root, object);
}
