/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A peer's bytes before sd-bus sees them: the same verdict however they are cut, and never past a message over 1 MiB.
 */
#include <stdlib.h>

#include "peer/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int check_cut(bool from_client, bool started, const uint8_t *data, size_t size, size_t cut, FrameCheck *ret)
{
	FrameCheck check = {.from_client = from_client, .started = started};
	int r = frame_check(&check, data, cut);

	if (r == 0)
		r = frame_check(&check, data + cut, size - cut);
	*ret = check;
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	for (int mode = 0; mode < 4; mode++) {
		FrameCheck whole, cut;
		int r = check_cut(mode & 1, mode & 2, data, size, size, &whole);

		if (check_cut(mode & 1, mode & 2, data, size, data[0] % size, &cut) != r)
			abort();
		if (whole.skip != cut.skip || whole.header_have != cut.header_have || whole.started != cut.started)
			abort();
		if (whole.skip > FRAME_MESSAGE_MAX || whole.header_have > sizeof(whole.header))
			abort();
	}
	return 0;
}
