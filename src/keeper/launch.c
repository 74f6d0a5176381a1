/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/process.h"
#include "basic/text.h"
#include "keeper/run.h"
#include "peer/preamble.h"

#define READY_FD 3
#define CRASHES_MAX 5
#define CRASHES_WITHIN (10 * USEC_PER_SEC)

/* ---- where there is no systemd: a tiny parent that only starts the keeper again when it was killed ---- */

static char **keeper_argv(const char *name, unsigned int flags, bool parent, bool ready)
{
	char **argv = NULL;

	strv_push(&argv, process_own_binary());
	strv_add(&argv, "run");
	if (parent)
		strv_add(&argv, "--parent");
	if (flags & KEEPER_INCOMING)
		strv_add(&argv, "--incoming");
	if (flags & KEEPER_FORCE)
		strv_add(&argv, "--force");
	if (flags & KEEPER_OFFLINE)
		strv_add(&argv, "--offline");
	if (ready)
		strv_add(&argv, "--ready-fd=%d", READY_FD);
	strv_add(&argv, "%s", name);
	return argv;
}

/* Waits for the keeper, reaping whatever else ends below us (QEMU, once its keeper was killed). */
static int wait_for(pid_t keeper)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, 0);

		if (pid == keeper)
			return status;
		if (pid < 0 && errno != EINTR)
			return 0;
	}
}

/* A keeper that dies again and again is started again once a second, not in a busy loop. */
static void pause_if_crashing(uint64_t *starts, unsigned int *n)
{
	struct timespec second = {.tv_sec = 1};
	uint64_t now = now_usec();
	sigset_t none;

	if (now - starts[*n % CRASHES_MAX] < CRASHES_WITHIN && starts[*n % CRASHES_MAX]) {
		sigemptyset(&none);
		sigaddset(&none, SIGUSR2);
		(void)sigtimedwait(&none, NULL, &second);
	}
	starts[(*n)++ % CRASHES_MAX] = now;
}

int keeper_parent(const char *name, unsigned int flags, int ready_fd)
{
	uint64_t starts[CRASHES_MAX] = {};
	unsigned int n = 0;

	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_NAME, "vmferry-parent");
	for (;;) {
		_cleanup_strv_ char **argv = keeper_argv(name, flags, false, ready_fd >= 0);
		SpawnFd fds[] = {{.fd = ready_fd, .number = READY_FD}};
		_cleanup_error_ Error *err = NULL;
		pid_t pid;
		int status;

		pause_if_crashing(starts, &n);
		pid = process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = ready_fd >= 0}, NULL, &err);
		ready_fd = fd_close(ready_fd);
		if (pid < 0)
			return 1;
		status = wait_for(pid);
		if (WIFEXITED(status))
			return WEXITSTATUS(status);
		flags &= ~(unsigned int)KEEPER_FORCE;
	}
}

/* What the keeper said on its ready fd: "READY", or the refusal of preamble_refusal(). */
static int read_ready(int fd, const char *name, Error **err)
{
	char text[1200], token[33];
	ssize_t n = fd_read_all(fd, text, sizeof(text) - 1);

	if (n <= 0) {
		error_set(err, -EIO, "%s's keeper ended before it was ready", name);
		error_hint(err, "see %s/%s/log", state_dir(), name);
		return -EIO;
	}
	text[n] = '\0';
	if (startswith(text, "READY"))
		return 0;
	text[strcspn(text, "\n")] = '\0';
	return preamble_answer(text, token, err);
}

static int start_detached(const char *name, unsigned int flags, Error **err)
{
	_cleanup_strv_ char **argv = keeper_argv(name, flags, true, true);
	_cleanup_fd_ int rd = -1, wr = -1;
	SpawnFd fds[1];
	int pair[2];
	pid_t pid;

	if (pipe2(pair, O_CLOEXEC) < 0)
		return error_set(err, -errno, "pipe: %m");
	rd = pair[0];
	wr = pair[1];
	fds[0] = (SpawnFd){.fd = wr, .number = READY_FD};
	pid = process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = 1, .setsid = true}, NULL, err);
	if (pid < 0)
		return pid;
	wr = fd_close(wr);
	return read_ready(rd, name, err);
}

/* ---- with systemd: the unit vmferry@NAME.service; what the keeper has to say about a failure is in a file ---- */

static bool have_systemd_unit(void)
{
	static const char *const places[] = {
		"/etc/systemd/system/vmferry@.service", "/usr/lib/systemd/system/vmferry@.service",
		"/lib/systemd/system/vmferry@.service", "/usr/local/lib/systemd/system/vmferry@.service"};

	if (access("/run/systemd/system", F_OK) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		if (access(places[i], F_OK) == 0)
			return true;
	return false;
}

static int start_unit(const char *name, unsigned int flags, Error **err)
{
	_cleanup_free_ char *unit = xasprintf("vmferry@%s.service", name), *path = NULL, *failure = NULL;
	_cleanup_free_ char *dir = runtime_path(name, NULL);
	char *argv[] = {(char *)"systemctl", (char *)"start", unit, NULL};
	const char *words = flags & KEEPER_INCOMING  ? "incoming\n"
			    : flags & KEEPER_OFFLINE ? "offline\n"
			    : flags & KEEPER_FORCE   ? "force\n"
						     : "\n";
	SpawnFd fds[] = {{.fd = 2, .number = 2}};
	int r, status;
	pid_t pid;

	path = runtime_path(name, "start");
	r = dir_make(dir, 0711);
	if (r == 0)
		r = file_write(path, words, strlen(words), 0600, false);
	if (r < 0)
		return error_set(err, r, "%s: %s", path, strerror(-r));
	pid = process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = 1}, NULL, err);
	if (pid < 0)
		return pid;
	if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	free(TAKE_PTR(path));
	path = state_path(name, "start-error");
	if (file_read(path, 2048, &failure, NULL) < 0)
		return error_set(err, -EIO, "%s did not start: see systemctl status %s", unit, unit);
	failure[strcspn(failure, "\n")] = '\0';
	return preamble_answer(failure, (char[33]){}, err);
}

int keeper_start(const char *name, unsigned int flags, Error **err)
{
	return have_systemd_unit() ? start_unit(name, flags, err) : start_detached(name, flags, err);
}

/* ---- vmferry run ---- */

int verb_run(int argc, char **argv)
{
	unsigned int flags = 0;
	const char *name = NULL;
	uint64_t ready = 0;
	bool parent = false;

	for (int i = 1; i < argc; i++) {
		const char *value;

		if (streq(argv[i], "--incoming"))
			flags |= KEEPER_INCOMING;
		else if (streq(argv[i], "--force"))
			flags |= KEEPER_FORCE;
		else if (streq(argv[i], "--offline"))
			flags |= KEEPER_OFFLINE;
		else if (streq(argv[i], "--parent"))
			parent = true;
		else if ((value = startswith(argv[i], "--ready-fd=")) && text_parse_u64(value, &ready) == 0 &&
			 ready < 1024)
			continue;
		else if (argv[i][0] != '-' && !name)
			name = argv[i];
		else
			name = "";
	}
	if (!name || !vm_name_valid(name)) {
		fprintf(stderr, "usage: vmferry run [--incoming] [--force] NAME\n");
		return 2;
	}
	if (ready)
		fd_cloexec((int)ready, true);
	if (parent)
		return keeper_parent(name, flags, ready ? (int)ready : -1);
	return keeper_run(name, flags, ready ? (int)ready : -1);
}
