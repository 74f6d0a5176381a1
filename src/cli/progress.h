/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <stdio.h>

#include "basic/json.h"

/* How progress is shown: not at all, a line rewritten in place, or lines at intervals. */
typedef enum ProgressMode { PROGRESS_NONE, PROGRESS_PLAIN, PROGRESS_LINE } ProgressMode;

/**
 * struct Progress - progress on a stream
 * @mode:  how
 * @out:   where
 * @width: of the terminal, for PROGRESS_LINE
 * @phase: the phase last shown
 * @shown: when (CLOCK_MONOTONIC, microseconds)
 * @dirty: a line stands on the terminal that must be cleared before other text
 */
typedef struct Progress {
	ProgressMode mode;
	FILE *out;
	int width;
	char *phase;
	uint64_t shown;
	bool dirty;
} Progress;

/** progress_init() - @choice is what --progress says, NULL: a line on a terminal, else plain */
void progress_init(Progress *p, FILE *out, const char *choice);
/** progress_done() - clear the line, free what is held */
void progress_done(Progress *p);
/** progress_clear() - clear the line, so that other text can be printed */
void progress_clear(Progress *p);
/** progress_show() - show a Progress signal's JSON; plain lines at a change of phase and every five seconds */
void progress_show(Progress *p, const char *name, json_object *progress, uint64_t now);
/** progress_text() - "Perform 43 %  612 MiB/s  dirty 20 MiB/s  3.1 s left  pause ~45 ms", free() it */
char *progress_text(json_object *progress);
