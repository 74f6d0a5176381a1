/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "basic/error.h"

/**
 * struct Unprivileged - who a child becomes; looked up before fork, because looking up is not safe after it
 * @uid, @gid: the user and its primary group
 * @groups:    supplementary groups: that of /dev/kvm, if it is not root's
 * @last_cap:  the kernel's highest capability
 */
typedef struct Unprivileged {
	uid_t uid;
	gid_t gid;
	gid_t groups[1];
	size_t n_groups;
	int last_cap;
} Unprivileged;

/** unprivileged_look_up() - Return: 0, -ENOENT with @err set when there is no such user, or negative errno */
int unprivileged_look_up(const char *user, Unprivileged *ret, Error **err);

/**
 * unprivileged_become() - give up everything: ids, groups, all capability sets, the bounding set, ways to gain any
 * again; only system calls, to be used between fork and exec. Return: 0 or negative errno. Source: capabilities(7)
 */
int unprivileged_become(const Unprivileged *u);
