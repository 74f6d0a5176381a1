/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fd.h"
#include "text.h"

#define LOG_FILE_MAX (1024 * 1024)

static struct {
	int fd;
	char *path;
	LogLevel level;
	LogSink sink;
	void *userdata;
} self = {.fd = -1, .level = LOG_LEVEL_INFO};

static const char *const level_names[] = {
	[LOG_LEVEL_ERROR] = "error",
	[LOG_LEVEL_WARNING] = "warning",
	[LOG_LEVEL_INFO] = "info",
	[LOG_LEVEL_DEBUG] = "debug",
};

int log_open(const char *path)
{
	const char *env = getenv("VMFERRY_LOG");

	if (env && streq(env, "debug"))
		self.level = LOG_LEVEL_DEBUG;
	self.fd = fd_close(self.fd);
	free(TAKE_PTR(self.path));
	if (!path)
		return 0;
	self.fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (self.fd < 0)
		return -errno;
	self.path = xstrdup(path);
	return 0;
}

void log_set_sink(LogSink sink, void *userdata)
{
	self.sink = sink;
	self.userdata = userdata;
}

void log_set_level(LogLevel level)
{
	self.level = level;
}

static void rotate(void)
{
	_cleanup_free_ char *old = NULL, *path = NULL;
	struct stat st;

	if (fstat(self.fd, &st) < 0 || st.st_size < LOG_FILE_MAX)
		return;
	path = xstrdup(self.path);
	old = xasprintf("%s.1", path);
	if (rename(path, old) == 0)
		(void)log_open(path);
}

void log_line(LogLevel level, const char *fmt, ...)
{
	_cleanup_free_ char *message = NULL, *line = NULL;
	int saved = errno;
	struct timespec ts;
	struct tm tm;
	va_list ap;

	if (level > self.level)
		return;
	va_start(ap, fmt);
	message = xvasprintf(fmt, ap);
	va_end(ap);
	/* A line is a line, whoever has said what is in it. */
	for (char *p = message; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	clock_gettime(CLOCK_REALTIME, &ts);
	gmtime_r(&ts.tv_sec, &tm);
	line = xasprintf("%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ %d %s: %s\n", tm.tm_year + 1900, tm.tm_mon + 1,
			 tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, ts.tv_nsec / 1000, (int)getpid(),
			 level_names[level], message);
	if (self.fd >= 0) {
		(void)fd_write_all(self.fd, line, strlen(line));
		rotate();
	} else {
		(void)fd_write_all(STDERR_FILENO, line, strlen(line));
	}
	if (self.sink && level <= LOG_LEVEL_INFO)
		self.sink(level, message, self.userdata);
	errno = saved;
}
