/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * The door: a process of its own between one QEMU and its helper. QEMU waits 25 s for an answer, with the guest stopped, and
 * asks all on a bus who own or wait for the name. So it is given a bus that has nobody else on it; the door is that bus, and it
 * answers for a helper that does not do so in time, because it is stopped, hangs or has died: with no entries, which is
 * better than no guest.
 */
typedef struct Door Door;

/**
 * struct DoorHandlers - what the helper does when QEMU asks
 * @save: write the state to @to, which has @max bytes. Return: its length, at least 1
 * @load: take the state over; when it returns QEMU is answered, unless that was done already
 */
typedef struct DoorHandlers {
	size_t (*save)(void *userdata, uint8_t *to, size_t max);
	void (*load)(void *userdata, const uint8_t *data, size_t len);
} DoorHandlers;

/**
 * struct DoorSpec - whom it stands before
 * @id:   the helper's Id
 * @none, @none_len: what is saved when the helper does not answer
 */
typedef struct DoorSpec {
	const char *id;
	const void *none;
	size_t none_len;
} DoorSpec;

/** struct DoorLate - how often QEMU was answered without the helper */
typedef struct DoorLate {
	uint32_t save, load;
} DoorLate;

/** door_open() - start its process. Return: 0 or negative errno with @err set */
int door_open(sd_event *event, const DoorSpec *spec, const DoorHandlers *handlers, void *userdata, Door **ret, Error **err);

/** door_address() - D-Bus address for QEMU */
const char *door_address(const Door *door);

/** door_let_in() - who may come in, before it comes */
void door_let_in(const Door *door, pid_t qemu);

/** door_stands() - whether its process is there and not stopped */
bool door_stands(const Door *door);

void door_late(const Door *door, DoorLate *ret);

/** door_free() - it goes once QEMU has. With @kill at once. Return: NULL */
Door *door_free(Door *door, bool kill);
