/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "macros.h"

/**
 * struct Error - what went wrong, for a person
 * @code:    negative errno; also what the failing function returned
 * @message: what went wrong and where; one line, no trailing newline
 * @hint:    what to do about it, or NULL
 *
 * Functions that fail in a way a person must understand take an Error ** as their last argument and return the
 * code. The first error wins: setting an already set error changes nothing.
 */
typedef struct Error {
	int code;
	char *message;
	char *hint;
} Error;

/**
 * error_set() - set an error unless one is set already
 * @err:  where to, may be NULL (then only the code is returned)
 * @code: negative errno
 * @fmt:  message
 *
 * Return: @code, so that a caller can write "return error_set(...)".
 */
int error_set(Error **err, int code, const char *fmt, ...) _printf_(3, 4);

/** error_hint() - add what to do about it, unless a hint is there; does nothing without an error */
void error_hint(Error **err, const char *fmt, ...) _printf_(2, 3);

/** error_hint_more() - the same, after the hint that is there */
void error_hint_more(Error **err, const char *fmt, ...) _printf_(2, 3);

/** error_prefix() - put context ("disk vda: ") before the message of an error that is set */
void error_prefix(Error **err, const char *fmt, ...) _printf_(2, 3);

/** error_free() - free an error, NULL is fine */
void error_free(Error *err);
DEFINE_CLEANUP(Error *, error_free)
#define _cleanup_error_ _cleanup_(error_freep)
