/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/conntrack.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#include "cli/options.h"

typedef enum Status { STATUS_DONE = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 } Status;

/**
 * struct Verb - a row of the table of verbs; help comes from it
 * @options: its table of options, in addition to the common ones
 * @selects: takes --address, --mark, --zone, and needs one of them
 */
typedef struct Verb {
	const char *name;
	const char *args;
	const char *help;
	const OptionSpec *options;
	bool selects;
	int max_args;
	int (*run)(const Tool *tool, Error **err);
} Verb;

static const OptionSpec common_options[] = {
	{"json", 'j', OPTION_FLAG, NULL, "json", "results in JSON"},
	{"help", 'h', OPTION_FLAG, NULL, "help", "print help"},
	{NULL},
};
static const OptionSpec program_options[] = {
	{"version", 'V', OPTION_FLAG, NULL, "version", "print the version"},
	{NULL},
};
static const OptionSpec select_options[] = {
	{"address", 'a', OPTION_LIST, "ADDRESS", "address", "entries of this IPv4 or IPv6 address; may be repeated"},
	{"mark", 'm', OPTION_TEXT, "VALUE[/MASK]", "mark", "and with this mark"},
	{"zone", 'z', OPTION_TEXT, "N", "zone", "and in this zone"},
	{NULL},
};
static const OptionSpec dump_options[] = {
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is written, default wire"},
	{NULL},
};
static const OptionSpec follow_options[] = {
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is written, default wire"},
	{"interval", 0, OPTION_MSEC, "TIME", "interval", "write what changed so often, default 10ms"},
	{"resync", 0, OPTION_MSEC, "TIME", "resync", "dump again so often where events are missing, default 2s"},
	{NULL},
};
static const OptionSpec apply_options[] = {
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is read, default told from its first bytes"},
	{"settle", 0, OPTION_MSEC, "TIME", "settle", "strict again so long after the end, default 1s"},
	{"max-entries", 0, OPTION_TEXT, "N", "max-entries", "refuse more, default 1000000"},
	{"undo-if-cut", 0, OPTION_FLAG, NULL, "undo-if-cut", "delete all again when the input ends too early"},
	{NULL},
};
static const OptionSpec show_options[] = {
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is read, default told from its first bytes"},
	{NULL},
};
static const OptionSpec flush_options[] = {
	{"spare", 0, OPTION_LIST, "ADDRESS", "spare", "leave entries that carry this address too; may be repeated"},
	{NULL},
};

static const Verb verbs[] = {
	{"dump", "", "write the entries there are now", dump_options, true, 0, tool_dump},
	{"follow", "", "write the entries and what changes, until told to switch", follow_options, true, 0, tool_follow},
	{"apply", "", "install entries from standard input and keep them current", apply_options, true, 0, tool_apply},
	{"show", "[FILE]", "print entries from a file or standard input", show_options, false, 1, tool_show},
	{"flush", "", "delete entries", flush_options, true, 0, tool_flush},
};

void tool_say(const Tool *tool, json_object *o, const char *fmt, ...)
{
	va_list args;

	if (tool->json) {
		fprintf(stderr, "%s\n", json_text(o));
	} else {
		fputs("vmferry-conntrack: ", stderr);
		va_start(args, fmt);
		vfprintf(stderr, fmt, args);
		va_end(args);
		fputc('\n', stderr);
	}
	json_object_put(o);
}

uint64_t tool_number(const Tool *tool, const char *key, uint64_t otherwise)
{
	(void)json_get_u64(tool->options, key, &otherwise);
	return otherwise;
}

static void tool_done(Tool *tool)
{
	json_object_put(tool->options);
	strv_free(tool->args);
	ct_select_free(tool->select);
}

static int complain(const Verb *verb, Error *err, Status status)
{
	_cleanup_free_ char *message = text_clean(err->message, 1024), *hint = err->hint ? text_clean(err->hint, 1024) : NULL;

	fflush(stdout);
	fprintf(stderr, "vmferry-conntrack: %s\n", message);
	if (hint)
		fprintf(stderr, "hint: %s\n", hint);
	else if (status == STATUS_USAGE)
		fprintf(stderr, "hint: vmferry-conntrack %s%s--help\n", verb ? verb->name : "", verb ? " " : "");
	error_free(err);
	return status;
}

static void print_help(void)
{
	fputs("Usage: vmferry-conntrack VERB [OPTION...] [ARGUMENT...]\n\n"
	      "Carries connection tracking entries from one host to another.\n\nVerbs:\n",
	      stdout);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		printf("  %-10s %s\n", verbs[i].name, verbs[i].help);
	fputs("\nOptions:\n", stdout);
	options_help(common_options, stdout);
	options_help(program_options, stdout);
	fputs("\nvmferry-conntrack VERB --help prints the options of a verb; see also vmferry-conntrack(1).\n"
	      "Exit status: 0 done, 1 failed, 2 wrong usage.\n",
	      stdout);
}

