/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>
#include <sys/socket.h>

#include "basic/log.h"
#include "basic/text.h"
#include "filter.h"
#include "follow.h"
#include "netlink.h"

/*
 * Two sockets: one with the kernel's events, filtered by our own program in the kernel, and one for dumps. The events
 * are subscribed to before the dump is asked for, so that together they miss nothing; table.h says how they are merged.
 *
 * When the kernel could not queue an event it says ENOBUFS once and then drops all until the queue has been read empty.
 * So: read empty first, then dump again; what the new dump does not show is gone.
 */

#define EVENT_BUFFER (8 << 20) /* about 13,000 events */
#define EVENTS_PER_DISPATCH 2048
#define CHUNKS_PER_DISPATCH 4
#define ASK_SEQ UINT32_MAX
#define ADJUSTED_LOOKS 2
#define DUMP_TRIES 5 /* interrupted ones in a row; then one without clean-up has to do */

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

int ct_follow_kernel_dump(CtFollow *f)
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
	if (f->n_zones == CT_ZONES_MAX)
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
		return ct_follow_kernel_dump(f);
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
	if (i == CT_ADJUSTED_MAX)
		return;
	f->adjusted[i].key = key;
	f->adjusted[i].looks = ADJUSTED_LOOKS;
	f->n_adjusted += i == f->n_adjusted;
}

/* The kernel's answers lie there when the question has been sent; those that come behind a running dump are read with it. */
void ct_follow_kernel_adjusted(CtFollow *f)
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

/* Events are complete again from here on. */
static int dump_anew(CtFollow *f)
{
	f->overrun = false;
	f->stats.complete = false;
	if (f->table.dumping) {
		f->dump_again = true;
		return 0;
	}
	return ct_follow_kernel_dump(f);
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
int ct_follow_kernel_events(CtFollow *f, unsigned max)
{
	unsigned total = 0;

	while (total < max) {
		int n = recvmmsg(f->event_fd, f->headers, CT_EVENTS_AT_ONCE, MSG_DONTWAIT, NULL);

		if (n < 0 && errno == ENOBUFS) {
			event_overrun(f);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			int r = read_expectations(f);

			if (r >= 0 && f->overrun) /* the queue is empty now */
				r = dump_anew(f);
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
	return dispatched(userdata, "events", ct_follow_kernel_events(userdata, EVENTS_PER_DISPATCH));
}

static int on_dump(sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	CtFollow *f = userdata;
	int r = 1, e = 0;

	(void)s, (void)fd, (void)revents;
	for (int i = 0; i < CHUNKS_PER_DISPATCH && r > 0 && e >= 0; i++) {
		r = dump_chunk(f);
		e = ct_follow_kernel_events(f, EVENTS_PER_DISPATCH);
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

static int membership(CtFollow *f, int option, int group)
{
	return setsockopt(f->event_fd, SOL_NETLINK, option, &group, sizeof(group)) < 0 ? -errno : 0;
}

int ct_follow_mute(CtFollow *f)
{
	int r = f->other ? 0 : membership(f, NETLINK_DROP_MEMBERSHIP, NFNLGRP_CONNTRACK_NEW);

	/*
	 * By the last who leaves a group the kernel believes that nobody listens to any (nfnetlink_unbind()), and with
	 * nf_conntrack_events = 2 what is made then would never tell of its end; by one who joins any group, that somebody does.
	 */
	return r < 0 || f->other ? r : membership(f, NETLINK_ADD_MEMBERSHIP, NFNLGRP_CONNTRACK_DESTROY);
}

int ct_follow_unmute(CtFollow *f)
{
	int r = f->other ? 0 : membership(f, NETLINK_ADD_MEMBERSHIP, NFNLGRP_CONNTRACK_NEW);

	return r < 0 || f->other ? r : dump_anew(f);
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
	r = ct_follow_kernel_dump(f);
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

int ct_follow_new(sd_event *event, const CtSelect *select, CtFollow **ret, Error **err)
{
	_cleanup_(ct_follow_freep)
	CtFollow *f = ct_follow_alloc(select);
	int r;

	f->n_zones = 1;
	for (int i = 0; i < CT_EVENTS_AT_ONCE; i++) {
		f->vectors[i] = (struct iovec){.iov_base = f->events[i], .iov_len = CT_EVENT_SIZE};
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
