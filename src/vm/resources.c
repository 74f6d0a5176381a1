/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <pwd.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "host.h"

/* Whether this host has what a definition needs. Nothing is changed, and nothing is kept but a promise of memory. */

#define GROUPS_MAX 256

typedef struct Need {
	const HostConf *conf;
	const VmDefinition *def;
	Error **err;
} Need;

/* The driver that ethtool names is "bridge"; sysfs may show another network namespace than ours. */
static int check_bridge(const VmNic *nic, Error **err)
{
	_cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
	struct ifreq request = {.ifr_data = (void *)&info};

	if (fd < 0)
		return error_set(err, -errno, "cannot make a socket: %m");
	memcpy(request.ifr_name, nic->bridge, strnlen(nic->bridge, IFNAMSIZ - 1));
	if (ioctl(fd, SIOCETHTOOL, &request) < 0) {
		if (errno == ENODEV) {
			error_set(err, -ENODEV, "nic %s: there is no bridge %s", nic->id, nic->bridge);
			error_hint(err, "ip link add %s type bridge, or name another one", nic->bridge);
			return -ENODEV;
		}
		if (errno != EOPNOTSUPP)
			return error_set(err, -errno, "nic %s: cannot look at %s: %m", nic->id, nic->bridge);
	}
	if (streq(info.driver, "bridge"))
		return 0;
	error_set(err, -ENODEV, "nic %s: %s is not a bridge", nic->id, nic->bridge);
	error_hint(err, "ip -d link show %s tells what it is", nic->bridge);
	return -ENODEV;
}

static int check_nics(const Need *need)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < need->def->n_nics; i++)
		r = check_bridge(&need->def->nics[i], need->err);
	return r;
}

static int check_disk(const VmDisk *disk, Error **err)
{
	static const char magic[] = "QFI\xfb";
	_cleanup_fd_ int fd =
		open(disk->file, (disk->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	char head[4] = "";
	struct stat st;
	int code;

	if (fd < 0 || fstat(fd, &st) < 0) {
		code = -errno;
		error_set(err, code, "disk %s: cannot open %s: %s", disk->id, disk->file, strerror(-code));
		error_hint(err, "a shared disk must be mounted at the same path on both hosts");
		return code;
	}
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL, "disk %s: %s is neither a file nor a block device", disk->id,
				 disk->file);
	if (disk->format != DISK_QCOW2 || (pread(fd, head, 4, 0) == 4 && memcmp(head, magic, 4) == 0))
		return 0;
	error_set(err, -EINVAL, "disk %s: %s is not a qcow2 image", disk->id, disk->file);
	error_hint(err, "format = \"raw\", or make it with qemu-img create -f qcow2");
	return -EINVAL;
}

static int check_disks(const Need *need)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < need->def->n_disks; i++)
		r = check_disk(&need->def->disks[i], need->err);
	return r;
}

/*
 * Opens a file with the rights of @user. setfsuid(2) changes them for this thread only, and drops what root may read; so
 * does setgroups(2) itself, without glibc, which would tell other threads. Our groups are not QEMU's.
 */
static int open_as(const char *user, const char *path)
{
	const struct passwd *who = geteuid() == 0 ? getpwnam(user) : NULL;
	gid_t groups[GROUPS_MAX];
	int fd, code, n = who ? getgroups(GROUPS_MAX, groups) : -1;

	if (n >= 0)
		(void)syscall(SYS_setgroups, 0, NULL);
	if (who) {
		setfsgid(who->pw_gid);
		setfsuid(who->pw_uid);
	}
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	code = fd < 0 ? -errno : fd;
	if (who) {
		setfsuid(geteuid());
		setfsgid(getegid());
	}
	if (n >= 0)
		(void)syscall(SYS_setgroups, n, groups);
	return code;
}

/* Kernel, initrd and firmware are opened by QEMU itself, as the user it runs as. */
static int check_readable(const Need *need, const char *what, const char *path)
{
	const char *user = need->conf->qemu_user;
	_cleanup_fd_ int fd = open_as(user, path);
	struct stat st;

	if (fd < 0) {
		int code = fd;

		error_set(need->err, code, "%s: user %s cannot open %s: %s", what, user, path, strerror(-code));
		error_hint(need->err, "QEMU reads it as %s, see qemu-user in host.conf", user);
		return code;
	}
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(need->err, -EINVAL, "%s: %s is not a file", what, path);
	return 0;
}

static int check_files(const Need *need)
{
	const char *tls = need->def->graphics_tls;
	_cleanup_free_ char *certificate = tls ? xasprintf("%s/server-cert.pem", tls) : NULL;
	const struct {
		const char *what, *path;
	} files[] = {
		{"kernel", need->def->kernel},
		{"initrd", need->def->initrd},
		{"firmware", need->def->firmware},
		{"graphics", certificate},
	};
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(files); i++)
		if (files[i].path)
			r = check_readable(need, files[i].what, files[i].path);
	return r;
}

