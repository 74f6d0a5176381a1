/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wire-format.h"

#include <errno.h>
#include <linux/netfilter/nf_conntrack_sctp.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <string.h>

#include "basic/crc32.h"

void ct_wire_read(CtWireReader *reader, const void *data, size_t len)
{
	*reader = (CtWireReader){.p = data, .end = (const uint8_t *)data + len, .batch_end = data, .why = ""};
}

static int bad(CtWireReader *reader, const char *why)
{
	reader->why = why;
	return -EBADMSG;
}

static uint16_t get_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get_u32(const uint8_t *p)
{
	return (uint32_t)get_u16(p) << 16 | get_u16(p + 2);
}

size_t ct_wire_length(const uint8_t *header)
{
	return get_u32(header) == MAGIC ? CT_WIRE_HEADER + (size_t)get_u32(header + 12) : 0;
}

static int read_header(CtWireReader *reader)
{
	const uint8_t *h = reader->p;
	size_t have = (size_t)(reader->end - h);
	uint32_t len;

	if (have < CT_WIRE_HEADER)
		return bad(reader, "truncated header");
	if (get_u32(h) != MAGIC)
		return bad(reader, "not connection records");
	if ((get_u32(h + 4) & ~((FLAG_END | FLAG_BACK) << 16)) != VERSION << 24)
		return bad(reader, "unknown version of the format");
	len = get_u32(h + 12);
	if (len > have - CT_WIRE_HEADER)
		return bad(reader, "truncated batch");
	if (crc32_add(crc32_add(0, h, CT_WIRE_HEADER - 4), h + CT_WIRE_HEADER, len) != get_u32(h + 16))
		return bad(reader, "checksum does not match");
	reader->ended |= h[5] & FLAG_END;
	reader->back |= (h[5] & FLAG_BACK) != 0;
	reader->left = get_u32(h + 8);
	reader->p = h + CT_WIRE_HEADER;
	reader->batch_end = reader->p + len;
	return 0;
}

/* The next @n bytes of the batch, or NULL. */
static const uint8_t *take(CtWireReader *reader, size_t n)
{
	const uint8_t *p = reader->p;

	if ((size_t)(reader->batch_end - p) < n)
		return NULL;
	reader->p += n;
	return p;
}

static void split_tuple(const uint8_t *p, size_t len, CtTuple *ret)
{
	memcpy(ret->src, p, len);
	memcpy(ret->dst, p + len, len);
	memcpy(&ret->a, p + 2 * len, 2);
	memcpy(&ret->b, p + 2 * len + 2, 2);
}

static bool get_tuple(CtWireReader *reader, size_t len, CtTuple *ret)
{
	const uint8_t *p = take(reader, 2 * len + 4);

	if (!p)
		return false;
	split_tuple(p, len, ret);
	return true;
}

static uint64_t get_u64(const uint8_t *p)
{
	return (uint64_t)get_u32(p) << 32 | get_u32(p + 4);
}

typedef bool (*GetValue)(const uint8_t *p, size_t len, CtRecord *record);

static size_t tuple_length(const CtRecord *record)
{
	return 2 * ct_address_length(record->key.family) + 4;
}

/* What is in it is looked at by refusal(). */
static bool get_name(const uint8_t *p, size_t len, char *ret, size_t size)
{
	if (len >= size)
		return false;
	memcpy(ret, p, len);
	ret[len] = '\0';
	return true;
}

static bool get_mark(const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 4)
		return false;
	record->mark = get_u32(p);
	return true;
}

static bool get_labels(const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != CT_LABELS)
		return false;
	memcpy(record->extra->labels, p, CT_LABELS);
	return true;
}

static bool get_helper(const uint8_t *p, size_t len, CtRecord *record)
{
	return get_name(p, len, record->extra->helper, CT_NAME);
}

static bool get_master(const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 1 + tuple_length(record))
		return false;
	record->extra->master.protocol = p[0];
	split_tuple(p + 1, ct_address_length(record->key.family), &record->extra->master.orig);
	return true;
}

