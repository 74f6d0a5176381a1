/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "cli/cli.h"
#include "cli/local.h"
#include "cli/output.h"

/* A line longer than this is none of ours. */
#define LINE_MAX_BYTES (1024 * 1024)

/* What is shown of an event besides its time and name; --json has all. */
static const Column columns[] = {
	{"", "text", NULL, false},
	{"from", "details.from", NULL, false},
	{"to", "details.target", NULL, false},
	{"transport", "details.transport", NULL, false},
	{"pause", "details.pause_ms", format_ms, false},
	{"total", "details.total_ms", format_ms, false},
	{"connections", "details.conntrack.applied", NULL, false},
	{"because", "details.why", NULL, false},
	{"because", "details.error.message", NULL, false},
	{"id", "details.id", NULL, false},
};

/* "2025-03-01 12:00:00  moved  to b, pause 45 ms" */
static void print_event(json_object *o)
{
	_cleanup_free_ char *time = format_time(json_member(o, "time"));
	_cleanup_free_ char *event = format_value(json_member(o, "event"));
	const char *before = "  ";

	printf("%s  %s", time, event);
	for (size_t i = 0; i < ARRAY_SIZE(columns); i++) {
		json_object *value = json_member(o, columns[i].path);
		_cleanup_free_ char *text = (columns[i].format ? columns[i].format : format_value)(value);

		if (!value)
			continue;
		printf("%s%s%s%s", before, columns[i].title, *columns[i].title ? " " : "", text);
		before = ", ";
	}
	printf("\n");
}

static void print_line(const Cli *cli, const char *line, ssize_t len)
{
	_cleanup_json_ json_object *o = len <= LINE_MAX_BYTES ? json_parse(line, (size_t)len) : NULL;

	/* A last line cut short by a crash is left out. */
	if (!json_object_is_type(o, json_type_object))
		return;
	if (cli->json)
		output_json(o);
	else
		print_event(o);
}

/* Prints whole lines from where @file stands, and leaves it there. */
static void print_lines(const Cli *cli, FILE *file)
{
	_cleanup_free_ char *line = NULL;
	off_t start = ftello(file);
	size_t size = 0;
	ssize_t len;

	clearerr(file);
	while ((len = getline(&line, &size, file)) > 0 && line[len - 1] == '\n') {
		print_line(cli, line, len);
		start = ftello(file);
	}
	fflush(stdout);
	(void)fseeko(file, start, SEEK_SET);
}

static bool replaced(FILE *file, const char *path)
{
	struct stat here, there;

	return fstat(fileno(file), &here) < 0 || stat(path, &there) < 0 || here.st_ino != there.st_ino ||
	       there.st_size < ftello(file);
}

static int follow(const Cli *cli, const char *path, FILE **file, Error **err)
{
	_cleanup_fd_ int watch = inotify_init1(IN_CLOEXEC);
	_cleanup_free_ char *dir = strndup(path, (size_t)(strrchr(path, '/') - path));
	char events[4096];

	if (!dir || watch < 0 || inotify_add_watch(watch, dir, IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0)
		return error_set(err, -errno, "cannot follow %s: %m", path);
	for (;;) {
		struct pollfd fds[] = {{watch, POLLIN, 0}, {cli->under_control ? STDIN_FILENO : -1, POLLIN, 0}};

		print_lines(cli, *file);
		if (ferror(stdout))
			return STATUS_DONE;
		if (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno != EINTR)
			return error_set(err, -errno, "cannot follow %s: %m", path);
		if (fds[1].revents)
			return STATUS_DONE;
		if (fds[0].revents && read(watch, events, sizeof(events)) < 0 && errno != EINTR)
			return error_set(err, -errno, "cannot follow %s: %m", path);
		if (replaced(*file, path)) {
			FILE *fresh = fopen(path, "re");

			if (!fresh)
				continue;
			print_lines(cli, *file);
			fclose(*file);
			*file = fresh;
		}
	}
}

static void closep(FILE **file)
{
	if (*file)
		fclose(*file);
}

static int log_each(const Cli *cli, const char *name, _unused_ json_object **ret, Error **err)
{
	_cleanup_free_ char *path = state_path(name, "history"), *definition = local_definition_path(name);
	_cleanup_(closep)
	FILE *file = fopen(path, "re");
	bool more = false;

	if (!file && errno == ENOENT)
		return definition ? STATUS_DONE : local_missing(err);
	if (!file)
		return error_set(err, -errno, "no history: %s: %m", path);
	(void)json_get_bool(cli->options, "follow", &more);
	if (more)
		return follow(cli, path, &file, err);
	print_lines(cli, file);
	return STATUS_DONE;
}

static const OptionSpec options[] = {
	{"follow", 'f', OPTION_FLAG, NULL, "follow", "go on printing what is added"},
	{NULL},
};

const Verb log_verb = {
	.name = "log",
	.args = "NAME",
	.help = "print what happened to a VM on this host",
	.options = {options},
	.min_args = 1,
	.max_args = 1,
	.each = log_each,
};
