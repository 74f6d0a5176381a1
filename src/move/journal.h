/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/*
 * The records that decide who may run a guest: STATE_DIR/NAME/journal. Sixteen slots of 1 KiB, each one line of text with
 * a CRC; a record is one pwrite and one fdatasync into a file whose blocks were written before the guest was stopped. The
 * newest valid slot is the state; older ones answer for older migrations.
 */

/* X(identifier, name, meaning) */
#define JOURNAL_KINDS(X)                                                                         \
	X(NONE, "none", "no record: on the host of the definition the owner, elsewhere not")     \
	X(OWNER, "owner", "the guest is ours (again)")                                           \
	X(COMMIT, "commit", "source: offered to the peer; only the peer's word decides")         \
	X(GONE, "gone", "source: the peer has it")                                               \
	X(COMMITTED, "committed", "target: taken, the guest is ours")                            \
	X(ABORTED, "aborted", "target: has not run here and never will")
#define X(id, name, text) JOURNAL_##id,
typedef enum JournalKind { JOURNAL_KINDS(X) _JOURNAL_KIND_MAX } JournalKind;
#undef X
/** journal_kind_to_string() - the name above, NULL if there is no such kind; and the reverse: -EINVAL if there is no such name */
const char *journal_kind_to_string(JournalKind kind);
int journal_kind_from_string(const char *s);

typedef struct JournalRecord {
	uint64_t seq;
	JournalKind kind;
	char id[33];	   /* of the migration */
	bool forgotten;	   /* target: the source's GONE is durable, the record may go */
	bool running;	   /* the guest ran (COMMIT, COMMITTED): run it */
	uint64_t lease_generation;
	char peer[512];	   /* COMMIT: the destination, to ask there again; GONE: where it went; COMMITTED: host id of
			    * the source */
} JournalRecord;

typedef struct Journal Journal;

/**
 * journal_open() - open (making it with all its blocks written and synced, if need be)
 * @path: STATE_DIR/NAME/journal; the directory must exist
 *
 * Return: 0, or negative errno with @err set; a slot that fails its CRC is skipped (a torn write); two of them, a file
 * that was cut short, or one of another format is -EBADMSG.
 */
int journal_open(const char *path, Journal **ret, Error **err);
void journal_free(Journal *journal);
DEFINE_CLEANUP(Journal *, journal_free)

/**
 * journal_last() - the record that stands: the newest one of a migration that was not aborted here
 *
 * An ABORTED record says that a migration came to nothing: what stood before it stands again.
 *
 * Return: never NULL, kind JOURNAL_NONE if there is none; owned by the journal.
 */
const JournalRecord *journal_last(const Journal *journal);

/** journal_find() - the newest record of a migration, or NULL */
const JournalRecord *journal_find(const Journal *journal, const char *id);

/**
 * journal_write() - make a record durable; @record->seq is set here
 *
 * A COMMITTED record that the source has not told us to forget is never overwritten, nor the record that stands, nor the
 * one that would stand if that were aborted: -ENOSPC when all slots are such. -EINVAL: @record's peer is not one line.
 *
 * Return: 0 when it is on stable storage, or negative errno with @err set.
 */
int journal_write(Journal *journal, const JournalRecord *record, Error **err);

/** journal_room() - whether a record can be written. Return: 0, or -ENOSPC with @err set */
int journal_room(const Journal *journal, Error **err);

/**
 * journal_forget_peer() - forget what came from a host: one that moves this VM again, in either direction, is not in doubt
 * about it
 * @host_id: of the peer
 */
void journal_forget_peer(Journal *journal, const char *host_id);

/** journal_forget() - mark a COMMITTED record as no longer needed (not synced: forgetting late is harmless) */
void journal_forget(Journal *journal, const char *id);
