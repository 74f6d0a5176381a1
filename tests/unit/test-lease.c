/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"
#include "vm/lease.h"

#define UUID "0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11"
#define SLOT_APART 4096
#define SLOT_SIZE 512
#define SIZE (SLOT_APART + SLOT_SIZE)

static char *dir, *path;
static VmDefinition definition = {.name = (char *)"web1", .uuid = (char *)UUID, .lease = LEASE_FILE};

static int setup(void **state)
{
	/* Thousands of synced writes: in memory, where there is such a place. */
	char shm[] = "/dev/shm/test-lease.XXXXXX", tmp[] = "/tmp/test-lease.XXXXXX";
	char *name = access("/dev/shm", W_OK) == 0 ? shm : tmp;

	(void)state;
	dir = xstrdup(mkdtemp(name));
	definition.lease_path = path = xasprintf("%s/lease", dir);
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

/* A host's view; two of them in one process are two open file descriptions, as on two hosts. */
static int try_open(const char *host, bool create, Lease **ret, Error **err)
{
	_cleanup_free_ char *name = xasprintf("%s.example", host);
	LeaseOptions options = {
		.definition = &definition, .host_id = host, .host_name = name, .create = create, .fd = -1};

	return lease_open(&options, ret, err);
}

static Lease *open_as(const char *host)
{
	_cleanup_error_ Error *err = NULL;
	Lease *lease = NULL;

	if (try_open(host, true, &lease, &err) < 0)
		fail_msg("%s", err->message);
	return lease;
}

static bool never(void)
{
	return false;
}

/* A keeper that comes back: the description is the one that QEMU has. */
static Lease *adopt_running(const char *host, int fd, bool runs)
{
	_cleanup_error_ Error *err = NULL;
	LeaseOptions options = {.definition = &definition,
				.host_id = host,
				.host_name = host,
				.fd = fd,
				.qemu = 1,
				.may_release = never};
	Lease *lease = NULL;

	if (lease_new(&options, &lease, &err) < 0 || lease_begin(lease, false, runs, &err) < 0)
		fail_msg("%s", err->message);
	return lease;
}

static Lease *adopt_as(const char *host, int fd)
{
	_cleanup_error_ Error *err = NULL;
	LeaseOptions options = {.definition = &definition, .host_id = host, .host_name = host, .fd = fd, .qemu = 1};
	Lease *lease = NULL;

	if (lease_open(&options, &lease, &err) < 0)
		fail_msg("%s", err->message);
	return lease;
}

static void acquire(Lease *lease)
{
	_cleanup_error_ Error *err = NULL;

	if (lease_acquire(lease, NULL, 0, &err) < 0)
		fail_msg("%s", err->message);
	assert_true(lease_held(lease));
}

static int acquire_if(Lease *lease, const char *holder, uint64_t generation)
{
	LeaseAccept accept = {holder, generation};

	return lease_acquire(lease, &accept, 1, NULL);
}

static void release(Lease *lease)
{
	_cleanup_error_ Error *err = NULL;

	if (lease_release(lease, &err) < 0)
		fail_msg("%s", err->message);
	assert_false(lease_held(lease));
}

static void assert_state(Lease *lease, bool held, bool mine, uint64_t generation, const char *holder)
{
	_cleanup_error_ Error *err = NULL;
	LeaseState state;

	if (lease_inquire(lease, &state, &err) < 0)
		fail_msg("%s", err->message);
	assert_int_equal(state.held, held);
	assert_int_equal(state.mine, mine);
	assert_int_equal(state.generation, generation);
	assert_string_equal(state.holder, holder);
}

static bool readable(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 0) == 1;
}

/* ---- taking and giving back ---- */

static void test_two_hosts(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");
	_cleanup_error_ Error *err = NULL;

	(void)state;
	assert_state(a, false, false, 0, "");
	acquire(a);
	assert_int_equal(lease_generation(a), 1);
	assert_state(a, true, true, 1, "a");
	assert_state(b, true, false, 1, "a");
	assert_int_equal(lease_acquire(b, NULL, 0, &err), -EBUSY);
	assert_non_null(strstr(err->message, "is held by host a.example since 2"));
	assert_non_null(strstr(err->message, path));
	acquire(a); /* what one has, one has */
	assert_int_equal(lease_generation(a), 1);
	release(a);
	release(a);
	assert_state(b, false, false, 1, "a");
	acquire(b);
	assert_int_equal(lease_generation(b), 2);
	assert_int_equal(lease_acquire(a, NULL, 0, NULL), -EBUSY);
	assert_state(a, true, false, 2, "b");
}

