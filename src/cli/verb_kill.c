/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cli/simple.h"

static int kill_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	return simple_call(name, "Kill", "shut off", ret, err);
}

const Verb kill_verb = {
	.name = "kill",
	.args = "NAME...",
	.help = "end VMs at once, as pulling the plug does",
	.min_args = 1,
	.max_args = -1,
	.each = kill_each,
	.print = simple_print,
};
