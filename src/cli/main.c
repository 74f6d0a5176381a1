/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/local.h"
#include "cli/output.h"
#include "cli/parallel.h"
#include "cli/remote.h"
#include "keeper/launch.h"

/* The keeper's side parses its own words; their rows are here for help and completion. */
static const Verb run_verb = {
	.name = "run",
	.args = "NAME",
	.help = "be the keeper of a VM; start does this for you",
	.flags = VERB_LOCAL,
	.raw = verb_run,
};
static const Verb receive_verb = {
	.name = "receive",
	.args = "[--peer=HOST]",
	.help = "the target end of a migration; the source starts this over ssh",
	.flags = VERB_LOCAL,
	.raw = verb_receive,
};

static const Verb *const verbs[] = {
	&start_verb,  &stop_verb,    &kill_verb,    &pause_verb, &resume_verb,	&list_verb,  &status_verb,
	&show_verb,   &log_verb,     &console_verb, &check_verb, &migrate_verb, &upgrade_verb, &watch_verb,
	&set_verb,    &cancel_verb,  &recover_verb, &restart_keeper_verb, &control_verb, &door_verb, &run_verb,
	&receive_verb,
};

static const OptionSpec common_options[] = {
	{"host", 'H', OPTION_TEXT, "ssh://[USER@]HOST[:PORT]", "host", "do it on that host"},
	{"json", 'j', OPTION_FLAG, NULL, "json", "print results as JSON"},
	{"progress", 0, OPTION_CHOICE, "line|plain|none", "progress", "how progress is shown"},
	{"help", 'h', OPTION_FLAG, NULL, "help", "print help"},
	{NULL},
};

static const OptionSpec program_options[] = {
	{"version", 'V', OPTION_FLAG, NULL, "version", "print the version"},
	{NULL},
};

static void cli_done(Cli *cli)
{
	json_object_put(cli->common);
	json_object_put(cli->options);
	strv_free(cli->args);
	strv_free(cli->words);
}

const Verb *verb_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		if (streq(verbs[i]->name, name))
			return verbs[i];
	return NULL;
}

static void print_help(FILE *out)
{
	fputs("Usage: vmferry [OPTION...] VERB [OPTION...] [ARGUMENT...]\n\n"
	      "Moves running QEMU virtual machines between hosts.\n\nVerbs:\n",
	      out);
	for (size_t i = 0; i < ARRAY_SIZE(verbs); i++)
		fprintf(out, "  %-10s %s\n", verbs[i]->name, verbs[i]->help);
	fputs("\nOptions:\n", out);
	options_help(common_options, out);
	options_help(program_options, out);
	fputs("\nvmferry VERB --help prints the options of a verb; see also vmferry(1).\n"
	      "Exit status: 0 done, 1 failed, 2 wrong usage, 3 in doubt.\n",
	      out);
}

static void print_verb_help(const Verb *verb)
{
	printf("Usage: vmferry %s [OPTION...]%s%s\n\n%c%s.\n\nOptions:\n", verb->name, *verb->args ? " " : "",
	       verb->args, toupper((unsigned char)*verb->help), verb->help + 1);
	for (size_t i = 0; i < ARRAY_SIZE(verb->options) && verb->options[i]; i++)
		options_help(verb->options[i], stdout);
	options_help(common_options, stdout);
}

static void complete_options(const OptionSpec *specs)
{
	for (; specs && specs->name; specs++)
		if (specs->help)
			printf("--%s%s\n", specs->name, specs->argument ? "=" : "");
}

/* The words "a|b|c" an option takes, a word a line. */
static void complete_choice(const OptionSpec *spec)
{
	for (const char *s = spec && spec->kind == OPTION_CHOICE ? spec->argument : ""; *s; s += strspn(s, "|")) {
		size_t n = strcspn(s, "|");

		printf("%.*s\n", (int)n, s);
		s += n;
	}
}

/* What may follow on a command line, a word a line, or what @option takes; the shell's completion asks. */
static int complete(const char *name, const char *option)
{
	const Verb *verb = name ? verb_find(name) : NULL;
	_cleanup_strv_ char **names = verb && strstr(verb->args, "NAME") ? local_names() : NULL;

	for (size_t i = 0; option && verb && i < ARRAY_SIZE(verb->options); i++)
		complete_choice(option_find(verb->options[i], option));
	if (option) {
		complete_choice(option_find(common_options, option));
		return STATUS_DONE;
	}
	for (size_t i = 0; !verb && i < ARRAY_SIZE(verbs); i++)
		printf("%s\n", verbs[i]->name);
	for (size_t i = 0; verb && i < ARRAY_SIZE(verb->options); i++)
		complete_options(verb->options[i]);
	complete_options(common_options);
	for (size_t i = 0; names && names[i]; i++)
		printf("%s\n", names[i]);
	return STATUS_DONE;
}

