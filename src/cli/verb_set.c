/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/output.h"

static const OptionSpec settings[] = {
	{"bandwidth", 0, OPTION_RATE, "RATE", "bandwidth", ""},
	{"downtime", 0, OPTION_MSEC, "MS", "downtime", ""},
	{"throttle", 0, OPTION_THROTTLE, "PERCENT", "throttle", ""},
	{NULL},
};

static int parse_settings(char *const *words, json_object *values, Error **err)
{
	for (; *words; words++) {
		size_t len = strcspn(*words, "=");
		_cleanup_free_ char *key = strndup(*words, len);
		const OptionSpec *spec = key ? option_find(settings, key) : NULL;
		int r;

		if (!spec || !(*words)[len]) {
			error_set(err, -EINVAL, "\"%s\" is nothing that can be set", *words);
			error_hint(err, "bandwidth=RATE (500M), downtime=MS (300) or throttle=PERCENT (30)");
			return -EINVAL;
		}
		r = option_value(spec, *words + len + 1, values, err);
		if (r < 0)
			return r;
	}
	return 0;
}

static int set_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_json_ json_object *values = json_object_new_object();
	int r;

	r = parse_settings(cli->args + 1, values, err);
	if (r < 0)
		return r;
	r = client_call(name, "Set", false, NULL, err, "s", json_text(values));
	if (r < 0)
		return r;
	json_extend(values, "vm", "s", name, NULL);
	*ret = TAKE_PTR(values);
	return STATUS_DONE;
}

static void set_print(const char *name, _unused_ json_object *result)
{
	printf("%s: set\n", name);
}

const Verb set_verb = {
	.name = "set",
	.args = "NAME bandwidth=RATE|downtime=MS|throttle=PERCENT...",
	.help = "change a migration while it runs",
	.min_args = 2,
	.max_args = 4,
	.each = set_each,
	.print = set_print,
};
