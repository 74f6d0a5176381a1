/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/paths.h"
#include "basic/text.h"
#include "cli/client.h"
#include "cli/follow.h"
#include "cli/migrate_options.h"
#include "cli/output.h"

static char *format_side(json_object *side)
{
	_cleanup_free_ char *binary = format_value(json_member(side, "binary"));
	_cleanup_free_ char *version = format_value(json_member(side, "version"));

	return xasprintf("%s%s%s%s", binary, *version ? " (" : "", version, *version ? ")" : "");
}

static char *format_bytes(json_object *value)
{
	return format_size(json_object_get_uint64(value));
}

/* ---- --check ---- */

static const Column findings_columns[] = {
	{"LEVEL", "level", NULL, false},
	{"WHAT", "what", NULL, false},
	{"HINT", "hint", NULL, false},
};

static const Column check_fields[] = {
	{"way", "way", NULL, false},
	{"from", "from", format_side, false},
	{"to", "to", format_side, false},
	{"memory", "memory_needed", format_bytes, false},
};

static bool is_ok(json_object *answer)
{
	bool ok = false;

	return json_get_bool(answer, "ok", &ok) && ok;
}

static void print_check(const char *name, json_object *answer)
{
	json_object *findings;

	printf("%s: %s\n", name, is_ok(answer) ? "can be upgraded" : "cannot be upgraded");
	output_fields(check_fields, ARRAY_SIZE(check_fields), answer);
	if (json_get_array(answer, "findings", &findings) && json_object_array_length(findings) > 0)
		(void)output_table(findings_columns, ARRAY_SIZE(findings_columns), findings);
}

static int check_each(const char *name, const char *options, json_object **ret, Error **err)
{
	_cleanup_free_ char *text = NULL;
	int r;

	r = client_call(name, "CheckUpgrade", true, &text, err, "s", options);
	if (r >= 0)
		r = client_json("CheckUpgrade", text, ret, err);
	if (r < 0)
		return r;
	return is_ok(*ret) ? STATUS_DONE : STATUS_FAILED;
}

/* ---- */

static const Column summary[] = {
	{"way", "way", NULL, false},
	{"from", "from", format_side, false},
	{"to", "to", format_side, false},
	{"pause", "pause_ms", format_ms, false},
	{"total", "total_ms", format_ms, false},
	{"steps", "steps", migrate_format_times, false},
	{"guest", "guest", NULL, false},
};

static void upgrade_print(const char *name, json_object *result)
{
	_cleanup_free_ char *status = format_value(json_member(result, "status"));

	if (json_member(result, "ok")) {
		print_check(name, result);
		return;
	}
	printf("%s: upgrade %s\n", name, status);
	if (streq(status, "completed"))
		output_fields(summary, ARRAY_SIZE(summary), result);
}

static json_object *upgrade_options(const Cli *cli)
{
	static const char *const keys[] = {"binary", "to_definition", "way", "save_dir", "live"};
	json_object *options = json_object_new_object();

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		json_object *value = json_member(cli->options, keys[i]);

		if (value)
			json_object_object_add(options, keys[i], json_object_get(value));
	}
	return options;
}

static int upgrade_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_json_ json_object *options = upgrade_options(cli);
	bool check = false, or_later = false;
	int r;

	if (json_get_bool(cli->options, "check", &check) && check)
		r = check_each(name, json_text(options), ret, err);
	else
		r = follow_migration(cli, name, &(FollowOrder){"Upgrade", NULL, json_text(options)}, ret, err);
	if (r != -EAGAIN || !json_get_bool(cli->options, "or_later", &or_later))
		return r;
	error_free(TAKE_PTR(*err));
	return STATUS_LATER;
}

static bool runs(const char *name)
{
	_cleanup_free_ char *control = runtime_path(name, "control");

	return access(control, F_OK) == 0;
}

static const OptionSpec options[] = {
	{"all", 0, OPTION_FLAG, NULL, "all", "every VM that runs here"},
	{"parallel", 0, OPTION_COUNT, "N", "parallel", "so many VMs at a time (1)"},
	{"binary", 0, OPTION_TEXT, "PATH", "binary", "this QEMU, not the one its definition names"},
	{"to-definition", 0, OPTION_FILE, "FILE", "to_definition", "this definition; only host paths may differ"},
	{"definition-text", 0, OPTION_TEXT, "TEXT", "to_definition", NULL},
	{"way", 0, OPTION_TEXT, "auto|in-place|copy|save", "way", "map the guest's memory again, copy it, or stop and save it (auto)"},
	{"save-dir", 0, OPTION_TEXT, "DIR", "save_dir", "--way=save: to a file in this directory (runtime directory)"},
	{"no-live", 0, OPTION_NO, NULL, "live", "if its memory is copied: pause the guest for that"},
	{"or-later", 0, OPTION_FLAG, NULL, "or_later", NULL},
	{"check", 0, OPTION_FLAG, NULL, "check", "say what would be done and what is in the way"},
	{NULL},
};

const Verb upgrade_verb = {
	.name = "upgrade",
	.args = "NAME...",
	.help = "give running VMs a newer QEMU, in place",
	.options = {options, follow_option_table},
	.min_args = 1,
	.max_args = -1,
	.flags = VERB_INTERRUPT | VERB_PROGRESS,
	.each = upgrade_each,
	.every = "all",
	.takes = runs,
	.print = upgrade_print,
};
