/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "streams.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/json.h"
#include "basic/text.h"
#include "cli/client.h"
#include "cli/remote.h"
#include "peer/child.h"
#include "peer/destination.h"

/* What was said last has this long to get through. */
#define END_USEC (2 * USEC_PER_SEC)

/**
 * struct Stream - one way from the keeper to the target
 * @far:  the target's command
 * @near: the command beside the keeper, NULL if the keeper is here
 * @bus:  where its failure is told
 */
typedef struct Stream {
	struct Stream *next;
	Streams *all;
	char id[33];
	sd_bus *bus;
	Child *far, *near;
} Stream;

struct Streams {
	sd_event *loop;
	const char *name;
	Destination *dest;
	char *remote_command;
	char **near_argv; /* NULL: the keeper is here */
	Child *door;
	Error *why;
	Stream *streams;
	unsigned int running;
};

int streams_new(sd_event *loop, const char *host, const char *name, const char *dest, const char *remote_command,
		Streams **ret, Error **err)
{
	Streams *d = xcalloc(1, sizeof(*d));
	sigset_t set;
	int r;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL); /* sd_event_add_child() wants it */
	d->loop = sd_event_ref(loop);
	d->name = name;
	d->remote_command = xstrdup(remote_command);
	r = destination_parse(dest, &d->dest, err);
	if (r >= 0 && host)
		r = remote_argv(host, &d->near_argv, err);
	if (r < 0) {
		streams_free(d, false);
		return r;
	}
	*ret = d;
	return 0;
}

/* ---- the connection ---- */

/* Queued in the pair: what comes first to the command that gets the other end. */
static int say_words(int fd, char *const *words)
{
	_cleanup_json_ json_object *list = json_object_new_array();
	_cleanup_free_ char *line = NULL;

	for (size_t i = 0; words[i]; i++)
		json_object_array_add(list, json_object_new_string(words[i]));
	line = xasprintf("%s\n", json_text(list));
	return fd_write_all(fd, line, strlen(line));
}

static void on_door_exit(void *userdata)
{
	Streams *d = userdata;

	error_free(TAKE_PTR(d->why));
	(void)child_explain(d->door, &d->why);
}

int streams_connect(Streams *d, bool start, sd_bus **ret)
{
	_cleanup_fd_ int ours = -1, theirs = -1;
	int pair[2], r;

	if (!d->near_argv)
		return client_connect_once(d->name, ret);
	d->door = child_free(d->door, false);
	error_free(TAKE_PTR(d->why));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = pair[1];
	r = say_words(ours, (char *[]){(char *)"door", (char *)d->name, (char *)(start ? "--start" : NULL), NULL});
	if (r >= 0)
		r = child_start(d->loop, d->near_argv, NULL, theirs, theirs, on_door_exit, d, &d->door, &d->why);
	return r < 0 ? r : client_bus(TAKE_FD(ours), false, ret);
}

const Error *streams_why(const Streams *d)
{
	return d->why;
}

/* ---- streams ---- */

static void tell_failure(Stream *s, bool busy, const Error *err)
{
	(void)sd_bus_call_method_async(s->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, "StreamFailed", NULL, NULL,
				       "sbss", s->id, (int)busy, err ? err->message : "it cannot be made",
				       err && err->hint ? err->hint : "");
}

/* A stream that is in use ends by itself; then nobody waits for it any more, and this is told in vain. */
static void ended(Stream *s, Child *child)
{
	_cleanup_error_ Error *err = NULL;

	s->all->running--;
	(void)child_explain(child, &err);
	tell_failure(s, child_busy_server(child), err);
}

static void on_far_exit(void *userdata)
{
	Stream *s = userdata;

	ended(s, s->far);
}

static void on_near_exit(void *userdata)
{
	Stream *s = userdata;

	ended(s, s->near);
}

static int start_far(Stream *s, int fd, Error **err)
{
	DestinationOptions how = {.ssh = getenv("VMFERRY_SSH"), .remote_command = s->all->remote_command};
	_cleanup_strv_ char **argv = NULL;
	int r;

	r = destination_argv(s->all->dest, &how, NULL, DESTINATION_COMMAND, &argv, err);
	if (r >= 0)
		r = child_start(s->all->loop, argv, NULL, fd, fd, on_far_exit, s, &s->far, err);
	if (r >= 0)
		s->all->running++;
	return r;
}

static int start_near(Stream *s, int fd, Error **err)
{
	int r = child_start(s->all->loop, s->all->near_argv, NULL, fd, fd, on_near_exit, s, &s->near, err);

	if (r >= 0)
		s->all->running++;
	return r;
}

static int on_taken(sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	(void)reply; /* a stream that is not taken is closed, and its command ends */
	(void)userdata;
	return 0;
}

static int make(Stream *s, Error **err)
{
	_cleanup_fd_ int target = -1, source = -1;
	Streams *d = s->all;
	int pair[2], r = 0;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return error_set(err, -errno, "socketpair: %m");
	target = pair[0];
	source = pair[1];
	/* The near command reads its words before a byte of the far one can be there. */
	if (d->near_argv)
		r = say_words(target, (char *[]){(char *)"door", (char *)d->name, s->id, NULL});
	if (r >= 0)
		r = start_far(s, target, err);
	if (r >= 0 && d->near_argv)
		return start_near(s, source, err);
	return r < 0 ? r
		     : sd_bus_call_method_async(s->bus, NULL, NULL, CONTROL_PATH, CONTROL_INTERFACE, "Stream", on_taken,
						NULL, "sh", s->id, source);
}

void streams_make(Streams *d, sd_bus *bus, const char *stream)
{
	_cleanup_error_ Error *err = NULL;
	Stream *s;

	if (!text_is_id(stream))
		return;
	s = xcalloc(1, sizeof(*s));
	s->all = d;
	s->bus = sd_bus_ref(bus);
	memcpy(s->id, stream, sizeof(s->id));
	s->next = d->streams;
	d->streams = s;
	if (make(s, &err) < 0)
		tell_failure(s, false, err);
}

/* ---- the end ---- */

Streams *streams_free(Streams *d, bool ended)
{
	uint64_t end = now_usec() + END_USEC, now;
	Stream *next;

	if (!d)
		return NULL;
	while (ended && d->running > 0 && (now = now_usec()) < end)
		if (sd_event_run(d->loop, end - now) < 0)
			break;
	for (Stream *s = d->streams; s; s = next) {
		next = s->next;
		child_leave(s->far, ended);
		child_leave(s->near, ended);
		sd_bus_unref(s->bus);
		free(s);
	}
	child_leave(d->door, true);
	error_free(d->why);
	strv_free(d->near_argv);
	destination_free(d->dest);
	free(d->remote_command);
	sd_event_unref(d->loop);
	free(d);
	return NULL;
}
