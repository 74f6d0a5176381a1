/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* Scope clean-up, after the habit of systemd and crun: a resource is declared with its destructor, and a
 * hand-over to another owner is written out (TAKE_PTR, TAKE_FD). Destructors accept NULL. */
#define _cleanup_(f) __attribute__((cleanup(f)))
#define _printf_(a, b) __attribute__((format(printf, a, b)))
#define _unused_ __attribute__((unused))

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define TAKE_PTR(p)               \
	({                        \
		typeof(p) _p = (p); \
		(p) = NULL;       \
		_p;               \
	})

#define TAKE_FD(fd)            \
	({                     \
		int _fd = (fd); \
		(fd) = -1;     \
		_fd;           \
	})

/* Defines NAMEp(), the clean-up form of a destructor that takes the object itself. */
#define DEFINE_CLEANUP(type, func)                                \
	static inline _unused_ void func##p(type *p)              \
	{                                                         \
		if (*p)                                           \
			func(*p);                                 \
	}

static inline void freep(void *p)
{
	free(*(void **)p);
}
#define _cleanup_free_ _cleanup_(freep)

#define USEC_PER_MSEC ((uint64_t)1000)
#define USEC_PER_SEC ((uint64_t)1000000)
