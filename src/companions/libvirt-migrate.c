/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The operator's end: virsh migrate, with the two ends of the connections beside it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/process.h"
#include "companions/libvirt-task.h"
#include "conntrack/wire.h"

#define END_USEC (2 * USEC_PER_SEC)	  /* for the other ends, after virsh has ended */
#define CANCEL_USEC (200 * USEC_PER_MSEC) /* until it is tried again */

typedef struct Migrate {
	MigrateTask task;
	sd_event *event;
	Helper *virsh, *follow, *receive, *cancel, *flush, *resume_here;
	Watch *watch;  /* on the source */
	int switch_fd; /* closing it is the switch */
	int stream;    /* receive's input, which follow writes */
	sd_event_source *late, *again, *bound;
	int status; /* of virsh */
	bool virsh_ended, arrived, running, failed;
	bool resumed_here;
	bool leaving;	/* the source has stopped it */
	bool undecided; /* virsh has failed: the source is asked whether it runs there */
	bool stays;	/* it does */
	uint64_t begin;
	json_object *result; /* what receive said last */
} Migrate;

static void migrate_done(Migrate *m)
{
	fd_close(m->switch_fd);
	fd_close(m->stream);
	watch_free(m->watch);
	helper_free(m->virsh);
	helper_free(m->follow);
	helper_free(m->receive);
	helper_free(m->cancel);
	helper_free(m->flush);
	helper_free(m->resume_here);
	sd_event_source_disable_unref(m->bound);
	sd_event_source_disable_unref(m->again);
	sd_event_source_disable_unref(m->late);
	sd_event_unref(m->event);
	json_object_put(m->result);
	migrate_task_done(&m->task);
}

static void warn(const char *text, const char *more)
{
	fprintf(stderr, "vmferry-libvirt: warning: %s%s\n", text, more);
}

/* ---- the end on the source ---- */

/* One that has nothing to say to us and hears nothing from us, but its end. */
static int start_silent(Migrate *m, const char *name, char *const *argv, const HelperHandlers *handlers, Helper **ret,
			Error **err)
{
	const HelperSpec spec = {
		.name = name, .argv = argv, .in = -1, .out = -1, .err = -1, .handlers = handlers, .userdata = m};

	return helper_start(m->event, &spec, ret, err);
}

static void end_if_over(Migrate *m);

static void on_flushed(_unused_ Helper *h, int status, void *userdata)
{
	if (status != 0)
		warn("entries stay on the source", "");
	end_if_over(userdata);
}

static bool to_be_resumed(const Migrate *m)
{
	return m->task.hard && m->task.resume && !m->running && m->status == 0;
}

/* Once the guest runs there for good; not while follow would take it for news, which the target is to hear of. */
static void start_flush(Migrate *m)
{
	static const HelperHandlers handlers = {.ended = on_flushed};
	bool moved = m->running || (m->virsh_ended && m->status == 0 && !to_be_resumed(m));
	_cleanup_strv_ char **words = NULL, **argv = NULL, **spare = NULL;
	_cleanup_error_ Error *err = NULL;

	if (!moved || m->flush || helper_running(m->follow))
		return;
	words = migrate_task_words(&m->task, "flush");
	/* Connections with guests that are still here are theirs, too: the firewall here goes on seeing them. */
	spare = domain_neighbours(m->task.uri, m->task.known.name, m->task.known.others);
	for (size_t i = 0; spare && spare[i]; i++)
		strv_add(&words, "--spare=%s", spare[i]);
	if (migrate_task_command(m->task.from, words, &argv, &err) < 0 ||
	    start_silent(m, "vmferry-conntrack flush", argv, &handlers, &m->flush, &err) < 0)
		warn("entries stay on the source: ", err->message);
}

/* ---- the switch ---- */

static void switch_now(Migrate *m)
{
	m->switch_fd = fd_close(m->switch_fd);
}

/* ---- whoever was to resume it does not ---- */

static void on_resume_line(_unused_ Helper *h, char *line, void *userdata)
{
	Migrate *m = userdata;

	m->resumed_here |= startswith(line, "running") && !m->running;
	m->running |= m->resumed_here;
}

static void on_resume_ended(_unused_ Helper *h, _unused_ int status, void *userdata)
{
	switch_now(userdata);
	end_if_over(userdata);
}

