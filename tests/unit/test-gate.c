/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A gate in this thread's loop, and those who wait at it in others. */
#include "companions/gate.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"

#define NAME "a guest, with 'anything'/in its name and more of it than a socket's path could ever have room for"
#define SECOND USEC_PER_SEC

typedef struct Hook {
	pthread_t thread;
	uint64_t bound, took;
	int result, done; /* eventfd */
} Hook;

static void *hook_main(void *userdata)
{
	uint64_t begin = now_usec(), one = 1;
	Hook *h = userdata;

	h->result = gate_wait(NAME, h->bound);
	h->took = now_usec() - begin;
	assert_int_equal(write(h->done, &one, sizeof(one)), sizeof(one));
	return NULL;
}

static void hook_start(Hook *h, uint64_t bound)
{
	*h = (Hook){.bound = bound, .done = eventfd(0, EFD_CLOEXEC)};
	assert_int_equal(pthread_create(&h->thread, NULL, hook_main, h), 0);
}

static int on_done(sd_event_source *s, _unused_ int fd, _unused_ uint32_t revents, _unused_ void *userdata)
{
	return sd_event_exit(sd_event_source_get_event(s), 0);
}

/* Runs the loop until the hook is through. */
static int hook_end(Hook *h, sd_event *event)
{
	assert_true(sd_event_add_io(event, NULL, h->done, EPOLLIN, on_done, NULL) >= 0);
	assert_int_equal(sd_event_loop(event), 0);
	pthread_join(h->thread, NULL);
	close(h->done);
	return h->result;
}

static Gate *make(sd_event **event, uint64_t bound)
{
	Gate *gate = NULL;

	if (!*event)
		assert_int_equal(sd_event_new(event), 0);
	assert_int_equal(gate_new(*event, NAME, bound, &gate, NULL), 0);
	return gate;
}

static void end(Gate *gate, sd_event *event, uint64_t completed, uint64_t timeout)
{
	_cleanup_free_ char *path = gate_path(NAME);
	GateStats stats;

	gate_stats(gate, &stats);
	assert_int_equal(stats.completed, completed);
	assert_int_equal(stats.timeout, timeout);
	gate_free(gate);
	assert_int_equal(access(path, F_OK), -1);
	sd_event_unref(event);
}

static int on_ready(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	gate_ready(userdata);
	return 0;
}

static void test_ready_late(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *gate = make(&event, 60 * SECOND);
	Hook hook;

	hook_start(&hook, 60 * SECOND);
	assert_true(sd_event_add_time_relative(event, NULL, CLOCK_MONOTONIC, 20000, 1, on_ready, gate) >= 0);
	assert_int_equal(hook_end(&hook, event), 1);
	end(gate, event, 1, 0);
}

static void test_ready_before(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *gate = make(&event, 60 * SECOND);
	Hook hook;

	gate_ready(gate);
	hook_start(&hook, 60 * SECOND);
	assert_int_equal(hook_end(&hook, event), 1);
	end(gate, event, 1, 0);
}

static void test_never_ready(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *gate = make(&event, SECOND / 5);
	Hook hook;

	hook_start(&hook, 60 * SECOND);
	assert_int_equal(hook_end(&hook, event), 1);
	assert_true(hook.took >= SECOND / 5);
	end(gate, event, 0, 1);
}

/* Nobody looks after the gate: the hook has a deadline of its own. */
static void test_hung(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *gate = make(&event, 60 * SECOND);
	Hook hook;

	hook_start(&hook, SECOND / 20);
	pthread_join(hook.thread, NULL);
	close(hook.done);
	assert_int_equal(hook.result, -ETIMEDOUT);
	assert_true(hook.took >= SECOND / 20);
	end(gate, event, 0, 0);
}

static void test_no_gate(_unused_ void **state)
{
	_cleanup_free_ char *path = gate_path(NAME);
	int fd;

	assert_int_equal(gate_wait(NAME, 60 * SECOND), 0);
	fd = unix_listen(path, 0600); /* what one that was killed leaves */
	assert_true(fd >= 0);
	fd_close(fd);
	assert_int_equal(gate_wait(NAME, 60 * SECOND), 0);
	unlink(path);
}

static void test_gate_goes(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *gate = make(&event, 60 * SECOND);
	Hook hook;
	int r;

	hook_start(&hook, 60 * SECOND);
	for (int i = 0; i < 2; i++) { /* it connects, it asks */
		r = sd_event_run(event, 60 * SECOND);
		assert_true(r > 0);
	}
	gate_free(gate);
	pthread_join(hook.thread, NULL);
	close(hook.done);
	assert_int_equal(hook.result, 1);
	sd_event_unref(event);
}

/* The next attempt comes before the last one has gone. */
static void test_twice(_unused_ void **state)
{
	sd_event *event = NULL;
	Gate *first = make(&event, 60 * SECOND), *second = make(&event, 60 * SECOND);
	Hook hook;

	gate_free(first);
	gate_ready(second);
	hook_start(&hook, 60 * SECOND);
	assert_int_equal(hook_end(&hook, event), 1);
	end(second, event, 1, 0);
}

static void test_nonsense(_unused_ void **state)
{
	static const char *const texts[] = {"", "w", "wait", "wain\n", "GET / HTTP/1.1\r\n", "\n"};
	_cleanup_free_ char *path = gate_path(NAME);
	sd_event *event = NULL;
	Gate *gate = make(&event, 60 * SECOND);
	char byte;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		int fd = unix_connect(path);

		assert_true(fd >= 0);
		assert_int_equal(fd_write_all(fd, texts[i], strlen(texts[i])), 0);
		assert_int_equal(shutdown(fd, SHUT_WR), 0);
		while (recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN)
			assert_true(sd_event_run(event, 60 * SECOND) > 0);
		fd_close(fd);
	}
	end(gate, event, 0, 0);
}

static int set_up(_unused_ void **state)
{
	static char dir[] = "/tmp/vf-gate-XXXXXX";
	_cleanup_free_ char *gates = NULL;

	if (!mkdtemp(dir) || setenv("VMFERRY_RUNTIME_DIR", dir, 1) < 0)
		return -1;
	gates = xasprintf("%s/.gates", dir);
	return dir_make(gates, 0755);
}

static int tear_down(_unused_ void **state)
{
	return dir_remove(runtime_dir());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ready_late),  cmocka_unit_test(test_ready_before), cmocka_unit_test(test_never_ready),
		cmocka_unit_test(test_hung),	    cmocka_unit_test(test_no_gate),	 cmocka_unit_test(test_gate_goes),
		cmocka_unit_test(test_twice),	    cmocka_unit_test(test_nonsense),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
