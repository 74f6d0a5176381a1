/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "error.h"

/**
 * file_read() - read a whole regular file of bounded size
 * @path:     file
 * @max:      more bytes than this give -EFBIG
 * @ret_data: the bytes with a NUL after them, free() it
 * @ret_len:  number of bytes, may be NULL
 *
 * Return: 0 or negative errno.
 */
int file_read(const char *path, size_t max, char **ret_data, size_t *ret_len);

/**
 * file_write() - replace a file's content atomically (temporary file in the same directory, rename)
 * @sync: also fsync file and directory: the content survives a power cut
 *
 * Return: 0 or negative errno; on failure the old file is untouched and no temporary file is left.
 */
int file_write(const char *path, const void *data, size_t len, mode_t mode, bool sync);

/** dir_make() - make a directory and its parents; an existing one is fine. Return: 0 or negative errno */
int dir_make(const char *path, mode_t mode);

/** dir_remove() - remove a directory with all in it, not following links. Missing is fine. 0 or negative errno */
int dir_remove(const char *path);

/** dir_sync() - fsync a directory. Return: 0 or negative errno */
int dir_sync(const char *path);

/**
 * file_lock() - open (making it if need be) and flock() a file exclusively without waiting
 *
 * Return: the fd that holds the lock (close-on-exec), -EWOULDBLOCK if someone has it, or negative errno.
 */
int file_lock(const char *path);
