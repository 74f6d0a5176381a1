/* SPDX-License-Identifier: GPL-2.0-or-later */
/* apply and flush: what changes this host's table. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <unistd.h>

#include "basic/clock.h"
#include "companions/conntrack.h"

typedef struct Applying {
	const Tool *tool;
	CtApply *apply;
	Input input;
	uint64_t usec; /* spent installing */
} Applying;

static void applying_done(Applying *a)
{
	ct_apply_free(a->apply);
	input_done(&a->input);
}

static json_object *reasons_json(const CtApplyStats *s)
{
	json_object *o = json_object_new_object();

	for (CtReason i = 0; i < _CT_REASON_MAX; i++)
		if (s->reasons[i])
			json_extend(o, ct_reason_name(i, NULL), "u", s->reasons[i], NULL);
	return o;
}

static void say(const Applying *a, const char *what, uint64_t usec)
{
	CtApplyStats s;
	json_object *o;

	ct_apply_stats(a->apply, &s);
	o = json_build("event", "s", what, "received", "u", s.received, "applied", "u", s.applied, "refused", "u", s.refused,
		       "failed", "u", s.failed, "replaced", "u", s.replaced, "swept", "u", s.swept, "reasons", "o",
		       reasons_json(&s), "first_refused", "s", s.first_refused, "usec", "u", usec, NULL);
	tool_say(a->tool, o, "%s: %" PRIu64 " entries, %" PRIu64 " refused, %" PRIu64 " failed%s%s%s", what, s.applied, s.refused,
		 s.failed, *s.first_refused ? " (" : "", s.first_refused, *s.first_refused ? ")" : "");
}

static int read_all(Applying *a, Error **err)
{
	const uint8_t *batch;
	size_t len;
	int r;

	while ((r = input_next(&a->input, &batch, &len, err)) > 0) {
		uint64_t start = now_usec();

		r = ct_apply_delta(a->apply, batch, len, err);
		a->usec += now_usec() - start;
		if (r < 0)
			return r;
	}
	return r;
}

static int settle(Applying *a, Error **err)
{
	uint64_t start;
	int r;

	(void)poll(NULL, 0, (int)tool_number(a->tool, "settle", 1000));
	start = now_usec();
	r = ct_apply_settle(a->apply, err);
	if (r >= 0)
		say(a, "settled", now_usec() - start);
	return r;
}

static int roll_back(Applying *a)
{
	int n = ct_apply_rollback(a->apply);

	tool_say(a->tool, json_build("event", "s", "rolled-back", "deleted", "i", (int64_t)n, NULL), "deleted %d entries again", n);
	return n < 0 ? n : 0;
}

static const char *const cut_text = "the input ended without the final mark: entries may be missing or old";

/* What is installed stays and is set right, unless a cut stream is to leave nothing behind. */
static int at_end(Applying *a, int read_result, bool undo, Error **err)
{
	bool cut = read_result < 0 || !a->input.ended;
	int r = cut && undo ? roll_back(a) : settle(a, err);

	if (read_result < 0 || r < 0)
		return read_result < 0 ? read_result : r;
	if (!cut)
		return 0;
	error_set(err, -EPIPE, "%s", cut_text);
	error_hint(err, "see what ended the other end; run both again, entries that lie here are replaced");
	return -EPIPE;
}

static int begin(Applying *a, Error **err)
{
	CtApplyOptions options = {.max_entries = 1000000, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER};
	CtOther *other = NULL;
	int r = tool_max_entries(a->tool, &options.max_entries, err);

	if (r >= 0)
		r = tool_other(a->tool, &other, err);
	if (r >= 0 && other)
		a->apply = ct_apply_new_of(a->tool->select, &options, other);
	else if (r >= 0)
		r = ct_apply_new(a->tool->select, &options, &a->apply, err);
	return r;
}

int tool_apply_from(const Tool *tool, int fd, Format format, bool undo,
		    void (*told)(void *userdata, int result, const CtApplyStats *stats, const char *why), void *userdata,
		    Error **err)
{
	_cleanup_(applying_done) Applying a = {.tool = tool, .input = {.fd = fd, .format = format}};
	_cleanup_error_ Error *own = NULL;
	CtApplyStats stats = {};
	int r = begin(&a, &own), begun = r;

	if (r >= 0) {
		r = read_all(&a, &own);
		say(&a, "applied", a.usec);
		ct_apply_stats(a.apply, &stats);
	}
	if (told)
		told(userdata, r < 0 || a.input.ended ? r : -EPIPE, &stats, own ? own->message : a.input.ended ? "" : cut_text);
	if (begun >= 0)
		r = at_end(&a, r, undo, &own);
	if (r >= 0)
		return 0;
	*err = TAKE_PTR(own);
	return r;
}

int tool_apply(const Tool *tool, Error **err)
{
	bool undo = false;

	(void)json_get_bool(tool->options, "undo-if-cut", &undo);
	return tool_apply_from(tool, STDIN_FILENO, tool_format(tool, FORMAT_ANY), undo, NULL, NULL, err);
}

int tool_flush(const Tool *tool, Error **err)
{
	_cleanup_(ct_select_freep) CtSelect *spare = NULL;
	_cleanup_strv_ char **addresses = NULL;
	json_object *list;
	int r;

	if (json_get_array(tool->options, "spare", &list))
		for (size_t i = 0; i < json_object_array_length(list); i++)
			strv_push(&addresses, xstrdup(json_object_get_string(json_object_array_get_idx(list, i))));
	r = ct_select_new(addresses, &spare, err);
	if (r >= 0)
		r = ct_flush(tool->select, spare, err);
	if (r < 0)
		return r;
	tool_say(tool, json_build("event", "s", "flushed", "deleted", "i", (int64_t)r, NULL), "deleted %d entries", r);
	return 0;
}
