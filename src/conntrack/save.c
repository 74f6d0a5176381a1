/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "save.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "basic/text.h"

static const struct {
	uint32_t bit;
	const char *name;
} status_names[] = {
	{IPS_EXPECTED, "EXPECTED"},
	{IPS_SEEN_REPLY, "SEEN_REPLY"},
	{IPS_ASSURED, "ASSURED"},
	{IPS_FIXED_TIMEOUT, "FIXED_TIMEOUT"},
};

/* What a line has said so far. */
typedef struct Parse {
	CtRecord record;
	bool reply_src, reply_dst, reply_a, reply_b;
	uint8_t icmp[2];
	const char *state; /* looked at once the protocol is known */
	CtExtra *extra;
} Parse;

typedef bool (*Setter)(Parse *p, const char *value);

static bool number(const char *text, uint64_t max, uint64_t *ret)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*ret = strtoull(text, &end, 0);
	return !errno && !*end && *ret <= max;
}

static bool u16(const char *text, uint16_t *ret)
{
	uint64_t v;

	if (!number(text, UINT16_MAX, &v))
		return false;
	*ret = (uint16_t)v;
	return true;
}

static bool port(const char *text, uint16_t *ret)
{
	if (!u16(text, ret))
		return false;
	*ret = htons(*ret);
	return true;
}

static bool u32(const char *text, uint32_t *ret)
{
	uint64_t v;

	if (!number(text, UINT32_MAX, &v))
		return false;
	*ret = (uint32_t)v;
	return true;
}

static bool address(Parse *p, const char *text, uint8_t *ret)
{
	uint8_t family = strchr(text, ':') ? AF_INET6 : AF_INET;

	if (p->record.key.family && p->record.key.family != family)
		return false;
	p->record.key.family = family;
	return inet_pton(family, text, ret) == 1;
}

static bool set_src(Parse *p, const char *v)
{
	return address(p, v, p->record.key.orig.src);
}

static bool set_dst(Parse *p, const char *v)
{
	return address(p, v, p->record.key.orig.dst);
}

static bool set_reply_src(Parse *p, const char *v)
{
	p->reply_src = true;
	return address(p, v, p->record.reply.src);
}

static bool set_reply_dst(Parse *p, const char *v)
{
	p->reply_dst = true;
	return address(p, v, p->record.reply.dst);
}

static bool set_protocol(Parse *p, const char *v)
{
	int n = ct_protocol_number(v);

	if (n < 0)
		return false;
	p->record.key.protocol = (uint8_t)n;
	return true;
}

static bool set_timeout(Parse *p, const char *v)
{
	return u32(v, &p->record.timeout);
}

static bool set_status(Parse *p, const char *v)
{
	for (; *v; v += strspn(v, ",")) {
		size_t n = strcspn(v, ",");

		for (size_t i = 0; i < ARRAY_SIZE(status_names); i++)
			if (strlen(status_names[i].name) == n && strncmp(v, status_names[i].name, n) == 0)
				p->record.status |= status_names[i].bit;
		v += n;
	}
	return true;
}

static bool set_mark(Parse *p, const char *v)
{
	p->record.has |= CT_HAS_MARK;
	return u32(v, &p->record.mark);
}

static bool set_zone_dir(Parse *p, const char *v, uint8_t dir)
{
	p->record.key.zone_dir = dir;
	return u16(v, &p->record.key.zone);
}

static bool set_zone(Parse *p, const char *v)
{
	return set_zone_dir(p, v, CT_ZONE_BOTH);
}

static bool set_zone_orig(Parse *p, const char *v)
{
	return set_zone_dir(p, v, CT_ZONE_ORIG);
}

static bool set_zone_reply(Parse *p, const char *v)
{
	return set_zone_dir(p, v, CT_ZONE_REPLY);
}

static bool set_sport(Parse *p, const char *v)
{
	return port(v, &p->record.key.orig.a);
}

static bool set_dport(Parse *p, const char *v)
{
	return port(v, &p->record.key.orig.b);
}

