/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "cli/cli.h"

/**
 * struct FollowOrder - what to do
 * @method:      "Migrate", "Check", "Upgrade", or "Relay": join the migration that is under way
 * @destination: checked; NULL for Upgrade
 * @options:     JSON text as the method takes it; NULL for Relay
 */
typedef struct FollowOrder {
	const char *method;
	const char *destination;
	const char *options;
} FollowOrder;

/**
 * follow_migration() - follow a migration until it has ended: progress, log lines, the keeper's restarts
 * @order: start this one, ^C cancels it and a second ^C leaves it; NULL: the one that runs, ^C leaves it, as one joined
 * @ret:   its result as the keeper gave it; NULL when none runs
 *
 * With --direct this client makes the streams to the destination (streams.h), for a keeper here or on the host of -H.
 *
 * SIGHUP, SIGTERM and, under `vmferry control`, the end of standard input leave it. It then goes on by itself.
 *
 * Return: ExitStatus, with @err set unless it is STATUS_DONE, or negative errno.
 */
int follow_migration(const Cli *cli, const char *name, const FollowOrder *order, json_object **ret, Error **err);
