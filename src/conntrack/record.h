/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <netinet/in.h>

#include "conntrack.h"

/*
 * One connection tracking entry in memory. Addresses, ports and identifiers are in network order as the kernel gives
 * them, an IPv4 address fills the first four of its 16 bytes; all other numbers are the host's.
 *
 * Sources of facts: linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h (status), nf_conntrack_tcp.h (states,
 * flags); what of them can be set again is in docs/wire.md.
 */

typedef struct CtTuple {
	uint8_t src[16];
	uint8_t dst[16];
	uint16_t a; /* source port, GRE key; ICMP: identifier */
	uint16_t b; /* destination port; ICMP: type and code, a byte each */
} CtTuple;

enum {
	CT_ZONE_BOTH, /* CTA_ZONE */
	CT_ZONE_ORIG, /* CTA_TUPLE_ZONE in the original tuple */
	CT_ZONE_REPLY,
	CT_ZONE_MAX = CT_ZONE_REPLY,
};

enum {
	CT_MAP_KERNEL, /* nf_conntrack */
	CT_MAP_CILIUM,
	_CT_MAP_MAX
};

/* What names an entry. Compared and hashed as bytes: all of it is zeroed first. */
typedef struct CtKey {
	CtTuple orig;
	uint8_t family;
	uint8_t protocol;
	uint16_t zone;
	uint8_t zone_dir;
	uint8_t expect; /* not a connection: one that is expected; addresses and ports that may be any are 0 */
	uint8_t map;   /* CT_MAP_...: which table it is of */
	uint8_t flags; /* Cilium's, which tell entries with the same tuple apart; else 0 */
} CtKey;

/* Which members of a record are set: events carry only what changed. */
enum {
	CT_HAS_REPLY = 1 << 0,
	CT_HAS_STATUS = 1 << 1,
	CT_HAS_TIMEOUT = 1 << 2,
	CT_HAS_MARK = 1 << 3,
	CT_HAS_ID = 1 << 4,
	CT_HAS_TCP = 1 << 5,
	/* in struct CtExtra */
	CT_HAS_LABELS = 1 << 6,
	CT_HAS_HELPER = 1 << 7,
	CT_HAS_SEQADJ = 1 << 8, /* of the original direction */
	CT_HAS_SEQADJ_REPLY = 1 << 9,
	CT_HAS_MASTER = 1 << 10,
	CT_HAS_SCTP = 1 << 11,
	CT_HAS_DCCP = 1 << 12,
	CT_HAS_EXPECT = 1 << 13,
	CT_HAS_CILIUM = 1 << 14, /* in every complete record of Cilium's table, and in no other */
	CT_HAS_EXTRA = 0x1ff << 6,
};

#define CT_LABELS 16 /* bytes, NF_CT_LABELS_MAX_SIZE */
#define CT_NAME 16   /* of a helper, with its NUL: NF_CT_HELPER_NAME_LEN */
#define CT_FUNCTION 32 /* of an expectation's function, with its NUL; the longest known is "nat-follow-master" */

typedef struct CtSeqadj {
	uint32_t position;
	uint32_t before, after; /* signed in the kernel */
} CtSeqadj;

typedef struct CtMaster {
	CtTuple orig;
	uint8_t protocol;
} CtMaster;

typedef struct CtSctp {
	uint32_t vtag[2]; /* network order, original and reply */
	uint8_t state;	  /* enum sctp_conntrack */
} CtSctp;

typedef struct CtDccp {
	uint64_t handshake; /* sequence number, host order */
	uint8_t state, role;
} CtDccp;

typedef struct CtExpect {
	CtTuple mask; /* an address or a number is given (all ones) or may be any (0) */
	CtTuple nat;  /* what the expected connection is translated to */
	uint32_t flags, class;
	uint8_t has_nat, nat_dir;
	char function[CT_FUNCTION];
} CtExpect;

/* struct ct_entry of Cilium's bpf/lib/common.h without the lifetime, which is the record's timeout. Host order. */
typedef struct CtCilium {
	uint64_t reserved, backend;
	uint32_t identity; /* of the source */
	uint16_t flags, rev_nat;
	uint8_t tx_flags, rx_flags; /* TCP flags seen */
	/* From here on a change is none that another host needs to hear of. */
	uint64_t packets, bytes;
	uint32_t expires; /* second of this host's monotonic clock; not told to others */
} CtCilium;

/* What few entries have; kept outside of the record. */
typedef struct CtExtra {
	uint8_t labels[CT_LABELS];
	char helper[CT_NAME];
	CtSeqadj seqadj[2];
	CtMaster master;
	CtSctp sctp;
	CtDccp dccp;
	CtExpect expect;
	CtCilium cilium;
} CtExtra;

typedef struct CtTcp {
	uint8_t state;	   /* enum tcp_conntrack */
	uint8_t wscale[2]; /* window scale, original and reply */
	uint8_t flags[2];  /* IP_CT_TCP_FLAG_..., original and reply */
} CtTcp;

