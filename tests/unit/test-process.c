/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
/* after the above */
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/process.h"
#include "basic/text.h"

static void make_pipe(int pair[2])
{
	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
}

static void assert_status(pid_t pid, int status)
{
	int s;

	assert_int_equal(waitpid(pid, &s, 0), pid);
	assert_true(WIFEXITED(s));
	assert_int_equal(WEXITSTATUS(s), status);
}

/* All that comes until the last writer is gone; a test that would wait for ever fails instead. */
static char *read_end(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char *text = xcalloc(1, 65536);
	size_t len = 0;
	ssize_t n;

	do {
		assert_int_equal(poll(&p, 1, 20000), 1);
		n = read(fd, text + len, 65535 - len);
		assert_true(n >= 0);
		len += (size_t)n;
	} while (n > 0);
	return text;
}

/* Prints the numbers of the shell's open fds, opening none for that. */
#define LIST_FDS                                                                                                       \
	"i=0; while [ $i -lt 1100 ]; do"                                                                               \
	" if [ -e /proc/$$/fd/$i ]; then printf '%d ' $i; fi; i=$((i + 1)); done"

/* Runs a shell script with fds, its standard output read. @n_fds: without standard output */
static char *run_script(const char *script, const SpawnFd *fds, size_t n_fds)
{
	char *argv[] = {(char *)"sh", (char *)"-c", (char *)(uintptr_t)script, NULL};
	_cleanup_free_ SpawnFd *all = xcalloc(n_fds + 1, sizeof(*all));
	_cleanup_error_ Error *err = NULL;
	int pair[2];
	char *text;
	pid_t pid;

	make_pipe(pair);
	for (size_t i = 0; i < n_fds; i++)
		all[i] = fds[i];
	all[n_fds] = (SpawnFd){.fd = pair[1], .number = 1};
	pid = process_spawn(&(Spawn){.argv = argv, .fds = all, .n_fds = n_fds + 1}, NULL, &err);
	if (pid < 0)
		print_error("%s\n", err->message);
	assert_true(pid > 0);
	fd_close(pair[1]);
	text = read_end(pair[0]);
	fd_close(pair[0]);
	assert_status(pid, 0);
	return text;
}

static void test_standard_fds(void **state)
{
	_cleanup_free_ char *text = NULL;
	int stray = open("/etc/passwd", O_RDONLY); /* not close-on-exec */

	(void)state;
	text = run_script("readlink /proc/$$/fd/0 /proc/$$/fd/2; " LIST_FDS, NULL, 0);
	assert_string_equal(text, "/dev/null\n/dev/null\n0 1 2 ");
	fd_close(stray);
}

#define MANY 60

/* A file whose content is its number in a list. */
static int numbered_file(size_t number)
{
	char name[] = "/tmp/test-process.XXXXXX";
	int fd = mkostemp(name, O_CLOEXEC);

	assert_true(fd >= 0);
	unlink(name);
	assert_true(dprintf(fd, "%zu ", number) > 0);
	lseek(fd, 0, SEEK_SET);
	return fd;
}

/* Many fds, some numbers from 1000 on taken by others: each arrives where it is wanted, in reverse order, no other
 * does. */
static void many_fds(bool taken)
{
	_cleanup_free_ char *script = NULL, *wanted = xcalloc(1, 4096), *text = NULL;
	int theirs[4] = {-1, -1, -1, -1};
	SpawnFd fds[MANY];

	for (size_t i = 0; taken && i < ARRAY_SIZE(theirs); i++)
		theirs[i] = fcntl(STDIN_FILENO, F_DUPFD, 1000 + 2 * (int)i);
	for (size_t i = 0; i < MANY; i++) {
		fds[i] = (SpawnFd){.fd = numbered_file(i), .number = 2 + MANY - (int)i};
		sprintf(wanted + strlen(wanted), "%zu ", i);
	}
	strcat(wanted, "0 1 2 ");
	for (int number = 3; number < 3 + MANY; number++)
		sprintf(wanted + strlen(wanted), "%d ", number);
	script = xasprintf("for i in $(seq %d -1 3); do cat /proc/$$/fd/$i; done; %s", MANY + 2, LIST_FDS);
	text = run_script(script, fds, MANY);
	assert_string_equal(text, wanted);
	for (size_t i = 0; i < MANY; i++)
		fd_close(fds[i].fd);
	for (size_t i = 0; i < ARRAY_SIZE(theirs); i++)
		fd_close(theirs[i]);
}

static void with_limit(rlim_t soft, void (*run)(bool taken), bool taken)
{
	struct rlimit was, now;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
	now = was;
	now.rlim_cur = soft < was.rlim_max ? soft : was.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &now), 0);
	run(taken && now.rlim_cur > 1100);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
}

static void test_many_fds(void **state)
{
	(void)state;
	with_limit(4096, many_fds, false);
}

static void test_many_fds_high_ones_taken(void **state)
{
	(void)state;
	with_limit(4096, many_fds, true);
}

static void test_many_fds_low_limit(void **state)
{
	(void)state;
	with_limit(256, many_fds, false);
}

