/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ct-random SEED TABLES NAMESPACE: random tables from this network namespace to that one (a file), compared there. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_sctp.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "basic/text.h"
#include "conntrack/netlink.h"
#include "conntrack/table.h"
#include "conntrack/wire.h"

/*
 * Random tables: made in this network namespace, followed, applied in another one, changed meanwhile; in the end the other kernel has
 * what was asked for.
 */

#define ENTRIES_MAX 48
#define CHANGES_MAX 16
#define TABLES_A_FOLLOWER 20

typedef struct Side {
	int ns;
	CtApply *sink;
} Side;

typedef struct Run {
	sd_event *event;
	CtSelect *vm;
	Side a, b;
	CtFollow *follow; /* of a */
	uint64_t random;
	CtRecord wanted[ENTRIES_MAX];
	CtExtra extras[ENTRIES_MAX];
	unsigned n;
	CtRecord gone[CHANGES_MAX]; /* only keys */
	unsigned n_gone;
	CtTable there; /* what b's kernel tells */
} Run;

/* xorshift64* */
static uint32_t draw(Run *r, uint32_t below)
{
	r->random ^= r->random >> 12;
	r->random ^= r->random << 25;
	r->random ^= r->random >> 27;
	return (uint32_t)((r->random * 0x2545f4914f6cdd1d) >> 32) % below;
}

static bool chance(Run *r, uint32_t percent)
{
	return draw(r, 100) < percent;
}

/* ---- what is asked for ---- */

static void draw_addresses(Run *r, CtRecord *e, unsigned i)
{
	static const uint8_t vm4[4] = {10, 0, 0, 5}, vm6[16] = {0xfd, [15] = 5};
	uint8_t peer[16] = {192, 0, 2, (uint8_t)(i + 1), [15] = 1};
	size_t n = ct_address_length(e->key.family);
	bool out = chance(r, 50);

	memcpy(out ? e->key.orig.src : e->key.orig.dst, n == 4 ? vm4 : vm6, n);
	memcpy(out ? e->key.orig.dst : e->key.orig.src, peer, n);
}

static void draw_numbers(Run *r, CtRecord *e, unsigned i)
{
	uint8_t type = e->key.protocol == IPPROTO_ICMP ? 8 : 128;

	if (ct_protocol_is_icmp(e->key.protocol)) {
		e->key.orig.a = htons((uint16_t)draw(r, 65536));
		memcpy(&e->key.orig.b, &type, 1);
	} else if (e->key.protocol == IPPROTO_GRE) { /* two keys would need the PPTP helper */
		e->key.orig.b = htons((uint16_t)(1024 + i));
	} else if (ct_protocol_has_ports(e->key.protocol)) {
		e->key.orig.a = htons((uint16_t)(1024 + i));
		e->key.orig.b = htons((uint16_t)(1 + draw(r, 1000)));
	}
}

static void draw_tcp(Run *r, CtRecord *e)
{
	uint8_t state = (uint8_t)(TCP_CONNTRACK_SYN_SENT + draw(r, TCP_CONNTRACK_MAX - TCP_CONNTRACK_SYN_SENT));

	e->has |= CT_HAS_TCP;
	e->tcp = (CtTcp){.state = state, .flags = {(uint8_t)draw(r, 256), (uint8_t)draw(r, 256)}};
	for (int i = 0; i < 2; i++)
		e->tcp.flags[i] &= (uint8_t)~(IP_CT_TCP_FLAG_BE_LIBERAL | IP_CT_TCP_FLAG_WINDOW_SCALE);
	if (chance(r, 30))
		return;
	for (int i = 0; i < (state == TCP_CONNTRACK_SYN_SENT ? 1 : 2); i++) {
		e->tcp.wscale[i] = (uint8_t)draw(r, CT_WSCALE_MAX + 1);
		e->tcp.flags[i] |= IP_CT_TCP_FLAG_WINDOW_SCALE;
	}
}

static void draw_sctp(Run *r, CtRecord *e)
{
	e->has |= CT_HAS_SCTP;
	e->extra->sctp = (CtSctp){.state = (uint8_t)(1 + draw(r, SCTP_CONNTRACK_HEARTBEAT_SENT)),
				  .vtag = {draw(r, UINT32_MAX), draw(r, UINT32_MAX)}};
}

