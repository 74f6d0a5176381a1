/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A lease as a file that all hosts see: a lock, and a record of who has it.
 *
 * The lock is one of an open file description (fcntl(2), F_OFD_SETLK; NFS, GFS2, OCFS2 and CephFS carry it between
 * hosts). QEMU inherits the description, so it is held for as long as QEMU lives; a keeper that comes back gets it from
 * there.
 *
 * The record stands in one of two slots, in turn, each with a sequence number and a CRC: whatever byte a crash stops
 * at, one of them is whole. It is written by who holds the lock alone: after taking the lock, before giving it back. A
 * lock that is free means a lease that is free, whatever the record says: its holder died.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/crc32.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"
#include "lease_driver.h"

#define SLOTS 2
#define SLOT_APART 4096 /* in blocks of their own: a torn write of one leaves the other */
#define SLOT_SIZE 512
#define MAGIC "vmferry-lease1 "
#define LOOK_SECONDS 5 /* inotify(7) does not see what other hosts do */

typedef struct Record {
	uint64_t seq; /* 0: no record yet */
	uint64_t generation;
	uint64_t since;
	bool held;
	char vm[37]; /* uuid */
	char holder[LEASE_HOLDER_MAX + 1], name[LEASE_HOLDER_MAX + 1];
} Record;

/* ---- the record ---- */

/* "vmferry-lease1 CRC seq=... generation=... held=... since=... vm=... holder=... name=...\n", then zeros. */
static int slot_text(const Record *r, char *slot)
{
	_cleanup_free_ char *body =
		xasprintf("seq=%" PRIu64 " generation=%" PRIu64 " held=%d since=%" PRIu64 " vm=%s holder=%s name=%s",
			  r->seq, r->generation, r->held, r->since, r->vm, r->holder, r->name);
	int n;

	memset(slot, 0, SLOT_SIZE);
	n = snprintf(slot, SLOT_SIZE, MAGIC "%08" PRIx32 " %s\n", crc32_add(0, body, strlen(body)), body);
	return n < SLOT_SIZE ? 0 : -ENAMETOOLONG;
}

static bool slot_parse(char *slot, Record *ret)
{
	const size_t magic = strlen(MAGIC);
	Record r = {};
	uint32_t crc;
	int held;
	char *end, *body;

	slot[SLOT_SIZE - 1] = '\0';
	end = strchr(slot, '\n');
	if (!end || !startswith(slot, MAGIC) || sscanf(slot + magic, "%8" SCNx32, &crc) != 1 || slot[magic + 8] != ' ')
		return false;
	*end = '\0';
	body = slot + magic + 9;
	if (crc32_add(0, body, strlen(body)) != crc ||
	    sscanf(body,
		   "seq=%" SCNu64 " generation=%" SCNu64 " held=%d since=%" SCNu64 " vm=%36s holder=%64s name=%64s",
		   &r.seq, &r.generation, &held, &r.since, r.vm, r.holder, r.name) != 7)
		return false;
	r.held = held;
	*ret = r;
	/* Both will be counted up. */
	return r.seq > 0 && r.seq < UINT64_MAX && r.generation > 0 && r.generation < UINT64_MAX;
}

static int not_a_lease(const Lease *lease, const char *what, Error **err)
{
	error_set(err, -EBADMSG, "%s's lease %s %s", lease->vm, lease->path, what);
	error_hint(err, "make sure that the VM runs on no host, then remove the file");
	return -EBADMSG;
}

/* The beginning of a record and nothing behind it: the first one ever, which a crash cut off. */
static bool is_torn(const char *slot)
{
	static const char zeros[SLOT_SIZE];
	size_t len = strnlen(slot, SLOT_SIZE), magic = strlen(MAGIC);

	return len > 0 && strncmp(slot, MAGIC, len < magic ? len : magic) == 0 &&
	       memcmp(slot + len, zeros, SLOT_SIZE - len) == 0;
}

