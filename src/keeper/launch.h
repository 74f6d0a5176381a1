/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/* How a keeper comes to be: what the command line asks of the keeper's side. */

/**
 * enum KeeperFlags - how to start a keeper
 * @KEEPER_INCOMING: the VM arrives from another host: QEMU waits for its state
 * @KEEPER_OFFLINE:  no QEMU: the VM is off, and its definition is about to be moved
 * @KEEPER_FORCE:    start although the VM moved away (STATE_DIR/NAME/moved): a person knows it runs nowhere else
 */
typedef enum KeeperFlags { KEEPER_INCOMING = 1, KEEPER_FORCE = 2, KEEPER_OFFLINE = 4 } KeeperFlags;

/**
 * keeper_start() - start the keeper of a VM, detached from the caller, and wait until it is ready
 * @name:  a valid VM name
 * @flags: of enum KeeperFlags
 *
 * Under systemd that is vmferry@NAME.service, elsewhere a supervisor that starts the keeper again when it dies.
 *
 * Return: 0 when the guest runs (incoming: when QEMU waits), or negative errno with @err set: -EBUSY when the VM has
 * a keeper, -EREMOTE when it moved away and KEEPER_FORCE is not given.
 */
int keeper_start(const char *name, unsigned int flags, Error **err);

/**
 * verb_run() - `vmferry run NAME`: be the keeper of a VM
 * @argc, @argv: the words after the program's name, argv[0] is "run"
 *
 * Return: exit status.
 */
int verb_run(int argc, char **argv);

/** verb_receive() - `vmferry receive [--peer=HOST]`: the target end of a migration, on stdin and stdout; as verb_run() */
int verb_receive(int argc, char **argv);
