/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/cookie.h"

#include <errno.h>

#include "basic/text.h"

static const char *const type_signature[] = {
	[COOKIE_STRING] = "s",
	[COOKIE_STRV] = "as",
	[COOKIE_U64] = "t",
	[COOKIE_BOOL] = "b",
};

static int append_string(sd_bus_message *m, const CookieField *field, const char *s)
{
	_cleanup_free_ char *clean = field->text ? text_clean(s, field->max) : NULL;

	if (!clean && strlen(s) > field->max)
		return -E2BIG;
	return sd_bus_message_append(m, "{sv}", field->name, "s", clean ? clean : s);
}

/* What the other end will take of a list: for people as much as fits, else all or nothing. */
static int fit_strv(const CookieField *field, char *const *v, char ***ret)
{
	_cleanup_strv_ char **fit = NULL;

	for (size_t i = 0; v[i]; i++) {
		if (i >= field->max && field->text)
			break;
		if (i >= field->max || (!field->text && strlen(v[i]) > COOKIE_WORD_MAX))
			return -E2BIG;
		strv_push(&fit, field->text ? text_clean(v[i], COOKIE_WORD_MAX) : xstrdup(v[i]));
	}
	*ret = TAKE_PTR(fit);
	return 0;
}

static int append_strv(sd_bus_message *m, const CookieField *field, char *const *v)
{
	_cleanup_strv_ char **fit = NULL;
	int r = fit_strv(field, v, &fit);

	if (r >= 0)
		r = sd_bus_message_open_container(m, 'e', "sv");
	if (r >= 0)
		r = sd_bus_message_append(m, "s", field->name);
	if (r >= 0)
		r = sd_bus_message_open_container(m, 'v', "as");
	if (r >= 0)
		r = sd_bus_message_append_strv(m, fit);
	if (r >= 0)
		r = sd_bus_message_close_container(m);
	return r < 0 ? r : sd_bus_message_close_container(m);
}

static int append_value(sd_bus_message *m, const CookieField *field, const void *at)
{
	uint64_t v;

	switch (field->type) {
	case COOKIE_STRING:
		return append_string(m, field, *(char *const *)at);
	case COOKIE_STRV:
		return append_strv(m, field, *(char *const *const *)at);
	case COOKIE_U64:
		v = *(const uint64_t *)at;
		if (field->max && v > field->max)
			return -ERANGE;
		return sd_bus_message_append(m, "{sv}", field->name, "t", v);
	case COOKIE_BOOL:
		return sd_bus_message_append(m, "{sv}", field->name, "b", (int)*(const bool *)at);
	}
	return -EINVAL;
}

int cookie_append(sd_bus_message *m, const CookieTable *table, const void *data)
{
	int r = sd_bus_message_open_container(m, 'a', "{sv}");

	for (size_t i = 0; r >= 0 && i < table->n_fields; i++) {
		const CookieField *field = &table->fields[i];
		const void *at = (const char *)data + field->offset;

		if ((field->type == COOKIE_STRING || field->type == COOKIE_STRV) && !*(void *const *)at)
			continue;
		r = append_value(m, field, at);
	}
	return r < 0 ? r : sd_bus_message_close_container(m);
}

int cookie_reply(sd_bus_message *call, const CookieTable *table, const void *data)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *reply = NULL;
	int r = sd_bus_message_new_method_return(call, &reply);

	if (r >= 0)
		r = cookie_append(reply, table, data);
	return r < 0 ? r : sd_bus_send(NULL, reply, NULL);
}

/* What is for people is cleaned, what is for programs must be clean. */
static int take_string(const CookieField *field, uint64_t max, const char *s, char **ret)
{
	_cleanup_free_ char *clean = field->lines ? xstrdup(s) : text_clean(s, strlen(s));

	if (strlen(s) > max)
		return -E2BIG;
	if (!field->text && !streq(clean, s))
		return -EILSEQ;
	*ret = TAKE_PTR(clean);
	return 0;
}

static int read_strv(sd_bus_message *m, const CookieField *field, char ***ret)
{
	_cleanup_strv_ char **v = NULL;
	const char *s;
	char *taken;
	int r = sd_bus_message_enter_container(m, 'a', "s");

	while (r >= 0 && (r = sd_bus_message_read(m, "s", &s)) > 0) {
		if (strv_length(v) >= field->max)
			return -E2BIG;
		r = take_string(field, COOKIE_WORD_MAX, s, &taken);
		if (r < 0)
			return r;
		strv_push(&v, taken);
	}
	if (r < 0)
		return r;
	*ret = TAKE_PTR(v);
	return sd_bus_message_exit_container(m);
}

