/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "move/engine.h"

/*
 * Two keepers, each running the given rows, over a link that loses what is on it; keepers, QEMUs and hosts that die at
 * any moment and come back; a person who cancels; journals that fail. Every reachable state is looked at.
 */
typedef struct ExploreOptions {
	unsigned int faults; /* at most so many in a run */
	bool offline;	     /* a VM that is off */
	bool lease;	     /* a VM with a lease: nobody runs it without */
	bool *used;	     /* for each row, set to true when it was taken; may be NULL */
	bool trace;	     /* print the way to the state that breaks a rule */
} ExploreOptions;

typedef struct ExploreResult {
	size_t states;
	const char *broken; /* the rule that was broken, NULL: none */
} ExploreResult;

/**
 * explore() - walk all states
 *
 * Rules: never two that run, nothing runs where it must not, nor without the lease; journals agree; a state from which, without further
 * faults, no end with exactly one owner can be reached is broken too.
 */
ExploreResult explore(const MoveRow *rows, size_t n_rows, const ExploreOptions *options);