static json_object *error_json(const char *name, const Error *err)
{
	return json_build("vm", "s", name, "error", "o",
			  json_build("message", "s", err->message, "hint", "s", err->hint, NULL), NULL);
}

/* An error that is no VM's, or leaves nothing else to print. */
static void print_error(const Cli *cli, const char *name, const Error *err)
{
	_cleanup_json_ json_object *o = cli->json ? error_json(name, err) : NULL;

	if (o)
		output_json(o);
	output_error(name, err);
}

static int usage(const Cli *cli, Error *err)
{
	error_hint(&err, "vmferry %s%s--help", cli->verb ? cli->verb->name : "", cli->verb ? " " : "");
	print_error(cli, NULL, err);
	error_free(err);
	return STATUS_USAGE;
}

/* Which exit status a code stands for that no verb has translated. */
static int status_of(int code)
{
	switch (code) {
	case -EINVAL:
		return STATUS_USAGE;
	case -ECONNRESET:
		return STATUS_DOUBT;
	default:
		return code < 0 ? STATUS_FAILED : code;
	}
}

static int run_one(const Cli *cli, const char *name)
{
	_cleanup_json_ json_object *result = NULL;
	_cleanup_error_ Error *err = NULL;
	int r = cli->verb->each(cli, name, &result, &err);

	if (result && cli->json)
		output_json(result);
	else if (result && cli->verb->print)
		cli->verb->print(name, result);
	if (err && result)
		output_error(name, err);
	else if (err)
		print_error(cli, name, err);
	return status_of(r);
}

static int run_here(const Cli *cli)
{
	int n = cli->verb->max_args < 0 ? (int)strv_length(cli->args) : 1, worst = STATUS_DONE;
	_cleanup_error_ Error *err = NULL;
	uint64_t parallel = 1;

	if (cli->verb->whole) {
		worst = status_of(cli->verb->whole(cli, &err));
		if (err)
			print_error(cli, NULL, err);
	}
	if (json_get_u64(cli->options, "parallel", &parallel) && parallel > 1 && n > 1)
		return parallel_run(cli, (unsigned int)parallel);
	for (int i = 0; cli->verb->each && i < n; i++) {
		int status = run_one(cli, cli->args[i]);

		worst = status > worst ? status : worst;
	}
	if (fflush(stdout) == 0 && !ferror(stdout))
		return worst;
	if (errno != EPIPE) /* who reads no more does not want to hear of it */
		fprintf(stderr, "vmferry: cannot write standard output: %m\n");
	return worst > STATUS_DONE ? worst : STATUS_FAILED;
}

static bool means_every(const Cli *cli)
{
	bool yes = false;

	return cli->verb->every && json_get_bool(cli->options, cli->verb->every, &yes) && yes;
}

/* Instead of names: each VM the verb's option stands for. */
static void take_every(Cli *cli)
{
	_cleanup_strv_ char **names = local_names();

	for (size_t i = 0; names && names[i]; i++)
		if (cli->verb->takes(names[i]))
			strv_push(&cli->args, xstrdup(names[i]));
}

static int check_args(const Cli *cli, Error **err)
{
	int n = (int)strv_length(cli->args), names = cli->verb->max_args < 0 ? n : n < 1 ? n : 1;

	if (means_every(cli) && n > 0)
		return error_set(err, -EINVAL, "%s takes names or --%s, not both", cli->verb->name, cli->verb->every);
	if ((n < cli->verb->min_args && !means_every(cli)) || (cli->verb->max_args >= 0 && n > cli->verb->max_args))
		return error_set(err, -EINVAL, "%s takes %s", cli->verb->name,
				 *cli->verb->args ? cli->verb->args : "no arguments");
	for (int i = 0; i < names && !(cli->verb->flags & VERB_NO_NAME); i++)
		if (!vm_name_valid(cli->args[i])) {
			error_set(err, -EINVAL, "\"%s\" is no name of a VM", cli->args[i]);
			error_hint(err, "letters, digits, '_', '.', '-', the first a letter or digit, at most 48");
			return -EINVAL;
		}
	return 0;
}

