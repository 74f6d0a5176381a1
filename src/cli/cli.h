/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/json.h"
#include "cli/options.h"

/* What `vmferry` ends with. "Failed" promises that the guest runs where it was; "in doubt" is never silent. */
typedef enum ExitStatus {
	STATUS_DONE = 0,
	STATUS_FAILED = 1,
	STATUS_USAGE = 2,
	STATUS_DOUBT = 3,
	STATUS_LATER = 75, /* between parallel_run() and its children: not now, nothing was said */
} ExitStatus;

/**
 * enum VerbFlags - what a verb's entry says besides its words
 * @VERB_NO_NAME:   its arguments are not names of VMs
 * @VERB_LOCAL:     never on behalf of another host: neither with -H nor through `vmferry control`
 * @VERB_STDIN:     reads standard input
 * @VERB_INTERRUPT: gives ^C a meaning of its own (migrate: cancel)
 * @VERB_PROGRESS:  shows progress
 * @VERB_DIRECT:    has --direct, with which -H is its own business
 */
typedef enum VerbFlags {
	VERB_NO_NAME = 1,
	VERB_LOCAL = 2,
	VERB_STDIN = 4,
	VERB_INTERRUPT = 8,
	VERB_PROGRESS = 16,
	VERB_DIRECT = 32,
} VerbFlags;

typedef struct Verb Verb;

/**
 * struct Cli - one command line, parsed
 * @verb:          its verb
 * @common:        values of the options every verb has, by key
 * @options:       values of the verb's own options, by key
 * @args:          what is not an option, NULL terminated
 * @words:         the options in canonical form ("--name=value"), for another host
 * @json:          --json
 * @under_control: run by `vmferry control`: standard input is the far command line
 */
typedef struct Cli {
	const Verb *verb;
	json_object *common;
	json_object *options;
	char **args;
	char **words;
	bool json;
	bool under_control;
} Cli;

/**
 * struct Verb - one row of the table of verbs; help, completion and dispatch come from it
 * @name:     what people type
 * @args:     its arguments for --help; one that ends in "..." may be repeated
 * @help:     one line
 * @options:  its tables of options, at most two, each ended by a row without name
 * @min_args: least number of arguments
 * @max_args: largest, -1 for any number: the verb is then done for each name in turn
 * @flags:    of enum VerbFlags
 * @each:     does it for one VM. Returns an ExitStatus, or negative errno with the error set. The result is printed as
 * it is with --json, else by @print
 * @print:    result for people, may be NULL
 * @every:    an option (its key) that stands for the names: all VMs for which @takes says yes; NULL: none
 * @takes:    whether @every means this VM
 * @whole:    instead of @each: does all and prints by itself; returns as @each
 * @raw:      instead of both: parses its own words
 */
struct Verb {
	const char *name;
	const char *args;
	const char *help;
	const OptionSpec *options[3];
	int min_args;
	int max_args;
	unsigned int flags;
	int (*each)(const Cli *cli, const char *name, json_object **ret, Error **err);
	void (*print)(const char *name, json_object *result);
	const char *every;
	bool (*takes)(const char *name);
	int (*whole)(const Cli *cli, Error **err);
	int (*raw)(int argc, char **argv);
};

/* The verbs, each in its verb_NAME.c. */
extern const Verb start_verb, stop_verb, kill_verb, pause_verb, resume_verb, list_verb, show_verb, console_verb,
	migrate_verb, upgrade_verb, restart_keeper_verb, check_verb, watch_verb, status_verb, log_verb, set_verb,
	cancel_verb, recover_verb, control_verb, door_verb;

/** verb_find() - the verb of that name, or NULL */
const Verb *verb_find(const char *name);

/**
 * cli_main() - do what a command line says
 * @argv:          argv[0] is the program's name
 * @under_control: see struct Cli
 *
 * Return: ExitStatus.
 */
int cli_main(int argc, char **argv, bool under_control);
