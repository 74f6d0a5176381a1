/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "move/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/crc32.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"

#define SLOTS 16
#define SLOT_SIZE 1024

struct Journal {
	int fd;
	JournalRecord slot[SLOTS]; /* seq 0: empty */
	uint64_t seq;		   /* of the newest */
};

static const char *const kind_names[] = {
#define X(id, name, text) [JOURNAL_##id] = name,
	JOURNAL_KINDS(X)
#undef X
};
static_assert(ARRAY_SIZE(kind_names) == _JOURNAL_KIND_MAX, "a name for every kind");

const char *journal_kind_to_string(JournalKind kind)
{
	return kind < _JOURNAL_KIND_MAX ? kind_names[kind] : NULL;
}

int journal_kind_from_string(const char *s)
{
	for (int i = 0; i < _JOURNAL_KIND_MAX; i++)
		if (streq(kind_names[i], s))
			return i;
	return -EINVAL;
}

/* "vmferry1 CRC seq=... kind=... id=... forgotten=... running=... lease=... peer=...\n", peer to the end of the line.
 */
static void slot_text(const JournalRecord *r, char *slot)
{
	_cleanup_free_ char *body = NULL, *line = NULL;

	body = xasprintf("seq=%" PRIu64 " kind=%s id=%s forgotten=%d running=%d lease=%" PRIu64 " peer=%s", r->seq,
			 kind_names[r->kind], r->id[0] ? r->id : "-", r->forgotten, r->running, r->lease_generation,
			 r->peer);
	line = xasprintf("vmferry1 %08" PRIx32 " %s\n", crc32_add(0, body, strlen(body)), body);
	memset(slot, 0, SLOT_SIZE);
	memcpy(slot, line, strlen(line) < SLOT_SIZE ? strlen(line) : SLOT_SIZE - 1);
}

static bool slot_parse(char *slot, JournalRecord *ret)
{
	JournalRecord r = {};
	char kind[16], id[34];
	int forgotten, running, peer_at = 0, k;
	uint32_t crc;
	char *end, *body;

	slot[SLOT_SIZE - 1] = '\0';
	end = strchr(slot, '\n');
	if (!end || !startswith(slot, "vmferry1 ") || sscanf(slot + 9, "%8" SCNx32, &crc) != 1 || slot[17] != ' ')
		return false;
	*end = '\0';
	body = slot + 18;
	if (crc32_add(0, body, strlen(body)) != crc)
		return false;
	if (sscanf(body, "seq=%" SCNu64 " kind=%15s id=%33s forgotten=%d running=%d lease=%" SCNu64 " peer=%n", &r.seq,
		   kind, id, &forgotten, &running, &r.lease_generation, &peer_at) != 6 ||
	    peer_at == 0)
		return false;
	k = journal_kind_from_string(kind);
	if (k < 0 || r.seq == 0 || strlen(body + peer_at) >= sizeof(r.peer) || (!streq(id, "-") && !text_is_id(id)))
		return false;
	r.kind = (JournalKind)k;
	r.forgotten = forgotten;
	r.running = running;
	memcpy(r.id, streq(id, "-") ? "" : id, streq(id, "-") ? 1 : 33);
	memcpy(r.peer, body + peer_at, strlen(body + peer_at) + 1);
	*ret = r;
	return true;
}

static bool all_zero(const char *slot)
{
	static const char zero[SLOT_SIZE];

	return memcmp(slot, zero, SLOT_SIZE) == 0;
}

static int load(Journal *journal)
{
	size_t bad = 0;
	bool cut = false;

	for (size_t i = 0; i < SLOTS; i++) {
		char slot[SLOT_SIZE] = {};
		ssize_t n = pread(journal->fd, slot, sizeof(slot), (off_t)(i * SLOT_SIZE));

		if (n < 0)
			return -errno;
		cut |= n != SLOT_SIZE;
		if (!all_zero(slot) && !slot_parse(slot, &journal->slot[i]))
			bad++;
		if (journal->slot[i].seq > journal->seq)
			journal->seq = journal->slot[i].seq;
	}
	/* No record is written before the file has its whole length. */
	if (cut && (journal->seq > 0 || bad > 0))
		return -EBADMSG;
	/* One slot may be torn by a crash; more is not our file, and guessing who owns a guest is not for us. */
	return bad > 1 ? -EBADMSG : 0;
}

static int slot_write(Journal *journal, size_t i, const char *slot)
{
	ssize_t n = pwrite(journal->fd, slot, SLOT_SIZE, (off_t)(i * SLOT_SIZE));

	return n < 0 ? -errno : n == SLOT_SIZE ? 0 : -EIO;
}

/* Blocks are allocated and written now, so that a record later is a plain overwrite. */
static int preallocate(Journal *journal, const char *path)
{
	static const char zero[SLOT_SIZE];
	_cleanup_free_ char *dir = NULL;
	const char *slash = strrchr(path, '/');
	struct stat st;
	int r;

	if (fstat(journal->fd, &st) < 0)
		return -errno;
	if (st.st_size >= SLOTS * SLOT_SIZE)
		return 0;
	for (size_t i = (size_t)st.st_size / SLOT_SIZE; i < SLOTS; i++)
		if ((r = slot_write(journal, i, zero)) < 0)
			return r;
	if (fsync(journal->fd) < 0)
		return -errno;
	dir = slash ? xasprintf("%.*s/", (int)(slash - path), path) : xstrdup(".");
	return dir_sync(dir);
}

