/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/json.h"

/* Figures and tables for people. All format_*() return text to free(). */

/**
 * format_text() - copy of text from elsewhere that is safe to print
 *
 * Control characters and what is no UTF-8 become '?'; cut at 1024 bytes.
 */
char *format_text(const char *s);
/** format_size() - "512 B", "1.5 MiB", "612 MiB" */
char *format_size(uint64_t bytes);
/** format_msec() - "45 ms", "3.2 s", "2 min 5 s", "3 h 4 min" */
char *format_msec(uint64_t ms);
/** format_ms() - milliseconds from JSON; a fraction is shown of what is short: "4.2 ms" */
char *format_ms(json_object *value);
/** format_count() - "1 connection", "10 connections" */
char *format_count(uint64_t n, const char *noun);
/**
 * format_time() - a point in time from JSON: a number of seconds since 1970 (a fraction is fine) becomes local time
 * "2025-03-01 12:00:00", text is cleaned, NULL and all else gives ""
 */
char *format_time(json_object *value);
/** format_value() - any JSON value as it stands in a table: text cleaned, numbers as they are, NULL as "" */
char *format_value(json_object *value);

/**
 * struct Column - a column of a table
 * @title:  heading
 * @path:   member of a row, may be a path ("migration.phase")
 * @format: how to print it, NULL: format_value()
 * @right:  figures, aligned to the right
 */
typedef struct Column {
	const char *title;
	const char *path;
	char *(*format)(json_object *value);
	bool right;
} Column;

/** output_table() - print rows (a JSON array of objects) as a table. Return: 0 or negative errno */
int output_table(const Column *columns, size_t n_columns, json_object *rows);

/** output_fields() - print the columns that @row has and that are not empty, a line each: "title  value" */
void output_fields(const Column *columns, size_t n_columns, json_object *row);

/** output_json() - print a JSON text and a newline */
void output_json(json_object *o);

/**
 * output_error() - "vmferry: NAME: MESSAGE" and, if there is one, "hint: HINT" on standard error
 * @name: VM, may be NULL
 */
void output_error(const char *name, const Error *err);
