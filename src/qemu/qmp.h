/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-event.h>

#include "basic/json.h"

/* One QMP connection, event-driven. QEMU's docs/interop/qmp-spec. Lines over 512 KiB from QEMU end the connection. */
typedef struct Qmp Qmp;
#define QMP_CONNECTION_CLOSED "connection closed"

/**
 * QmpReply - the answer to one command
 * @ret:   the "return" member, NULL on error
 * @error: "CLASS: description" cleaned for printing, NULL on success; QMP_CONNECTION_CLOSED when QEMU is gone
 *
 * Called exactly once for every command, also when the connection ends or is freed. Never from within qmp_command().
 */
typedef void (*QmpReply)(json_object *ret, const char *error, void *userdata);

typedef struct QmpHandlers {
	/* Greeting read and capabilities (oob) negotiated. */
	void (*ready)(void *userdata);
	/* An event; @at: its timestamp moved to CLOCK_MONOTONIC, microseconds, never in the future. */
	void (*event)(const char *name, json_object *data, uint64_t at, void *userdata);
	/* The connection is over (-EPIPE: QEMU closed it; -EBADMSG: what it said is no QMP; -EPROTO: it refused the
	 * capabilities; or what the kernel said); called once, after all replies. */
	void (*closed)(int error, void *userdata);
} QmpHandlers;

/**
 * qmp_new() - take over a connected socket (made non-blocking), wait for the greeting and negotiate (oob where offered)
 *
 * Return: 0, or negative errno; then @fd is still the caller's.
 */
int qmp_new(sd_event *event, int fd, const QmpHandlers *handlers, void *userdata, Qmp **ret);

/** qmp_set_handlers() - hand a connection over to somebody else: what it says from now on is said to @handlers */
void qmp_set_handlers(Qmp *qmp, const QmpHandlers *handlers, void *userdata);

/**
 * qmp_free() - close; pending commands are answered with an error first, `closed` is not called
 *
 * Safe from within a handler. A handler that answers an error with a new command must not do so here: it would never end.
 */
Qmp *qmp_free(Qmp *qmp);

/**
 * qmp_command() - send a command, at once if the socket takes it; before the connection is ready it waits in a queue
 * @arguments: taken over, may be NULL
 * @reply:     may be NULL
 *
 * Commands are executed in the order they were given. After the connection's end they are answered with an error.
 */
void qmp_command(Qmp *qmp, const char *command, json_object *arguments, QmpReply reply, void *userdata);

/** qmp_command_fd() - the same with an fd passed along (getfd, add-fd); @fd is closed after sending */
void qmp_command_fd(Qmp *qmp, const char *command, json_object *arguments, int fd, QmpReply reply, void *userdata);