static bool get_adjustment(const uint8_t *p, size_t len, CtSeqadj *ret)
{
	if (len != 12)
		return false;
	*ret = (CtSeqadj){.position = get_u32(p), .before = get_u32(p + 4), .after = get_u32(p + 8)};
	return true;
}

static bool get_seqadj(const uint8_t *p, size_t len, CtRecord *record)
{
	return get_adjustment(p, len, &record->extra->seqadj[0]);
}

static bool get_seqadj_reply(const uint8_t *p, size_t len, CtRecord *record)
{
	return get_adjustment(p, len, &record->extra->seqadj[1]);
}

static bool get_sctp(const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 9)
		return false;
	record->extra->sctp.state = p[0];
	memcpy(record->extra->sctp.vtag, p + 1, 8);
	return true;
}

static bool get_dccp(const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 10)
		return false;
	record->extra->dccp =
		(CtDccp){.handshake = get_u64(p + 2), .state = p[0], .role = p[1]};
	return true;
}

static bool get_expect(const uint8_t *p, size_t len, CtRecord *record)
{
	size_t n = tuple_length(record), address = ct_address_length(record->key.family), used = n + 9;
	CtExpect *e = &record->extra->expect;

	if (len < used)
		return false;
	split_tuple(p, address, &e->mask);
	e->flags = get_u32(p + n);
	e->class = get_u32(p + n + 4);
	e->has_nat = p[n + 8] > 0;
	e->nat_dir = e->has_nat ? (uint8_t)(p[n + 8] - 1) : 0;
	if (e->has_nat) {
		if (len < used + n)
			return false;
		split_tuple(p + used, address, &e->nat);
		used += n;
	}
	return get_name(p + used, len - used, e->function, CT_FUNCTION);
}

static const struct {
	uint8_t type;
	unsigned has;
	GetValue get;
	const char *why;
} attributes[] = {
	{ATTR_MARK, CT_HAS_MARK, get_mark, "mark of a wrong length"},
	{ATTR_LABELS, CT_HAS_LABELS, get_labels, "labels of a wrong length"},
	{ATTR_HELPER, CT_HAS_HELPER, get_helper, "name of a wrong length"},
	{ATTR_MASTER, CT_HAS_MASTER, get_master, "master of a wrong length"},
	{ATTR_SEQADJ, CT_HAS_SEQADJ, get_seqadj, "sequence adjustment of a wrong length"},
	{ATTR_SEQADJ_REPLY, CT_HAS_SEQADJ_REPLY, get_seqadj_reply, "sequence adjustment of a wrong length"},
	{ATTR_SCTP, CT_HAS_SCTP, get_sctp, "SCTP state of a wrong length"},
	{ATTR_DCCP, CT_HAS_DCCP, get_dccp, "DCCP state of a wrong length"},
	{ATTR_EXPECT, CT_HAS_EXPECT, get_expect, "expectation of a wrong length"},
};

static int get_zone(CtWireReader *reader, const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 3)
		return bad(reader, "zone of a wrong length");
	record->key.zone = get_u16(p);
	record->key.zone_dir = p[2];
	if (!record->key.zone || record->key.zone_dir > CT_ZONE_MAX)
		reader->why = "zone out of range";
	return 0;
}

static int get_cilium(CtWireReader *reader, const uint8_t *p, size_t len, CtRecord *record)
{
	if (len != 1 && len != 1 + CILIUM_VALUE)
		return bad(reader, "entry of Cilium's of a wrong length");
	record->key.map = CT_MAP_CILIUM;
	record->key.flags = *p++;
	if (len == 1)
		return 0;
	record->extra->cilium = (CtCilium){.reserved = get_u64(p),
					   .backend = get_u64(p + 8),
					   .packets = get_u64(p + 16),
					   .bytes = get_u64(p + 24),
					   .flags = get_u16(p + 32),
					   .rev_nat = get_u16(p + 34),
					   .tx_flags = p[36],
					   .rx_flags = p[37],
					   .identity = get_u32(p + 38)};
	record->has |= CT_HAS_CILIUM;
	return 0;
}

