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
	const char *login; /* path of a login's socket (ssh_config(5), ControlPath), NULL: each command logs in */
	bool aes;	   /* this host's CPU has instructions for AES: a login prefers a cipher that uses them */
} DestinationOptions;

/**
 * enum DestinationUse - what a command to a destination is for
 * @DESTINATION_COMMAND: its stdio is a stream to the remote command; through the login if there is one
 * @DESTINATION_LOGIN:   the same, and others may go through its login as long as it lasts
 * @DESTINATION_FORWARD: asks the login to forward as @extra says (-L), and ends: status 0 when that is done
 */
typedef enum DestinationUse {
	DESTINATION_COMMAND,
	DESTINATION_LOGIN,
	DESTINATION_FORWARD,
} DestinationUse;

/** destination_login_usable() - whether ssh can have a login's socket at that path */
bool destination_login_usable(const char *path);

/**
 * destination_argv() - the command that reaches a destination
 * @extra: ssh options to add (NULL for none)
 *
 * Return: 0 with *@ret (strv_free() it), or -EINVAL with @err set.
 */
int destination_argv(const Destination *destination, const DestinationOptions *options, char *const *extra,
		     DestinationUse use, char ***ret, Error **err);
