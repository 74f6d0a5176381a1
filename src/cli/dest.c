/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "dest.h"

#include <errno.h>

#include "basic/text.h"

#define LETTERS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
#define NAME_CHARS LETTERS "0123456789._-"

static bool name_ok(const char *s, const char *chars)
{
	return *s && *s != '-' && strlen(s) <= 255 && strspn(s, chars) == strlen(s);
}

static int bad(const char *dest, const char *what, Error **err)
{
	error_set(err, -EINVAL, "\"%s\": %s", dest, what);
	error_hint(err, "ssh://[user@]host[:port], host, or exec:COMMAND");
	return -EINVAL;
}

/* Cuts ":port" off @rest, which is "host[:port]" or "[address][:port]"; what is left is the host without brackets. */
static int split_port(char *rest, char **ret_host, char **ret_port)
{
	char *port = NULL, *end;
	uint64_t v;

	if (*rest == '[') {
		end = strchr(rest, ']');
		if (!end || (end[1] && end[1] != ':'))
			return -EINVAL;
		port = end[1] ? end + 2 : NULL;
		*end = '\0';
		*ret_host = rest + 1;
	} else {
		end = strchr(rest, ':');
		port = end ? end + 1 : NULL;
		if (end)
			*end = '\0';
		*ret_host = rest;
	}
	if (port && (text_parse_u64(port, &v) < 0 || v < 1 || v > 65535))
		return -ERANGE;
	*ret_port = port;
	return 0;
}

int ssh_url_parse(const char *url, char **ret_login, char **ret_port, Error **err)
{
	const char *body = startswith(url, "ssh://");
	_cleanup_free_ char *copy = xstrdup(body ? body : "");
	char *user = NULL, *rest = copy, *host, *port, *at;
	size_t len = strlen(copy);
	int r;

	if (!body)
		return bad(url, "no ssh:// address", err);
	if (len > 0 && copy[len - 1] == '/')
		copy[len - 1] = '\0';
	at = strchr(copy, '@');
	if (at) {
		*at = '\0';
		user = copy;
		rest = at + 1;
	}
	r = split_port(rest, &host, &port);
	if (r == -ERANGE)
		return bad(url, "a port is a number from 1 to 65535", err);
	if (r < 0 || !name_ok(host, *rest == '[' ? NAME_CHARS ":%" : NAME_CHARS))
		return bad(url, "not the name or address of a host", err);
	if (user && !name_ok(user, NAME_CHARS))
		return bad(url, "not the name of a user", err);
	*ret_login = user ? xasprintf("%s@%s", user, host) : xstrdup(host);
	*ret_port = xstrdup(port);
	return 0;
}

int dest_check(const char *dest, Error **err)
{
	_cleanup_free_ char *login = NULL, *port = NULL;
	_cleanup_strv_ char **words = NULL;
	const char *command = startswith(dest, "exec:");

	if (command)
		return strv_split_words(command, &words) < 0 ? bad(dest, "no command, or a quote is not closed", err)
							     : 0;
	if (strstr(dest, "://"))
		return ssh_url_parse(dest, &login, &port, err);
	if (strpbrk(dest, "@:"))
		return bad(dest, "a user or a port needs the form ssh://user@host:port", err);
	return name_ok(dest, NAME_CHARS) ? 0 : bad(dest, "not the name of a host", err);
}
