/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/error.h"

/*
 * The gate of a guest that is to come: a UNIX socket that a hook of the manager waits at before the guest may go on.
 * Who connects says "wait\n" and is told "ok\n" when the connections are in, or when it has waited for the bound.
 */
typedef struct Gate Gate;

/** struct GateStats - how those that waited were let through */
typedef struct GateStats {
	uint64_t completed, timeout;
} GateStats;

/** gate_path() - the socket for a guest of this name, any text; free() it */
char *gate_path(const char *name);

/**
 * gate_new() - make the socket, replacing a stale one; closed
 * @bound: microseconds that nobody waits longer than
 *
 * Return: 0, or negative errno with @err set.
 */
int gate_new(sd_event *event, const char *name, uint64_t bound, Gate **ret, Error **err);

/**
 * gate_new_at() - the same at a path, for one guest after the other: closed again once somebody was let through in time
 * @other: called with a connection that begins with another byte than the question does, nothing of it is read; owns it from then on
 */
int gate_new_at(sd_event *event, const char *path, uint64_t bound, void (*other)(void *userdata, int fd), void *userdata,
		Gate **ret, Error **err);

/** gate_close() - the connections are not in any more, or others are to come */
void gate_close(Gate *gate);

/** gate_forget() - in a child: close its connections without a word to anybody */
void gate_forget(Gate *gate);

/** gate_ready() - the connections are in: who waits goes on, and who comes from now on does at once */
void gate_ready(Gate *gate);

/** gate_stats() - who waited up to now, and how that ended */
void gate_stats(const Gate *gate, GateStats *ret);

/** gate_free() - remove the socket; who still waits goes on. Return: NULL */
Gate *gate_free(Gate *gate);

/** gate_wait_at() - gate_wait() at a path */
int gate_wait_at(const char *path, uint64_t bound);

/**
 * gate_wait() - the hook's side
 * @bound: microseconds
 *
 * Return: 1 when it was told to go on, 0 when there is no gate, -ETIMEDOUT, or negative errno.
 */
int gate_wait(const char *name, uint64_t bound);
