/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/json.h"

/* The client's end of a keeper's control socket (docs/control.md). */

#define CONTROL_PATH "/org/vmferry/vm"
#define CONTROL_INTERFACE "org.vmferry.VM1"

/* How long we wait for a keeper that has just died: it is back within a second. */
#define KEEPER_BACK_USEC (5 * USEC_PER_SEC)

static inline void bus_closep(sd_bus **bus)
{
	sd_bus_close_unref(*bus);
}
#define _cleanup_bus_ _cleanup_(bus_closep)

/** client_bus() - speak D-Bus, perhaps passing fds, over a connection that it takes. Return: 0 or negative errno */
int client_bus(int fd, bool fds, sd_bus **ret);

/** client_connect_once() - connect to a keeper now. Return: 0, or negative errno (-ENOENT, -ECONNREFUSED: no keeper) */
int client_connect_once(const char *name, sd_bus **ret);

/**
 * client_connect() - connect to a VM's keeper
 *
 * A socket nobody answers on belongs to a keeper that is about to come back: waits KEEPER_BACK_USEC for it.
 *
 * Return: 0, or negative errno with @err and hint set: -ESRCH when the VM is not running, -ENOENT when it is not known,
 * -EREMOTE when it moved away, -ECONNREFUSED when its keeper is gone.
 */
int client_connect(const char *name, sd_bus **ret, Error **err);

/**
 * client_bus_error() - turn a D-Bus error into ours
 *
 * Return: negative errno: what its name means to us, -ECONNRESET for a connection that broke, -EIO for others.
 */
int client_bus_error(const sd_bus_error *e, Error **err);

/**
 * client_call() - connect, call one method, wait for its answer as long as it takes
 * @method: member of org.vmferry.VM1
 * @query:  it changes nothing: asked again for KEEPER_BACK_USEC if the keeper dies over it
 * @ret:    the answer's text, may be NULL for a method that answers nothing
 * @types:  D-Bus signature of the arguments that follow, NULL for none
 *
 * Return: 0, or negative errno with @err set.
 */
int client_call(const char *name, const char *method, bool query, char **ret, Error **err, const char *types, ...);

/** client_query() - Status, Show or another call without arguments that changes nothing, parsed */
int client_query(const char *name, const char *method, json_object **ret, Error **err);

/** client_status() - ask for Status on a connection, @usec at most; parsed. Return: 0 or negative errno */
int client_status(sd_bus *bus, uint64_t usec, json_object **ret);

/** client_json() - parse an answer of @method that must be a JSON object. Return: 0, or -EBADMSG with @err set */
int client_json(const char *method, const char *text, json_object **ret, Error **err);
