/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The engine's variables, a set for each of HOSTS keepers. names.pml is generated from src/move/: numbers of states, events and
 * actions, and which states have which events.
 */
#ifdef RUNTIME
c_decl {
\#include "steps.h"
}
#endif

#define NO_EVENT 0
#include "names.pml"

/* All of it dies with the keeper. */
bool up[HOSTS] = 1;
byte state[HOSTS];
int todo[HOSTS];    /* the actions of the row under way that are still to come, the next one as the last digit */
byte then[HOSTS];   /* the state after them */
byte urgent[HOSTS]; /* ENTER or ACTION_FAILED: comes before anything else */
byte soon[HOSTS];   /* an event that an action has brought about */
bool late[HOSTS];   /* the deadline has passed */

byte faults; /* so far */
#define fault (faults < FAULTS)
#define ready(host) (up[host] && !urgent[host] && !todo[host]) /* between two events */

/* A rule of the protocol; the trail to where it is broken ends with its words. */
#define must(condition, words) if :: condition :: else -> printf(words); assert(false) fi

inline engine_dies()
{
	up[h] = 0;
	state[h] = S_IDLE;
	todo[h] = 0;
	then[h] = 0;
	urgent[h] = 0;
	soon[h] = 0;
	late[h] = 0
}
