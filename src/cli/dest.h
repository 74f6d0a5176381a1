/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/* Where VMs go to and other hosts are reached: ssh://[user@]host[:port], host, exec:COMMAND. */

/**
 * ssh_url_parse() - take ssh://[user@]host[:port] apart; an IPv6 address stands in brackets
 * @ret_login: "[user@]host" as ssh takes it; never begins with '-'
 * @ret_port:  port as text, NULL if there is none
 *
 * Return: 0, or -EINVAL with @err and hint set.
 */
int ssh_url_parse(const char *url, char **ret_login, char **ret_port, Error **err);

/** dest_check() - whether a migration's destination is well formed. Return: 0, or -EINVAL with @err and hint set */
int dest_check(const char *dest, Error **err);
