/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * The door: a process of its own between one QEMU and its helper. QEMU waits 25 s for an answer, with the guest stopped, and
 * asks all on a bus who own or wait for the name. So it is given a bus that has nobody else on it; the door is that bus, and it
 * answers for a helper that does not do so in time, because it is stopped, hangs, has no CPU or has died: a Save with what the
 * helper has last laid down for this, a Load by going on while the helper still makes entries.
 */
typedef struct Door Door;

/**
 * struct DoorHandlers - what the helper does
 * @save: QEMU asks: write the state to @to, at most VMSTATE_MAX bytes. Return: their number, at least 1
 * @copy: the same for a Save that the helper does not come to
 * @load: take the state over. QEMU waits until *@until at most; bytes are only there until it returns. Return: whether all is done
 * @gone: the door's process has ended
 */
typedef struct DoorHandlers {
	size_t (*save)(void *userdata, uint8_t *to);
	size_t (*copy)(void *userdata, uint8_t *to);
	bool (*load)(void *userdata, const uint8_t *data, size_t len, const _Atomic uint64_t *until);
	void (*gone)(void *userdata);
} DoorHandlers;

/**
 * struct DoorSpec - whom it stands before
 * @id:   the helper's Id
 * @none, @none_len: what is saved when the helper has never said anything, or not for long
 * @save_usec, @load_usec: how long QEMU is held by each at most
 */
typedef struct DoorSpec {
	const char *id;
	const void *none;
	size_t none_len;
	uint64_t save_usec, load_usec;
} DoorSpec;

/** struct DoorLate - how often QEMU was answered before the helper was through */
typedef struct DoorLate {
	uint32_t save, load;
} DoorLate;

/** door_open() - start its process; SIGCHLD must be blocked. Return: 0 or negative errno with @err set */
int door_open(sd_event *event, const DoorSpec *spec, const DoorHandlers *handlers, void *userdata, Door **ret, Error **err);

/** door_address() - D-Bus address for QEMU */
const char *door_address(const Door *door);

/** door_let_in() - who may come in, before it comes */
void door_let_in(const Door *door, pid_t qemu);

/** door_lay_down() - what to save when QEMU asks and nobody else answers: anew, or with @same as it was */
void door_lay_down(Door *door, bool same);

void door_late(const Door *door, DoorLate *ret);

/** door_free() - it goes once QEMU has. With @kill at once. Return: NULL */
Door *door_free(Door *door, bool kill);
