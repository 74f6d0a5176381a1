/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/macros.h"

/* Ctrl-], which leaves a console. */
#define RELAY_ESCAPE 0x1d

/* What a far command line sends for ^C. */
#define RELAY_INTERRUPT 0x03

/* Why a relay ended. */
typedef enum RelayEnd {
	RELAY_FAR_ENDED,  /* the far end closed, or what we wait for is over */
	RELAY_LEFT,	  /* a person left with Ctrl-] */
	RELAY_QUIET,	  /* input has ended and nothing came for a while */
	RELAY_SIGNALLED,  /* SIGTERM, SIGHUP, or a SIGINT that has no meaning to the far end */
	RELAY_OUTPUT_GONE /* nobody reads our output any more */
} RelayEnd;

/**
 * struct Relay - standard input and output, and a far end
 * @write_fd:  where input goes, blocking; closed and set to -1 when input ends, unless @quiet
 * @read_fd:   what is written to standard output, or -1
 * @over_fd:   readable when the relay is over (a pidfd), or -1
 * @input:     whether standard input is read
 * @raw:       a console: the terminal in raw mode, Ctrl-] leaves
 * @interrupt: SIGINT is sent as RELAY_INTERRUPT
 * @quiet:     milliseconds without output, after which a relay whose input has ended is over; 0: at once closes
 * @write_fd
 */
typedef struct Relay {
	int write_fd;
	int read_fd;
	int over_fd;
	bool input;
	bool raw;
	bool interrupt;
	int quiet;
} Relay;

/**
 * relay_run() - copy until one side ends
 *
 * Return: RelayEnd or negative errno. The terminal is as it was.
 */
int relay_run(Relay *relay);
