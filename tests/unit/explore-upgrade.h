/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "move/engine.h"

/*
 * A keeper that runs the given rows through an upgrade, and the two QEMUs; the keeper is killed between any two actions
 * and comes back, either QEMU dies at any moment, actions fail, a person cancels. Every reachable state is looked at.
 */
typedef struct UpgradeExplored {
	size_t states;
	const char *broken; /* the rule that was broken, NULL: none */
} UpgradeExplored;

/**
 * explore_upgrade() - walk all states
 * @faults:  at most so many in a run
 * @running: the guest runs when the upgrade begins, else it is paused
 * @used:    for each row, set to true when it was taken; may be NULL
 * @trace:   print the way to the state that breaks a rule
 *
 * Rules: never both run, the old one never after the new one has; a guest is lost only if the QEMU was killed that had
 * it; an end with one QEMU, the record naming it, is always in reach without another fault.
 */
UpgradeExplored explore_upgrade(const MoveRow *rows, size_t n_rows, unsigned int faults, bool running, bool *used,
				bool trace);
