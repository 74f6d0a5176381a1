/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <unistd.h>

#include "basic/paths.h"
#include "cli/client.h"
#include "cli/simple.h"

/* A keeper's upgrade: answered when the new one has found its guest. */
static int restart_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_json_ json_object *status = NULL;
	const char *state = "";
	int r = client_call(name, "Restart", false, NULL, err, NULL);

	if (r >= 0)
		r = client_query(name, "Status", &status, err);
	if (r < 0)
		return r;
	(void)json_get_string(status, "state", &state);
	*ret = simple_result(name, state);
	return STATUS_DONE;
}

static bool has_keeper(const char *name)
{
	_cleanup_free_ char *control = runtime_path(name, "control");

	return access(control, F_OK) == 0;
}

static const OptionSpec options[] = {
	{"all", 0, OPTION_FLAG, NULL, "all", "every VM that runs here"},
	{NULL},
};

const Verb restart_keeper_verb = {
	.name = "restart-keeper",
	.args = "NAME...",
	.help = "let the vmferry that is installed now watch over running VMs",
	.options = {options},
	.min_args = 1,
	.max_args = -1,
	.each = restart_each,
	.every = "all",
	.takes = has_keeper,
	.print = simple_print,
};
