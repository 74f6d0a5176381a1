/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What all leases have in common: a table of drivers, and the words for who holds one. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "lease_driver.h"

static const LeaseDriver *const drivers[_LEASE_MAX] = {
	[LEASE_FILE] = &lease_file_driver,
#ifdef HAVE_SANLOCK
	[LEASE_SANLOCK] = &lease_sanlock_driver,
#endif
};

bool lease_available(LeaseType type)
{
	return type < _LEASE_MAX && drivers[type];
}

bool lease_accepted(const LeaseState *state, const LeaseAccept *accept, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((!accept[i].holder || streq(accept[i].holder, state->holder)) &&
		    (!accept[i].generation || accept[i].generation == state->generation))
			return true;
	return n == 0;
}

/* " since 2026-11-21 10:50:00" */
static char *since_text(const LeaseState *state)
{
	time_t when = (time_t)state->since;
	struct tm tm;
	char text[32];

	if (!state->since || !localtime_r(&when, &tm) || strftime(text, sizeof(text), "%F %T", &tm) == 0)
		return xstrdup("");
	return xasprintf(" since %s", text);
}

static const char *who(const LeaseState *state)
{
	return state->name[0] ? state->name : state->holder[0] ? state->holder : "(unknown)";
}

int lease_held_by(const Lease *lease, const LeaseState *state, Error **err)
{
	_cleanup_free_ char *since = since_text(state);

	error_set(err, -EBUSY, "%s's lease %s is held by host %s%s", lease->vm, lease->path, who(state), since);
	error_hint(err, "it runs there: see vmferry list on %s", who(state));
	return -EBUSY;
}

int lease_was_elsewhere(const Lease *lease, const LeaseState *state, Error **err)
{
	_cleanup_free_ char *since = since_text(state);

	if (!state->generation)
		return error_set(err, -ESTALE, "%s's lease %s has never been anybody's", lease->vm, lease->path);
	error_set(err, -ESTALE, "%s's lease %s was host %s's, and is free%s (generation %" PRIu64 ")", lease->vm,
		  lease->path, who(state), since, state->generation);
	error_hint(err, "the guest may have run on %s in between: what is in memory here may be out of date",
		   who(state));
	return -ESTALE;
}

void lease_free(Lease *lease)
{
	if (!lease)
		return;
	fd_close(lease->fd);
	fd_close(lease->watch_fd);
	fd_close(lease->inotify_fd);
	fd_close(lease->timer_fd);
	free(lease->vm);
	free(lease->uuid);
	free(lease->path);
	free(lease->host_id);
	free(lease->host_name);
	free(lease->lockspace);
	free(lease->resource);
	free(lease);
}

int lease_new(const LeaseOptions *options, Lease **ret, Error **err)
{
	const VmDefinition *def = options->definition;
	Lease *lease;

	if (!lease_available(def->lease)) {
		fd_close(options->fd);
		error_set(err, -ENOTSUP, "a lease of the driver \"%s\" is not known to this build of vmferry",
			  lease_type_to_string(def->lease));
		error_hint(err, "build it with libsanlock, or use lease file");
		return -ENOTSUP;
	}
	lease = xcalloc(1, sizeof(*lease));
	*lease = (Lease){.driver = drivers[def->lease],
			 .fd = options->fd,
			 .watch_fd = -1,
			 .inotify_fd = -1,
			 .timer_fd = -1,
			 .vm = xstrdup(def->name),
			 .uuid = xstrdup(def->uuid),
			 .path = xstrdup(def->lease_path),
			 .host_id = xstrdup(options->host_id),
			 .host_name = xstrdup(options->host_name),
			 .lockspace = xstrdup(def->lease_lockspace),
			 .resource = xstrdup(def->lease_resource ? def->lease_resource : def->name),
			 .offset = def->lease_offset,
			 .may_release = options->may_release,
			 .qemu = options->qemu};
	if (lease->driver->enter)
		lease->fd = fd_close(lease->fd); /* QEMU's connection, and open as long as anybody has it */
	*ret = lease;
	return 0;
}

int lease_begin(Lease *lease, bool create, bool runs, Error **err)
{
	int r = lease->driver->open(lease, create, err);

	if (r < 0 || !lease->qemu)
		return r;
	if (lease->held && lease->driver->reclaim)
		return lease->driver->reclaim(lease, err);
	return lease->driver->adopt(lease, runs, err);
}

int lease_open(const LeaseOptions *options, Lease **ret, Error **err)
{
	_cleanup_(lease_freep)
	Lease *lease = NULL;
	int r = lease_new(options, &lease, err);

	if (r >= 0)
		r = lease_begin(lease, options->create, false, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(lease);
	return 0;
}

LeaseView lease_view(const Lease *lease)
{
	LeaseView view = {.held = lease->held, .deferred = lease->deferred, .generation = lease->generation};

	memcpy(view.holder, lease->holder, sizeof(view.holder));
	return view;
}

void lease_set_view(Lease *lease, const LeaseView *view)
{
	lease->held = view->held;
	lease->deferred = view->deferred;
	lease->generation = view->generation;
	memcpy(lease->holder, view->holder, sizeof(lease->holder));
}

void lease_set_fd(Lease *lease, int fd)
{
	fd_close(lease->fd);
	lease->fd = fd;
}

const char *lease_path(const Lease *lease)
{
	return lease->path;
}

int lease_acquire(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	return lease->held ? 0 : lease->driver->acquire(lease, accept, n, err);
}

int lease_use_up(Lease *lease, const LeaseAccept *accept, size_t n, Error **err)
{
	int r;

	if (lease->driver->use_up)
		return lease->driver->use_up(lease, accept, n, err);
	r = lease_acquire(lease, accept, n, err);
	return r < 0 ? r : lease_release(lease, err);
}

int lease_release(Lease *lease, Error **err)
{
	return lease->driver->release(lease, err);
}

int lease_inquire(Lease *lease, LeaseState *ret, Error **err)
{
	return lease->driver->inquire(lease, ret, err);
}

int lease_watch_fd(const Lease *lease)
{
	return lease->watch_fd;
}

int lease_check(Lease *lease, Error **err)
{
	return lease->driver->check(lease, err);
}

bool lease_held(const Lease *lease)
{
	return lease->held;
}

uint64_t lease_generation(const Lease *lease)
{
	return lease->generation;
}

const char *lease_holder(const Lease *lease)
{
	return lease->holder;
}

int lease_fd(const Lease *lease)
{
	return lease->fd;
}

int lease_enter(Lease *lease, int number)
{
	return lease->driver->enter ? lease->driver->enter(lease, number) : 0;
}

int lease_started(Lease *lease, pid_t qemu, Error **err)
{
	lease->qemu = qemu;
	return lease->driver->started ? lease->driver->started(lease, err) : 0;
}

void lease_ended(Lease *lease)
{
	if (lease->driver->ended)
		lease->driver->ended(lease);
	lease->qemu = 0;
}

int lease_share(Lease *lease, pid_t qemu, Error **err)
{
	return lease->held && lease->driver->share ? lease->driver->share(lease, qemu, err) : 0;
}

void lease_follow(Lease *lease, pid_t qemu)
{
	lease->qemu = qemu;
}

int lease_own(Lease *lease, pid_t other, Error **err)
{
	return lease->held && lease->driver->own ? lease->driver->own(lease, other, err) : 0;
}
