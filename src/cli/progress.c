/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include "basic/text.h"
#include "cli/output.h"

#define PLAIN_INTERVAL_USEC (5 * USEC_PER_SEC)
#define WIDTH_DEFAULT 80

void progress_init(Progress *p, FILE *out, const char *choice)
{
	bool tty = isatty(fileno(out));
	struct winsize size;

	*p = (Progress){.mode = tty ? PROGRESS_LINE : PROGRESS_PLAIN, .out = out, .width = WIDTH_DEFAULT};
	if (choice)
		p->mode = streq(choice, "line")	   ? PROGRESS_LINE
			  : streq(choice, "plain") ? PROGRESS_PLAIN
						   : PROGRESS_NONE;
	if (tty && ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
		p->width = size.ws_col;
}

void progress_clear(Progress *p)
{
	if (p->dirty)
		fputs("\r\033[K", p->out);
	fflush(p->out);
	p->dirty = false;
}

void progress_done(Progress *p)
{
	if (p->out)
		progress_clear(p);
	free(p->phase);
	*p = (Progress){0};
}

/* Appends "  BEFORE VALUE AFTER" for a figure that is there; takes @value. */
static void add_figure(char **text, const char *before, char *value, const char *after)
{
	char *longer = xasprintf("%s  %s%s%s", *text, before, value, after);

	free(*text);
	free(value);
	*text = longer;
}

char *progress_text(json_object *progress)
{
	_cleanup_free_ char *phase = format_value(json_member(progress, "phase"));
	json_object *percent = json_member(progress, "percent");
	char *text = xstrdup(phase);
	uint64_t v;

	if (percent) {
		free(text);
		text = xasprintf("%s %.0f %%", phase, json_object_get_double(percent));
	}
	if (json_get_u64(progress, "rate", &v))
		add_figure(&text, "", format_size(v), "/s");
	if (json_get_u64(progress, "dirty_rate", &v))
		add_figure(&text, "dirty ", format_size(v), "/s");
	if (json_get_u64(progress, "left_ms", &v))
		add_figure(&text, "", format_msec(v), " left");
	if (json_get_u64(progress, "predicted_pause_ms", &v))
		add_figure(&text, "pause ~", format_msec(v), "");
	if (json_get_u64(progress, "throttle", &v) && v > 1)
		add_figure(&text, "slowed by ", xasprintf("%" PRIu64, v), " %");
	return text;
}

void progress_show(Progress *p, const char *name, json_object *progress, uint64_t now)
{
	_cleanup_free_ char *text = progress_text(progress), *phase = format_value(json_member(progress, "phase"));

	if (p->mode == PROGRESS_NONE)
		return;
	if (p->mode == PROGRESS_LINE) {
		fprintf(p->out, "\r%.*s\033[K", p->width - 1, text);
		p->dirty = true;
	} else {
		if (streq_null(p->phase, phase) && now - p->shown < PLAIN_INTERVAL_USEC)
			return;
		fprintf(p->out, "%s: %s\n", name, text);
	}
	fflush(p->out);
	p->shown = now;
	free(p->phase);
	p->phase = TAKE_PTR(phase);
}
