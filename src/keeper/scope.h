/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/**
 * scope_start() - under systemd, move QEMU into a transient scope of its own in machine.slice, so that it outlives its
 * keeper's unit and is stopped in order at shutdown; elsewhere nothing. Source: org.freedesktop.systemd1(5),
 * StartTransientUnit. Not waited for; a failure is logged and nothing more.
 */
void scope_start(Keeper *k, const QemuProcess *qemu);
