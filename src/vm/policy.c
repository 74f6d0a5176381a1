/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/text.h"
#include "host.h"

/*
 * What this host takes from others: `receive {}` of host.conf. A definition that arrives has been parsed, so its values
 * have their form; here is decided whether they are wanted. Each check is a row below and refuses with the field and
 * the key of host.conf that would allow it.
 */

typedef struct Policy {
	const HostConf *conf;
	const char *peer_id, *peer_name;
	const VmDefinition *def;
	Error **err;
} Policy;

static int refuse(const Policy *p, const char *key, const char *hint, const char *fmt, ...) _printf_(4, 5);
static int refuse(const Policy *p, const char *key, const char *hint, const char *fmt, ...)
{
	_cleanup_free_ char *message = NULL;
	va_list ap;

	va_start(ap, fmt);
	message = xvasprintf(fmt, ap);
	va_end(ap);
	error_set(p->err, -EPERM, "%s: refused by %s", message, p->conf->host_name);
	error_hint(p->err, "host.conf on %s, receive { %s }: %s", p->conf->host_name, key, hint);
	return -EPERM;
}

static int check_peer(const Policy *p)
{
	char *const *peers = p->conf->receive.peers;
	_cleanup_free_ char *id = NULL, *name = NULL;

	if (!peers || strv_contains(peers, p->peer_id) || strv_contains(peers, p->peer_name))
		return 0;
	id = text_clean(p->peer_id, 64);
	name = text_clean(p->peer_name, 253);
	return refuse(p, "peers", "add its id or name", "host %s (%s)", name, id);
}

/* @prefix has been checked when host.conf was read. */
static bool in_prefix(const char *address, const char *prefix)
{
	_cleanup_free_ char *net = xstrdup(prefix);
	char *slash = strchr(net, '/');
	unsigned char a[16] = {0}, n[16] = {0};
	int family = strchr(address, ':') ? AF_INET6 : AF_INET;
	unsigned long len = strtoul(slash + 1, NULL, 10), bytes = len / 8, bits = len % 8;

	*slash = '\0';
	if (inet_pton(family, address, a) != 1 || inet_pton(family, net, n) != 1)
		return false;
	if (memcmp(a, n, bytes) != 0)
		return false;
	return bits == 0 || ((a[bytes] ^ n[bytes]) >> (8 - bits)) == 0;
}

static bool in_prefixes(const char *address, char *const *prefixes)
{
	for (size_t i = 0; prefixes[i]; i++)
		if (in_prefix(address, prefixes[i]))
			return true;
	return false;
}

static int check_addresses(const Policy *p)
{
	char *const *prefixes = p->conf->receive.prefixes;

	for (size_t i = 0; prefixes && i < p->def->n_nics; i++) {
		const VmNic *nic = &p->def->nics[i];

		for (size_t j = 0; nic->addresses && nic->addresses[j]; j++)
			if (!in_prefixes(nic->addresses[j], prefixes))
				return refuse(p, "prefixes", "add its network", "nic %s: address %s", nic->id,
					      nic->addresses[j]);
	}
	return 0;
}

static int check_bridges(const Policy *p)
{
	char *const *bridges = p->conf->receive.bridges;

	for (size_t i = 0; bridges && i < p->def->n_nics; i++) {
		const VmNic *nic = &p->def->nics[i];

		if (!strv_contains(bridges, nic->bridge))
			return refuse(p, "bridges", "add it, or move with --to-definition", "nic %s: bridge %s",
				      nic->id, nic->bridge);
	}
	return 0;
}

static bool has_dotdot(const char *path)
{
	for (const char *p = path; (p = strstr(p, "..")); p += 2)
		if ((p == path || p[-1] == '/') && (p[2] == '/' || p[2] == '\0'))
			return true;
	return false;
}

