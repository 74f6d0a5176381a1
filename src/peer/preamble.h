/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/*
 * The first line on every stream to `vmferry receive`, and its answer. It names the VM, so that nothing of a VM stands on
 * an ssh command line, and says what the stream is:
 *
 *   vmferry/1 peer NAME MIGRATION-ID            then D-Bus
 *   vmferry/1 data NAME MIGRATION-ID TOKEN      then QEMU's migration stream
 *
 * Answer: "vmferry/1 ok TOKEN" (TOKEN: "-" for peer) or "vmferry/1 error TEXT<TAB>HINT".
 */
#define PREAMBLE_MAX 1024

typedef struct Preamble {
	bool data;
	char name[49];
	char id[33];
	char token[33];
	char peer[65]; /* who logged in, as `receive --peer` says (forced command); "" if nobody said */
} Preamble;

/** preamble_parse() - check a line (without its newline). Return: 0 or -EPROTO with @err set */
int preamble_parse(const char *line, Preamble *ret, Error **err);

/** preamble_text() - the line with its newline; free() it */
char *preamble_text(const Preamble *preamble);

/**
 * preamble_read() - take one line off a stream socket without taking a byte more (MSG_PEEK)
 * @line: PREAMBLE_MAX bytes; what came so far, kept between calls
 *
 * Return: 1 when a whole line is there (its newline cut off), 0 when more must come (non-blocking socket), -EPROTO for an
 * over-long line, -EPIPE for the end of the stream, or negative errno.
 */
int preamble_read(int fd, char *line, size_t *have);

/**
 * preamble_answer() - what an answer line says
 * @ret_token: the token, 33 bytes; "" for none
 *
 * Return: 0 for ok; else -EREMOTEIO (the other side refused) or -EPROTO with @err set to what it said.
 */
int preamble_answer(const char *line, char *ret_token, Error **err);

/** preamble_refusal() - the error answer for @err, with its newline; free() it */
char *preamble_refusal(const Error *err);
