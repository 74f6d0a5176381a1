/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"
#include "move/journal.h"

#define SLOTS 16
#define SLOT 1024

static char *dir, *path;
static const char *golden_dir;

static int setup(void **state)
{
	char name[] = "/tmp/test-journal.XXXXXX";

	(void)state;
	dir = xstrdup(mkdtemp(name));
	path = xasprintf("%s/journal", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	dir_remove(dir);
	free(dir);
	free(path);
	return 0;
}

static Journal *open_journal(void)
{
	_cleanup_error_ Error *err = NULL;
	Journal *journal = NULL;

	if (journal_open(path, &journal, &err) < 0)
		fail_msg("%s", err->message);
	return journal;
}

static Journal *reopen(Journal *journal)
{
	journal_free(journal);
	return open_journal();
}

static const char *id_of(unsigned int n)
{
	static char ids[8][33];
	static size_t next;
	char *id = ids[next++ % 8];

	snprintf(id, 33, "%032x", n);
	return id;
}

static int write_record(Journal *journal, JournalKind kind, unsigned int id)
{
	JournalRecord record = {.kind = kind, .running = true};

	memcpy(record.id, id_of(id), 33);
	return journal_write(journal, &record, NULL);
}

static void assert_last(const Journal *journal, JournalKind kind, unsigned int id)
{
	const JournalRecord *last = journal_last(journal);

	assert_string_equal(journal_kind_to_string(last->kind), journal_kind_to_string(kind));
	assert_string_equal(last->id, kind == JOURNAL_NONE ? "" : id_of(id));
}

static void assert_kind(const Journal *journal, unsigned int id, JournalKind kind)
{
	const JournalRecord *record = journal_find(journal, id_of(id));

	assert_non_null(record);
	assert_int_equal(record->kind, kind);
}

/* Changes bytes of the file. */
static void scribble(off_t at, const void *data, size_t len)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	assert_int_equal(pwrite(fd, data, len, at), len);
	fd_close(fd);
}

/* Where a migration's newest record is. */
static off_t slot_of(unsigned int id)
{
	_cleanup_free_ char *data = NULL, *wanted = xasprintf("id=%s", id_of(id));
	off_t found = -1;

	assert_int_equal(file_read(path, 65536, &data, NULL), 0);
	for (off_t i = 0; i < SLOTS; i++)
		if (strstr(data + i * SLOT, wanted))
			found = i * SLOT;
	assert_true(found >= 0);
	return found;
}

static void test_kinds(void **state)
{
	(void)state;
	for (int i = 0; i < _JOURNAL_KIND_MAX; i++)
		assert_int_equal(journal_kind_from_string(journal_kind_to_string((JournalKind)i)), i);
	assert_int_equal(journal_kind_from_string("nonsense"), -EINVAL);
	assert_null(journal_kind_to_string(_JOURNAL_KIND_MAX));
}

static void test_new_file(void **state)
{
	Journal *journal = open_journal();
	struct stat st;

	(void)state;
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, SLOTS * SLOT);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_true(st.st_blocks * 512 >= SLOTS * SLOT); /* no holes: a record is a plain overwrite */
	assert_last(journal, JOURNAL_NONE, 0);
	assert_null(journal_find(journal, id_of(1)));
	journal_free(journal);
}

static void test_reload(void **state)
{
	Journal *journal = open_journal();
	JournalRecord record = {.kind = JOURNAL_COMMIT, .running = true, .lease_generation = UINT64_MAX};
	const JournalRecord *last;

	(void)state;
	memcpy(record.id, id_of(1), 33);
	memset(record.peer, 'p', sizeof(record.peer) - 1);
	assert_int_equal(journal_write(journal, &record, NULL), 0);
	journal = reopen(journal);
	last = journal_last(journal);
	assert_int_equal(last->kind, JOURNAL_COMMIT);
	assert_int_equal(last->seq, 1);
	assert_true(last->running && !last->forgotten);
	assert_true(last->lease_generation == UINT64_MAX);
	assert_string_equal(last->id, record.id);
	assert_string_equal(last->peer, record.peer);
	record = (JournalRecord){.kind = JOURNAL_OWNER, .peer = "exec:sh -c 'a  b'"};
	assert_int_equal(journal_write(journal, &record, NULL), 0);
	journal = reopen(journal);
	last = journal_last(journal);
	assert_int_equal(last->kind, JOURNAL_OWNER);
	assert_int_equal(last->seq, 2);
	assert_string_equal(last->peer, "exec:sh -c 'a  b'");
	assert_string_equal(last->id, "");
	assert_kind(journal, 1, JOURNAL_COMMIT);
	journal_free(journal);
}

