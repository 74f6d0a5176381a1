/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <libsmartcols.h>
#include <time.h>

#include "basic/text.h"

/* Longest text from elsewhere that is printed. */
#define TEXT_MAX 1024

/* Length of the character at @s if it is one that can be printed, else 0 (RFC 3629; U+0080 to U+009F are controls). */
static size_t printable(const unsigned char *s)
{
	static const unsigned char leads[][2] = {{0x01, 0x7f}, {0xc2, 0xdf}, {0xe0, 0xef}, {0xf0, 0xf4}};
	size_t len = 0;

	for (size_t i = 0; i < ARRAY_SIZE(leads); i++)
		if (*s >= leads[i][0] && *s <= leads[i][1])
			len = i + 1;
	if (len == 1)
		return *s >= 0x20 && *s != 0x7f;
	for (size_t i = 1; i < len; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	if ((*s == 0xc2 && s[1] < 0xa0) || (*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] >= 0xa0) ||
	    (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] >= 0x90))
		return 0;
	return len;
}

char *format_text(const char *s)
{
	char *copy = strndup(s, TEXT_MAX);

	if (!copy)
		abort();
	for (char *p = copy; *p;) {
		size_t len = printable((unsigned char *)p);

		if (len == 0)
			*p = '?';
		p += len ? len : 1;
	}
	return copy;
}

char *format_size(uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t unit = 0;

	for (; v >= 1023.5 && unit + 1 < ARRAY_SIZE(units); unit++)
		v /= 1024;
	return xasprintf("%.*f %s", unit > 0 && v < 9.95 ? 1 : 0, v, units[unit]);
}

char *format_msec(uint64_t ms)
{
	uint64_t s = ms / 1000;

	if (ms < 1000)
		return xasprintf("%" PRIu64 " ms", ms);
	if (ms < 10000)
		return xasprintf("%" PRIu64 ".%" PRIu64 " s", s, ms % 1000 / 100);
	if (s < 60)
		return xasprintf("%" PRIu64 " s", s);
	if (s < 3600)
		return xasprintf("%" PRIu64 " min %" PRIu64 " s", s / 60, s % 60);
	return xasprintf("%" PRIu64 " h %" PRIu64 " min", s / 3600, s % 3600 / 60);
}

char *format_ms(json_object *value)
{
	double ms = json_object_get_double(value);

	if (json_object_is_type(value, json_type_double) && ms >= 0 && ms < 99.95)
		return xasprintf("%.1f ms", ms);
	return format_msec(ms > 0 ? (uint64_t)(ms + 0.5) : 0);
}

char *format_count(uint64_t n, const char *noun)
{
	return xasprintf("%" PRIu64 " %s%s", n, noun, n == 1 ? "" : "s");
}

char *format_value(json_object *value)
{
	if (!value)
		return xstrdup("");
	return format_text(json_object_is_type(value, json_type_string) ? json_object_get_string(value)
									: json_text(value));
}

char *format_time(json_object *value)
{
	struct tm tm;
	char text[32];
	time_t t;

	if (!json_object_is_type(value, json_type_int) && !json_object_is_type(value, json_type_double))
		return format_value(value);
	t = (time_t)json_object_get_int64(value);
	if (!localtime_r(&t, &tm) || strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) == 0)
		return format_value(value);
	return xstrdup(text);
}

static char *cell(const Column *column, json_object *row)
{
	json_object *value = json_member(row, column->path);

	return (column->format ? column->format : format_value)(value);
}

static int add_row(struct libscols_table *table, const Column *columns, size_t n_columns, json_object *row)
{
	struct libscols_line *line = scols_table_new_line(table, NULL);
	int r = line ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < n_columns; i++)
		r = scols_line_refer_data(line, i, cell(&columns[i], row));
	return r;
}

static void table_unrefp(struct libscols_table **table)
{
	scols_unref_table(*table);
}

int output_table(const Column *columns, size_t n_columns, json_object *rows)
{
	_cleanup_(table_unrefp)
	struct libscols_table *table = scols_new_table();
	int r = 0;

	if (!table)
		return -ENOMEM;
	for (size_t i = 0; i < n_columns; i++)
		if (!scols_table_new_column(table, columns[i].title, 0, columns[i].right ? SCOLS_FL_RIGHT : 0))
			return -ENOMEM;
	for (size_t i = 0; r == 0 && i < json_object_array_length(rows); i++)
		r = add_row(table, columns, n_columns, json_object_array_get_idx(rows, i));
	return r < 0 ? r : scols_print_table(table);
}

void output_fields(const Column *columns, size_t n_columns, json_object *row)
{
	int width = 0;

	for (size_t i = 0; i < n_columns; i++)
		if (json_member(row, columns[i].path) && (int)strlen(columns[i].title) > width)
			width = (int)strlen(columns[i].title);
	for (size_t i = 0; i < n_columns; i++) {
		_cleanup_free_ char *text = NULL;

		if (!json_member(row, columns[i].path))
			continue;
		text = cell(&columns[i], row);
		if (*text)
			printf("  %-*s  %s\n", width, columns[i].title, text);
	}
}

void output_json(json_object *o)
{
	printf("%s\n", json_text(o));
	fflush(stdout);
}

void output_error(const char *name, const Error *err)
{
	_cleanup_free_ char *message = format_text(err->message);

	fflush(stdout);
	fprintf(stderr, "vmferry: %s%s%s\n", name ? name : "", name ? ": " : "", message);
	if (err->hint) {
		_cleanup_free_ char *hint = format_text(err->hint);

		fprintf(stderr, "hint: %s\n", hint);
	}
}