static int read_value(sd_bus_message *m, const CookieField *field, void *at)
{
	const char *s;
	uint64_t v;
	int b, r;

	switch (field->type) {
	case COOKIE_STRING:
		r = sd_bus_message_read(m, "s", &s);
		return r < 0 ? r : take_string(field, field->max, s, at);
	case COOKIE_STRV:
		return read_strv(m, field, (char ***)at);
	case COOKIE_U64:
		r = sd_bus_message_read(m, "t", &v);
		if (r < 0)
			return r;
		if (field->max && v > field->max)
			return -ERANGE;
		*(uint64_t *)at = v;
		return 0;
	case COOKIE_BOOL:
		r = sd_bus_message_read(m, "b", &b);
		if (r < 0)
			return r;
		*(bool *)at = b;
		return 0;
	}
	return -EINVAL;
}

static ssize_t find_field(const CookieTable *table, const char *name)
{
	for (size_t i = 0; i < table->n_fields; i++)
		if (streq(table->fields[i].name, name))
			return (ssize_t)i;
	return -1;
}

/* The value of one entry: into the struct if the table knows it. */
static int read_entry(sd_bus_message *m, const CookieTable *table, uint64_t *seen, void *data, Error **err)
{
	const char *name, *contents;
	const CookieField *field;
	ssize_t i;
	char type;
	int r;

	r = sd_bus_message_read(m, "s", &name);
	if (r < 0)
		return error_set(err, -EPROTO, "%s: an entry without a name", table->name);
	i = find_field(table, name);
	if (i < 0)
		return sd_bus_message_skip(m, "v");
	field = &table->fields[i];
	if (*seen & 1ULL << i)
		return error_set(err, -EPROTO, "%s: field %s comes twice", table->name, field->name);
	*seen |= 1ULL << i;
	r = sd_bus_message_peek_type(m, &type, &contents);
	if (r <= 0 || !streq(contents, type_signature[field->type]))
		return error_set(err, -EPROTO, "%s: field %s is of the wrong type", table->name, field->name);
	r = sd_bus_message_enter_container(m, 'v', contents);
	if (r >= 0)
		r = read_value(m, field, (char *)data + field->offset);
	if (r == -E2BIG || r == -ERANGE)
		return error_set(err, -EPROTO, "%s: field %s is over its limit", table->name, field->name);
	if (r == -EILSEQ)
		return error_set(err, -EPROTO, "%s: field %s has characters it cannot have", table->name, field->name);
	return r < 0 ? r : sd_bus_message_exit_container(m);
}

static int check_complete(const CookieTable *table, uint64_t seen, const char *const *known, const void *data,
			  Error **err)
{
	for (size_t i = 0; i < table->n_fields; i++) {
		const CookieField *field = &table->fields[i];
		char **features;

		if (field->required && !(seen & 1ULL << i))
			return error_set(err, -EPROTO, "%s: field %s is missing", table->name, field->name);
		if (!streq(field->name, COOKIE_MANDATORY))
			continue;
		features = *(char ***)(uintptr_t)((const char *)data + field->offset);
		for (size_t j = 0; features && features[j]; j++) {
			_cleanup_free_ char *clean = text_clean(features[j], 64);

			if (!strv_contains((char *const *)(uintptr_t)known, features[j])) {
				error_set(err, -ENOTSUP, "%s: the peer requires the feature '%s', which is unknown here",
					  table->name, clean);
				error_hint(err, "bring both hosts to the same version of vmferry");
				return -ENOTSUP;
			}
		}
	}
	return 0;
}

int cookie_read(sd_bus_message *m, const CookieTable *table, const char *const *known, void *data, Error **err)
{
	size_t entries = 0;
	uint64_t seen = 0;
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	while (r >= 0 && (r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		if (++entries > COOKIE_ENTRIES_MAX) {
			r = error_set(err, -EPROTO, "%s: more than %d entries", table->name, COOKIE_ENTRIES_MAX);
			break;
		}
		r = read_entry(m, table, &seen, data, err);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
	}
	if (r >= 0)
		r = sd_bus_message_exit_container(m);
	if (r >= 0)
		r = check_complete(table, seen, known, data, err);
	if (r < 0) {
		error_set(err, -EPROTO, "%s: malformed cookie", table->name);
		cookie_clear(table, data);
		return r == -ENOTSUP ? r : -EPROTO;
	}
	return 0;
}

void cookie_clear(const CookieTable *table, void *data)
{
	for (size_t i = 0; i < table->n_fields; i++) {
		void *at = (char *)data + table->fields[i].offset;

		if (table->fields[i].type == COOKIE_STRING)
			secret_free(*(char **)at); /* some are keys */
		else if (table->fields[i].type == COOKIE_STRV)
			strv_free(*(char ***)at);
	}
	memset(data, 0, table->size);
}
