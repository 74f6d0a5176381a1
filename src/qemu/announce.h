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
 * announce_frame() - the one of both that fits
 * @mac, @address: text
 *
 * Return: 0, or -EINVAL if @mac or @address is none.
 */
int announce_frame(const char *mac, const char *address, uint8_t frame[static ANNOUNCE_FRAME_MAX], size_t *ret_len);
