/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <unistd.h>

#include "basic/text.h"
#include "cli/cli.h"
#include "cli/remote.h"

/* Byte by byte: what follows the line is the verb's input. */
static int read_line(char *line, size_t size, size_t *ret_len)
{
	for (size_t len = 0; len < size; len++) {
		ssize_t n;

		do
			n = read(STDIN_FILENO, line + len, 1);
		while (n < 0 && errno == EINTR);
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EPIPE;
		if (line[len] == '\n') {
			*ret_len = len;
			return 0;
		}
	}
	return -E2BIG;
}

static int control_all(const Cli *cli, Error **err)
{
	_cleanup_free_ char *line = xcalloc(1, REMOTE_LINE_MAX);
	_cleanup_strv_ char **words = NULL, **argv = NULL;
	size_t len = 0;
	int r;

	if (cli->under_control)
		return error_set(err, -EINVAL, "control is not for another host");
	r = read_line(line, REMOTE_LINE_MAX, &len);
	if (r < 0) {
		error_set(err, -EINVAL, "no line of at most %d bytes with a JSON array of words: %s", REMOTE_LINE_MAX,
			  strerror(-r));
		error_hint(err, "this verb is what vmferry -H ssh://HOST starts on the other host");
		return -EINVAL;
	}
	r = remote_words(line, len, &words, err);
	if (r < 0)
		return r;
	strv_push(&argv, xstrdup("vmferry"));
	for (size_t i = 0; words[i]; i++)
		strv_push(&argv, xstrdup(words[i]));
	return cli_main((int)strv_length(argv), argv, true);
}

const Verb control_verb = {
	.name = "control",
	.args = "",
	.help = "the far end of -H: read a command line from standard input and do it",
	.max_args = 0,
	.flags = VERB_NO_NAME | VERB_LOCAL,
	.whole = control_all,
};
