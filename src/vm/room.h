/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/*
 * Memory that is promised: what a keeper of this host is about to use, and no figure of the kernel shows yet. A promise
 * of N MiB is a lock on N bytes of the runtime directory, which has no bytes: it ends with the process that made it,
 * and there is nothing to clean up.
 */
typedef struct Room Room;

/**
 * room_open() - begin a promise: until room_promise() nobody else on this host looks for room
 *
 * To be called before the look at what is available. Return: 0, or negative errno with @err set.
 */
int room_open(Room **ret, Error **err);

/** room_promise() - promise @bytes. Return: 0, or negative errno with @err set */
int room_promise(Room *room, uint64_t bytes, Error **err);

/** room_left() - of what was promised only @bytes are still to come: the rest is in use by now, or not wanted */
void room_left(Room *room, uint64_t bytes);

/** room_free() - the promise is over; NULL is fine */
void room_free(Room *room);
DEFINE_CLEANUP(Room *, room_free)

/** room_promised() - bytes that are promised on this host, by anybody */
uint64_t room_promised(void);

/**
 * room_cgroup() - bytes that the control groups leave which this process is in (cgroup v2: memory.max - memory.current,
 * and inactive_file, which the kernel gives back; the least of all on the way up)
 * @root: where they are, /sys/fs/cgroup
 * @self: contents of /proc/self/cgroup
 *
 * Return: UINT64_MAX if nothing limits it.
 */
uint64_t room_cgroup(const char *root, const char *self);