static bool set_reply_sport(Parse *p, const char *v)
{
	p->reply_a = true;
	return port(v, &p->record.reply.a);
}

static bool set_reply_dport(Parse *p, const char *v)
{
	p->reply_b = true;
	return port(v, &p->record.reply.b);
}

static bool icmp_byte(const char *v, uint8_t *ret)
{
	uint64_t n;

	if (!number(v, UINT8_MAX, &n))
		return false;
	*ret = (uint8_t)n;
	return true;
}

static bool set_icmp_type(Parse *p, const char *v)
{
	return icmp_byte(v, &p->icmp[0]);
}

static bool set_icmp_code(Parse *p, const char *v)
{
	return icmp_byte(v, &p->icmp[1]);
}

static bool set_state(Parse *p, const char *v)
{
	p->state = v;
	return true;
}

static bool set_vtag(Parse *p, const char *v, int direction)
{
	uint32_t tag;

	if (!u32(v, &tag))
		return false;
	p->extra->sctp.vtag[direction] = htonl(tag);
	return true;
}

static bool set_orig_vtag(Parse *p, const char *v)
{
	return set_vtag(p, v, 0);
}

static bool set_reply_vtag(Parse *p, const char *v)
{
	return set_vtag(p, v, 1);
}

/* conntrack(8) says which role the original direction has. */
static bool set_role(Parse *p, const char *v)
{
	p->extra->dccp.role = streq(v, "server");
	return streq(v, "client") || streq(v, "server");
}

/* Of one that we have no use for. */
static bool set_nothing(_unused_ Parse *p, _unused_ const char *v)
{
	return true;
}

static const struct {
	const char *name;
	Setter set;
} words[] = {
	{"-t", set_timeout},
	{"-u", set_status},
	{"-s", set_src},
	{"-d", set_dst},
	{"-r", set_reply_src},
	{"-q", set_reply_dst},
	{"-g", set_reply_src},
	{"-n", set_reply_dst},
	{"-p", set_protocol},
	{"-w", set_zone},
	{"-m", set_mark},
	{"--mark", set_mark},
	{"--zone", set_zone},
	{"--orig-zone", set_zone_orig},
	{"--reply-zone", set_zone_reply},
	{"--sport", set_sport},
	{"--dport", set_dport},
	{"--reply-port-src", set_reply_sport},
	{"--reply-port-dst", set_reply_dport},
	{"--srckey", set_sport},
	{"--dstkey", set_dport},
	{"--reply-key-src", set_reply_sport},
	{"--reply-key-dst", set_reply_dport},
	{"--icmp-type", set_icmp_type},
	{"--icmp-code", set_icmp_code},
	{"--icmp-id", set_sport},
	{"--icmpv6-type", set_icmp_type},
	{"--icmpv6-code", set_icmp_code},
	{"--icmpv6-id", set_sport},
	{"--state", set_state},
	{"--orig-vtag", set_orig_vtag},
	{"--reply-vtag", set_reply_vtag},
	{"--role", set_role},
	{"--secctx", set_nothing},
	{"--label", set_nothing},
	{"-l", set_nothing},
};

static const char *set_word(Parse *p, const char *name, const char *value)
{
	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (streq(words[i].name, name)) {
			if (!value)
				return "an option without its value";
			return words[i].set(p, value) ? NULL : "a value that is not right";
		}
	return "an unknown option";
}

static const struct {
	uint8_t protocol;
	unsigned has;
	const char *(*name)(uint8_t state);
} states[] = {
	{IPPROTO_TCP, CT_HAS_TCP, ct_tcp_state_name},
	{IPPROTO_SCTP, CT_HAS_SCTP, ct_sctp_state_name},
	{IPPROTO_DCCP, CT_HAS_DCCP, ct_dccp_state_name},
};

