/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/paths.h"
#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"
#include "cli/simple.h"
#include "keeper/launch.h"

static int refuse_moved(const char *name, Error **err)
{
	_cleanup_json_ json_object *moved = local_moved(name);
	int r;

	if (!moved)
		return 0;
	r = local_moved_error(moved, name, err);
	error_hint(err, "start it there; only when it surely runs nowhere: vmferry start --force %s", name);
	return r;
}

#define RISK                                                                                                           \
	"with --force the guest is started here. If it runs on another host as well, both write to the same disks and " \
	"destroy them"

static int start_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	_cleanup_bus_ sd_bus *bus = NULL;
	_cleanup_json_ json_object *status = NULL;
	const char *state = "running";
	bool force = false;
	int r;

	(void)json_get_bool(cli->options, "force", &force);
	if (client_connect_once(name, &bus) >= 0)
		return error_set(err, -EBUSY, "is running already");
	r = force ? 0 : refuse_moved(name, err);
	if (r < 0)
		return r;
	if (force)
		fprintf(stderr, "vmferry: %s: %s.\n", name, RISK);
	/* A definition with a mistake is no wrong command line. */
	if (local_definition(name, &definition, err) < 0)
		return STATUS_FAILED;
	if (keeper_start(name, force ? KEEPER_FORCE : 0, err) < 0)
		return STATUS_FAILED;
	/* A keeper that was brought back finds its guest as it is. */
	(void)client_query(name, "Status", &status, NULL);
	(void)json_get_string(status, "state", &state);
	*ret = simple_result(name, state);
	return STATUS_DONE;
}

/* Of VMs that live here and are off; one that moved away starts where it is now. */
static bool starts_at_boot(const char *name)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	_cleanup_json_ json_object *moved = local_moved(name);
	_cleanup_free_ char *control = runtime_path(name, "control");

	return !moved && access(control, F_OK) < 0 && local_definition(name, &definition, NULL) >= 0 &&
	       definition->autostart;
}

static const OptionSpec options[] = {
	{"autostart", 0, OPTION_FLAG, NULL, "autostart", "every VM whose definition says autostart = true"},
	{"force", 0, OPTION_FLAG, NULL, "force", "although it moved away: it surely runs nowhere else"},
	{NULL},
};

const Verb start_verb = {
	.name = "start",
	.args = "NAME...",
	.help = "start VMs",
	.options = {options},
	.min_args = 1,
	.max_args = -1,
	.each = start_each,
	.every = "autostart",
	.takes = starts_at_boot,
	.print = simple_print,
};
