/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/** local_addresses() - addresses of the other VMs that live on this host; NULL: none; strv_free() it */
char **local_addresses(const char *except);

/**
 * local_ports() - where clients find the graphics of the other VMs, also of one whose keeper is away just now
 * @taken: of the ports from @first on, @n of them; set where one is taken
 */
void local_ports(const char *except, unsigned int first, size_t n, bool *taken);

/** local_conflict() - whether a VM that arrives would clash with one that is here: an address, a MAC, the uuid */
int local_conflict(const VmDefinition *def, Error **err);
