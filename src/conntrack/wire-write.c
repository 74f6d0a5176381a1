/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wire-format.h"

#include <endian.h>
#include <string.h>

#include "basic/crc32.h"

static uint8_t *put_u16(uint8_t *p, uint16_t v)
{
	v = htobe16(v);
	return mempcpy(p, &v, 2);
}

static uint8_t *put_u32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	return mempcpy(p, &v, 4);
}

static uint8_t *put_u64(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	return mempcpy(p, &v, 8);
}

static uint8_t *put_tuple(uint8_t *p, const CtTuple *tuple, size_t len)
{
	p = mempcpy(p, tuple->src, len);
	p = mempcpy(p, tuple->dst, len);
	p = mempcpy(p, &tuple->a, 2);
	return mempcpy(p, &tuple->b, 2);
}

/* Begins an attribute; attribute_end() fills in its length. */
static uint8_t *attribute(uint8_t *p, uint8_t type)
{
	*p++ = type;
	return p + 1;
}

static void attribute_end(uint8_t *value, const uint8_t *end)
{
	value[-1] = (uint8_t)(end - value);
}

typedef uint8_t *(*PutValue)(uint8_t *p, const CtRecord *record, size_t len);

static uint8_t *put_labels(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	return mempcpy(p, r->extra->labels, CT_LABELS);
}

static uint8_t *put_helper(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	return mempcpy(p, r->extra->helper, strnlen(r->extra->helper, CT_NAME));
}

static uint8_t *put_master(uint8_t *p, const CtRecord *r, size_t len)
{
	*p++ = r->extra->master.protocol;
	return put_tuple(p, &r->extra->master.orig, len);
}

static uint8_t *put_adjustment(uint8_t *p, const CtSeqadj *adj)
{
	p = put_u32(p, adj->position);
	p = put_u32(p, adj->before);
	return put_u32(p, adj->after);
}

static uint8_t *put_seqadj(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	return put_adjustment(p, &r->extra->seqadj[0]);
}

static uint8_t *put_seqadj_reply(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	return put_adjustment(p, &r->extra->seqadj[1]);
}

static uint8_t *put_sctp(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	*p++ = r->extra->sctp.state;
	return mempcpy(p, r->extra->sctp.vtag, 8);
}

static uint8_t *put_dccp(uint8_t *p, const CtRecord *r, _unused_ size_t len)
{
	*p++ = r->extra->dccp.state;
	*p++ = r->extra->dccp.role;
	return put_u64(p, r->extra->dccp.handshake);
}

static uint8_t *put_expect(uint8_t *p, const CtRecord *r, size_t len)
{
	const CtExpect *e = &r->extra->expect;

	p = put_tuple(p, &e->mask, len);
	p = put_u32(p, e->flags);
	p = put_u32(p, e->class);
	*p++ = (uint8_t)(e->has_nat ? 1 + e->nat_dir : 0);
	if (e->has_nat)
		p = put_tuple(p, &e->nat, len);
	return mempcpy(p, e->function, strnlen(e->function, CT_FUNCTION));
}

static uint8_t *put_cilium(uint8_t *p, const CtCilium *c)
{
	p = put_u64(p, c->reserved);
	p = put_u64(p, c->backend);
	p = put_u64(p, c->packets);
	p = put_u64(p, c->bytes);
	p = put_u16(p, c->flags);
	p = put_u16(p, c->rev_nat);
	*p++ = c->tx_flags;
	*p++ = c->rx_flags;
	return put_u32(p, c->identity);
}

static const struct {
	unsigned has;
	uint8_t type;
	PutValue put;
} extras[] = {
	{CT_HAS_LABELS, ATTR_LABELS, put_labels},
	{CT_HAS_HELPER, ATTR_HELPER, put_helper},
	{CT_HAS_MASTER, ATTR_MASTER, put_master},
	{CT_HAS_SEQADJ, ATTR_SEQADJ, put_seqadj},
	{CT_HAS_SEQADJ_REPLY, ATTR_SEQADJ_REPLY, put_seqadj_reply},
	{CT_HAS_SCTP, ATTR_SCTP, put_sctp},
	{CT_HAS_DCCP, ATTR_DCCP, put_dccp},
	{CT_HAS_EXPECT, ATTR_EXPECT, put_expect},
};

