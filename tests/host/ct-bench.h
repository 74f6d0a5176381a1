/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <stdint.h>

/** ct_bench() - figures of apply, follow and delta in the caller's network namespace, as JSON on standard output */
int ct_bench(uint32_t entries, uint32_t churn);
