/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LD_PRELOAD for vmferry-conntrack: what a kernel does seldom. CT_SHIM=intr:N: the first N dumps of connections were changed
 * under way (NLM_F_DUMP_INTR), and every other entry is missing in them.
 */
#include <dlfcn.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

ssize_t recv(int fd, void *data, size_t size, int flags);

static unsigned left, entries, seen;

static void __attribute__((constructor)) begin(void)
{
	const char *text = getenv("CT_SHIM");

	if (text && strncmp(text, "intr:", 5) == 0)
		left = (unsigned)strtoul(text + 5, NULL, 10);
}

static void spoil(struct nlmsghdr *nlh)
{
	if (nlh->nlmsg_type == NLMSG_DONE) {
		left -= seen > 0; /* and not at the end of the expectations that are dumped next */
		seen = 0;
		return;
	}
	seen++;
	nlh->nlmsg_flags |= NLM_F_DUMP_INTR;
	if (entries++ % 2)
		nlh->nlmsg_type = NLMSG_NOOP;
}

ssize_t recv(int fd, void *data, size_t size, int flags)
{
	static ssize_t (*real)(int fd, void *data, size_t size, int flags);
	struct nlmsghdr *nlh = data;
	ssize_t n, rest;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "recv");
	n = real(fd, data, size, flags);
	rest = n < (ssize_t)size ? n : (ssize_t)size;
	for (; left && rest >= (ssize_t)sizeof(*nlh) && nlh->nlmsg_len >= sizeof(*nlh) && (ssize_t)nlh->nlmsg_len <= rest;
	     rest -= (ssize_t)NLMSG_ALIGN(nlh->nlmsg_len), nlh = (void *)((char *)nlh + NLMSG_ALIGN(nlh->nlmsg_len)))
		if ((nlh->nlmsg_flags & NLM_F_MULTI) &&
		    (nlh->nlmsg_type == NLMSG_DONE || nlh->nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK))
			spoil(nlh);
	return n;
}