/* The newest whole record. One damaged slot is a write that a crash cut off. */
static int read_record(const Lease *lease, Record *ret, Error **err)
{
	static const char zeros[SLOT_SIZE];
	Record newest = {};
	size_t bad = 0, torn = 0, whole = 0;

	for (size_t i = 0; i < SLOTS; i++) {
		char slot[SLOT_SIZE] = {};
		ssize_t n = pread(lease->fd, slot, SLOT_SIZE, (off_t)(i * SLOT_APART));
		Record r;

		if (n < 0)
			return error_set(err, -errno, "%s's lease %s cannot be read: %m", lease->vm, lease->path);
		if (memcmp(slot, zeros, SLOT_SIZE) == 0)
			continue;
		torn += is_torn(slot);
		if (!slot_parse(slot, &r)) {
			bad++;
			continue;
		}
		whole++;
		if (r.seq > newest.seq)
			newest = r;
	}
	/* Another file that somebody has named by mistake is left alone. */
	if (bad == SLOTS || (bad > torn && whole == 0))
		return not_a_lease(lease, "is damaged, or no lease", err);
	*ret = newest;
	return 0;
}

static int write_record(Lease *lease, const Record *old, bool held, uint64_t generation, Error **err)
{
	Record r = {.seq = old->seq + 1,
		    .generation = generation,
		    .held = held,
		    .since = clock_usec(CLOCK_REALTIME) / USEC_PER_SEC};
	char slot[SLOT_SIZE];
	ssize_t n;
	int code;

	snprintf(r.vm, sizeof(r.vm), "%s", lease->uuid);
	snprintf(r.holder, sizeof(r.holder), "%s", lease->host_id);
	snprintf(r.name, sizeof(r.name), "%s", lease->host_name);
	code = slot_text(&r, slot);
	if (code == 0) {
		n = pwrite(lease->fd, slot, SLOT_SIZE, (off_t)(r.seq % SLOTS * SLOT_APART));
		code = n < 0 ? -errno : n != SLOT_SIZE ? -EIO : fdatasync(lease->fd) < 0 ? -errno : 0;
	}
	return code < 0 ? error_set(err, code, "%s's lease %s cannot be written: %s", lease->vm, lease->path,
				    strerror(-code))
			: 0;
}

static LeaseState state_of(const Record *r)
{
	LeaseState state = {.held = r->held, .generation = r->generation, .since = r->since};
	_cleanup_free_ char *holder = text_clean(r->holder, LEASE_HOLDER_MAX);
	_cleanup_free_ char *name = text_clean(r->name, LEASE_HOLDER_MAX);

	memcpy(state.holder, holder, strlen(holder) + 1);
	memcpy(state.name, name, strlen(name) + 1);
	return state;
}

static bool is_mine(const Lease *lease, const Record *r)
{
	return r->held && streq(r->holder, lease->host_id) && streq(r->vm, lease->uuid);
}

/* ---- the lock ---- */

static int lock(const Lease *lease, int command, short type, bool *ret_conflict)
{
	struct flock fl = {.l_type = type, .l_whence = SEEK_SET};

	if (fcntl(lease->fd, command, &fl) < 0)
		return errno == EACCES ? -EAGAIN : -errno;
	if (ret_conflict)
		*ret_conflict = fl.l_type != F_UNLCK;
	return 0;
}

static void unlock(const Lease *lease)
{
	(void)lock(lease, F_OFD_SETLK, F_UNLCK, NULL);
}

/* ---- operations ---- */

static int watch(Lease *lease)
{
	struct itimerspec every = {.it_interval.tv_sec = LOOK_SECONDS, .it_value.tv_sec = LOOK_SECONDS};
	struct epoll_event readable = {.events = EPOLLIN};
	char self[32];

	snprintf(self, sizeof(self), "/proc/self/fd/%d", lease->fd);
	lease->watch_fd = epoll_create1(EPOLL_CLOEXEC);
	lease->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	lease->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (lease->watch_fd < 0 || lease->inotify_fd < 0 || lease->timer_fd < 0 ||
	    inotify_add_watch(lease->inotify_fd, self, IN_MODIFY | IN_ATTRIB | IN_MOVE_SELF) < 0 ||
	    timerfd_settime(lease->timer_fd, 0, &every, NULL) < 0 ||
	    epoll_ctl(lease->watch_fd, EPOLL_CTL_ADD, lease->inotify_fd, &readable) < 0 ||
	    epoll_ctl(lease->watch_fd, EPOLL_CTL_ADD, lease->timer_fd, &readable) < 0)
		return -errno;
	return 0;
}

