/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "move/arrival.h"

#include <unistd.h>

#include "basic/paths.h"
#include "basic/text.h"
#include "move/journal.h"

void arrival_settle(const char *name)
{
	_cleanup_free_ char *path = state_path(name, "journal"), *arrived = state_path(name, "definition");
	_cleanup_free_ char *note = state_path(name, "moved"), *fresh = NULL;
	_cleanup_(journal_freep)
	Journal *journal = NULL;
	_cleanup_error_ Error *err = NULL;
	const JournalRecord *last;

	if (access(path, R_OK | W_OK) < 0 || journal_open(path, &journal, &err) < 0)
		return;
	last = journal_last(journal);
	if (last->kind != JOURNAL_COMMITTED)
		return;
	fresh = xasprintf("%s.%s", arrived, last->id);
	if (access(fresh, F_OK) == 0)
		(void)rename(fresh, arrived);
	(void)unlink(note);
}
