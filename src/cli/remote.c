/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "remote.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/process.h"
#include "basic/text.h"
#include "cli/dest.h"
#include "cli/output.h"
#include "cli/relay.h"

/* What ssh exits with when ssh itself failed. */
#define SSH_FAILED 255

static void add(json_object *words, const char *word)
{
	json_object_array_add(words, json_object_new_string(word));
}

/* The line that is sent, without newline. */
static int remote_line(const Cli *cli, char **ret, Error **err)
{
	_cleanup_json_ json_object *words = json_object_new_array();
	const char *choice, *text;

	add(words, cli->verb->name);
	for (size_t i = 0; cli->words && cli->words[i]; i++)
		if (!startswith(cli->words[i], "--host="))
			add(words, cli->words[i]);
	if (cli->verb->flags & VERB_PROGRESS && isatty(STDERR_FILENO) && !cli->json &&
	    !json_get_string(cli->options, "progress", &choice))
		add(words, "--progress=line");
	add(words, "--");
	for (size_t i = 0; cli->args && cli->args[i]; i++)
		add(words, cli->args[i]);
	text = json_text(words);
	if (strlen(text) >= REMOTE_LINE_MAX || json_object_array_length(words) > REMOTE_WORDS_MAX)
		return error_set(err, -E2BIG, "the command line is too long for another host");
	*ret = xstrdup(text);
	return 0;
}

int remote_words(const char *line, size_t len, char ***ret, Error **err)
{
	_cleanup_json_ json_object *array = len < REMOTE_LINE_MAX ? json_parse(line, len) : NULL;
	_cleanup_strv_ char **words = NULL;
	size_t n = json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
	const Verb *verb;

	if (n < 1 || n > REMOTE_WORDS_MAX)
		return error_set(err, -EINVAL, "the first line is no JSON array of words");
	for (size_t i = 0; i < n; i++) {
		json_object *word = json_object_array_get_idx(array, i);

		if (!json_object_is_type(word, json_type_string) ||
		    strlen(json_object_get_string(word)) != (size_t)json_object_get_string_len(word))
			return error_set(err, -EINVAL, "the first line is no JSON array of words");
		strv_push(&words, xstrdup(json_object_get_string(word)));
	}
	verb = verb_find(words[0]);
	if (!verb || (verb->flags & VERB_LOCAL)) {
		_cleanup_free_ char *clean = format_text(words[0]);

		return error_set(err, -EINVAL, "\"%s\" cannot be done for another host", clean);
	}
	*ret = TAKE_PTR(words);
	return 0;
}

int remote_argv(const char *host, char ***ret, Error **err)
{
	const char *ssh = getenv("VMFERRY_SSH"), *far = getenv("VMFERRY_REMOTE_CONTROL");
	_cleanup_free_ char *login = NULL, *port = NULL;
	_cleanup_strv_ char **argv = NULL;
	int r;

	r = ssh_url_parse(host, &login, &port, err);
	if (r < 0)
		return r;
	if (strv_split_words(ssh && *ssh ? ssh : "ssh", &argv) < 0)
		return error_set(err, -EINVAL, "VMFERRY_SSH is no command: %s", ssh);
	if (port) {
		strv_push(&argv, xstrdup("-p"));
		strv_push(&argv, TAKE_PTR(port));
	}
	strv_push(&argv, TAKE_PTR(login));
	strv_push(&argv, xstrdup(far && *far ? far : "vmferry control"));
	*ret = TAKE_PTR(argv);
	return 0;
}

/* ^C on the terminal reaches ssh, too, but it is the far verb that must get it. */
static int ignore_interrupt(_unused_ void *userdata)
{
	return signal(SIGINT, SIG_IGN) == SIG_ERR ? -errno : 0;
}

static int ssh_failed(const Cli *cli, const char *host, bool began, Error **err)
{
	if (!began) {
		error_set(err, -EHOSTUNREACH, "ssh could not reach %s", host);
		error_hint(err, "nothing was done there; try ssh by hand");
		return STATUS_FAILED;
	}
	error_set(err, -ECONNRESET, "the connection to %s broke", host);
	error_hint(err, "what was begun there goes on: vmferry -H %s %s", host,
		   cli->verb->flags & VERB_INTERRUPT ? "watch NAME" : "status NAME");
	return STATUS_DOUBT;
}

static int wait_ssh(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : SSH_FAILED;
}

static int talk(const Cli *cli, const char *host, char **argv, const char *line, Error **err)
{
	_cleanup_fd_ int rd = -1, wr = -1, pidfd = -1;
	unsigned int flags = cli->verb->flags;
	int fds[2], end, status, unread = 0;
	Relay relay;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_set(err, -errno, "pipe: %m");
	rd = fds[0];
	wr = fds[1];
	pid = process_spawn(&(Spawn){.argv = argv,
				     .fds = (SpawnFd[]){{rd, 0}, {STDOUT_FILENO, 1}, {STDERR_FILENO, 2}},
				     .n_fds = 3,
				     .prepare = ignore_interrupt},
			    &pidfd, err);
	if (pid < 0)
		return pid;
	/* A whole line fits into the pipe: this cannot block. */
	(void)fd_write_all(wr, line, strlen(line));
	if (flags & VERB_STDIN)
		rd = fd_close(rd);
	relay = (Relay){.write_fd = TAKE_FD(wr),
			.read_fd = -1,
			.over_fd = pidfd,
			.input = flags & VERB_STDIN,
			.raw = flags & VERB_STDIN && isatty(STDIN_FILENO),
			.interrupt = flags & VERB_INTERRUPT};
	end = relay_run(&relay);
	fd_close(relay.write_fd);
	if (end != RELAY_FAR_ENDED)
		kill(pid, SIGTERM);
	status = wait_ssh(pid);
	if (end == RELAY_LEFT)
		return STATUS_DONE;
	if (end != RELAY_FAR_ENDED) {
		error_set(err, -EINTR, "interrupted; what was begun on %s goes on", host);
		return STATUS_DOUBT;
	}
	/* A line that ssh never read means that the far side never got it. */
	if (rd >= 0)
		(void)ioctl(rd, FIONREAD, &unread);
	if (status == SSH_FAILED)
		return ssh_failed(cli, host, unread < (int)strlen(line), err);
	if (status > STATUS_DOUBT) {
		error_set(err, -EIO, "the command on %s ended with status %d", host, status);
		error_hint(err,
			   "is vmferry installed there? VMFERRY_REMOTE_CONTROL names it, default \"vmferry control\"");
		return STATUS_FAILED;
	}
	return status;
}

int remote_run(const Cli *cli, const char *host, Error **err)
{
	_cleanup_free_ char *line = NULL, *whole = NULL;
	_cleanup_strv_ char **argv = NULL;
	int r;

	r = remote_argv(host, &argv, err);
	if (r >= 0)
		r = remote_line(cli, &line, err);
	if (r < 0)
		return r;
	whole = xasprintf("%s\n", line);
	return talk(cli, host, argv, whole, err);
}
