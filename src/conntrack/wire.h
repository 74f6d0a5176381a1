/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "record.h"

/* The compact batch format of entries, for the link, files and QEMU's stream. Byte by byte: docs/wire.md. */

#define CT_WIRE_HEADER 20
#define CT_WIRE_RECORD_MAX 384
/* A timeout above this is cut to it. The kernel's longest default is five days. */
#define CT_WIRE_TIMEOUT_MAX (30 * 86400)

typedef enum CtWireOp {
	CT_WIRE_PUT,	 /* make it, or bring it up to date */
	CT_WIRE_REPLACE, /* another connection with the same tuple: make it anew */
	CT_WIRE_DELETE,
} CtWireOp;

/** ct_wire_record() - write one record, at most CT_WIRE_RECORD_MAX bytes. Return: number of bytes */
size_t ct_wire_record(uint8_t *to, CtWireOp op, const CtRecord *record);

/** ct_wire_header() - write the header before @len - CT_WIRE_HEADER bytes of @count records that are there already */
void ct_wire_header(uint8_t *batch, size_t len, uint32_t count);

/**
 * ct_wire_end() - write the batch of CT_WIRE_HEADER bytes that says: the table is whole, nothing follows
 *
 * A stream that ends without it was cut.
 */
void ct_wire_end(uint8_t *batch);

/** ct_wire_back() - the same for the one that says: the guest has not moved and runs at the source, nothing follows */
void ct_wire_back(uint8_t *batch);

/**
 * ct_wire_length() - bytes of the batch that begins with this header, itself included
 *
 * Return: 0 when these CT_WIRE_HEADER bytes are no header.
 */
size_t ct_wire_length(const uint8_t *header);

/**
 * struct CtWireReader - reads one or more batches, one record after the other
 * @ended: ct_wire_end()'s batch was read
 * @back: ct_wire_back()'s was
 * @why: what was wrong with the last record or the bytes, a constant text
 */
typedef struct CtWireReader {
	const uint8_t *p, *end;
	const uint8_t *batch_end;
	uint32_t left; /* records of this batch */
	bool ended, back;
	CtExtra extra; /* of the record read last */
	const char *why;
} CtWireReader;

/** ct_wire_read() - begin to read batches from memory, which stays the caller's */
void ct_wire_read(CtWireReader *reader, const void *data, size_t len);

/**
 * ct_wire_next() - the next record
 *
 * Return: 1 with a record, 0 at the end, -EINVAL for a record that is well formed but not acceptable (@ret holds what
 * was read; one may go on), -EBADMSG for bytes that are no batch (one may not).
 */
int ct_wire_next(CtWireReader *reader, CtWireOp *ret_op, CtRecord *ret);

/** ct_wire_check() - whether all of it can be read. Return: 0 or -EBADMSG with the reason */
int ct_wire_check(const void *data, size_t len, size_t *ret_records, const char **ret_why);
