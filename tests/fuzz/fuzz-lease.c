/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A lease file of any content: refused, or read, taken and read again as what was written. */
#include <stdlib.h>
#include <unistd.h>

#include "basic/fs.h"
#include "basic/text.h"
#include "vm/lease.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void take(Lease *lease)
{
	LeaseState before, after;

	if (lease_inquire(lease, &before, NULL) < 0 || before.held || before.generation >= UINT64_MAX - 1)
		return;
	for (const char *p = before.holder; *p; p++)
		if (*p < ' ' || *p > '~')
			abort();
	if (lease_acquire(lease, NULL, 0, NULL) < 0)
		return;
	if (lease_inquire(lease, &after, NULL) < 0 || !after.mine || after.generation != before.generation + 1 ||
	    !streq(after.holder, "host") || lease_check(lease, NULL) < 0 || lease_release(lease, NULL) < 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *path = xasprintf("/dev/shm/fuzz-lease.%d", (int)getpid());
	VmDefinition definition = {.name = (char *)"web1",
				   .uuid = (char *)"0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11",
				   .lease = LEASE_FILE,
				   .lease_path = path};
	LeaseOptions options = {.definition = &definition, .host_id = "host", .host_name = "host", .fd = -1};
	Lease *lease;

	if (size > 65536 || file_write(path, data, size, 0600, false) < 0)
		return 0;
	if (lease_open(&options, &lease, NULL) == 0) {
		take(lease);
		lease_free(lease);
	}
	unlink(path);
	return 0;
}
