/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "ct-bench.h"

#define TICK_USEC 1000
#define BURST_TICKS 4 /* what is missed by more is not made up for */
#define PORTS 50000

#define PACKET (sizeof(struct iphdr) + sizeof(struct tcphdr))

typedef struct Generator {
	int fd;
	uint32_t vm; /* network order */
	uint8_t packet[PACKET] __attribute__((aligned(4)));
} Generator;

typedef struct Step {
	bool from_vm;
	uint16_t flags; /* of the TCP header's fourth word, host order */
	uint32_t seq, ack;
} Step;

#define OPEN_STEPS 3
static const Step steps[] = {
	{false, 0x02, 0, 0}, {true, 0x12, 0, 1}, {false, 0x10, 1, 1}, /* SYN; SYN, ACK; ACK */
	{false, 0x11, 1, 1}, {true, 0x11, 1, 2}, {false, 0x10, 2, 2}, /* FIN, ACK; FIN, ACK; ACK */
};

static volatile sig_atomic_t over; /* not a packet more */

static void on_term(_unused_ int number)
{
	over = 1;
}

static uint32_t sum_words(const void *data, size_t len)
{
	uint32_t sum = 0;
	uint16_t word;

	for (size_t i = 0; i < len; i += sizeof(word)) {
		memcpy(&word, (const uint8_t *)data + i, sizeof(word));
		sum += word;
	}
	return sum;
}

static uint16_t fold(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t) ~((sum & 0xffff) + (sum >> 16));
}

static void send_step(Generator *g, uint32_t tuple, const Step *s)
{
	uint32_t client = htonl(0xc6120000 + tuple / PORTS); /* 198.18.0.0, RFC 2544 */
	uint16_t port = htons((uint16_t)(10000 + tuple % PORTS)), service = htons(80);
	struct iphdr *ip = (struct iphdr *)g->packet;
	struct tcphdr *tcp = (struct tcphdr *)(ip + 1);

	*ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_TCP, .tot_len = htons(PACKET)};
	ip->saddr = s->from_vm ? g->vm : client;
	ip->daddr = s->from_vm ? client : g->vm;
	ip->check = fold(sum_words(ip, sizeof(*ip)));
	*tcp = (struct tcphdr){.doff = 5, .window = htons(65535)};
	tcp->source = s->from_vm ? service : port;
	tcp->dest = s->from_vm ? port : service;
	tcp->seq = htonl((s->from_vm ? 900000 : 100000) + s->seq);
	tcp->ack_seq = s->flags & 0x10 ? htonl((s->from_vm ? 100000 : 900000) + s->ack) : 0;
	((uint8_t *)tcp)[13] = (uint8_t)s->flags;
	tcp->check = fold(sum_words(&ip->saddr, 8) + sum_words(tcp, sizeof(*tcp)) + htons(IPPROTO_TCP) +
			  htons(sizeof(*tcp)));
	die_if(write(g->fd, g->packet, PACKET) != PACKET, "write to the tun device");
}

static void send_steps(Generator *g, uint32_t tuple, size_t first, size_t end)
{
	for (size_t i = first; i < end && !over; i++)
		send_step(g, tuple, &steps[i]);
}

static int open_tun(void)
{
	struct ifreq request = {.ifr_name = "churn", .ifr_flags = IFF_TUN | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	die_if(fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0, "the tun device \"churn\"");
	return fd;
}

/* Connections due at @now; the clock is moved on when it was held up, so that it makes no burst of it. */
static uint32_t due(const Churn *c, uint64_t *begin, uint64_t now, uint64_t done)
{
	uint64_t want = (now - *begin) * c->rate / USEC_PER_SEC;
	uint64_t most = (uint64_t)c->rate * TICK_USEC * BURST_TICKS / USEC_PER_SEC + 1;

	if (want <= done)
		return 0;
	if (want - done <= most)
		return (uint32_t)(want - done);
	*begin += (want - done - most) * USEC_PER_SEC / c->rate;
	return (uint32_t)most;
}

static void wait_tick(uint64_t *tick)
{
	uint64_t now = now_usec();
	struct timespec until;

	*tick = *tick + TICK_USEC > now ? *tick + TICK_USEC : now;
	until = (struct timespec){.tv_sec = (time_t)(*tick / USEC_PER_SEC),
				  .tv_nsec = (long)(*tick % USEC_PER_SEC) * 1000};
	(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

void churn_run(const Churn *c)
{
	Generator g = {.fd = open_tun()};
	uint64_t begin, clock, tick, done = 0;

	die_if(inet_pton(AF_INET, c->address, &g.vm) != 1, c->address);
	signal(SIGTERM, on_term);
	begin = clock = tick = now_usec();
	while (!over && (!c->count || done < c->count)) {
		uint32_t n = c->rate ? due(c, &clock, now_usec(), done) : 1;

		for (; n && (!c->count || done < c->count); n--, done++) {
			send_steps(&g, (uint32_t)(done % c->tuples), 0, OPEN_STEPS);
			if (done >= c->pending)
				send_steps(&g, (uint32_t)((done - c->pending) % c->tuples), OPEN_STEPS,
					   ARRAY_SIZE(steps));
		}
		if (c->rate)
			wait_tick(&tick);
	}
	begin = now_usec() - begin;
	print_json(json_build("connections", "u", done, "per_s", "d", (double)done * 1e6 / (double)begin, "cpu_usec",
			      "u", cpu_usec(), NULL));
	fd_close(g.fd);
}

pid_t churn_start(const Churn *churn)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	die_if(pid < 0, "fork");
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	churn_run(churn);
	_exit(0);
}
