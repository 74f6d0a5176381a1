/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>
#include <sys/socket.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "netlink.h"
#include "victims.h"

#define CHUNK 65536
#define TRIES 3

void ct_victims_add(CtVictims *v, const CtRecord *record)
{
	if (v->n == v->size) {
		v->size = v->size ? v->size * 2 : 256;
		v->items = xrealloc(v->items, v->size, sizeof(CtVictim));
	}
	v->items[v->n++] = (CtVictim){.key = record->key, .id = record->id};
}

void ct_victim_build(struct nlmsghdr *nlh, const CtVictim *victim)
{
	ct_build_key(nlh, &victim->key);
	mnl_attr_put_u32(nlh, CTA_ID, htonl(victim->id));
}

/* The addresses of @select that are not in @spare. */
static CtSelect *without(const CtSelect *select, const CtSelect *spare)
{
	CtSelect *rest = ct_select_copy(select);

	rest->n_addresses = 0;
	for (size_t i = 0; i < select->n_addresses; i++)
		if (!spare || !ct_select_has(spare, select->addresses[i].family, select->addresses[i].bytes))
			rest->addresses[rest->n_addresses++] = select->addresses[i];
	return rest;
}

/* Return: 0, 1 at the end of the dump, or negative errno. */
static int collect_message(const struct nlmsghdr *nlh, const CtSelect *select, const CtSelect *spare, CtVictims *v)
{
	int end = ct_dump_end(nlh);
	CtRecord record;

	if (end != 0)
		return end;
	if (ct_parse_selected(nlh, select) && ct_parse(nlh, &record) && ct_record_selected(&record, select) &&
	    !(spare && ct_record_selected(&record, spare)))
		ct_victims_add(v, &record);
	return 0;
}

/* Return: 0, -EINTR when the table changed under the dump (collected entries are right, some may lack), or an errno. */
static int collect(int fd, const CtSelect *select, const CtSelect *spare, CtVictims *v)
{
	_cleanup_free_ uint8_t *chunk = xcalloc(1, CHUNK);
	struct nlmsghdr *nlh = ct_message_begin(chunk, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_UNSPEC, 0);
	bool interrupted = false;

	if (send(fd, nlh, nlh->nlmsg_len, 0) < 0)
		return -errno;
	for (;;) {
		ssize_t n = recv(fd, chunk, CHUNK, 0);
		int left = (int)n, r;

		if (n < 0 && errno != EINTR)
			return -errno;
		for (nlh = (struct nlmsghdr *)chunk; n > 0 && mnl_nlmsg_ok(nlh, left);
		     nlh = mnl_nlmsg_next(nlh, &left)) {
			interrupted |= nlh->nlmsg_flags & NLM_F_DUMP_INTR;
			r = collect_message(nlh, select, spare, v);
			if (r != 0)
				return r < 0 ? r : interrupted ? -EINTR : 0;
		}
	}
}

static void on_done(void *userdata, uint64_t tag, int error)
{
	(void)tag;
	*(uint64_t *)userdata += !error;
}

static int delete_all(int fd, const CtVictims *v, uint64_t *ret)
{
	_cleanup_free_ CtBatch *batch = xcalloc(1, sizeof(*batch));
	int r = 0;

	*batch = (CtBatch){.fd = fd, .done = on_done, .userdata = ret, .first_seq = 1};
	for (size_t i = 0; r >= 0 && i < v->n; i++) {
		if (ct_batch_full(batch, 1))
			r = ct_batch_flush(batch);
		ct_victim_build(ct_batch_add(batch, IPCTNL_MSG_CT_DELETE, 0, v->items[i].key.family, i), &v->items[i]);
	}
	return r < 0 ? r : ct_batch_flush(batch);
}

int ct_flush(const CtSelect *select, const CtSelect *spare, Error **err)
{
	_cleanup_(ct_select_freep)
	CtSelect *rest = without(select, spare);
	CtVictims v = {};
	_cleanup_fd_ int fd = ct_socket_open(err);
	uint64_t deleted = 0;
	int r = -EINTR;

	if (fd < 0)
		return fd;
	for (int i = 0; r == -EINTR && i < TRIES; i++) {
		v.n = 0;
		r = collect(fd, rest, spare, &v);
	}
	if (r >= 0 || r == -EINTR)
		r = delete_all(fd, &v, &deleted);
	free(v.items);
	return r < 0 ? error_set(err, r, "Cannot delete connections: %s", strerror(-r)) : (int)deleted;
}
