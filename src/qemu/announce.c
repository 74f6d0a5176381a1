/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "announce.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if_arp.h>
#include <netinet/ether.h>
#include <netinet/icmp6.h>
#include <netinet/if_ether.h>
#include <netinet/ip6.h>
#include <string.h>

typedef struct NaFrame {
	struct ether_header ether;
	struct ip6_hdr ip;
	struct nd_neighbor_advert na;
	struct nd_opt_hdr option;
	struct ether_addr link_layer;
} __attribute__((packed)) NaFrame;
static_assert(sizeof(NaFrame) == ANNOUNCE_NA_BYTES, "a Neighbour Advertisement with one option");

typedef struct ArpFrame {
	struct ether_header ether;
	struct ether_arp arp;
	uint8_t padding[18];
} __attribute__((packed)) ArpFrame;
static_assert(sizeof(ArpFrame) == ANNOUNCE_ARP_BYTES, "a padded ARP frame");

static struct ether_header ether(const struct ether_addr *from, const uint8_t to[ETH_ALEN], uint16_t type)
{
	struct ether_header h = {.ether_type = htons(type)};

	memcpy(h.ether_dhost, to, ETH_ALEN);
	memcpy(h.ether_shost, from, ETH_ALEN);
	return h;
}

/*
 * A gratuitous ARP request: sender and target protocol address are both @address, target hardware
 * address zero, padded to the least Ethernet length
 *
 * Source: RFC 826 (format), RFC 5227 section 3 and 2.3 (ARP Announcement).
 */
static void announce_arp(const struct ether_addr *mac, struct in_addr address, uint8_t frame[static ANNOUNCE_ARP_BYTES])
{
	static const uint8_t broadcast[ETH_ALEN] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	ArpFrame f = {
		.ether = ether(mac, broadcast, ETHERTYPE_ARP),
		.arp.ea_hdr =
			{
				.ar_hrd = htons(ARPHRD_ETHER),
				.ar_pro = htons(ETHERTYPE_IP),
				.ar_hln = ETH_ALEN,
				.ar_pln = sizeof(address),
				.ar_op = htons(ARPOP_REQUEST),
			},
	};

	memcpy(f.arp.arp_sha, mac, ETH_ALEN);
	memcpy(f.arp.arp_spa, &address, sizeof(address));
	memcpy(f.arp.arp_tpa, &address, sizeof(address));
	memcpy(frame, &f, sizeof(f));
}

static uint32_t sum(uint32_t so_far, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (size_t i = 0; i + 1 < len; i += 2)
		so_far += (uint32_t)(p[i] << 8 | p[i + 1]);
	return so_far;
}

/* Over the pseudo-header (addresses, length, next header) and the message, whose own checksum is still zero. */
static uint16_t icmp6_checksum(const uint8_t frame[static ANNOUNCE_NA_BYTES])
{
	size_t len = ANNOUNCE_NA_BYTES - offsetof(NaFrame, na);
	uint32_t s = (uint32_t)len + IPPROTO_ICMPV6;

	s = sum(s, frame + offsetof(NaFrame, ip.ip6_src), 2 * sizeof(struct in6_addr));
	s = sum(s, frame + offsetof(NaFrame, na), len);
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return htons((uint16_t)~s);
}

/*
 * An unsolicited Neighbour Advertisement for @address to all nodes (ff02::1): override flag, target
 * link-layer address option, hop limit 255
 *
 * Source: RFC 4861 sections 4.4 and 7.2.6; RFC 2464 section 7 (multicast MAC); RFC 4443 section 2.3 (checksum).
 */
static void announce_na(const struct ether_addr *mac, const struct in6_addr *address, uint8_t frame[static ANNOUNCE_NA_BYTES])
{
	static const uint8_t all_nodes_mac[ETH_ALEN] = {0x33, 0x33, 0, 0, 0, 1};
	static const struct in6_addr all_nodes = {.s6_addr = {0xff, 0x02, [15] = 1}};
	NaFrame f = {
		.ether = ether(mac, all_nodes_mac, ETHERTYPE_IPV6),
		.ip = {.ip6_src = *address, .ip6_dst = all_nodes},
		.na = {.nd_na_target = *address},
		.option = {.nd_opt_type = ND_OPT_TARGET_LINKADDR, .nd_opt_len = 1},
		.link_layer = *mac,
	};

	f.ip.ip6_flow = htonl(6U << 28);
	f.ip.ip6_plen = htons(sizeof(f) - offsetof(NaFrame, na));
	f.ip.ip6_nxt = IPPROTO_ICMPV6;
	f.ip.ip6_hlim = 255;
	f.na.nd_na_type = ND_NEIGHBOR_ADVERT;
	f.na.nd_na_flags_reserved = ND_NA_FLAG_OVERRIDE;
	memcpy(frame, &f, sizeof(f));
	f.na.nd_na_cksum = icmp6_checksum(frame);
	memcpy(frame, &f, sizeof(f));
}

int announce_frame(const char *mac, const char *address, uint8_t frame[static ANNOUNCE_FRAME_MAX], size_t *ret_len)
{
	struct ether_addr hw;
	struct in6_addr v6;
	struct in_addr v4;

	if (!mac || !ether_aton_r(mac, &hw))
		return -EINVAL;
	if (inet_pton(AF_INET, address, &v4) == 1) {
		announce_arp(&hw, v4, frame);
		*ret_len = ANNOUNCE_ARP_BYTES;
		return 0;
	}
	if (inet_pton(AF_INET6, address, &v6) == 1) {
		announce_na(&hw, &v6, frame);
		*ret_len = ANNOUNCE_NA_BYTES;
		return 0;
	}
	return -EINVAL;
}
