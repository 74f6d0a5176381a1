/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/**
 * keeper_run() - be the keeper of a VM until it is off or has moved away
 * @flags:    of enum KeeperFlags
 * @ready_fd: where "READY" or an error is told once, -1 for nowhere; taken over
 *
 * Return: exit status.
 */
int keeper_run(const char *name, unsigned int flags, int ready_fd);

/** keeper_parent() - start the keeper again whenever it is killed; for hosts without systemd. Return: exit status */
int keeper_parent(const char *name, unsigned int flags, int ready_fd);
