/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/tcp.h"
#include "basic/text.h"

static char *dir;

static char *in_dir(const char *name)
{
	return xasprintf("%s/%s", dir, name);
}

static int setup(void **state)
{
	char name[] = "/tmp/test-fs.XXXXXX";

	(void)state;
	dir = xstrdup(mkdtemp(name));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(dir_remove(dir), 0);
	assert_int_equal(access(dir, F_OK), -1);
	assert_int_equal(dir_remove(dir), 0);
	free(dir);
	return 0;
}

static size_t entries(const char *path)
{
	DIR *d = opendir(path);
	size_t n = 0;

	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

static void assert_content(const char *path, const char *text)
{
	_cleanup_free_ char *data = NULL;
	size_t len;

	assert_int_equal(file_read(path, 65536, &data, &len), 0);
	assert_int_equal(len, strlen(text));
	assert_string_equal(data, text);
}

static void test_write_read(void **state)
{
	_cleanup_free_ char *path = in_dir("file");
	struct stat st;

	(void)state;
	umask(022);
	assert_int_equal(file_write(path, "one", 3, 0640, true), 0);
	assert_content(path, "one");
	assert_int_equal(file_write(path, "", 0, 0600, false), 0);
	assert_content(path, "");
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(entries(dir), 1);
}

static void test_read_limits(void **state)
{
	static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 8192, 10000};
	_cleanup_free_ char *path = in_dir("file"), *bytes = xcalloc(1, 10000);

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		_cleanup_free_ char *data = NULL;
		char *untouched = NULL;
		size_t len;

		memset(bytes, 'x', sizes[i]);
		assert_int_equal(file_write(path, bytes, sizes[i], 0600, false), 0);
		assert_int_equal(file_read(path, sizes[i], &data, &len), 0);
		assert_int_equal(len, sizes[i]);
		assert_int_equal(data[len], 0);
		assert_memory_equal(data, bytes, len);
		if (sizes[i] > 0)
			assert_int_equal(file_read(path, sizes[i] - 1, &untouched, NULL), -EFBIG);
		assert_null(untouched);
	}
	assert_int_equal(file_read("/nonexistent/file", 1, &bytes, NULL), -ENOENT);
}

/* A failure leaves the old file and nothing beside it. */
static void test_write_fails(void **state)
{
	_cleanup_free_ char *path = in_dir("file"), *sub = in_dir("sub"), *bytes = xcalloc(1, 65536);
	struct rlimit was, small = {.rlim_cur = 4096};

	(void)state;
	assert_int_equal(file_write(path, "old", 3, 0600, true), 0);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	small.rlim_max = was.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(file_write(path, bytes, 65536, 0600, true), -EFBIG);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	assert_content(path, "old");
	assert_int_equal(mkdir(sub, 0700), 0);
	assert_int_equal(file_write(sub, "x", 1, 0600, false), -EISDIR);
	assert_int_equal(entries(dir), 2);
	assert_int_equal(file_write("/nonexistent/file", "x", 1, 0600, false), -ENOENT);
}

/* A writer that is killed at any moment: a reader sees the one content or the other, whole. */
static void test_write_atomic(void **state)
{
	_cleanup_free_ char *path = in_dir("file"), *a = xcalloc(1, 20001), *b = xcalloc(1, 10001);
	pid_t pid;

	(void)state;
	memset(a, 'a', 20000);
	memset(b, 'b', 10000);
	assert_int_equal(file_write(path, a, 20000, 0600, false), 0);
	pid = fork();
	if (pid == 0)
		for (int i = 0;; i++)
			(void)file_write(path, i & 1 ? a : b, i & 1 ? 20000 : 10000, 0600, false);
	for (int i = 0; i < 3000; i++) {
		_cleanup_free_ char *data = NULL;

		assert_int_equal(file_read(path, 65536, &data, NULL), 0);
		assert_true(streq(data, a) || streq(data, b));
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void test_dirs(void **state)
{
	_cleanup_free_ char *deep = in_dir("a/b/c"), *file = in_dir("a/b/c/file"), *link = in_dir("a/link");
	_cleanup_free_ char *top = in_dir("a"), *outside = in_dir("outside"), *kept = in_dir("outside/kept");
	struct stat st;

	(void)state;
	assert_int_equal(dir_make(deep, 0700), 0);
	assert_int_equal(dir_make(deep, 0700), 0);
	assert_int_equal(stat(deep, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(file_write(file, "x", 1, 0600, false), 0);
	assert_int_equal(dir_make(file, 0700), -ENOTDIR);
	assert_int_equal(dir_make(outside, 0700), 0);
	assert_int_equal(file_write(kept, "x", 1, 0600, false), 0);
	assert_int_equal(symlink(outside, link), 0);
	assert_int_equal(dir_remove(top), 0);
	assert_int_equal(access(top, F_OK), -1);
	assert_content(kept, "x");
}

static void test_lock(void **state)
{
	_cleanup_free_ char *path = in_dir("lock");
	int fd = file_lock(path), again;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(file_lock(path), -EWOULDBLOCK);
	fd_close(fd);
	again = file_lock(path);
	assert_true(again >= 0);
	fd_close(again);
}

static void test_unix_sockets(void **state)
{
	_cleanup_free_ char *path = in_dir("socket"), *too_long = xcalloc(1, 201);
	struct stat st;
	int listening, client;

	(void)state;
	memset(too_long, 'x', 200);
	assert_int_equal(unix_listen(too_long, 0600), -ENAMETOOLONG);
	assert_int_equal(unix_connect(path), -ENOENT);
	fd_close(unix_listen(path, 0600));
	assert_int_equal(unix_connect(path), -ECONNREFUSED);
	listening = unix_listen(path, 0660); /* in place of the stale one */
	assert_true(listening >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0660);
	client = unix_connect(path);
	assert_true(client >= 0);
	fd_close(client);
	fd_close(listening);
}

static void test_ports(void **state)
{
	int any = tcp_listen("127.0.0.1", 0, 0, 1), up, down;
	unsigned int port = tcp_port(any);

	(void)state;
	assert_true(any >= 0 && port > 0);
	assert_int_equal(tcp_port(-1), 0);
	assert_int_equal(tcp_listen("127.0.0.1", port, port, 1), -EADDRINUSE);
	assert_int_equal(tcp_listen("localhost", port, port, 1), -EINVAL);
	up = tcp_listen("127.0.0.1", port, port + 1000, 1);
	down = tcp_listen("127.0.0.1", port, port - 1000, 1);
	assert_true(up >= 0 && tcp_port(up) > port && down >= 0 && tcp_port(down) < port);
	fd_close(down);
	fd_close(up);
	fd_close(any);
}

static void test_paths(void **state)
{
	_cleanup_free_ char *a = NULL, *b = NULL;

	(void)state;
	setenv("VMFERRY_STATE_DIR", "/x", 1);
	unsetenv("VMFERRY_RUNTIME_DIR");
	a = state_path("vm", "journal");
	b = runtime_path("vm", NULL);
	assert_string_equal(a, "/x/vm/journal");
	assert_string_equal(b, "/run/vmferry/vm");
	setenv("VMFERRY_CONFIG_DIR", "", 1);
	assert_string_equal(config_dir(), "/etc/vmferry");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_write_read), TEST(test_read_limits), TEST(test_write_fails),	TEST(test_write_atomic),
		TEST(test_dirs),       TEST(test_lock),	       TEST(test_unix_sockets), TEST(test_ports),
		TEST(test_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
