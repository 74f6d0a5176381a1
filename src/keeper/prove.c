/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/prove.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>

int address_socket(const char *address, unsigned int port, struct sockaddr_storage *ret, socklen_t *ret_len)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;
	int fd;

	*ret = (struct sockaddr_storage){};
	if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		*ret_len = sizeof(*v4);
	} else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)port);
		*ret_len = sizeof(*v6);
	} else {
		return -EINVAL;
	}
	fd = socket(ret->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return fd < 0 ? -errno : fd;
}

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

static int bind_in_range(const char *address, unsigned int first, unsigned int last)
{
	for (unsigned int port = last; port >= first && port > 0; port--) {
		struct sockaddr_storage sa;
		socklen_t len;
		int fd = address_socket(address, port, &sa, &len), r;

		if (fd < 0)
			return fd;
		/* Each proof's connection is remembered here for a minute (TIME-WAIT): its port can be used all the same. */
		if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) == 0 &&
		    bind(fd, (struct sockaddr *)&sa, len) == 0 && listen(fd, 4) == 0)
			return fd;
		r = -errno;
		fd_close(fd);
		if (r != -EADDRINUSE)
			return r;
	}
	return -EADDRINUSE;
}

int prove_listen(PeerConnection *c)
{
	HostConf *conf = c->keeper->conf;
	int r;

	prove_close(c);
	c->proof_fd = r = bind_in_range(conf->migration_address, conf->port_min, conf->port_max);
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
	struct sockaddr_storage sa = {};
	socklen_t len = sizeof(sa);

	if (getsockname(c->proof_fd, (struct sockaddr *)&sa, &len) < 0)
		return 0;
	return ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
					      : ((struct sockaddr_in *)&sa)->sin_port);
}

void prove_close(PeerConnection *c)
{
	c->proof_io = sd_event_source_disable_unref(c->proof_io);
	c->proof_fd = fd_close(c->proof_fd);
	free(TAKE_PTR(c->proof_token));
}
