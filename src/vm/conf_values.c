/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conf.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <systemd/sd-id128.h>

#include "basic/text.h"

/* What a single value must look like. Each check gives the canonical form of a good one. */

#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"

static int bad(Error **err, const char *value, const char *what, const char *hint)
{
	_cleanup_free_ char *clean = text_clean(value, 100);

	error_set(err, -EINVAL, "\"%s\" is not %s", clean, what);
	error_hint(err, "%s", hint);
	return -EINVAL;
}

static int good(const char *value, char **ret)
{
	*ret = xstrdup(value);
	return 0;
}

/* 1 to @max bytes of @allowed, the first a letter or digit */
static bool simple_word(const char *value, const char *allowed, size_t max)
{
	size_t len = strlen(value);

	return len >= 1 && len <= max && strspn(value, allowed) == len && strchr(LETTERS DIGITS, value[0]);
}

int conf_check_id(const char *value, char **ret, Error **err)
{
	if (!simple_word(value, LETTERS DIGITS "-_", 24) || !strchr(LETTERS, value[0]))
		return bad(err, value, "a name for a device",
			   "a letter, then letters, digits, - and _, 24 at most, like vda or net0");
	return good(value, ret);
}

int conf_check_lease_name(const char *value, char **ret, Error **err)
{
	/* SANLK_NAME_LEN; sanlock separates names by colons. */
	if (!simple_word(value, LETTERS DIGITS "-_.", 48))
		return bad(err, value, "a name of sanlock's", "letters, digits, -, _ and ., 48 at most");
	return good(value, ret);
}

int conf_check_cpu(const char *value, char **ret, Error **err)
{
	/* QEMU's CPU models with features: "host", "Skylake-Client,+vmx,hv-time=on" */
	if (!simple_word(value, LETTERS DIGITS "-_.,+=", 1000))
		return bad(err, value, "a CPU model",
			   "QEMU's word for it, with features if need be, like \"host\" or "
			   "\"Skylake-Server,-hle\"; see qemu-system-x86_64 -cpu help");
	return good(value, ret);
}

int conf_check_machine(const char *value, char **ret, Error **err)
{
	const char *rest = startswith(value, "pc-q35-");

	if (!rest)
		rest = startswith(value, "pc-i440fx-");
	if (streq(value, "q35") || streq(value, "pc") || (rest && simple_word(rest, LETTERS DIGITS ".-_", 40)))
		return good(value, ret);
	return bad(err, value, "a machine type known here",
		   "\"q35\", \"pc\", or a versioned one like \"pc-q35-7.2\" or \"pc-i440fx-7.2\"");
}

int conf_check_nic_model(const char *value, char **ret, Error **err)
{
	static const char *const models[] = {"virtio-net-pci",
					     "virtio-net-pci-non-transitional",
					     "virtio-net-pci-transitional",
					     "e1000",
					     "e1000e",
					     "rtl8139",
					     "igb",
					     "vmxnet3"};

	for (size_t i = 0; i < ARRAY_SIZE(models); i++)
		if (streq(value, models[i]))
			return good(value, ret);
	return bad(err, value, "a NIC known here",
		   "\"virtio-net-pci\" (or its -transitional and -non-transitional forms), \"e1000\", \"e1000e\", "
		   "\"igb\", \"rtl8139\" or \"vmxnet3\"");
}

int conf_check_serial(const char *value, char **ret, Error **err)
{
	/* VIRTIO_BLK_ID_BYTES, virtio 1.2, 5.2.6 */
	if (!simple_word(value, LETTERS DIGITS "-_.", 20))
		return bad(err, value, "a disk serial", "letters, digits, -, _ and ., 20 at most");
	return good(value, ret);
}

int conf_check_path(const char *value, char **ret, Error **err)
{
	size_t len = strlen(value);

	if (value[0] != '/' || len < 2 || value[len - 1] == '/')
		return bad(err, value, "an absolute path to a file", "begin it with /");
	if (len >= PATH_MAX)
		return bad(err, value, "a path: it is too long", "4095 bytes at most");
	return good(value, ret);
}

int conf_check_directory(const char *value, char **ret, Error **err)
{
	if (value[0] != '/' || strlen(value) >= PATH_MAX)
		return bad(err, value, "an absolute path to a directory", "begin it with /");
	return good(value, ret);
}

