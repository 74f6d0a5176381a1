/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "parallel.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/process.h"
#include "basic/text.h"
#include "cli/output.h"

/* The command line for one name: without what stands for many. */
static char **words_for(const Cli *cli, const char *name)
{
	_cleanup_free_ char *every = xasprintf("--%s", cli->verb->every ? cli->verb->every : "");
	char **argv = NULL;

	strv_push(&argv, process_own_binary());
	strv_add(&argv, "%s", cli->verb->name);
	for (size_t i = 0; cli->words && cli->words[i]; i++)
		if (!startswith(cli->words[i], "--parallel=") && !streq(cli->words[i], every))
			strv_add(&argv, "%s", cli->words[i]);
	strv_add(&argv, "--");
	strv_add(&argv, "%s", name);
	return argv;
}

static int start(const Cli *cli, const char *name)
{
	_cleanup_strv_ char **argv = words_for(cli, name);
	SpawnFd fds[] = {{.fd = STDOUT_FILENO, .number = STDOUT_FILENO},
			 {.fd = STDERR_FILENO, .number = STDERR_FILENO}};
	_cleanup_error_ Error *err = NULL;

	if (process_spawn(&(Spawn){.argv = argv, .fds = fds, .n_fds = ARRAY_SIZE(fds)}, NULL, &err) >= 0)
		return 0;
	output_error(name, err);
	return -ECHILD;
}

/* Return: the ExitStatus of the next one that ends. */
static int wait_one(void)
{
	int status;
	pid_t pid;

	do
		pid = waitpid(-1, &status, 0);
	while (pid < 0 && errno == EINTR);
	return pid >= 0 && WIFEXITED(status) ? WEXITSTATUS(status) : STATUS_DOUBT;
}

int parallel_run(const Cli *cli, unsigned int n)
{
	size_t names = strv_length(cli->args);
	int worst = STATUS_DONE;
	unsigned int running = 0;

	signal(SIGINT, SIG_IGN);
	for (size_t i = 0; i < names || running > 0;) {
		int status = STATUS_DONE;

		if (i < names && running < n) {
			if (start(cli, cli->args[i++]) < 0)
				status = STATUS_FAILED;
			else
				running++;
		} else {
			status = wait_one();
			running--;
		}
		worst = status > worst ? status : worst;
	}
	return worst;
}
