/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <endian.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <string.h>

#include "cilium.h"
#include "wire.h"

/* Bits of ct_entry's flags. */
#define FLAG_RX_CLOSING 0x01
#define FLAG_TX_CLOSING 0x02
#define FLAG_SEEN_NON_SYN 0x10

typedef struct __attribute__((packed)) Entry {
	uint8_t dst[4], src[4];
	uint16_t dport, sport;
	uint8_t protocol, key_flags;
	uint64_t reserved, backend, packets, bytes;
	uint32_t lifetime;
	uint16_t flags, rev_nat;
	uint8_t tx_flags, rx_flags;
	uint32_t identity, last_tx_report, last_rx_report;
} Entry;
static_assert(sizeof(Entry) == CT_CILIUM_ENTRY, "no padding");

/* As near as the kernel's states come, for people and for choosing. */
static uint8_t state_of(uint16_t flags)
{
	if (flags & (FLAG_RX_CLOSING | FLAG_TX_CLOSING))
		return TCP_CONNTRACK_TIME_WAIT;
	return flags & FLAG_SEEN_NON_SYN ? TCP_CONNTRACK_ESTABLISHED : TCP_CONNTRACK_SYN_SENT;
}

bool ct_cilium_read(const uint8_t entry[CT_CILIUM_ENTRY], uint32_t now, CtExtra *extra, CtRecord *ret)
{
	CtRecord r = {.has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_MARK | CT_HAS_CILIUM,
		      .extra = extra};
	Entry e;

	memcpy(&e, entry, sizeof(e));
	r.key = (CtKey){.orig = {.a = e.sport, .b = e.dport},
			.family = AF_INET,
			.protocol = e.protocol,
			.map = CT_MAP_CILIUM,
			.flags = e.key_flags};
	memcpy(r.key.orig.src, e.src, sizeof(e.src));
	memcpy(r.key.orig.dst, e.dst, sizeof(e.dst));
	(void)ct_tuple_invert(&r.key.orig, e.protocol, &r.reply);
	r.timeout = le32toh(e.lifetime);
	if (r.timeout > CT_WIRE_TIMEOUT_MAX)
		r.timeout = CT_WIRE_TIMEOUT_MAX;
	extra->cilium = (CtCilium){.reserved = le64toh(e.reserved),
				   .backend = le64toh(e.backend),
				   .packets = le64toh(e.packets),
				   .bytes = le64toh(e.bytes),
				   .flags = le16toh(e.flags),
				   .rev_nat = be16toh(e.rev_nat),
				   .tx_flags = e.tx_flags,
				   .rx_flags = e.rx_flags,
				   .identity = le32toh(e.identity),
				   .expires = now + r.timeout};
	r.status = IPS_CONFIRMED | (extra->cilium.flags & FLAG_SEEN_NON_SYN ? IPS_SEEN_REPLY | IPS_ASSURED : 0);
	if (e.protocol == IPPROTO_TCP) {
		r.has |= CT_HAS_TCP;
		r.tcp.state = state_of(extra->cilium.flags);
	}
	*ret = r;
	return r.timeout > 0;
}

void ct_cilium_write(const CtRecord *r, uint8_t to[CT_CILIUM_ENTRY])
{
	const CtCilium *c = &r->extra->cilium;
	Entry e = {.dport = r->key.orig.b,
		   .sport = r->key.orig.a,
		   .protocol = r->key.protocol,
		   .key_flags = r->key.flags,
		   .reserved = htole64(c->reserved),
		   .backend = htole64(c->backend),
		   .packets = htole64(c->packets),
		   .bytes = htole64(c->bytes),
		   .lifetime = htole32(r->timeout ?: 1),
		   .flags = htole16(c->flags),
		   .rev_nat = htobe16(c->rev_nat),
		   .tx_flags = c->tx_flags,
		   .rx_flags = c->rx_flags,
		   .identity = htole32(c->identity)};

	memcpy(e.dst, r->key.orig.dst, sizeof(e.dst));
	memcpy(e.src, r->key.orig.src, sizeof(e.src));
	memcpy(to, &e, sizeof(e));
}

ssize_t ct_cilium_frame_read(const uint8_t *data, size_t len, const char **ret_why)
{
	uint32_t size;

	if (len >= 1 && data[0] != CT_CILIUM_VERSION) {
		*ret_why = "a frame of an unknown version";
		return -EPROTONOSUPPORT;
	}
	if (len < CT_CILIUM_FRAME)
		return 0;
	memcpy(&size, data + 1, sizeof(size));
	size = be32toh(size);
	if (size > CT_CILIUM_ENTRIES_MAX) {
		*ret_why = "a frame too large";
		return -EFBIG;
	}
	if (size % CT_CILIUM_ENTRY != 0) {
		*ret_why = "a frame that ends in the middle of an entry";
		return -EBADMSG;
	}
	return (ssize_t)(CT_CILIUM_FRAME + size);
}

void ct_cilium_frame_write(uint8_t to[CT_CILIUM_FRAME], size_t len)
{
	uint32_t size = htobe32((uint32_t)len);

	to[0] = CT_CILIUM_VERSION;
	memcpy(to + 1, &size, sizeof(size));
}
