/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "vm/lease.h"

/* What the drivers of leases share with lease.c. */

typedef struct LeaseDriver LeaseDriver;

struct Lease {
	const LeaseDriver *driver;
	char *vm, *uuid, *path, *host_id, *host_name;
	char *lockspace, *resource; /* sanlock */
	uint64_t offset;
	pid_t qemu;
	bool held;
	bool deferred;	     /* taken by the process that becomes QEMU */
	uint64_t generation; /* at which we hold it, or gave it back */
	bool (*may_release)(void);
	char holder[LEASE_HOLDER_MAX + 1];
	int fd;	      /* what QEMU inherits */
	int watch_fd; /* epoll: all of the below */
	int inotify_fd, timer_fd;
};

/* Each as the function of that name in lease.h says; acquire is called when we do not hold it. NULL: nothing to do. */
struct LeaseDriver {
	int (*open)(Lease *lease, bool create, Error **err);
	int (*adopt)(Lease *lease, bool runs, Error **err);
	int (*reclaim)(Lease *lease, Error **err); /* NULL: adopt */
	int (*acquire)(Lease *lease, const LeaseAccept *accept, size_t n, Error **err);
	int (*use_up)(Lease *lease, const LeaseAccept *accept, size_t n, Error **err); /* NULL: acquire, release */
	int (*release)(Lease *lease, Error **err);
	int (*inquire)(Lease *lease, LeaseState *ret, Error **err);
	int (*check)(Lease *lease, Error **err);
	int (*enter)(Lease *lease, int number);
	int (*started)(Lease *lease, Error **err);
	void (*ended)(Lease *lease);
	int (*share)(Lease *lease, pid_t qemu, Error **err);
	int (*own)(Lease *lease, pid_t other, Error **err);
};

extern const LeaseDriver lease_file_driver;
#ifdef HAVE_SANLOCK
extern const LeaseDriver lease_sanlock_driver;
#endif

/** lease_accepted() - whether a free lease in this state may be taken */
bool lease_accepted(const LeaseState *state, const LeaseAccept *accept, size_t n);
/** lease_held_by() - set the error that says who holds it. Return: -EBUSY */
int lease_held_by(const Lease *lease, const LeaseState *state, Error **err);
/** lease_was_elsewhere() - set the error that says who had it in between. Return: -ESTALE */
int lease_was_elsewhere(const Lease *lease, const LeaseState *state, Error **err);
