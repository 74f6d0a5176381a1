/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/clock.h"
#include "companions/conntrack.h"
#include "conntrack/cilium.h"
#include "conntrack/netlink.h"
#include "conntrack/save.h"

#define READ_SIZE 65536
#define BATCH_MAX (64 << 20) /* what a header may announce */
#define MESSAGE_MAX 65536
#define CONVERTED_MAX 2048 /* entries a batch that is made here */

Format tool_format(const Tool *tool, Format otherwise)
{
	static const char *const names[] = {[FORMAT_WIRE] = "wire", [FORMAT_SAVE] = "save", [FORMAT_RAW] = "raw", [FORMAT_FRAME] = "frame"};
	const char *text = tool_text(tool, "format", "");

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (streq(names[i], text))
			return (Format)i;
	return otherwise;
}

void input_done(Input *input)
{
	free(input->data);
	free(input->batch);
}

/* Return: number of bytes read, 0 at the end, or negative errno. */
static ssize_t fill(Input *in, Error **err)
{
	ssize_t n;

	if (in->used + READ_SIZE > in->size)
		in->data = xrealloc(in->data, in->size = in->used + 2 * READ_SIZE, 1);
	do
		n = read(in->fd, in->data + in->used, in->size - in->used - 1);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : error_set(err, -errno, "Cannot read: %m");
	in->used += (size_t)n;
	in->end_of_file = n == 0;
	return n;
}

static void consume(Input *in, size_t n)
{
	in->used -= n;
	memmove(in->data, in->data + n, in->used);
}

static Format told_from(const uint8_t *data)
{
	if (memcmp(data, "VFCT", 4) == 0)
		return FORMAT_WIRE;
	/* nlmsg_type, the second 16 bits of the second word: the subsystem is in its upper byte on the host's own side. */
	return data[0] == '-' || data[0] == '[' || data[0] == '#' || data[0] == '\n' ? FORMAT_SAVE : FORMAT_RAW;
}

typedef struct Batch {
	uint8_t *to;
	size_t len;
	uint32_t n;
} Batch;

static Batch batch_begin(Input *in)
{
	if (!in->batch)
		in->batch = xcalloc(1, CT_WIRE_HEADER + CONVERTED_MAX * CT_WIRE_RECORD_MAX);
	return (Batch){.to = in->batch, .len = CT_WIRE_HEADER};
}

static void batch_add(Batch *b, CtWireOp op, const CtRecord *record)
{
	b->len += ct_wire_record(b->to + b->len, op, record);
	b->n++;
}

/* Return: bytes taken of the input, or negative errno. */
static ssize_t take_lines(Input *in, Batch *b, Error **err)
{
	size_t at = 0;

	while (b->n < CONVERTED_MAX) {
		uint8_t *end = memchr(in->data + at, '\n', in->used - at);
		const char *why;
		CtRecord record;
		CtWireOp op;
		int r;

		if (!end && in->end_of_file && at < in->used)
			end = in->data + in->used; /* there is a byte more */
		if (!end)
			break;
		*end = '\0';
		in->lines++;
		r = ct_save_read((char *)in->data + at, &record, &op, &why);
		if (r < 0)
			return error_set(err, -EBADMSG, "Line %llu: %s", (unsigned long long)in->lines, why);
		if (r > 0)
			batch_add(b, op, &record);
		at = (size_t)(end - in->data) + (end < in->data + in->used);
	}
	return (ssize_t)at;
}

static ssize_t take_messages(Input *in, Batch *b, Error **err)
{
	size_t at = 0;

	while (b->n < CONVERTED_MAX && in->used - at >= sizeof(struct nlmsghdr)) {
		struct nlmsghdr head, *copy;
		CtRecord record;
		CtExtra extra;
		size_t step;

		memcpy(&head, in->data + at, sizeof(head));
		if (head.nlmsg_len < sizeof(head) || head.nlmsg_len > MESSAGE_MAX)
			return error_set(err, -EBADMSG, "not connection tracking entries in any known form");
		step = MNL_ALIGN(head.nlmsg_len);
		if (in->used - at < head.nlmsg_len)
			break;
		step = step > in->used - at ? in->used - at : step;
		copy = xcalloc(1, head.nlmsg_len); /* aligned */
		memcpy(copy, in->data + at, head.nlmsg_len);
		if (head.nlmsg_type >> 8 == NFNL_SUBSYS_CTNETLINK && ct_parse_all(copy, &record, &extra) &&
		    ((head.nlmsg_type & 0xff) == IPCTNL_MSG_CT_DELETE || ct_record_complete(&record)))
			batch_add(b, (head.nlmsg_type & 0xff) == IPCTNL_MSG_CT_DELETE ? CT_WIRE_DELETE : CT_WIRE_PUT, &record);
		else
			in->skipped++;
		free(copy);
		at += step;
	}
	return (ssize_t)at;
}

