/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "macros.h"

/** crc32_add() - CRC-32 (IEEE 802.3) of more bytes, begin with 0 */
uint32_t crc32_add(uint32_t crc, const void *data, size_t len);
