/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "cli/cli.h"

/**
 * parallel_run() - do a verb for each of its names in a process of its own
 * @n: so many at a time
 *
 * ^C reaches them all, and means to each what it means to the verb.
 *
 * Return: the worst ExitStatus of them; STATUS_FAILED if one could not be started.
 */
int parallel_run(const Cli *cli, unsigned int n);
