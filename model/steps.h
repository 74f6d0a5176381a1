/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Part of the verifier that SPIN makes: its parameters, and every different step it takes, printed once. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PARAMETER(name) now.name = (uchar)(getenv(#name) ? atoi(getenv(#name)) : 0)

#define STEPS (1 << 16)

static void step_taken(uint64_t state, uint64_t event, uint64_t facts, uint64_t next, uint64_t todo)
{
	static struct {
		uint64_t where, what;
	} seen[STEPS];
	static size_t n;
	uint64_t where = 1 + (state | event << 8 | next << 16 | facts << 24), what = todo;
	size_t i = (where * 11400714819323198485ULL + what) % STEPS;

	for (; seen[i].where; i = (i + 1) % STEPS)
		if (seen[i].where == where && seen[i].what == what)
			return;
	if (++n == STEPS)
		abort();
	seen[i].where = where;
	seen[i].what = what;
	printf("step %u %u %u %u %lu\n", (unsigned)state, (unsigned)event, (unsigned)facts, (unsigned)next,
	       (unsigned long)todo);
}
