/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Taps and their place on a bridge. Documentation/networking/tuntap.rst, linux/if_tun.h, linux/if_bridge.h,
 * linux/neighbour.h. Everything in the network namespace of the caller. */
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "announce.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "rtnl.h"

/* No address, and with that no router solicitation, of the host on the guest's cable. */
static int ipv6_off(Rtnl *rtnl, unsigned int ifindex)
{
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = rtnl_link(buffer, RTM_NEWLINK, AF_UNSPEC, ifindex);
	struct nlattr *spec = mnl_attr_nest_start(h, IFLA_AF_SPEC), *inet6 = mnl_attr_nest_start(h, AF_INET6);
	int r;

	mnl_attr_put_u8(h, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
	mnl_attr_nest_end(h, inet6);
	mnl_attr_nest_end(h, spec);
	r = rtnl_talk(rtnl, h, NULL, NULL);
	/* A kernel without IPv6 has nothing to turn off. */
	return r == -EAFNOSUPPORT || r == -EOPNOTSUPP ? 0 : r;
}

int tap_new(char **ret_name, Error **err)
{
	struct ifreq ifr = {.ifr_name = "vf%d", .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	_cleanup_rtnl_ Rtnl *rtnl = NULL;
	_cleanup_fd_ int fd = -1;
	unsigned int ifindex;
	int r;

	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return error_set(err, -errno, "cannot open /dev/net/tun: %m");
	if (ioctl(fd, TUNSETIFF, &ifr) < 0)
		return error_set(err, -errno, "cannot make a tap interface: %m");
	ifindex = if_nametoindex(ifr.ifr_name);
	if (ifindex == 0)
		return error_set(err, -errno, "tap %s: %m", ifr.ifr_name);
	r = rtnl_open(&rtnl);
	if (r >= 0)
		r = ipv6_off(rtnl, ifindex);
	if (r >= 0)
		r = rtnl_set_up(rtnl, ifindex, true);
	if (r < 0)
		return error_set(err, r, "cannot set up tap %s: %s", ifr.ifr_name, strerror(-r));
	*ret_name = xstrdup(ifr.ifr_name);
	return TAKE_FD(fd);
}

char *tap_name(int fd)
{
	struct ifreq ifr = {0};

	return ioctl(fd, TUNGETIFF, &ifr) < 0 ? NULL : xstrdup(ifr.ifr_name);
}

/* The bridge's MTU first, and while the tap is on no bridge: a bridge takes the least of its ports'. */
static int set_master(Rtnl *rtnl, unsigned int ifindex, const RtnlLink *bridge)
{
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = rtnl_link(buffer, RTM_NEWLINK, AF_UNSPEC, ifindex);
	int r;

	mnl_attr_put_u32(h, IFLA_MTU, bridge->mtu);
	r = rtnl_talk(rtnl, h, NULL, NULL);
	if (r < 0)
		return r;
	h = rtnl_link(buffer, RTM_NEWLINK, AF_UNSPEC, ifindex);
	mnl_attr_put_u32(h, IFLA_MASTER, bridge->ifindex);
	return rtnl_talk(rtnl, h, NULL, NULL);
}

static int change_vlan(Rtnl *rtnl, uint16_t type, unsigned int ifindex, unsigned int vid, uint16_t flags)
{
	struct bridge_vlan_info info = {.vid = (uint16_t)vid, .flags = flags};
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = rtnl_link(buffer, type, AF_BRIDGE, ifindex);
	struct nlattr *spec = mnl_attr_nest_start(h, IFLA_AF_SPEC);

	mnl_attr_put(h, IFLA_BRIDGE_VLAN_INFO, sizeof(info), &info);
	mnl_attr_nest_end(h, spec);
	return rtnl_talk(rtnl, h, NULL, NULL);
}

static int set_vlan(Rtnl *rtnl, unsigned int ifindex, const RtnlLink *bridge, unsigned int vid)
{
	int r = change_vlan(rtnl, RTM_SETLINK, ifindex, vid, BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED);

	if (r < 0 || bridge->default_pvid == 0 || bridge->default_pvid == vid)
		return r;
	return change_vlan(rtnl, RTM_DELLINK, ifindex, bridge->default_pvid, 0);
}

/* "dynamic" in bridge(8)'s words: ages, and moves when the address is seen elsewhere, like one the bridge has learned.
 */
static int set_forwarding(Rtnl *rtnl, unsigned int ifindex, const VmNic *nic)
{
	char buffer[RTNL_BUFFER_BYTES];
	struct nlmsghdr *h = mnl_nlmsg_put_header(buffer);
	struct ether_addr mac;
	struct ndmsg *nd;

	if (!nic->mac || !ether_aton_r(nic->mac, &mac))
		return -EINVAL;
	h->nlmsg_type = RTM_NEWNEIGH;
	h->nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE;
	nd = mnl_nlmsg_put_extra_header(h, sizeof(*nd));
	nd->ndm_family = AF_BRIDGE;
	nd->ndm_ifindex = (int)ifindex;
	nd->ndm_state = NUD_REACHABLE;
	nd->ndm_flags = NTF_MASTER;
	mnl_attr_put(h, NDA_LLADDR, sizeof(mac), &mac);
	if (nic->vlan)
		mnl_attr_put_u16(h, NDA_VLAN, (uint16_t)nic->vlan);
	return rtnl_talk(rtnl, h, NULL, NULL);
}

static int find_bridge(Rtnl *rtnl, const VmNic *nic, RtnlLink *ret, Error **err)
{
	int r = rtnl_get_link(rtnl, nic->bridge, ret);

	if (r == -ENODEV) {
		error_set(err, r, "nic %s: bridge %s does not exist on this host", nic->id, nic->bridge);
		error_hint(err, "make it (ip link add %s type bridge), or name another one in the definition",
			   nic->bridge);
		return r;
	}
	if (r < 0)
		return error_set(err, r, "nic %s: bridge %s: %s", nic->id, nic->bridge, strerror(-r));
	if (!ret->bridge)
		return error_set(err, -ENOTTY, "nic %s: %s is not a bridge", nic->id, nic->bridge);
	if (nic->vlan && !ret->vlan_filtering) {
		r = error_set(err, -EOPNOTSUPP, "nic %s: bridge %s does not filter VLANs", nic->id, nic->bridge);
		error_hint(err, "ip link set %s type bridge vlan_filtering 1", nic->bridge);
		return r;
	}
	return 0;
}

/* With a VLAN the tap is down until it is in that one alone: nothing of the default VLAN leaks to the guest. */
static int attach(Rtnl *rtnl, unsigned int ifindex, const VmNic *nic, const RtnlLink *bridge)
{
	int r = 0;

	if (nic->vlan)
		r = rtnl_set_up(rtnl, ifindex, false);
	if (r >= 0)
		r = set_master(rtnl, ifindex, bridge);
	if (r >= 0 && nic->vlan)
		r = set_vlan(rtnl, ifindex, bridge, nic->vlan);
	if (r >= 0)
		r = rtnl_set_up(rtnl, ifindex, true);
	return r < 0 ? r : set_forwarding(rtnl, ifindex, nic);
}

int tap_attach(int fd, const VmNic *nic, Error **err)
{
	_cleanup_rtnl_ Rtnl *rtnl = NULL;
	_cleanup_free_ char *name = tap_name(fd);
	RtnlLink bridge;
	unsigned int ifindex = name ? if_nametoindex(name) : 0;
	int r;

	if (ifindex == 0)
		return error_set(err, -ENODEV, "nic %s: its tap is not in this network namespace", nic->id);
	r = rtnl_open(&rtnl);
	if (r < 0)
		return error_set(err, r, "rtnetlink: %s", strerror(-r));
	r = find_bridge(rtnl, nic, &bridge, err);
	if (r < 0)
		return r;
	r = attach(rtnl, ifindex, nic, &bridge);
	if (r < 0)
		return error_set(err, r, "nic %s: cannot put %s on bridge %s: %s", nic->id, name, nic->bridge,
				 strerror(-r));
	return 0;
}

/* A frame as the guest would send it; the header says "no offload", which is all zero (linux/virtio_net.h). */
static int write_frame(int fd, size_t header_len, const uint8_t *frame, size_t len)
{
	static const uint8_t header[64];
	struct iovec iov[] = {{(void *)header, header_len}, {(void *)frame, len}};

	if (header_len > sizeof(header))
		return -EOVERFLOW;
	return writev(fd, iov, ARRAY_SIZE(iov)) < 0 ? -errno : 0;
}

int tap_announce(int fd, const VmNic *nic)
{
	struct ifreq ifr = {0};
	int header_len = 0, sent = 0, r;

	if (ioctl(fd, TUNGETIFF, &ifr) < 0)
		return -errno;
	if ((ifr.ifr_flags & IFF_VNET_HDR) && ioctl(fd, TUNGETVNETHDRSZ, &header_len) < 0)
		return -errno;
	for (size_t i = 0; nic->addresses && nic->addresses[i]; i++) {
		uint8_t frame[ANNOUNCE_FRAME_MAX];
		size_t len;

		r = announce_frame(nic->mac, nic->addresses[i], frame, &len);
		if (r >= 0)
			r = write_frame(fd, (size_t)header_len, frame, len);
		if (r < 0)
			return r;
		sent++;
	}
	return sent;
}
