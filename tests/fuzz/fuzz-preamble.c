/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The first line of a stream and its answer; a line that is taken is written and read again the same. */
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/text.h"
#include "peer/preamble.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void parse(const char *line)
{
	Preamble p, back;
	char token[33];

	if (preamble_parse(line, &p, NULL) == 0) {
		_cleanup_free_ char *text = preamble_text(&p);

		text[strlen(text) - 1] = '\0';
		if (!vm_name_valid(p.name) || !text_is_id(p.id) || strlen(text) >= PREAMBLE_MAX ||
		    preamble_parse(text, &back, NULL) < 0 || memcmp(&p, &back, sizeof(p)) != 0)
			abort();
	}
	if (preamble_answer(line, token, NULL) == 0 && *token && !text_is_id(token))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char line[PREAMBLE_MAX];
	size_t have = 0;
	int pair[2];

	if (size > 65536 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) < 0)
		return 0;
	if (fd_write_all(pair[1], data, size) == 0) {
		pair[1] = fd_close(pair[1]);
		if (preamble_read(pair[0], line, &have) == 1)
			parse(line);
		if (have > PREAMBLE_MAX)
			abort();
	}
	fd_close(pair[0]);
	fd_close(pair[1]);
	return 0;
}
