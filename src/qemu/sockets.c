/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "process.h"

/* An address in the form all are compared in: IPv4 as IPv4-mapped IPv6. A scope ("%eth0") is not compared. */
static int parse_address(const char *text, struct in6_addr *ret)
{
	_cleanup_free_ char *copy = xstrdup(text);
	struct in_addr v4;

	copy[strcspn(copy, "%")] = '\0';
	if (inet_pton(AF_INET6, copy, ret) == 1)
		return 0;
	if (inet_pton(AF_INET, copy, &v4) != 1)
		return -EINVAL;
	*ret = (struct in6_addr){.s6_addr = {[10] = 0xff, [11] = 0xff}};
	memcpy(&ret->s6_addr[12], &v4, sizeof(v4));
	return 0;
}

static bool peer_is(int fd, const struct in6_addr *address, unsigned int port)
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
		struct sockaddr_storage room;
	} peer = {0};
	struct in6_addr mapped = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
	socklen_t len = sizeof(peer);

	if (getpeername(fd, &peer.any, &len) < 0)
		return false;
	if (peer.any.sa_family == AF_INET6)
		return ntohs(peer.v6.sin6_port) == port && memcmp(&peer.v6.sin6_addr, address, sizeof(*address)) == 0;
	if (peer.any.sa_family != AF_INET)
		return false;
	memcpy(&mapped.s6_addr[12], &peer.v4.sin_addr, sizeof(peer.v4.sin_addr));
	return ntohs(peer.v4.sin_port) == port && memcmp(&mapped, address, sizeof(mapped)) == 0;
}

static bool is_socket(DIR *dir, const char *name)
{
	char link[64] = {0};

	return readlinkat(dirfd(dir), name, link, sizeof(link) - 1) > 0 && startswith(link, "socket:[");
}

int qemu_process_shutdown_sockets(const QemuProcess *process, const char *address, unsigned int port)
{
	_cleanup_free_ char *path = xasprintf("/proc/%d/fd", (int)process->pid);
	struct in6_addr wanted;
	struct dirent *entry;
	int n = 0, r;
	DIR *dir;

	r = parse_address(address, &wanted);
	if (r < 0)
		return r;
	dir = opendir(path);
	if (!dir)
		return errno == ENOENT ? -ESRCH : -errno;
	while ((entry = readdir(dir))) {
		_cleanup_fd_ int fd = -1;
		uint64_t number;

		if (text_parse_u64(entry->d_name, &number) < 0 || !is_socket(dir, entry->d_name))
			continue;
		fd = (int)syscall(SYS_pidfd_getfd, process->pidfd, (int)number, 0);
		if (fd < 0 && errno != EBADF) {
			r = -errno;
			break;
		}
		if (fd >= 0 && peer_is(fd, &wanted, port) && shutdown(fd, SHUT_RDWR) == 0)
			n++;
	}
	closedir(dir);
	return r < 0 ? r : n;
}
