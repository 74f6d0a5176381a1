/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <json-c/json.h>

#include "error.h"

static inline void json_putp(json_object **o)
{
	json_object_put(*o);
}
#define _cleanup_json_ _cleanup_(json_putp)

/* Typed look-ups by a path of members ("ram.total"). Each returns false and leaves the output alone when a member is
 * missing or of another type: text from QEMU or a peer is checked here and nowhere else. */
bool json_get_string(json_object *o, const char *path, const char **ret);
bool json_get_u64(json_object *o, const char *path, uint64_t *ret);
bool json_get_bool(json_object *o, const char *path, bool *ret);
bool json_get_object(json_object *o, const char *path, json_object **ret);
bool json_get_array(json_object *o, const char *path, json_object **ret);

/** json_member() - the value at such a path, of any type; NULL if it is not there */
json_object *json_member(json_object *o, const char *path);

/** json_parse() - parse one whole text of at most depth 32. Return: an object, or NULL */
json_object *json_parse(const char *text, size_t len);

/**
 * json_build() - an object from a list of (name, type letter, value), ended by NULL
 *
 * Letters: s string (NULL: the member is left out), u uint64_t, i int64_t, b int as bool, d double, o json_object
 * (taken over, NULL: left out).
 */
json_object *json_build(const char *name, ...) __attribute__((sentinel));
/** json_extend() - the same, added to an object that is there */
void json_extend(json_object *o, const char *name, ...) __attribute__((sentinel));

/** json_text() - the plain one-line text of an object; valid as long as the object is */
const char *json_text(json_object *o);
