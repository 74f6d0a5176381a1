/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fd.h"
#include "fs.h"
#include "text.h"

extern char **environ;

/*
 * Puts the wanted fds at their numbers and closes all others. Up and out of the way first, above the highest number
 * wanted, so that no dup2() lands on an fd that is still needed; what is free up there nobody knows, so where they
 * landed is kept.
 * @lifted: room for n_fds; @report: stays open, close-on-exec, and is another number afterwards
 */
static int child_fds(const Spawn *spawn, int *lifted, int *report)
{
	int top = STDERR_FILENO + 1, r;

	for (size_t i = 0; i < spawn->n_fds; i++)
		if (spawn->fds[i].number >= top)
			top = spawn->fds[i].number + 1;
	r = fcntl(*report, F_DUPFD_CLOEXEC, top);
	if (r < 0)
		return -errno;
	*report = r;
	for (size_t i = 0; i < spawn->n_fds; i++) {
		lifted[i] = fcntl(spawn->fds[i].fd, F_DUPFD_CLOEXEC, top);
		if (lifted[i] < 0)
			return -errno;
	}
	close_range(0, (unsigned int)top - 1, 0);
	if (open("/dev/null", O_RDWR) != 0 || dup2(0, 1) < 0 || dup2(0, 2) < 0)
		return -EBADF;
	for (size_t i = 0; i < spawn->n_fds; i++)
		if (dup2(lifted[i], spawn->fds[i].number) < 0)
			return -errno;
	if (*report > top)
		close_range((unsigned int)top, (unsigned int)*report - 1, 0);
	close_range((unsigned int)*report + 1, ~0U, 0);
	return 0;
}

static void child_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static char **merged_env(char *const *extra)
{
	_cleanup_strv_ char **env = strv_copy(extra);

	for (char **e = environ; *e; e++) {
		size_t name = strcspn(*e, "=") + 1;
		bool replaced = false;

		for (size_t i = 0; extra && extra[i]; i++)
			replaced |= strncmp(*e, extra[i], name) == 0;
		if (!replaced)
			strv_push(&env, xstrdup(*e));
	}
	return TAKE_PTR(env);
}

static int end_with(pid_t parent)
{
	if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0)
		return -errno;
	return getppid() == parent ? 0 : -EOWNERDEAD;
}

static void __attribute__((noreturn)) child(const Spawn *spawn, char **env, int *lifted, int report, pid_t parent)
{
	int r;

	child_signals();
	if (spawn->setsid)
		setsid();
	r = child_fds(spawn, lifted, &report);
	if (r == 0 && spawn->bound)
		r = end_with(parent);
	if (r == 0 && spawn->prepare)
		r = spawn->prepare(spawn->userdata);
	if (r == 0) {
		execvpe(spawn->argv[0], spawn->argv, env);
		r = -errno;
	}
	(void)fd_write_all(report, &r, sizeof(r));
	_exit(127);
}

static void reap(pid_t pid)
{
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

/* The child's word: EOF when its exec worked, else an errno. Return: 0 or that; the child is reaped then. */
static int await_exec(pid_t pid, int fd)
{
	int r = 0;
	ssize_t n = fd_read_all(fd, &r, sizeof(r));

	if (n == 0)
		return 0;
	reap(pid);
	return n == (ssize_t)sizeof(r) && r < 0 ? r : -EIO;
}

pid_t process_spawn(const Spawn *spawn, int *ret_pidfd, Error **err)
{
	_cleanup_strv_ char **env = merged_env(spawn->env);
	_cleanup_free_ int *lifted = xcalloc(spawn->n_fds, sizeof(*lifted));
	_cleanup_fd_ int rd = -1, wr = -1;
	int fds[2], pidfd, r;
	pid_t pid, parent = getpid();

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, -errno, "cannot start %s: %m", spawn->argv[0]);
	rd = fds[0];
	wr = fds[1];
	pid = fork();
	if (pid < 0)
		return error_set(err, -errno, "cannot start %s: %m", spawn->argv[0]);
	if (pid == 0)
		child(spawn, env, lifted, wr, parent);
	wr = fd_close(wr);
	r = await_exec(pid, rd);
	if (r < 0)
		return error_set(err, r, "cannot start %s: %s", spawn->argv[0], strerror(-r));
	if (!ret_pidfd)
		return pid;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0) {
		/* Nobody would know of it. */
		r = -errno;
		(void)kill(pid, SIGKILL);
		reap(pid);
		return error_set(err, r, "cannot watch %s: pidfd_open: %s", spawn->argv[0], strerror(-r));
	}
	*ret_pidfd = pidfd;
	return pid;
}

uint64_t process_start_time(pid_t pid)
{
	_cleanup_free_ char *path = xasprintf("/proc/%d/stat", (int)pid), *text = NULL;
	unsigned long long ticks;
	const char *p;

	if (file_read(path, 65536, &text, NULL) < 0)
		return 0;
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			 &ticks) != 1)
		return 0;
	return ticks;
}

char process_state(pid_t pid)
{
	_cleanup_free_ char *path = xasprintf("/proc/%d/stat", (int)pid), *text = NULL;
	const char *p = file_read(path, 65536, &text, NULL) < 0 ? NULL : strrchr(text, ')');

	return p && p[1] == ' ' && p[2] ? p[2] : 'X';
}

char *process_own_binary(void)
{
	char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	static const char deleted[] = " (deleted)";
	const size_t tail = sizeof(deleted) - 1;

	if (n < 0)
		return xstrdup("/proc/self/exe");
	path[n] = '\0';
	if ((size_t)n > tail && streq(path + (size_t)n - tail, deleted))
		path[(size_t)n - tail] = '\0';
	return xstrdup(path);
}