/* A record that could not be read back is refused, and costs no other one its place. */
static void test_unwritable(void **state)
{
	static const JournalRecord bad[] = {
		{.kind = JOURNAL_COMMIT, .id = "0123456789abcdef0123456789abcdef", .peer = "exec:sh -c 'a\nb'"},
		{.kind = JOURNAL_COMMIT, .id = "no id"},
		{.kind = _JOURNAL_KIND_MAX, .id = "0123456789abcdef0123456789abcdef"},
	};
	Journal *journal = open_journal();

	(void)state;
	for (unsigned int i = 1; i <= SLOTS; i++)
		assert_int_equal(write_record(journal, JOURNAL_OWNER, i), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_error_ Error *err = NULL;

		assert_int_equal(journal_write(journal, &bad[i], &err), -EINVAL);
		assert_non_null(err);
	}
	journal = reopen(journal);
	assert_last(journal, JOURNAL_OWNER, SLOTS);
	assert_kind(journal, 1, JOURNAL_OWNER);
	journal_free(journal);
}

/* Torn anywhere, the record was never there, and the next one is written as if nothing had been. */
static void test_torn_slot(void **state)
{
	_cleanup_free_ char *whole = NULL;
	Journal *journal = open_journal();
	size_t len;

	(void)state;
	assert_int_equal(write_record(journal, JOURNAL_OWNER, 1), 0);
	assert_int_equal(write_record(journal, JOURNAL_COMMIT, 2), 0);
	assert_int_equal(file_read(path, 65536, &whole, &len), 0);
	len = strlen(whole + slot_of(2));
	for (size_t cut = 0; cut < len; cut++) {
		char slot[SLOT] = {};

		memcpy(slot, whole + slot_of(2), cut);
		memset(slot + cut, cut & 1 ? 'x' : 0, cut & 1 ? 20 : 0);
		scribble(SLOT, slot, sizeof(slot));
		journal = reopen(journal);
		assert_last(journal, JOURNAL_OWNER, 1);
		assert_int_equal(write_record(journal, JOURNAL_COMMIT, 2), 0);
		assert_int_equal(slot_of(2), SLOT);
		journal = reopen(journal);
		assert_last(journal, JOURNAL_COMMIT, 2);
	}
	journal_free(journal);
}

static void assert_damaged(void)
{
	_cleanup_error_ Error *err = NULL;
	Journal *journal = NULL;

	assert_int_equal(journal_open(path, &journal, &err), -EBADMSG);
	assert_null(journal);
	assert_non_null(err->hint);
}

static void test_damaged(void **state)
{
	static const char zero[SLOT];
	Journal *journal = open_journal();
	_cleanup_free_ char *good = NULL;
	size_t len;

	(void)state;
	for (unsigned int i = 1; i <= 3; i++)
		assert_int_equal(write_record(journal, JOURNAL_OWNER, i), 0);
	assert_int_equal(file_read(path, 65536, &good, &len), 0);
	scribble(slot_of(1) + 30, "X", 1);
	scribble(slot_of(2) + 30, "X", 1);
	assert_damaged();
	scribble(0, good, len);
	/* The first byte alone gone: damage, not an empty slot. */
	scribble(slot_of(1), zero, 1);
	scribble(slot_of(2), zero, 1);
	assert_damaged();
	scribble(0, good, len);
	journal = reopen(journal);
	assert_last(journal, JOURNAL_OWNER, 3);
	/* Cut short: no record is written before the file has its length. */
	assert_int_equal(truncate(path, 2 * SLOT), 0);
	assert_damaged();
	assert_int_equal(truncate(path, 10), 0);
	assert_damaged();
	assert_int_equal(file_write(path, "something else altogether\n", 26, 0600, false), 0);
	assert_damaged();
	journal_free(journal);
}