typedef struct CtRecord {
	CtKey key;
	CtTuple reply;
	uint32_t status;  /* IPS_... */
	uint32_t timeout; /* seconds left when it was seen */
	uint32_t mark;
	uint32_t id; /* CTA_ID: tells two entries with the same tuple apart; host's own */
	uint16_t has;
	CtTcp tcp;
	/* Records in a table own it. Others borrow it from who made them, until that makes the next one. NULL: none. */
	CtExtra *extra;
} CtRecord;

/** ct_record_assign() - make @to, which owns its extra, a copy of @from */
void ct_record_assign(CtRecord *to, const CtRecord *from);

/** ct_record_clear() - free what a record owns and zero it */
void ct_record_clear(CtRecord *record);

/** ct_record_same_extra() - whether the extras of kind @has (CT_HAS_...) are the same in both */
bool ct_record_same_extra(const CtRecord *a, const CtRecord *b, unsigned has);

/**
 * ct_record_refreshed() - whether @b, a later view of @a, will live so much longer that another host must hear of it
 *
 * Only in tables that no packet refreshes on the other host before the switch: more than a quarter of what was told.
 */
bool ct_record_refreshed(const CtRecord *a, const CtRecord *b);

/** ct_record_left() - seconds that are left of a lifetime, at least 1; @now: second of the monotonic clock */
uint32_t ct_record_left(const CtRecord *record, uint32_t now);

/** ct_name_valid() - whether a name in @size bytes is one: ends in them, not empty, printable characters, no blanks */
bool ct_name_valid(const char *name, size_t size);

/** ct_record_master() - the key of a record's master. Return: false when it has none */
bool ct_record_master(const CtRecord *record, CtKey *ret);

/* The window scale and state limits the kernel has (RFC 7323 section 2.3; ctnetlink answers ERANGE above). */
#define CT_WSCALE_MAX 14
#define CT_DCCP_STATES 10 /* of kernels that know the protocol; the last is "invalid" */
#define CT_EXPECT_FLAGS 0x7 /* NF_CT_EXPECT_..., nf_conntrack_common.h */
#define CT_EXPECT_CLASSES 4 /* NF_CT_MAX_EXPECT_CLASSES */

/** ct_address_length() - bytes of an address of @family: 4 or 16 */
static inline size_t ct_address_length(uint8_t family)
{
	return family == AF_INET ? 4 : 16;
}

/** ct_protocol_has_ports() - whether the kernel's tuples of this protocol have two ports (GRE: its keys) */
bool ct_protocol_has_ports(uint8_t protocol);

/** ct_protocol_name() - "tcp", or NULL for one that has no name here */
const char *ct_protocol_name(uint8_t protocol);

/** ct_protocol_number() - of a name or a number as text. Return: the protocol, or -EINVAL */
int ct_protocol_number(const char *text);

/** ct_sctp_state_name() - as conntrack(8) says it, or NULL; ct_dccp_state_name() likewise */
const char *ct_sctp_state_name(uint8_t state);
const char *ct_dccp_state_name(uint8_t state);

/** ct_tcp_state_name() - "ESTABLISHED" as conntrack(8) says it, or NULL */
const char *ct_tcp_state_name(uint8_t state);

/** ct_protocol_is_icmp() - ICMP or ICMPv6: identifier, type and code in place of ports */
static inline bool ct_protocol_is_icmp(uint8_t protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

/**
 * ct_tuple_invert() - the tuple of an answer: what the reply tuple is when there is no NAT
 *
 * Return: false for an ICMP type that has no answer; such connections do not exist (icmp_pkt_to_tuple() in the kernel).
 */
bool ct_tuple_invert(const CtTuple *tuple, uint8_t protocol, CtTuple *ret);

/** ct_record_merge() - take over from @from what it has; the keys are the same */
void ct_record_merge(CtRecord *record, const CtRecord *from);

/** ct_record_fill() - take over from @from only what @record lacks */
void ct_record_fill(CtRecord *record, const CtRecord *from);

/** ct_record_complete() - whether enough is known to make this entry anew elsewhere */
bool ct_record_complete(const CtRecord *record);

/** ct_record_selected() - whether @select means it: one of the four addresses, mark, zone */
bool ct_record_selected(const CtRecord *record, const CtSelect *select);

/** ct_record_owned() - whether the guest's side, original source or real responder, is in @select, and the rest is so */
bool ct_record_owned(const CtRecord *record, const CtSelect *select);

/** ct_select_has() - whether an address (network order) is in @select */
bool ct_select_has(const CtSelect *select, uint8_t family, const uint8_t *address);

/** ct_select_copy() - a copy; aborts when memory is out */
CtSelect *ct_select_copy(const CtSelect *select);

/** ct_record_describe() - "tcp 10.0.0.5:1024 -> 192.0.2.1:80" for people; always ends with NUL */
void ct_record_describe(const CtRecord *record, char *ret, size_t size);