/* The kernel makes the reply tuple of these: the guest's side stays among its addresses. */
static void draw_nat(Run *r, CtRecord *e, unsigned i)
{
	static const uint8_t vm4[4] = {10, 0, 0, 5};
	bool out = memcmp(e->key.orig.src, vm4, 4) == 0;
	uint8_t other[4] = {203, 0, 113, (uint8_t)(1 + draw(r, 200))};

	if (!out) { /* came to another address of the VM's */
		e->key.orig.dst[0] = 172;
		e->status |= IPS_DST_NAT;
		if (ct_protocol_has_ports(e->key.protocol) && chance(r, 50))
			e->reply.a = htons(7);
	}
	if (out || chance(r, 30)) {
		memcpy(e->reply.dst, other, 4);
		e->status |= IPS_SRC_NAT;
		if (ct_protocol_has_ports(e->key.protocol) && chance(r, 50))
			e->reply.b = htons((uint16_t)(30000 + i));
	}
}

static const struct {
	uint8_t protocol;
	const char *name;
} helpers[] = {
	{IPPROTO_TCP, "ftp"}, {IPPROTO_TCP, "sip"}, {IPPROTO_UDP, "tftp"}, {IPPROTO_UDP, "sip"}, {IPPROTO_UDP, "amanda"},
};

static void draw_extras(Run *r, CtRecord *e)
{
	CtExtra *x = e->extra;

	if (chance(r, 30)) {
		e->has |= CT_HAS_LABELS;
		for (int i = 0; i < CT_LABELS; i++)
			x->labels[i] = (uint8_t)draw(r, 256);
		x->labels[0] |= 1;
	}
	for (size_t i = draw(r, 20); i < ARRAY_SIZE(helpers); i++)
		if (!(e->has & CT_HAS_HELPER) && helpers[i].protocol == e->key.protocol) {
			e->has |= CT_HAS_HELPER;
			strcpy(x->helper, helpers[i].name);
		}
	if (e->key.protocol == IPPROTO_TCP && chance(r, 15)) {
		e->has |= CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY;
		for (int i = 0; i < 2; i++)
			x->seqadj[i] = (CtSeqadj){draw(r, UINT32_MAX), draw(r, 64) - 32, draw(r, 64) - 32};
	}
}

/* An earlier entry that can be the master of this one: of the same family and zone; and an expectation's has a helper. */
static CtRecord *draw_master(Run *r, const CtRecord *e)
{
	CtRecord *m = r->n ? &r->wanted[draw(r, r->n)] : NULL;

	return m && !m->key.expect && m->key.family == e->key.family && m->key.zone == e->key.zone &&
			       m->key.zone_dir == e->key.zone_dir && !(m->has & CT_HAS_MASTER) ? m : NULL;
}

static void set_master(CtRecord *e, const CtRecord *master)
{
	e->has |= CT_HAS_MASTER;
	e->extra->master = (CtMaster){.orig = master->key.orig, .protocol = master->key.protocol};
}

static void draw_entry(Run *r)
{
	static const uint8_t protocols[] = {IPPROTO_TCP,  IPPROTO_TCP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDP, IPPROTO_ICMP,
					    IPPROTO_SCTP, IPPROTO_GRE, 253};
	CtRecord *e = &r->wanted[r->n], *master;

	r->extras[r->n] = (CtExtra){};
	*e = (CtRecord){.extra = &r->extras[r->n], .has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_MARK};
	e->key.protocol = protocols[draw(r, ARRAY_SIZE(protocols))];
	e->key.family = chance(r, 40) ? AF_INET6 : AF_INET;
	if (e->key.family == AF_INET6 && e->key.protocol == IPPROTO_ICMP)
		e->key.protocol = IPPROTO_ICMPV6;
	if (chance(r, 30)) {
		e->key.zone = (uint16_t)(1 + draw(r, 3));
		e->key.zone_dir = (uint8_t)draw(r, CT_ZONE_MAX + 1);
	}
	draw_addresses(r, e, r->n);
	draw_numbers(r, e, r->n);
	(void)ct_tuple_invert(&e->key.orig, e->key.protocol, &e->reply);
	e->status = IPS_CONFIRMED | (chance(r, 70) ? IPS_SEEN_REPLY : 0) | (chance(r, 60) ? IPS_ASSURED : 0);
	e->timeout = 31 + draw(r, chance(r, 50) ? 500 : 432000);
	e->mark = chance(r, 40) ? draw(r, UINT32_MAX) : 0;
	if (e->key.protocol == IPPROTO_TCP)
		draw_tcp(r, e);
	if (e->key.protocol == IPPROTO_SCTP)
		draw_sctp(r, e);
	if (e->key.family == AF_INET && e->key.protocol != IPPROTO_GRE && e->key.protocol != 253 && chance(r, 40))
		draw_nat(r, e, r->n);
	draw_extras(r, e);
	if (chance(r, 20) && (master = draw_master(r, e)))
		set_master(e, master);
	r->n++;
}

