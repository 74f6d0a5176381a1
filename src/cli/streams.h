/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * Client-managed mode (--direct): this client reaches the source's keeper, here or by ssh, and the target, and makes
 * the streams between them; what the keepers say to each other is not its business. docs/control.md, "Streams".
 *
 * A stream is a socket pair: one end is the target's command's standard input and output, the other is the keeper's
 * own, or that of a `vmferry door` beside it. So no byte is copied here, and streams that are made outlive us.
 */
typedef struct Streams Streams;

/**
 * streams_new() - ready to make streams
 * @host:           where the keeper is, ssh://[user@]host[:port]; NULL: here
 * @dest:           the target, as this client reaches it
 * @remote_command: on the target, NULL for the default
 *
 * Return: 0, or -EINVAL with @err set.
 */
int streams_new(sd_event *loop, const char *host, const char *name, const char *dest, const char *remote_command,
		Streams **ret, Error **err);

/**
 * streams_connect() - a connection to the keeper
 * @start: a VM that is off gets a keeper, so that it can move
 *
 * With a host it is made in the background: an ssh that fails ends the connection, and streams_why() says why.
 *
 * Return: 0, or negative errno.
 */
int streams_connect(Streams *streams, bool start, sd_bus **ret);

/** streams_why() - what the last connection ended with; NULL if it did not end, or the keeper is here. Borrowed */
const Error *streams_why(const Streams *streams);

/** streams_make() - the keeper wants a stream: make it; what goes wrong is told to the keeper over @bus */
void streams_make(Streams *streams, sd_bus *bus, const char *stream);

/** streams_free() - let go. @ended: the migration is over, see that commands end; else they go on. Returns NULL */
Streams *streams_free(Streams *streams, bool ended);
