/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"
#include "vm/definition.h"

/**
 * tap_new() - make a tap interface (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, not persistent: it goes with its last fd), up,
 * on no bridge, no IPv6 autoconfiguration of the host on it
 * @ret_name: its name, chosen by the kernel ("vf%d"); free() it
 *
 * Return: fd (close-on-exec), or negative errno with @err set.
 */
int tap_new(char **ret_name, Error **err);

/** tap_name() - the interface name of a tap fd (TUNGETIFF), free() it; NULL if it is none */
char *tap_name(int fd);

/**
 * tap_attach() - put a tap on its NIC's bridge (VLAN set if given) and enter the NIC's MAC in the bridge's forwarding
 * table at that port, so that no frame need be flooded
 * @fd: of the tap
 *
 * Return: 0, or negative errno with @err set. Source: rtnetlink(7), RTM_NEWLINK IFLA_MASTER, RTM_NEWNEIGH NTF_MASTER.
 */
int tap_attach(int fd, const VmNic *nic, Error **err);

/**
 * tap_announce() - send one gratuitous ARP request for every IPv4 and one unsolicited Neighbour Advertisement for every
 * IPv6 address of the NIC (RFC 5227, RFC 4861 4.4), as if the guest had sent them: written to the tap's fd
 *
 * Return: number of frames sent, or negative errno.
 */
int tap_announce(int fd, const VmNic *nic);
