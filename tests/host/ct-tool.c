/* SPDX-License-Identifier: GPL-2.0-or-later */
/* ct-tool bench ENTRIES CHURN: figures of src/conntrack/ in the network namespace it is started in, a JSON line. */
#include <stdio.h>
#include <stdlib.h>

#include "basic/text.h"
#include "ct-bench.h"

int main(int argc, char **argv)
{
	if (argc == 4 && streq(argv[1], "bench"))
		return ct_bench((uint32_t)strtoul(argv[2], NULL, 10), (uint32_t)strtoul(argv[3], NULL, 10));
	fprintf(stderr, "usage: ct-tool bench ENTRIES CHURN\n");
	return 2;
}
