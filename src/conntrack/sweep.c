/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What lies here from before, as after a return trip: entries of the VM from the time when it did not run here. Those
 * that the source has are replaced by its own; the rest is deleted once the guest runs here. Each is named with its id:
 * what is made anew with the same tuple stays.
 */
#include <errno.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "apply.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "victims.h"

#define CHUNK 32768
#define WAIT_MSEC 10000

struct CtSweep {
	CtVictims victims;
	size_t next;
	int fd;
	bool ended;
	sd_event_source *source;
	uint8_t chunk[CHUNK];
};

void ct_sweep_free(CtSweep *s)
{
	if (!s)
		return;
	sd_event_source_disable_unref(s->source);
	fd_close(s->fd);
	free(s->victims.items);
	free(s);
}

static bool is_others_too(const CtApply *a, const CtRecord *r)
{
	return a->foreign && a->foreign->by_address && ct_record_selected(r, a->foreign);
}

/* Return: 0, 1 at the end, or negative errno. */
static int survey_message(CtApply *a, const struct nlmsghdr *nlh)
{
	int end = ct_dump_end(nlh);
	CtRecord record;

	if (end != 0)
		return end;
	if (ct_parse_selected(nlh, a->allowed) && ct_parse(nlh, &record) && ct_record_owned(&record, a->allowed) &&
	    !is_others_too(a, &record))
		ct_victims_add(&a->sweep->victims, &record);
	return 0;
}

/* Return: 0, 1 at the end, or negative errno. */
static int survey_chunk(CtApply *a)
{
	CtSweep *s = a->sweep;
	ssize_t n = recv(s->fd, s->chunk, CHUNK, MSG_DONTWAIT);
	int left = (int)n, r = 0;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	for (struct nlmsghdr *nlh = (struct nlmsghdr *)s->chunk; r == 0 && mnl_nlmsg_ok(nlh, left);
	     nlh = mnl_nlmsg_next(nlh, &left))
		r = survey_message(a, nlh);
	s->ended |= r != 0;
	return r;
}

/* What an interrupted or failed dump has shown is right all the same; the rest ends by its timeouts. */
static int on_chunk(sd_event_source *source, _unused_ int fd, _unused_ uint32_t revents, void *userdata)
{
	if (survey_chunk(userdata) != 0)
		sd_event_source_set_enabled(source, SD_EVENT_OFF);
	return 0;
}

static int survey_request(CtApply *a)
{
	struct nlmsghdr *nlh = ct_message_begin(a->sweep->chunk, IPCTNL_MSG_CT_GET, NLM_F_DUMP, AF_UNSPEC, 0);

	ct_build_filter(nlh, a->allowed);
	return send(a->sweep->fd, nlh, nlh->nlmsg_len, 0) < 0 ? -errno : 0;
}

int ct_apply_survey(CtApply *a, sd_event *event)
{
	int r;

	a->sweep = xcalloc(1, sizeof(*a->sweep));
	r = a->sweep->fd = ct_socket_open(NULL);
	if (r >= 0)
		r = survey_request(a);
	if (r >= 0 && event)
		r = sd_event_add_io(event, &a->sweep->source, a->sweep->fd, EPOLLIN, on_chunk, a);
	if (r < 0) {
		ct_sweep_free(a->sweep);
		a->sweep = NULL;
	}
	return r < 0 ? r : 0;
}

int ct_apply_survey_wait(CtApply *a)
{
	int r = 0;

	while (r == 0 && a->sweep && !a->sweep->ended) {
		struct pollfd p = {.fd = a->sweep->fd, .events = POLLIN};

		r = poll(&p, 1, WAIT_MSEC);
		r = r < 0 && errno != EINTR ? -errno : r == 0 ? -ETIMEDOUT : survey_chunk(a);
	}
	return r < 0 ? r : 0;
}

int ct_apply_sweep_some(CtApply *a)
{
	CtSweep *s = a->sweep;
	int r;

	if (!s)
		return 0;
	s->source = sd_event_source_disable_unref(s->source);
	for (; s->next < s->victims.n && !ct_batch_full(a->batch, 1); s->next++) {
		const CtVictim *v = &s->victims.items[s->next];

		if (ct_table_find(&a->table, &v->key) == CT_NONE)
			ct_victim_build(ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, v->key.family,
						     ct_apply_tag(OP_SWEEP, 0)),
					v);
	}
	r = ct_batch_flush(a->batch);
	if (r >= 0 && s->next < s->victims.n)
		return 1;
	ct_sweep_free(s);
	a->sweep = NULL;
	return r;
}
