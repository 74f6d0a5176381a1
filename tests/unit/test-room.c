/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <errno.h>

#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "vm/room.h"

#define MIB ((uint64_t)1 << 20)

static char place[] = "/tmp/test-room.XXXXXX";

static int set_up(void **state)
{
	(void)state;
	return mkdtemp(place) && setenv("VMFERRY_RUNTIME_DIR", place, 1) == 0 ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	return dir_remove(place);
}

static Room *promise(const char *name, uint64_t bytes)
{
	_cleanup_free_ char *dir = runtime_path(name, NULL);
	Room *room = NULL;

	assert_int_equal(dir_make(dir, 0711), 0);
	assert_int_equal(room_open(name, &room, NULL), 0);
	assert_int_equal(room_promise(room, bytes, NULL), 0);
	return room;
}

static uint64_t promised(void)
{
	_cleanup_free_ char *whom = NULL;

	return room_promised(&whom);
}

static void test_promises_add_up(void **state)
{
	_cleanup_free_ char *whom = NULL, *nobody = NULL;
	Room *a, *b, *c;

	(void)state;
	assert_true(room_promised(&nobody) == 0);
	assert_string_equal(nobody, "");
	a = promise("a", 100 * MIB);
	b = promise("b", 5000 * MIB);
	c = promise("c", 30 * MIB - 1); /* rounded up */
	assert_true(room_promised(&whom) == 5130 * MIB);
	assert_non_null(strstr(whom, "a 100 MiB"));
	assert_non_null(strstr(whom, "b 5000 MiB"));
	assert_non_null(strstr(whom, "c 30 MiB"));
	room_used(b, 0);
	assert_true(promised() == 5130 * MIB);
	room_used(b, 4000 * MIB);
	assert_true(promised() == 1130 * MIB);
	room_used(b, 3000 * MIB); /* what was there once is not wanted again */
	assert_true(promised() == 1130 * MIB);
	room_free(a);
	assert_true(promised() == 1030 * MIB);
	a = promise("a", 2000 * MIB);
	assert_true(promised() == 3030 * MIB);
	room_used(b, 6000 * MIB);
	room_free(c);
	room_free(b);
	assert_true(promised() == 2000 * MIB);
	room_free(a);
	assert_true(promised() == 0);
	room_free(promise("a", 0));
}

/* Not all are named. */
static void test_promised_to_many(void **state)
{
	_cleanup_free_ char *whom = NULL;
	Room *rooms[6];
	size_t named = 0;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rooms); i++) {
		char name[] = {(char)('a' + i), '\0'};

		rooms[i] = promise(name, MIB);
	}
	assert_true(room_promised(&whom) == 6 * MIB);
	for (const char *p = whom; (p = strstr(p, " 1 MiB")); p++)
		named++;
	assert_int_equal(named, 4);
	assert_non_null(strstr(whom, " and others"));
	assert_null(strstr(strstr(whom, " and others") + 1, " and others"));
	for (size_t i = 0; i < ARRAY_SIZE(rooms); i++)
		room_free(rooms[i]);
}

/* What is no VM's directory, or not a directory, promises nothing and does no harm. */
static void test_other_files(void **state)
{
	_cleanup_free_ char *file = xasprintf("%s/file", place), *link = xasprintf("%s/link", place);
	Room *room = NULL;

	(void)state;
	assert_int_equal(file_write(file, "", 0, 0644, false), 0);
	assert_int_equal(symlink("/", link), 0);
	assert_int_equal(room_open("none", &room, NULL), -ENOENT);
	assert_int_equal(room_open("file", &room, NULL), -ENOTDIR);
	assert_true(room_open("link", &room, NULL) < 0);
	assert_null(room);
	room_free(promise("a", MIB)); /* and nobody is shut out */
	assert_true(promised() == 0);
}

/* Nobody cleans up after a keeper that was killed. */
static void test_promise_ends_with_its_process(void **state)
{
	int ready[2], status;
	char c;
	pid_t pid;

	(void)state;
	room_free(promise("a", 0));
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		Room *room = NULL;
		bool good = room_open("a", &room, NULL) == 0 && room_promise(room, 64 * MIB, NULL) == 0;

		(void)!write(ready[1], good ? "y" : "n", 1);
		pause();
		_exit(1);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	assert_true(promised() == 64 * MIB);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(promised() == 0);
	close(ready[0]);
	close(ready[1]);
}

static void put(const char *dir, const char *file, const char *text)
{
	_cleanup_free_ char *path = xasprintf("%s/%s/%s", place, dir, file), *parent = xasprintf("%s/%s", place, dir);

	assert_int_equal(dir_make(parent, 0755), 0);
	assert_int_equal(file_write(path, text, strlen(text), 0644, false), 0);
}

static void test_control_groups(void **state)
{
	static const char inside[] = "/machine.slice/vm.service";

	(void)state;
	assert_true(room_cgroup(place, NULL) == UINT64_MAX);
	assert_true(room_cgroup(place, inside) == UINT64_MAX);
	put("machine.slice", "memory.max", "max\n");
	assert_true(room_cgroup(place, inside) == UINT64_MAX);
	put("machine.slice/vm.service", "memory.max", "1000\n");
	assert_true(room_cgroup(place, inside) == 1000);
	put("machine.slice/vm.service", "memory.current", "400\n");
	put("machine.slice/vm.service", "memory.stat", "anon 100\nfile 300\ninactive_file 250\nactive_file 50\n");
	assert_true(room_cgroup(place, inside) == 850);
	put("machine.slice", "memory.max", "900\n");
	put("machine.slice", "memory.current", "800\n");
	assert_true(room_cgroup(place, inside) == 100);
	put("machine.slice", "memory.current", "1200\n");
	assert_true(room_cgroup(place, inside) == 0);
	assert_true(room_cgroup(place, "/") == UINT64_MAX);
	put("", "memory.max", "7\n");
	assert_true(room_cgroup(place, "/") == 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_promises_add_up),
		cmocka_unit_test(test_promised_to_many),
		cmocka_unit_test(test_other_files),
		cmocka_unit_test(test_promise_ends_with_its_process),
		cmocka_unit_test(test_control_groups),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
