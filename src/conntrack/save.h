/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "wire.h"

/*
 * Entries as lines of options, as `conntrack -L -o save` prints them and `conntrack -R` reads them; with them what
 * Proxmox's helper adds (" --mark N" at the end) and its "[0]" for no entries at all.
 *
 * The form knows neither window scales nor sequence numbers: TCP entries read from it are without window checks for
 * good.
 */

#define CT_SAVE_LINE_MAX 640

/** ct_save_write() - a line with its newline; -A for put and replace, -D for delete. Return: number of bytes */
size_t ct_save_write(const CtRecord *record, CtWireOp op, char to[CT_SAVE_LINE_MAX]);

/**
 * ct_save_read() - an entry from a line, which is taken apart (no newline in it)
 *
 * Return: 1, 0 for a line that says nothing ("", "[0]", "# ..."), or -EINVAL with @ret_why, a constant text.
 */
int ct_save_read(char *line, CtRecord *ret, CtWireOp *ret_op, const char **ret_why);
