/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/json.h"
#include "basic/text.h"
#include "conntrack/conntrack.h"
#include "conntrack/wire.h"

/* vmferry-conntrack: what its verbs share. */

typedef enum Format { FORMAT_WIRE, FORMAT_SAVE, FORMAT_RAW, FORMAT_ANY } Format;

/**
 * struct Tool - one command line, parsed
 * @options: values by key
 * @args:    what is not an option
 * @select:  --address, --mark and --zone
 * @json:    --json: what happens is said in JSON lines
 */
typedef struct Tool {
	json_object *options;
	char **args;
	CtSelect *select;
	Format format;
	bool json;
} Tool;

/* Verbs. Return: 0, or negative errno with @err set. */
int tool_dump(const Tool *tool, Error **err);
int tool_follow(const Tool *tool, Error **err);
int tool_apply(const Tool *tool, Error **err);
int tool_show(const Tool *tool, Error **err);
int tool_flush(const Tool *tool, Error **err);

/**
 * tool_say() - what happened, on standard error: @o as a JSON line with --json, else the text
 * @o: taken over
 */
void tool_say(const Tool *tool, json_object *o, const char *fmt, ...) _printf_(3, 4);

/** tool_number() - the value of an option that is a number, or @otherwise */
uint64_t tool_number(const Tool *tool, const char *key, uint64_t otherwise);

/* ---- streams of entries, input.c and output.c ---- */

/**
 * struct Input - entries from a file descriptor in any of the formats, as batches in wire format
 * @ended:   the stream said itself that it is whole; text and raw messages cannot, their end counts as that
 * @skipped: lines and messages that no entry could be made of
 */
typedef struct Input {
	int fd;
	Format format; /* FORMAT_ANY: told from the first bytes */
	uint8_t *data;
	size_t used, size;
	uint8_t *batch;
	bool ended, end_of_file;
	uint64_t lines, skipped;
} Input;

void input_done(Input *input);

/**
 * input_next() - wait for more
 * @ret: a whole batch, valid until the next call
 *
 * Return: 1, 0 at the end of the stream, or negative errno with @err set.
 */
int input_next(Input *input, const uint8_t **ret, size_t *ret_len, Error **err);

/** output_write() - write batches in wire format to a file descriptor in another. Return: 0 or negative errno */
int output_write(int fd, Format format, const uint8_t *batches, size_t len);

/** output_end() - say that the table is whole. Return: 0 or negative errno */
int output_end(int fd, Format format);
