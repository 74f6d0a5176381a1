/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "follow.h"

#include <errno.h>
#include <signal.h>
#include <systemd/sd-event.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/log.h"
#include "basic/text.h"
#include "cli/client.h"
#include "cli/streams.h"
#include "cli/local.h"
#include "cli/output.h"
#include "cli/progress.h"

/* What a far command line sends for ^C (remote.c). */
#define INTERRUPT_BYTE 0x03

/* Between two attempts to reach a keeper that is coming back. */
#define RETRY_USEC (50 * USEC_PER_MSEC)
#define STATUS_USEC (10 * USEC_PER_SEC)

/**
 * struct Follow - a migration that is being followed
 * @id:         its id, NULL until known
 * @streams:    makes the streams to the target; NULL without --direct
 * @host:       where the keeper is, NULL: here
 * @result:     how it ended, NULL until it has
 * @failed:     the order was refused, or it cannot be followed any more
 * @said:       warnings already shown
 * @errors:     error lines that are held back
 * @interrupts: how often ^C came
 * @taken:      the keeper has got the order
 * @left:       we leave it: it goes on without us
 * @idle:       nothing runs that could be followed
 */
typedef struct Follow {
	const Cli *cli;
	const char *name;
	const FollowOrder *order;
	sd_event *loop;
	sd_bus *bus;
	Progress progress;
	Streams *streams;
	const char *host;
	char *id;
	json_object *result;
	Error *failed;
	char **said;
	char **errors;
	unsigned int interrupts;
	bool taken;
	bool left;
	bool idle;
} Follow;

static void follow_done(Follow *f)
{
	progress_done(&f->progress);
	f->streams = streams_free(f->streams, !f->left);
	bus_closep(&f->bus);
	sd_event_unref(f->loop);
	free(f->id);
	json_object_put(f->result);
	error_free(f->failed);
	strv_free(f->said);
	strv_free(f->errors);
}

/* Keeps the first error only, as an error of the migration we are about to leave. */
static void fail(Follow *f, int code, const char *message, const char *hint)
{
	error_set(&f->failed, code, "%s", message);
	if (hint)
		error_hint(&f->failed, "%s", hint);
}

static void say(Follow *f, const char *kind, const char *message)
{
	_cleanup_free_ char *clean = format_text(message);

	progress_clear(&f->progress);
	fprintf(stderr, "vmferry: %s: %s%s\n", f->name, kind, clean);
}

static bool is_ours(Follow *f, json_object *o)
{
	const char *id;

	if (!json_get_string(o, "id", &id))
		return false;
	if (!f->id && !f->order)
		f->id = xstrdup(id);
	return f->id && streq(f->id, id);
}

static int on_cancelled(sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *ret_error)
{
	const sd_bus_error *e = sd_bus_message_get_error(reply);
	_cleanup_error_ Error *error = NULL;
	Follow *f = userdata;

	if (e && client_bus_error(e, &error) != -ECONNRESET)
		say(f, "not cancelled: ", error->message);
	return 0;
}

static void cancel(Follow *f)
{
	say(f, "", "cancelling, ^C once more leaves it alone");
	(void)sd_bus_call_method_async(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, "Cancel", on_cancelled, f,
				       NULL);
}

static bool is_order(const Follow *f, const char *method)
{
	return f->order && streq(f->order->method, method);
}

static void interrupt(Follow *f)
{
	f->interrupts++;
	if (!is_order(f, "Migrate") || f->interrupts > 1)
		f->left = true;
	else if (f->id && f->bus)
		cancel(f);
}

static int on_signal(_unused_ sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	Follow *f = userdata;

	if (si->ssi_signo == SIGINT)
		interrupt(f);
	else
		f->left = true;
	return 0;
}

static int on_stdin(sd_event_source *source, int fd, _unused_ uint32_t revents, void *userdata)
{
	Follow *f = userdata;
	char bytes[64];
	ssize_t n = read(fd, bytes, sizeof(bytes));

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0) {
		f->left = true;
		sd_event_source_set_enabled(source, SD_EVENT_OFF);
	}
	for (ssize_t i = 0; i < n; i++)
		if (bytes[i] == INTERRUPT_BYTE)
			interrupt(f);
	return 0;
}

static int on_progress(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *ret_error)
{
	_cleanup_json_ json_object *o = NULL;
	Follow *f = userdata;
	const char *text;

	if (sd_bus_message_read(m, "s", &text) < 0 || client_json("Progress", text, &o, NULL) < 0 || !is_ours(f, o))
		return 0;
	if (f->cli->json && !f->order)
		output_json(o);
	progress_show(&f->progress, f->name, o, now_usec());
	return 0;
}

