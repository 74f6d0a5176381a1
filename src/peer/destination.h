/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/**
 * struct Destination - where a VM is to go
 * @text: as given: "ssh://[user@]host[:port]", "host", "exec:COMMAND", or "direct:" and one of these
 * @direct: a client opens the streams (--direct): what follows "direct:" is its business; @exec and @host are NULL
 * @exec: the words of COMMAND, NULL for ssh
 * @host, @port: for ssh; @host is what ssh gets ("user@host"), @port 0 when not given
 */
typedef struct Destination {
	char *text;
	bool direct;
	char **exec;
	char *host;
	unsigned int port;
} Destination;

/** destination_parse() - Return: 0 or -EINVAL with @err set. A host that begins with "-" is refused. */
int destination_parse(const char *text, Destination **ret, Error **err);
void destination_free(Destination *destination);
DEFINE_CLEANUP(Destination *, destination_free)

/* How to reach it. */
typedef struct DestinationOptions {
	const char *ssh;	    /* ssh command words, NULL: "ssh" */
	const char *ssh_auth_sock;  /* agent lent for this migration, NULL: our own environment */
	const char *remote_command; /* default "vmferry receive" */
} DestinationOptions;

/**
 * destination_argv() - the command whose stdio is a stream to `vmferry receive` there
 * @extra: ssh options to add (NULL for none); with @forward_only no command is run there (-N)
 *
 * Return: 0 with *@ret (strv_free() it), or -EINVAL with @err set.
 */
int destination_argv(const Destination *destination, const DestinationOptions *options, char *const *extra,
		     bool forward_only, char ***ret, Error **err);
