/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <time.h>

#include "macros.h"

static inline uint64_t clock_usec(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * USEC_PER_SEC + (uint64_t)ts.tv_nsec / 1000;
}

/** now_usec() - CLOCK_MONOTONIC in microseconds */
static inline uint64_t now_usec(void)
{
	return clock_usec(CLOCK_MONOTONIC);
}
