/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "basic/text.h"
#include "cli/dest.h"
#include "cli/client.h"
#include "cli/follow.h"
#include "cli/migrate_options.h"
#include "cli/offline.h"
#include "cli/output.h"

static char *format_pause(json_object *value)
{
	_cleanup_free_ char *ms = format_ms(value);

	return xasprintf("%s at most", ms);
}

char *migrate_format_times(json_object *value)
{
	char *text = xstrdup("");

	if (!json_object_is_type(value, json_type_object))
		return text;
	json_object_object_foreach(value, name, ms)
	{
		_cleanup_free_ char *before = text, *clean = format_text(name), *figure = format_ms(ms);

		text = xasprintf("%s%s%s %s", before, *before ? ", " : "", clean, figure);
	}
	return text;
}

static char *format_transport(json_object *result)
{
	_cleanup_free_ char *name = format_value(json_member(result, "transport"));
	_cleanup_free_ char *reason = format_value(json_member(result, "transport_reason"));

	return xasprintf("%s%s%s%s", name, *reason ? " (" : "", reason, *reason ? ")" : "");
}

static char *format_ram(json_object *ram)
{
	_cleanup_free_ char *sent = format_size(json_object_get_uint64(json_member(ram, "transferred")));
	_cleanup_free_ char *total = format_size(json_object_get_uint64(json_member(ram, "total")));

	return xasprintf("%s sent of %s", sent, total);
}

static char *format_connections(json_object *ct)
{
	static const char *const others[] = {"refused", "lost"};
	bool enabled = true;
	uint64_t n = 0;
	char *text;

	if (json_get_bool(ct, "enabled", &enabled) && !enabled)
		return xstrdup("no connections (conntrack off)");
	(void)json_get_u64(ct, "applied", &n);
	text = format_count(n, "connection");
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		_cleanup_free_ char *before = text;

		if (!json_get_u64(ct, others[i], &n) || n == 0)
			text = xstrdup(before);
		else
			text = xasprintf("%s, %" PRIu64 " %s", before, n, others[i]);
	}
	return text;
}

static const Column summary[] = {
	{"transport", "transport_text", NULL, false},
	{"pause", "pause_ms", format_pause, false},
	{"total", "total_ms", format_ms, false},
	{"phases", "phases", migrate_format_times, false},
	{"memory", "ram", format_ram, false},
	{"moved", "conntrack", format_connections, false},
	{"guest", "guest", NULL, false},
};

void migrate_print(const char *name, json_object *result)
{
	_cleanup_free_ char *status = format_value(json_member(result, "status"));
	_cleanup_free_ char *source = format_value(json_member(result, "source"));
	_cleanup_free_ char *target = format_value(json_member(result, "target"));
	_cleanup_free_ char *transport = format_transport(result);

	printf("%s: %s, %s -> %s\n", name, status, *source ? source : "here", *target ? target : "?");
	/* Of a migration that has not come to its end, the figures say little; the error has been said. */
	if (!streq(status, "completed"))
		return;
	json_extend(result, "transport_text", "s", *transport ? transport : NULL, NULL);
	output_fields(summary, ARRAY_SIZE(summary), result);
}

json_object *migrate_options(const Cli *cli, const char *dest)
{
	const char *ssh = getenv("VMFERRY_SSH"), *agent = getenv("SSH_AUTH_SOCK");
	json_object *options = json_object_new_object();
	bool direct = json_member(cli->options, "direct");

	json_object_object_foreach(cli->options, key, value) if (!option_find(follow_option_table, key))
		json_object_object_add(options, key, json_object_get(value));
	if (!startswith(dest, "exec:") && !direct)
		json_extend(options, "ssh", "s", ssh && *ssh ? ssh : NULL, "ssh_auth_sock", "s",
			    agent && *agent ? agent : NULL, NULL);
	return options;
}

static int migrate_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_json_ json_object *options = NULL;
	const char *dest = cli->args[1];
	int r;

	r = dest_check(dest, err);
	if (r < 0)
		return r;
	if (!json_member(cli->common, "host") && offline_start(name, err) < 0)
		return STATUS_FAILED;
	options = migrate_options(cli, dest);
	return follow_migration(cli, name, &(FollowOrder){"Migrate", dest, json_text(options)}, ret, err);
}

const OptionSpec migrate_option_table[] = {
	{"transport", 't', OPTION_CHOICE, "auto|tls|tcp|ssh|tunnel|unix", "transport", "how memory travels"},
	{"data-address", 0, OPTION_TEXT, "ADDRESS", "data_address", "where the target's QEMU is reached"},
	{"bandwidth", 'b', OPTION_RATE, "RATE", "bandwidth", "at most so many bytes a second (500M)"},
	{"downtime", 'd', OPTION_MSEC, "MS", "downtime", "the longest pause to aim at (300)"},
	{"timeout", 0, OPTION_SEC, "SECONDS", "timeout", "give up when it has not ended by then"},
	{"throttle", 0, OPTION_THROTTLE, "off|auto|PERCENT", "throttle",
	 "slow a guest down that writes too fast (auto: up to 80)"},
	{"channels", 0, OPTION_COUNT, "N", "channels", "tls, tcp: connections in parallel (2 from 256 MiB of memory on)"},
	{"deadline", 0, OPTION_LIMITS, "connect|prepare|no-progress|switchover|finish|gate|link=TIME", "deadlines",
	 "instead of host.conf's"},
	{"conntrack", 0, OPTION_SWITCH, "on|off", "conntrack", "move tracked connections (on)"},
	{"to-definition", 0, OPTION_FILE, "FILE", "to_definition", "the VM's definition on the target"},
	{"definition-text", 0, OPTION_TEXT, "TEXT", "to_definition", NULL},
	{"remote-command", 0, OPTION_TEXT, "COMMAND", "remote_command", "instead of \"vmferry receive\""},
	{"direct", 0, OPTION_FLAG, NULL, "direct", "this client reaches both hosts and connects them"},
	{"no-live", 0, OPTION_NO, NULL, "live", "pause, move, resume"},
	{NULL},
};

const OptionSpec follow_option_table[] = {
	{"progress", 0, OPTION_CHOICE, "line|plain|none", "progress", "how progress is shown"},
	{"verbose", 'v', OPTION_FLAG, NULL, "verbose", "log lines that are no warnings, too"},
	{NULL},
};

const Verb migrate_verb = {
	.name = "migrate",
	.args = "NAME DEST",
	.help = "move a running VM to another host",
	.options = {migrate_option_table, follow_option_table},
	.min_args = 2,
	.max_args = 2,
	.flags = VERB_INTERRUPT | VERB_PROGRESS | VERB_DIRECT,
	.each = migrate_each,
	.print = migrate_print,
};