static uint8_t *put_attributes(uint8_t *p, const CtRecord *record, bool mark, unsigned has)
{
	uint8_t *length = p, *value;

	p += 2;
	if (mark) {
		value = attribute(p, ATTR_MARK);
		attribute_end(value, p = put_u32(value, record->mark));
	}
	if (record->key.zone) {
		value = attribute(p, ATTR_ZONE);
		p = put_u16(value, record->key.zone);
		*p++ = record->key.zone_dir;
		attribute_end(value, p);
	}
	if (record->key.map == CT_MAP_CILIUM) {
		value = attribute(p, ATTR_CILIUM);
		*value = record->key.flags;
		p = has & CT_HAS_CILIUM ? put_cilium(value + 1, &record->extra->cilium) : value + 1;
		attribute_end(value, p);
	}
	for (size_t i = 0; has && i < ARRAY_SIZE(extras); i++)
		if (has & extras[i].has) {
			value = attribute(p, extras[i].type);
			p = extras[i].put(value, record, ct_address_length(record->key.family));
			attribute_end(value, p);
		}
	put_u16(length, (uint16_t)(p - length - 2));
	return p;
}

size_t ct_wire_record(uint8_t *to, CtWireOp op, const CtRecord *record)
{
	const CtKey *key = &record->key;
	size_t len = ct_address_length(key->family);
	bool put = op != CT_WIRE_DELETE, mark = put && (record->has & CT_HAS_MARK) && record->mark;
	uint8_t kind = (uint8_t)(op | (key->expect ? KIND_EXPECT : 0)), *p = to + 2;
	unsigned has = put && record->extra ? record->has & CT_HAS_EXTRA : 0;
	CtTuple inverse;

	if (key->family == AF_INET6)
		kind |= KIND_IPV6;
	if (mark || key->zone || key->map || has)
		kind |= KIND_ATTRIBUTES;
	if (put && !key->expect && !key->map &&
	    (!ct_tuple_invert(&key->orig, key->protocol, &inverse) ||
	     memcmp(&inverse, &record->reply, sizeof(inverse)) != 0))
		kind |= KIND_REPLY;
	to[0] = kind;
	to[1] = key->protocol;
	p = put_tuple(p, &key->orig, len);
	if (kind & KIND_REPLY)
		p = put_tuple(p, &record->reply, len);
	if (put) {
		p = put_u16(p, (uint16_t)record->status);
		p = put_u32(p, record->timeout);
	}
	if (put && key->protocol == IPPROTO_TCP && !key->expect) {
		*p++ = record->tcp.state;
		*p++ = (uint8_t)(record->tcp.wscale[0] << 4 | record->tcp.wscale[1]);
		*p++ = record->tcp.flags[0];
		*p++ = record->tcp.flags[1];
	}
	if (kind & KIND_ATTRIBUTES)
		p = put_attributes(p, record, mark, has);
	return (size_t)(p - to);
}

static void put_header(uint8_t *batch, size_t len, uint32_t count, uint32_t flags)
{
	uint8_t *p = put_u32(batch, MAGIC);

	p = put_u32(p, VERSION << 24 | flags << 16);
	p = put_u32(p, count);
	p = put_u32(p, (uint32_t)(len - CT_WIRE_HEADER));
	put_u32(p, crc32_add(crc32_add(0, batch, CT_WIRE_HEADER - 4), batch + CT_WIRE_HEADER, len - CT_WIRE_HEADER));
}

void ct_wire_header(uint8_t *batch, size_t len, uint32_t count)
{
	put_header(batch, len, count, 0);
}

void ct_wire_end(uint8_t *batch)
{
	put_header(batch, CT_WIRE_HEADER, 0, FLAG_END);
}

void ct_wire_back(uint8_t *batch)
{
	put_header(batch, CT_WIRE_HEADER, 0, FLAG_BACK);
}
