/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <libmnl/libmnl.h>
#include <linux/netfilter/nfnetlink.h>

#include "record.h"

/*
 * ctnetlink over a socket: batches of messages with one acknowledgement, parsing and building of entries.
 * Attributes: linux/netfilter/nfnetlink_conntrack.h.
 */

/** ct_socket_open() - a netlink socket for conntrack, not bound to any group. Return: fd, or negative errno with @err
 */
int ct_socket_open(Error **err);

/** ct_socket_buffer() - ask for a receive buffer of so many bytes, above the sysctl limit if we may */
void ct_socket_buffer(int fd, int bytes);

/* For ct_message_begin(): a message of the other subsystem, IPCTNL_MSG_EXP_... */
#define CT_EXPECT(type) (NFNL_SUBSYS_CTNETLINK_EXP << 8 | (type))

/** ct_message_begin() - start a conntrack message (IPCTNL_MSG_CT_... or CT_EXPECT()) in a buffer */
struct nlmsghdr *ct_message_begin(void *buffer, uint16_t type, uint16_t flags, uint8_t family, uint32_t seq);

/** ct_parse() - an entry from a message of the kernel. Return: false when it holds no usable original tuple */
bool ct_parse(const struct nlmsghdr *nlh, CtRecord *ret);

/**
 * ct_parse_all() - the same, with what few entries have; also of an expectation's message
 * @store: where that is put; the record refers to it
 */
bool ct_parse_all(const struct nlmsghdr *nlh, CtRecord *ret, CtExtra *store);

/** ct_parse_selected() - quickly, whether one of the four addresses is in @select; mark and zone are not looked at */
bool ct_parse_selected(const struct nlmsghdr *nlh, const CtSelect *select);

/** ct_dump_end() - whether a message ends a dump. Return: 0 if not, 1 at its end, or the kernel's negative errno */
int ct_dump_end(const struct nlmsghdr *nlh);

/** ct_build_key() - name an entry by its original tuple and zone, for DELETE and GET */
void ct_build_key(struct nlmsghdr *nlh, const CtKey *key);

/** ct_build_reply_key() - name it by its reply tuple */
void ct_build_reply_key(struct nlmsghdr *nlh, const CtRecord *record);

/**
 * struct CtBuild - how an entry is put
 * @create:    for a new one: with reply tuple and NAT, which an update cannot change
 * @timeout:   seconds, in place of the record's
 * @liberal:   TCP: no window checks
 * @mark_mask: bits of the mark that are set
 * @labels:    an update sets them; where the kernel keeps none this would be an error
 */
typedef struct CtBuild {
	bool create;
	bool liberal;
	bool labels;
	uint32_t timeout;
	uint32_t mark_mask;
} CtBuild;

/** ct_build_expect() - an expectation, for EXP_NEW */
void ct_build_expect(struct nlmsghdr *nlh, const CtRecord *record);

/** ct_build_expect_key() - name it, for EXP_DELETE */
void ct_build_expect_key(struct nlmsghdr *nlh, const CtKey *key);

/** ct_build() - all of an entry, for CT_NEW */
void ct_build(struct nlmsghdr *nlh, const CtRecord *record, const CtBuild *how);

/** ct_build_as_is() - all of an entry as a dump of the kernel shows it, for files; the kernel would not take NAT like this */
void ct_build_as_is(struct nlmsghdr *nlh, const CtRecord *record);

/**
 * ct_build_filter() - for a dump: by mark and zone, where @select says them
 *
 * The kernel's filters save most of a dump's cost; an older kernel takes no notice.
 */
void ct_build_filter(struct nlmsghdr *nlh, const CtSelect *select);

/**
 * ct_build_settle() - for an update that sets a timeout (0: not) and, with @strict, the liberal flags of TCP to the record's
 * own, and leaves everything else alone
 */
void ct_build_settle(struct nlmsghdr *nlh, const CtRecord *record, uint32_t timeout, bool strict);

/* One send of 128 messages is near the optimum. The largest (IPv6, NAT both ways, all extras) has less than 640 bytes. */
#define CT_BATCH_MESSAGES 128
#define CT_MESSAGE_MAX 1024
#define CT_BATCH_BYTES (CT_BATCH_MESSAGES * CT_MESSAGE_MAX)

/**
 * struct CtBatch - messages that go out in one send and are answered together
 * @done: called for every message once the kernel has answered, in order; @error is 0 or negative errno. It must not
 *        add messages
 * @data: called for what a GET returns, before its @done; may be NULL
 */
typedef struct CtBatch {
	int fd;
	void (*done)(void *userdata, uint64_t tag, int error);
	void (*data)(void *userdata, uint64_t tag, const struct nlmsghdr *nlh);
	void *userdata;
	struct nlmsghdr *last;
	size_t used;
	uint32_t first_seq;
	unsigned n;
	uint64_t tags[CT_BATCH_MESSAGES];
	int errors[CT_BATCH_MESSAGES];
	uint8_t buffer[CT_BATCH_BYTES];
} CtBatch;

/** ct_batch_full() - whether fewer than @n messages fit: flush first */
static inline bool ct_batch_full(const CtBatch *batch, unsigned n)
{
	return batch->n + n > CT_BATCH_MESSAGES;
}

/** ct_batch_add() - begin a message; it ends where the next one begins. There must be room */
struct nlmsghdr *ct_batch_add(CtBatch *batch, uint16_t type, uint16_t flags, uint8_t family, uint64_t tag);

/**
 * ct_batch_flush() - send all and wait for the kernel's answers
 *
 * Return: 0 (errors of single messages went to @done), or negative errno when the socket failed; @done has been called
 * with it for those without an answer.
 */
int ct_batch_flush(CtBatch *batch);
