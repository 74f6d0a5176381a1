/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/macros.h"

typedef struct Pump Pump;

/**
 * pump_new() - stand between a peer's stream and sd-bus: copy both ways, look at every header that comes in (frame.h)
 * @fd:          the stream, taken over, also on failure
 * @from_client: the peer is the D-Bus client
 * @closed:      called once when the stream has ended (error: negative errno, 0 for EOF) and sd-bus has had what came
 *               before the end; the inside end is shut then
 * @ret_inside:  fd for sd_bus_set_fd()
 *
 * Return: 0 or negative errno.
 */
int pump_new(sd_event *event, int fd, bool from_client, void (*closed)(int error, void *userdata), void *userdata,
	     Pump **ret, int *ret_inside);

/** pump_flush() - send on what sd-bus has written, as far as it goes without waiting */
void pump_flush(Pump *pump);

/** pump_heard() - whether the peer has said anything since the last call */
bool pump_heard(Pump *pump);

/** pump_cut() - shut the stream down both ways (fault injection) */
void pump_cut(Pump *pump);

/** pump_free() - close the stream; @closed is not called any more. NULL is fine; returns NULL */
Pump *pump_free(Pump *pump);
