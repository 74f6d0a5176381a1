/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>
#include <sys/socket.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "basic/text.h"
#include "filter.h"
#include "netlink.h"
#include "other.h"
#include "table.h"
#include "wire.h"

/*
 * Two sockets: one with the kernel's events, filtered by our own program in the kernel, and one for dumps. The events
 * are subscribed to before the dump is asked for, so that together they miss nothing; table.h says how they are merged.
 *
 * When the kernel could not queue an event it says ENOBUFS once and then drops all until the queue has been read empty.
 * So: read empty first, then dump again; what the new dump does not show is gone.
 */

#define EVENT_BUFFER (8 << 20) /* about 13,000 events */
#define EVENT_SIZE 4096
#define EVENTS_AT_ONCE 32
#define EVENTS_PER_DISPATCH 2048
#define DUMP_CHUNK 65536
#define CHUNKS_PER_DISPATCH 4
#define ASK_SEQ UINT32_MAX
#define ADJUSTED_MAX 256
#define ADJUSTED_LOOKS 2
#define ZONES_MAX 64 /* of masters; expectations in others are not found */
#define DUMP_TRIES 5 /* interrupted ones in a row; then one without clean-up has to do */

struct CtFollow {
	CtSelect *select;
	CtOther *other; /* in place of the sockets, or NULL */
	sd_event *event;
	CtTable table;
	int event_fd, expect_fd, dump_fd;
	sd_event_source *event_source, *expect_source, *dump_source;
	CtExtra extra; /* of the record parsed last */
	struct {
		uint16_t zone;
		uint8_t dir;
	} zones[ZONES_MAX]; /* the first is none */
	size_t n_zones;
	/* Connections whose helper has just expected something: it may have changed lengths, and no event tells of that. */
	struct {
		CtKey key;
		unsigned looks; /* still to be taken: the first may come while the helper is at it */
	} adjusted[ADJUSTED_MAX];
	size_t n_adjusted;
	bool dump_expect; /* the running dump is through with entries and reads expectations */
	uint32_t dump_seq;
	unsigned interrupted; /* dumps in a row */
	bool dump_spoilt;     /* the running one was interrupted by a change */
	bool overrun;	      /* events were lost: read the queue empty, then dump */
	bool dump_again;      /* when the running one is through */
	CtFollowStats stats;
	uint8_t *delta;
	size_t delta_size;
	struct mmsghdr headers[EVENTS_AT_ONCE];
	struct iovec vectors[EVENTS_AT_ONCE];
	uint8_t events[EVENTS_AT_ONCE][EVENT_SIZE];
	uint8_t chunk[DUMP_CHUNK];
};

static int dump_request(CtFollow *f, bool expect)
{
	uint8_t buffer[64] __attribute__((aligned(4)));
	uint16_t type = expect ? CT_EXPECT(IPCTNL_MSG_EXP_GET) : IPCTNL_MSG_CT_GET;
	struct nlmsghdr *nlh = ct_message_begin(buffer, type, NLM_F_DUMP, AF_UNSPEC, ++f->dump_seq);

	if (!expect)
		ct_build_filter(nlh, f->select);
	f->dump_expect = expect;
	return send(f->dump_fd, nlh, nlh->nlmsg_len, 0) < 0 ? -errno : 0;
}

static int dump_start(CtFollow *f)
{
	int r = dump_request(f, false);

	if (r < 0)
		return r;
	f->dump_spoilt = false;
	ct_table_dump_begin(&f->table);
	return 0;
}

static bool is_conntrack(const struct nlmsghdr *nlh)
{
	return nlh->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK || nlh->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK_EXP;
}

static void note_zone(CtFollow *f, const CtKey *key)
{
	for (size_t i = 0; i < f->n_zones; i++)
		if (f->zones[i].zone == key->zone && f->zones[i].dir == key->zone_dir)
			return;
	if (f->n_zones == ZONES_MAX)
		return;
	f->zones[f->n_zones].zone = key->zone;
	f->zones[f->n_zones++].dir = key->zone_dir;
}

