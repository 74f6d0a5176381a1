/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "parallel.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/process.h"
#include "basic/text.h"
#include "cli/output.h"

typedef struct Work {
	const char *name;
	pid_t pid;  /* 0: not begun, or to begin again */
	bool alone; /* it was: what keeps it from beginning is none of ours */
	bool ended;
} Work;

/* The command line for one name: without what stands for many. */
static char **words_for(const Cli *cli, const char *name, bool or_later)
{
	_cleanup_free_ char *every = xasprintf("--%s", cli->verb->every ? cli->verb->every : "");
	char **argv = NULL;

	strv_push(&argv, process_own_binary());
	strv_add(&argv, "%s", cli->verb->name);
	for (size_t i = 0; cli->words && cli->words[i]; i++)
		if (!startswith(cli->words[i], "--parallel=") && !streq(cli->words[i], every))
			strv_add(&argv, "%s", cli->words[i]);
	if (or_later)
		strv_add(&argv, "--or-later");
	strv_add(&argv, "--");
	strv_add(&argv, "%s", name);
	return argv;
}

static bool start(const Cli *cli, Work *work)
{
	_cleanup_strv_ char **argv = words_for(cli, work->name, !work->alone);
	SpawnFd fds[] = {{.fd = STDOUT_FILENO, .number = STDOUT_FILENO},
			 {.fd = STDERR_FILENO, .number = STDERR_FILENO}};
	_cleanup_error_ Error *err = NULL;

	work->pid = process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = ARRAY_SIZE(fds)}, NULL, &err);
	work->ended = work->pid < 0;
	if (err)
		output_error(work->name, err);
	return !work->ended;
}

static Work *next(Work *work, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!work[i].pid && !work[i].ended)
			return &work[i];
	return NULL;
}

/* Return: the ExitStatus of the next one that ends. */
static int wait_one(Work *work, size_t n, bool alone)
{
	int status, code;
	pid_t pid;

	do
		pid = waitpid(-1, &status, 0);
	while (pid < 0 && errno == EINTR);
	code = pid >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : STATUS_DOUBT;
	for (size_t i = 0; i < n; i++)
		if (work[i].pid == pid) {
			work[i].ended = code != STATUS_LATER;
			work[i].alone = alone;
			work[i].pid = 0;
		}
	return code;
}

/* What cannot be now because of others is begun again when one of ours has ended; alone, the answer is final. */
int parallel_run(const Cli *cli, unsigned int n)
{
	size_t names = strv_length(cli->args);
	_cleanup_free_ Work *work = xcalloc(names, sizeof(*work));
	unsigned int running = 0;
	int worst = STATUS_DONE;
	bool held = false;

	for (size_t i = 0; i < names; i++)
		work[i].name = cli->args[i];
	signal(SIGINT, SIG_IGN);
	for (;;) {
		Work *one = held || running == n ? NULL : next(work, names);
		int status = STATUS_DONE;

		if (one && start(cli, one)) {
			running++;
			held = one->alone;
		} else if (one) {
			status = STATUS_FAILED;
		} else if (running > 0) {
			status = wait_one(work, names, --running == 0);
			held = status == STATUS_LATER && running > 0;
		} else {
			return worst;
		}
		if (status != STATUS_LATER)
			worst = status > worst ? status : worst;
	}
}
