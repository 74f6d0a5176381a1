/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/paths.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/relay.h"

/* After the end of piped input: how long the guest may be silent before we take it that nothing more comes. */
#define QUIET_MSEC 1000

/* Without a socket: because there is no keeper, or because the VM has no console. */
static int no_console(const char *name, int r, Error **err)
{
	_cleanup_bus_ sd_bus *bus = NULL;

	if (client_connect(name, &bus, err) < 0)
		return (*err)->code;
	error_set(err, r, "no console: %s", strerror(-r));
	error_hint(err, "the definition may say serial = \"none\"");
	return r;
}

static int console_each(_unused_ const Cli *cli, const char *name, _unused_ json_object **ret, Error **err)
{
	_cleanup_free_ char *path = runtime_path(name, "console");
	_cleanup_fd_ int fd = unix_connect(path);
	bool tty = isatty(STDIN_FILENO);
	Relay relay = {.write_fd = fd, .read_fd = fd, .over_fd = -1, .input = true, .raw = tty, .quiet = QUIET_MSEC};
	int r;

	if (fd < 0)
		return no_console(name, fd, err);
	if (tty)
		fprintf(stderr, "Console of %s, Ctrl-] leaves.\r\n", name);
	r = relay_run(&relay);
	if (tty)
		fputs("\r\n", stderr);
	if (r == RELAY_FAR_ENDED)
		fprintf(stderr, "vmferry: %s: the console was closed\n", name);
	return r < 0 ? error_set(err, r, "console: %s", strerror(-r)) : STATUS_DONE;
}

const Verb console_verb = {
	.name = "console",
	.args = "NAME",
	.help = "connect to the serial console of a VM; Ctrl-] leaves",
	.min_args = 1,
	.max_args = 1,
	.flags = VERB_STDIN,
	.each = console_each,
};