/* A crash while the file was made: zeros, not all of them. */
static void test_half_made(void **state)
{
	static const char zero[SLOT];
	Journal *journal;
	struct stat st;

	(void)state;
	assert_int_equal(file_write(path, zero, 100, 0600, false), 0);
	journal = open_journal();
	assert_int_equal(write_record(journal, JOURNAL_OWNER, 1), 0);
	journal = reopen(journal);
	assert_last(journal, JOURNAL_OWNER, 1);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_size, SLOTS * SLOT);
	journal_free(journal);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	assert_int_equal(journal_open(path, &journal, NULL), -ELOOP);
}

static void test_aborted(void **state)
{
	Journal *journal = open_journal();

	(void)state;
	assert_int_equal(write_record(journal, JOURNAL_ABORTED, 1), 0);
	assert_last(journal, JOURNAL_NONE, 0); /* a tombstone alone says nothing about who may run it here */
	assert_int_equal(write_record(journal, JOURNAL_GONE, 2), 0);
	assert_int_equal(write_record(journal, JOURNAL_COMMITTED, 3), 0);
	assert_last(journal, JOURNAL_COMMITTED, 3);
	assert_int_equal(write_record(journal, JOURNAL_ABORTED, 3), 0);
	assert_last(journal, JOURNAL_GONE, 2);
	assert_kind(journal, 3, JOURNAL_ABORTED);
	journal = reopen(journal);
	assert_last(journal, JOURNAL_GONE, 2);
	assert_kind(journal, 1, JOURNAL_ABORTED);
	assert_kind(journal, 3, JOURNAL_ABORTED);
	journal_free(journal);
}

static void test_ring(void **state)
{
	Journal *journal = open_journal();

	(void)state;
	for (unsigned int i = 1; i <= 5 * SLOTS; i++) {
		assert_int_equal(write_record(journal, i & 1 ? JOURNAL_COMMIT : JOURNAL_OWNER, i), 0);
		if (i % 7 == 0)
			journal = reopen(journal);
		assert_last(journal, i & 1 ? JOURNAL_COMMIT : JOURNAL_OWNER, i);
		assert_int_equal(journal_last(journal)->seq, i);
	}
	for (unsigned int i = 1; i <= 5 * SLOTS; i++)
		assert_int_equal(journal_find(journal, id_of(i)) != NULL, i > 4 * SLOTS);
	journal_free(journal);
}

/* What stands stays, however many migrations come to nothing after it; also when the last one was as good as taken. */
static void test_ring_keeps_what_stands(void **state)
{
	Journal *journal = open_journal();

	(void)state;
	assert_int_equal(write_record(journal, JOURNAL_GONE, 1), 0);
	for (unsigned int i = 2; i < 60; i++) {
		assert_int_equal(write_record(journal, JOURNAL_ABORTED, i), 0);
		assert_last(journal, JOURNAL_GONE, 1);
	}
	assert_int_equal(write_record(journal, JOURNAL_COMMITTED, 60), 0);
	assert_last(journal, JOURNAL_COMMITTED, 60);
	assert_int_equal(write_record(journal, JOURNAL_ABORTED, 60), 0);
	assert_last(journal, JOURNAL_GONE, 1);
	journal = reopen(journal);
	assert_last(journal, JOURNAL_GONE, 1);
	assert_kind(journal, 60, JOURNAL_ABORTED);
	journal_free(journal);
}

/* A COMMITTED record answers its source until the source says that it knows. */
static void test_unforgotten(void **state)
{
	Journal *journal = open_journal();
	unsigned int n = 0;
	int r;

	(void)state;
	assert_int_equal(write_record(journal, JOURNAL_COMMITTED, 1), 0);
	for (unsigned int i = 2; i < 60; i++)
		assert_int_equal(write_record(journal, JOURNAL_OWNER, i), 0);
	assert_kind(journal, 1, JOURNAL_COMMITTED);
	for (n = 100; (r = write_record(journal, JOURNAL_COMMITTED, n)) == 0; n++)
		assert_true(n < 200);
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(write_record(journal, JOURNAL_ABORTED, 300), -ENOSPC);
	journal = reopen(journal);
	assert_kind(journal, 1, JOURNAL_COMMITTED);
	for (unsigned int i = 100; i < n; i++)
		assert_kind(journal, i, JOURNAL_COMMITTED);
	journal_forget(journal, id_of(1));
	journal_forget(journal, id_of(999));
	journal = reopen(journal);
	assert_true(journal_find(journal, id_of(1))->forgotten);
	assert_int_equal(write_record(journal, JOURNAL_ABORTED, 300), 0);
	assert_null(journal_find(journal, id_of(1)));
	assert_last(journal, JOURNAL_COMMITTED, n - 1);
	journal_free(journal);
}

