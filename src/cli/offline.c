/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "offline.h"

#include <errno.h>
#include <stdio.h>

#include "cli/client.h"
#include "cli/local.h"
#include "keeper/launch.h"

int offline_start(const char *name, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	_cleanup_bus_ sd_bus *bus = NULL;
	_cleanup_json_ json_object *moved = NULL;

	if (client_connect_once(name, &bus) >= 0)
		return 0;
	moved = local_moved(name);
	if (moved)
		return local_moved_error(moved, name, err);
	if (local_definition(name, &definition, err) < 0)
		return -ENOENT;
	fprintf(stderr, "vmferry: %s: VM is not running, doing an offline migration instead\n", name);
	return keeper_start(name, KEEPER_OFFLINE, err);
}
