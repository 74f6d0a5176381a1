/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <stdio.h>

#include "basic/json.h"

/**
 * enum OptionKind - what an option's argument is, and as which JSON value it is kept
 * @OPTION_FLAG:   none; true
 * @OPTION_NO:     none; false ("--no-live")
 * @OPTION_SWITCH: "on" or "off"; bool
 * @OPTION_TEXT:   text that is not empty
 * @OPTION_LIST:   the same, may be given several times; kept as an array
 * @OPTION_CHOICE: one of the words in @argument ("tls|tcp|ssh")
 * @OPTION_RATE:   bytes a second, suffix K, M, G or T; at least 1
 * @OPTION_MSEC:   a duration, milliseconds unless it has a unit; kept in ms, at least 1
 * @OPTION_COUNT:  a number, 1 to 64
 * @OPTION_SEC:    a duration, seconds unless it has a unit; kept in s, at least 1
 * @OPTION_THROTTLE: "off", "auto" or a percentage up to 99; a number, "auto" as 80
 * @OPTION_LIMITS: "NAME=TIME", NAME one of the words in @argument, before its "="; may be given several times; an object
 * of times in ms
 * @OPTION_FILE:   a file; its text is kept
 */
typedef enum OptionKind {
	OPTION_FLAG,
	OPTION_NO,
	OPTION_SWITCH,
	OPTION_TEXT,
	OPTION_LIST,
	OPTION_CHOICE,
	OPTION_RATE,
	OPTION_MSEC,
	OPTION_SEC,
	OPTION_COUNT,
	OPTION_THROTTLE,
	OPTION_LIMITS,
	OPTION_FILE,
	_OPTION_KIND_MAX
} OptionKind;

/**
 * struct OptionSpec - one row of a table of options
 * @name:     long name; NULL ends the table
 * @letter:   short name or 0
 * @kind:     of its argument
 * @argument: the argument's name for --help
 * @key:      member its value is kept under
 * @help:     one line; NULL hides the option
 */
typedef struct OptionSpec {
	const char *name;
	char letter;
	OptionKind kind;
	const char *argument;
	const char *key;
	const char *help;
} OptionSpec;

/**
 * struct OptionSet - a table of options and where its values go
 * @specs:  may be NULL: none
 * @values: JSON object
 */
typedef struct OptionSet {
	const OptionSpec *specs;
	json_object *values;
} OptionSet;

/**
 * option_value() - check one value and put it into a JSON object
 * @spec: the option; its name is used in the error
 * @text: the argument, NULL for kinds without one
 *
 * Return: 0, or negative errno with @err and its hint set.
 */
int option_value(const OptionSpec *spec, const char *text, json_object *values, Error **err);

/** option_find() - the row of that name, or NULL; @specs may be NULL */
const OptionSpec *option_find(const OptionSpec *specs, const char *name);

/**
 * options_parse() - parse a command line
 * @sets:         tables, ended by one whose values are NULL
 * @argc, @argv:  argv[0] is not looked at; arguments are moved behind the options unless @stop
 * @stop:         stop at the first word that is no option
 * @words:        the options in canonical form are appended ("--name=value"), may be NULL
 *
 * Return: index of the first word that is no option, or negative errno with @err set.
 */
int options_parse(const OptionSet *sets, int argc, char **argv, bool stop, char ***words, Error **err);

/** options_help() - print a table of options, a line each */
void options_help(const OptionSpec *specs, FILE *out);

/**
 * text_parse_duration() - a whole number with an optional unit ms, s, m or h
 * @unit: microseconds of a number without unit
 *
 * Return: 0, -EINVAL or -ERANGE.
 */
int text_parse_duration(const char *s, uint64_t unit, uint64_t *ret_usec);
