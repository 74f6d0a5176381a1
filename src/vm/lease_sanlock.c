/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A lease as a resource of sanlock's: sanlock(8), sanlock_resource.h. The process that becomes QEMU registers with the
 * daemon, which binds the lease to it by the connection that QEMU keeps open, and kills it when the lease cannot be
 * kept. The generation is sanlock's lver. Who had a free lease last is in the leader record on disk, and in no call.
 *
 * Two QEMUs of this host hold it together in sanlock's shared mode (sanlock_convert(), SANLK_RES_SHARED): to other
 * hosts it is held all the time, the daemon watches over both, and the second one's part costs no I/O.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sanlock.h>
#include <sanlock_admin.h>
#include <sanlock_resource.h>
#include <sanlock_rv.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "lease_driver.h"

#define LEADER_ALIGN 4096
#define LEADER_MAGIC 0x06152010
#define REMOVAL_TRIES 100 /* of 10 ms */

/* The beginning of a leader record, little endian on disk (sanlock's ondisk format, version 6). */
typedef struct Leader {
	uint32_t magic, version, flags, sector_size;
	uint64_t num_hosts, max_hosts, owner_id, owner_generation, lver;
	char space_name[SANLK_NAME_LEN], resource_name[SANLK_NAME_LEN];
	uint64_t timestamp; /* 0: free */
} Leader;

/* One disk is all a resource needs; the struct ends with a flexible array. */
typedef union Resource {
	struct sanlk_resource res;
	char room[sizeof(struct sanlk_resource) + sizeof(struct sanlk_disk)];
} Resource;

static void fill(const Lease *lease, Resource *r)
{
	memset(r, 0, sizeof(*r));
	/* 48 characters need no NUL behind them. */
	memcpy(r->res.lockspace_name, lease->lockspace, strnlen(lease->lockspace, SANLK_NAME_LEN));
	memcpy(r->res.name, lease->resource, strnlen(lease->resource, SANLK_NAME_LEN));
	snprintf(r->res.disks[0].path, SANLK_PATH_LEN, "%s", lease->path);
	r->res.disks[0].offset = lease->offset;
	r->res.num_disks = 1;
}

/* libsanlock's numbers below -200 are its own. */
static const char *why(int rv)
{
	return rv <= -200 ? sanlock_strerror(rv) : strerror(-rv);
}

static int errno_of(int rv)
{
	if (rv == SANLK_ACQUIRE_LVER)
		return -ESTALE;
	if (rv == SANLK_ACQUIRE_IDLIVE || rv == SANLK_ACQUIRE_OWNED || rv == SANLK_ACQUIRE_OTHER ||
	    rv == SANLK_ACQUIRE_OWNED_RETRY || rv == -EEXIST || rv == -EAGAIN)
		return -EBUSY;
	return rv <= -200 ? -EIO : rv;
}

static int failed(const Lease *lease, const char *what, int rv, Error **err)
{
	return error_set(err, errno_of(rv), "%s's lease %s: sanlock cannot %s %s:%s: %s", lease->vm, lease->path, what,
			 lease->lockspace, lease->resource, why(rv));
}

/* ---- what is known ---- */

/* This host's number in the lockspace, which has been joined by whoever runs the host. */
static int host_number(Lease *lease, struct sanlk_lockspace *ret, Error **err)
{
	_cleanup_free_ struct sanlk_lockspace *all = NULL;
	int n = 0, rv = sanlock_get_lockspaces(&all, &n, 0);

	if (rv < 0) {
		error_set(err, -ENOTCONN, "%s's lease: sanlock does not answer on this host: %s", lease->vm, why(rv));
		error_hint(err, "start it: systemctl start sanlock");
		return -ENOTCONN;
	}
	for (int i = 0; i < n; i++)
		if (strncmp(all[i].name, lease->lockspace, SANLK_NAME_LEN) == 0) {
			*ret = all[i];
			return 0;
		}
	error_set(err, -ENOENT, "%s's lease: this host has not joined the lockspace %s", lease->vm, lease->lockspace);
	error_hint(err, "sanlock client add_lockspace -s %s:HOSTNUMBER:PATH:0", lease->lockspace);
	return -ENOENT;
}