static bool is_there(const CtFollow *f, const CtKey *key)
{
	uint32_t i = ct_table_find(&f->table, key);

	return i != CT_NONE && !(ct_table_at(&f->table, i)->flags & CT_ENTRY_GONE);
}

/* The kernel does not tell an expectation's zone; it is that of its master. Return: whether that, or it itself, is known. */
static bool place_expectation(const CtFollow *f, CtRecord *record)
{
	CtKey master;

	for (size_t i = 0; i < f->n_zones; i++) {
		record->key.zone = f->zones[i].zone;
		record->key.zone_dir = f->zones[i].dir;
		if ((ct_record_master(record, &master) && is_there(f, &master)) || is_there(f, &record->key))
			return true;
	}
	record->key.zone = 0;
	record->key.zone_dir = CT_ZONE_BOTH;
	return false;
}

/* An expectation is the VM's if its master is, or if its addresses say so. */
static bool selected(CtFollow *f, CtRecord *record)
{
	if (!record->key.expect) {
		if (!ct_record_selected(record, f->select))
			return false;
		if (record->key.zone)
			note_zone(f, &record->key);
		return true;
	}
	if (place_expectation(f, record))
		return true;
	return (record->has & CT_HAS_MASTER) && f->select->by_address && !f->select->by_mark && ct_record_selected(record, f->select);
}

static int dump_ended(CtFollow *f)
{
	bool whole;

	if (!f->dump_expect)
		return dump_request(f, true);
	whole = !f->dump_spoilt && !f->dump_again;

	ct_table_dump_end(&f->table, whole);
	f->interrupted = f->dump_spoilt ? f->interrupted + 1 : 0;
	f->stats.interrupted += f->dump_spoilt;
	if (f->dump_again || (f->dump_spoilt && f->interrupted < DUMP_TRIES)) {
		f->dump_again = false;
		return dump_start(f);
	}
	f->interrupted = 0;
	f->stats.complete = true;
	f->stats.dumps++;
	return 0;
}

/* Return: 0, 1 when it was the last of the dump, or negative errno. */
static int dump_message(CtFollow *f, const struct nlmsghdr *nlh)
{
	CtRecord record;

	if (nlh->nlmsg_seq == ASK_SEQ && is_conntrack(nlh) && ct_parse_all(nlh, &record, &f->extra) &&
	    selected(f, &record))
		ct_table_answer(&f->table, &record);
	if (nlh->nlmsg_seq != f->dump_seq)
		return 0;
	if (nlh->nlmsg_flags & NLM_F_DUMP_INTR)
		f->dump_spoilt = true;
	if (nlh->nlmsg_type == NLMSG_DONE)
		return 1;
	if (nlh->nlmsg_type == NLMSG_ERROR && mnl_nlmsg_get_payload_len(nlh) >= sizeof(struct nlmsgerr))
		return f->dump_expect ? 1 : ((const struct nlmsgerr *)mnl_nlmsg_get_payload(nlh))->error;
	if (is_conntrack(nlh) && (f->dump_expect || ct_parse_selected(nlh, f->select)) &&
	    ct_parse_all(nlh, &record, &f->extra) && selected(f, &record))
		ct_table_dump_record(&f->table, &record);
	return 0;
}

/* Return: 1 when a chunk was read, 0 when there is none, or negative errno. */
static int dump_chunk(CtFollow *f)
{
	ssize_t n = recv(f->dump_fd, f->chunk, sizeof(f->chunk), MSG_DONTWAIT);
	int left = (int)n, r;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (struct nlmsghdr *nlh = (struct nlmsghdr *)f->chunk; mnl_nlmsg_ok(nlh, left);
	     nlh = mnl_nlmsg_next(nlh, &left)) {
		r = dump_message(f, nlh);
		if (r > 0)
			r = dump_ended(f);
		if (r < 0)
			return r;
	}
	return 1;
}

