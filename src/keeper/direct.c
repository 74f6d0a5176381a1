/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Client-managed mode (--direct): the streams to the target are made by a client on the control socket, who reaches
 * both hosts. All else is as with a command of our own: the link does not know who copies. docs/control.md, "Direct".
 */
#include <errno.h>
#include <fcntl.h>

#include "keeper/move.h"

int direct_want(const char *stream, bool data, void *userdata, Error **err)
{
	Keeper *k = userdata;

	if (k->relay && control_want_stream(k->relay, stream, data) >= 0)
		return 0;
	error_set(err, -ENOTCONN, "no client is there to relay to the target");
	error_hint(err, "vmferry recover --direct %s DEST brings one, from a host that reaches both", k->name);
	return -ENOTCONN;
}

/* Control and data: at most two streams are being made. @stream: NULL for any. */
static Link *waiting(Keeper *k, const char *stream)
{
	Link *links[] = {k->move->link, data_link(k->move->data)};

	for (size_t i = 0; i < ARRAY_SIZE(links); i++)
		if (link_wants(links[i], stream))
			return links[i];
	return NULL;
}

int direct_stream(Keeper *k, const char *stream, int fd, Error **err)
{
	Link *link = waiting(k, stream);
	int copy;

	if (!link)
		return error_set(err, -ENOENT, "nobody waits for this stream (any more)");
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return error_set(err, -errno, "cannot take the stream: %m");
	return link_give(link, copy, err);
}

void direct_failed(Keeper *k, const char *stream, bool busy, const Error *err)
{
	Link *link = waiting(k, stream);

	if (link)
		link_refuse(link, busy, err);
}

void direct_relay(Keeper *k, Client *client)
{
	_cleanup_error_ Error *err = NULL;
	Link *link;

	k->relay = client;
	if (client)
		return;
	error_set(&err, -ENOTCONN, "the client that relays has gone");
	while ((link = waiting(k, NULL)))
		link_refuse(link, false, err);
}
