/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/frame.h"

#include <errno.h>
#include <string.h>

static uint32_t get_u32(const uint8_t *p, bool big)
{
	return big ? (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]
		   : (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static int check_header(FrameCheck *check)
{
	const uint8_t *h = check->header;
	bool big = h[0] == 'B';
	uint64_t body, fields, total;

	if ((h[0] != 'l' && h[0] != 'B') || h[1] < 1 || h[1] > 4 || h[3] != 1)
		return -EBADMSG;
	body = get_u32(h + 4, big);
	fields = get_u32(h + 12, big);
	total = sizeof(check->header) + ((fields + 7) & ~7ULL) + body;
	if (total > FRAME_MESSAGE_MAX)
		return -EMSGSIZE;
	check->skip = (size_t)total - sizeof(check->header);
	check->header_have = 0;
	return 0;
}

/* What each end says; '*' stands for a hex digit of the server's id. */
static const char client_says[] = "\0AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n";
static const char server_says[] = "OK ********************************\r\n";

/* One byte of authentication. */
static int check_auth(FrameCheck *check, uint8_t byte)
{
	const char *says = check->from_client ? client_says : server_says;
	size_t len = check->from_client ? sizeof(client_says) - 1 : sizeof(server_says) - 1;
	char expected = says[check->auth_bytes++];
	bool hex = (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f');

	if (expected == '*' ? !hex : byte != (uint8_t)expected)
		return -EBADMSG;
	check->started = check->auth_bytes == len;
	return 0;
}

int frame_check(FrameCheck *check, const uint8_t *data, size_t len)
{
	while (len > 0) {
		size_t n = 1;
		int r = 0;

		if (!check->started) {
			r = check_auth(check, *data);
		} else if (check->skip > 0) {
			n = len < check->skip ? len : check->skip;
			check->skip -= n;
		} else {
			check->header[check->header_have++] = *data;
			if (check->header_have == sizeof(check->header))
				r = check_header(check);
		}
		if (r < 0)
			return r;
		data += n;
		len -= n;
	}
	return 0;
}
