/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wire-bus.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"

static const char client_says[] = "\0AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n";
static const char server_says[] = "OK 00112233445566778899aabbccddeeff\r\n";

#define MUST(expression)                                                                                               \
	do {                                                                                                           \
		if (!(expression))                                                                                     \
			abort();                                                                                       \
	} while (0)

static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	WireBus *wire = userdata;

	(void)error;
	sd_bus_message_unref(wire->got);
	wire->got = sd_bus_message_ref(m);
	return 1;
}

static void work(WireBus *wire)
{
	while (sd_bus_process(wire->bus, NULL) > 0)
		;
}

void wire_bus_open(WireBus *wire, bool server)
{
	sd_id128_t id = SD_ID128_MAKE(00, 11, 22, 33, 44, 55, 66, 77, 88, 99, aa, bb, cc, dd, ee, ff);
	const char *says = server ? client_says : server_says;
	size_t says_len = server ? sizeof(client_says) - 1 : sizeof(server_says) - 1;
	char answer[256];
	int pair[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	*wire = (WireBus){.fd = pair[0]};
	MUST(sd_bus_new(&wire->bus) >= 0);
	MUST(sd_bus_set_fd(wire->bus, pair[1], pair[1]) >= 0);
	MUST(!server || sd_bus_set_server(wire->bus, true, id) >= 0);
	MUST(sd_bus_set_anonymous(wire->bus, true) >= 0);
	MUST(sd_bus_set_trusted(wire->bus, true) >= 0);
	MUST(sd_bus_negotiate_fds(wire->bus, false) >= 0);
	MUST(sd_bus_start(wire->bus) >= 0);
	MUST(sd_bus_add_filter(wire->bus, NULL, on_message, wire) >= 0);
	MUST(fd_write_all(wire->fd, says, says_len) == 0);
	work(wire);
	MUST(sd_bus_is_ready(wire->bus) > 0);
	MUST(read(wire->fd, answer, sizeof(answer)) > 0);
}

void wire_bus_close(WireBus *wire)
{
	sd_bus_message_unref(wire->got);
	sd_bus_close_unref(wire->bus);
	fd_close(wire->fd);
}

sd_bus_message *wire_bus_feed(WireBus *wire, const void *data, size_t len)
{
	const char *p = data;

	wire->got = sd_bus_message_unref(wire->got);
	while (len > 0) {
		ssize_t n = send(wire->fd, p, len, MSG_NOSIGNAL);

		work(wire);
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n <= 0)
			break;
		p += n;
		len -= (size_t)n;
	}
	return wire->got;
}

uint8_t *wire_bus_bytes(WireBus *wire, sd_bus_message *m, size_t *ret_len)
{
	size_t size = 1024 * 1024;
	uint8_t *bytes = xcalloc(1, size);
	ssize_t n;

	MUST(sd_bus_send(wire->bus, m, NULL) >= 0);
	*ret_len = 0;
	while ((n = read(wire->fd, bytes + *ret_len, size - *ret_len)) > 0)
		*ret_len += (size_t)n;
	return bytes;
}
