/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "room.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"

#define MIB_SHIFT 20
#define FIGURE_MAX (64 * 1024)

struct Room {
	int fd;
	off_t begin, mib;
};

static int open_runtime(void)
{
	int fd = open(runtime_dir(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* Locks of others in [from, to); fcntl(2): a read lock is seen by who would write. */
static bool find(int fd, off_t from, off_t to, struct flock *ret)
{
	*ret = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = from, .l_len = to - from};
	return from < to && fcntl(fd, F_OFD_GETLK, ret) == 0 && ret->l_type != F_UNLCK;
}

/* The kernel names one lock, not the first one. */
static off_t locked(int fd, off_t from, off_t to)
{
	struct flock lock;
	off_t begin, end;

	if (!find(fd, from, to, &lock))
		return 0;
	begin = lock.l_start > from ? lock.l_start : from;
	end = lock.l_len && lock.l_start + lock.l_len < to ? lock.l_start + lock.l_len : to;
	return end - begin + locked(fd, from, begin) + locked(fd, end, to);
}

static int set(const Room *room, short type, off_t begin, off_t len)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = begin, .l_len = len};

	return fcntl(room->fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int room_open(Room **ret, Error **err)
{
	_cleanup_(room_freep)
	Room *room = xcalloc(1, sizeof(*room));
	int r;

	room->fd = open_runtime();
	r = room->fd < 0 ? room->fd : flock(room->fd, LOCK_EX) < 0 ? -errno : 0;
	if (r < 0)
		return error_set(err, r, "cannot lock %s: %s", runtime_dir(), strerror(-r));
	*ret = TAKE_PTR(room);
	return 0;
}

int room_promise(Room *room, uint64_t bytes, Error **err)
{
	struct flock other;
	int r;

	room->mib = (off_t)(bytes >> MIB_SHIFT);
	while (room->mib && find(room->fd, room->begin, room->begin + room->mib, &other))
		room->begin = other.l_start + other.l_len;
	r = room->mib ? set(room, F_RDLCK, room->begin, room->mib) : 0;
	if (r < 0)
		return error_set(err, r, "cannot lock %s: %s", runtime_dir(), strerror(-r));
	(void)flock(room->fd, LOCK_UN);
	return 0;
}

void room_left(Room *room, uint64_t bytes)
{
	off_t left = (off_t)(bytes >> MIB_SHIFT);

	if (!room || left >= room->mib)
		return;
	(void)set(room, F_UNLCK, room->begin + left, room->mib - left);
	room->mib = left;
}

void room_free(Room *room)
{
	if (!room)
		return;
	fd_close(room->fd);
	free(room);
}

uint64_t room_promised(void)
{
	_cleanup_fd_ int fd = open_runtime();

	return fd < 0 ? 0 : (uint64_t)locked(fd, 0, (off_t)1 << 50) << MIB_SHIFT;
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

uint64_t room_cgroup(const char *root, const char *self)
{
	const char *line = startswith(self, "0::") ? self : strstr(self, "\n0::");
	_cleanup_free_ char *path = NULL;
	uint64_t room = UINT64_MAX;

	if (!line)
		return room;
	line = strchr(line, '/');
	path = xasprintf("%s%.*s", root, line ? (int)strcspn(line, "\n") : 0, line ? line : "");
	for (;;) {
		uint64_t here = room_in(path);

		room = here < room ? here : room;
		if (strlen(path) <= strlen(root))
			return room;
		*strrchr(path, '/') = '\0';
	}
}
