/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Connection records from a peer: read all, and what was read is written and read again the same. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "conntrack/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_again(CtWireOp op, const CtRecord *record)
{
	uint8_t batch[CT_WIRE_HEADER + CT_WIRE_RECORD_MAX];
	size_t len = CT_WIRE_HEADER + ct_wire_record(batch + CT_WIRE_HEADER, op, record);
	CtWireReader reader;
	CtRecord back;
	CtWireOp back_op;

	if (len > sizeof(batch))
		abort();
	ct_wire_header(batch, len, 1);
	ct_wire_read(&reader, batch, len);
	if (ct_wire_next(&reader, &back_op, &back) != 1 || back_op != op ||
	    memcmp(&back.key, &record->key, sizeof(back.key)) != 0 ||
	    memcmp(&back.reply, &record->reply, sizeof(back.reply)) != 0 ||
	    (op != CT_WIRE_DELETE &&
	     (back.status != record->status || back.timeout != record->timeout || back.mark != record->mark)))
		abort();
}

static void read_all(const uint8_t *data, size_t size)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	char text[128];
	int r;

	ct_wire_read(&reader, data, size);
	while ((r = ct_wire_next(&reader, &op, &record)) == 1 || r == -EINVAL) {
		ct_record_describe(&record, text, sizeof(text));
		if (r == 1)
			check_again(op, &record);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *copy;

	read_all(data, size);
	if (size < CT_WIRE_HEADER)
		return 0;
	/* A fuzzer does not find checksums: the same bytes as one batch with a right header. */
	copy = malloc(size);
	if (!copy)
		abort();
	memcpy(copy, data, size);
	ct_wire_header(copy, size, data[11]);
	read_all(copy, size);
	free(copy);
	return 0;
}