/* Return: what is wrong, or NULL. */
static const char *complete_state(Parse *p)
{
	CtRecord *r = &p->record;
	size_t n = 0;
	uint8_t state;

	while (n < ARRAY_SIZE(states) && states[n].protocol != r->key.protocol)
		n++;
	if (n == ARRAY_SIZE(states))
		return NULL;
	if (!p->state)
		return r->key.protocol == IPPROTO_TCP ? "a TCP entry without state" : NULL;
	for (state = 1; states[n].name(state) && !streq(states[n].name(state), p->state);)
		state++;
	if (!states[n].name(state))
		return "a value that is not right";
	r->has |= (uint16_t)states[n].has;
	r->tcp.state = r->key.protocol == IPPROTO_TCP ? state : 0;
	p->extra->sctp.state = p->extra->dccp.state = state;
	return NULL;
}

/* What the line left out, and what follows from it. Return: what is missing, or NULL. */
static const char *complete(Parse *p)
{
	static const uint8_t unspecified[16];
	CtRecord *r = &p->record;
	CtTuple inverse;

	if (!r->key.family || !r->key.protocol || memcmp(r->key.orig.src, unspecified, 16) == 0 ||
	    memcmp(r->key.orig.dst, unspecified, 16) == 0)
		return "addresses or protocol are missing";
	if (ct_protocol_is_icmp(r->key.protocol))
		memcpy(&r->key.orig.b, p->icmp, 2);
	if (!ct_tuple_invert(&r->key.orig, r->key.protocol, &inverse))
		return "ICMP type without an answer";
	if (!p->reply_src)
		memcpy(r->reply.src, inverse.src, 16);
	if (!p->reply_dst)
		memcpy(r->reply.dst, inverse.dst, 16);
	if (!p->reply_a || ct_protocol_is_icmp(r->key.protocol))
		r->reply.a = inverse.a;
	if (!p->reply_b || ct_protocol_is_icmp(r->key.protocol))
		r->reply.b = inverse.b;
	if (memcmp(r->reply.src, inverse.src, 16) != 0 || r->reply.a != inverse.a)
		r->status |= IPS_DST_NAT | IPS_DST_NAT_DONE;
	if (memcmp(r->reply.dst, inverse.dst, 16) != 0 || r->reply.b != inverse.b)
		r->status |= IPS_SRC_NAT | IPS_SRC_NAT_DONE;
	r->status |= IPS_CONFIRMED;
	r->has |= CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT;
	if (r->key.protocol == IPPROTO_TCP)
		r->tcp.flags[0] = r->tcp.flags[1] = IP_CT_TCP_FLAG_BE_LIBERAL;
	return complete_state(p);
}

int ct_save_read(char *line, CtRecord *ret, CtWireOp *ret_op, const char **ret_why)
{
	static _Thread_local CtExtra extra;
	char *rest = NULL, *word = strtok_r(line, " \t\r", &rest);
	const char *why;
	Parse p = {.extra = &extra};

	extra = (CtExtra){};
	p.record.extra = &extra;

	if (!word || *word == '#' || streq(word, "[0]"))
		return 0;
	if (!streq(word, "-A") && !streq(word, "-I") && !streq(word, "-U") && !streq(word, "-D")) {
		*ret_why = "not a line of conntrack -o save";
		return -EINVAL;
	}
	*ret_op = streq(word, "-D") ? CT_WIRE_DELETE : CT_WIRE_PUT;
	while ((word = strtok_r(NULL, " \t\r", &rest))) {
		why = set_word(&p, word, strtok_r(NULL, " \t\r", &rest));
		if (why) {
			*ret_why = why;
			return -EINVAL;
		}
	}
	why = complete(&p);
	if (why) {
		*ret_why = why;
		return -EINVAL;
	}
	*ret = p.record;
	return 1;
}

/* ---- writing ---- */

typedef struct Line {
	char *p;
	size_t left;
} Line;

static _printf_(2, 3) void add(Line *line, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(line->p, line->left, fmt, args);
	va_end(args);
	assert(n >= 0 && (size_t)n < line->left);
	line->p += n;
	line->left -= (size_t)n;
}