static int on_log(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *ret_error)
{
	static const char *const kinds[] = {"", "warning: ", ""};
	Follow *f = userdata;
	const char *text;
	bool verbose = false;
	int level;

	if (sd_bus_message_read(m, "is", &level, &text) < 0)
		return 0;
	(void)json_get_bool(f->cli->options, "verbose", &verbose);
	if (level < 0 || level > (verbose ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING))
		return 0;
	/* Most often it is the migration's own error, which the result says better: held back until then. */
	if (level == LOG_LEVEL_ERROR) {
		strv_push(&f->errors, xstrdup(text));
		return 0;
	}
	say(f, kinds[level], text);
	strv_push(&f->said, xstrdup(text));
	return 0;
}

static int on_finished(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *ret_error)
{
	_cleanup_json_ json_object *o = NULL;
	Follow *f = userdata;
	const char *text;

	if (sd_bus_message_read(m, "s", &text) < 0 || client_json("Finished", text, &o, NULL) < 0 || !is_ours(f, o))
		return 0;
	if (!f->result)
		f->result = TAKE_PTR(o);
	return 0;
}

static int on_stream_wanted(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *ret_error)
{
	Follow *f = userdata;
	const char *stream;

	f->taken = true;
	if (f->streams && sd_bus_message_read(m, "s", &stream) >= 0)
		streams_make(f->streams, f->bus, stream);
	return 0;
}

static int on_started(sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *ret_error)
{
	const sd_bus_error *e = sd_bus_message_get_error(reply);
	_cleanup_error_ Error *error = NULL;
	Follow *f = userdata;
	const char *id;

	if (e) {
		/* A connection that broke is the loop's business: the keeper may have taken the order. */
		if (client_bus_error(e, &error) != -ECONNRESET && !f->failed)
			f->failed = TAKE_PTR(error);
		return 0;
	}
	if (sd_bus_message_read(reply, "s", &id) < 0) {
		fail(f, -EBADMSG, "its keeper's answer makes no sense", NULL);
		return 0;
	}
	if (is_order(f, "Check")) {
		(void)client_json("Check", id, &f->result, &f->failed);
		return 0;
	}
	f->id = xstrdup(id);
	if (f->interrupts > 0)
		cancel(f);
	return 0;
}

/* Subscribes on a fresh connection; before the order is given, so that nothing is missed. */
static int attach(Follow *f)
{
	static const struct {
		const char *member;
		sd_bus_message_handler_t handler;
	} signals[] = {
		{"Progress", on_progress},
		{"Log", on_log},
		{"Finished", on_finished},
		{"StreamWanted", on_stream_wanted},
	};
	int r = sd_bus_attach_event(f->bus, f->loop, SD_EVENT_PRIORITY_NORMAL);

	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(signals); i++)
		r = sd_bus_match_signal(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, signals[i].member,
					signals[i].handler, f);
	return r;
}

static int ask_status(Follow *f, json_object **ret)
{
	return client_status(f->bus, STATUS_USEC, ret);
}

/* Finds the migration we follow, or the one that runs, in what the keeper says of itself. */
static void adopt(Follow *f, json_object *status)
{
	json_object *migration = NULL, *last = NULL;
	const char *state;

	if (json_get_object(status, "migration", &migration) && !f->id) {
		const char *id;

		f->id = json_get_string(migration, "id", &id) ? xstrdup(id) : NULL;
	}
	if (f->id && json_get_object(status, "last_result", &last) && is_ours(f, last)) {
		f->result = json_object_get(last);
		return;
	}
	if (f->id && migration && is_ours(f, migration)) {
		progress_show(&f->progress, f->name, migration, now_usec());
		return;
	}
	if (!f->order && !f->id)
		f->idle = true;
	else if (!f->id && is_order(f, "Check"))
		fail(f, -EREMOTEIO, "its keeper was restarted", NULL);
	else if (json_get_string(status, "state", &state) && streq(state, "running"))
		fail(f, -ENOENT, "its keeper was restarted and knows nothing of the migration; the guest runs here",
		     NULL);
	else
		fail(f, -EREMOTEIO, "its keeper was restarted and knows nothing of the migration", NULL);
}