static void test_compare_and_swap(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");
	const LeaseAccept back[] = {{"a", 0}, {"b", 3}};
	_cleanup_error_ Error *err = NULL;

	(void)state;
	acquire(a);
	release(a);
	assert_int_equal(acquire_if(b, "a", 2), -ESTALE);
	assert_int_equal(acquire_if(b, "c", 1), -ESTALE);
	assert_false(lease_held(b));
	assert_int_equal(acquire_if(b, "a", 1), 0);
	release(b);
	assert_state(a, false, false, 2, "b");
	assert_int_equal(acquire_if(a, "a", 0), -ESTALE); /* b may have run it */
	assert_int_equal(acquire_if(b, "a", 1), -ESTALE); /* a message that comes twice */
	assert_int_equal(lease_acquire(a, back, ARRAY_SIZE(back), &err), -ESTALE);
	assert_non_null(strstr(err->message, "was host b.example's, and is free since 2"));
	assert_int_equal(acquire_if(b, "b", 0), 0);
	release(b);
	assert_int_equal(lease_acquire(a, back, ARRAY_SIZE(back), NULL), 0);
	assert_state(b, true, false, 4, "a");
}

/* ---- QEMU has it ---- */

/* Return: the fd that a QEMU would have inherited. */
static int acquire_for_qemu(Lease *lease)
{
	acquire(lease);
	return fcntl(lease_fd(lease), F_DUPFD_CLOEXEC, 0);
}

static void test_outlives_its_keeper(void **state)
{
	_cleanup_fd_ int qemu = -1;
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");

	(void)state;
	qemu = acquire_for_qemu(a);
	lease_free(TAKE_PTR(a));
	assert_int_equal(lease_acquire(b, NULL, 0, NULL), -EBUSY);
	a = adopt_as("a", fcntl(qemu, F_DUPFD_CLOEXEC, 0));
	assert_true(lease_held(a));
	assert_int_equal(lease_generation(a), 1);
	assert_int_equal(lease_check(a, NULL), 0);
	release(a); /* of QEMU's too: it is the same description */
	acquire(b);
	release(b);
	lease_free(TAKE_PTR(a));
	a = adopt_as("a", fcntl(qemu, F_DUPFD_CLOEXEC, 0));
	assert_false(lease_held(a));
	assert_int_equal(lease_generation(a), 0);
	assert_int_equal(acquire_if(a, "b", 2), 0);
	lease_free(TAKE_PTR(a));
	qemu = fd_close(qemu); /* it dies without a word */
	assert_state(b, false, false, 3, "a");
	acquire(b);
}

/* A keeper that died between the lock and the record leaves a lock that nobody meant. */
static void test_lock_without_record(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	_cleanup_fd_ int qemu = open(path, O_RDWR | O_CLOEXEC);

	(void)state;
	acquire(b);
	release(b);
	assert_int_equal(fcntl(qemu, F_OFD_SETLK, &fl), 0);
	assert_int_equal(lease_acquire(b, NULL, 0, NULL), -EBUSY);
	lease_free(TAKE_PTR(a));
	a = adopt_as("a", fcntl(qemu, F_DUPFD_CLOEXEC, 0));
	assert_false(lease_held(a));
	acquire(b);
}

/* The record says that it was given back, and that was called off: the lock keeps others away until it is known whether the guest runs. */
static void test_record_without_the_end(void **state)
{
	_cleanup_fd_ int qemu = -1;
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");

	(void)state;
	qemu = acquire_for_qemu(a);
	for (uint64_t generation = 1; generation <= 2; generation++) {
		lease_free(TAKE_PTR(a));
		a = adopt_running("a", fcntl(qemu, F_DUPFD_CLOEXEC, 0), true);
		assert_true(lease_held(a));
		assert_int_equal(lease_release(a, NULL), -ECANCELED);
		lease_free(TAKE_PTR(a));
		a = adopt_running("a", fcntl(qemu, F_DUPFD_CLOEXEC, 0), true);
		assert_false(lease_held(a));
		assert_int_equal(lease_generation(a), generation);
		assert_int_equal(lease_acquire(b, NULL, 0, NULL), -EBUSY);
		if (generation == 1)
			assert_int_equal(acquire_if(a, "a", generation), 0);
		else
			release(a);
	}
	acquire(b);
}

/* ---- another process, killed at any moment ---- */

static int in_child(int (*what)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(what());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static int child_acquires(void)
{
	Lease *lease = NULL;

	if (try_open("b", true, &lease, NULL) < 0)
		return 2;
	return lease_acquire(lease, NULL, 0, NULL) == 0 ? 0 : 1;
}

static void test_two_processes(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a");

	(void)state;
	acquire(a);
	assert_int_equal(in_child(child_acquires), 1);
	release(a);
	assert_int_equal(in_child(child_acquires), 0);
	assert_state(a, false, false, 2, "b"); /* it ended, and so did its lock */
	acquire(a);
}

/* ---- the file, cut and changed at every byte ---- */

static void read_file(char bytes[SIZE])
{
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);

	memset(bytes, 0, SIZE);
	assert_true(pread(fd, bytes, SIZE, 0) >= 0);
}

