/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/libvirt.h"

#include <errno.h>
#include <unistd.h>

#include "companions/gate.h"

static const OptionSpec migrate_options[] = {
	{"connect", 'c', OPTION_TEXT, "URI", "connect", "libvirt on the source, default as virsh has it"},
	{"from", 0, OPTION_TEXT, "HOST", "from", "where to run vmferry-conntrack, default as --connect says"},
	{"to", 0, OPTION_TEXT, "HOST", "to", "where to run vmferry-libvirt receive, default as DEST-URI says"},
	{"gate", 0, OPTION_CHOICE, "hard|soft", "gate", "soft: the guest does not wait for the last change"},
	{"bound", 0, OPTION_MSEC, "TIME", "bound", "it waits no longer than this, default 200ms"},
	{NULL},
};
static const OptionSpec hook_options[] = {
	{"bound", 0, OPTION_MSEC, "TIME", "bound", "wait no longer than this, default 200ms"},
	{NULL},
};

static const Verb verbs[] = {
	{.name = "migrate",
	 .args = "DOMAIN DEST-URI [VIRSH-OPTION...]",
	 .help = "migrate a domain as virsh does, and its connections with it",
	 .options = migrate_options,
	 .selects = true,
	 .select_is_optional = true,
	 .words_follow = true,
	 .max_args = 64,
	 .run = libvirt_migrate},
	{.name = "receive", .args = "", .help = "the target's end, started by migrate", .run = libvirt_receive},
	{.name = "hook",
	 .args = "DOMAIN OPERATION SUB-OPERATION EXTRA",
	 .help = "what /etc/libvirt/hooks/qemu runs; always exits with 0",
	 .options = hook_options,
	 .words_follow = true,
	 .max_args = 64,
	 .run = libvirt_hook},
};
static const Program program = {
	.name = "vmferry-libvirt",
	.purpose = "Carries connection tracking entries beside a migration that libvirt makes.",
	.verbs = verbs,
	.n_verbs = ARRAY_SIZE(verbs),
};

/* libvirt runs the hook at the end of its Prepare, before memory moves. The domain's XML on standard input is not
 * needed. */
int libvirt_hook(const Tool *tool, Error **err)
{
	int r;

	if (strv_length(tool->args) < 3 || !streq(tool->args[1], "started") || !streq(tool->args[2], "begin"))
		return 0;
	r = gate_wait(tool->args[0], tool_number(tool, "bound", LIBVIRT_BOUND_MSEC) * USEC_PER_MSEC);
	return r < 0 ? error_set(err, r, "%s goes on without its connections: %s", tool->args[0], strerror(-r)) : 0;
}

int main(int argc, char **argv)
{
	int status = tool_main(&program, argc, argv);

	/* libvirt ends a start or a migration whose hook fails. */
	return argc > 1 && streq(argv[1], "hook") ? 0 : status;
}
