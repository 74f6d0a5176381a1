/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/local.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/simple.h"

static char *format_list(json_object *list)
{
	char *text = xstrdup("");

	for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
		_cleanup_free_ char *before = text, *item = format_value(json_object_array_get_idx(list, i));

		text = xasprintf("%s%s%s", before, *before ? ", " : "", item);
	}
	return text;
}

static char *format_migration(json_object *migration)
{
	return json_object_is_type(migration, json_type_object) ? progress_text(migration) : xstrdup("none");
}

/* {name: value, ...} as "name value, ..." */
static char *format_counters(json_object *counters)
{
	char *text = xstrdup("");

	if (!json_object_is_type(counters, json_type_object))
		return text;
	json_object_object_foreach(counters, name, value)
	{
		_cleanup_free_ char *before = text, *clean = format_text(name), *figure = format_value(value);

		text = xasprintf("%s%s%s %s", before, *before ? ", " : "", clean, figure);
	}
	return text;
}

static char *format_result(json_object *result)
{
	_cleanup_free_ char *status = format_value(json_member(result, "status"));
	_cleanup_free_ char *target = format_value(json_member(result, "target"));
	_cleanup_free_ char *message = format_value(json_member(result, "error.message"));

	return xasprintf("%s%s%s%s%s", status, *target ? " -> " : "", target, *message ? ": " : "", message);
}

static const Column columns[] = {
	{"uuid", "uuid", NULL, false},
	{"since", "since", format_time, false},
	{"host", "host", NULL, false},
	{"pid", "pid", NULL, false},
	{"qemu", "qemu_version", NULL, false},
	{"addresses", "addresses", format_list, false},
	{"conntrack", "conntrack", format_counters, false},
	{"lease", "lease", format_counters, false},
	{"graphics", "graphics", format_counters, false},
	{"migration", "migration", format_migration, false},
	{"last migration", "last_result", format_result, false},
	{"moved to", "to", NULL, false},
	{"moved at", "at", format_time, false},
};

static int status_each(_unused_ const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_error_ Error *error = NULL;
	int r = client_query(name, "Status", ret, &error);

	/* That it is not here is an answer, too. */
	if (r == -ESRCH || r == -EREMOTE) {
		_cleanup_json_ json_object *moved = local_moved(name), *off = moved ? NULL : local_off(name);

		*ret = json_build("name", "s", name, "state", "s", moved ? "moved" : "off", "reason", "o",
				  json_object_get(json_member(off, "reason")), "since", "o",
				  json_object_get(json_member(off, "since")), "to", "o",
				  json_object_get(json_member(moved, "to")), "at", "o",
				  json_object_get(json_member(moved, "at")), NULL);
		return STATUS_DONE;
	}
	if (error && !*err)
		*err = TAKE_PTR(error);
	return r;
}

void status_print(const char *name, json_object *status)
{
	_cleanup_free_ char *state = format_value(json_member(status, "state"));
	_cleanup_free_ char *reason = format_value(json_member(status, "reason"));

	printf("%s: %s%s%s%s\n", name, state, *reason ? " (" : "", reason, *reason ? ")" : "");
	output_fields(columns, ARRAY_SIZE(columns), status);
}

const Verb status_verb = {
	.name = "status",
	.args = "NAME...",
	.help = "tell how VMs are",
	.min_args = 1,
	.max_args = -1,
	.each = status_each,
	.print = status_print,
};
