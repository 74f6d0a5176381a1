/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `vmferry receive`: started by ssh on the target. Reads one line that names the VM, sees that a keeper is there, and
 * from then on only copies between its stdio and that keeper's peer socket: it can reach nothing else.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/log.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "keeper/launch.h"
#include "peer/copy.h"
#include "peer/preamble.h"

#define LINE_TIMEOUT_MS 10000

/* One byte at a time: what follows the line is not ours, and stdin may be a pipe. */
static int read_line(char *line, size_t size, Error **err)
{
	struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};

	for (size_t n = 0; n + 1 < size; n++) {
		if (poll(&p, 1, LINE_TIMEOUT_MS) <= 0)
			return error_set(err, -ETIMEDOUT, "nothing was said on standard input");
		if (read(STDIN_FILENO, line + n, 1) != 1)
			return error_set(err, -EPIPE, "standard input ended before a whole line");
		if (line[n] == '\n') {
			line[n] = '\0';
			return 0;
		}
	}
	return error_set(err, -EPROTO, "the first line is too long");
}

static int connect_keeper(const Preamble *preamble, Error **err)
{
	_cleanup_free_ char *path = runtime_path(preamble->name, "peer");
	int fd = unix_connect(path), r;

	if (fd >= 0 || preamble->data)
		return fd >= 0 ? fd : error_set(err, fd, "no keeper of %s is here to take the data", preamble->name);
	r = keeper_start(preamble->name, KEEPER_INCOMING, err);
	if (r < 0 && r != -EREMOTEIO)
		return r;
	/* Another stream may have started it at the same moment: what counts is that it answers. */
	fd = unix_connect(path);
	if (fd < 0)
		return error_set(err, fd, "%s's keeper does not answer on %s: %s", preamble->name, path, strerror(-fd));
	error_free(*err);
	*err = NULL;
	return fd;
}

static int receive_stream(const char *peer, Error **err)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_fd_ int keeper = -1;
	char line[PREAMBLE_MAX];
	Preamble preamble;
	int r;

	r = read_line(line, sizeof(line), err);
	if (r == 0)
		r = preamble_parse(line, &preamble, err);
	if (r < 0)
		return r;
	/* Who it is, is for the forced command to say, not for the stream. */
	snprintf(preamble.peer, sizeof(preamble.peer), "%s", peer);
	keeper = connect_keeper(&preamble, err);
	if (keeper < 0)
		return keeper;
	text = preamble_text(&preamble);
	r = fd_write_all(keeper, text, strlen(text));
	if (r < 0 && r != -EPIPE) /* it may have refused before it read */
		return error_set(err, r, "%s's keeper: %s", preamble.name, strerror(-r));
	return copy_both(STDIN_FILENO, STDOUT_FILENO, keeper);
}

int verb_receive(int argc, char **argv)
{
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ char *refusal = NULL;
	const char *peer = "", *value;

	for (int i = 1; i < argc; i++) {
		value = startswith(argv[i], "--peer=");
		if (!value || !vm_name_valid(value)) {
			fprintf(stderr, "usage: vmferry receive [--peer=HOST]\n");
			return 2;
		}
		peer = value;
	}
	signal(SIGPIPE, SIG_IGN);
	log_set_level(LOG_LEVEL_ERROR);
	if (receive_stream(peer, &err) >= 0)
		return 0;
	refusal = preamble_refusal(err);
	(void)fd_write_all(STDOUT_FILENO, refusal, strlen(refusal));
	return 1;
}
