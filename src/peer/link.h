/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "peer/destination.h"
#include "peer/preamble.h"

/* The stream from one keeper to the other, and D-Bus over it. */
typedef struct Link Link;

typedef struct LinkHandlers {
	/* The first line was accepted: link_bus() or link_take_fd() may be used. */
	void (*up)(void *userdata);
	/* Before up: it could not be made. After: it is cut. Called once; the link is dead then, free it. */
	void (*lost)(const Error *err, void *userdata);
} LinkHandlers;

typedef struct LinkOptions {
	const Destination *destination;
	DestinationOptions how; /* its login: made by a D-Bus stream's command, used by a data stream's */
	Preamble preamble;
	uint64_t connect_usec; /* until up */
	uint64_t silence_usec; /* three pings and nothing that comes within it: the link is cut. 0: no pings */
	const char *expect_token; /* for data: what the other end must answer, NULL: anything */
	/*
	 * For a direct destination, instead of a command: ask a client for the stream named @stream. link_give() or
	 * link_refuse() answers. Return: 0, or negative errno with @err set.
	 */
	int (*want)(const char *stream, bool data, void *userdata, Error **err);
	void *want_userdata;
} LinkOptions;

/**
 * link_connect() - start the destination's command and send the first line; ssh logins a busy sshd turns away are tried
 * again after a random pause until connect_usec is over
 *
 * Return: 0, or negative errno with @err set.
 */
int link_connect(sd_event *event, const LinkOptions *options, const LinkHandlers *handlers, void *userdata, Link **ret,
		 Error **err);

/**
 * link_accept() - the other end of it: a connection to our peer socket whose first line has been read and accepted
 * @fd: taken over
 * @setup: called with the new bus before it is started, to add objects
 */
int link_accept(sd_event *event, int fd, uint64_t silence_usec, const LinkHandlers *handlers, void *userdata,
		int (*setup)(sd_bus *bus, void *userdata), Link **ret, Error **err);

/** link_wants() - whether it is not up for want of the stream of that name; NULL: of any */
bool link_wants(const Link *link, const char *stream);

/** link_give() - the stream a link waits for, a UNIX stream socket: taken over. Return: 0 or negative errno with @err set */
int link_give(Link *link, int fd, Error **err);

/**
 * link_refuse() - the stream a link waits for cannot be made
 * @busy: a server had too much to do: it asks once more, after a pause
 */
void link_refuse(Link *link, bool busy, const Error *err);

/** link_bus() - the D-Bus connection, owned by the link; NULL while it is not up */
sd_bus *link_bus(Link *link);

/** link_login() - the path by which other commands go through its ssh's login; NULL: there is none, or it is not up */
const char *link_login(const Link *link);

/** link_take_fd() - for data streams: the stream itself, now the caller's; the command goes on until link_free() */
int link_take_fd(Link *link);

/** link_free() - close it and end the command. Returns NULL */
Link *link_free(Link *link);

/** link_cut() - end the stream at once, as a cut cable would (fault injection); `lost` follows from the loop */
void link_cut(Link *link);

/** link_ping_reply() - the answer for the Ping method, for vtables: any call proves that the other end lives */
int link_ping_reply(sd_bus_message *m, void *userdata, sd_bus_error *error);