static bool is_program(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static bool in_search_path(const char *name)
{
	const char *path = getenv("PATH");
	_cleanup_free_ char *copy =
		xstrdup(path ? path : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	char *save = NULL;

	for (char *dir = strtok_r(copy, ":", &save); dir; dir = strtok_r(NULL, ":", &save)) {
		_cleanup_free_ char *file = xasprintf("%s/%s", dir, name);

		if (is_program(file))
			return true;
	}
	return false;
}

static int check_program(const Need *need)
{
	const char *binary = need->def->binary;

	if (strchr(binary, '/') ? is_program(binary) : in_search_path(binary))
		return 0;
	error_set(need->err, -ENOENT, "there is no program %s", binary);
	error_hint(need->err, "install QEMU, or set binary in host.conf");
	return -ENOENT;
}

/* A figure of /proc/meminfo; 0 if it is not there. */
static uint64_t meminfo(const char *text, const char *key)
{
	for (const char *line = text; line; line = strchr(line, '\n')) {
		const char *rest;

		line += *line == '\n';
		rest = startswith(line, key);
		if (rest && *rest == ':')
			return strtoull(rest + 1, NULL, 10);
	}
	return 0;
}

HostMemory host_memory_of(const VmDefinition *def, const char *cgroup)
{
	bool huge = def->memory_backing == MEMORY_HUGE;

	return (HostMemory){.name = def->name,
			    .bytes = HOST_MEMORY_OF_A_QEMU + (huge ? 0 : def->memory),
			    .huge = huge ? def->memory : 0,
			    .cgroup = cgroup};
}

/* What is reserved is still called free: hugetlbpage.rst in the kernel's Documentation/admin-guide/mm. */
static int look_for_huge_pages(const char *info, uint64_t wanted, Error **err)
{
	uint64_t all = meminfo(info, "HugePages_Free"), reserved = meminfo(info, "HugePages_Rsvd"),
		 have = reserved < all ? (all - reserved) * meminfo(info, "Hugepagesize") << 10 : 0;

	if (wanted <= have)
		return 0;
	error_set(err, -ENOMEM, "memory: %" PRIu64 " MiB wanted, %" PRIu64 " MiB free in huge pages", wanted >> 20,
		  have >> 20);
	error_hint(err, "sysctl vm.nr_hugepages reserves more");
	return -ENOMEM;
}

/* Bytes that are available: to the host, and to the control group that it is to be in. */
static uint64_t available(const char *info, const HostMemory *need)
{
	_cleanup_free_ char *own = need->cgroup ? xstrdup(need->cgroup) : room_own_cgroup(0);
	uint64_t host = meminfo(info, "MemAvailable") << 10, here = room_cgroup(cgroup_dir(), own);

	return here < host ? here : host;
}

static int look_for_memory(const HostMemory *need, Error **err)
{
	_cleanup_free_ char *info = NULL, *whom = NULL;
	uint64_t have, promised;
	int r = file_read("/proc/meminfo", 64 * 1024, &info, NULL);

	if (r < 0)
		return error_set(err, r, "cannot read /proc/meminfo: %s", strerror(-r));
	r = look_for_huge_pages(info, need->huge, err);
	if (r < 0)
		return r;
	have = available(info, need);
	promised = room_promised(&whom);
	if (need->bytes <= have && promised <= have - need->bytes)
		return 0;
	r = need->bytes <= have ? -EAGAIN : -ENOMEM;
	error_set(err, r, "memory: %" PRIu64 " MiB wanted, %" PRIu64 " MiB available%s%s", need->bytes >> 20, have >> 20,
		  promised ? ", of which are promised: " : "", whom);
	error_hint(err, r == -EAGAIN ? "try again when they have what they were promised" : "stop or move another VM");
	return r;
}

int host_check_memory(const HostMemory *need, Room **ret, Error **err)
{
	_cleanup_(room_freep)
	Room *room = NULL;
	int r = ret ? room_open(need->name, &room, err) : 0;

	if (r >= 0)
		r = look_for_memory(need, err);
	if (r >= 0 && room)
		r = room_promise(room, need->bytes, err);
	if (r >= 0 && room)
		*ret = TAKE_PTR(room);
	return r;
}

int host_check_resources(const HostConf *conf, const VmDefinition *def, Error **err)
{
	static int (*const checks[])(const Need *) = {
		check_program, check_nics, check_disks, check_files,
	};
	const Need need = {conf, def, err};
	int r = 0;

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(checks); i++)
		r = checks[i](&need);
	return r;
}
