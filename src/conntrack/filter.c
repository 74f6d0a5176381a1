/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "filter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>

/*
 * A classic BPF program over a netlink message (linux/filter.h): NLATTR and NLATTR_NEST look for the attribute
 * of type X at or inside the one at offset A and leave its offset in A, or 0. Per family, tuple, position and address
 * it compares the address as 32-bit words.
 */
typedef struct Program {
	struct sock_filter code[BPF_MAXINSNS];
	unsigned n;
	bool full;
} Program;

#define OFFSET_FAMILY NLMSG_HDRLEN
#define OFFSET_ATTRIBUTES (NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct nfgenmsg)))

static void emit(Program *p, uint16_t code, uint32_t k, uint8_t jt, uint8_t jf)
{
	if (p->n == BPF_MAXINSNS)
		p->full = true;
	else
		p->code[p->n++] = (struct sock_filter){.code = code, .k = k, .jt = jt, .jf = jf};
}

/* A jump whose target is not known yet; return where it is. */
static unsigned emit_jump(Program *p)
{
	emit(p, BPF_JMP | BPF_JA, 0, 0, 0);
	return p->n - 1;
}

static void land(Program *p, unsigned jump)
{
	p->code[jump].k = p->n - jump - 1;
}

/* A = attribute @type at or inside A; return the jump taken when it is not there. */
static unsigned emit_find(Program *p, uint32_t ancillary, uint32_t type)
{
	emit(p, BPF_LDX | BPF_IMM, type, 0, 0);
	emit(p, BPF_LD | BPF_B | BPF_ABS, (uint32_t)SKF_AD_OFF + ancillary, 0, 0);
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1);
	return emit_jump(p);
}

/* X = offset of an attribute with an address: accept if it is this one. */
static void emit_compare(Program *p, const CtAddress *address)
{
	unsigned words = address->family == AF_INET ? 1 : 4;

	for (unsigned i = 0; i < words; i++) {
		unsigned after = 2 * (words - 1 - i) + 1; /* instructions from behind this jump to behind the return */
		uint32_t word;

		memcpy(&word, address->bytes + 4 * i, 4);
		emit(p, BPF_LD | BPF_W | BPF_IND, NLA_HDRLEN + 4 * i, 0, 0);
		emit(p, BPF_JMP | BPF_JEQ | BPF_K, ntohl(word), 0, (uint8_t)after);
	}
	emit(p, BPF_RET | BPF_K, UINT32_MAX, 0, 0);
}

/* A position is the attribute in the nest whose offset is in M[0]. */
static void emit_position(Program *p, const CtSelect *select, uint8_t family, uint32_t type)
{
	unsigned missing;

	emit(p, BPF_LD | BPF_MEM, 0, 0, 0);
	missing = emit_find(p, SKF_AD_NLATTR_NEST, type);
	emit(p, BPF_MISC | BPF_TAX, 0, 0, 0);
	for (size_t i = 0; i < select->n_addresses; i++)
		if (select->addresses[i].family == family)
			emit_compare(p, &select->addresses[i]);
	land(p, missing);
}

static void emit_tuple(Program *p, const CtSelect *select, uint8_t family, uint32_t type)
{
	unsigned no_tuple, no_ip;

	emit(p, BPF_LD | BPF_IMM, OFFSET_ATTRIBUTES, 0, 0);
	no_tuple = emit_find(p, SKF_AD_NLATTR, type);
	no_ip = emit_find(p, SKF_AD_NLATTR_NEST, CTA_TUPLE_IP);
	emit(p, BPF_ST, 0, 0, 0);
	emit_position(p, select, family, family == AF_INET ? CTA_IP_V4_SRC : CTA_IP_V6_SRC);
	emit_position(p, select, family, family == AF_INET ? CTA_IP_V4_DST : CTA_IP_V6_DST);
	land(p, no_tuple);
	land(p, no_ip);
}

static void emit_family(Program *p, const CtSelect *select, uint8_t family)
{
	unsigned other;

	emit(p, BPF_LD | BPF_B | BPF_ABS, OFFSET_FAMILY, 0, 0);
	emit(p, BPF_JMP | BPF_JEQ | BPF_K, family, 1, 0);
	other = emit_jump(p);
	emit_tuple(p, select, family, CTA_TUPLE_ORIG);
	emit_tuple(p, select, family, CTA_TUPLE_REPLY);
	emit(p, BPF_RET | BPF_K, 0, 0, 0);
	land(p, other);
}

int ct_filter_attach(int fd, const CtSelect *select)
{
	Program p = {.n = 0};
	struct sock_fprog prog;

	emit_family(&p, select, AF_INET);
	emit_family(&p, select, AF_INET6);
	emit(&p, BPF_RET | BPF_K, 0, 0, 0);
	if (p.full)
		return -E2BIG;
	prog = (struct sock_fprog){.len = (unsigned short)p.n, .filter = p.code};
	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) < 0 ? -errno : 0;
}