/* The FTP server's answer to PORT, or the client's connection to what PASV said. One for each master: the helper's limit. */
static void draw_expectation(Run *r)
{
	unsigned of = draw(r, r->n);
	const CtRecord *m = &r->wanted[of];
	CtRecord *e = &r->wanted[r->n];
	CtExpect *x = &r->extras[r->n].expect;

	if (m->key.expect || !(m->has & CT_HAS_HELPER) || !streq(m->extra->helper, "ftp") || (m->has & CT_HAS_MASTER))
		return;
	for (unsigned i = 0; i < r->n; i++)
		if (r->wanted[i].key.expect && memcmp(&r->extras[i].master.orig, &m->key.orig, sizeof(CtTuple)) == 0 &&
		    r->wanted[i].key.zone == m->key.zone)
			return;
	r->extras[r->n] = (CtExtra){};
	*e = (CtRecord){.key = m->key, .extra = &r->extras[r->n], .timeout = 300, .has = CT_HAS_REPLY | CT_HAS_STATUS | CT_HAS_TIMEOUT | CT_HAS_EXPECT | CT_HAS_HELPER};
	e->key.expect = 1;
	e->key.orig.a = 0;
	e->key.orig.b = htons((uint16_t)(20000 + r->n));
	strcpy(e->extra->helper, "ftp");
	memset(x->mask.src, 0xff, ct_address_length(m->key.family));
	memset(x->mask.dst, 0xff, ct_address_length(m->key.family));
	x->mask.b = 0xffff;
	x->flags = chance(r, 50) ? 1 : 0; /* NF_CT_EXPECT_PERMANENT */
	if (m->status & IPS_NAT_MASK) {
		x->has_nat = 1;
		x->nat_dir = chance(r, 50);
		x->nat.a = e->key.orig.b;
		strcpy(x->function, "nat-follow-master");
	}
	set_master(e, m);
	r->n++;
}

/* The answer to a SYN decides about scales, nothing else changes them. */
static void change_tcp(Run *r, CtTcp *t)
{
	const uint8_t fixed = IP_CT_TCP_FLAG_WINDOW_SCALE;

	if (t->state == TCP_CONNTRACK_SYN_SENT && (t->flags[0] & fixed)) {
		t->wscale[1] = (uint8_t)draw(r, CT_WSCALE_MAX + 1);
		t->flags[1] |= fixed;
	}
	t->state = (uint8_t)(TCP_CONNTRACK_SYN_RECV + draw(r, TCP_CONNTRACK_MAX - TCP_CONNTRACK_SYN_RECV));
	for (int i = 0; i < 2; i++)
		t->flags[i] = (uint8_t)((t->flags[i] & fixed) | (draw(r, 256) & ~(unsigned)(fixed | IP_CT_TCP_FLAG_BE_LIBERAL)));
}

/* What happens to a connection in its life. */
static bool change_entry(Run *r, CtRecord *e)
{
	if (e->key.expect)
		return false;
	e->status |= IPS_SEEN_REPLY | (chance(r, 50) ? IPS_ASSURED : 0);
	if (chance(r, 50))
		e->mark = chance(r, 70) ? draw(r, UINT32_MAX) : 0;
	if (e->has & CT_HAS_TCP)
		change_tcp(r, &e->tcp);
	if (e->has & CT_HAS_SCTP)
		draw_sctp(r, e);
	return true;
}

/* ---- it is done ---- */

static void enter(const Side *side)
{
	if (setns(side->ns, CLONE_NEWNET) < 0)
		abort();
}

static void apply(CtApply *sink, uint8_t *batch, size_t len, uint32_t n)
{
	_cleanup_error_ Error *err = NULL;

	if (!n)
		return;
	ct_wire_header(batch, len, n);
	if (ct_apply_delta(sink, batch, len, &err) < 0) {
		fprintf(stderr, "%s\n", err->message);
		abort();
	}
}

