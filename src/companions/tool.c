/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/tool.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

typedef enum Status { STATUS_DONE = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 } Status;

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

void tool_say(const Tool *tool, json_object *o, const char *fmt, ...)
{
	va_list args;

	if (tool->json) {
		fprintf(stderr, "%s\n", json_text(o));
	} else {
		fprintf(stderr, "%s: ", tool->program->name);
		va_start(args, fmt);
		vfprintf(stderr, fmt, args);
		va_end(args);
		fputc('\n', stderr);
	}
	json_object_put(o);
}

int tool_signals(sd_event *event, const int *signals, size_t n, sd_event_signal_handler_t handler, void *userdata)
{
	sigset_t set;
	int r = 0;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (size_t i = 0; i < n; i++)
		sigaddset(&set, signals[i]);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (size_t i = 0; r >= 0 && i < n; i++)
		r = sd_event_add_signal(event, NULL, signals[i], handler, userdata);
	return r;
}

uint64_t tool_number(const Tool *tool, const char *key, uint64_t otherwise)
{
	(void)json_get_u64(tool->options, key, &otherwise);
	return otherwise;
}

const char *tool_text(const Tool *tool, const char *key, const char *otherwise)
{
	(void)json_get_string(tool->options, key, &otherwise);
	return otherwise;
}

int tool_max_entries(const Tool *tool, uint64_t *ret, Error **err)
{
	const char *text = tool_text(tool, "max-entries", NULL);

	if (text && text_parse_u64(text, ret) < 0)
		return error_set(err, -EINVAL, "--max-entries: \"%s\" is not a number", text);
	return 0;
}

static void tool_done(Tool *tool)
{
	json_object_put(tool->options);
	strv_free(tool->args);
	ct_select_free(tool->select);
}

static int complain(const Tool *tool, Error *err, Status status)
{
	_cleanup_free_ char *message = text_clean(err->message, 1024), *hint = err->hint ? text_clean(err->hint, 1024) : NULL;
	const char *name = tool->program->name, *verb = tool->verb ? tool->verb->name : "";

	fflush(stdout);
	fprintf(stderr, "%s: %s\n", name, message);
	if (hint)
		fprintf(stderr, "hint: %s\n", hint);
	else if (status == STATUS_USAGE)
		fprintf(stderr, "hint: %s %s%s--help\n", name, verb, *verb ? " " : "");
	error_free(err);
	return status;
}

static void print_help(const Program *program)
{
	printf("Usage: %s VERB [OPTION...] [ARGUMENT...]\n\n%s\n\nVerbs:\n", program->name, program->purpose);
	for (size_t i = 0; i < program->n_verbs; i++)
		printf("  %-10s %s\n", program->verbs[i].name, program->verbs[i].help);
	fputs("\nOptions:\n", stdout);
	options_help(common_options, stdout);
	options_help(program_options, stdout);
	printf("\n%s VERB --help prints the options of a verb; see also %s(1).\n"
	       "Exit status: 0 done, 1 failed, 2 wrong usage.\n",
	       program->name, program->name);
}

static void print_verb_help(const Program *program, const Verb *verb)
{
	printf("Usage: %s %s [OPTION...]%s%s\n\n%s.\n\nOptions:\n", program->name, verb->name, *verb->args ? " " : "",
	       verb->args, verb->help);
	if (verb->selects)
		options_help(select_options, stdout);
	if (verb->options)
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
	if (r >= 0 && ct_select_empty(tool->select) && !tool->verb->select_is_optional) {
		r = error_set(err, -EINVAL, "whose entries?");
		error_hint(err, "give one or more of --address, --mark and --zone");
	}
	return r;
}

/* Return: 1 when all is done, 0, or negative errno with @err set. */
static int parse_verb(Tool *tool, int argc, char **argv, Error **err)
{
	const Verb *verb = tool->verb;
	const OptionSet sets[] = {{common_options, tool->options},
				  {verb->options, tool->options},
				  {verb->selects ? select_options : NULL, tool->options},
				  {NULL, NULL}};
	int first = options_parse(sets, argc, argv, verb->words_follow, NULL, err);
	bool help = false;

	if (first < 0)
		return first;
	if (json_get_bool(tool->options, "help", &help)) {
		print_verb_help(tool->program, verb);
		return 1;
	}
	for (int i = first; i < argc; i++)
		strv_push(&tool->args, xstrdup(argv[i]));
	if (argc - first > verb->max_args)
		return error_set(err, -EINVAL, "%s takes %s", verb->name, *verb->args ? verb->args : "no arguments");
	if (first == argc && *verb->args && *verb->args != '[')
		return error_set(err, -EINVAL, "which %s?", verb->args);
	(void)json_get_bool(tool->options, "json", &tool->json);
	return verb->selects ? make_select(tool, err) : 0;
}

static const Verb *verb_find(const Program *program, const char *name)
{
	for (size_t i = 0; i < program->n_verbs; i++)
		if (streq(program->verbs[i].name, name))
			return &program->verbs[i];
	return NULL;
}

/* What stands before the verb, and which verb. Return: its place, 0 when all is done, or negative errno with @err set. */
static int parse_program(Tool *tool, int argc, char **argv, Error **err)
{
	const OptionSet sets[] = {{common_options, tool->options}, {program_options, tool->options}, {NULL, NULL}};
	int at = options_parse(sets, argc, argv, true, NULL, err);
	bool yes;

	if (at < 0)
		return at;
	if (json_get_bool(tool->options, "version", &yes)) {
		printf("%s %s\n", tool->program->name, VMFERRY_VERSION);
		return 0;
	}
	if (json_get_bool(tool->options, "help", &yes) && at == argc) {
		print_help(tool->program);
		return 0;
	}
	if (at == argc)
		return error_set(err, -EINVAL, "which verb?");
	tool->verb = verb_find(tool->program, argv[at]);
	return tool->verb ? at : error_set(err, -EINVAL, "there is no verb \"%s\"", argv[at]);
}

static int run(const Tool *tool, Error **err)
{
	int r = tool->verb->run(tool, err);

	if (r >= 0 && (fflush(stdout) != 0 || ferror(stdout)))
		r = error_set(err, -EIO, "Cannot write to standard output");
	return r < 0 ? error_set(err, r, "%s: %s", tool->verb->name, strerror(-r)) : 0;
}

int tool_main(const Program *program, int argc, char **argv)
{
	_cleanup_(tool_done) Tool tool = {.program = program, .options = json_object_new_object()};
	Error *err = NULL;
	int r, at;

	signal(SIGPIPE, SIG_IGN);
	at = parse_program(&tool, argc, argv, &err);
	if (at <= 0)
		return at < 0 ? complain(&tool, err, STATUS_USAGE) : STATUS_DONE;
	r = parse_verb(&tool, argc - at, argv + at, &err);
	if (r != 0)
		return r < 0 ? complain(&tool, err, STATUS_USAGE) : STATUS_DONE;
	return run(&tool, &err) < 0 ? complain(&tool, err, STATUS_FAILED) : STATUS_DONE;
}