/* The keeper ends after its VM has left; the note of that outlives it. */
static bool left_for_good(Follow *f)
{
	_cleanup_json_ json_object *moved = f->host ? NULL : local_moved(f->name);
	const char *to = NULL;

	if (!moved || !f->id || !is_ours(f, moved))
		return false;
	(void)json_get_string(moved, "to", &to);
	f->result =
		json_build("vm", "s", f->name, "id", "s", f->id, "status", "s", "completed", "target", "s", to, NULL);
	return true;
}

/* Who makes no streams any more, or never did: the keeper says so if it needs one. */
static int on_relay_again(sd_bus_message *reply, void *userdata, sd_bus_error *ret_error)
{
	(void)reply;
	(void)userdata;
	(void)ret_error;
	return 0;
}

static int connect_once(Follow *f)
{
	return f->streams ? streams_connect(f->streams, false, &f->bus) : client_connect_once(f->name, &f->bus);
}

static void no_keeper(Follow *f)
{
	const Error *why = f->streams ? streams_why(f->streams) : NULL;

	if (why)
		fail(f, f->taken || f->id ? -EREMOTEIO : why->code, why->message, why->hint);
	else
		fail(f, -EREMOTEIO, "its keeper went away during the migration and did not come back", NULL);
}

/* After the connection broke: a keeper that died is back within a second and goes on from its journal. */
static int reconnect(Follow *f)
{
	uint64_t end = now_usec() + KEEPER_BACK_USEC;
	_cleanup_json_ json_object *status = NULL;
	int r = -ECONNREFUSED;

	bus_closep(&f->bus);
	f->bus = NULL;
	while (f->streams && !f->taken && f->host && !streams_why(f->streams) && now_usec() < end)
		if ((r = sd_event_run(f->loop, RETRY_USEC)) < 0)
			return r;
	while (!f->left && now_usec() < end && (f->taken || !f->host)) {
		r = connect_once(f);
		if (r >= 0)
			r = attach(f);
		if (r >= 0)
			r = ask_status(f, &status);
		if (r >= 0) {
			adopt(f, status);
			if (f->streams && !f->result && !f->failed)
				(void)sd_bus_call_method_async(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE,
							       "Relay", on_relay_again, f, NULL);
			if (f->interrupts > 0 && !f->result && !f->failed)
				cancel(f);
			return 0;
		}
		bus_closep(&f->bus);
		f->bus = NULL;
		if (left_for_good(f))
			return 0;
		r = sd_event_run(f->loop, RETRY_USEC);
		if (r < 0)
			return r;
	}
	if (!f->left)
		no_keeper(f);
	return 0;
}

static int start(Follow *f)
{
	_cleanup_json_ json_object *status = NULL;
	int r;

	if (f->order && f->order->options && !f->order->destination)
		return sd_bus_call_method_async(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, f->order->method,
						on_started, f, "s", f->order->options);
	if (f->order && f->order->options) {
		_cleanup_free_ char *to = xasprintf("%s%s", f->streams ? "direct:" : "", f->order->destination);

		return sd_bus_call_method_async(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, f->order->method,
						on_started, f, "ss", to, f->order->options);
	}
	if (f->order)
		return sd_bus_call_method_async(f->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, f->order->method,
						on_started, f, NULL);
	r = ask_status(f, &status);
	if (r >= 0)
		adopt(f, status);
	return r;
}

static int add_sources(Follow *f)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	int r = sd_event_new(&f->loop);

	for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(signals); i++) {
		struct sigaction old;
		sigset_t set;

		/* nohup and background jobs of shells have them ignored: so do we. */
		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN)
			continue;
		sigemptyset(&set);
		sigaddset(&set, signals[i]);
		sigprocmask(SIG_BLOCK, &set, NULL);
		r = sd_event_add_signal(f->loop, NULL, signals[i], on_signal, f);
	}
	if (r >= 0 && f->cli->under_control) {
		r = sd_event_add_io(f->loop, NULL, STDIN_FILENO, EPOLLIN, on_stdin, f);
		if (r == -EPERM) /* a regular file: nobody is there to leave */
			r = 0;
	}
	return r;
}

static int loop(Follow *f)
{
	int r = start(f);

	while (r >= 0 && !f->result && !f->failed && !f->left && !f->idle) {
		if (f->bus && sd_bus_is_open(f->bus) > 0)
			r = sd_event_run(f->loop, UINT64_MAX);
		else
			r = reconnect(f);
	}
	return r;
}

