/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/*
 * Fault injection, compiled in only with -Dfaults=true. RUNTIME_DIR/fault says what happens, once:
 *
 *   ACTION:before|after:VICTIM
 *
 * ACTION is an identifier of MOVE_ACTIONS (SEND_FINISH), VICTIM one of: self (SIGKILL to this keeper), qemu (SIGKILL to
 * its QEMU), old and new (to an upgrade's), link (the control link is cut), cancel (a person cancels), powerdown (the guest
 * is shut down), fail (before: the action fails with nothing done). Several lines strike one after the other. A line is removed when it strikes, the file with its last line.
 *
 * A test that listens on CONFIG_DIR/fault.socket is told of every action, "NAME:ACTION:before|after", each on a connection
 * of its own; the keeper waits until it answers with a VICTIM or nothing, and closes (tests/host/faults.py).
 */
#ifdef VMFERRY_FAULTS
/** fault_point() - Return: 0, or negative errno if the action has to fail */
int fault_point(Move *m, MoveAction action, bool before);
/** fault_storage() - in a worker: does not answer as long as CONFIG_DIR/silent says @what */
void fault_storage(const char *what);
#else
static inline void fault_storage(const char *what)
{
	(void)what;
}

static inline int fault_point(Move *m, MoveAction action, bool before)
{
	(void)m;
	(void)action;
	(void)before;
	return 0;
}
#endif
