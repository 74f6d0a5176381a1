/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "macros.h"

/** fd_close() - close an fd if it is one, keep errno; returns -1, so that "fd = fd_close(fd)" works */
int fd_close(int fd);

static inline void fd_closep(int *fd)
{
	fd_close(*fd);
}
#define _cleanup_fd_ _cleanup_(fd_closep)

/** fd_nonblock() - set or clear O_NONBLOCK. Return: 0 or negative errno */
int fd_nonblock(int fd, bool on);

/** fd_cloexec() - set or clear FD_CLOEXEC. Return: 0 or negative errno */
int fd_cloexec(int fd, bool on);

/** fd_write_all() - write all bytes of a blocking fd, retrying EINTR. Return: 0 or negative errno */
int fd_write_all(int fd, const void *data, size_t len);

/** fd_read_all() - read up to @len bytes of a blocking fd until EOF. Return: bytes read or negative errno */
ssize_t fd_read_all(int fd, void *data, size_t len);

/**
 * unix_listen() - bind and listen on a UNIX stream socket, in place of the one before it
 * @path: at most 103 bytes
 * @mode: file mode of the socket
 *
 * Return: a non-blocking, close-on-exec fd, or negative errno (-ENAMETOOLONG for a long path).
 */
int unix_listen(const char *path, mode_t mode);

/** unix_peer_is_us() - whether who connected runs as we do, or as root (SO_PEERCRED, unix(7)) */
bool unix_peer_is_us(int fd);

/** unix_connect() - connect to a UNIX stream socket. Return: a blocking, close-on-exec fd or negative errno */
int unix_connect(const char *path);
