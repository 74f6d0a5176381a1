/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/**
 * arrival_settle() - what a target's keeper that ended right after its COMMITTED had no time for: the definition that came
 * with the VM takes its place, and the note of where the VM once moved to goes
 * @name: of the VM; nothing is done if the journal does not say that it arrived here
 */
void arrival_settle(const char *name);
