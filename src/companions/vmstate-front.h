/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <stdatomic.h>
#include <sys/types.h>

#include "companions/vmstate-door.h"
#include "companions/vmstate.h"

/* What the door's two sides share: vmstate-door.c in the helper, vmstate-front.c in a process of its own. */

typedef enum DoorWhat { DOOR_SAVE, DOOR_LOAD, DOOR_QEMU } DoorWhat;

/**
 * struct DoorRequest - on a SOCK_SEQPACKET, from the front; the answer is the same with what has become of it
 * @number: of the request
 * @len:  bytes to be loaded. The helper's DOOR_QEMU, which has no answer: pid of who may come in
 * @late: in the answer: QEMU is not to wait for the end of it
 */
typedef struct DoorRequest {
	uint32_t number;
	DoorWhat what;
	uint32_t len;
	bool late;
} DoorRequest;

/**
 * struct DoorShared - memory that both have
 * @save:  the helper writes one while the other is the valid one
 * @saved: generation of the valid one, whose last bit says which, in the upper half; its length in the lower
 * @current: microsecond of the monotonic clock at which it was known to be up to date
 * @load:  the front writes it, until it asks
 * @load_until: microsecond of the monotonic clock up to which QEMU waits for the load, or has waited
 * @late:  how often QEMU was answered without the helper
 */
typedef struct DoorShared {
	uint8_t save[2][VMSTATE_MAX], load[VMSTATE_MAX];
	_Atomic uint64_t saved, current, load_until;
	_Atomic uint32_t late[2];
} DoorShared;

/**
 * front_run() - be the door's process, as long as QEMU is connected or the helper is there
 * @fd: Requests both ways
 */
_Noreturn void front_run(const DoorSpec *spec, pid_t helper, int listen_fd, int fd, DoorShared *shared);
