/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Starting QEMU. All it needs it gets as open fds, so that it runs as a user who may open nothing: sockets that listen
 * already, memory, taps, disks, the lock. The child writes the pid record itself, before it becomes QEMU: a keeper that
 * is killed right after fork leaves a QEMU that can be found (adopt.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/process.h"
#include "basic/text.h"
#include "command_line.h"
#include "process.h"
#include "tap.h"
#include "unprivileged.h"
#include "vm/host.h"

#define LAUNCH_FDS_MAX (10 + VM_NICS_MAX + VM_DISKS_MAX)
#define BOOT_ID_PATH "/proc/sys/kernel/random/boot_id"

typedef struct Launch {
	const QemuStart *start;
	Unprivileged who;
	SpawnFd fds[LAUNCH_FDS_MAX]; /* ours, closed at the end */
	size_t n_fds;
	char *pid_path;
	char *boot_id;
	bool ours; /* we hold DIR's lock: DIR is ours to remove */
} Launch;

static void launch_done(Launch *l)
{
	for (size_t i = 0; i < l->n_fds; i++)
		fd_close(l->fds[i].fd);
	free(l->pid_path);
	free(l->boot_id);
}
#define _cleanup_launch_ _cleanup_(launch_done)

static void launch_fd(Launch *l, int fd, int number)
{
	if (l->n_fds == LAUNCH_FDS_MAX)
		abort();
	l->fds[l->n_fds++] = (SpawnFd){.fd = fd, .number = number};
}

/* --- in the child: system calls only --- */

static char *put_text(char *p, const char *end, const char *s)
{
	while (*s && p < end)
		*p++ = *s++;
	return p;
}

static char *put_u64(char *p, const char *end, uint64_t v)
{
	char digits[21] = {0};
	size_t i = sizeof(digits) - 1;

	do
		digits[--i] = (char)('0' + v % 10);
	while ((v /= 10) > 0);
	return put_text(p, end, digits + i);
}

/* Field 22 of proc(5)'s stat, counted from the end of the name, which may contain anything. */
static uint64_t own_start_time(void)
{
	char text[1024] = {0}, *p;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	uint64_t v = 0;

	if (fd < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = '\0';
	close(fd);
	p = strrchr(text, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	for (p = p ? p + 1 : text; *p >= '0' && *p <= '9'; p++)
		v = v * 10 + (uint64_t)(*p - '0');
	return v;
}

static int write_pid_record(const Launch *l)
{
	char text[128], *end = text + sizeof(text), *p = text;
	int fd, r;

	p = put_u64(p, end, (uint64_t)getpid());
	p = put_text(p, end, " ");
	p = put_u64(p, end, own_start_time());
	p = put_text(p, end, " ");
	p = put_text(p, end, l->boot_id);
	p = put_text(p, end, "\n");
	fd = open(l->pid_path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = fd_write_all(fd, text, (size_t)(p - text));
	close(fd);
	return r;
}

static int child_prepare(void *userdata)
{
	static const struct rlimit no_core = {0};
	const Launch *l = userdata;
	int fd, r;

	r = write_pid_record(l);
	if (r < 0)
		return r;
	/* A keeper may be protected from the OOM killer; a guest is not. */
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		(void)fd_write_all(fd, "0", 1);
		close(fd);
	}
	if (setrlimit(RLIMIT_CORE, &no_core) < 0)
		return -errno;
	umask(077);
	if (l->start->lease && (r = lease_enter(l->start->lease, QEMU_FD_LEASE)) < 0)
		return r;
	return unprivileged_become(&l->who);
}

/* --- before fork --- */

static int make_dir(Launch *l, Error **err)
{
	const QemuStart *start = l->start;
	_cleanup_free_ char *parent = xstrdup(start->dir), *lock = xasprintf("%s/lock", start->dir), *boot_id = NULL;
	char *slash = strrchr(parent, '/');
	int fd, r = 0;

	if (slash && slash != parent) {
		*slash = '\0';
		r = dir_make(parent, 0711);
	}
	if (r >= 0)
		r = dir_make(start->dir, 0711);
	if (r < 0)
		return error_set(err, r, "cannot make %s: %s", start->dir, strerror(-r));
	fd = file_lock(lock);
	if (fd == -EWOULDBLOCK)
		return error_set(err, -EBUSY, "%s: a QEMU lives there already", start->dir);
	if (fd < 0)
		return error_set(err, fd, "cannot lock %s: %s", lock, strerror(-fd));
	l->ours = true;
	launch_fd(l, fd, QEMU_FD_LOCK);
	l->pid_path = xasprintf("%s/pid", start->dir);
	if (chmod(start->dir, 0711) < 0 || (unlink(l->pid_path) < 0 && errno != ENOENT))
		return error_set(err, -errno, "%s: %m", start->dir);
	r = file_read(BOOT_ID_PATH, 64, &boot_id, NULL);
	if (r < 0)
		return error_set(err, r, "cannot read " BOOT_ID_PATH ": %s", strerror(-r));
	boot_id[strcspn(boot_id, "\n")] = '\0';
	l->boot_id = TAKE_PTR(boot_id);
	return 0;
}

static int listen_on(Launch *l, const char *name, int number, Error **err)
{
	_cleanup_free_ char *path = xasprintf("%s/%s", l->start->dir, name);
	int fd = unix_listen(path, 0600);

	if (fd < 0)
		return error_set(err, fd, "cannot listen on %s: %s", path, strerror(-fd));
	launch_fd(l, fd, number);
	return 0;
}

/* An fd of the caller's, if there is one. */
static int launch_copy(Launch *l, int from, int number, const char *what, Error **err)
{
	int fd = from < 0 ? -1 : fcntl(from, F_DUPFD_CLOEXEC, 0);

	if (from < 0)
		return 0;
	if (fd < 0)
		return error_set(err, -errno, "%s: %m", what);
	launch_fd(l, fd, number);
	return 0;
}

/* Where SPICE's TLS can make its socket: a tmpfs with room for that and nothing else. */
static int give_directory(Launch *l, Error **err)
{
	_cleanup_free_ char *uid = xasprintf("%u", (unsigned int)l->who.uid);
	const char *const options[] = {"uid", uid, "mode", "0700", "size", "4096", "nr_inodes", "4", NULL};
	int fd = qemu_tmpfs_new(options);

	if (fd < 0)
		return error_set(err, fd, "graphics: SPICE's TLS needs a tmpfs, and it cannot be mounted: %s", strerror(-fd));
	launch_fd(l, fd, QEMU_FD_SPICE);
	return 0;
}

static int open_plumbing(Launch *l, Error **err)
{
	_cleanup_free_ char *path = xasprintf("%s/stderr", l->start->dir);
	int fd, r;

	r = listen_on(l, "qmp", QEMU_FD_QMP, err);
	if (r >= 0 && l->start->definition->serial != SERIAL_NONE)
		r = listen_on(l, "serial", QEMU_FD_SERIAL, err);
	if (r >= 0 && l->start->definition->agent)
		r = listen_on(l, "agent", QEMU_FD_AGENT, err);
	if (r < 0)
		return r;
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_set(err, -errno, "cannot open %s: %m", path);
	launch_fd(l, fd, STDERR_FILENO);
	r = launch_copy(l, l->start->memfd, QEMU_FD_MEMORY, "guest memory", err);
	if (r >= 0 && l->start->definition->graphics_tls)
		r = give_directory(l, err);
	if (r >= 0 && l->start->lease)
		r = launch_copy(l, lease_fd(l->start->lease), QEMU_FD_LEASE, "lease", err);
	return r;
}

/* The same file to every QEMU: opened here, by root, with the flags that the image's cache mode asks for. */
static int open_disk(const VmDisk *disk, char *const *paths, Error **err)
{
	bool direct = disk->cache == CACHE_NONE || disk->cache == CACHE_DIRECTSYNC;
	int flags = (disk->readonly ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0);
	_cleanup_fd_ int fd = open(disk->file, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0) {
		r = error_set(err, -errno, "disk %s: cannot open %s: %m", disk->id, disk->file);
		if (direct && r == -EINVAL)
			error_hint(err, "its file system may lack O_DIRECT, which cache = \"%s\" needs",
				   disk_cache_to_string(disk->cache));
		return r;
	}
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, -EINVAL, "disk %s: %s is neither a file nor a block device", disk->id,
				 disk->file);
	/* By now it may be a link to another file: who sent the VM may be able to write in that directory. */
	if (!host_path_allowed(paths, fd)) {
		error_set(err, -EPERM, "disk %s: %s leads out of the directories that disks may be in", disk->id, disk->file);
		error_hint(err, "host.conf, receive { disk-paths }");
		return -EPERM;
	}
	r = fd_nonblock(fd, false);
	return r < 0 ? error_set(err, r, "disk %s: %s", disk->id, strerror(-r)) : TAKE_FD(fd);
}

static int open_devices(Launch *l, Error **err)
{
	const VmDefinition *def = l->start->definition;
	int fd;

	if (def->n_disks > VM_DISKS_MAX || def->n_nics > VM_NICS_MAX)
		return error_set(err, -E2BIG, "more than %d disks or %d network cards", VM_DISKS_MAX, VM_NICS_MAX);
	for (size_t i = 0; i < def->n_disks; i++) {
		fd = open_disk(&def->disks[i], l->start->disk_paths, err);
		if (fd < 0)
			return fd;
		launch_fd(l, fd, QEMU_FD_DISK + (int)i);
	}
	for (size_t i = 0; i < def->n_nics; i++) {
		_cleanup_free_ char *name = NULL;

		fd = tap_new(&name, err);
		if (fd < 0) {
			error_prefix(err, "nic %s: ", def->nics[i].id);
			return fd;
		}
		launch_fd(l, fd, QEMU_FD_TAP + (int)i);
	}
	return 0;
}

/* A VM may have a hundred fds, and while they are handed over there are two of each. */
static void raise_fd_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static void start_hint(int error, const Lease *lease, Error **err)
{
	static const struct {
		int error;
		bool lease; /* from lease_enter() */
		const char *hint;
	} hints[] = {
		{-ENOENT, false, "install QEMU, or say in `binary` where it is"},
		{-EBUSY, true, "another host has the lease: the VM runs there, and its QEMU may be being changed"},
		{-ESTALE, true, "another host has taken the lease a moment ago"},
		{-ENOTCONN, true, "sanlock, which manages the lease, does not answer on this host"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(hints); i++)
		if (hints[i].error == error && (lease || !hints[i].lease))
			error_hint(err, "%s", hints[i].hint);
}

static int launch(Launch *l, QemuProcess **ret, Error **err)
{
	const QemuStart *start = l->start;
	_cleanup_qemu_process_ QemuProcess *process = xcalloc(1, sizeof(*process));
	_cleanup_strv_ char **argv = NULL;
	Spawn spawn = {.fds = l->fds, .setsid = true, .prepare = child_prepare, .userdata = l};
	int r;

	*process = (QemuProcess){.pidfd = -1, .generation = start->generation, .dir = xstrdup(start->dir)};
	r = unprivileged_look_up(start->user, &l->who, err);
	if (r >= 0)
		r = make_dir(l, err);
	if (r >= 0)
		r = open_plumbing(l, err);
	if (r >= 0)
		r = open_devices(l, err);
	if (r < 0)
		return r;
	raise_fd_limit();
	argv = qemu_command_line(start->definition, start->incoming);
	spawn.argv = argv;
	spawn.n_fds = l->n_fds;
	process->pid = process_spawn(&spawn, &process->pidfd, err);
	if (process->pid < 0) {
		start_hint((int)process->pid, start->lease, err);
		return (int)process->pid;
	}
	*ret = TAKE_PTR(process);
	return 0;
}

int qemu_process_start(const QemuStart *start, QemuProcess **ret, Error **err)
{
	_cleanup_launch_ Launch l = {.start = start};
	int r = launch(&l, ret, err);

	if (r < 0 && l.ours)
		dir_remove(start->dir);
	return r;
}
