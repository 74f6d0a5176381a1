/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "cli/simple.h"

static int resume_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	return simple_call(name, "Resume", "running", ret, err);
}

const Verb resume_verb = {
	.name = "resume",
	.args = "NAME...",
	.help = "resume paused VMs",
	.min_args = 1,
	.max_args = -1,
	.each = resume_each,
	.print = simple_print,
};
