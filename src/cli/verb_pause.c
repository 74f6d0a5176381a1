/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cli/simple.h"

static int pause_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	return simple_call(name, "Pause", "paused", ret, err);
}

const Verb pause_verb = {
	.name = "pause",
	.args = "NAME...",
	.help = "pause VMs",
	.min_args = 1,
	.max_args = -1,
	.each = pause_each,
	.print = simple_print,
};
