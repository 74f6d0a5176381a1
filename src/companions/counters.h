/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <inttypes.h>

#include "basic/json.h"

/**
 * struct Counters - what has become of transfers of a guest's connections, since the program began
 * @exports: tables handed out; skipped: there was nothing in it; error: not in time, or not at all
 * @exported_bytes: in all of them
 * @imports: tables taken in; aborted: the stream was cut, or a newer one came
 * @waits: guests that waited for an import: until it was through, or for as long as they may
 */
typedef struct Counters {
	struct {
		uint64_t success, skipped, error;
	} exports;
	uint64_t exported_bytes;
	struct {
		uint64_t success, aborted, error;
	} imports;
	struct {
		uint64_t completed, timeout;
	} waits;
} Counters;

/** counters_extend() - add all of them to an object, in the one form they have everywhere */
static inline void counters_extend(json_object *o, const Counters *c)
{
	json_object *exports = json_build("success", "u", c->exports.success, "skipped", "u", c->exports.skipped, "error", "u",
					  c->exports.error, NULL);
	json_object *imports = json_build("success", "u", c->imports.success, "aborted", "u", c->imports.aborted, "error", "u",
					  c->imports.error, NULL);
	json_object *waits = json_build("completed", "u", c->waits.completed, "timeout", "u", c->waits.timeout, NULL);

	json_extend(o, "exports", "o", exports, "exported_bytes", "u", c->exported_bytes, "imports", "o", imports, "gate_waits",
		    "o", waits, NULL);
}
