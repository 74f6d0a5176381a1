/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Finding a QEMU again, and what can be had from a living one. proc(5), pidfd_open(2), pidfd_getfd(2). */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/process.h"
#include "basic/text.h"
#include "command_line.h"
#include "process.h"
#include "tap.h"

#define LAST_WORDS_BYTES 4096
#define WORDS_MAX (256 * 1024)
#define LAST_WORDS_MAX 400
#define STATUS_MAX (64 * 1024)

void qemu_process_free(QemuProcess *process)
{
	if (!process)
		return;
	fd_close(process->pidfd);
	free(process->dir);
	free(process);
}

/* Whether someone has the lock: a living QEMU, or one that is starting or dying. */
static int lock_held(const char *dir, struct stat *ret_st)
{
	_cleanup_free_ char *path = xasprintf("%s/lock", dir);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fstat(fd, ret_st) < 0)
		return -errno;
	/* Shared, so that two who ask do not take each other for a QEMU. */
	if (flock(fd, LOCK_SH | LOCK_NB) == 0)
		return 0;
	return errno == EWOULDBLOCK ? 1 : -errno;
}

/* Return: pid of a record that is whole and of this boot, else -EAGAIN. */
static pid_t read_pid_record(const char *dir, uint64_t *ret_start_time)
{
	_cleanup_free_ char *path = xasprintf("%s/pid", dir), *text = NULL, *boot_id = NULL;
	_cleanup_strv_ char **words = NULL;
	uint64_t pid;

	if (file_read(path, 256, &text, NULL) < 0 || !strchr(text, '\n'))
		return -EAGAIN;
	if (strv_split_words(text, &words) < 0 || strv_length(words) != 3)
		return -EAGAIN;
	if (text_parse_u64(words[0], &pid) < 0 || pid == 0 || pid > INT32_MAX ||
	    text_parse_u64(words[1], ret_start_time) < 0)
		return -EAGAIN;
	if (file_read("/proc/sys/kernel/random/boot_id", 64, &boot_id, NULL) < 0)
		return -EAGAIN;
	boot_id[strcspn(boot_id, "\n")] = '\0';
	return streq(words[2], boot_id) ? (pid_t)pid : -EAGAIN;
}

static bool holds_lock(pid_t pid, const struct stat *lock)
{
	_cleanup_free_ char *path = xasprintf("/proc/%d/fd/%d", (int)pid, QEMU_FD_LOCK);
	struct stat st;

	return stat(path, &st) == 0 && st.st_dev == lock->st_dev && st.st_ino == lock->st_ino;
}

int qemu_process_adopt(const char *dir, unsigned int generation, QemuProcess **ret, Error **err)
{
	_cleanup_qemu_process_ QemuProcess *process = xcalloc(1, sizeof(*process));
	uint64_t start_time;
	struct stat lock;
	int r;

	*process = (QemuProcess){.pidfd = -1, .generation = generation, .dir = xstrdup(dir)};
	r = lock_held(dir, &lock);
	if (r < 0)
		return error_set(err, r, "%s/lock: %s", dir, strerror(-r));
	if (r == 0)
		return error_set(err, -ESRCH, "no QEMU lives in %s", dir);
	process->pid = read_pid_record(dir, &start_time);
	if (process->pid < 0)
		return error_set(err, -EAGAIN, "the QEMU in %s is only just starting", dir);
	process->pidfd = (int)syscall(SYS_pidfd_open, process->pid, 0);
	/* From here on the pidfd keeps the pid from meaning another process. */
	if (process->pidfd < 0 || process_start_time(process->pid) != start_time || !holds_lock(process->pid, &lock))
		return error_set(err, -EAGAIN,
				 "the QEMU in %s (process %d) is starting or dying: its lock is held, not by it", dir,
				 (int)process->pid);
	*ret = TAKE_PTR(process);
	return 0;
}

int qemu_process_kill(QemuProcess *process)
{
	if (syscall(SYS_pidfd_send_signal, process->pidfd, SIGKILL, NULL, 0) < 0 && errno != ESRCH)
		return -errno;
	return 0;
}

