/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What runs in the test guest: servers that show whether a move was noticed.
 *
 *   7001/tcp  bulk source: byte N of the stream is pattern(N mod PERIOD). A line "pace BYTES\n" from the client limits
 *             the rate (bytes/s); without it as fast as it goes
 *   7002/tcp  echo
 *   7003/udp  echo
 *   7004/tcp  commands, a line each, answered by a line "ok ..." or "error ..."; see commands[]
 *
 * IPv4 and IPv6. One thread serves 7001 to 7003 by epoll; commands have a thread of their own, because filling memory
 * takes long, and so has the dirtier. The power button (ACPI) powers off.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/input.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PORT_BULK = 7001, PORT_ECHO, PORT_UDP, PORT_COMMAND };
enum { PERIOD = 65521, PAGE = 4096, WORDS = PAGE / 8 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Memory: page p holds the pseudo-random words that follow from p and how often it was written. */

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t *memory;
static uint32_t *generations;
static size_t pages;
static uint64_t dirty_rate; /* pages a second, 0: none */
static pthread_cond_t dirty_changed = PTHREAD_COND_INITIALIZER;

static uint64_t seed(size_t page)
{
	uint64_t x = (page + 1) * 0x9e3779b97f4a7c15ULL + generations[page] * 0xbf58476d1ce4e5b9ULL;

	return x ? x : 1;
}

static uint64_t next(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ (x << 17);
}

static void page_write(size_t page)
{
	uint64_t *word = memory + page * WORDS, x = seed(page);

	for (size_t i = 0; i < WORDS; i++)
		word[i] = x = next(x);
}

static bool page_right(size_t page)
{
	const uint64_t *word = memory + page * WORDS;
	uint64_t x = seed(page);

	for (size_t i = 0; i < WORDS; i++)
		if (word[i] != (x = next(x)))
			return false;
	return true;
}

static int memory_fill(uint64_t mib)
{
	size_t n = mib * 1024 * 1024 / PAGE;

	if (memory) {
		munmap(memory, pages * PAGE);
		free(generations);
		memory = NULL;
		generations = NULL;
		pages = 0;
	}
	if (n == 0)
		return 0;
	memory = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	generations = calloc(n, sizeof(*generations));
	if (memory == MAP_FAILED || !generations) {
		if (memory != MAP_FAILED)
			munmap(memory, n * PAGE);
		free(generations);
		memory = NULL;
		generations = NULL;
		return -ENOMEM;
	}
	pages = n;
	for (size_t page = 0; page < pages; page++)
		page_write(page);
	return 0;
}

/* Rewrites pages one after the other, a hundredth of a second's worth at a time. */
static void *dirtier(void *arg)
{
	size_t at = 0;
	double due = 0;

	(void)arg;
	for (;;) {
		pthread_mutex_lock(&memory_lock);
		while (!dirty_rate || !pages)
			pthread_cond_wait(&dirty_changed, &memory_lock);
		for (due += dirty_rate / 100.0; due >= 1; due--) {
			at = (at + 1) % pages;
			generations[at]++;
			page_write(at);
		}
		pthread_mutex_unlock(&memory_lock);
		nanosleep(&(struct timespec) { .tv_nsec = 10000000 }, NULL);
	}
	return NULL;
}

/* Commands: each writes its answer to @out, "ok ..." or "error ...". */

static void cmd_fill(FILE *out, uint64_t mib)
{
	pthread_mutex_lock(&memory_lock);
	dirty_rate = 0;
	fprintf(out, memory_fill(mib) < 0 ? "error no memory\n" : "ok\n");
	pthread_mutex_unlock(&memory_lock);
}

static void cmd_dirty(FILE *out, uint64_t mib)
{
	pthread_mutex_lock(&memory_lock);
	dirty_rate = mib * 1024 * 1024 / PAGE;
	pthread_cond_signal(&dirty_changed);
	fprintf(out, pages ? "ok\n" : "error fill first\n");
	pthread_mutex_unlock(&memory_lock);
}

static void cmd_stop(FILE *out, uint64_t arg)
{
	(void)arg;
	pthread_mutex_lock(&memory_lock);
	dirty_rate = 0;
	pthread_mutex_unlock(&memory_lock);
	fprintf(out, "ok\n");
}

static void cmd_check(FILE *out, uint64_t arg)
{
	size_t bad = 0, first = 0;
	uint64_t written = 0;

	(void)arg;
	pthread_mutex_lock(&memory_lock);
	for (size_t page = 0; page < pages; page++) {
		written += generations[page];
		if (!page_right(page) && bad++ == 0)
			first = page;
	}
	if (bad)
		fprintf(out, "error %zu of %zu pages wrong, the first is %zu\n", bad, pages, first);
	else
		fprintf(out, "ok %zu pages, %" PRIu64 " rewritten\n", pages, written);
	pthread_mutex_unlock(&memory_lock);
}

static void cmd_bootid(FILE *out, uint64_t arg)
{
	char id[64] = "";
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	(void)arg;
	fprintf(out, f && fgets(id, sizeof(id), f) ? "ok %s" : "error no boot id\n", id);
	if (f)
		fclose(f);
}

/* The answer to a command that ends this machine: who asked has it before that. What virtio still held would be lost. */
static void answer_first(FILE *out)
{
	int unacknowledged;

	fprintf(out, "ok\n");
	fflush(out);
	while (ioctl(fileno(out), SIOCOUTQ, &unacknowledged) == 0 && unacknowledged > 0)
		usleep(1000);
}

static void cmd_poweroff(FILE *out, uint64_t arg)
{
	(void)arg;
	answer_first(out);
	reboot(RB_POWER_OFF);
}

static void cmd_reset(FILE *out, uint64_t arg)
{
	(void)arg;
	answer_first(out);
	reboot(RB_AUTOBOOT);
}

static void cmd_panic(FILE *out, uint64_t arg)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);

	(void)arg;
	answer_first(out);
	if (fd < 0 || write(fd, "c", 1) < 0)
		perror("panic");
}