static void print_verb_help(const Verb *verb)
{
	printf("Usage: vmferry-conntrack %s [OPTION...]%s%s\n\n%s.\n\nOptions:\n", verb->name, *verb->args ? " " : "",
	       verb->args, verb->help);
	if (verb->selects)
		options_help(select_options, stdout);
	options_help(verb->options, stdout);
	options_help(common_options, stdout);
}

/* Strings of a list option as a vector. */
static char **list_of(json_object *options, const char *key)
{
	json_object *list;
	char **v = NULL;

	if (json_get_array(options, key, &list))
		for (size_t i = 0; i < json_object_array_length(list); i++)
			strv_push(&v, xstrdup(json_object_get_string(json_object_array_get_idx(list, i))));
	return v;
}

static int make_select(Tool *tool, Error **err)
{
	_cleanup_strv_ char **addresses = list_of(tool->options, "address");
	const char *text;
	int r = ct_select_new(addresses, &tool->select, err);

	if (r >= 0 && json_get_string(tool->options, "mark", &text))
		r = ct_select_mark(tool->select, text, err);
	if (r >= 0 && json_get_string(tool->options, "zone", &text))
		r = ct_select_zone(tool->select, text, err);
	if (r >= 0 && ct_select_empty(tool->select)) {
		r = error_set(err, -EINVAL, "whose entries?");
		error_hint(err, "give one or more of --address, --mark and --zone");
	}
	return r;
}

static Format format_of(json_object *options, Format otherwise)
{
	static const char *const names[] = {[FORMAT_WIRE] = "wire", [FORMAT_SAVE] = "save", [FORMAT_RAW] = "raw"};
	const char *text;

	if (json_get_string(options, "format", &text))
		for (size_t i = 0; i < ARRAY_SIZE(names); i++)
			if (streq(names[i], text))
				return (Format)i;
	return otherwise;
}

/* Return: 1 when all is done, 0, or negative errno with @err set. */
static int parse(Tool *tool, const Verb *verb, int argc, char **argv, Error **err)
{
	const OptionSet sets[] = {{common_options, tool->options},
				  {verb->options, tool->options},
				  {verb->selects ? select_options : NULL, tool->options},
				  {NULL, NULL}};
	int first = options_parse(sets, argc, argv, false, NULL, err);
	bool help = false;

	if (first < 0)
		return first;
	if (json_get_bool(tool->options, "help", &help)) {
		print_verb_help(verb);
		return 1;
	}
	for (int i = first; i < argc; i++)
		strv_push(&tool->args, xstrdup(argv[i]));
	if (argc - first > verb->max_args)
		return error_set(err, -EINVAL, "%s takes %s", verb->name, *verb->args ? verb->args : "no arguments");
	(void)json_get_bool(tool->options, "json", &tool->json);
	tool->format = format_of(tool->options, verb->run == tool_dump || verb->run == tool_follow ? FORMAT_WIRE : FORMAT_ANY);
	return verb->selects ? make_select(tool, err) : 0;
}

static const Verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (streq(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

/* What stands before the verb. Return: the verb's place, 0 when all is done, or negative errno with @err set. */
static int parse_program(Tool *tool, int argc, char **argv, Error **err)
{
	const OptionSet sets[] = {{common_options, tool->options}, {program_options, tool->options}, {NULL, NULL}};
	int at = options_parse(sets, argc, argv, true, NULL, err);
	bool yes;

	if (at < 0)
		return at;
	if (json_get_bool(tool->options, "version", &yes)) {
		printf("vmferry-conntrack %s\n", VMFERRY_VERSION);
		return 0;
	}
	if (json_get_bool(tool->options, "help", &yes) && at == argc) {
		print_help();
		return 0;
	}
	return at < argc ? at : error_set(err, -EINVAL, "which verb?");
}

int main(int argc, char **argv)
{
	_cleanup_(tool_done) Tool tool = {.options = json_object_new_object()};
	const Verb *verb;
	Error *err = NULL;
	int r, at;

	signal(SIGPIPE, SIG_IGN);
	at = parse_program(&tool, argc, argv, &err);
	if (at <= 0)
		return at < 0 ? complain(NULL, err, STATUS_USAGE) : STATUS_DONE;
	verb = verb_find(argv[at]);
	if (!verb) {
		error_set(&err, -EINVAL, "there is no verb \"%s\"", argv[at]);
		return complain(NULL, err, STATUS_USAGE);
	}
	r = parse(&tool, verb, argc - at, argv + at, &err);
	if (r != 0)
		return r < 0 ? complain(verb, err, STATUS_USAGE) : STATUS_DONE;
	r = verb->run(&tool, &err);
	if (r >= 0 && (fflush(stdout) != 0 || ferror(stdout)))
		r = error_set(&err, -EIO, "Cannot write to standard output");
	if (r < 0) {
		error_set(&err, r, "%s: %s", verb->name, strerror(-r));
		return complain(verb, err, STATUS_FAILED);
	}
	return STATUS_DONE;
}
