/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A journal file of any content: refused, or read the same again after a record was added. */
#include <stdlib.h>
#include <unistd.h>

#include "basic/fs.h"
#include "basic/text.h"
#include "move/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add_and_reopen(Journal *journal, const char *path)
{
	JournalRecord last = *journal_last(journal), record = {.kind = JOURNAL_ABORTED};
	const JournalRecord *now;
	Journal *again;

	memcpy(record.id, "f00df00df00df00df00df00df00df00d", 33);
	if (last.seq && (last.kind >= _JOURNAL_KIND_MAX || (*last.id && !text_is_id(last.id))))
		abort();
	if (journal_find(journal, record.id) || last.seq == UINT64_MAX || journal_write(journal, &record, NULL) < 0)
		return;
	if (journal_open(path, &again, NULL) < 0)
		abort();
	now = journal_last(again);
	if (now->seq != last.seq || now->kind != last.kind || !streq(now->id, last.id) ||
	    !streq(now->peer, last.peer) || !journal_find(again, record.id))
		abort();
	journal_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *path = xasprintf("/dev/shm/fuzz-journal.%d", (int)getpid());
	Journal *journal;

	if (size > 65536 || file_write(path, data, size, 0600, false) < 0)
		return 0;
	if (journal_open(path, &journal, NULL) == 0) {
		add_and_reopen(journal, path);
		journal_free(journal);
	}
	unlink(path);
	return 0;
}
