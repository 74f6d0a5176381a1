/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "conntrack.h"

/**
 * ct_filter_attach() - let the kernel queue only those conntrack messages on a netlink socket that carry one of the
 * addresses at one of the four positions (original and reply, source and destination)
 *
 * Return: 0; -E2BIG when the program would be too long (nothing is attached, filter by hand); or negative errno.
 */
int ct_filter_attach(int fd, const CtSelect *select);
