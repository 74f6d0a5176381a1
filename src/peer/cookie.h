/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "basic/error.h"

/*
 * Cookies: what both ends of a migration tell each other, an a{sv} by name. A table of fields describes a C struct;
 * writing, reading (with every check) and freeing go by the table.
 */

typedef enum CookieType {
	COOKIE_STRING, /* char * ("s"); max: bytes */
	COOKIE_STRV,   /* char ** ("as"); max: strings, of at most 256 bytes each */
	COOKIE_U64,    /* uint64_t ("t"); max: value, 0 for no limit */
	COOKIE_BOOL,   /* bool ("b") */
} CookieType;

typedef struct CookieField {
	const char *name;
	CookieType type;
	size_t offset;
	uint64_t max;
	bool required;
	bool text;  /* for people (strings only): cut and cleaned, so that a long one never spoils a message */
	bool lines; /* a text of several lines; all other strings must be printable ASCII */
} CookieField;

typedef struct CookieTable {
	const char *name; /* for messages: "Hello" */
	const CookieField *fields;
	size_t n_fields;
	size_t size; /* of the struct */
} CookieTable;

#define COOKIE_WORD_MAX 256	/* bytes of each string of a COOKIE_STRV */
#define COOKIE_ENTRIES_MAX 128	/* entries of a cookie, known or not */

/* The list of features a cookie's reader must know, carried in every cookie. */
#define COOKIE_MANDATORY "mandatory"

/**
 * cookie_append() - append a struct as a{sv}; NULL strings are left out
 * Return: 0, -E2BIG or -ERANGE for a value the other end would refuse, or another negative errno.
 */
int cookie_append(sd_bus_message *m, const CookieTable *table, const void *data);

/**
 * cookie_read() - read an a{sv} into a zeroed struct
 *
 * Unknown names are skipped; a feature named in "mandatory" that is not in @known is refused by name; wrong types, values
 * over their limit, missing required fields and doubles are refused.
 *
 * Return: 0, or -EPROTO (-ENOTSUP for an unknown mandatory feature) with @err set and the struct cleared.
 */
int cookie_read(sd_bus_message *m, const CookieTable *table, const char *const *known, void *data, Error **err);

/** cookie_reply() - answer a method call with a struct. Return: as cookie_append(), or what sd_bus_send() says */
int cookie_reply(sd_bus_message *call, const CookieTable *table, const void *data);

/** cookie_clear() - free what a struct holds and zero it */
void cookie_clear(const CookieTable *table, void *data);
