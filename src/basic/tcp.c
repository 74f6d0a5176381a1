/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tcp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>

#include "fd.h"

int tcp_socket(const char *address, unsigned int port, struct sockaddr_storage *ret, socklen_t *ret_len)
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

/* What TCP remembers of connections that were, or are, on a port (TIME-WAIT) does not take it: SO_REUSEADDR. */
static int listen_on(const char *address, unsigned int port, int backlog)
{
	struct sockaddr_storage sa;
	socklen_t len;
	_cleanup_fd_ int fd = tcp_socket(address, port, &sa, &len);

	if (fd < 0)
		return fd;
	if (sa.ss_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){0}, sizeof(int)) < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int)) < 0 ||
	    bind(fd, (struct sockaddr *)&sa, len) < 0 || listen(fd, backlog) < 0)
		return -errno;
	return TAKE_FD(fd);
}

int tcp_listen(const char *address, unsigned int first, unsigned int last, int backlog)
{
	for (unsigned int port = first;; port = first < last ? port + 1 : port - 1) {
		int fd = listen_on(address, port, backlog);

		if (fd != -EADDRINUSE || port == last)
			return fd;
	}
}

unsigned int tcp_port(int fd)
{
	struct sockaddr_storage sa = {};
	socklen_t len = sizeof(sa);

	if (getsockname(fd, (struct sockaddr *)&sa, &len) < 0)
		return 0;
	return ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
					      : ((struct sockaddr_in *)&sa)->sin_port);
}
