/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/prove.h"

#include <errno.h>
#include <sys/epoll.h>

#include "basic/tcp.h"

static int on_proof(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	PeerConnection *c = userdata;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)source;
	(void)revents;
	if (client >= 0)
		(void)send(client, c->proof_token, strlen(c->proof_token), MSG_NOSIGNAL | MSG_DONTWAIT);
	fd_close(client);
	return 0;
}

int prove_listen(PeerConnection *c)
{
	HostConf *conf = c->keeper->conf;
	int r;

	prove_close(c);
	/* Downward: QEMU takes the first one that is free. */
	c->proof_fd = r = tcp_listen(conf->migration_address, conf->port_max, conf->port_min, 4);
	if (r >= 0) {
		c->proof_token = text_random_id();
		r = sd_event_add_io(c->keeper->event, &c->proof_io, c->proof_fd, EPOLLIN, on_proof, c);
	}
	if (r < 0)
		log_warning("cannot listen on migration-address %s: %s", conf->migration_address, strerror(-r));
	return r;
}

unsigned int prove_port(PeerConnection *c)
{
	return tcp_port(c->proof_fd);
}

void prove_close(PeerConnection *c)
{
	c->proof_io = sd_event_source_disable_unref(c->proof_io);
	c->proof_fd = fd_close(c->proof_fd);
	free(TAKE_PTR(c->proof_token));
}
