/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "basic/error.h"
#include "vm/definition.h"

/*
 * A lease says which host may run a VM, on storage that all of them see. It has a generation, which grows by one each time
 * it is taken, and the name of who holds it or held it last: both outlive its holder, so that one host can tell whether
 * another has had it in between. It is taken by compare and swap.
 *
 * It is bound to the QEMU process, not to the keeper: while QEMU lives it is held, whatever becomes of its keeper.
 */
typedef struct Lease Lease;

#define LEASE_HOLDER_MAX 64

typedef struct LeaseState {
	bool held;			   /* by a process that lives, here or elsewhere */
	bool mine;			   /* that is this one */
	uint64_t generation;		   /* 0: nobody has ever had it */
	char holder[LEASE_HOLDER_MAX + 1]; /* who has it, or had it last; "" if nobody did */
	char name[LEASE_HOLDER_MAX + 1];   /* the same for people */
	uint64_t since;			   /* when that became so: CLOCK_REALTIME, seconds; 0 unknown */
} LeaseState;

/* A state in which a free lease may be taken. NULL, 0: any. */
typedef struct LeaseAccept {
	const char *holder;
	uint64_t generation;
} LeaseAccept;

/* What of a lease changes while it is worked with. */
typedef struct LeaseView {
	bool held, deferred;
	uint64_t generation;
	char holder[LEASE_HOLDER_MAX + 1]; /* this host */
} LeaseView;

typedef struct LeaseOptions {
	const VmDefinition *definition; /* pinned, with a lease */
	const char *host_id, *host_name;
	bool create; /* make what is not there yet: a start, by somebody of this host */
	int fd;	     /* QEMU's lease fd, for a keeper that comes after another one; -1: none. Taken over */
	pid_t qemu;  /* that QEMU; 0: none yet */
	/* Asked before what others are shown of a release cannot be taken back any more; NULL: yes */
	bool (*may_release)(void);
} LeaseOptions;

/** lease_available() - whether this build has the driver */
bool lease_available(LeaseType type);

/**
 * lease_new() - describe a lease: no look is taken at it yet
 * Return: 0, or -ENOTSUP with @err and hint set: no such driver.
 */
int lease_new(const LeaseOptions *options, Lease **ret, Error **err);

/**
 * lease_begin() - open what lease_new() has described, without taking it
 *
 * With a QEMU, what that one holds is known at once: lease_held(). What we hold by lease_set_view() is ours still, though
 * the record may say that it was given back: by somebody who was stopped before he did that. @runs: the guest may run in
 * that QEMU. Then what it has to keep others away stays, too, whatever the record says: lease_acquire() it, or
 * lease_release() it.
 *
 * Return: 0, or negative errno with @err and hint set: -ENOENT not there, -EBADMSG not a lease or damaged, -EPERM another
 * VM's, -ESTALE it is not ours any more.
 */
int lease_begin(Lease *lease, bool create, bool runs, Error **err);

/** lease_open() - both. Return: as they */
int lease_open(const LeaseOptions *options, Lease **ret, Error **err);

/** lease_view(), lease_set_view() - of one process for another that has described the same lease */
LeaseView lease_view(const Lease *lease);
void lease_set_view(Lease *lease, const LeaseView *view);
/** lease_set_fd() - what QEMU is to inherit; taken over */
void lease_set_fd(Lease *lease, int fd);
/** lease_path() - where it is, for people */
const char *lease_path(const Lease *lease);

/** lease_free() - forget it; QEMU goes on holding what it holds */
void lease_free(Lease *lease);
DEFINE_CLEANUP(Lease *, lease_free)

/**
 * lease_acquire() - take it, if it is free and in one of the given states; one we hold already stays ours
 * @accept, @n: the states; n = 0: any
 *
 * To be called before QEMU is started (then it is QEMU's from its beginning) or with one that lives.
 *
 * Return: 0; -EBUSY somebody has it; -ESTALE it is free and in none of these states, or its file was replaced; or another
 * negative errno. @err says who has it, or had it last.
 */
int lease_acquire(Lease *lease, const LeaseAccept *accept, size_t n, Error **err);

/**
 * lease_use_up() - take it and give it back at once, without a QEMU: who expects the state it was in gets it no more
 * Return: as lease_acquire().
 */
int lease_use_up(Lease *lease, const LeaseAccept *accept, size_t n, Error **err);

/**
 * lease_release() - give it back; the generation stays, and is what the next one may have to show
 * Return: 0, also if we do not hold it; or negative errno with @err set: then we still do.
 */
int lease_release(Lease *lease, Error **err);

/** lease_inquire() - what is known of it. Return: 0 or negative errno with @err set */
int lease_inquire(Lease *lease, LeaseState *ret, Error **err);

/** lease_watch_fd() - an fd that becomes readable when lease_check() should be called; -1: none is needed */
int lease_watch_fd(const Lease *lease);

/**
 * lease_check() - whether what we hold is still ours
 * Return: 0 if it is or we hold nothing; a negative errno with @err set once it is lost: we do not hold it any more then.
 */
int lease_check(Lease *lease, Error **err);

/** lease_held() - whether we hold it, as far as the last call of another function told */
bool lease_held(const Lease *lease);
/** lease_generation() - at which we hold it, or gave it back; 0: never */
uint64_t lease_generation(const Lease *lease);
/** lease_holder() - what this host is called in the lease, for LeaseAccept.holder elsewhere */
const char *lease_holder(const Lease *lease);

/* ---- for who starts QEMU ---- */

/** lease_fd() - what QEMU is to inherit; -1: nothing. Stays the lease's */
int lease_fd(const Lease *lease);

/**
 * lease_enter() - in the process that becomes QEMU, with root's rights: register it with who manages the lease
 * @number: of the fd to keep open, where there is one
 *
 * Return: 0 or negative errno: -ENOTCONN there is nobody to manage it, -EBUSY another host has it,
 * -ESTALE it has taken it a moment ago.
 */
int lease_enter(Lease *lease, int number);

/** lease_started() - QEMU runs: the lease is @qemu's. Return: 0 or negative errno with @err set */
int lease_started(Lease *lease, pid_t qemu, Error **err);

/** lease_ended() - QEMU is ending, or gone: what is bound to its process is given back, at once if it can be told */
void lease_ended(Lease *lease);

/* ---- for who changes one QEMU for another on this host ---- */

/**
 * lease_share() - let @qemu hold it as well, which has entered it: until lease_own() it is both's, and never free
 *
 * Nothing to do where each QEMU has inherited it, or when it is not held.
 *
 * Return: 0; or negative errno with @err set: then who held it does so still.
 */
int lease_share(Lease *lease, pid_t qemu, Error **err);

/** lease_follow() - the guest is @qemu's from here on, which has inherited the lease or shares it. No I/O: the guest stands still */
void lease_follow(Lease *lease, pid_t qemu);

/**
 * lease_own() - after lease_share(): only the QEMU that has the guest is to hold it
 * @other: the other one, which is ending; 0: it is gone
 *
 * Return: 0; or negative errno with @err set: then it is held as before.
 */
int lease_own(Lease *lease, pid_t other, Error **err);
