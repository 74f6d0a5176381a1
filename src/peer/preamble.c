/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/preamble.h"

#include <errno.h>
#include <sys/socket.h>

#include "basic/text.h"

#define FAMILY "vmferry/"
#define MAGIC FAMILY "1 "

static int copy_field(char *to, size_t size, const char *from)
{
	if (!from || strlen(from) >= size)
		return -EPROTO;
	memcpy(to, from, strlen(from) + 1);
	return 0;
}

int preamble_parse(const char *line, Preamble *ret, Error **err)
{
	_cleanup_free_ char *copy = NULL;
	char *save = NULL, *kind, *name, *id, *token, *peer;
	const char *rest = startswith(line, MAGIC);
	Preamble p = {};

	if (!rest) {
		error_set(err, -EPROTO, "the other end does not speak vmferry/1");
		error_hint(err, "bring both hosts to the same version of vmferry");
		return -EPROTO;
	}
	copy = xstrdup(rest);
	kind = strtok_r(copy, " ", &save);
	name = strtok_r(NULL, " ", &save);
	id = strtok_r(NULL, " ", &save);
	token = strtok_r(NULL, " ", &save);
	peer = strtok_r(NULL, " ", &save);
	if (!kind || (!streq(kind, "peer") && !streq(kind, "data")) || !name || !vm_name_valid(name) || !id ||
	    !text_is_id(id))
		return error_set(err, -EPROTO, "malformed first line from the other end");
	p.data = streq(kind, "data");
	if (p.data && (!token || !text_is_id(token)))
		return error_set(err, -EPROTO, "a data stream without its token");
	if (copy_field(p.name, sizeof(p.name), name) < 0 || copy_field(p.id, sizeof(p.id), id) < 0 ||
	    copy_field(p.token, sizeof(p.token), p.data ? token : "") < 0 ||
	    copy_field(p.peer, sizeof(p.peer), peer ? peer : "") < 0)
		return error_set(err, -EPROTO, "malformed first line from the other end");
	*ret = p;
	return 0;
}

char *preamble_text(const Preamble *p)
{
	return xasprintf(MAGIC "%s %s %s %s%s%s\n", p->data ? "data" : "peer", p->name, p->id, p->data ? p->token : "-",
			 p->peer[0] ? " " : "", p->peer);
}

int preamble_read(int fd, char *line, size_t *have)
{
	for (;;) {
		char buffer[PREAMBLE_MAX];
		ssize_t n = recv(fd, buffer, sizeof(buffer), MSG_PEEK);
		size_t take;
		char *end;

		if (n < 0)
			return errno == EAGAIN ? 0 : errno == EINTR ? 0 : -errno;
		if (n == 0)
			return -EPIPE;
		end = memchr(buffer, '\n', (size_t)n);
		take = end ? (size_t)(end - buffer) + 1 : (size_t)n;
		if (*have + take > PREAMBLE_MAX)
			return -EPROTO;
		if (recv(fd, line + *have, take, 0) != (ssize_t)take)
			return -EIO;
		*have += take;
		if (end) {
			line[*have - 1] = '\0';
			return memchr(line, '\0', *have - 1) ? -EPROTO : 1;
		}
	}
}

int preamble_answer(const char *line, char *ret_token, Error **err)
{
	_cleanup_free_ char *clean = NULL, *message = NULL;
	const char *rest = startswith(line, MAGIC), *text;
	size_t len;

	text = rest ? startswith(rest, "ok ") : NULL;
	if (text) {
		if (!streq(text, "-") && !text_is_id(text))
			return error_set(err, -EPROTO, "malformed answer from the other end");
		memcpy(ret_token, streq(text, "-") ? "" : text, streq(text, "-") ? 1 : 33);
		return 0;
	}
	text = rest ? startswith(rest, "error ") : NULL;
	clean = text_clean(line, 200);
	if (!text && startswith(line, FAMILY)) {
		error_set(err, -EPROTO, "the target's vmferry speaks another version of the protocol: \"%s\"", clean);
		error_hint(err, "bring both hosts to the same version of vmferry");
		return -EPROTO;
	}
	if (!text) {
		error_set(err, -EPROTO, "the target's command answered with something else than vmferry: \"%s\"", clean);
		error_hint(err, "its shell must print nothing; try: ssh HOST vmferry --version");
		return -EPROTO;
	}
	len = strcspn(text, "\t");
	message = text_clean(text, len);
	error_set(err, -EREMOTEIO, "%s", message);
	if (text[len] == '\t' && text[len + 1]) {
		_cleanup_free_ char *hint = text_clean(text + len + 1, 400);

		error_hint(err, "%s", hint);
	}
	return -EREMOTEIO;
}

char *preamble_refusal(const Error *err)
{
	_cleanup_free_ char *message = text_clean(err ? err->message : "refused", 400);
	_cleanup_free_ char *hint = text_clean(err && err->hint ? err->hint : "", 400);

	return xasprintf(MAGIC "error %s\t%s\n", message, hint);
}
