/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/client.h"
#include "cli/output.h"

static int cancel_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_free_ char *answer = NULL;
	int r = client_call(name, "Cancel", false, &answer, err, NULL);

	if (r < 0)
		return r;
	*ret = json_build("vm", "s", name, "migration", "s", answer, NULL);
	return STATUS_DONE;
}

static void cancel_print(const char *name, json_object *result)
{
	_cleanup_free_ char *answer = format_value(json_member(result, "migration"));

	printf("%s: migration %s\n", name, answer);
}

const Verb cancel_verb = {
	.name = "cancel",
	.args = "NAME...",
	.help = "cancel migrations that are running; the guests go on here",
	.min_args = 1,
	.max_args = -1,
	.each = cancel_each,
	.print = cancel_print,
};