/* Never leave it paused. That it runs already is no harm. */
static int on_bound(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	static const HelperHandlers handlers = {.line = on_resume_line, .ended = on_resume_ended};
	_cleanup_free_ char *name = NULL;
	_cleanup_strv_ char **argv = NULL;
	_cleanup_error_ Error *err = NULL;
	Migrate *m = userdata;

	if (m->running || m->resume_here)
		return 0;
	name = virsh_quote(m->task.name);
	argv = virsh_words(m->task.desturi);
	strv_add(&argv, "resume %s; domstate %s", name, name);
	if (helper_start(m->event,
			 &(HelperSpec){.name = "virsh resume",
				       .argv = argv,
				       .in = -1,
				       .out = HELPER_LINES,
				       .err = -1,
				       .handlers = &handlers,
				       .userdata = m},
			 &m->resume_here, &err) < 0)
		warn("cannot resume it: ", err->message);
	return 0;
}

static bool any_running(const Migrate *m)
{
	return helper_running(m->follow) || helper_running(m->receive) || helper_running(m->flush) ||
	       helper_running(m->resume_here);
}

static void end_if_over(Migrate *m)
{
	start_flush(m);
	if (m->virsh_ended && to_be_resumed(m) && !helper_running(m->receive))
		(void)on_bound(NULL, 0, m);
	if (m->virsh_ended && !any_running(m))
		(void)sd_event_exit(m->event, 0);
}

static int cancel(Migrate *m);

static int on_cancel_again(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	return cancel(userdata);
}

/* There may be no job to abort yet. */
static void on_cancelled(_unused_ Helper *h, int status, void *userdata)
{
	Migrate *m = userdata;

	m->again = sd_event_source_disable_unref(m->again);
	if (status != 0 && !m->virsh_ended)
		(void)sd_event_add_time_relative(m->event, &m->again, CLOCK_MONOTONIC, CANCEL_USEC, 0, on_cancel_again,
						 m);
}

/* virsh migrate aborts at ^C in its terminal, but not at a signal. */
static int cancel(Migrate *m)
{
	static const HelperHandlers handlers = {.ended = on_cancelled};
	_cleanup_strv_ char **argv = virsh_words(m->task.uri);
	_cleanup_error_ Error *err = NULL;

	if (helper_running(m->cancel) || m->virsh_ended || !m->virsh)
		return 0;
	m->cancel = helper_free(m->cancel);
	strv_push(&argv, xstrdup("domjobabort"));
	strv_push(&argv, xstrdup(m->task.domain));
	if (start_silent(m, "virsh domjobabort", argv, &handlers, &m->cancel, &err) < 0)
		warn("cannot cancel: ", err->message);
	return 0;
}

/* One of our ends is not there: libvirt is told to cancel. What has arrived already stays there. */
static void give_up(Migrate *m, const char *what)
{
	if (m->failed || m->arrived || m->running)
		return;
	m->failed = true;
	warn(what, " has failed: the migration is cancelled");
	(void)cancel(m);
}

/* Whoever is to end and does not, one after the other. */
static int on_late(sd_event_source *s, uint64_t usec, void *userdata)
{
	Migrate *m = userdata;

	if (helper_running(m->follow))
		helper_signal(m->follow, SIGKILL); /* receive sees the end of it, and says what there is */
	else if (m->receive)
		m->receive = helper_free(m->receive);
	else
		return sd_event_exit(m->event, 0);
	end_if_over(m);
	(void)sd_event_source_set_time(s, usec + END_USEC);
	return sd_event_source_set_enabled(s, SD_EVENT_ONESHOT);
}

/* No mark at the end: receive deletes all again, if the guest has not arrived. */
static void end_follow(Migrate *m)
{
	m->undecided = false;
	helper_signal(m->follow, SIGTERM);
}

/* virsh has failed, but libvirt on the target may get over what it waits for, and make the guest ready there. */
static void ask_source(Migrate *m)
{
	m->undecided = m->watch;
	if (m->watch)
		watch_ask(m->watch);
	else
		end_follow(m);
}

static void on_answer(void *userdata, DomainLife life)
{
	Migrate *m = userdata;

	if (!m->undecided)
		return;
	m->stays = life == LIFE_RUNNING;
	end_follow(m);
}

static void on_virsh_ended(_unused_ Helper *h, int status, void *userdata)
{
	Migrate *m = userdata;

	m->virsh_ended = true;
	if (m->task.verbose)
		fputc('\n', stderr); /* virsh --quiet does not */
	m->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	if (m->status == 0)
		switch_now(m);
	else
		ask_source(m);
	(void)sd_event_add_time_relative(m->event, &m->late, CLOCK_MONOTONIC, END_USEC, 0, on_late, m);
	if (to_be_resumed(m))
		(void)sd_event_add_time_relative(m->event, &m->bound, CLOCK_MONOTONIC, m->task.hold, 0, on_bound, m);
	end_if_over(m);
}

