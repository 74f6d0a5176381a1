/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/socket.h>

#include "macros.h"

/**
 * tcp_socket() - a TCP socket and the address to bind or connect it to
 * @address: numeric IPv4 or IPv6, no brackets
 *
 * Return: a non-blocking, close-on-exec socket, or negative errno (-EINVAL: that is no address).
 */
int tcp_socket(const char *address, unsigned int port, struct sockaddr_storage *ret, socklen_t *ret_len);

/**
 * tcp_listen() - listen on the first port that is free, from @first to @last, upward or downward; "::" is IPv4's, too
 *
 * Return: a non-blocking, close-on-exec socket; -EADDRINUSE if all are taken; or another negative errno.
 */
int tcp_listen(const char *address, unsigned int first, unsigned int last, int backlog);

/** tcp_port() - the port a socket is bound to, 0: none */
unsigned int tcp_port(int fd);