static int open_path(const Lease *lease, bool create, Error **err)
{
	const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK;
	int fd = open(lease->path, flags | (create ? O_CREAT : 0), 0600), code = -errno;
	struct stat st;

	if (fd < 0) {
		error_set(err, code, "%s's lease %s: %s", lease->vm, lease->path, strerror(-code));
		error_hint(err, "it lies on storage that all hosts of the VM mount at the same place");
		return code;
	}
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		return fd;
	fd_close(fd);
	return error_set(err, -EINVAL, "%s's lease %s is not a file", lease->vm, lease->path);
}

/* Two VMs, or one that got a uuid of its own on each host. */
static int anothers(const Lease *lease, const Record *record, Error **err)
{
	LeaseState state = state_of(record);
	bool others = false;

	if (lock(lease, F_OFD_GETLK, F_WRLCK, &others) >= 0 && others)
		return lease_held_by(lease, &state, err);
	error_set(err, -EPERM, "%s's lease %s belongs to another VM (uuid %s)", lease->vm, lease->path, record->vm);
	error_hint(err, "each VM has a lease of its own; if it is the same VM, give its definition that uuid");
	return -EPERM;
}

static int file_open(Lease *lease, bool create, Error **err)
{
	Record record;
	int r;

	snprintf(lease->holder, sizeof(lease->holder), "%s", lease->host_id);
	if (lease->fd < 0) {
		lease->fd = open_path(lease, create, err);
		if (lease->fd < 0)
			return lease->fd;
	}
	r = read_record(lease, &record, err);
	if (r >= 0 && record.seq && !streq(record.vm, lease->uuid))
		r = anothers(lease, &record, err);
	if (r < 0)
		return r;
	r = watch(lease);
	return r < 0 ? error_set(err, r, "%s's lease %s cannot be watched: %s", lease->vm, lease->path, strerror(-r))
		     : 0;
}

/*
 * The keeper before us may have died between the lock and the record, or between the record and the lock's end. That end
 * had been called off if the guest runs: the lock is all that keeps others away then.
 */
static int file_adopt(Lease *lease, bool runs, Error **err)
{
	bool ours;
	Record record;
	int r = read_record(lease, &record, err);

	if (r < 0)
		return r;
	ours = streq(record.holder, lease->host_id);
	if (ours)
		lease->generation = record.generation;
	lease->held = is_mine(lease, &record);
	if (!lease->held && !(ours && runs))
		unlock(lease);
	return 0;
}

/*
 * Our lock has held others off all the time, whatever the record says. It says that the lease was given back if who
 * wanted to do that was stopped in the middle.
 */
static int file_reclaim(Lease *lease, Error **err)
{
	Record record;
	int r;

	lease->held = false;
	r = read_record(lease, &record, err);
	if (r < 0)
		return r;
	if (!streq(record.holder, lease->host_id) || record.generation != lease->generation)
		return error_set(err, -ESTALE, "%s's lease %s was taken by another host", lease->vm, lease->path);
	r = lock(lease, F_OFD_SETLK, F_WRLCK, NULL);
	if (r < 0)
		return error_set(err, r, "%s's lease %s: the lock is lost: %s", lease->vm, lease->path, strerror(-r));
	r = record.held ? 0 : write_record(lease, &record, true, record.generation, err);
	lease->held = r >= 0;
	return r;
}

/* What is at the path is what we have open. */
static int same_file(const Lease *lease, Error **err)
{
	struct stat mine, there;

	if (stat(lease->path, &there) < 0)
		return error_set(err, -errno, "%s's lease %s: %m", lease->vm, lease->path);
	if (fstat(lease->fd, &mine) == 0 && mine.st_dev == there.st_dev && mine.st_ino == there.st_ino)
		return 0;
	error_set(err, -ESTALE, "%s's lease %s was replaced by another file", lease->vm, lease->path);
	error_hint(err, "make sure that the VM runs nowhere else; then stop it and start it again");
	return -ESTALE;
}