/* Two fds that change places. */
static void test_swap(void **state)
{
	int a[2], b[2];
	_cleanup_free_ char *script = NULL, *text = NULL, *said_a = NULL, *said_b = NULL;

	(void)state;
	make_pipe(a);
	make_pipe(b);
	script = xasprintf("echo to-%d >/proc/$$/fd/%d; echo to-%d >/proc/$$/fd/%d", a[1], a[1], b[1], b[1]);
	text = run_script(script, (SpawnFd[]){{.fd = a[1], .number = b[1]}, {.fd = b[1], .number = a[1]}}, 2);
	fd_close(a[1]);
	fd_close(b[1]);
	said_a = read_end(a[0]);
	said_b = read_end(b[0]);
	free(script);
	script = xasprintf("to-%d\n", b[1]);
	assert_string_equal(said_a, script);
	fd_close(a[0]);
	fd_close(b[0]);
}

static int prepare_fails(void *userdata)
{
	return *(int *)userdata;
}

static void test_failing_exec(void **state)
{
	char *argv[] = {(char *)"/nonexistent/program", NULL};
	_cleanup_error_ Error *err = NULL, *prepare_err = NULL;
	int pidfd = -1, code = -EDOM;
	SpawnFd fds[MANY];

	(void)state;
	for (size_t i = 0; i < MANY; i++)
		fds[i] = (SpawnFd){.fd = STDERR_FILENO, .number = 3 + (int)i};
	assert_int_equal(process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = MANY}, &pidfd, &err), -ENOENT);
	assert_non_null(strstr(err->message, "/nonexistent/program"));
	assert_int_equal(pidfd, -1);
	argv[0] = (char *)"true";
	assert_int_equal(process_spawn(&(Spawn){.argv = argv, .prepare = prepare_fails, .userdata = &code}, &pidfd,
				       &prepare_err),
			 -EDOM);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nobody is left to be reaped */
	assert_int_equal(errno, ECHILD);
}

static void test_bad_fd(void **state)
{
	char *argv[] = {(char *)"true", NULL};
	_cleanup_error_ Error *err = NULL;
	SpawnFd fd = {.fd = 900, .number = 3};

	(void)state;
	assert_int_equal(process_spawn(&(Spawn){.argv = argv, .fds = &fd, .n_fds = 1}, NULL, &err), -EBADF);
}

/* In the child, while the parent waits for its exec: the parent gets no more fds. */
static int starve_parent(void *userdata)
{
	struct rlimit none = *(struct rlimit *)userdata;

	none.rlim_cur = 3;
	return prlimit(getppid(), RLIMIT_NOFILE, &none, NULL) < 0 ? -errno : 0;
}

static void test_pidfd_fails(void **state)
{
	char *argv[] = {(char *)"sleep", (char *)"1000", NULL};
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ char *text = NULL;
	struct rlimit was;
	int pair[2], pidfd = -1;
	SpawnFd fd;
	pid_t pid;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
	make_pipe(pair);
	fd = (SpawnFd){.fd = pair[1], .number = 1};
	pid = process_spawn(&(Spawn){.argv = argv, .fds = &fd, .n_fds = 1, .prepare = starve_parent, .userdata = &was},
			    &pidfd, &err);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
	assert_int_equal(pid, -EMFILE);
	assert_int_equal(pidfd, -1);
	fd_close(pair[1]);
	text = read_end(pair[0]);
	assert_string_equal(text, "");
	fd_close(pair[0]);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void test_pidfd(void **state)
{
	char *argv[] = {(char *)"true", NULL};
	_cleanup_error_ Error *err = NULL;
	struct pollfd p = {.events = POLLIN};
	pid_t pid;

	(void)state;
	pid = process_spawn(&(Spawn){.argv = argv}, &p.fd, &err);
	assert_true(pid > 0);
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_true(fcntl(p.fd, F_GETFD) & FD_CLOEXEC);
	assert_status(pid, 0);
	fd_close(p.fd);
}

static void test_environment(void **state)
{
	char *argv[] = {(char *)"sh", (char *)"-c", (char *)"test \"$ONE/$TWO/$HERE\" = 1/2/yes", NULL};
	char *env[] = {(char *)"ONE=1", (char *)"TWO=2", NULL};
	_cleanup_error_ Error *err = NULL;

	(void)state;
	setenv("TWO", "other", 1);
	setenv("HERE", "yes", 1);
	assert_status(process_spawn(&(Spawn){.argv = argv, .env = env}, NULL, &err), 0);
}

static void test_start_time(void **state)
{
	char *argv[] = {(char *)"true", NULL};
	uint64_t mine = process_start_time(getpid());
	pid_t pid = process_spawn(&(Spawn){.argv = argv}, NULL, NULL);
	_cleanup_free_ char *binary = process_own_binary();

	(void)state;
	assert_true(mine > 0);
	assert_true(process_start_time(pid) >= mine);
	assert_status(pid, 0);
	assert_int_equal(process_start_time(pid), 0);
	assert_non_null(strstr(binary, "test-process"));
}

static void test_state(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0) {
		(void)raise(SIGSTOP);
		_exit(0);
	}
	assert_int_equal(process_state(getpid()), 'R');
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_int_equal(process_state(pid), 'T');
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(process_state(pid), 'X');
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_state),
		cmocka_unit_test(test_standard_fds),
		cmocka_unit_test(test_many_fds),
		cmocka_unit_test(test_many_fds_high_ones_taken),
		cmocka_unit_test(test_many_fds_low_limit),
		cmocka_unit_test(test_swap),
		cmocka_unit_test(test_failing_exec),
		cmocka_unit_test(test_bad_fd),
		cmocka_unit_test(test_pidfd_fails),
		cmocka_unit_test(test_pidfd),
		cmocka_unit_test(test_environment),
		cmocka_unit_test(test_start_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