static void ask(CtFollow *f, const CtKey *key)
{
	uint8_t buffer[256] __attribute__((aligned(4)));
	struct nlmsghdr *nlh = ct_message_begin(buffer, IPCTNL_MSG_CT_GET, 0, key->family, ASK_SEQ);

	ct_build_key(nlh, key);
	(void)send(f->dump_fd, nlh, nlh->nlmsg_len, MSG_DONTWAIT);
}

static void note_adjusted(CtFollow *f, const CtRecord *expect)
{
	size_t i = 0;
	CtKey key;

	if (!ct_record_master(expect, &key))
		return;
	while (i < f->n_adjusted && memcmp(&f->adjusted[i].key, &key, sizeof(key)) != 0)
		i++;
	if (i == ADJUSTED_MAX)
		return;
	f->adjusted[i].key = key;
	f->adjusted[i].looks = ADJUSTED_LOOKS;
	f->n_adjusted += i == f->n_adjusted;
}

/* The kernel's answers lie there when the question has been sent; those that come behind a running dump are read with it. */
static void look_at_adjusted(CtFollow *f)
{
	size_t n = 0;

	for (size_t i = 0; i < f->n_adjusted; i++) {
		ask(f, &f->adjusted[i].key);
		if (--f->adjusted[i].looks)
			f->adjusted[n++] = f->adjusted[i];
	}
	f->n_adjusted = n;
	while (!f->table.dumping && dump_chunk(f) > 0)
		;
}

/* An event tells too little of an entry that we have not seen yet, as when it got its mark only now: ask for it. */
static void ask_if_incomplete(CtFollow *f, const CtKey *key)
{
	uint32_t i = f->table.dumping ? CT_NONE : ct_table_find(&f->table, key);

	if (i != CT_NONE && !key->expect && !ct_record_complete(&ct_table_at(&f->table, i)->record))
		ask(f, key);
}

static void event_message(CtFollow *f, const struct nlmsghdr *nlh)
{
	CtRecord record;
	bool ours;

	if (!is_conntrack(nlh) || !ct_parse_all(nlh, &record, &f->extra))
		return;
	ours = selected(f, &record);
	if (!ours && (!f->select->by_mark || record.key.expect)) /* the mark of one of ours may have become another */
		return;
	f->stats.events += ours;
	if (!ours || (nlh->nlmsg_type & 0xff) == IPCTNL_MSG_CT_DELETE) {
		ct_table_destroyed(&f->table, &record);
		return;
	}
	ct_table_event(&f->table, &record, nlh->nlmsg_flags & NLM_F_CREATE);
	if (record.key.expect)
		note_adjusted(f, &record);
	ask_if_incomplete(f, &record.key);
}

static void event_overrun(CtFollow *f)
{
	f->overrun = true;
	f->stats.overruns++;
}

static void event_messages(CtFollow *f, const uint8_t *data, int left)
{
	for (struct nlmsghdr *nlh = (struct nlmsghdr *)data; mnl_nlmsg_ok(nlh, left); nlh = mnl_nlmsg_next(nlh, &left))
		event_message(f, nlh);
}

static void event_datagram(CtFollow *f, const struct mmsghdr *m, const uint8_t *data)
{
	int left = (int)m->msg_len;

	if (m->msg_hdr.msg_flags & MSG_TRUNC) {
		event_overrun(f);
		return;
	}
	event_messages(f, data, left);
}

/* The queue is empty now: events are complete again from here on. */
static int overrun_recover(CtFollow *f)
{
	f->overrun = false;
	f->stats.complete = false;
	if (f->table.dumping) {
		f->dump_again = true;
		return 0;
	}
	return dump_start(f);
}