/* Some at a time, in any order. */
static void apply_wanted(Run *r)
{
	_cleanup_free_ uint8_t *batch = xcalloc(1, CT_WIRE_HEADER + (size_t)ENTRIES_MAX * CT_WIRE_RECORD_MAX);
	size_t len = CT_WIRE_HEADER;
	uint32_t n = 0;

	for (unsigned i = 0; i < r->n; i++) {
		len += ct_wire_record(batch + len, CT_WIRE_PUT, &r->wanted[i]);
		n++;
		if (!chance(r, 20))
			continue;
		apply(r->a.sink, batch, len, n);
		len = CT_WIRE_HEADER;
		n = 0;
	}
	apply(r->a.sink, batch, len, n);
}

static bool is_master(const Run *r, const CtRecord *m)
{
	CtKey key;

	for (unsigned i = 0; i < r->n; i++)
		if (ct_record_master(&r->wanted[i], &key) && memcmp(&key, &m->key, sizeof(key)) == 0)
			return true;
	return false;
}

static void change_some(Run *r)
{
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	unsigned count = draw(r, CHANGES_MAX);

	r->n_gone = 0;
	for (unsigned k = 0; r->n && k < count; k++) {
		unsigned i = draw(r, r->n);
		CtRecord *e = &r->wanted[i];
		bool gone = chance(r, 25) && !is_master(r, e);

		if (!gone && !change_entry(r, e))
			continue;
		apply(r->a.sink, batch, CT_WIRE_HEADER + ct_wire_record(batch + CT_WIRE_HEADER, gone ? CT_WIRE_DELETE : CT_WIRE_PUT, e), 1);
		if (!gone)
			continue;
		r->gone[r->n_gone++] = (CtRecord){.key = e->key};
		r->n--;
		r->wanted[i] = r->wanted[r->n];
		r->extras[i] = r->extras[r->n];
		r->wanted[i].extra = &r->extras[i];
	}
}

static CtFollow *follow(Run *r, const Side *side)
{
	CtFollow *f = NULL;
	CtFollowStats s;

	enter(side);
	if (ct_follow_new(r->event, r->vm, &f, NULL) < 0)
		abort();
	do {
		if (sd_event_run(r->event, UINT64_MAX) < 0)
			abort();
		ct_follow_stats(f, &s);
	} while (!s.complete);
	return f;
}

static void hand_over(CtFollow *f, CtApply *sink)
{
	_cleanup_error_ Error *err = NULL;
	const uint8_t *data;
	size_t len;

	if (ct_follow_drain(f) < 0)
		abort();
	while ((len = ct_follow_delta(f, 4096, &data, NULL)) > 0)
		if (ct_apply_delta(sink, data, len, &err) < 0)
			abort();
}

/* ---- and looked at ---- */

static const CtKey *asked_for(const Run *r, uint64_t tag)
{
	return tag < r->n ? &r->wanted[tag].key : &r->gone[tag - r->n].key;
}

/* The kernel does not tell an expectation's zone, and of the rest only wire records say that it is told. */
static void on_answer(void *userdata, uint64_t tag, const struct nlmsghdr *nlh)
{
	Run *r = userdata;
	const CtKey *key = asked_for(r, tag);
	CtRecord record;
	CtExtra extra;

	if (!ct_parse_all(nlh, &record, &extra))
		abort();
	if (record.key.expect) {
		record.key.zone = key->zone;
		record.key.zone_dir = key->zone_dir;
		record.has |= CT_HAS_REPLY | CT_HAS_STATUS;
	}
	record.has &= (uint16_t)~CT_HAS_ID;
	if (memcmp(&record.key, key, sizeof(*key)) == 0)
		ct_record_assign(&ct_table_at(&r->there, ct_table_insert(&r->there, &record.key))->record, &record);
}

static void on_done(_unused_ void *userdata, _unused_ uint64_t tag, _unused_ int error)
{
}

static void put_question(CtBatch *batch, const CtKey *key, uint64_t tag)
{
	if (key->expect)
		ct_build_expect_key(ct_batch_add(batch, CT_EXPECT(IPCTNL_MSG_EXP_GET), 0, key->family, tag), key);
	else
		ct_build_key(ct_batch_add(batch, IPCTNL_MSG_CT_GET, 0, key->family, tag), key);
}

