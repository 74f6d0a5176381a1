/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/* A helper process of a migration (ssh, or an exec: command): its standard error is kept for messages. */
typedef struct Child Child;

/**
 * child_start() - start a command
 * @argv:          its words
 * @ssh_auth_sock: SSH_AUTH_SOCK for it, NULL: as it is
 * @in, @out:      its stdin and stdout, stay the caller's; -1: /dev/null. Without @in it ends with us, as nothing else would
 *                 tell it; with it, it goes on as long as its stream does
 * @exited:        called once when it has ended by itself; it is reaped then
 *
 * Return: 0 or negative errno with @err set.
 */
int child_start(sd_event *event, char *const *argv, const char *ssh_auth_sock, int in, int out,
		void (*exited)(void *userdata), void *userdata, Child **ret, Error **err);

/**
 * child_free() - let go of it and see that it is reaped; @exited is not called
 * @graceful: it ends by itself at the end of its input (SIGTERM after 2 s); else SIGTERM now
 *
 * Return: NULL.
 */
Child *child_free(Child *child, bool graceful);

/**
 * child_leave() - let go of it for one whose loop ends: nobody reaps it
 * @kill: SIGTERM it now; else it goes on
 */
void child_leave(Child *child, bool kill);

/**
 * child_explain() - why it ended, from its exit status and its last line of standard error, with a hint for what ssh says
 * Return: -ECONNREFUSED or another negative errno; always sets @err.
 */
int child_explain(Child *child, Error **err);

/** child_succeeded() - whether it has ended with status 0 */
bool child_succeeded(const Child *child);

/** child_busy_server() - whether it looks like an sshd that had too many logins under way (MaxStartups): worth a retry */
bool child_busy_server(Child *child);

/** child_kill() - SIGKILL it, now (fault injection and last resort) */
void child_kill(Child *child);
