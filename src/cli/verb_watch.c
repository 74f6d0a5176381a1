/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>

#include "cli/follow.h"
#include "cli/migrate_options.h"

static int watch_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	int r = follow_migration(cli, name, NULL, ret, err);

	if (r == STATUS_DONE && !*ret)
		*ret = json_build("vm", "s", name, "status", "s", "idle", NULL);
	return r;
}

static void watch_print(const char *name, json_object *result)
{
	const char *id;

	if (json_get_string(result, "id", &id))
		migrate_print(name, result);
	else
		printf("%s: no migration is running\n", name);
}

const Verb watch_verb = {
	.name = "watch",
	.args = "NAME",
	.help = "show a migration that is running until it has ended",
	.options = {follow_option_table},
	.min_args = 1,
	.max_args = 1,
	.flags = VERB_INTERRUPT | VERB_PROGRESS,
	.each = watch_each,
	.print = watch_print,
};
