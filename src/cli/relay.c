/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "relay.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "basic/fd.h"

#define BUFFER_SIZE 4096

/* Goes on: no RelayEnd. */
#define RELAY_ON (-EINPROGRESS)

typedef struct Terminal {
	bool raw;
	struct termios saved;
} Terminal;

static void terminal_restore(Terminal *t)
{
	if (t->raw)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &t->saved);
}

static void terminal_raw(Terminal *t)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &t->saved) < 0)
		return;
	raw = t->saved;
	cfmakeraw(&raw);
	t->raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0;
}

/* Signals that are not ignored (nohup), as an fd. */
static int signals_open(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	sigset_t set;
	int fd;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		struct sigaction old;

		if (sigaction(signals[i], NULL, &old) < 0 || old.sa_handler != SIG_IGN)
			sigaddset(&set, signals[i]);
	}
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int send_far(Relay *relay, const void *data, size_t len)
{
	int r = relay->write_fd >= 0 && len > 0 ? fd_write_all(relay->write_fd, data, len) : 0;

	return r == -EPIPE || r == -ECONNRESET ? (int)RELAY_FAR_ENDED : r < 0 ? r : RELAY_ON;
}

static int on_signal(Relay *relay, int fd)
{
	static const char interrupt = RELAY_INTERRUPT;
	struct signalfd_siginfo si;

	if (read(fd, &si, sizeof(si)) != (ssize_t)sizeof(si))
		return RELAY_ON;
	if (si.ssi_signo == SIGINT && relay->interrupt)
		return send_far(relay, &interrupt, 1);
	return RELAY_SIGNALLED;
}

static int on_input(Relay *relay)
{
	char buffer[BUFFER_SIZE], *escape;
	ssize_t n = read(STDIN_FILENO, buffer, sizeof(buffer));
	int r;

	if (n < 0 && errno == EINTR)
		return RELAY_ON;
	if (n <= 0) {
		relay->input = false;
		if (relay->quiet == 0)
			relay->write_fd = fd_close(relay->write_fd);
		return RELAY_ON;
	}
	escape = relay->raw ? memchr(buffer, RELAY_ESCAPE, (size_t)n) : NULL;
	r = send_far(relay, buffer, escape ? (size_t)(escape - buffer) : (size_t)n);
	return escape && r == RELAY_ON ? (int)RELAY_LEFT : r;
}

static int on_output(Relay *relay)
{
	char buffer[BUFFER_SIZE];
	ssize_t n = read(relay->read_fd, buffer, sizeof(buffer));
	int r;

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return RELAY_ON;
	if (n <= 0)
		return RELAY_FAR_ENDED;
	r = fd_write_all(STDOUT_FILENO, buffer, (size_t)n);
	return r == -EPIPE ? (int)RELAY_OUTPUT_GONE : r < 0 ? r : RELAY_ON;
}

int relay_run(Relay *relay)
{
	_cleanup_(terminal_restore)
	Terminal terminal = {0};
	_cleanup_fd_ int signals = signals_open();
	bool had_input = relay->input;
	int r = signals < 0 ? signals : RELAY_ON;

	if (r == RELAY_ON && relay->raw)
		terminal_raw(&terminal);
	while (r == RELAY_ON) {
		struct pollfd fds[] = {
			{signals, POLLIN, 0},
			{relay->read_fd, POLLIN, 0},
			{relay->input ? STDIN_FILENO : -1, POLLIN, 0},
			{relay->over_fd, POLLIN, 0},
		};
		bool lingers = had_input && !relay->input && relay->quiet > 0;
		int n = poll(fds, ARRAY_SIZE(fds), lingers ? relay->quiet : -1);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return RELAY_QUIET;
		if (n < 0)
			continue;
		if (fds[0].revents)
			r = on_signal(relay, signals);
		if (r == RELAY_ON && fds[1].revents)
			r = on_output(relay);
		if (r == RELAY_ON && fds[2].revents)
			r = on_input(relay);
		if (r == RELAY_ON && fds[3].revents)
			r = RELAY_FAR_ENDED;
	}
	return r;
}