/* The record, of the file that is at the path. */
static int current_record(const Lease *lease, Record *record, LeaseState *state, Error **err)
{
	int r = same_file(lease, err);

	if (r >= 0)
		r = read_record(lease, record, err);
	if (r >= 0)
		*state = state_of(record);
	return r;
}

static int take(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	LeaseState state;
	Record record;
	int r = current_record(lease, &record, &state, err);

	if (r < 0)
		return r;
	if (!lease_accepted(&state, accept, n))
		return lease_was_elsewhere(lease, &state, err);
	r = write_record(lease, &record, true, record.generation + 1, err);
	if (r >= 0)
		lease->generation = record.generation + 1;
	return r;
}

static int file_acquire(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	LeaseState state = {};
	int r;

	r = lock(lease, F_OFD_SETLK, F_WRLCK, NULL);
	if (r == -EAGAIN) {
		Record record = {};

		if (read_record(lease, &record, NULL) >= 0)
			state = state_of(&record);
		return lease_held_by(lease, &state, err);
	}
	if (r < 0)
		return error_set(err, r, "%s's lease %s cannot be locked: %s", lease->vm, lease->path, strerror(-r));
	r = take(lease, accept, n, err);
	if (r < 0)
		unlock(lease);
	lease->held = r >= 0;
	return r;
}

static int file_release(Lease *lease, Error **err)
{
	Record record;
	int r;

	if (lease->held) {
		r = lease_check(lease, err);
		if (r >= 0)
			r = read_record(lease, &record, err);
		if (r >= 0)
			r = write_record(lease, &record, false, record.generation, err);
		if (r >= 0 && lease->may_release && !lease->may_release())
			r = error_set(err, -ECANCELED, "%s's lease %s stays here", lease->vm, lease->path);
		if (r < 0)
			return r;
	}
	lease->held = false;
	unlock(lease);
	return 0;
}

static int file_inquire(Lease *lease, LeaseState *ret, Error **err)
{
	bool others = false;
	Record record;
	int r;

	r = read_record(lease, &record, err);
	if (r < 0)
		return r;
	r = lock(lease, F_OFD_GETLK, F_WRLCK, &others);
	if (r < 0)
		return error_set(err, r, "%s's lease %s: %s", lease->vm, lease->path, strerror(-r));
	*ret = state_of(&record);
	ret->mine = lease->held && is_mine(lease, &record);
	ret->held = ret->mine || others;
	return 0;
}

static void drain(int fd)
{
	char bytes[4096];

	while (read(fd, bytes, sizeof(bytes)) > 0)
		;
}

static int still_mine(const Lease *lease, Error **err)
{
	Record record;
	LeaseState state;
	int r = current_record(lease, &record, &state, err);

	if (r < 0)
		return r;
	if (!is_mine(lease, &record) || record.generation != lease->generation)
		return error_set(err, -ESTALE, "%s's lease %s was taken by host %s", lease->vm, lease->path,
				 state.name);
	/* Taking what one has changes nothing. */
	r = lock(lease, F_OFD_SETLK, F_WRLCK, NULL);
	return r < 0 ? error_set(err, r, "%s's lease %s: the lock is lost: %s", lease->vm, lease->path, strerror(-r))
		     : 0;
}

static int file_check(Lease *lease, Error **err)
{
	int r;

	drain(lease->inotify_fd);
	drain(lease->timer_fd);
	if (!lease->held)
		return 0;
	r = still_mine(lease, err);
	lease->held = r >= 0;
	return r;
}

const LeaseDriver lease_file_driver = {
	.open = file_open,
	.adopt = file_adopt,
	.reclaim = file_reclaim,
	.acquire = file_acquire,
	.release = file_release,
	.inquire = file_inquire,
	.check = file_check,
};