/* Parses the verb's words; @at is the verb's place. */
static int parse_verb(Cli *cli, int at, int argc, char **argv, Error **err)
{
	const OptionSet sets[] = {
		{common_options, cli->common},
		{cli->verb->options[0], cli->options},
		{cli->verb->options[1], cli->options},
		{NULL, NULL},
	};
	int first = options_parse(sets, argc - at, argv + at, false, &cli->words, err);

	if (first < 0)
		return first;
	for (int i = at + first; i < argc; i++)
		strv_push(&cli->args, xstrdup(argv[i]));
	cli->json = json_member(cli->common, "json");
	return 0;
}

/* Before the words are parsed, for what is wrong with them. */
static bool asks_for_json(char **argv)
{
	for (; *argv && !streq(*argv, "--"); argv++)
		if (streq(*argv, "--json") || streq(*argv, "-j"))
			return true;
	return false;
}

/* No verb is passed on twice, and some not at all. */
static int check_host(const Cli *cli, Error **err)
{
	if (!json_member(cli->common, "host") || (!cli->under_control && !(cli->verb->flags & VERB_LOCAL)))
		return 0;
	return error_set(err, -EINVAL, "%s cannot be done with -H%s", cli->verb->name,
			 cli->under_control ? " from another host" : "");
}

static bool is_direct(const Cli *cli)
{
	return (cli->verb->flags & VERB_DIRECT) && json_member(cli->options, "direct");
}

static int run_remote(const Cli *cli, const char *host)
{
	_cleanup_error_ Error *err = NULL;
	int r = remote_run(cli, host, &err);

	if (err)
		print_error(cli, NULL, err);
	return status_of(r);
}

/* Options before the verb are as good as after it. Return: the verb's place, 0 when all is done, or negative errno */
static int parse_program(Cli *cli, int argc, char **argv, Error **err)
{
	const OptionSet sets[] = {{common_options, cli->common}, {program_options, cli->common}, {NULL, NULL}};
	bool yes = false;
	int at = options_parse(sets, argc, argv, true, &cli->words, err);

	if (at < 0)
		return at;
	if (json_get_bool(cli->common, "version", &yes) || (json_get_bool(cli->common, "help", &yes) && at == argc)) {
		if (json_get_bool(cli->common, "version", &yes))
			printf("vmferry %s\n", VMFERRY_VERSION);
		else
			print_help(stdout);
		return 0;
	}
	if (at == argc)
		return error_set(err, -EINVAL, "which verb?");
	cli->verb = verb_find(argv[at]);
	if (!cli->verb)
		return error_set(err, -EINVAL, "there is no verb \"%s\"", argv[at]);
	return at;
}

int cli_main(int argc, char **argv, bool under_control)
{
	_cleanup_(cli_done)
	Cli cli = {.common = json_object_new_object(),
		   .options = json_object_new_object(),
		   .json = asks_for_json(argv + 1),
		   .under_control = under_control};
	const char *host;
	Error *err = NULL;
	bool help = false;
	int at = parse_program(&cli, argc, argv, &err);

	if (at <= 0)
		return at < 0 ? usage(&cli, err) : STATUS_DONE;
	help = json_get_bool(cli.common, "help", &help) || (argv[at + 1] && streq(argv[at + 1], "--help"));
	if (cli.verb->raw && !help && !json_member(cli.common, "host"))
		return cli.verb->raw(argc - at, argv + at);
	if (parse_verb(&cli, at, argc, argv, &err) < 0)
		return usage(&cli, err);
	if (json_get_bool(cli.common, "help", &help)) {
		print_verb_help(cli.verb);
		return STATUS_DONE;
	}
	if (check_host(&cli, &err) < 0 || check_args(&cli, &err) < 0)
		return usage(&cli, err);
	if (json_get_string(cli.common, "host", &host) && !is_direct(&cli))
		return run_remote(&cli, host);
	if (means_every(&cli))
		take_every(&cli);
	return run_here(&cli);
}

int main(int argc, char **argv)
{
	if (argc > 1 && streq(argv[1], "--complete"))
		return complete(argc > 2 ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
	/* Standard output that nobody reads is an error like others, and must not end a migration's watcher midway. */
	signal(SIGPIPE, SIG_IGN);
	return cli_main(argc, argv, false);
}