/* After the connections' events, so that the master is known. Return: 0 or negative errno. */
static int read_expectations(CtFollow *f)
{
	ssize_t n;

	for (;;) {
		n = recv(f->expect_fd, f->chunk, sizeof(f->chunk), MSG_DONTWAIT | MSG_TRUNC);
		if (n < 0 && errno == ENOBUFS)
			event_overrun(f);
		else if (n < 0 && errno != EINTR)
			return errno == EAGAIN ? 0 : -errno;
		else if (n > (ssize_t)sizeof(f->chunk))
			event_overrun(f);
		else if (n > 0)
			event_messages(f, f->chunk, (int)n);
	}
}

/* Read up to about @max datagrams of events. Return: how many were read, or negative errno. */
static int read_events(CtFollow *f, unsigned max)
{
	unsigned total = 0;

	while (total < max) {
		int n = recvmmsg(f->event_fd, f->headers, EVENTS_AT_ONCE, MSG_DONTWAIT, NULL);

		if (n < 0 && errno == ENOBUFS) {
			event_overrun(f);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			int r = read_expectations(f);

			if (r >= 0 && f->overrun)
				r = overrun_recover(f);
			return r < 0 ? r : (int)total;
		}
		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			event_datagram(f, &f->headers[i], f->events[i]);
		total += (unsigned)n;
	}
	return (int)total;
}

/* Where a socket fails its source is switched off: what is known gets old from here on. */
static int dispatched(CtFollow *f, const char *what, int r)
{
	if (r >= 0)
		return 0;
	log_debug("conntrack: %s: %s", what, strerror(-r));
	f->stats.complete = false;
	return r;
}

static int on_event(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	(void)s, (void)fd, (void)revents;
	return dispatched(userdata, "events", read_events(userdata, EVENTS_PER_DISPATCH));
}

static int on_dump(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	CtFollow *f = userdata;
	int r = 1, e = 0;

	(void)s, (void)fd, (void)revents;
	for (int i = 0; i < CHUNKS_PER_DISPATCH && r > 0 && e >= 0; i++) {
		r = dump_chunk(f);
		e = read_events(f, EVENTS_PER_DISPATCH);
	}
	return dispatched(f, "dump", r < 0 ? r : e);
}

static int subscribe(CtFollow *f, Error **err)
{
	static const int groups[] = {NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE, NFNLGRP_CONNTRACK_DESTROY,
				     NFNLGRP_CONNTRACK_EXP_NEW, NFNLGRP_CONNTRACK_EXP_UPDATE,
				     NFNLGRP_CONNTRACK_EXP_DESTROY};
	int r;

	ct_socket_buffer(f->event_fd, EVENT_BUFFER);
	/* By mark or zone alone all events are looked at here. */
	r = f->select->by_address ? ct_filter_attach(f->event_fd, f->select) : 0;
	if (r < 0 && r != -E2BIG)
		return error_set(err, r, "Cannot filter connection tracking events: %s", strerror(-r));
	for (size_t i = 0; i < ARRAY_SIZE(groups); i++)
		if (setsockopt(i < 3 ? f->event_fd : f->expect_fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &groups[i], sizeof(int)) < 0)
			return error_set(err, -errno, "Cannot listen to connection tracking events: %m");
	return 0;
}

static int open_sockets(CtFollow *f, Error **err)
{
	int r;

	f->event_fd = ct_socket_open(err);
	if (f->event_fd < 0)
		return f->event_fd;
	f->expect_fd = ct_socket_open(err); /* its messages have their addresses elsewhere: not through the filter */
	if (f->expect_fd < 0)
		return f->expect_fd;
	f->dump_fd = ct_socket_open(err);
	if (f->dump_fd < 0)
		return f->dump_fd;
	r = subscribe(f, err);
	if (r < 0)
		return r;
	r = dump_start(f);
	if (r >= 0)
		r = dump_chunk(f); /* whether we may, and whether there is conntrack, is said at once */
	if (r >= 0)
		return 0;
	if (r == -EINVAL || r == -EOPNOTSUPP)
		r = -EPROTONOSUPPORT;
	error_set(err, r, "Cannot read the connection tracking table: %s", strerror(-r));
	error_hint(err, r == -EPERM ? "run as root" : "load the module nf_conntrack_netlink");
	return r;
}