static void write_file(const char bytes[SIZE])
{
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CLOEXEC | O_CREAT, 0600);

	assert_int_equal(pwrite(fd, bytes, SIZE, 0), SIZE);
}

/* From one record to the next, with a crash after each byte: it is the old one or the new one, and can be taken. */
static void crash_between(const char before[SIZE], const char after[SIZE], uint64_t old_generation,
			  const char *old_holder, uint64_t generation, const char *holder)
{
	for (size_t cut = 0; cut <= SIZE; cut += cut > SLOT_SIZE && cut < SLOT_APART ? SLOT_APART - cut : 1) {
		char bytes[SIZE];
		_cleanup_(lease_freep)
		Lease *lease = NULL;
		LeaseState state;

		memcpy(bytes, after, cut);
		memcpy(bytes + cut, before + cut, SIZE - cut);
		write_file(bytes);
		lease = open_as("c");
		assert_int_equal(lease_inquire(lease, &state, NULL), 0);
		assert_false(state.held);
		if (state.generation == generation)
			assert_string_equal(state.holder, holder);
		else
			assert_string_equal(state.holder, old_holder);
		assert_true(state.generation == generation || state.generation == old_generation);
		acquire(lease);
		assert_int_equal(lease_generation(lease), state.generation + 1);
	}
}

static void test_crash_at_every_byte(void **state)
{
	char images[5][SIZE] = {};
	Lease *a = open_as("a"), *b = open_as("b");

	(void)state;
	acquire(a);
	read_file(images[1]);
	release(a);
	read_file(images[2]);
	acquire(b);
	read_file(images[3]);
	release(b);
	read_file(images[4]);
	lease_free(a);
	lease_free(b);
	crash_between(images[0], images[1], 0, "", 1, "a");
	crash_between(images[1], images[2], 1, "a", 1, "a");
	crash_between(images[2], images[3], 1, "a", 2, "b");
	crash_between(images[3], images[4], 2, "b", 2, "b");
}

static void test_damaged(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = NULL;
	_cleanup_error_ Error *err = NULL;
	char whole[SIZE], bytes[SIZE];

	(void)state;
	acquire(a);
	release(a);
	acquire(a);
	release(a);
	read_file(whole);
	for (size_t i = 0; i < SLOT_SIZE; i++) {
		LeaseState found;

		memcpy(bytes, whole, SIZE);
		bytes[i] ^= 0x20; /* the newest, generation 2, is in the first slot */
		write_file(bytes);
		if (lease_inquire(a, &found, NULL) < 0 || (found.generation != 2 && found.generation != 1))
			fail_msg("byte %zu", i);
		assert_string_equal(found.holder, "a");
	}
	memcpy(bytes, whole, SIZE);
	bytes[40] ^= 1;
	bytes[SLOT_APART + 40] ^= 1;
	write_file(bytes);
	assert_int_equal(try_open("b", true, &b, &err), -EBADMSG);
	assert_non_null(strstr(err->message, "is damaged"));
	assert_non_null(strstr(err->hint, "runs on no host"));
	assert_int_equal(lease_acquire(a, NULL, 0, NULL), -EBADMSG);
}

/* A file that somebody has named by mistake is left alone. */
static void test_not_a_lease(void **state)
{
	static const char *const texts[] = {"root:x:0:0:root:/root:/bin/sh\n", "vmferry-lease2 ", "vmferry-leasex", "x",
					    "vmferry-lease1 00000000 seq=1 generation=1\n"};
	char big[SIZE] = {};
	Lease *lease = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		_cleanup_free_ char *after = NULL;
		size_t len;
		int r;

		assert_int_equal(file_write(path, texts[i], strlen(texts[i]), 0600, false), 0);
		r = try_open("a", true, &lease, NULL);
		if (i < 4)
			assert_int_equal(r, -EBADMSG);
		else
			lease_free(TAKE_PTR(lease)); /* looks like a record that a crash cut off */
		assert_int_equal(file_read(path, SIZE, &after, &len), 0);
		assert_int_equal(len, strlen(texts[i]));
		assert_string_equal(after, texts[i]);
	}
	memcpy(big + SLOT_APART, "QFI", 3); /* an image with nothing in its first block */
	write_file(big);
	assert_int_equal(try_open("a", true, &lease, NULL), -EBADMSG);
}