/* A write that fails: what stood stands, here and in the file, and the next one works. */
static void test_failing_write(void **state)
{
	Journal *journal = open_journal();
	struct rlimit was, small;
	int r;

	(void)state;
	assert_int_equal(write_record(journal, JOURNAL_OWNER, 1), 0);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	small = (struct rlimit){.rlim_cur = SLOT, .rlim_max = was.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	r = write_record(journal, JOURNAL_COMMIT, 2);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	assert_int_equal(r, -EFBIG);
	assert_last(journal, JOURNAL_OWNER, 1);
	assert_null(journal_find(journal, id_of(2)));
	journal = reopen(journal);
	assert_last(journal, JOURNAL_OWNER, 1);
	assert_int_equal(write_record(journal, JOURNAL_COMMIT, 2), 0);
	assert_last(journal, JOURNAL_COMMIT, 2);
	assert_int_equal(journal_last(journal)->seq, 2);
	journal_free(journal);
}

/* ---- version 1 of the format, for ever ---- */

static const JournalRecord released[] = {
	{.kind = JOURNAL_OWNER, .id = "00000000000000000000000000000001"},
	{.kind = JOURNAL_COMMIT,
	 .id = "00000000000000000000000000000002",
	 .running = true,
	 .peer = "ssh://root@b:2222"},
	{.kind = JOURNAL_GONE,
	 .id = "00000000000000000000000000000003",
	 .running = true,
	 .peer = "exec:ip netns 'b c'"},
	{.kind = JOURNAL_COMMITTED, .id = "00000000000000000000000000000004", .peer = "host-id.of_a"},
	{.kind = JOURNAL_ABORTED, .id = "00000000000000000000000000000005"},
	{.kind = JOURNAL_COMMIT,
	 .id = "00000000000000000000000000000006",
	 .lease_generation = 18446744073709551615UL,
	 .peer = "direct:ssh://b"},
};

/* golden/journal.1 has these records' slots, a line each: they are read, and written, as they were. */
static void test_golden(void **state)
{
	_cleanup_free_ char *file = xasprintf("%s/journal.1", golden_dir), *text = NULL, *now = xstrdup("");
	Journal *journal = open_journal();
	size_t len;
	int fd;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(released); i++)
		assert_int_equal(journal_write(journal, &released[i], NULL), 0);
	journal_free(journal);
	fd = open(path, O_RDWR | O_CLOEXEC);
	for (size_t i = 0; i < ARRAY_SIZE(released); i++) {
		_cleanup_free_ char *before = now;
		char slot[SLOT + 1] = {};

		for (off_t at = 0; at < SLOTS * SLOT && !strstr(slot, released[i].id); at += SLOT)
			assert_int_equal(pread(fd, slot, SLOT, at), SLOT);
		now = xasprintf("%s%s%s", before, slot, slot[strlen(slot) - 1] == '\n' ? "" : "\n");
	}
	fd_close(fd);
	if (getenv("VMFERRY_WRITE_GOLDEN"))
		assert_int_equal(file_write(file, now, strlen(now), 0644, false), 0);
	assert_int_equal(file_read(file, 65536, &text, &len), 0);
	assert_string_equal(now, text);
	journal = open_journal();
	for (size_t i = 0; i < ARRAY_SIZE(released); i++) {
		const JournalRecord *r = journal_find(journal, released[i].id);

		assert_non_null(r);
		assert_int_equal(r->kind, released[i].kind);
		assert_int_equal(r->running, released[i].running);
		assert_int_equal(r->lease_generation, released[i].lease_generation);
		assert_string_equal(r->peer, released[i].peer);
	}
	journal_free(journal);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(test_kinds),
		TEST(test_new_file),
		TEST(test_reload),
		TEST(test_unwritable),
		TEST(test_golden),
		TEST(test_torn_slot),
		TEST(test_damaged),
		TEST(test_half_made),
		TEST(test_aborted),
		TEST(test_ring),
		TEST(test_ring_keeps_what_stands),
		TEST(test_unforgotten),
		TEST(test_failing_write),
	};

	golden_dir = argc > 1 ? argv[1] : "tests/unit/golden";
	return cmocka_run_group_tests(tests, NULL, NULL);
}
