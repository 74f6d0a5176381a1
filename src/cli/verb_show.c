/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"
#include "cli/output.h"

/* Of a VM that is off: what its file says. */
static int show_file(const char *name, json_object **ret, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	_cleanup_free_ char *text = NULL;

	if (local_definition(name, &definition, err) < 0)
		return STATUS_FAILED;
	text = vm_definition_text(definition);
	*ret = json_build("name", "s", name, "text", "s", text, NULL);
	return STATUS_DONE;
}

static int show_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_error_ Error *error = NULL;
	int r = client_query(name, "Show", ret, &error);

	if (r == -ESRCH)
		return show_file(name, ret, err);
	if (error && !*err)
		*err = TAKE_PTR(error);
	return r;
}

static void show_print(_unused_ const char *name, json_object *result)
{
	const char *text;

	if (json_get_string(result, "text", &text))
		fputs(text, stdout);
	else
		output_json(result);
}

const Verb show_verb = {
	.name = "show",
	.args = "NAME...",
	.help = "print the definition of VMs, with what was filled in",
	.min_args = 1,
	.max_args = -1,
	.each = show_each,
	.print = show_print,
};