static void test_refused(void **state)
{
	_cleanup_error_ Error *missing = NULL, *other = NULL, *folder = NULL, *driver = NULL;
	_cleanup_free_ char *link = xasprintf("%s/link", dir);
	VmDefinition copy = definition;
	LeaseOptions options = {.definition = &copy, .host_id = "a", .host_name = "a", .fd = -1};
	Lease *lease = NULL;

	(void)state;
	assert_int_equal(try_open("a", false, &lease, &missing), -ENOENT);
	assert_non_null(strstr(missing->hint, "all hosts"));
	lease = open_as("a");
	acquire(lease);
	release(lease);
	lease_free(TAKE_PTR(lease));
	copy.uuid = (char *)"1c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11";
	assert_int_equal(lease_open(&options, &lease, &other), -EPERM);
	assert_non_null(strstr(other->message, UUID));
	assert_int_equal(symlink(path, link), 0);
	copy = definition;
	copy.lease_path = link;
	assert_int_equal(lease_open(&options, &lease, NULL), -ELOOP);
	copy.lease_path = dir;
	assert_true(lease_open(&options, &lease, &folder) < 0);
	copy.lease = LEASE_NONE;
	assert_int_equal(lease_open(&options, &lease, &driver), -ENOTSUP);
}

/* ---- lost ---- */

static void assert_lost(Lease *lease, const char *why)
{
	_cleanup_error_ Error *err = NULL;

	assert_true(readable(lease_watch_fd(lease)));
	assert_true(lease_check(lease, &err) < 0);
	assert_non_null(strstr(err->message, why));
	assert_false(lease_held(lease));
	assert_false(readable(lease_watch_fd(lease)));
	assert_int_equal(lease_check(lease, NULL), 0); /* said once */
}

static void test_lost(void **state)
{
	_cleanup_free_ char *other = xasprintf("%s/other", dir);
	_cleanup_(lease_freep)
	Lease *a = open_as("a");
	char bytes[SIZE];

	(void)state;
	acquire(a);
	assert_int_equal(lease_check(a, NULL), 0); /* our own record is no news */
	assert_false(readable(lease_watch_fd(a)));
	read_file(bytes);
	assert_int_equal(rename(path, other), 0);
	assert_lost(a, "No such file");
	assert_int_equal(lease_acquire(a, NULL, 0, NULL), -ENOENT);
	assert_int_equal(rename(other, path), 0);
	acquire(a); /* nobody had it */
	assert_int_equal(lease_check(a, NULL), 0);
	assert_int_equal(file_write(path, "", 0, 0600, false), 0);
	assert_lost(a, "replaced");
	assert_int_equal(lease_acquire(a, NULL, 0, NULL), -ESTALE);
	release(a);
	lease_free(TAKE_PTR(a));

	a = open_as("a");
	acquire(a);
	(void)lease_check(a, NULL);
	memset(bytes, 'x', SIZE);
	write_file(bytes);
	assert_lost(a, "is damaged");
	assert_int_equal(truncate(path, 0), 0);
	acquire(a);
	(void)lease_check(a, NULL);
	assert_int_equal(truncate(path, 0), 0);
	assert_lost(a, "was taken");
}

/* A record of somebody who took no notice of the lock. */
static void test_taken_by_force(void **state)
{
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = NULL;
	char mine[SIZE], theirs[SIZE];

	(void)state;
	acquire(a);
	read_file(mine);
	release(a);
	b = open_as("b");
	acquire(b);
	release(b);
	acquire(b);
	read_file(theirs);
	release(b);
	assert_int_equal(truncate(path, 0), 0);
	write_file(mine);
	lease_free(TAKE_PTR(a));
	a = open_as("a");
	acquire(a);
	(void)lease_check(a, NULL);
	write_file(theirs);
	assert_lost(a, "was taken by host b.example");
	assert_int_equal(acquire_if(a, "a", 0), -ESTALE);
}

static void test_cannot_be_written(void **state)
{
	struct rlimit old, limit = {.rlim_cur = SLOT_APART, .rlim_max = RLIM_INFINITY};
	_cleanup_(lease_freep)
	Lease *a = open_as("a"), *b = open_as("b");
	_cleanup_error_ Error *err = NULL;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	limit.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(lease_acquire(a, NULL, 0, &err), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_non_null(strstr(err->message, "cannot be written"));
	assert_false(lease_held(a));
	acquire(b); /* no lock is left behind */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_two_hosts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_compare_and_swap, setup, teardown),
		cmocka_unit_test_setup_teardown(test_outlives_its_keeper, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lock_without_record, setup, teardown),
		cmocka_unit_test_setup_teardown(test_record_without_the_end, setup, teardown),
		cmocka_unit_test_setup_teardown(test_two_processes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_crash_at_every_byte, setup, teardown),
		cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_a_lease, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_taken_by_force, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cannot_be_written, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
