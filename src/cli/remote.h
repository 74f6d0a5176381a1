/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "cli/cli.h"

/* The first line `vmferry control` reads: a JSON array of words, with its newline at most so long. */
#define REMOTE_LINE_MAX 65536
#define REMOTE_WORDS_MAX 256

/**
 * remote_run() - do a command line on another host: ssh HOST vmferry control
 * @host: ssh://[user@]host[:port]
 *
 * The words go over ssh's standard input, nothing of them stands on its command line. VMFERRY_SSH names the ssh
 * command, VMFERRY_REMOTE_CONTROL the far one.
 *
 * Return: the far ExitStatus, or negative errno with @err set.
 */
int remote_run(const Cli *cli, const char *host, Error **err);

/** remote_argv() - the command that talks to `vmferry control` on a host: strv_free() it. Return: 0 or -EINVAL, @err set */
int remote_argv(const char *host, char ***ret, Error **err);

/**
 * remote_words() - check and split the line that remote_run() sends
 * @ret: words, at least one, none of them before the verb
 *
 * Return: 0, or -EINVAL with @err set.
 */
int remote_words(const char *line, size_t len, char ***ret, Error **err);
