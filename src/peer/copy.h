/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/**
 * copy_both() - copy between a command's input and output and a stream socket, whatever the sizes of reads and writes
 * @in, @out: may be one socket; @out is made non-blocking
 * @sock:     stays the caller's, and is made non-blocking
 *
 * Ends when one side has ended and all that came from it is handed on: half a D-Bus or migration stream is worth
 * nothing.
 *
 * Return: 0, or negative errno: -EPIPE when one side takes nothing any more.
 */
int copy_both(int in, int out, int sock);
