/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "other.h"

/*
 * Cilium's connection tracking table, by the agent's API on its UNIX socket:
 *   GET  /v1/conntrack/export?ip4=A    answers with entries, an octet stream
 *   POST /v1/conntrack/import          takes the same; 400: not this version
 * Both carry the header Cilium-Conntrack-Export-Version: 1, which an answer may lack. IPv4 only.
 */

/*
 * An entry: struct ipv4_ct_tuple (destination, source, destination port, source port, protocol, flags) and struct
 * ct_entry (reserved 8, backend 8, packets 8, bytes 8, lifetime 4, flags 2, rev_nat_index 2, TCP flags seen 1 and 1,
 * source identity 4, last report 4 and 4) of bpf/lib/common.h. Addresses, ports and rev_nat_index are in network order,
 * all else is little-endian; the lifetime is what is left of it, in seconds.
 */
#define CT_CILIUM_ENTRY 68
#define CT_CILIUM_VERSION 1

/**
 * ct_cilium_read() - a record from an entry
 * @now: second of the monotonic clock
 * @extra: the record's, valid as long as that is used
 *
 * Return: false when its lifetime is over.
 */
bool ct_cilium_read(const uint8_t entry[CT_CILIUM_ENTRY], uint32_t now, CtExtra *extra, CtRecord *ret);

/**
 * ct_cilium_write() - an entry from a record
 *
 * The times of the last reports are those of another host's clock: they are 0, as of one that was never reported.
 */
void ct_cilium_write(const CtRecord *record, uint8_t to[CT_CILIUM_ENTRY]);

/*
 * A frame of entries, as Deckhouse's virtualization sends them from one node to the other: version of the entries (1
 * byte), length of what follows (4, big-endian), entries.
 */
#define CT_CILIUM_FRAME 5
#define CT_CILIUM_ENTRIES_MAX                                                                                          \
	(1000000UL * CT_CILIUM_ENTRY) /* in a frame, or in the exports of all addresses together */

/**
 * ct_cilium_frame_read() - how much of a frame is there
 * @ret_why: what is wrong with it, a constant text
 *
 * Return: bytes of the frame, header included, which may be more than @len; 0 when its header is not whole;
 * -EPROTONOSUPPORT, -EFBIG or -EBADMSG.
 */
ssize_t ct_cilium_frame_read(const uint8_t *data, size_t len, const char **ret_why);
/** ct_cilium_frame_write() - the header of a frame of @len bytes of entries */
void ct_cilium_frame_write(uint8_t to[CT_CILIUM_FRAME], size_t len);

/**
 * ct_cilium_new() - the table of an agent
 * @socket: path, usually /var/run/cilium/cilium.sock
 *
 * Nothing is asked yet. Return: 0 or negative errno with @err set.
 */
int ct_cilium_new(const char *socket, CtOther **ret, Error **err);
