/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>

#include "basic/macros.h"
#include "states.h"

int main(void)
{
	_cleanup_free_ char *text = states_text();

	return fputs(text, stdout) < 0 || fflush(stdout) != 0;
}
