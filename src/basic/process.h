/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "error.h"

/**
 * struct SpawnFd - an fd for the child
 * @fd:     ours, close-on-exec
 * @number: its number in the child
 */
typedef struct SpawnFd {
	int fd;
	int number;
} SpawnFd;

/**
 * struct Spawn - how to start a child; all not given is inherited or default
 * @argv:     program (searched in PATH) and its words; no shell
 * @env:      "NAME=value" to add to our environment
 * @fds:      the child's fds, standard ones (0, 1, 2) too; all others are closed. A standard one not named: /dev/null
 * @n_fds:    their number
 * @setsid:   in a session of its own
 * @bound:    SIGTERM when we end, however that is; prctl(2), PR_SET_PDEATHSIG
 * @prepare:  called in the child just before exec, after the fds are in place; only async-signal-safe calls.
 *            A negative return ends the child and is reported as the error
 * @userdata: for @prepare
 */
typedef struct Spawn {
	char *const *argv;
	char *const *env;
	const SpawnFd *fds;
	size_t n_fds;
	bool setsid, bound;
	int (*prepare)(void *userdata);
	void *userdata;
} Spawn;

/**
 * process_spawn() - start a child; signals are reset in it
 * @ret_pidfd: close-on-exec pidfd, may be NULL
 *
 * Return: pid, or negative errno with @err set (an exec that fails is reported here too, by its errno).
 */
pid_t process_spawn(const Spawn *spawn, int *ret_pidfd, Error **err);

/** process_start_time() - clock ticks since boot at which @pid started (proc(5) stat field 22); 0 if it is gone */
uint64_t process_start_time(pid_t pid);

/** process_state() - a letter as in field 3 of proc(5) stat: 'R' has or wants a CPU, 'T' is stopped, 'X' is gone ... */
char process_state(pid_t pid);

/** process_own_binary() - the path of the running program; the file that replaced it, if it was replaced */
char *process_own_binary(void);