/* What has not been said when the migration has ended or we leave it. */
static void say_rest(Follow *f)
{
	const char *message = NULL;
	json_object *warnings;

	(void)json_get_string(f->result, "error.message", &message);
	for (size_t i = 0; f->errors && f->errors[i]; i++)
		if (!message || !strstr(f->errors[i], message))
			say(f, "error: ", f->errors[i]);
	if (!json_get_array(f->result, "warnings", &warnings))
		return;
	for (size_t i = 0; i < json_object_array_length(warnings); i++) {
		json_object *w = json_object_array_get_idx(warnings, i);

		if (json_object_is_type(w, json_type_string) && !strv_contains(f->said, json_object_get_string(w)))
			say(f, "warning: ", json_object_get_string(w));
	}
}

/* The exit status a result stands for; sets @err unless it is STATUS_DONE. */
static int result_status(json_object *result, Error **err)
{
	const char *status = "unknown", *guest = "unknown", *message = NULL, *phase = NULL, *hint = NULL;
	const char *kind = "migration";

	(void)json_get_string(result, "status", &status);
	(void)json_get_string(result, "kind", &kind);
	(void)json_get_string(result, "guest", &guest);
	(void)json_get_string(result, "error.message", &message);
	(void)json_get_string(result, "error.phase", &phase);
	(void)json_get_string(result, "error.hint", &hint);
	if (streq(status, "completed"))
		return STATUS_DONE;
	error_set(err, -ECANCELED, "%s %s%s%s%s%s; guest: %s", kind, status, phase ? " in " : "",
		  phase ? phase : "", message ? ": " : "", message ? message : "", guest);
	if (hint)
		error_hint(err, "%s", hint);
	if ((streq(status, "failed") || streq(status, "cancelled")) && !streq(guest, "unknown"))
		return STATUS_FAILED;
	error_hint(err, "%s",
		   streq(kind, "upgrade") ? "vmferry status tells when the guest goes on"
					  : "look on both hosts before anything else, then see recover in vmferry(1)");
	return STATUS_DOUBT;
}

static int conclude(Follow *f, json_object **ret, Error **err)
{
	int code;

	progress_clear(&f->progress);
	say_rest(f);
	if (f->result) {
		*ret = json_object_get(f->result);
		return is_order(f, "Check") ? STATUS_DONE : result_status(f->result, err);
	}
	if (f->idle)
		return STATUS_DONE;
	if (f->left) {
		error_set(err, -EINTR, "left alone; the migration goes on, its end is not known yet");
		error_hint(err, "vmferry watch %s shows it, vmferry cancel %s ends it", f->name, f->name);
		return STATUS_DOUBT;
	}
	code = error_set(err, f->failed->code, "%s", f->failed->message);
	if (f->failed->hint)
		error_hint(err, "%s", f->failed->hint);
	if (code != -EREMOTEIO)
		return code;
	error_hint(err, "vmferry status %s here and on the other host tells where it runs", f->name);
	return STATUS_DOUBT;
}

static int connect_first(Follow *f, Error **err)
{
	const char *remote_command = NULL;
	int r;

	if (!json_member(f->cli->options, "direct"))
		return client_connect(f->name, &f->bus, err);
	(void)json_get_string(f->cli->common, "host", &f->host);
	(void)json_get_string(f->cli->options, "remote_command", &remote_command);
	r = streams_new(f->loop, f->host, f->name, f->order->destination, remote_command, &f->streams, err);
	if (r >= 0 && !f->host)
		return client_connect(f->name, &f->bus, err);
	if (r >= 0)
		r = streams_connect(f->streams, is_order(f, "Migrate"), &f->bus);
	return r < 0 ? error_set(err, r, "cannot reach its keeper: %s", strerror(-r)) : 0;
}

int follow_migration(const Cli *cli, const char *name, const FollowOrder *order, json_object **ret, Error **err)
{
	_cleanup_(follow_done)
	Follow f = {.cli = cli, .name = name, .order = order};
	const char *choice = cli->json ? "none" : NULL;
	int r;

	(void)json_get_string(cli->options, "progress", &choice);
	progress_init(&f.progress, stderr, choice);
	r = add_sources(&f);
	if (r >= 0)
		r = connect_first(&f, err);
	if (r < 0)
		return r;
	r = attach(&f);
	if (r >= 0)
		r = loop(&f);
	if (r < 0)
		return error_set(err, r, "cannot follow the migration: %s", strerror(-r));
	return conclude(&f, ret, err);
}
