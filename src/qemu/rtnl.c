/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "rtnl.h"

#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <net/if.h>

#include "basic/text.h"

struct Rtnl {
	struct mnl_socket *socket;
	unsigned int seq;
};

int rtnl_open(Rtnl **ret)
{
	_cleanup_rtnl_ Rtnl *rtnl = xcalloc(1, sizeof(*rtnl));

	rtnl->socket = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	if (!rtnl->socket || mnl_socket_bind(rtnl->socket, 0, MNL_SOCKET_AUTOPID) < 0)
		return -errno;
	*ret = TAKE_PTR(rtnl);
	return 0;
}

void rtnl_close(Rtnl *rtnl)
{
	if (!rtnl)
		return;
	if (rtnl->socket)
		mnl_socket_close(rtnl->socket);
	free(rtnl);
}

struct nlmsghdr *rtnl_link(void *buffer, uint16_t type, unsigned char family, unsigned int ifindex)
{
	struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
	struct ifinfomsg *info;

	h->nlmsg_type = type;
	info = mnl_nlmsg_put_extra_header(h, sizeof(*info));
	info->ifi_family = family;
	info->ifi_index = (int)ifindex;
	return h;
}

int rtnl_talk(Rtnl *rtnl, struct nlmsghdr *request, mnl_cb_t cb, void *userdata)
{
	unsigned int portid = mnl_socket_get_portid(rtnl->socket);
	char buffer[32768];
	ssize_t n;
	int r;

	request->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
	request->nlmsg_seq = ++rtnl->seq;
	if (mnl_socket_sendto(rtnl->socket, request, request->nlmsg_len) < 0)
		return -errno;
	do {
		n = mnl_socket_recvfrom(rtnl->socket, buffer, sizeof(buffer));
		if (n < 0 && errno == EINTR) {
			r = MNL_CB_OK;
			continue;
		}
		if (n < 0)
			return -errno;
		r = mnl_cb_run(buffer, (size_t)n, rtnl->seq, portid, cb, userdata);
	} while (r > MNL_CB_STOP);
	return r < 0 ? -errno : 0;
}

static const struct nlattr *find(const struct nlattr *nest, uint16_t type)
{
	const struct nlattr *attr;

	if (nest)
		mnl_attr_for_each_nested(attr, nest) if (mnl_attr_get_type(attr) == type) return attr;
	return NULL;
}

static void parse_info(const struct nlattr *info, RtnlLink *link)
{
	const struct nlattr *kind = find(info, IFLA_INFO_KIND), *data = find(info, IFLA_INFO_DATA), *attr;

	link->bridge = kind && streq(mnl_attr_get_str(kind), "bridge");
	if (!link->bridge)
		return;
	attr = find(data, IFLA_BR_VLAN_FILTERING);
	link->vlan_filtering = attr && mnl_attr_get_u8(attr);
	attr = find(data, IFLA_BR_VLAN_DEFAULT_PVID);
	link->default_pvid = attr ? mnl_attr_get_u16(attr) : 0;
}

static int on_link(const struct nlmsghdr *h, void *userdata)
{
	const struct ifinfomsg *info = mnl_nlmsg_get_payload(h);
	const struct nlattr *attr;
	RtnlLink *link = userdata;

	link->ifindex = (unsigned int)info->ifi_index;
	mnl_attr_for_each(attr, h, sizeof(*info))
	{
		if (mnl_attr_get_type(attr) == IFLA_MTU)
			link->mtu = mnl_attr_get_u32(attr);
		if (mnl_attr_get_type(attr) == IFLA_LINKINFO)
			parse_info(attr, link);
	}
	return MNL_CB_OK;
}

int rtnl_get_link(Rtnl *rtnl, const char *name, RtnlLink *ret)
{
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = rtnl_link(buffer, RTM_GETLINK, AF_UNSPEC, 0);
	RtnlLink link = {0};
	int r;

	/* The kernel refuses a longer one as malformed; to people it just does not exist. */
	if (strlen(name) >= IFNAMSIZ)
		return -ENODEV;
	mnl_attr_put_strz(h, IFLA_IFNAME, name);
	r = rtnl_talk(rtnl, h, on_link, &link);
	if (r < 0)
		return r;
	*ret = link;
	return 0;
}

int rtnl_set_up(Rtnl *rtnl, unsigned int ifindex, bool up)
{
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = rtnl_link(buffer, RTM_NEWLINK, AF_UNSPEC, ifindex);
	struct ifinfomsg *info = mnl_nlmsg_get_payload(h);

	info->ifi_change = IFF_UP;
	info->ifi_flags = up ? IFF_UP : 0;
	return rtnl_talk(rtnl, h, NULL, NULL);
}