/* Entries of a frame that is here whole: of half a one nothing is taken. */
static void take_entries(Input *in, Batch *b)
{
	uint32_t now = (uint32_t)(now_usec() / USEC_PER_SEC);

	for (; b->n < CONVERTED_MAX && in->frame_at < in->frame; in->frame_at += CT_CILIUM_ENTRY) {
		CtExtra extra = {};
		CtRecord record;

		if (ct_cilium_read(in->data + in->frame_at, now, &extra, &record))
			batch_add(b, CT_WIRE_PUT, &record);
		else
			in->skipped++;
	}
}

/* The frame is all: what follows is not read. */
static int take_frame(Input *in, Batch *b, Error **err)
{
	const char *why;
	ssize_t n = in->frame ? (ssize_t)in->frame : ct_cilium_frame_read(in->data, in->used, &why);

	if (n < 0)
		return error_set(err, (int)n, "the input is %s", why);
	if (n == 0 || (size_t)n > in->used)
		return 0;
	if (!in->frame)
		in->frame_at = CT_CILIUM_FRAME;
	in->frame = (size_t)n;
	take_entries(in, b);
	if (in->frame_at < in->frame)
		return 0;
	in->used = 0;
	in->ended = in->end_of_file = true;
	return 0;
}

/* Return: 1 with a batch, 0 when more is needed, or negative errno. */
static int convert(Input *in, const uint8_t **ret, size_t *ret_len, Error **err)
{
	Batch b = batch_begin(in);
	ssize_t n;

	if (in->format == FORMAT_FRAME)
		n = take_frame(in, &b, err);
	else
		n = in->format == FORMAT_SAVE ? take_lines(in, &b, err) : take_messages(in, &b, err);

	if (n < 0)
		return (int)n;
	consume(in, (size_t)n);
	if (!b.n)
		return 0;
	ct_wire_header(b.to, b.len, b.n);
	*ret = b.to;
	*ret_len = b.len;
	return 1;
}

static int take_batch(Input *in, const uint8_t **ret, size_t *ret_len, Error **err)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	size_t len;

	if (in->used < CT_WIRE_HEADER)
		return 0;
	len = ct_wire_length(in->data);
	if (!len || len > BATCH_MAX)
		return error_set(err, -EBADMSG, "Connection records: %s", len ? "a batch too large" : "not connection records");
	if (in->used < len)
		return 0;
	in->batch = xrealloc(in->batch, len, 1);
	memcpy(in->batch, in->data, len);
	consume(in, len);
	if (len == CT_WIRE_HEADER) {
		ct_wire_read(&reader, in->batch, len);
		(void)ct_wire_next(&reader, &op, &record);
		in->ended |= reader.ended;
		in->back |= reader.back;
	}
	*ret = in->batch;
	*ret_len = len;
	return 1;
}

static int at_end(Input *in, Error **err)
{
	static const char *const parts[] = {
		[FORMAT_WIRE] = "a batch", [FORMAT_SAVE] = "a line", [FORMAT_RAW] = "a message", [FORMAT_FRAME] = "a frame", [FORMAT_ANY] = "",
	};

	if (in->used)
		return error_set(err, -EBADMSG, "the input ends in the middle of %s", parts[in->format]);
	in->ended |= in->format != FORMAT_WIRE && in->format != FORMAT_FRAME;
	return 0;
}

int input_next(Input *in, const uint8_t **ret, size_t *ret_len, Error **err)
{
	for (;;) {
		ssize_t n;
		int r = 0;

		if (in->format == FORMAT_ANY && in->used >= 4)
			in->format = told_from(in->data);
		else if (in->format == FORMAT_ANY && in->end_of_file && in->used)
			in->format = FORMAT_SAVE;
		if (in->format != FORMAT_ANY && in->used)
			r = in->format == FORMAT_WIRE ? take_batch(in, ret, ret_len, err) : convert(in, ret, ret_len, err);
		if (r != 0)
			return r;
		if (in->end_of_file)
			return at_end(in, err);
		n = fill(in, err);
		if (n < 0)
			return (int)n;
	}
}