static int get_attribute(CtWireReader *reader, uint8_t type, const uint8_t *p, size_t len, CtRecord *record)
{
	if (type == ATTR_ZONE)
		return get_zone(reader, p, len, record);
	if (type == ATTR_CILIUM)
		return get_cilium(reader, p, len, record);
	for (size_t i = 0; i < ARRAY_SIZE(attributes); i++)
		if (attributes[i].type == type) {
			if (!attributes[i].get(p, len, record))
				return bad(reader, attributes[i].why);
			record->has |= attributes[i].has;
			return 0;
		}
	if (type & ATTR_MANDATORY)
		reader->why = "needs a feature that is not known here";
	return 0;
}

static int get_attributes(CtWireReader *reader, CtRecord *record)
{
	const uint8_t *p = take(reader, 2), *end;

	if (!p || !take(reader, get_u16(p)))
		return bad(reader, "truncated attributes");
	end = reader->p;
	for (p += 2; p < end; p += 2 + p[1]) {
		if (end - p < 2 || end - p < 2 + p[1])
			return bad(reader, "truncated attribute");
		if (get_attribute(reader, p[0], p + 2, p[1], record) < 0)
			return -EBADMSG;
	}
	return 0;
}

static int get_state(CtWireReader *reader, CtRecord *record)
{
	const uint8_t *p = take(reader, 6);

	if (!p)
		return bad(reader, "truncated record");
	record->status = get_u16(p);
	record->timeout = get_u32(p + 2);
	if (record->timeout > CT_WIRE_TIMEOUT_MAX)
		record->timeout = CT_WIRE_TIMEOUT_MAX;
	record->has |= CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_MARK; /* no attribute: the mark is 0 */
	if (record->key.protocol != IPPROTO_TCP || record->key.expect)
		return 0;
	p = take(reader, 4);
	if (!p)
		return bad(reader, "truncated record");
	record->tcp = (CtTcp){.state = p[0], .wscale = {p[1] >> 4, p[1] & 15}, .flags = {p[2], p[3]}};
	record->has |= CT_HAS_TCP;
	return 0;
}

static const char *expect_refusal(const CtRecord *record)
{
	const CtExpect *e;

	if (!ct_record_complete(record))
		return "an expectation that lacks something";
	e = &record->extra->expect;
	if (e->nat_dir > 1 || (e->flags & ~(uint32_t)CT_EXPECT_FLAGS) || e->class >= CT_EXPECT_CLASSES)
		return "unknown kind of expectation";
	return e->function[0] && !ct_name_valid(e->function, CT_FUNCTION) ? "not a function's name" : NULL;
}

static const char *extra_refusal(const CtRecord *record)
{
	const CtExtra *x = record->extra;

	if ((record->has & CT_HAS_HELPER) && !ct_name_valid(x->helper, CT_NAME))
		return "not a helper's name";
	if ((record->has & CT_HAS_SCTP) &&
	    (x->sctp.state >= SCTP_CONNTRACK_MAX || record->key.protocol != IPPROTO_SCTP))
		return "unknown SCTP state";
	if ((record->has & CT_HAS_DCCP) &&
	    (x->dccp.state >= CT_DCCP_STATES || x->dccp.role > 1 || record->key.protocol != IPPROTO_DCCP))
		return "unknown DCCP state";
	return NULL;
}

static const char *tcp_refusal(const CtTcp *tcp)
{
	if (tcp->state == TCP_CONNTRACK_NONE || tcp->state >= TCP_CONNTRACK_MAX)
		return "unknown TCP state";
	return tcp->wscale[0] > CT_WSCALE_MAX || tcp->wscale[1] > CT_WSCALE_MAX ? "window scale out of range" : NULL;
}

