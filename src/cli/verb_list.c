/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"
#include "cli/output.h"

/* A keeper that does not answer does not hold up the list. */
#define STATUS_USEC (2 * USEC_PER_SEC)

static char *format_bytes(json_object *value)
{
	return value ? format_size(json_object_get_uint64(value)) : xstrdup("");
}

static char *format_migration(json_object *migration)
{
	_cleanup_free_ char *phase = format_value(json_member(migration, "phase"));
	json_object *percent = json_member(migration, "percent");

	if (!percent)
		return TAKE_PTR(phase);
	return xasprintf("%s %.0f %%", phase, json_object_get_double(percent));
}

static const Column columns[] = {
	{"NAME", "name", NULL, false},
	{"STATE", "state", NULL, false},
	{"REASON", "reason", NULL, false},
	{"PID", "pid", NULL, true},
	{"MEMORY", "memory", format_bytes, true},
	{"QEMU", "qemu_version", NULL, false},
	{"SINCE", "since", format_time, false},
	{"MIGRATION", "migration", format_migration, false},
};

static int ask(const char *name, json_object **ret)
{
	_cleanup_bus_ sd_bus *bus = NULL;
	int r = client_connect_once(name, &bus);

	return r < 0 ? r : client_status(bus, STATUS_USEC, ret);
}

/* What the files say of a VM whose keeper did not answer. */
static void describe_off(const char *name, int r, json_object *row)
{
	_cleanup_json_ json_object *moved = local_moved(name);
	_cleanup_free_ char *to = NULL;

	if (r != -ENOENT) {
		json_extend(row, "state", "s", "unknown", "reason", "s",
			    r == -ECONNREFUSED ? "its keeper is gone"
			    : r == -EACCES     ? "only root may ask its keeper"
					       : "its keeper does not answer",
			    NULL);
	} else if (moved) {
		_cleanup_free_ char *host = format_value(json_member(moved, "to"));

		to = xasprintf("to %s", host);
		json_extend(row, "state", "s", "moved", "reason", "s", to, "since", "o",
			    json_object_get(json_member(moved, "at")), NULL);
	} else {
		_cleanup_json_ json_object *off = local_off(name);

		json_extend(row, "state", "s", "off", "reason", "o", json_object_get(json_member(off, "reason")),
			    "since", "o", json_object_get(json_member(off, "since")), NULL);
	}
}

static json_object *describe(const char *name)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	_cleanup_json_ json_object *status = NULL;
	json_object *row = json_build("name", "s", name, NULL);
	int r = ask(name, &status);

	if (r < 0)
		describe_off(name, r, row);
	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(columns); i++) {
		json_object *value = json_member(status, columns[i].path);

		if (value && !streq(columns[i].path, "name"))
			json_object_object_add(row, columns[i].path, json_object_get(value));
	}
	if (!json_object_get_uint64(json_member(row, "memory")) && local_definition(name, &definition, NULL) == 0)
		json_extend(row, "memory", "u", definition->memory, NULL);
	return row;
}

static int list_all(const Cli *cli, Error **err)
{
	_cleanup_json_ json_object *rows = json_object_new_array();
	_cleanup_strv_ char **names = local_names();
	int r;

	for (size_t i = 0; cli->args && cli->args[i]; i++)
		if (!strv_contains(names, cli->args[i]))
			return error_set(err, -ENOENT, "%s: there is no VM of this name here", cli->args[i]);
	for (size_t i = 0; names && names[i]; i++)
		if (!cli->args || strv_contains(cli->args, names[i]))
			json_object_array_add(rows, describe(names[i]));
	if (cli->json) {
		_cleanup_json_ json_object *all = json_build("vms", "o", TAKE_PTR(rows), NULL);

		output_json(all);
		return STATUS_DONE;
	}
	r = output_table(columns, ARRAY_SIZE(columns), rows);
	return r < 0 ? error_set(err, r, "cannot print: %s", strerror(-r)) : STATUS_DONE;
}

const Verb list_verb = {
	.name = "list",
	.args = "[NAME...]",
	.help = "list the VMs of this host, running or not",
	.min_args = 0,
	.max_args = -1,
	.whole = list_all,
};
