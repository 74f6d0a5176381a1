/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/conntrack.h"
#include "conntrack/cilium.h"

#define CILIUM {"cilium", 0, OPTION_TEXT, "SOCKET", "cilium", "Cilium's table by its agent's socket, not the kernel's"}

static const OptionSpec dump_options[] = {
	CILIUM,
	{"format", 'f', OPTION_CHOICE, "wire|save|raw|frame", "format", "of what is written, default wire"},
	{NULL},
};
static const OptionSpec follow_options[] = {
	CILIUM,
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is written, default wire"},
	{"interval", 0, OPTION_MSEC, "TIME", "interval", "write what changed so often, default 10ms"},
	{"resync", 0, OPTION_MSEC, "TIME", "resync", "dump again so often where events are missing, default 2s"},
	{NULL},
};
static const OptionSpec apply_options[] = {
	CILIUM,
	{"format", 'f', OPTION_CHOICE, "wire|save|raw|frame", "format", "of what is read, default told from its first bytes"},
	{"settle", 0, OPTION_MSEC, "TIME", "settle", "strict again so long after the end, default 1s"},
	{"max-entries", 0, OPTION_TEXT, "N", "max-entries", "refuse more, default 1000000"},
	{"undo-if-cut", 0, OPTION_FLAG, NULL, "undo-if-cut", "delete all again when the input ends too early"},
	{NULL},
};
static const OptionSpec gate_options[] = {
	CILIUM,
	{"hold", 0, OPTION_MSEC, "TIME", "hold", "hold who waits so long at most, default 200ms"},
	{"settle", 0, OPTION_MSEC, "TIME", "settle", "strict again so long after the end, default 1s"},
	{"max-entries", 0, OPTION_TEXT, "N", "max-entries", "refuse more, default 1000000"},
	{NULL},
};
static const OptionSpec wait_options[] = {
	{"limit", 0, OPTION_MSEC, "TIME", "limit", "wait so long at most, default 300ms"},
	{NULL},
};
static const OptionSpec show_options[] = {
	{"format", 'f', OPTION_CHOICE, "wire|save|raw", "format", "of what is read, default told from its first bytes"},
	{NULL},
};
static const OptionSpec flush_options[] = {
	{"spare", 0, OPTION_LIST, "ADDRESS", "spare", "leave entries that carry this address too; may be repeated"},
	{NULL},
};

static const Verb verbs[] = {
	{"dump", "", "write the entries there are now", dump_options, true, false, 0, tool_dump},
	{"follow", "", "write the entries and what changes, until told to switch", follow_options, true, false, 0,
	 tool_follow},
	{"apply", "", "install entries from standard input and keep them current", apply_options, true, false, 0, tool_apply},
	{"gate", "SOCKET", "apply what comes to a socket, and hold who waits there until it is here", gate_options, true, false,
	 1, tool_gate},
	{"wait", "SOCKET", "wait at a gate; always succeeds", wait_options, false, false, 1, tool_wait},
	{"send", "SOCKET", "send standard input to a gate", NULL, false, false, 1, tool_send},
	{"show", "[FILE]", "print entries from a file or standard input", show_options, false, false, 1, tool_show},
	{"flush", "", "delete entries", flush_options, true, false, 0, tool_flush},
};
static const Program program = {
	.name = "vmferry-conntrack",
	.purpose = "Carries connection tracking entries from one host to another.",
	.verbs = verbs,
	.n_verbs = ARRAY_SIZE(verbs),
};

int tool_other(const Tool *tool, CtOther **ret, Error **err)
{
	const char *socket = tool_text(tool, "cilium", NULL);

	*ret = NULL;
	return socket ? ct_cilium_new(socket, ret, err) : 0;
}

int main(int argc, char **argv)
{
	return tool_main(&program, argc, argv);
}