static void add_address(Line *line, const char *option, uint8_t family, const uint8_t *bytes)
{
	char text[INET6_ADDRSTRLEN];

	add(line, " %s %s", option, inet_ntop(family, bytes, text, sizeof(text)));
}

static void add_status(Line *line, uint32_t status)
{
	const char *before = " -u ";

	for (size_t i = 0; i < ARRAY_SIZE(status_names); i++)
		if (status & status_names[i].bit) {
			add(line, "%s%s", before, status_names[i].name);
			before = ",";
		}
	if (*before == ' ')
		add(line, " -u UNSET");
}

static void add_protocol(Line *line, const CtRecord *r)
{
	const char *name = ct_protocol_name(r->key.protocol), *icmp = name;
	uint8_t bytes[2];

	if (!name)
		add(line, " -p %u", r->key.protocol);
	else
		add(line, " -p %s", name);
	memcpy(bytes, &r->key.orig.b, 2);
	if (ct_protocol_is_icmp(r->key.protocol))
		add(line, " --%s-type %u --%s-code %u --%s-id %u", icmp, bytes[0], icmp, bytes[1], icmp,
		    ntohs(r->key.orig.a));
	else if (ct_protocol_has_ports(r->key.protocol))
		add(line,
		    r->key.protocol == IPPROTO_GRE ? " --srckey %u --dstkey %u --reply-key-src %u --reply-key-dst %u"
						   : " --sport %u --dport %u --reply-port-src %u --reply-port-dst %u",
		    ntohs(r->key.orig.a), ntohs(r->key.orig.b), ntohs(r->reply.a), ntohs(r->reply.b));
}

static void add_state(Line *line, const CtRecord *r)
{
	const CtExtra *x = r->extra;

	if (r->has & CT_HAS_TCP)
		add(line, " --state %s", ct_tcp_state_name(r->tcp.state) ?: "NONE");
	if (r->has & CT_HAS_SCTP)
		add(line, " --state %s --orig-vtag %u --reply-vtag %u", ct_sctp_state_name(x->sctp.state) ?: "NONE",
		    ntohl(x->sctp.vtag[0]), ntohl(x->sctp.vtag[1]));
	if (r->has & CT_HAS_DCCP)
		add(line, " --state %s --role %s", ct_dccp_state_name(x->dccp.state) ?: "NONE",
		    x->dccp.role ? "server" : "client");
}

size_t ct_save_write(const CtRecord *r, CtWireOp op, char to[CT_SAVE_LINE_MAX])
{
	static const char *const zones[] = {
		[CT_ZONE_BOTH] = "-w", [CT_ZONE_ORIG] = "--orig-zone", [CT_ZONE_REPLY] = "--reply-zone"};
	Line line = {.p = to, .left = CT_SAVE_LINE_MAX};
	CtTuple inverse = {};

	(void)ct_tuple_invert(&r->key.orig, r->key.protocol, &inverse);
	add(&line, "%s", op == CT_WIRE_DELETE ? "-D" : "-A");
	if (op != CT_WIRE_DELETE) {
		add(&line, " -t %u", r->timeout);
		add_status(&line, r->status);
	}
	if (r->key.zone)
		add(&line, " %s %u", zones[r->key.zone_dir], r->key.zone);
	add_address(&line, "-s", r->key.family, r->key.orig.src);
	add_address(&line, "-d", r->key.family, r->key.orig.dst);
	add_address(&line, memcmp(r->reply.src, inverse.src, 16) == 0 ? "-r" : "-g", r->key.family, r->reply.src);
	add_address(&line, memcmp(r->reply.dst, inverse.dst, 16) == 0 ? "-q" : "-n", r->key.family, r->reply.dst);
	add_protocol(&line, r);
	if (op != CT_WIRE_DELETE)
		add_state(&line, r);
	if (r->mark)
		add(&line, " --mark %u", r->mark);
	add(&line, "\n");
	return (size_t)(line.p - to);
}