static bool is_ours(const Lease *lease, const Leader *leader)
{
	return leader->magic == LEADER_MAGIC && leader->version >> 16 == 6 &&
	       strncmp(leader->space_name, lease->lockspace, SANLK_NAME_LEN) == 0 &&
	       strncmp(leader->resource_name, lease->resource, SANLK_NAME_LEN) == 0;
}

/* From disk and not from a cache: the storage is other hosts' too. */
static int read_leader(const Lease *lease, Leader *ret, Error **err)
{
	_cleanup_fd_ int fd = open(lease->path, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	static char __attribute__((aligned(LEADER_ALIGN))) sector[LEADER_ALIGN];
	ssize_t n;

	if (fd < 0 && errno == EINVAL)
		fd = open(lease->path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	n = fd < 0 ? -1 : pread(fd, sector, sizeof(sector), (off_t)lease->offset);
	if (n < 0)
		return error_set(err, -errno, "%s's lease %s cannot be read: %m", lease->vm, lease->path);
	memcpy(ret, sector, sizeof(*ret));
	if (n == (ssize_t)sizeof(sector) && is_ours(lease, ret))
		return 0;
	error_set(err, -EBADMSG, "%s's lease: there is no resource %s of the lockspace %s at %s, offset %" PRIu64,
		  lease->vm, lease->resource, lease->lockspace, lease->path, lease->offset);
	error_hint(err, "sanlock client init -r %s:%s:%s:%" PRIu64, lease->lockspace, lease->resource, lease->path,
		   lease->offset);
	return -EBADMSG;
}

static int sanlock_state(Lease *lease, LeaseState *ret, Error **err)
{
	Leader leader;
	int r = read_leader(lease, &leader, err);

	if (r < 0)
		return r;
	*ret = (LeaseState){.generation = leader.lver, .held = leader.timestamp != 0, .mine = lease->held};
	if (leader.lver) {
		snprintf(ret->holder, sizeof(ret->holder), "%" PRIu64, leader.owner_id);
		snprintf(ret->name, sizeof(ret->name), "%" PRIu64 " of %.40s", leader.owner_id, lease->lockspace);
	}
	return 0;
}

/* What the daemon holds for QEMU, alone or with another one. Return: 1 ours, 0 not. */
static int held_by_qemu(const Lease *lease, uint64_t *ret_lver)
{
	_cleanup_free_ struct sanlk_resource **all = NULL;
	_cleanup_free_ char *state = NULL;
	int n = 0, found = 0, rv = sanlock_inquire(-1, lease->qemu, 0, &n, &state);

	if (rv < 0 || n == 0 || !state || sanlock_state_to_args(state, &n, &all) < 0)
		return 0;
	for (int i = 0; i < n; i++) {
		if (strncmp(all[i]->lockspace_name, lease->lockspace, SANLK_NAME_LEN) == 0 &&
		    strncmp(all[i]->name, lease->resource, SANLK_NAME_LEN) == 0) {
			if (!(all[i]->flags & SANLK_RES_SHARED)) /* no lver is told then */
				*ret_lver = all[i]->lver;
			found = 1;
		}
		free(all[i]);
	}
	return found;
}

/* ---- operations ---- */

static int sanlock_open(Lease *lease, bool create, Error **err)
{
	struct sanlk_lockspace space;
	LeaseState state;
	int r;

	(void)create; /* its place on the storage is an administrator's to give */
	r = host_number(lease, &space, err);
	if (r >= 0)
		r = sanlock_state(lease, &state, err);
	if (r >= 0)
		snprintf(lease->holder, sizeof(lease->holder), "%" PRIu64, space.host_id);
	return r;
}

static int sanlock_started(Lease *lease, Error **err)
{
	bool wanted = lease->deferred;

	lease->deferred = false;
	lease->held = held_by_qemu(lease, &lease->generation);
	return !wanted || lease->held ? 0 : failed(lease, "keep", -EIO, err);
}

static int sanlock_adopt(Lease *lease, _unused_ bool runs, Error **err)
{
	LeaseState state;
	int r = sanlock_state(lease, &state, err);

	if (r < 0)
		return r;
	if (streq(state.holder, lease->holder))
		lease->generation = state.generation;
	lease->held = held_by_qemu(lease, &lease->generation);
	return 0;
}

/* In one of these states? Whether a holder is alive only the daemon can tell, and does when it is to acquire it. */
static int look(Lease *lease, const LeaseAccept *accept, size_t n, LeaseState *ret, Error **err)
{
	int r = sanlock_state(lease, ret, err);

	if (r < 0 || lease_accepted(ret, accept, n))
		return r;
	return (ret->held ? lease_held_by : lease_was_elsewhere)(lease, ret, err);
}

/* Who has ended has it until the daemon has written that down; no call waits for it. */
static bool being_removed(const Lease *lease)
{
	static const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
	char us[LEASE_HOLDER_MAX + 1];
	Leader leader;

	(void)nanosleep(&pause, NULL);
	if (read_leader(lease, &leader, NULL) < 0)
		return false;
	snprintf(us, sizeof(us), "%" PRIu64, leader.owner_id);
	return leader.timestamp != 0 && streq(us, lease->holder);
}

/* For a process registered on @sock (-1: for QEMU), only at @lver (0: any). Return: of libsanlock. */
static int acquire_once(const Lease *lease, int sock, uint64_t lver)
{
	Resource r;

	fill(lease, &r);
	r.res.flags = SANLK_RES_LVER;
	r.res.lver = lver;
	return sanlock_acquire(sock, sock < 0 ? lease->qemu : -1, SANLK_ACQUIRE_OWNER_NOWAIT, 1,
			       (struct sanlk_resource *[]){&r.res}, NULL);
}

/* -EAGAIN also says that another host has it shared; so once more in any case, as by now it may be removed. */
static int acquire(const Lease *lease, int sock, uint64_t lver)
{
	int rv = acquire_once(lease, sock, lver);
	bool again = true;

	for (unsigned int tries = 0; rv == -EAGAIN && again && tries < REMOVAL_TRIES; tries++) {
		again = being_removed(lease);
		rv = acquire_once(lease, sock, lver);
	}
	return rv;
}

/* As @state says that it is now, for a process registered on @sock (-1: for QEMU). */
static int acquire_as(const Lease *lease, int sock, const LeaseState *state, Error **err)
{
	int rv = acquire(lease, sock, state->generation);

	if (rv >= 0)
		return 0;
	return errno_of(rv) == -EBUSY ? lease_held_by(lease, state, err) : failed(lease, "acquire", rv, err);
}

/* There is no QEMU to have it: we have it ourselves for a moment, as @state says that it is. */
static int use_up(Lease *lease, const LeaseState *state, Error **err)
{
	_cleanup_fd_ int sock = sanlock_register();
	int rv, r;

	if (sock < 0)
		return failed(lease, "register for", sock, err);
	r = acquire_as(lease, sock, state, err);
	if (r < 0)
		return r;
	rv = sanlock_release(sock, -1, SANLK_REL_ALL, 0, NULL);
	return rv < 0 ? failed(lease, "release", rv, err) : 0;
}

static int sanlock_use_up(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	LeaseState state;
	int r = look(lease, accept, n, &state, err);

	return r < 0 ? r : use_up(lease, &state, err);
}

/* It is taken by lease_enter(), at the generation known here. One that looks held is tried first. */
static int defer(Lease *lease, const LeaseState *state, Error **err)
{
	int r = state->held ? use_up(lease, state, err) : 0;

	if (r < 0)
		return r;
	lease->deferred = true;
	lease->generation = state->generation + state->held;
	return 0;
}

static int sanlock_take(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	_cleanup_error_ Error *why_not = NULL;
	LeaseState state;
	int r = look(lease, accept, n, &state, err);

	if (r < 0)
		return r;
	if (!lease->qemu)
		return defer(lease, &state, err);
	r = acquire_as(lease, -1, &state, &why_not);
	/* Who asked for it may have gone before the daemon was through. */
	lease->held = held_by_qemu(lease, &lease->generation);
	if (r < 0 && !lease->held) {
		*err = TAKE_PTR(why_not);
		return r;
	}
	return lease->held ? 0 : failed(lease, "keep", -EIO, err);
}

static int sanlock_give_back(Lease *lease, Error **err)
{
	Resource r;
	int rv;

	lease->deferred = false;
	if (!lease->held)
		return 0;
	if (lease->may_release && !lease->may_release())
		return error_set(err, -ECANCELED, "%s's lease %s stays here", lease->vm, lease->path);
	fill(lease, &r);
	rv = sanlock_release(-1, lease->qemu, 0, 1, (struct sanlk_resource *[]){&r.res});
	/* QEMU may be gone: then the daemon has seen to it. */
	if (rv < 0 && rv != -ESRCH && rv != -ENOENT)
		return failed(lease, "release", rv, err);
	lease->held = false;
	return 0;
}

/* ---- two QEMUs ---- */

/* Of what QEMU holds: to SANLK_RES_SHARED, or 0 for the only one's. Return: of libsanlock. */
static int convert(const Lease *lease, uint32_t mode)
{
	Resource r;
	int rv;

	fill(lease, &r);
	r.res.flags = mode;
	/* SANLK_CONVERT_OWNER_NOWAIT, which older headers do not have, is the same. */
	rv = sanlock_convert(-1, lease->qemu, SANLK_ACQUIRE_OWNER_NOWAIT, &r.res);
	return rv == -EALREADY ? 0 : rv;
}

static int sanlock_share(Lease *lease, pid_t qemu, Error **err)
{
	int rv = convert(lease, SANLK_RES_SHARED);
	Resource r;

	if (rv < 0)
		return failed(lease, "share", rv, err);
	fill(lease, &r);
	r.res.flags = SANLK_RES_SHARED;
	rv = sanlock_acquire(-1, qemu, SANLK_ACQUIRE_OWNER_NOWAIT, 1, (struct sanlk_resource *[]){&r.res}, NULL);
	return rv < 0 ? failed(lease, "let the new QEMU share", rv, err) : 0;
}

/* The other one's part goes first. A process whose end the daemon has seen has none any more. */
static int sanlock_own(Lease *lease, pid_t other, Error **err)
{
	Resource r;
	int rv;

	fill(lease, &r);
	if (other)
		(void)sanlock_release(-1, other, 0, 1, (struct sanlk_resource *[]){&r.res});
	rv = convert(lease, 0);
	if (rv < 0)
		return failed(lease, "hold alone again", rv, err);
	lease->held = held_by_qemu(lease, &lease->generation);
	return 0;
}

static void sanlock_ended(Lease *lease)
{
	(void)sanlock_give_back(lease, NULL);
	lease->held = false;
}

/* ---- loss, and QEMU's beginning ---- */

/*
 * The daemon kills QEMU when it cannot renew this host's place in the lockspace, or gives it up. No call says so; but
 * it lets nobody acquire anything then, not even at a generation that does not exist.
 */
static int sanlock_check(Lease *lease, Error **err)
{
	_cleanup_fd_ int sock = -1;
	struct sanlk_lockspace space;
	int r;

	if (!lease->held)
		return 0;
	r = host_number(lease, &space, err);
	if (r >= 0)
		sock = sanlock_register();
	if (sock >= 0 && acquire_once(lease, sock, UINT64_MAX) == -ENOSPC)
		r = error_set(err, -ESTALE, "%s's lease %s: sanlock has given up the lockspace %s", lease->vm,
			      lease->path, lease->lockspace);
	lease->held = r >= 0;
	return r;
}

/* In the child: by the connection that is made here the daemon knows QEMU, and whether it lives. */
static int sanlock_enter(Lease *lease, int number)
{
	int sock = sanlock_register(), rv;

	if (sock < 0)
		return -ENOTCONN;
	rv = sanlock_restrict(sock, SANLK_RESTRICT_SIGTERM);
	if (rv >= 0 && lease->deferred)
		rv = acquire(lease, sock, lease->generation);
	if (rv < 0)
		return errno_of(rv);
	return dup2(sock, number) < 0 || (sock != number && close(sock) < 0) ? -errno : 0;
}

const LeaseDriver lease_sanlock_driver = {
	.open = sanlock_open,
	.adopt = sanlock_adopt,
	.acquire = sanlock_take,
	.use_up = sanlock_use_up,
	.release = sanlock_give_back,
	.inquire = sanlock_state,
	.check = sanlock_check,
	.enter = sanlock_enter,
	.started = sanlock_started,
	.ended = sanlock_ended,
	.share = sanlock_share,
	.own = sanlock_own,
};
