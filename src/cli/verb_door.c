/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/offline.h"
#include "peer/copy.h"

/* Raw bytes to and from the control socket: the client at the other end speaks D-Bus with the keeper. */
static int open_door(const Cli *cli, const char *name, int *ret, Error **err)
{
	_cleanup_free_ char *path = runtime_path(name, "control");
	_cleanup_bus_ sd_bus *bus = NULL;
	bool start = false;
	int r;

	(void)json_get_bool(cli->options, "start", &start);
	r = start ? offline_start(name, err) : 0;
	if (r >= 0)
		r = client_connect(name, &bus, err); /* says why it cannot be */
	if (r < 0)
		return r;
	*ret = r = unix_connect(path);
	return r < 0 ? error_set(err, r, "its keeper does not answer: %s", strerror(-r)) : 0;
}

/* One end of a socket pair for the keeper, the other one for us. */
static int open_stream(const char *name, const char *stream, int *ret, Error **err)
{
	_cleanup_fd_ int keepers = -1, ours = -1;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(err, -errno, "socketpair: %m");
	keepers = pair[0];
	ours = pair[1];
	r = client_call(name, "Stream", false, NULL, err, "sh", stream, keepers);
	if (r >= 0)
		*ret = TAKE_FD(ours);
	return r;
}

static int door_each(const Cli *cli, const char *name, json_object **ret, Error **err)
{
	_cleanup_error_ Error *why = NULL;
	_cleanup_fd_ int fd = -1;
	int r;

	(void)ret;
	if (!cli->under_control) {
		error_set(err, -EINVAL, "door is what -H with --direct starts on the other host");
		error_hint(err, "vmferry -H ssh://SOURCE migrate %s ssh://TARGET --direct", name);
		return -EINVAL;
	}
	r = cli->args[1] ? open_stream(name, cli->args[1], &fd, &why) : open_door(cli, name, &fd, &why);
	if (r < 0) {
		/* One line: it is the last one that the client shows. */
		error_set(err, r, "%s%s%s%s", why->message, why->hint ? " (" : "", why->hint ? why->hint : "",
			  why->hint ? ")" : "");
		return STATUS_FAILED;
	}
	(void)copy_both(STDIN_FILENO, STDOUT_FILENO, fd);
	return STATUS_DONE;
}

static const OptionSpec options[] = {
	{"start", 0, OPTION_FLAG, NULL, "start", "a VM that is off gets a keeper"},
	{NULL},
};

const Verb door_verb = {
	.name = "door",
	.args = "NAME [STREAM]",
	.help = "the far end of -H with --direct: a VM's control socket, or a stream to its keeper",
	.options = {options},
	.min_args = 1,
	.max_args = 2,
	.each = door_each,
};