int conf_check_binary(const char *value, char **ret, Error **err)
{
	if (value[0] == '/')
		return conf_check_path(value, ret, err);
	if (!simple_word(value, LETTERS DIGITS "-_.+", 64))
		return bad(err, value, "a program", "an absolute path, or a name to be searched in PATH");
	return good(value, ret);
}

int conf_check_mac(const char *value, char **ret, Error **err)
{
	unsigned char b[6];
	bool form = strlen(value) == 17;

	for (size_t i = 0; form && i < 17; i++)
		form = i % 3 == 2 ? value[i] == ':' : isxdigit((unsigned char)value[i]) != 0;
	if (!form)
		return bad(err, value, "a MAC address", "six bytes in hex, like \"52:54:00:12:34:56\"");
	for (size_t i = 0; i < 6; i++)
		b[i] = (unsigned char)strtoul(value + 3 * i, NULL, 16);
	if (b[0] & 1)
		return bad(err, value, "a MAC address of one host: its multicast bit is set",
			   "the first byte must be even, like \"52:54:00:12:34:56\"");
	if (!(b[0] | b[1] | b[2] | b[3] | b[4] | b[5]))
		return bad(err, value, "a MAC address a NIC can have", "leave it out to have one made");
	*ret = xasprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]);
	return 0;
}

static bool unicast4(const struct in_addr *a)
{
	uint32_t host = ntohl(a->s_addr);

	return host >> 24 != 0 && host >> 24 != 127 && host >> 28 < 14;
}

static bool unicast6(const struct in6_addr *a)
{
	return !IN6_IS_ADDR_UNSPECIFIED(a) && !IN6_IS_ADDR_LOOPBACK(a) && !IN6_IS_ADDR_MULTICAST(a) &&
	       !IN6_IS_ADDR_V4MAPPED(a);
}

int conf_check_address(const char *value, char **ret, Error **err)
{
	char text[INET6_ADDRSTRLEN];
	struct in6_addr a;
	int family = strchr(value, ':') ? AF_INET6 : AF_INET;

	if (inet_pton(family, value, &a) != 1)
		return bad(err, value, "an IP address",
			   "an IPv4 or IPv6 address with no prefix length, like \"10.0.0.5\"");
	if (family == AF_INET ? !unicast4((const struct in_addr *)&a) : !unicast6(&a))
		return bad(err, value, "an address a guest can have",
			   "a unicast address, like \"10.0.0.5\" or \"fd00::5\"");
	inet_ntop(family, &a, text, sizeof(text));
	return good(text, ret);
}

int conf_check_listen(const char *value, char **ret, Error **err)
{
	char text[INET6_ADDRSTRLEN];
	struct in6_addr a;
	int family = strchr(value, ':') ? AF_INET6 : AF_INET;

	if (inet_pton(family, value, &a) != 1)
		return bad(err, value, "an IP address", "an address of this host, or \"0.0.0.0\" for all of them");
	inet_ntop(family, &a, text, sizeof(text));
	return good(text, ret);
}

int conf_check_prefix(const char *value, char **ret, Error **err)
{
	static const char hint[] = "an address and a length, like \"10.0.0.0/24\" or \"fd00::/64\"";
	_cleanup_free_ char *address = xstrdup(value);
	char text[INET6_ADDRSTRLEN], *slash = strchr(address, '/');
	unsigned char a[16] = {0};
	int family = strchr(value, ':') ? AF_INET6 : AF_INET;
	uint64_t len, max = family == AF_INET ? 32 : 128;

	if (!slash)
		return bad(err, value, "a prefix", hint);
	*slash = '\0';
	if (inet_pton(family, address, a) != 1 || text_parse_u64(slash + 1, &len) < 0 || len > max)
		return bad(err, value, "a prefix", hint);
	for (uint64_t bit = len; bit < max; bit++)
		if (a[bit / 8] & (0x80 >> (bit % 8)))
			return bad(err, value, "a prefix: bits behind its length are set", hint);
	inet_ntop(family, a, text, sizeof(text));
	*ret = xasprintf("%s/%" PRIu64, text, len);
	return 0;
}

