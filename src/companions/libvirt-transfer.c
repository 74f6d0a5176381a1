/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The line of JSON before the entries in receive's input. */
#include <errno.h>
#include <inttypes.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "companions/libvirt.h"

#define LINE_MAX_LEN 65536

void transfer_done(Transfer *t)
{
	free(t->domain);
	ct_select_free(t->select);
}

json_object *transfer_json(const Tool *tool, const char *domain, char *const *addresses, bool resume_it, uint64_t bound)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; addresses && addresses[i]; i++)
		json_object_array_add(list, json_object_new_string(addresses[i]));
	return json_build("version", "u", (uint64_t)1, "domain", "s", domain, "addresses", "o", list, "mark", "s",
			  tool_text(tool, "mark", NULL), "zone", "s", tool_text(tool, "zone", NULL), "resume", "b",
			  resume_it, "bound_usec", "u", bound, NULL);
}

static int read_line(int fd, char *to, size_t max)
{
	for (size_t i = 0; i < max; i++) {
		ssize_t n = fd_read_all(fd, to + i, 1);

		if (n <= 0)
			return n < 0 ? (int)n : -ENODATA;
		if (to[i] == '\n')
			return (int)i;
	}
	return -EMSGSIZE;
}

static int parse_select(json_object *o, CtSelect **ret, Error **err)
{
	_cleanup_strv_ char **addresses = NULL;
	json_object *list;
	const char *text;
	int r;

	if (json_get_array(o, "addresses", &list))
		for (size_t i = 0; i < json_object_array_length(list); i++)
			strv_push(&addresses,
				  xstrdup(json_object_get_string(json_object_array_get_idx(list, i)) ?: ""));
	r = ct_select_new(addresses, ret, err);
	if (r >= 0 && json_get_string(o, "mark", &text))
		r = ct_select_mark(*ret, text, err);
	if (r >= 0 && json_get_string(o, "zone", &text))
		r = ct_select_zone(*ret, text, err);
	return r;
}

static int parse_transfer(json_object *o, Transfer *t, Error **err)
{
	const char *domain = "";
	uint64_t version = 0;

	if (!json_get_u64(o, "version", &version) || version != 1)
		return error_set(err, -EPROTO, "the other end speaks version %" PRIu64 ", this one 1", version);
	if (!json_get_string(o, "domain", &domain) || !*domain || strpbrk(domain, "\n\r") ||
	    !json_get_bool(o, "resume", &t->resume) || !json_get_u64(o, "bound_usec", &t->bound) ||
	    t->bound > 60 * USEC_PER_SEC)
		return error_set(err, -EPROTO, "the other end's first line is incomplete");
	t->domain = xstrdup(domain);
	return parse_select(o, &t->select, err);
}

int transfer_read(int fd, Transfer *ret, Error **err)
{
	_cleanup_free_ char *line = xcalloc(LINE_MAX_LEN, 1);
	_cleanup_json_ json_object *o = NULL;
	int len = read_line(fd, line, LINE_MAX_LEN);

	if (len < 0)
		return error_set(err, len, "Cannot read the first line: %s", strerror(-len));
	o = json_parse(line, (size_t)len);
	return o ? parse_transfer(o, ret, err) : error_set(err, -EPROTO, "the first line is not JSON");
}
