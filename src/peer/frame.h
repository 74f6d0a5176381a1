/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/macros.h"

/*
 * A look at a peer's D-Bus byte stream before sd-bus sees it: sd-bus would allocate for a 60 MB message before any
 * handler runs. D-Bus specification, "Authentication Protocol" and "Message Format".
 *
 * Authentication is compared byte by byte with what sd-bus (240 and later) says when it is anonymous on both ends: were
 * anything else let through, a peer could make us believe that messages have begun where sd-bus still reads lines, and hide
 * a large one in what we take for the inside of a small one.
 */
#define FRAME_MESSAGE_MAX (1024U * 1024U)

typedef struct FrameCheck {
	bool from_client;  /* the peer is the D-Bus client: it ends authentication with BEGIN */
	bool started;	   /* past authentication */
	size_t auth_bytes; /* seen of it */
	uint8_t header[16];
	size_t header_have;
	size_t skip; /* bytes of the present message that need no look */
} FrameCheck;

/**
 * frame_check() - check the next bytes of the stream
 *
 * Return: 0 when all is well; -EMSGSIZE: a message over 1 MiB; -EBADMSG: no D-Bus, or another authentication than ours.
 */
int frame_check(FrameCheck *check, const uint8_t *data, size_t len);
