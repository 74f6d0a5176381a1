/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/**
 * offline_start() - a VM that is off has no keeper: one without a QEMU moves what there is
 *
 * Return: 0, also when it has a keeper, or negative errno with @err set.
 */
int offline_start(const char *name, Error **err);