static void on_follow_line(_unused_ Helper *h, char *line, _unused_ void *userdata)
{
	if (*line != '{')
		fprintf(stderr, "%s\n", line);
}

/* Not to a pipe that is full, of whoever hangs: the guest is resumed there by nobody but it. */
static void take_back(const Migrate *m)
{
	struct pollfd p = {.fd = m->stream, .events = POLLOUT};
	uint8_t batch[CT_WIRE_HEADER];

	ct_wire_back(batch);
	if (poll(&p, 1, 0) == 1)
		(void)!write(m->stream, batch, sizeof(batch));
}

static void on_follow_ended(_unused_ Helper *h, int status, void *userdata)
{
	Migrate *m = userdata;

	if (status != 0 && !m->virsh_ended)
		give_up(m, "vmferry-conntrack follow");
	if (m->stays)
		take_back(m);
	m->stream = fd_close(m->stream);
	end_if_over(m);
}

static void on_receive_line(_unused_ Helper *h, char *line, void *userdata)
{
	json_object *o = json_parse(line, strlen(line));
	const char *event = "";
	Migrate *m = userdata;

	(void)json_get_string(o, "event", &event);
	if (streq(event, "paused") || streq(event, "running"))
		switch_now(m);
	m->arrived |= streq(event, "paused");
	m->running |= streq(event, "running");
	if (json_object_object_get(o, "applied")) {
		json_object_put(m->result);
		m->result = json_object_get(o);
	}
	json_object_put(o);
}

static void on_receive_ended(_unused_ Helper *h, _unused_ int status, void *userdata)
{
	Migrate *m = userdata;

	if (!m->virsh_ended)
		give_up(m, "vmferry-libvirt receive");
	end_if_over(m);
}

static const HelperHandlers virsh_handlers = {.ended = on_virsh_ended};
static const HelperHandlers follow_handlers = {.line = on_follow_line, .ended = on_follow_ended};
static const HelperHandlers receive_handlers = {.line = on_receive_line, .ended = on_receive_ended};

static int start_receive(Migrate *m, int in, Error **err)
{
	char *const words[] = {(char[]){"vmferry-libvirt"}, (char[]){"receive"}, NULL};
	_cleanup_strv_ char **argv = NULL;
	int r = migrate_task_command(m->task.to, words, &argv, err);

	if (r < 0)
		return r;
	return helper_start(m->event,
			    &(HelperSpec){.name = "vmferry-libvirt receive",
					  .argv = argv,
					  .in = in,
					  .out = HELPER_LINES,
					  .err = STDERR_FILENO,
					  .outlives = true,
					  .handlers = &receive_handlers,
					  .userdata = m},
			    &m->receive, err);
}

static int start_follow(Migrate *m, int out, Error **err)
{
	_cleanup_strv_ char **words = migrate_task_words(&m->task, "follow"), **argv = NULL;
	int pipes[2], r = migrate_task_command(m->task.from, words, &argv, err);

	if (r < 0)
		return r;
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	m->switch_fd = pipes[1];
	r = helper_start(m->event,
			 &(HelperSpec){.name = "vmferry-conntrack follow",
				       .argv = argv,
				       .in = pipes[0],
				       .out = out,
				       .err = HELPER_LINES,
				       .handlers = &follow_handlers,
				       .userdata = m},
			 &m->follow, err);
	fd_close(pipes[0]);
	return r;
}

/* receive's input: its line first, then what follow writes. */
static int start_ends(Migrate *m, Error **err)
{
	_cleanup_json_ json_object *o = transfer_json(m->task.tool, m->task.name, m->task.known.addresses,
						      m->task.hard && m->task.resume, m->task.hold);
	_cleanup_fd_ int in = -1;
	_cleanup_free_ char *line = xasprintf("%s\n", json_text(o));
	int pipes[2], r;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	in = pipes[0];
	m->stream = pipes[1];
	r = strlen(line) < 32768 ? fd_write_all(m->stream, line, strlen(line)) : -E2BIG; /* fits in the pipe */
	if (r < 0)
		return error_set(err, r, "Cannot tell the target: %s", strerror(-r));
	r = start_receive(m, in, err);
	return r < 0 ? r : start_follow(m, m->stream, err);
}

