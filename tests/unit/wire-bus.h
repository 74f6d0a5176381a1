/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/macros.h"

/* An sd-bus with bytes at its other end: what it writes can be read, what it reads can be made up. */
typedef struct WireBus {
	sd_bus *bus;
	int fd;
	sd_bus_message *got; /* the last message that came; the bus's filter keeps it */
} WireBus;

/** wire_bus_open() - @server: whether the bus is the D-Bus server; authentication is done when this returns */
void wire_bus_open(WireBus *wire, bool server);
void wire_bus_close(WireBus *wire);

/** wire_bus_feed() - give bytes to the bus and let it work. Return: the message that came, or NULL; borrowed */
sd_bus_message *wire_bus_feed(WireBus *wire, const void *data, size_t len);

/** wire_bus_bytes() - send a message and return its bytes; free() them */
uint8_t *wire_bus_bytes(WireBus *wire, sd_bus_message *m, size_t *ret_len);