/* ACPI S3, where the machine has it. */
static void cmd_suspend(FILE *out, uint64_t arg)
{
	int fd = open("/sys/power/state", O_WRONLY | O_CLOEXEC);

	(void)arg;
	answer_first(out);
	if (fd < 0 || write(fd, "mem", 3) < 0)
		perror("suspend");
	close(fd);
}

static const struct {
	const char *name;
	void (*run)(FILE *out, uint64_t arg);
} commands[] = {
	{ "fill", cmd_fill },	      /* MiB: take that much memory, fill it with what does not compress; 0: give it back */
	{ "dirty", cmd_dirty },	      /* MiB/s: rewrite it all the time */
	{ "stop", cmd_stop },	      /* stop that */
	{ "check", cmd_check },	      /* is every byte as it was written? */
	{ "bootid", cmd_bootid },     /* changes only with a boot */
	{ "poweroff", cmd_poweroff },
	{ "reset", cmd_reset },
	{ "panic", cmd_panic },
	{ "suspend", cmd_suspend },   /* to memory */
};

static void command_run(FILE *out, const char *line)
{
	char name[16];
	uint64_t arg = 0;

	if (sscanf(line, "%15s %" SCNu64, name, &arg) >= 1)
		for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
			if (strcmp(name, commands[i].name) == 0) {
				commands[i].run(out, arg);
				return;
			}
	fprintf(out, "error unknown command\n");
}

static void *command_client(void *arg)
{
	int fd = *(int *)arg;
	FILE *in = fdopen(fd, "re"), *out = fdopen(dup(fd), "we");
	char line[128];

	free(arg);
	if (!in || !out)
		die("command");
	while (fgets(line, sizeof(line), in)) {
		command_run(out, line);
		fflush(out);
	}
	fclose(out);
	fclose(in);
	return NULL;
}

/* Sockets */

static int listener(int type, int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	int fd = socket(AF_INET6, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, (struct sockaddr *)&any, sizeof(any)) < 0 || (type == SOCK_STREAM && listen(fd, 4096) < 0))
		die("listen");
	return fd;
}

static void command_accept(int listening)
{
	int *fd = malloc(sizeof(*fd));
	pthread_t thread;

	if (!fd)
		die("command");
	*fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
	if (*fd < 0) {
		free(fd);
		return;
	}
	if (pthread_create(&thread, NULL, command_client, fd) != 0)
		die("command");
	pthread_detach(thread);
}

/* A connection of 7001 or 7002. What could not be sent at once waits in buffer[from..to); an echo reads no more until then. */
typedef struct Connection {
	int fd;
	bool bulk;
	uint64_t offset; /* bulk: bytes sent */
	size_t from, to;
	char buffer[4096];
} Connection;

static uint8_t pattern[2 * PERIOD];

static bool again(void)
{
	return errno == EAGAIN || errno == EINTR;
}