static int start_virsh(Migrate *m, Error **err)
{
	_cleanup_strv_ char **argv = virsh_words(m->task.uri);
	char *const *args = m->task.tool->args;

	strv_push(&argv, xstrdup("migrate"));
	if (m->task.hard && !m->task.suspend)
		strv_push(&argv, xstrdup("--suspend"));
	for (size_t i = 0; args[i]; i++)
		strv_push(&argv, xstrdup(args[i]));
	return helper_start(m->event,
			    &(HelperSpec){.name = "virsh",
					  .argv = argv,
					  .in = STDIN_FILENO,
					  .out = STDOUT_FILENO,
					  .err = STDERR_FILENO,
					  .foreground = true,
					  .handlers = &virsh_handlers,
					  .userdata = m},
			    &m->virsh, err);
}

/* The source stops it: what has changed until now can go over while libvirt goes on. It may run again: a user's word.
 */
static void on_life(void *userdata, DomainLife life)
{
	Migrate *m = userdata;
	bool leaving = life == LIFE_LEAVING || (m->leaving && life != LIFE_RUNNING);

	if (leaving != m->leaving && m->switch_fd >= 0)
		(void)!write(m->switch_fd, "m", 1); /* a pipe that has room */
	m->leaving = leaving;
}

/* Then the switch is asked for when the guest has arrived, as ever. */
static void on_lost(void *userdata, const char *why)
{
	Migrate *m = userdata;

	warn("on the source: ", why);
	m->watch = watch_free(m->watch);
	if (m->undecided)
		end_follow(m);
}

static void start_watch(Migrate *m)
{
	static const WatchHandlers handlers = {.life = on_life, .answer = on_answer, .lost = on_lost};
	_cleanup_error_ Error *err = NULL;

	if (watch_new(m->event, m->task.uri, m->task.known.name, &handlers, m, &m->watch, &err) < 0)
		warn("", err->message);
}

static int on_signal(_unused_ sd_event_source *s, _unused_ const struct signalfd_siginfo *si, void *userdata)
{
	return cancel(userdata);
}

static int watch_signals(Migrate *m)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};

	return tool_signals(m->event, signals, ARRAY_SIZE(signals), on_signal, m);
}

/* ---- the end ---- */

/* Return: 0 when it runs, or is not to. */
static int see_it_run(const Migrate *m, Error **err)
{
	if (!to_be_resumed(m))
		return 0;
	error_set(err, -EIO, "%s is paused on the target and could not be resumed", m->task.known.name);
	error_hint(err, "virsh resume there");
	return -EIO;
}

static int report(const Migrate *m)
{
	uint64_t wall = now_usec() - m->begin, applied = 0, held = 0;
	const char *event = "none", *gate = !m->task.hard ? "soft" : m->resumed_here ? "source" : "none";

	(void)json_get_string(m->result, "event", &event);
	(void)json_get_string(m->result, "gate", &gate);
	(void)json_get_u64(m->result, "applied", &applied);
	(void)json_get_u64(m->result, "held_usec", &held);
	tool_say(m->task.tool,
		 json_build("event", "s", "migrated", "domain", "s", m->task.known.name, "connections", "s", event,
			    "applied", "u", applied, "gate", "s", gate, "held_usec", "u", held, "wall_usec", "u", wall,
			    "addresses", "o", migrate_task_addresses(&m->task), "addresses_from", "s",
			    domain_source_name(m->task.known.source), "detail", "o", json_object_get(m->result), NULL),
		 "%s: migrated with %" PRIu64 " connections%s, held for %" PRIu64 ".%" PRIu64 " ms", m->task.known.name,
		 applied, streq(event, "done") ? "" : " (not all that changed last)", held / 1000, held / 100 % 10);
	return 0;
}

static int move(Migrate *m, Error **err)
{
	int r = sd_event_new(&m->event);

	if (r >= 0)
		r = watch_signals(m);
	if (r >= 0)
		r = start_ends(m, err);
	if (r >= 0)
		r = start_virsh(m, err);
	if (r < 0)
		return r;
	start_watch(m);
	return sd_event_loop(m->event);
}

int libvirt_migrate(const Tool *tool, Error **err)
{
	_cleanup_(migrate_done)
	Migrate m = {.switch_fd = -1, .stream = -1, .begin = now_usec()};
	int r = migrate_task_read(tool, &m.task, err);

	if (r >= 0)
		r = move(&m, err);
	if (r >= 0)
		r = see_it_run(&m, err);
	if (r < 0)
		return r;
	if (m.status != 0)
		return error_set(err, -ECANCELED, "virsh has ended with status %d", m.status);
	return report(&m);
}