int conf_check_bridge(const char *value, char **ret, Error **err)
{
	/* dev_valid_name() of Linux: no '/', ':' or white space, fewer than IFNAMSIZ bytes, not "." or ".." */
	if (!simple_word(value, LETTERS DIGITS "-_.", IFNAMSIZ - 1))
		return bad(err, value, "a bridge's name", "letters, digits, -, _ and ., 15 at most, like \"br0\"");
	return good(value, ret);
}

int conf_check_uuid(const char *value, char **ret, Error **err)
{
	sd_id128_t id;

	if (strlen(value) != 36 || sd_id128_from_string(value, &id) < 0)
		return bad(err, value, "a UUID",
			   "like \"0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11\"; leave it out to have one made");
	*ret = xcalloc(1, SD_ID128_UUID_STRING_MAX);
	sd_id128_to_uuid_string(id, *ret);
	return 0;
}

int conf_check_host_name(const char *value, char **ret, Error **err)
{
	if (!simple_word(value, LETTERS DIGITS "-_.", 253))
		return bad(err, value, "a host's name", "letters, digits, -, _ and .");
	return good(value, ret);
}

int conf_check_host_id(const char *value, char **ret, Error **err)
{
	size_t len = strlen(value);

	if (len < 1 || len > 64 || strspn(value, LETTERS DIGITS "-_.") != len)
		return bad(err, value, "a host id", "letters, digits, -, _ and ., 64 at most");
	return good(value, ret);
}

int conf_check_user(const char *value, char **ret, Error **err)
{
	/* Those of services begin with an underscore on some systems. */
	if (!simple_word(value[0] == '_' ? value + 1 : value, LETTERS DIGITS "-_.", 31))
		return bad(err, value, "a user's name", "the name of an unprivileged user, like \"nobody\"");
	if (streq(value, "root") || streq(value, "0"))
		return bad(err, value, "unprivileged", "QEMU never runs as root: name a user of its own");
	return good(value, ret);
}

int conf_check_ports(const char *value, char **ret, Error **err)
{
	static const char hint[] = "two port numbers from 1024 to 65535, the lower first, like \"49152-49215\"";
	_cleanup_free_ char *low = xstrdup(value);
	char *dash = strchr(low, '-');
	uint64_t min, max;

	if (!dash)
		return bad(err, value, "a range of ports", hint);
	*dash = '\0';
	if (text_parse_u64(low, &min) < 0 || text_parse_u64(dash + 1, &max) < 0 || min < 1024 || max > 65535 ||
	    min > max)
		return bad(err, value, "a range of ports", hint);
	return good(value, ret);
}

int conf_check_command(const char *value, char **ret, Error **err)
{
	_cleanup_strv_ char **words = NULL;

	if (strv_split_words(value, &words) < 0)
		return bad(err, value, "a command", "words separated by blanks, like \"sudo vmferry receive\"");
	return good(value, ret);
}

int conf_check_mask(const char *value, char **ret, Error **err)
{
	unsigned long long v;
	char *end;

	errno = 0;
	v = strtoull(value, &end, 0);
	if (!isdigit((unsigned char)*value) || *end || errno || v > UINT32_MAX)
		return bad(err, value, "a mask of 32 bits", "a number, like \"0xff\"");
	*ret = xasprintf("%llu", v);
	return 0;
}

int conf_check_mark(const char *value, char **ret, Error **err)
{
	uint32_t mark, mask;

	if (text_parse_mark(value, &mark, &mask) < 0)
		return bad(err, value, "a mark", "VALUE or VALUE/MASK, no bits outside the mask, like \"0x100/0xff00\"");
	*ret = xasprintf("0x%x/0x%x", mark, mask);
	return 0;
}

/* As the kernel's NF_CT_HELPER_NAME_LEN has it. */
int conf_check_helper(const char *value, char **ret, Error **err)
{
	size_t n = strlen(value);

	for (size_t i = 0; i < n; i++)
		if (value[i] <= ' ' || value[i] > '~')
			n = 0;
	if (n == 0 || n > 15)
		return bad(err, value, "a connection tracking helper", "a name like \"ftp\", or \"*\" for any");
	*ret = xstrdup(value);
	return 0;
}
