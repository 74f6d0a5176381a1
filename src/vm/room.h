/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "basic/error.h"

/*
 * Memory that is promised: what a VM of this host is about to use, and no figure of the kernel shows yet. A promise of
 * N MiB is a lock on N bytes of RUNTIME_DIR/NAME, a directory, which has no bytes: it ends with the process that made it,
 * there is nothing to clean up, and anybody can see whose it is. fcntl(2), open file description locks.
 */
typedef struct Room Room;

/**
 * room_open() - begin a promise: until room_promise() nobody else on this host looks for room
 * @name: whose it is to be; RUNTIME_DIR/@name is there
 *
 * To be called before the look at what is available, and nothing slow between the two. Return: 0, or negative errno with
 * @err set.
 */
int room_open(const char *name, Room **ret, Error **err);

/** room_promise() - promise @bytes. Return: 0, or negative errno with @err set */
int room_promise(Room *room, uint64_t bytes, Error **err);

/** room_used() - of what was promised @bytes are in use by now; NULL is fine */
void room_used(Room *room, uint64_t bytes);

/** room_free() - the promise is over; NULL is fine */
void room_free(Room *room);
DEFINE_CLEANUP(Room *, room_free)

/**
 * room_promised() - bytes that are promised on this host, by anybody
 * @ret_whom: to whom, as text: "web1 80 MiB, web2 128 MiB"; "" if to nobody
 */
uint64_t room_promised(char **ret_whom);

/** room_own_cgroup() - where process @pid is (0: this one) in control groups v2, "/a/b"; free() it; NULL: nowhere */
char *room_own_cgroup(pid_t pid);

/**
 * room_cgroup() - bytes that a control group and those above it leave (v2: memory.max - memory.current, and
 * inactive_file, which the kernel gives back; the least of all on the way up)
 * @root: where they are, /sys/fs/cgroup
 * @path: of the group below @root, "/a/b"; what is not there limits nothing. NULL: none
 *
 * Return: UINT64_MAX if nothing limits it.
 */
uint64_t room_cgroup(const char *root, const char *path);
