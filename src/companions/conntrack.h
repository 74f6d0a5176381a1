/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "companions/tool.h"
#include "conntrack/other.h"
#include "conntrack/wire.h"

/* vmferry-conntrack: what its verbs share. */

typedef enum Format { FORMAT_WIRE, FORMAT_SAVE, FORMAT_RAW, FORMAT_FRAME, FORMAT_ANY } Format;

/** tool_other() - the table that --cilium names, or NULL for the kernel's. Return: 0, or negative errno with @err set */
int tool_other(const Tool *tool, CtOther **ret, Error **err);

/** tool_format() - the value of --format, or @otherwise */
Format tool_format(const Tool *tool, Format otherwise);

/* Verbs. Return: 0, or negative errno with @err set. */
int tool_dump(const Tool *tool, Error **err);
int tool_follow(const Tool *tool, Error **err);
int tool_apply(const Tool *tool, Error **err);
int tool_show(const Tool *tool, Error **err);
int tool_flush(const Tool *tool, Error **err);
int tool_gate(const Tool *tool, Error **err);
int tool_wait(const Tool *tool, Error **err);
int tool_send(const Tool *tool, Error **err);

/**
 * tool_apply_from() - apply what comes from a file descriptor, as the verb does
 * @told: called once all has been read, or cannot be: negative errno and why; before anything is set right or undone. May be NULL
 */
int tool_apply_from(const Tool *tool, int fd, Format format, bool undo,
		    void (*told)(void *userdata, int result, const CtApplyStats *stats, const char *why), void *userdata,
		    Error **err);

/* ---- streams of entries, input.c and output.c ---- */

/**
 * struct Input - entries from a file descriptor in any of the formats, as batches in wire format
 * @ended:   the stream said itself that it is whole; text and raw messages cannot, their end counts as that
 * @back:    or that the guest runs where it was
 * @frame:   FORMAT_FRAME: bytes of it, once all are there
 * @frame_at: and how many of them have been handed out
 * @skipped: lines and messages that no entry could be made of
 */
typedef struct Input {
	int fd;
	Format format; /* FORMAT_ANY: told from the first bytes */
	uint8_t *data;
	size_t used, size;
	uint8_t *batch;
	size_t frame, frame_at;
	bool ended, back, end_of_file;
	uint64_t lines, skipped;
} Input;

/** input_done() - free what it holds; the descriptor stays open */
void input_done(Input *input);

/**
 * input_next() - wait for more
 * @ret: a whole batch, valid until the next call
 *
 * Return: 1, 0 at the end of the stream, -EAGAIN where a non-blocking fd has no whole batch yet, or negative errno with
 * @err set.
 */
int input_next(Input *input, const uint8_t **ret, size_t *ret_len, Error **err);

/** output_write() - write batches in wire format to a file descriptor in another. Return: 0 or negative errno */
int output_write(int fd, Format format, const uint8_t *batches, size_t len);

/** output_begun() - say that a first dump is written, and what changed during it. Return: 0 or negative errno */
int output_begun(int fd, Format format);

/** output_frame() - all of what dump writes as one frame. Return: 0 or negative errno */
int output_frame(int fd, const uint8_t *batches, size_t len);

/** output_end() - say that the table is whole. Return: 0 or negative errno */
int output_end(int fd, Format format);
