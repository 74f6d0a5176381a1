/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What Cilium's agent exports, and frames of it: each entry becomes a record that goes over the wire and is the same
 * entry at the other end. */
#include <stdlib.h>
#include <string.h>

#include "conntrack/cilium.h"
#include "conntrack/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const CtRecord *record)
{
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX], before[CT_CILIUM_ENTRY], after[CT_CILIUM_ENTRY];
	size_t len = CT_WIRE_HEADER + ct_wire_record(batch + CT_WIRE_HEADER, CT_WIRE_PUT, record);
	CtWireReader reader;
	CtRecord back;
	CtWireOp op;

	ct_wire_header(batch, len, 1);
	ct_wire_read(&reader, batch, len);
	if (ct_wire_next(&reader, &op, &back) != 1)
		abort();
	ct_cilium_write(record, before);
	ct_cilium_write(&back, after);
	if (memcmp(before, after, sizeof(before)) != 0)
		abort();
}

/* No frame is longer than is allowed, and a header that is read says the same when it is written. */
static void check_frame(const uint8_t *data, size_t size)
{
	uint8_t header[CT_CILIUM_FRAME];
	const char *why = NULL;
	ssize_t n = ct_cilium_frame_read(data, size, &why);

	if (n < 0 ? !why : n > (ssize_t)(CT_CILIUM_FRAME + CT_CILIUM_ENTRIES_MAX))
		abort();
	if (n <= 0)
		return;
	ct_cilium_frame_write(header, (size_t)n - sizeof(header));
	if (memcmp(header, data, sizeof(header)) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	check_frame(data, size);
	for (size_t at = 0; at + CT_CILIUM_ENTRY <= size; at += CT_CILIUM_ENTRY) {
		CtExtra extra = {};
		CtRecord record;
		char text[128];

		if (!ct_cilium_read(data + at, 1, &extra, &record))
			continue;
		ct_record_describe(&record, text, sizeof(text));
		check(&record);
	}
	return 0;
}
