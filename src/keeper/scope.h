/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/** scope_slice() - the control group that QEMU's scopes are in under systemd, "/machine.slice"; elsewhere NULL */
const char *scope_slice(void);

/**
 * scope_start() - under systemd, move QEMU into a transient scope of its own in machine.slice, so that it outlives its
 * keeper's unit and is stopped in order at shutdown; elsewhere nothing. Source: org.freedesktop.systemd1(5),
 * StartTransientUnit. Not waited for; a failure is logged and nothing more.
 */
void scope_start(Keeper *k, const QemuProcess *qemu);

/**
 * scope_check() - whether QEMU's own control group, if it has one, leaves the memory of its guest, which has not come yet
 *
 * What systemd gives a scope (drop-ins of vmferry-.scope.d) is not known before there is one.
 * Return: 0, or -ENOMEM with @err and hint set.
 */
int scope_check(const QemuProcess *qemu, const VmDefinition *def, Error **err);