/* What the other kernel answers when it is asked for all that is wanted, and for what has ended. (A dump walks the tables of all namespaces.) */
static void ask(Run *r)
{
	_cleanup_free_ CtBatch *batch = xcalloc(1, sizeof(*batch));

	enter(&r->b);
	*batch = (CtBatch){.fd = ct_socket_open(NULL), .data = on_answer, .done = on_done, .userdata = r, .first_seq = 1};
	for (unsigned i = 0; i < r->n + r->n_gone; i++)
		put_question(batch, asked_for(r, i), i);
	if (batch->fd < 0 || ct_batch_flush(batch) < 0)
		abort();
	close(batch->fd);
}

static bool opening(const CtTcp *t)
{
	return t->state == TCP_CONNTRACK_SYN_SENT || t->state == TCP_CONNTRACK_SYN_SENT2;
}

/* Without what docs say cannot be kept: the highest acknowledgement, liberal while it is opened, the silent side's scaling, GRE's timeout. */
static bool same_tcp(const CtTcp *a, const CtTcp *b)
{
	const uint8_t all = (uint8_t)~IP_CT_TCP_FLAG_MAXACK_SET;
	uint8_t mask[2] = {all, all};

	if (opening(a))
		mask[0] = mask[1] = all & (uint8_t)~IP_CT_TCP_FLAG_BE_LIBERAL;
	if (a->state == TCP_CONNTRACK_SYN_SENT)
		mask[1] &= (uint8_t)~IP_CT_TCP_FLAG_WINDOW_SCALE;
	return a->state == b->state && memcmp(a->wscale, b->wscale, 2) == 0 && !((a->flags[0] ^ b->flags[0]) & mask[0]) &&
	       !((a->flags[1] ^ b->flags[1]) & mask[1]);
}

static const char *tcp_text(const CtTcp *a, const CtTcp *b)
{
	static char text[100];

	snprintf(text, sizeof(text), "TCP: state %u, scales %u %u, flags %02x %02x, not %u, %u %u, %02x %02x", b->state, b->wscale[0],
		 b->wscale[1], b->flags[0], b->flags[1], a->state, a->wscale[0], a->wscale[1], a->flags[0], a->flags[1]);
	return text;
}

#define STATUS (IPS_SEEN_REPLY | IPS_ASSURED | IPS_CONFIRMED | IPS_NAT_MASK)

static const char *difference(const CtRecord *a, const CtRecord *b)
{
	if ((a->has ^ b->has) & ~(unsigned)CT_HAS_MARK)
		return "what is told";
	if ((a->status ^ b->status) & STATUS)
		return "status";
	if (!a->key.expect && memcmp(&a->reply, &b->reply, sizeof(a->reply)) != 0)
		return "reply";
	if (a->mark != b->mark)
		return "mark";
	if ((a->has & CT_HAS_TCP) && !same_tcp(&a->tcp, &b->tcp))
		return tcp_text(&a->tcp, &b->tcp);
	return ct_record_same_extra(a, b, CT_HAS_EXTRA) ? NULL : "labels, helper, adjustment, master, SCTP or expectation";
}

/* A timeout that was told is true; only where packets may have prolonged it unheard is it longer. */
static bool timeout_kept(const CtRecord *told, const CtRecord *now)
{
	if (told->key.protocol == IPPROTO_GRE || told->key.expect)
		return true;
	return now->timeout + 3 >= told->timeout && (now->timeout <= told->timeout || now->timeout <= 600);
}

static int complain(const CtRecord *e, const char *what)
{
	char text[120];

	ct_record_describe(e, text, sizeof(text));
	fprintf(stderr, "%s%s, zone %u/%u, state %u, has %#x, status %#x: %s\n", e->key.expect ? "expected " : "", text, e->key.zone,
		e->key.zone_dir, e->tcp.state, e->has, e->status, what);
	return -1;
}

static int compare(const Run *r)
{
	for (unsigned i = 0; i < r->n; i++) {
		const CtRecord *wanted = &r->wanted[i];
		uint32_t k = ct_table_find(&r->there, &wanted->key);
		const CtRecord *found = k == CT_NONE ? NULL : &ct_table_at(&r->there, k)->record;
		const char *what = found ? difference(wanted, found) : "is not there";

		if (!what && !timeout_kept(wanted, found))
			what = "timeout";
		if (what)
			return complain(wanted, what);
	}
	for (unsigned i = 0; i < r->n_gone; i++)
		if (ct_table_find(&r->there, &r->gone[i].key) != CT_NONE)
			return complain(&r->gone[i], "has ended, and is there");
	return 0;
}