static int add_sources(CtFollow *f, sd_event *event, Error **err)
{
	int r = sd_event_add_io(event, &f->event_source, f->event_fd, EPOLLIN, on_event, f);

	if (r >= 0)
		r = sd_event_add_io(event, &f->expect_source, f->expect_fd, EPOLLIN, on_event, f);
	if (r >= 0)
		r = sd_event_add_io(event, &f->dump_source, f->dump_fd, EPOLLIN, on_dump, f);
	return r < 0 ? error_set(err, r, "Cannot watch a socket: %s", strerror(-r)) : 0;
}

static CtFollow *follow_alloc(const CtSelect *select)
{
	CtFollow *f = xcalloc(1, sizeof(*f));

	f->event_fd = f->expect_fd = f->dump_fd = -1;
	f->select = ct_select_copy(select);
	ct_table_init(&f->table);
	return f;
}

int ct_follow_new(sd_event *event, const CtSelect *select, CtFollow **ret, Error **err)
{
	_cleanup_(ct_follow_freep)
	CtFollow *f = follow_alloc(select);
	int r;

	f->n_zones = 1;
	for (int i = 0; i < EVENTS_AT_ONCE; i++) {
		f->vectors[i] = (struct iovec){.iov_base = f->events[i], .iov_len = EVENT_SIZE};
		f->headers[i].msg_hdr = (struct msghdr){.msg_iov = &f->vectors[i], .msg_iovlen = 1};
	}
	r = open_sockets(f, err);
	if (r >= 0)
		r = add_sources(f, event, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(f);
	return 0;
}

/* ---- another table ---- */

static void on_other_record(void *userdata, const CtRecord *record)
{
	CtFollow *f = userdata;

	if (ct_record_selected(record, f->select))
		ct_table_dump_record(&f->table, record);
}

static void on_other_done(void *userdata, int result, const Error *err)
{
	CtFollow *f = userdata;

	if (result < 0)
		log_debug("conntrack: %s", err ? err->message : strerror(-result));
	ct_table_dump_end(&f->table, result >= 0);
	f->stats.complete = result >= 0;
	f->stats.dumps += result >= 0;
	f->stats.interrupted += result < 0;
}

/* A read that was begun is not finished any more. */
static int other_read(CtFollow *f, uint64_t usec, Error **err)
{
	_cleanup_error_ Error *own = NULL;
	int r;

	ct_table_dump_begin(&f->table);
	r = f->other->read(f->other, f->select, usec, on_other_record, f, &own);
	on_other_done(f, r, own);
	return r < 0 ? error_set(err, r, "%s", own ? own->message : strerror(-r)) : 0;
}

static int other_read_begin(CtFollow *f)
{
	int r;

	ct_table_dump_begin(&f->table);
	r = f->other->read_begin(f->other, f->event, f->select, on_other_record, on_other_done, f);
	if (r < 0)
		on_other_done(f, r, NULL);
	return r;
}

int ct_follow_new_of(sd_event *event, const CtSelect *select, CtOther *other, CtFollow **ret, Error **err)
{
	_cleanup_(ct_follow_freep)
	CtFollow *f = follow_alloc(select);
	int r;

	f->other = other;
	f->event = sd_event_ref(event);
	r = other_read(f, CT_OTHER_READ_USEC, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(f);
	return 0;
}

void ct_follow_free(CtFollow *f)
{
	if (!f)
		return;
	ct_other_free(f->other);
	sd_event_unref(f->event);
	sd_event_source_disable_unref(f->event_source);
	sd_event_source_disable_unref(f->expect_source);
	sd_event_source_disable_unref(f->dump_source);
	fd_close(f->event_fd);
	fd_close(f->expect_fd);
	fd_close(f->dump_fd);
	ct_table_clear(&f->table);
	ct_select_free(f->select);
	free(f->delta);
	free(f);
}

int ct_follow_resync(CtFollow *f)
{
	if (f->table.dumping)
		return 0;
	return f->other ? other_read_begin(f) : dump_start(f);
}

int ct_follow_drain(CtFollow *f)
{
	if (f->other)
		return other_read(f, CT_OTHER_DRAIN_USEC, NULL);
	return read_events(f, INT32_MAX);
}

/* One change as a record; 0 bytes when there is nothing to say of it. */
static size_t write_change(CtFollow *f, uint32_t i, uint8_t *to)
{
	const CtEntry *e = ct_table_at(&f->table, i);
	CtRecord record = e->record;
	CtWireOp op = CT_WIRE_PUT;
	size_t n;

	if (record.has & CT_HAS_CILIUM)
		record.timeout = ct_record_left(&record, (uint32_t)(now_usec() / USEC_PER_SEC));
	if (e->flags & CT_ENTRY_GONE)
		op = CT_WIRE_DELETE;
	else if (e->flags & CT_ENTRY_RENEWED)
		op = CT_WIRE_REPLACE;
	n = ct_wire_record(to, op, &record);
	ct_table_handed_out(&f->table, i);
	return n;
}

size_t ct_follow_delta(CtFollow *f, size_t max, const uint8_t **ret, size_t *ret_records)
{
	size_t want, len = CT_WIRE_HEADER, count = 0;
	uint32_t i;

	assert(max >= 4096);
	if (f->n_adjusted)
		look_at_adjusted(f);
	want = CT_WIRE_HEADER + (size_t)f->table.n_dirty * CT_WIRE_RECORD_MAX;
	if (want > max)
		want = max;
	if (want > f->delta_size)
		f->delta = xrealloc(f->delta, f->delta_size = want, 1);
	while ((i = ct_table_next_change(&f->table)) != CT_NONE && len + CT_WIRE_RECORD_MAX <= want) {
		len += write_change(f, i, f->delta + len);
		count++;
	}
	if (ret_records)
		*ret_records = count;
	*ret = f->delta;
	if (!count)
		return 0;
	ct_wire_header(f->delta, len, (uint32_t)count);
	return len;
}

size_t ct_follow_snapshot(const CtFollow *f, uint8_t *to, size_t max, size_t *ret_records, size_t *ret_left)
{
	return ct_table_snapshot(&f->table, to, max, ret_records, ret_left);
}

static bool is_bound(const CtRecord *r, const CtSelect *own)
{
	return ((r->status & IPS_SRC_NAT) && ct_select_has(own, r->key.family, r->reply.dst)) ||
	       ((r->status & IPS_DST_NAT) && ct_select_has(own, r->key.family, r->key.orig.dst));
}

size_t ct_follow_bound(const CtFollow *f, const CtSelect *own, char *example, size_t size)
{
	size_t n = 0;

	*example = '\0';
	for (uint32_t i = 0; i < f->table.used; i++) {
		const CtEntry *e = ct_table_at(&f->table, i);

		if (!ct_table_in_use(&f->table, i) || (e->flags & CT_ENTRY_GONE) || e->record.key.expect ||
		    !is_bound(&e->record, own))
			continue;
		if (n++ == 0)
			ct_record_describe(&e->record, example, size);
	}
	return n;
}

void ct_follow_summary(const CtFollow *f, CtSummary *ret)
{
	ct_table_summary(&f->table, ret);
	ret->complete = f->stats.complete;
}

bool ct_follow_pending(const CtFollow *f)
{
	return f->n_adjusted || ct_table_next_change(&f->table) != CT_NONE;
}

void ct_follow_stats(const CtFollow *f, CtFollowStats *ret)
{
	*ret = f->stats;
	ret->entries = f->table.live;
	ret->untold = f->table.untold;
}
