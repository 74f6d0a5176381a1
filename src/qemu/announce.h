/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <net/ethernet.h>
#include <netinet/in.h>

#include "basic/macros.h"

/* Frames that tell the network where an address now is. Without FCS, as a tap takes them. */
#define ANNOUNCE_FRAME_MAX 86
#define ANNOUNCE_ARP_BYTES 60
#define ANNOUNCE_NA_BYTES 86

/**
 * announce_arp() - a gratuitous ARP request: sender and target protocol address are both @address, target hardware
 * address zero, padded to the least Ethernet length
 *
 * Source: RFC 826 (format), RFC 5227 section 3 and 2.3 (ARP Announcement).
 */
void announce_arp(const struct ether_addr *mac, struct in_addr address, uint8_t frame[static ANNOUNCE_ARP_BYTES]);

/**
 * announce_na() - an unsolicited Neighbour Advertisement for @address to all nodes (ff02::1): override flag, target
 * link-layer address option, hop limit 255
 *
 * Source: RFC 4861 sections 4.4 and 7.2.6; RFC 2464 section 7 (multicast MAC); RFC 4443 section 2.3 (checksum).
 */
void announce_na(const struct ether_addr *mac, const struct in6_addr *address, uint8_t frame[static ANNOUNCE_NA_BYTES]);

/**
 * announce_frame() - the one of both that fits
 * @mac, @address: text
 *
 * Return: 0, or -EINVAL if @mac or @address is none.
 */
int announce_frame(const char *mac, const char *address, uint8_t frame[static ANNOUNCE_FRAME_MAX], size_t *ret_len);
