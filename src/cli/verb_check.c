/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/client.h"
#include "cli/dest.h"
#include "cli/follow.h"
#include "cli/migrate_options.h"
#include "cli/output.h"

static const Column columns[] = {
	{"LEVEL", "level", NULL, false},
	{"WHAT", "what", NULL, false},
	{"HINT", "hint", NULL, false},
};

static bool in_the_way(json_object *answer)
{
	json_object *findings;
	const char *level;
	bool ok;

	if (json_get_bool(answer, "ok", &ok) && !ok)
		return true;
	if (!json_get_array(answer, "findings", &findings))
		return false;
	for (size_t i = 0; i < json_object_array_length(findings); i++)
		if (json_get_string(json_object_array_get_idx(findings, i), "level", &level) && streq(level, "error"))
			return true;
	return false;
}

static int check_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_json_ json_object *options = NULL;
	_cleanup_free_ char *text = NULL;
	const char *dest = cli->args[1];
	int r;

	r = dest_check(dest, err);
	if (r < 0)
		return r;
	options = migrate_options(cli, dest);
	if (json_member(cli->options, "direct")) {
		r = follow_migration(cli, name, &(FollowOrder){"Check", dest, json_text(options)}, ret, err);
		return r == STATUS_DONE && in_the_way(*ret) ? STATUS_FAILED : r;
	}
	r = client_call(name, "Check", true, &text, err, "ss", dest, json_text(options));
	if (r >= 0)
		r = client_json("Check", text, ret, err);
	if (r < 0)
		return r;
	return in_the_way(*ret) ? STATUS_FAILED : STATUS_DONE;
}

static void check_print(const char *name, json_object *answer)
{
	_cleanup_free_ char *transport = format_value(json_member(answer, "transport"));
	_cleanup_free_ char *reason = format_value(json_member(answer, "transport_reason"));
	json_object *findings;
	uint64_t pause;

	printf("%s: %s\n", name, in_the_way(answer) ? "cannot move" : "can move");
	if (*transport)
		printf("  transport  %s%s%s%s\n", transport, *reason ? " (" : "", reason, *reason ? ")" : "");
	if (json_get_u64(answer, "predicted_pause_ms", &pause)) {
		_cleanup_free_ char *ms = format_msec(pause);

		printf("  pause      ~%s\n", ms);
	}
	if (json_get_array(answer, "findings", &findings) && json_object_array_length(findings) > 0)
		(void)output_table(columns, ARRAY_SIZE(columns), findings);
}

const Verb check_verb = {
	.name = "check",
	.args = "NAME DEST",
	.help = "say what a migration would do and what is in its way; changes nothing",
	.options = {migrate_option_table},
	.min_args = 2,
	.max_args = 2,
	.flags = VERB_DIRECT,
	.each = check_each,
	.print = check_print,
};
