/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"

static inline bool streq(const char *a, const char *b)
{
	return strcmp(a, b) == 0;
}

/** streq_null() - compare, where NULL equals only NULL */
static inline bool streq_null(const char *a, const char *b)
{
	return a && b ? streq(a, b) : a == b;
}

/** startswith() - the rest of @s after @prefix, or NULL */
static inline const char *startswith(const char *s, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(s, prefix, n) == 0 ? s + n : NULL;
}

/** xasprintf() - a formatted string, free() it; aborts when memory is out */
char *xasprintf(const char *fmt, ...) _printf_(1, 2);

/** xvasprintf() - the same with the arguments of a caller that takes any number */
char *xvasprintf(const char *fmt, va_list ap) _printf_(1, 0);
/** xstrdup() - strdup() that aborts when memory is out; NULL gives NULL */
char *xstrdup(const char *s);
/** xcalloc() - calloc() that aborts when memory is out */
void *xcalloc(size_t n, size_t size);
/** xrealloc() - reallocarray() that aborts when memory is out */
void *xrealloc(void *p, size_t n, size_t size);

/**
 * text_parse_u64() - a whole decimal number, no sign, no blanks
 * Return: 0, -EINVAL or -ERANGE.
 */
int text_parse_u64(const char *s, uint64_t *ret);

/**
 * text_parse_mark() - a ct mark, "VALUE" or "VALUE/MASK" as nft(8) and iptables(8) write it, decimal or 0x...
 * Return: 0, or -EINVAL, also for bits outside the mask and for an empty mask.
 */
int text_parse_mark(const char *s, uint32_t *ret_value, uint32_t *ret_mask);

/**
 * text_parse_size() - bytes: a decimal number with an optional suffix K, M, G or T (powers of 1024)
 * Return: 0, -EINVAL or -ERANGE.
 */
int text_parse_size(const char *s, uint64_t *ret);

/** text_hex() - lower-case hex of @len bytes, free() it */
char *text_hex(const void *data, size_t len);

/** text_random_id() - 128 random bits as 32 hex digits, free() it; for migration ids and tokens */
char *text_random_id(void);

/** text_is_id() - whether @s is such an id: 32 lower-case hex digits */
bool text_is_id(const char *s);

/** secret_clear() - overwrite a secret; it is "" then. NULL is fine */
void secret_clear(char *s);

/** secret_free() - overwrite a secret, and free it */
void secret_free(char *s);

/** text_equal_secret() - compare two secrets in constant time */
bool text_equal_secret(const char *a, const char *b);

/** vm_name_valid() - [A-Za-z0-9][A-Za-z0-9_.-]{0,47} */
bool vm_name_valid(const char *name);

/**
 * text_clean() - copy of foreign text that is safe to print: control and non-ASCII bytes become '?', cut at @max bytes
 */
char *text_clean(const char *s, size_t max);

/* A growing vector of strings, NULL terminated; a NULL pointer is an empty one. */
size_t strv_length(char *const *v);
void strv_free(char **v);
DEFINE_CLEANUP(char **, strv_free)
#define _cleanup_strv_ _cleanup_(strv_freep)
/** strv_push() - append @s, which the vector owns from now on */
void strv_push(char ***v, char *s);
/** strv_add() - append a formatted string */
void strv_add(char ***v, const char *fmt, ...) _printf_(2, 3);
char **strv_copy(char *const *v);
bool strv_contains(char *const *v, const char *s);

/**
 * strv_split_words() - split a command into words: blanks separate, '...' and "..." and \ quote; nothing is expanded
 * Return: 0, or -EINVAL for an unclosed quote or an empty command.
 */
int strv_split_words(const char *s, char ***ret);
