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
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "peer/copy.h"

/*
 * Bytes through copy_both(), in both directions at once, in pieces of any size, through buffers that are small: what
 * comes out is what went in. The copier is another process, as `vmferry receive` is.
 */

#define BYTES 300000

/* A direction: what is written is a pattern, so that what is read can be checked without keeping it. */
typedef struct Flow {
	int in, out;
	size_t written, read, most; /* most: bytes at a time */
} Flow;

static uint8_t pattern(size_t at)
{
	return (uint8_t)(at * 7 + (at >> 8) * 31 + (at >> 16));
}

static size_t some(unsigned int *seed, size_t most)
{
	*seed = *seed * 1103515245 + 12345;
	return 1 + (*seed >> 8) % most;
}

static void write_some(Flow *f, unsigned int *seed)
{
	uint8_t data[70000];
	size_t n = some(seed, f->most);
	ssize_t wrote;

	if (n > BYTES - f->written)
		n = BYTES - f->written;
	for (size_t i = 0; i < n; i++)
		data[i] = pattern(f->written + i);
	wrote = write(f->in, data, n);
	assert_true(wrote > 0 || errno == EAGAIN);
	f->written += wrote > 0 ? (size_t)wrote : 0;
}

static void read_some(Flow *f, unsigned int *seed)
{
	uint8_t data[70000];
	ssize_t n = read(f->out, data, some(seed, f->most));

	assert_true(n > 0 || (n < 0 && errno == EAGAIN));
	for (ssize_t i = 0; i < n; i++)
		assert_int_equal(data[i], pattern(f->read + (size_t)i));
	f->read += n > 0 ? (size_t)n : 0;
}

static void exchange(Flow *flows, unsigned int seed)
{
	while (flows[0].read < BYTES || flows[1].read < BYTES) {
		struct pollfd p[4];

		for (int i = 0; i < 2; i++) {
			p[2 * i] = (struct pollfd){flows[i].written < BYTES ? flows[i].in : -1, POLLOUT, 0};
			p[2 * i + 1] = (struct pollfd){flows[i].read < BYTES ? flows[i].out : -1, POLLIN, 0};
		}
		assert_true(poll(p, 4, 20000) > 0);
		for (int i = 0; i < 2; i++) {
			if (p[2 * i].revents)
				write_some(&flows[i], &seed);
			if (p[2 * i + 1].revents)
				read_some(&flows[i], &seed);
		}
	}
}

static void small_socketpair(int pair[2])
{
	int size = 4096;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	for (int i = 0; i < 2; i++) {
		setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		fd_nonblock(pair[i], true);
	}
}

/* @pipes: standard input and output are pipes, as some sshds have it; else one socket */
static void copy(bool pipes, size_t most, unsigned int seed)
{
	int near[2], sock[2], in[2], out[2], status;
	Flow flows[2];
	pid_t pid;

	small_socketpair(sock);
	small_socketpair(near);
	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		alarm(60);
		fd_close(pipes ? in[1] : near[0]);
		fd_close(pipes ? out[0] : sock[0]);
		fd_close(sock[0]);
		_exit(pipes ? copy_both(in[0], out[1], sock[1]) != 0 : copy_both(near[1], near[1], sock[1]) != 0);
	}
	fd_close(in[0]);
	fd_close(out[1]);
	fd_close(near[1]);
	fd_close(sock[1]);
	fd_nonblock(in[1], true);
	fd_nonblock(out[0], true);
	flows[0] = (Flow){.in = pipes ? in[1] : near[0], .out = sock[0], .most = most};
	flows[1] = (Flow){.in = sock[0], .out = pipes ? out[0] : near[0], .most = most};
	exchange(flows, seed);
	fd_close(sock[0]); /* the end of one side is the end */
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	fd_close(in[1]);
	fd_close(out[0]);
	fd_close(near[0]);
}

static void test_sizes(void **state)
{
	static const size_t sizes[] = {1, 2, 7, 4095, 4096, 4097, 70000};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		copy(false, sizes[i], (unsigned int)i);
		copy(true, sizes[i], (unsigned int)i + 100);
	}
}

/* What was said before the end gets through, from either side. */
static void test_last_words(void **state)
{
	(void)state;
	for (int side = 0; side < 2; side++) {
		int near[2], sock[2], status;
		char bytes[200000] = "", back[200001];
		pid_t pid;

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, near), 0);
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			alarm(60);
			fd_close(near[0]);
			fd_close(sock[0]);
			_exit(copy_both(near[1], near[1], sock[1]) != 0);
		}
		fd_close(near[1]);
		fd_close(sock[1]);
		assert_int_equal(fd_write_all(side ? near[0] : sock[0], bytes, sizeof(bytes)), 0);
		shutdown(side ? near[0] : sock[0], SHUT_WR);
		assert_int_equal(fd_read_all(side ? sock[0] : near[0], back, sizeof(back)), (ssize_t)sizeof(bytes));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		fd_close(near[0]);
		fd_close(sock[0]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_last_words),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