int journal_open(const char *path, Journal **ret, Error **err)
{
	_cleanup_(journal_freep)
	Journal *journal = xcalloc(1, sizeof(*journal));
	int r;

	journal->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (journal->fd < 0)
		return error_set(err, -errno, "cannot open %s: %m", path);
	r = load(journal);
	if (r == -EBADMSG) {
		error_set(err, r, "%s is damaged: it does not say who may run this VM", path);
		error_hint(err, "make sure that the VM runs on no other host, then remove the file");
		return r;
	}
	if (r >= 0)
		r = preallocate(journal, path);
	if (r < 0)
		return error_set(err, r, "%s: %s", path, strerror(-r));
	*ret = TAKE_PTR(journal);
	return 0;
}

void journal_free(Journal *journal)
{
	if (!journal)
		return;
	fd_close(journal->fd);
	free(journal);
}

/* The newest record of a migration that was not aborted here, leaving one migration out of account (NULL: none). */
static const JournalRecord *standing(const Journal *journal, const JournalRecord *without)
{
	static const JournalRecord none;
	const JournalRecord *last = &none;

	for (size_t i = 0; i < SLOTS; i++) {
		const JournalRecord *r = &journal->slot[i];

		if (r->seq <= last->seq || (without && streq(r->id, without->id)))
			continue;
		if (journal_find(journal, r->id)->kind != JOURNAL_ABORTED)
			last = r;
	}
	return last;
}

const JournalRecord *journal_last(const Journal *journal)
{
	return standing(journal, NULL);
}

const JournalRecord *journal_find(const Journal *journal, const char *id)
{
	const JournalRecord *found = NULL;

	for (size_t i = 0; i < SLOTS; i++)
		if (journal->slot[i].seq && streq(journal->slot[i].id, id) &&
		    (!found || journal->slot[i].seq > found->seq))
			found = &journal->slot[i];
	return found;
}

/* The slot of the oldest record that may go; never the one that stands, nor the one that would if that were aborted. */
static ssize_t victim(const Journal *journal)
{
	const JournalRecord *last = journal_last(journal);
	const JournalRecord *before = last->seq ? standing(journal, last) : NULL;
	ssize_t found = -1;

	for (size_t i = 0; i < SLOTS; i++) {
		const JournalRecord *r = &journal->slot[i];

		if (r == last || r == before)
			continue;
		if (r->kind == JOURNAL_COMMITTED && !r->forgotten && r->seq && journal_find(journal, r->id) == r)
			continue;
		if (found < 0 || r->seq < journal->slot[found].seq)
			found = (ssize_t)i;
	}
	return found;
}

/* A record that could not be read back is no record: seen before it takes another's place. */
static int encode(const JournalRecord *record, char *slot)
{
	char copy[SLOT_SIZE];
	JournalRecord back;

	if (record->kind >= _JOURNAL_KIND_MAX)
		return -EINVAL;
	slot_text(record, slot);
	memcpy(copy, slot, SLOT_SIZE);
	if (!slot_parse(copy, &back) || back.kind != record->kind || !streq(back.id, record->id) ||
	    !streq(back.peer, record->peer) || back.lease_generation != record->lease_generation)
		return -EINVAL;
	return 0;
}

int journal_room(const Journal *journal, Error **err)
{
	if (victim(journal) >= 0)
		return 0;
	error_set(err, -ENOSPC, "the journal is full of migrations that no source has confirmed");
	error_hint(err, "its hosts could not be reached after they had given this VM away; see vmferry log");
	return -ENOSPC;
}

int journal_write(Journal *journal, const JournalRecord *record, Error **err)
{
	JournalRecord fresh = *record;
	ssize_t i = victim(journal);
	char slot[SLOT_SIZE];
	int r;

	r = journal_room(journal, err);
	if (r < 0)
		return r;
	fresh.seq = journal->seq + 1;
	if (encode(&fresh, slot) < 0)
		return error_set(err, -EINVAL, "not a record that the journal can hold");
	r = slot_write(journal, (size_t)i, slot);
	if (r == 0 && fdatasync(journal->fd) < 0)
		r = -errno;
	if (r < 0) {
		/* What did not become durable must not be found there later either, as far as that can be had. */
		memset(slot, 0, sizeof(slot));
		if (journal->slot[i].seq)
			slot_text(&journal->slot[i], slot);
		(void)slot_write(journal, (size_t)i, slot);
		return error_set(err, r, "cannot write the journal: %s", strerror(-r));
	}
	journal->slot[i] = fresh;
	journal->seq++;
	return 0;
}

static void forget(Journal *journal, size_t slot)
{
	JournalRecord *r = &journal->slot[slot];
	char text[SLOT_SIZE];

	if (r->kind != JOURNAL_COMMITTED || r->forgotten)
		return;
	r->forgotten = true;
	slot_text(r, text);
	(void)slot_write(journal, slot, text);
}

void journal_forget(Journal *journal, const char *id)
{
	for (size_t i = 0; i < SLOTS; i++)
		if (streq(journal->slot[i].id, id))
			forget(journal, i);
}

void journal_forget_peer(Journal *journal, const char *host_id)
{
	for (size_t i = 0; i < SLOTS; i++)
		if (streq(journal->slot[i].peer, host_id))
			forget(journal, i);
}
