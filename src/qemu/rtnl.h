/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <libmnl/libmnl.h>

#include "basic/macros.h"

/* The little of rtnetlink(7) that taps need. Requests are built with libmnl in a buffer of the caller's. */
typedef struct Rtnl Rtnl;

#define RTNL_BUFFER_BYTES 8192

/** rtnl_open() - Return: 0 or negative errno */
int rtnl_open(Rtnl **ret);
void rtnl_close(Rtnl *rtnl);
DEFINE_CLEANUP(Rtnl *, rtnl_close)
#define _cleanup_rtnl_ _cleanup_(rtnl_closep)

/** rtnl_link() - begin a link request (@family: AF_UNSPEC, or AF_BRIDGE for a port's bridge options) */
struct nlmsghdr *rtnl_link(void *buffer, uint16_t type, unsigned char family, unsigned int ifindex);

/**
 * rtnl_talk() - send a request and wait for what the kernel says (it answers at once)
 * @cb: for each message of the answer, may be NULL
 *
 * Return: 0 or negative errno.
 */
int rtnl_talk(Rtnl *rtnl, struct nlmsghdr *request, mnl_cb_t cb, void *userdata);

/**
 * struct RtnlLink - what is known of a link
 * @bridge:       it is a bridge
 * @vlan_filtering, @default_pvid: of a bridge
 */
typedef struct RtnlLink {
	unsigned int ifindex;
	uint32_t mtu;
	bool bridge;
	bool vlan_filtering;
	uint16_t default_pvid;
} RtnlLink;

/** rtnl_get_link() - look a link up by name. Return: 0, -ENODEV, or negative errno */
int rtnl_get_link(Rtnl *rtnl, const char *name, RtnlLink *ret);

/** rtnl_set_up() - bring a link up or take it down. Return: 0 or negative errno */
int rtnl_set_up(Rtnl *rtnl, unsigned int ifindex, bool up);
