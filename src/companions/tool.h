/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/json.h"
#include "basic/text.h"
#include "cli/options.h"
#include "conntrack/conntrack.h"

/* What the companions' command lines share: a program of verbs, each with a table of options, that choose entries. */

typedef struct Tool Tool;

/**
 * struct Verb - a row of the table of verbs; help comes from it
 * @args:    what it takes besides, "[...]": may be left out
 * @options: its table of options, in addition to the common ones
 * @selects: takes --address, --mark, --zone, and needs one of them unless @select_is_optional
 */
typedef struct Verb {
	const char *name;
	const char *args;
	const char *help;
	const OptionSpec *options;
	bool selects, select_is_optional;
	int max_args;
	int (*run)(const Tool *tool, Error **err); /* 0, or negative errno with @err set */
	bool words_follow;
} Verb;

typedef struct Program {
	const char *name;
	const char *purpose; /* one line */
	const Verb *verbs;
	size_t n_verbs;
} Program;

/**
 * struct Tool - one command line, parsed
 * @options: values by key
 * @args:    what is not an option
 * @select:  --address, --mark and --zone
 * @json:    --json: what happens is said in JSON lines
 */
struct Tool {
	const Program *program;
	const Verb *verb;
	json_object *options;
	char **args;
	CtSelect *select;
	bool json;
};

/** tool_main() - parse, run the verb, say what went wrong. Return: the exit status: 0 done, 1 failed, 2 wrong usage */
int tool_main(const Program *program, int argc, char **argv);

/**
 * tool_say() - what happened, on standard error: @o as a JSON line with --json, else the text
 * @o: taken over
 */
void tool_say(const Tool *tool, json_object *o, const char *fmt, ...) _printf_(3, 4);

/**
 * tool_signals() - have signals handled in the loop; SIGCHLD is blocked too, as sd_event_add_child(3) wants it
 * @signals: @n of them
 * @handler: NULL: they end the loop
 */
int tool_signals(sd_event *event, const int *signals, size_t n, sd_event_signal_handler_t handler, void *userdata);

/** tool_number() - the value of an option that is a number, or @otherwise */
uint64_t tool_number(const Tool *tool, const char *key, uint64_t otherwise);

/** tool_text() - the value of an option that is text, or @otherwise */
const char *tool_text(const Tool *tool, const char *key, const char *otherwise);

/** tool_max_entries() - the value of --max-entries, or @ret left alone. Return: 0, or -EINVAL with @err set */
int tool_max_entries(const Tool *tool, uint64_t *ret, Error **err);
