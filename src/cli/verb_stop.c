/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <unistd.h>

#include "basic/paths.h"
#include "basic/text.h"
#include "cli/client.h"
#include "cli/simple.h"

#define TIMEOUT_DEFAULT_SEC 120

static int stop_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	uint64_t timeout = TIMEOUT_DEFAULT_SEC;
	bool kill = false;
	int r;

	(void)json_get_u64(cli->options, "timeout", &timeout);
	(void)json_get_bool(cli->options, "kill", &kill);
	r = client_call(name, "Stop", false, NULL, err, "tb", timeout * USEC_PER_SEC, (int)kill);
	if (r < 0)
		return r;
	*ret = simple_result(name, "shut off");
	return STATUS_DONE;
}

static bool runs(const char *name)
{
	_cleanup_free_ char *control = runtime_path(name, "control");

	return access(control, F_OK) == 0;
}

static const OptionSpec options[] = {
	{"all", 0, OPTION_FLAG, NULL, "all", "every VM that runs here"},
	{"timeout", 0, OPTION_SEC, "SECONDS", "timeout", "how long the guest may take (120)"},
	{"kill", 0, OPTION_FLAG, NULL, "kill", "then end it as kill does; without: an error"},
	{NULL},
};

const Verb stop_verb = {
	.name = "stop",
	.args = "NAME...",
	.help = "shut VMs down (ACPI power button) and wait until they are off",
	.options = {options},
	.min_args = 1,
	.max_args = -1,
	.each = stop_each,
	.every = "all",
	.takes = runs,
	.print = simple_print,
};
