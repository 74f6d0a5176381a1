/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <sys/random.h>

char *xvasprintf(const char *fmt, va_list ap)
{
	char *s;

	if (vasprintf(&s, fmt, ap) < 0)
		abort();
	return s;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	s = xvasprintf(fmt, ap);
	va_end(ap);
	return s;
}

char *xstrdup(const char *s)
{
	char *copy = s ? strdup(s) : NULL;

	if (s && !copy)
		abort();
	return copy;
}

void *xcalloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size ? size : 1);

	if (!p)
		abort();
	return p;
}

void *xrealloc(void *p, size_t n, size_t size)
{
	p = reallocarray(p, n, size);
	if (!p)
		abort();
	return p;
}

int text_parse_u64(const char *s, uint64_t *ret)
{
	unsigned long long v;
	char *end;

	if (!isdigit((unsigned char)*s))
		return -EINVAL;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (errno)
		return -errno;
	if (*end)
		return -EINVAL;
	*ret = v;
	return 0;
}

static bool number32(const char *s, const char **ret_end, uint32_t *ret)
{
	unsigned long long v;
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	v = strtoull(s, &end, 0);
	*ret_end = end;
	*ret = (uint32_t)v;
	return !errno && v <= UINT32_MAX;
}

int text_parse_mark(const char *s, uint32_t *ret_value, uint32_t *ret_mask)
{
	uint32_t value, mask = UINT32_MAX;
	const char *p;

	if (!number32(s, &p, &value) || (*p == '/' && !number32(p + 1, &p, &mask)) || *p || (value & ~mask) || !mask)
		return -EINVAL;
	*ret_value = value;
	*ret_mask = mask;
	return 0;
}

int text_parse_size(const char *s, uint64_t *ret)
{
	static const char units[] = "KMGT";
	_cleanup_free_ char *digits = xstrdup(s);
	size_t len = strlen(digits);
	const char *unit;
	unsigned int shift = 0;
	uint64_t v;
	int r;

	if (len > 1 && (unit = strchr(units, toupper((unsigned char)digits[len - 1])))) {
		shift = 10 * (unsigned int)(unit - units + 1);
		digits[len - 1] = '\0';
	}
	r = text_parse_u64(digits, &v);
	if (r < 0)
		return r;
	if (v > UINT64_MAX >> shift)
		return -ERANGE;
	*ret = v << shift;
	return 0;
}

char *text_hex(const void *data, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	const unsigned char *p = data;
	char *s = xcalloc(1, 2 * len + 1);

	for (size_t i = 0; i < len; i++) {
		s[2 * i] = digits[p[i] >> 4];
		s[2 * i + 1] = digits[p[i] & 15];
	}
	return s;
}

char *text_random_id(void)
{
	unsigned char bytes[16];

	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		abort();
	return text_hex(bytes, sizeof(bytes));
}

bool text_is_id(const char *s)
{
	return strlen(s) == 32 && strspn(s, "0123456789abcdef") == 32;
}

void secret_clear(char *s)
{
	if (s)
		explicit_bzero(s, strlen(s));
}

void secret_free(char *s)
{
	secret_clear(s);
	free(s);
}

bool text_equal_secret(const char *a, const char *b)
{
	size_t len = strlen(a);
	unsigned char diff = 0;

	if (strlen(b) != len)
		return false;
	for (size_t i = 0; i < len; i++)
		diff |= (unsigned char)(a[i] ^ b[i]);
	return diff == 0;
}

bool vm_name_valid(const char *name)
{
	size_t len = strlen(name);

	if (len < 1 || len > 48 || !isalnum((unsigned char)name[0]) || !isascii(name[0]))
		return false;
	return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") == len;
}

char *text_clean(const char *s, size_t max)
{
	size_t len = strnlen(s, max);
	char *copy = strndup(s, len);

	if (!copy)
		abort();
	for (char *p = copy; *p; p++)
		if (*p < 0x20 || *p > 0x7e)
			*p = '?';
	return copy;
}

size_t strv_length(char *const *v)
{
	size_t n = 0;

	while (v && v[n])
		n++;
	return n;
}

void strv_free(char **v)
{
	for (size_t i = 0; v && v[i]; i++)
		free(v[i]);
	free(v);
}

void strv_push(char ***v, char *s)
{
	size_t n = strv_length(*v);

	*v = xrealloc(*v, n + 2, sizeof(char *));
	(*v)[n] = s;
	(*v)[n + 1] = NULL;
}

void strv_add(char ***v, const char *fmt, ...)
{
	va_list ap;
	char *s;

	va_start(ap, fmt);
	s = xvasprintf(fmt, ap);
	va_end(ap);
	strv_push(v, s);
}

char **strv_copy(char *const *v)
{
	char **copy = NULL;

	for (size_t i = 0; v && v[i]; i++)
		strv_push(&copy, xstrdup(v[i]));
	return copy;
}

bool strv_contains(char *const *v, const char *s)
{
	for (size_t i = 0; v && v[i]; i++)
		if (streq(v[i], s))
			return true;
	return false;
}

/* Reads one word from *s; the caller has skipped blanks. */
static int split_word(const char **s, char **ret)
{
	_cleanup_free_ char *word = xcalloc(1, strlen(*s) + 1);
	char quote = 0, *out = word;
	const char *p = *s;

	for (; *p && (quote || !isspace((unsigned char)*p)); p++) {
		if (quote && *p == quote)
			quote = 0;
		else if (!quote && (*p == '\'' || *p == '"'))
			quote = *p;
		else if (*p == '\\' && quote != '\'' && p[1])
			*out++ = *++p;
		else
			*out++ = *p;
	}
	if (quote)
		return -EINVAL;
	*s = p;
	*ret = TAKE_PTR(word);
	return 0;
}

int strv_split_words(const char *s, char ***ret)
{
	_cleanup_strv_ char **words = NULL;

	for (;;) {
		char *word;
		int r;

		while (isspace((unsigned char)*s))
			s++;
		if (!*s)
			break;
		r = split_word(&s, &word);
		if (r < 0)
			return r;
		strv_push(&words, word);
	}
	if (!words)
		return -EINVAL;
	*ret = TAKE_PTR(words);
	return 0;
}
