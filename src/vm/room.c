/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "room.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/file.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"

#define MIB_SHIFT 20
#define FIGURE_MAX (64 * 1024)
#define LENGTH_MAX ((off_t)1 << 50)
#define NAMED_MAX 4

struct Room {
	int host, fd;	/* the runtime directory, locked while someone looks; and the VM's in it */
	uint64_t bytes; /* promised */
	off_t mib;	/* of them not yet in use */
};

static int open_directory(int at, const char *path)
{
	int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static int set(const Room *room, short type, off_t begin, off_t len)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = begin, .l_len = len};

	return fcntl(room->fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int room_open(const char *name, Room **ret, Error **err)
{
	_cleanup_(room_freep)
	Room *room = xcalloc(1, sizeof(*room));
	int r;

	room->fd = -1;
	room->host = open(runtime_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = room->host < 0 || flock(room->host, LOCK_EX) < 0 ? -errno : 0;
	if (r == 0)
		r = room->fd = open_directory(room->host, name);
	if (r < 0)
		return error_set(err, r, "cannot lock %s/%s: %s", runtime_dir(), name, strerror(-r));
	*ret = TAKE_PTR(room);
	return 0;
}

int room_promise(Room *room, uint64_t bytes, Error **err)
{
	int r;

	room->bytes = bytes;
	room->mib = (off_t)((bytes >> MIB_SHIFT) + (bytes % ((uint64_t)1 << MIB_SHIFT) > 0));
	r = room->mib ? set(room, F_RDLCK, 0, room->mib) : 0;
	room->host = fd_close(room->host);
	return r < 0 ? error_set(err, r, "cannot promise memory: %s", strerror(-r)) : 0;
}

void room_used(Room *room, uint64_t bytes)
{
	off_t left;

	if (!room)
		return;
	left = bytes < room->bytes ? (off_t)((room->bytes - bytes) >> MIB_SHIFT) : 0;
	if (left >= room->mib)
		return;
	(void)set(room, F_UNLCK, left, room->mib - left);
	room->mib = left;
}

void room_free(Room *room)
{
	if (!room)
		return;
	fd_close(room->fd);
	fd_close(room->host);
	free(room);
}

/* A read lock is seen by who would write. */
static uint64_t promised_to(int host, const char *name)
{
	_cleanup_fd_ int fd = open_directory(host, name);
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = LENGTH_MAX};

	if (fd < 0 || fcntl(fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK || lock.l_len <= 0)
		return 0;
	return (uint64_t)(lock.l_len < LENGTH_MAX ? lock.l_len : LENGTH_MAX) << MIB_SHIFT;
}

static void name_one(char **whom, size_t n, const char *name, uint64_t bytes)
{
	_cleanup_free_ char *before = *whom;

	if (n < NAMED_MAX)
		*whom = xasprintf("%s%s%s %" PRIu64 " MiB", before, n ? ", " : "", name, bytes >> MIB_SHIFT);
	else if (n == NAMED_MAX)
		*whom = xasprintf("%s and others", before);
	else
		*whom = TAKE_PTR(before);
}

uint64_t room_promised(char **ret_whom)
{
	DIR *dir = opendir(runtime_dir());
	uint64_t sum = 0, bytes;
	struct dirent *entry;
	size_t n = 0;

	*ret_whom = xstrdup("");
	while (dir && (entry = readdir(dir)))
		if (vm_name_valid(entry->d_name) && (bytes = promised_to(dirfd(dir), entry->d_name)) > 0) {
			name_one(ret_whom, n++, entry->d_name, bytes);
			sum += bytes;
		}
	if (dir)
		closedir(dir);
	return sum;
}

/* ---- control groups ---- */

static bool read_figure(const char *dir, const char *file, const char *key, uint64_t *ret)
{
	_cleanup_free_ char *path = xasprintf("%s/%s", dir, file), *text = NULL;
	const char *at;

	if (file_read(path, FIGURE_MAX, &text, NULL) < 0)
		return false;
	at = *key ? strstr(text, key) : text;
	if (!at || (at != text && at[-1] != '\n'))
		return false;
	at += strlen(key);
	((char *)(uintptr_t)at)[strcspn(at, "\n")] = '\0';
	return text_parse_u64(at, ret) == 0; /* "max" is none */
}

static uint64_t room_in(const char *dir)
{
	uint64_t max, used = 0, cache = 0;

	if (!read_figure(dir, "memory.max", "", &max))
		return UINT64_MAX;
	(void)read_figure(dir, "memory.current", "", &used);
	(void)read_figure(dir, "memory.stat", "inactive_file ", &cache);
	used -= cache < used ? cache : used;
	return used < max ? max - used : 0;
}

char *room_own_cgroup(pid_t pid)
{
	_cleanup_free_ char *file = pid ? xasprintf("/proc/%d/cgroup", (int)pid) : xstrdup("/proc/self/cgroup"),
			    *text = NULL;
	const char *line, *path;

	if (file_read(file, FIGURE_MAX, &text, NULL) < 0)
		return NULL;
	line = startswith(text, "0::") ? text : strstr(text, "\n0::");
	path = line ? strchr(line, '/') : NULL;
	return path ? xasprintf("%.*s", (int)strcspn(path, "\n"), path) : NULL;
}

uint64_t room_cgroup(const char *root, const char *path)
{
	_cleanup_free_ char *dir = path ? xasprintf("%s%s", root, path) : NULL;
	uint64_t room = UINT64_MAX;

	while (dir) {
		uint64_t here = room_in(dir);

		room = here < room ? here : room;
		if (strlen(dir) <= strlen(root))
			break;
		*strrchr(dir, '/') = '\0';
	}
	return room;
}
