/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "vm/definition.h"

/* fds QEMU inherits, under fixed numbers of the child, so that a later keeper knows them too. */
enum {
	QEMU_FD_QMP = 3,    /* listening UNIX socket DIR/qmp */
	QEMU_FD_SERIAL = 4, /* listening UNIX socket DIR/serial */
	QEMU_FD_MEMORY = 5, /* memfd */
	QEMU_FD_LOCK = 6,   /* flock()ed DIR/lock */
	QEMU_FD_LEASE = 7,  /* what holds the VM's lease */
	QEMU_FD_AGENT = 8,  /* listening UNIX socket DIR/agent */
	QEMU_FD_SPICE = 9,  /* a directory of its own, for SPICE's TLS */
	QEMU_FD_TAP = 16,   /* NIC i: QEMU_FD_TAP + i */
	QEMU_FD_DISK = 48,  /* disk i: QEMU_FD_DISK + i, as fdset i of -add-fd */
};

/**
 * qemu_command_line() - QEMU's words for a definition; the same definition gives the same guest-visible machine on
 * every host (ids, PCI addresses and order are fixed by the definition alone)
 * @def: pinned
 *
 * Return: argv, strv_free() it.
 */
char **qemu_command_line(const VmDefinition *def, bool incoming);
