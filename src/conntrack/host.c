/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <linux/netfilter/nfnetlink_conntrack.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"
#include "netlink.h"

#define SYSCTL "/proc/sys/net/netfilter/nf_conntrack_"

/* Values are those of the caller's network namespace (Documentation/networking/nf_conntrack-sysctl.rst). */
static bool read_sysctl(const char *name, uint64_t *ret)
{
	_cleanup_free_ char *path = xasprintf(SYSCTL "%s", name), *text = NULL;

	if (file_read(path, 64, &text, NULL) < 0)
		return false;
	text[strcspn(text, "\n")] = '\0';
	return text_parse_u64(text, ret) == 0;
}

static void on_done(void *userdata, uint64_t tag, int error)
{
	(void)tag;
	*(int *)userdata = error;
}

/* Whether the kernel answers a question about the table. */
static bool answers(void)
{
	_cleanup_free_ CtBatch *batch = xcalloc(1, sizeof(*batch));
	_cleanup_fd_ int fd = ct_socket_open(NULL);
	int error = -EIO;

	if (fd < 0)
		return false;
	*batch = (CtBatch){.fd = fd, .done = on_done, .userdata = &error, .first_seq = 1};
	ct_batch_add(batch, IPCTNL_MSG_CT_GET_STATS, 0, AF_UNSPEC, 0);
	return ct_batch_flush(batch) == 0 && error == 0;
}

void ct_host_read(CtHost *ret)
{
	uint64_t events, loose;

	*ret = (CtHost){.events = -1};
	ret->available = answers();
	if (!read_sysctl("count", &ret->count) || !read_sysctl("max", &ret->max))
		ret->available = false;
	if (read_sysctl("events", &events))
		ret->events = (int)events;
	ret->tcp_loose = read_sysctl("tcp_loose", &loose) && loose;
}