/* Its tuples are no concern of the kernel's: ICMP types need no answer. */
static const char *cilium_refusal(CtWireOp op, const CtRecord *record)
{
	CtTuple reply = {};

	(void)ct_tuple_invert(&record->key.orig, record->key.protocol, &reply);
	if (record->key.family != AF_INET || record->key.expect || record->key.zone ||
	    memcmp(&reply, &record->reply, sizeof(reply)) != 0)
		return "an entry of Cilium's that cannot be";
	return op != CT_WIRE_DELETE && !(record->has & CT_HAS_CILIUM) ? "an entry of Cilium's that lacks its value" : NULL;
}

/* What makes a well-formed record unacceptable, or NULL. */
static const char *refusal(CtWireOp op, const CtRecord *record)
{
	const CtKey *key = &record->key;
	const char *why = extra_refusal(record);
	CtTuple inverse;

	if (why)
		return why;
	if (key->map == CT_MAP_CILIUM)
		return cilium_refusal(op, record);
	if (key->protocol == IPPROTO_ICMP ? key->family != AF_INET
					  : key->protocol == IPPROTO_ICMPV6 && key->family != AF_INET6)
		return "protocol of the other address family";
	if (key->expect)
		return op == CT_WIRE_DELETE ? NULL : expect_refusal(record);
	if (record->has & CT_HAS_EXPECT)
		return "an expectation that is none";
	if (!ct_tuple_invert(&key->orig, key->protocol, &inverse))
		return "ICMP type without an answer";
	return record->has & CT_HAS_TCP ? tcp_refusal(&record->tcp) : NULL;
}

static int get_record(CtWireReader *reader, CtWireOp *ret_op, CtRecord *ret)
{
	const uint8_t *head = take(reader, 2);
	size_t len;

	if (!head)
		return bad(reader, "truncated record");
	if ((head[0] & KIND_UNUSED) || (head[0] & KIND_OP) > CT_WIRE_DELETE ||
	    (((head[0] & KIND_OP) == CT_WIRE_DELETE || (head[0] & KIND_EXPECT)) && (head[0] & KIND_REPLY)))
		return bad(reader, "unknown kind of record");
	*ret_op = head[0] & KIND_OP;
	*ret = (CtRecord){.key = {.family = head[0] & KIND_IPV6 ? AF_INET6 : AF_INET, .protocol = head[1]}};
	ret->key.expect = (head[0] & KIND_EXPECT) != 0;
	if (head[0] & KIND_ATTRIBUTES) {
		reader->extra = (CtExtra){};
		ret->extra = &reader->extra;
	}
	len = ct_address_length(ret->key.family);
	if (!get_tuple(reader, len, &ret->key.orig))
		return bad(reader, "truncated record");
	(void)ct_tuple_invert(&ret->key.orig, ret->key.protocol, &ret->reply);
	if ((head[0] & KIND_REPLY) && !get_tuple(reader, len, &ret->reply))
		return bad(reader, "truncated record");
	if (*ret_op != CT_WIRE_DELETE && get_state(reader, ret) < 0)
		return -EBADMSG;
	if ((head[0] & KIND_ATTRIBUTES) && get_attributes(reader, ret) < 0)
		return -EBADMSG;
	if (!*reader->why)
		reader->why = refusal(*ret_op, ret) ?: "";
	return *reader->why ? -EINVAL : 1;
}

int ct_wire_next(CtWireReader *reader, CtWireOp *ret_op, CtRecord *ret)
{
	reader->why = "";
	while (!reader->left) {
		if (reader->p != reader->batch_end)
			return bad(reader, "more bytes than records");
		if (reader->p == reader->end)
			return 0;
		if (read_header(reader) < 0)
			return -EBADMSG;
	}
	reader->left--;
	return get_record(reader, ret_op, ret);
}

int ct_wire_check(const void *data, size_t len, size_t *ret_records, const char **ret_why)
{
	CtWireReader reader;
	size_t n = 0;
	CtRecord record;
	CtWireOp op;
	int r;

	ct_wire_read(&reader, data, len);
	while ((r = ct_wire_next(&reader, &op, &record)) == 1 || r == -EINVAL)
		n++;
	if (r < 0) {
		*ret_why = reader.why;
		return r;
	}
	*ret_records = n;
	return 0;
}
