/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/text.h"
#include "cli/client.h"
#include "cli/dest.h"
#include "cli/follow.h"
#include "cli/migrate_options.h"
#include "cli/output.h"
#include "cli/simple.h"

#define RISK_THERE "the guest here is destroyed. If it does not run on the other host, what its memory held is lost"
#define RISK_NOWHERE                                                                                                   \
	"the guest goes on here. If it runs on the other host as well, both write to the same disks and destroy them"

/* The risk is always printed; a person answers for it with --yes or on the terminal. */
static int confirm(const Cli *cli, const char *name, const char *assume, Error **err)
{
	bool yes = false;
	char answer[16];

	fprintf(stderr, "vmferry: %s: with --assume=%s %s.\n", name, assume,
		streq(assume, "runs-there") ? RISK_THERE : RISK_NOWHERE);
	(void)json_get_bool(cli->options, "yes", &yes);
	if (yes)
		return 0;
	if (!cli->under_control && isatty(STDIN_FILENO)) {
		fputs("Are you sure? Type yes: ", stderr);
		if (fgets(answer, sizeof(answer), stdin) && streq(answer, "yes\n"))
			return 0;
	}
	error_set(err, -ECANCELED, "not confirmed, nothing was done");
	error_hint(err, "look on the other host first; then add --yes");
	return -ECANCELED;
}

/* Through us: the migration is joined, and followed to its end. */
static int recover_direct(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	const char *dest = cli->args[1];
	int r;

	if (!dest || !json_member(cli->options, "direct") || json_member(cli->options, "assume")) {
		error_set(err, -EINVAL, "recover takes NAME, or with --direct NAME DEST");
		error_hint(err, "--assume goes alone: vmferry recover --help");
		return -EINVAL;
	}
	r = dest_check(dest, err);
	return r < 0 ? r : follow_migration(cli, name, &(FollowOrder){"Relay", dest, NULL}, ret, err);
}

static int recover_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_free_ char *text = NULL;
	const char *assume = "";
	int r;

	if (cli->args[1] || json_member(cli->options, "direct"))
		return recover_direct(cli, name, ret, err);
	if (json_get_string(cli->options, "assume", &assume)) {
		r = confirm(cli, name, assume, err);
		if (r < 0)
			return r;
	}
	r = client_call(name, "Recover", false, &text, err, "s", assume);
	return r < 0 ? r : client_json("Recover", text, ret, err);
}

static void recover_print(const char *name, json_object *result)
{
	if (json_member(result, "id"))
		migrate_print(name, result);
	else
		status_print(name, result);
}

static const OptionSpec options[] = {
	{"assume", 0, OPTION_CHOICE, "runs-there|runs-nowhere", "assume",
	 "your word when the other host cannot be asked"},
	{"direct", 0, OPTION_FLAG, NULL, "direct", "DEST is asked through this client, which reaches both hosts"},
	{"remote-command", 0, OPTION_TEXT, "COMMAND", "remote_command", "with --direct: instead of \"vmferry receive\""},
	{"yes", 'y', OPTION_FLAG, NULL, "yes", "do not ask back"},
	{NULL},
};

const Verb recover_verb = {
	.name = "recover",
	.args = "NAME [DEST]",
	.help = "settle a migration that is in doubt: ask the other host again, or take your word",
	.options = {options},
	.min_args = 1,
	.max_args = 2,
	.flags = VERB_DIRECT | VERB_INTERRUPT,
	.each = recover_each,
	.print = recover_print,
};