/* Where the last message begins: QEMU puts its name before an error, and none before the hints that follow it. */
static char *last_message(char *text)
{
	char *newline = strrchr(text, '\n'), *last = startswith(text, "qemu-") ? text : NULL;

	for (char *p = text; (p = strstr(p, "\nqemu-")); p++)
		last = p + 1;
	if (last)
		return last;
	return newline ? newline + 1 : text;
}

char *qemu_process_last_words(const char *dir)
{
	_cleanup_free_ char *path = xasprintf("%s/stderr", dir);
	_cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char text[LAST_WORDS_BYTES + 1], *message;
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return xstrdup("");
	n = pread(fd, text, LAST_WORDS_BYTES, st.st_size > LAST_WORDS_BYTES ? st.st_size - LAST_WORDS_BYTES : 0);
	while (n > 0 && strchr(" \t\r\n", text[n - 1]))
		n--;
	text[n > 0 ? n : 0] = '\0';
	message = last_message(text);
	for (char *p = message; *p; p++)
		if (*p == '\n')
			*p = ' ';
	return text_clean(message, LAST_WORDS_MAX);
}

void qemu_process_trim_words(const char *dir)
{
	_cleanup_free_ char *path = xasprintf("%s/stderr", dir);
	_cleanup_fd_ int fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
	char text[LAST_WORDS_BYTES];
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size <= WORDS_MAX)
		return;
	n = pread(fd, text, sizeof(text), st.st_size - (off_t)sizeof(text));
	/* QEMU appends, too: what it says next goes to the end, wherever that is. */
	if (ftruncate(fd, 0) == 0 && n > 0)
		(void)fd_write_all(fd, text, (size_t)n);
}

/* Ends when the process is dead: the pid in a path we used before may have meant another one. */
static int still_alive(const QemuProcess *process)
{
	struct pollfd p = {.fd = process->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 0 ? 0 : -ESRCH;
}

int qemu_process_memfd(const QemuProcess *process)
{
	_cleanup_free_ char *path = xasprintf("/proc/%d/fd/%d", (int)process->pid, QEMU_FD_MEMORY);
	_cleanup_fd_ int fd = -1;
	struct stat st;
	int r;

	if (stat(path, &st) < 0)
		return errno == ENOENT && still_alive(process) < 0 ? -ESRCH : -errno;
	/* A file without a name is ours (memory.c); with private memory, the number is something else's. */
	if (!S_ISREG(st.st_mode) || st.st_nlink != 0)
		return -ENOENT;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = still_alive(process);
	return r < 0 ? r : TAKE_FD(fd);
}

uint64_t qemu_process_memory(const QemuProcess *process)
{
	static const char key[] = "\nRssAnon:";
	_cleanup_free_ char *path = xasprintf("/proc/%d/status", (int)process->pid), *text = NULL;
	_cleanup_fd_ int fd = qemu_process_memfd(process);
	const char *own = file_read(path, STATUS_MAX, &text, NULL) < 0 ? NULL : strstr(text, key);
	struct stat st = {};

	if (still_alive(process) < 0 || (fd >= 0 && fstat(fd, &st) < 0))
		return 0;
	return (uint64_t)st.st_blocks * 512 + (own ? strtoull(own + strlen(key), NULL, 10) * 1024 : 0);
}

int qemu_process_tap_fd(const QemuProcess *process, size_t index)
{
	_cleanup_free_ char *name = NULL;
	_cleanup_fd_ int fd = -1;

	if (index >= VM_NICS_MAX)
		return -EINVAL;
	fd = (int)syscall(SYS_pidfd_getfd, process->pidfd, QEMU_FD_TAP + (int)index, 0);
	if (fd < 0)
		return -errno;
	name = tap_name(fd);
	return name ? TAKE_FD(fd) : -ENOENT;
}

int qemu_process_lease_fd(const QemuProcess *process)
{
	int fd = (int)syscall(SYS_pidfd_getfd, process->pidfd, QEMU_FD_LEASE, 0);

	return fd < 0 ? -errno : fd;
}