/* Return: false if the connection is over. */
static bool bulk_serve(Connection *c, uint32_t events)
{
	unsigned int rate;
	ssize_t n;

	if (events & EPOLLIN) {
		n = recv(c->fd, c->buffer, sizeof(c->buffer) - 1, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && !again()))
			return false;
		c->buffer[n > 0 ? n : 0] = 0;
		if (sscanf(c->buffer, "pace %u", &rate) == 1)
			setsockopt(c->fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate));
	}
	n = send(c->fd, pattern + c->offset % PERIOD, PERIOD, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0)
		c->offset += (uint64_t)n;
	return n > 0 || again();
}

static bool echo_serve(Connection *c, uint32_t events)
{
	ssize_t n;

	(void)events;
	for (;;) {
		if (c->from == c->to) {
			n = recv(c->fd, c->buffer, sizeof(c->buffer), MSG_DONTWAIT);
			if (n <= 0)
				return n < 0 && again();
			c->from = 0;
			c->to = (size_t)n;
		}
		n = send(c->fd, c->buffer + c->from, c->to - c->from, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0)
			return again();
		c->from += (size_t)n;
	}
}

static void connection_accept(int epoll, int listening, bool bulk)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT };
	int fd, on = 1;
	Connection *c;

	while ((fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
		c = calloc(1, sizeof(*c));
		if (!c)
			die("accept");
		c->fd = fd;
		c->bulk = bulk;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		event.data.ptr = c;
		if (!bulk)
			event.events |= EPOLLET;
		epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
	}
}

static void udp_serve(int fd)
{
	struct sockaddr_storage from;
	socklen_t size = sizeof(from);
	char buffer[2048];
	ssize_t n;

	while ((n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&from, &size)) >= 0) {
		sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&from, size);
		size = sizeof(from);
	}
}

static void button_serve(int fd)
{
	struct input_event event;

	while (read(fd, &event, sizeof(event)) == sizeof(event))
		if (event.type == EV_KEY && event.code == KEY_POWER && event.value)
			reboot(RB_POWER_OFF);
}

/* What epoll hands us: a pointer into this for what is there from the start, a Connection for the rest. */
enum { BULK, ECHO, UDP, COMMAND, BUTTON, N_FIXED = BUTTON + 8 };
static int fixed[N_FIXED];

static void watch(int epoll, int i, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = &fixed[i] };

	fixed[i] = fd;
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
		die("epoll");
}

static void watch_buttons(int epoll)
{
	char path[32];
	int fd;

	for (int i = 0; BUTTON + i < N_FIXED; i++) {
		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0)
			watch(epoll, BUTTON + i, fd);
	}
}

static void serve(int epoll, const struct epoll_event *event)
{
	int *at = event->data.ptr;
	Connection *c = event->data.ptr;

	if (at >= fixed && at < fixed + N_FIXED) {
		switch (at - fixed) {
		case BULK:
		case ECHO:
			connection_accept(epoll, *at, at - fixed == BULK);
			break;
		case UDP:
			udp_serve(*at);
			break;
		case COMMAND:
			command_accept(*at);
			break;
		default:
			button_serve(*at);
		}
		return;
	}
	if ((event->events & (EPOLLERR | EPOLLHUP)) || !(c->bulk ? bulk_serve : echo_serve)(c, event->events)) {
		close(c->fd);
		free(c);
	}
}

int main(void)
{
	struct epoll_event events[64];
	int epoll = epoll_create1(EPOLL_CLOEXEC), n;
	pthread_t thread;

	for (uint32_t i = 0; i < 2 * PERIOD; i++)
		pattern[i] = (uint8_t)((i % PERIOD) * 2654435761U >> 24);
	if (pthread_create(&thread, NULL, dirtier, NULL) != 0)
		die("thread");
	watch(epoll, BULK, listener(SOCK_STREAM, PORT_BULK));
	watch(epoll, ECHO, listener(SOCK_STREAM, PORT_ECHO));
	watch(epoll, UDP, listener(SOCK_DGRAM, PORT_UDP));
	watch(epoll, COMMAND, listener(SOCK_STREAM, PORT_COMMAND));
	watch_buttons(epoll);
	puts("READY");
	fflush(stdout);
	for (;;) {
		n = epoll_wait(epoll, events, sizeof(events) / sizeof(events[0]), -1);
		for (int i = 0; i < n; i++)
			serve(epoll, &events[i]);
	}
}