static int compare_there(Run *r)
{
	int result;

	ct_table_init(&r->there);
	ask(r);
	result = compare(r);
	ct_table_clear(&r->there);
	return result;
}

static int all_taken(const Side *side, const char *where)
{
	CtApplyStats s;

	ct_apply_stats(side->sink, &s);
	if (!s.refused && !s.failed && !s.reasons[CT_REASON_HELPER] && !s.reasons[CT_REASON_LABELS] && !s.reasons[CT_REASON_MASTER])
		return 0;
	fprintf(stderr, "%s: %" PRIu64 " refused, %" PRIu64 " failed: %s\n", where, s.refused, s.failed, s.first_refused);
	for (CtReason i = 0; i < _CT_REASON_MAX; i++)
		if (s.reasons[i])
			fprintf(stderr, "  %" PRIu64 " %s\n", s.reasons[i], ct_reason_name(i, NULL));
	return -1;
}

static void begin(Run *r, Side *side)
{
	CtApplyOptions options = {.max_entries = 1000, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER};

	enter(side);
	if (ct_apply_new(r->vm, &options, &side->sink, NULL) < 0)
		abort();
}

static void settle(const Side *side)
{
	if (ct_apply_settle(side->sink, NULL) < 0)
		abort();
}

/* What ended there, ended here. */
static int end(Run *r)
{
	CtApplyStats s;

	if (ct_apply_rollback(r->a.sink) < 0)
		abort();
	hand_over(r->follow, r->b.sink);
	ct_apply_stats(r->b.sink, &s);
	if (ct_apply_rollback(r->b.sink) < 0)
		abort();
	ct_apply_free(TAKE_PTR(r->a.sink));
	ct_apply_free(TAKE_PTR(r->b.sink));
	if (!s.applied)
		return 0;
	fprintf(stderr, "%" PRIu64 " entries of what ended are still there\n", s.applied);
	return -1;
}

/* @fresh: the follower finds the table in its dump; else it is one that lives and learns of it from events */
static int one_table(Run *r, bool fresh)
{
	unsigned n = 1 + draw(r, ENTRIES_MAX);
	int result = 0;

	begin(r, &r->a);
	begin(r, &r->b);
	for (r->n = 0; r->n < n;)
		draw_entry(r);
	for (unsigned i = 0; i < 8 && r->n < ENTRIES_MAX; i++)
		draw_expectation(r);
	apply_wanted(r);
	settle(&r->a); /* else it is liberal for the other one too */
	if (fresh) {
		ct_follow_free(r->follow);
		r->follow = follow(r, &r->a);
	}
	hand_over(r->follow, r->b.sink);
	change_some(r);
	settle(&r->a);
	hand_over(r->follow, r->b.sink);
	settle(&r->b);
	if (all_taken(&r->a, "first") < 0 || all_taken(&r->b, "second") < 0 || compare_there(r) < 0)
		result = -1;
	return end(r) < 0 ? -1 : result;
}

/* @seed: of the first table; the next one's is one more */
static int carry_tables(uint64_t seed, unsigned tables, const char *other)
{
	char *words[] = {(char[]){"10.0.0.5"}, (char[]){"fd00::5"}, NULL};
	Run *r = xcalloc(1, sizeof(*r));
	unsigned bad = 0;

	r->a.ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	r->b.ns = open(other, O_RDONLY | O_CLOEXEC);
	if (r->a.ns < 0 || r->b.ns < 0 || sd_event_new(&r->event) < 0 || ct_select_new(words, &r->vm, NULL) < 0)
		return 1;
	for (unsigned i = 0; i < tables; i++) {
		r->random = (seed + i) * 0x9e3779b97f4a7c15 + 1;
		if (one_table(r, i % TABLES_A_FOLLOWER == 0) == 0)
			continue;
		fprintf(stderr, "^ seed %" PRIu64 ": ct-random %" PRIu64 " 1 NAMESPACE\n", seed + i, seed + i);
		if (++bad == 5)
			break;
	}
	printf("%u tables, %u differ\n", tables, bad);
	ct_follow_free(r->follow);
	sd_event_unref(r->event);
	ct_select_free(r->vm);
	free(r);
	return bad ? 1 : 0;
}

int main(int argc, char **argv)
{
	if (argc == 4)
		return carry_tables(strtoull(argv[1], NULL, 10), (unsigned)strtoul(argv[2], NULL, 10), argv[3]);
	fprintf(stderr, "usage: ct-random SEED TABLES NAMESPACE\n");
	return 2;
}
