/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>

#include "text.h"

int error_set(Error **err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err || *err)
		return code;
	*err = calloc(1, sizeof(**err));
	if (!*err)
		abort();
	(*err)->code = code;
	va_start(ap, fmt);
	(*err)->message = xvasprintf(fmt, ap);
	va_end(ap);
	return code;
}

void error_hint(Error **err, const char *fmt, ...)
{
	va_list ap;

	if (!err || !*err || (*err)->hint)
		return;
	va_start(ap, fmt);
	(*err)->hint = xvasprintf(fmt, ap);
	va_end(ap);
}

void error_hint_more(Error **err, const char *fmt, ...)
{
	_cleanup_free_ char *first = NULL;
	char *more;
	va_list ap;

	if (!err || !*err)
		return;
	va_start(ap, fmt);
	if (vasprintf(&more, fmt, ap) < 0)
		abort();
	va_end(ap);
	first = TAKE_PTR((*err)->hint);
	if (first)
		error_hint(err, "%s; %s", first, more);
	else
		error_hint(err, "%s", more);
	free(more);
}

void error_prefix(Error **err, const char *fmt, ...)
{
	_cleanup_free_ char *prefix = NULL, *old = NULL;
	va_list ap;

	if (!err || !*err)
		return;
	va_start(ap, fmt);
	prefix = xvasprintf(fmt, ap);
	va_end(ap);
	old = (*err)->message;
	if (asprintf(&(*err)->message, "%s%s", prefix, old) < 0)
		abort();
}

void error_free(Error *err)
{
	if (!err)
		return;
	free(err->message);
	free(err->hint);
	free(err);
}