/* Where a file really is, through all links; for one that is not there, where it would be. NULL: no telling. */
static char *real_path(const char *path)
{
	_cleanup_free_ char *whole = realpath(path, NULL), *dir = NULL, *real = NULL;
	struct stat st;
	char *slash;

	/* A link that leads nowhere today may lead out tomorrow. */
	if (whole || errno != ENOENT || lstat(path, &st) == 0)
		return TAKE_PTR(whole);
	dir = xstrdup(path);
	slash = strrchr(dir, '/');
	*slash = '\0';
	real = realpath(slash == dir ? "/" : dir, NULL);
	return real ? xasprintf("%s/%s", streq(real, "/") ? "" : real, slash + 1) : NULL;
}

static bool below(const char *path, const char *directory)
{
	_cleanup_free_ char *real = realpath(directory, NULL);
	const char *rest = real ? startswith(path, real) : NULL;

	return rest && (streq(real, "/") || *rest == '/');
}

bool host_path_allowed(char *const *dirs, int fd)
{
	_cleanup_free_ char *link = xasprintf("/proc/self/fd/%d", fd);
	char real[PATH_MAX];
	ssize_t n = dirs ? readlink(link, real, sizeof(real) - 1) : 0;

	real[n > 0 ? n : 0] = '\0';
	for (size_t i = 0; dirs && dirs[i]; i++)
		if (below(real, dirs[i]))
			return true;
	return !dirs;
}

static int check_path(const Policy *p, const char *what, const char *path)
{
	char *const *dirs = p->conf->receive.disk_paths;
	_cleanup_free_ char *real = NULL, *clean = text_clean(path, 200);

	if (!dirs)
		return 0;
	real = has_dotdot(path) ? NULL : real_path(path);
	for (size_t i = 0; real && dirs[i]; i++)
		if (below(real, dirs[i]))
			return 0;
	return refuse(p, "disk-paths", "add its directory; paths with .. and links that lead out are refused", "%s: %s",
		      what, clean);
}

static int check_paths(const Policy *p)
{
	const struct {
		const char *what, *path;
	} paths[] = {
		{"kernel", p->def->kernel},
		{"initrd", p->def->initrd},
		{"firmware", p->def->firmware},
		{"lease", p->def->lease_path},
		{"graphics: tls-directory", p->def->graphics_tls},
	};
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->def->n_disks; i++) {
		_cleanup_free_ char *what = xasprintf("disk %s: file", p->def->disks[i].id);

		r = check_path(p, what, p->def->disks[i].file);
	}
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(paths); i++)
		if (paths[i].path)
			r = check_path(p, paths[i].what, paths[i].path);
	return r;
}

static int check_binary(const Policy *p)
{
	const char *binary = p->def->binary;

	if (streq(binary, VM_BINARY_DEFAULT) || streq_null(binary, p->conf->binary) ||
	    strv_contains(p->conf->receive.binaries, binary))
		return 0;
	return refuse(p, "binaries", "add it", "binary %s", binary);
}

static int check_qemu_args(const Policy *p)
{
	if (!p->def->qemu_args || p->conf->receive.qemu_args)
		return 0;
	return refuse(p, "qemu-args", "true lets definitions bring any option of QEMU", "qemu-args");
}

static int check_memory(const Policy *p)
{
	uint64_t max = p->conf->receive.max_memory;

	if (max == 0 || p->def->memory <= max)
		return 0;
	return refuse(p, "max-memory", "raise it", "memory %" PRIu64 " MiB, more than %" PRIu64 " MiB",
		      p->def->memory >> 20, max >> 20);
}

int host_policy_check(const HostConf *conf, const char *peer_id, const char *peer_name, const VmDefinition *def,
		      Error **err)
{
	static int (*const checks[])(const Policy *) = {
		check_peer, check_addresses, check_bridges, check_paths, check_binary, check_qemu_args, check_memory,
	};
	const Policy p = {conf, peer_id, peer_name, def, err};
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(checks); i++)
		r = checks[i](&p);
	return r;
}
