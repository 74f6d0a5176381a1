/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "netlink.h"

#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>
#include <sys/socket.h>

#include "basic/fd.h"

/* Answers to a batch lie ready when the send returns; the limit is for a kernel that behaves otherwise. */
#define ANSWER_SECONDS 10

int ct_socket_open(Error **err)
{
	struct sockaddr_nl address = {.nl_family = AF_NETLINK};
	struct timeval limit = {.tv_sec = ANSWER_SECONDS};
	_cleanup_fd_ int fd = -1;
	int on = 1;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set(err, -errno, "Cannot open a netfilter netlink socket: %m");
	if (setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		return error_set(err, -errno, "Cannot set up a netfilter netlink socket: %m");
	return TAKE_FD(fd);
}

void ct_socket_buffer(int fd, int bytes)
{
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

struct nlmsghdr *ct_message_begin(void *buffer, uint16_t type, uint16_t flags, uint8_t family, uint32_t seq)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buffer);
	struct nfgenmsg *gen = mnl_nlmsg_put_extra_header(nlh, sizeof(*gen));

	nlh->nlmsg_type = type >> 8 ? type : NFNL_SUBSYS_CTNETLINK << 8 | type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_seq = seq;
	gen->nfgen_family = family;
	gen->version = NFNETLINK_V0;
	return nlh;
}

int ct_dump_end(const struct nlmsghdr *nlh)
{
	const struct nlmsgerr *e = mnl_nlmsg_get_payload(nlh);

	if (nlh->nlmsg_type == NLMSG_DONE)
		return 1;
	if (nlh->nlmsg_type != NLMSG_ERROR)
		return 0;
	return mnl_nlmsg_get_payload_len(nlh) < sizeof(*e) ? -EBADMSG : e->error;
}

struct nlmsghdr *ct_batch_add(CtBatch *batch, uint16_t type, uint16_t flags, uint8_t family, uint64_t tag)
{
	assert(!ct_batch_full(batch, 1));
	if (batch->last) {
		assert(batch->last->nlmsg_len <= CT_MESSAGE_MAX);
		batch->used += MNL_ALIGN(batch->last->nlmsg_len);
	}
	batch->tags[batch->n] = tag;
	batch->last = ct_message_begin(batch->buffer + batch->used, type, flags, family, batch->first_seq + batch->n);
	batch->n++;
	return batch->last;
}

/* One message of the kernel. Return: whether it answers the last message of the batch. */
static bool answer(CtBatch *batch, const struct nlmsghdr *nlh, unsigned *done)
{
	uint32_t i = nlh->nlmsg_seq - batch->first_seq;
	const struct nlmsgerr *e;

	if (i >= batch->n)
		return false; /* of a batch before this one, which failed */
	if (nlh->nlmsg_type != NLMSG_ERROR) {
		if (batch->data)
			batch->data(batch->userdata, batch->tags[i], nlh);
		return false;
	}
	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*e))
		return false;
	e = mnl_nlmsg_get_payload(nlh);
	/* Messages without an answer of their own were done. */
	while (*done < i)
		batch->errors[(*done)++] = 0;
	batch->errors[i] = e->error;
	*done = i + 1;
	return *done == batch->n;
}

/* Return: 0, or negative errno; the errors of the first @done messages are set. */
static int read_answers(CtBatch *batch, unsigned *done)
{
	static _Thread_local uint8_t buffer[16384];

	for (;;) {
		ssize_t n = recv(batch->fd, buffer, sizeof(buffer), 0);
		int left = (int)n;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		for (struct nlmsghdr *nlh = (struct nlmsghdr *)buffer; mnl_nlmsg_ok(nlh, left);
		     nlh = mnl_nlmsg_next(nlh, &left))
			if (answer(batch, nlh, done))
				return 0;
	}
}

static int send_all(int fd, const void *data, size_t len)
{
	struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
	ssize_t n;

	do
		n = sendto(fd, data, len, 0, (struct sockaddr *)&kernel, sizeof(kernel));
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int ct_batch_flush(CtBatch *batch)
{
	unsigned n = batch->n, done = 0;
	int r;

	if (!n)
		return 0;
	batch->last->nlmsg_flags |= NLM_F_ACK;
	batch->used += MNL_ALIGN(batch->last->nlmsg_len);
	r = send_all(batch->fd, batch->buffer, batch->used);
	if (r >= 0)
		r = read_answers(batch, &done);
	while (done < n)
		batch->errors[done++] = r;
	batch->first_seq += n;
	batch->n = 0;
	batch->used = 0;
	batch->last = NULL;
	for (unsigned i = 0; i < n; i++)
		batch->done(batch->userdata, batch->tags[i], batch->errors[i]);
	return r;
}
