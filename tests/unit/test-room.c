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

#include "basic/fs.h"
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

static Room *promise(uint64_t bytes)
{
	Room *room = NULL;

	assert_int_equal(room_open(&room, NULL), 0);
	assert_int_equal(room_promise(room, bytes, NULL), 0);
	return room;
}

static void test_promises_add_up(void **state)
{
	Room *a, *b, *c;

	(void)state;
	assert_true(room_promised() == 0);
	a = promise(100 * MIB);
	b = promise(5000 * MIB);
	c = promise(30 * MIB);
	assert_true(room_promised() == 5130 * MIB);
	room_left(b, 6000 * MIB);
	assert_true(room_promised() == 5130 * MIB);
	room_left(b, 1000 * MIB);
	assert_true(room_promised() == 1130 * MIB);
	room_free(a);
	assert_true(room_promised() == 1030 * MIB);
	a = promise(2000 * MIB); /* in the gap there is no room for it */
	assert_true(room_promised() == 3030 * MIB);
	room_left(b, 0);
	room_free(c);
	room_free(b);
	assert_true(room_promised() == 2000 * MIB);
	room_free(a);
	assert_true(room_promised() == 0);
	room_free(promise(0));
}

/* Nobody cleans up after a keeper that was killed. */
static void test_promise_ends_with_its_process(void **state)
{
	int ready[2], status;
	char c;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		Room *room = NULL;
		bool good = room_open(&room, NULL) == 0 && room_promise(room, 64 * MIB, NULL) == 0;

		(void)!write(ready[1], good ? "y" : "n", 1);
		pause();
		_exit(1);
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(c, 'y');
	assert_true(room_promised() == 64 * MIB);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(room_promised() == 0);
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
	static const char inside[] = "4:memory:/elsewhere\n0::/machine.slice/vm.service\n";

	(void)state;
	assert_true(room_cgroup(place, "") == UINT64_MAX);
	assert_true(room_cgroup(place, "4:memory:/x\n") == UINT64_MAX);
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
	assert_true(room_cgroup(place, "0::/\n") == UINT64_MAX);
	put("", "memory.max", "7\n");
	assert_true(room_cgroup(place, "0::/\n") == 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_promises_add_up),
		cmocka_unit_test(test_promise_ends_with_its_process),
		cmocka_unit_test(test_control_groups),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
