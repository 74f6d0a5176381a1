/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A keeper's control socket with canned answers, for tests of the command line.
 *
 * fake-keeper SOCKET SCRIPT CALLS: SCRIPT is a JSON object, CALLS gets a line [method, argument...] for each call.
 *
 *   "answers": {METHOD: text or object}     what a method returns; methods that answer nothing need none
 *   "errors":  {METHOD: [NAME, message]}    org.vmferry.Error.NAME instead
 *   "instead": {METHOD: [member...]}        this signal and no answer
 *   "signals": [[member, argument...]...]   sent after Migrate
 *   "cancel":  [[member, argument...]...]   sent after Cancel
 *   METHOD:    [[member, argument...]...]   sent after that one
 *
 * Signals that are none: ["die"] ends the keeper, ["become", SCRIPT] makes it a new process with another script.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>
#include <systemd/sd-id128.h>
#include <unistd.h>

#define PATH "/org/vmferry/vm"
#define INTERFACE "org.vmferry.VM1"
#define BUSES_MAX 64

static char **args;
static json_object *script;
static sd_event *loop;
static sd_bus *buses[BUSES_MAX];
static size_t n_buses;
static FILE *calls;

static void check(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "fake-keeper: %s: %s\n", what, strerror(-r));
	exit(1);
}

static json_object *member(json_object *o, const char *name)
{
	json_object *value = NULL;

	json_object_object_get_ex(o, name, &value);
	return value;
}

static const char *text_of(json_object *o)
{
	return json_object_is_type(o, json_type_string) ? json_object_get_string(o)
							: json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
}

static void emit(json_object *signal)
{
	const char *name = json_object_get_string(json_object_array_get_idx(signal, 0));
	json_object *first = json_object_array_get_idx(signal, 1), *second = json_object_array_get_idx(signal, 2);

	if (strcmp(name, "die") == 0)
		exit(0);
	for (size_t i = 0; i < n_buses && strcmp(name, "become") != 0; i++) {
		if (second)
			sd_bus_emit_signal(buses[i], PATH, INTERFACE, name, "is", json_object_get_int(first),
					   text_of(second));
		else
			sd_bus_emit_signal(buses[i], PATH, INTERFACE, name, "s", text_of(first));
		sd_bus_flush(buses[i]);
	}
	if (strcmp(name, "become") == 0) {
		execl("/proc/self/exe", args[0], args[1], json_object_get_string(first), args[3], NULL);
		exit(1);
	}
}

static int emit_all(sd_event_source *source, void *userdata)
{
	json_object *list = userdata;

	sd_event_source_unref(source);
	for (size_t i = 0; i < json_object_array_length(list); i++)
		emit(json_object_array_get_idx(list, i));
	return 0;
}

/* After the answer that is on its way. */
static void emit_later(const char *name)
{
	json_object *list = member(script, name);
	sd_event_source *source;

	if (list)
		check(sd_event_add_defer(loop, &source, emit_all, list), "defer");
}

static void record(sd_bus_message *m, const char *method, json_object *call)
{
	const char *contents = NULL;
	char type;

	json_object_array_add(call, json_object_new_string(method));
	while (sd_bus_message_peek_type(m, &type, &contents) > 0) {
		const char *s;
		uint64_t t;
		int b;

		if (type == 's' && sd_bus_message_read(m, "s", &s) > 0)
			json_object_array_add(call, json_object_new_string(s));
		else if (type == 't' && sd_bus_message_read(m, "t", &t) > 0)
			json_object_array_add(call, json_object_new_uint64(t));
		else if (type == 'b' && sd_bus_message_read(m, "b", &b) > 0)
			json_object_array_add(call, json_object_new_boolean(b));
		else
			exit(1);
	}
	fprintf(calls, "%s\n", json_object_to_json_string(call));
	fflush(calls);
}

static int on_call(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	const char *method = sd_bus_message_get_member(m);
	json_object *call = json_object_new_array(), *answer = member(member(script, "answers"), method);
	json_object *refusal = member(member(script, "errors"), method),
		    *instead = member(member(script, "instead"), method);
	char name[128];
	int r;

	(void)userdata;
	record(m, method, call);
	json_object_put(call);
	if (instead) {
		emit(instead);
		r = 0;
	} else if (refusal) {
		snprintf(name, sizeof(name), "org.vmferry.Error.%s", text_of(json_object_array_get_idx(refusal, 0)));
		sd_bus_error_set(error, name, text_of(json_object_array_get_idx(refusal, 1)));
		r = sd_bus_reply_method_error(m, error);
	} else {
		r = sd_bus_reply_method_return(m, answer ? "s" : NULL, answer ? text_of(answer) : NULL);
	}
	if (strcmp(method, "Migrate") == 0)
		emit_later("signals");
	if (strcmp(method, "Cancel") == 0)
		emit_later("cancel");
	emit_later(method);
	return r < 0 ? r : 1;
}

static int on_message(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return sd_bus_message_is_method_call(m, INTERFACE, NULL) ? on_call(m, userdata, error) : 0;
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	sd_id128_t id;
	sd_bus *bus;

	(void)source;
	(void)revents;
	(void)userdata;
	if (client < 0 || n_buses == BUSES_MAX)
		exit(1);
	check(sd_bus_new(&bus), "new");
	check(sd_bus_set_fd(bus, client, client), "fd");
	check(sd_id128_randomize(&id), "id");
	check(sd_bus_set_server(bus, 1, id), "server");
	check(sd_bus_set_anonymous(bus, 1), "anonymous");
	check(sd_bus_set_trusted(bus, 1), "trusted");
	check(sd_bus_add_filter(bus, NULL, on_message, NULL), "filter");
	if (sd_bus_start(bus) < 0) { /* gone again */
		sd_bus_unref(bus);
		return 0;
	}
	check(sd_bus_attach_event(bus, loop, 0), "attach");
	buses[n_buses++] = bus;
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	args = argv;
	if (argc != 4 || fd < 0 || strlen(argv[1]) >= sizeof(sa.sun_path))
		return 2;
	script = json_object_from_file(argv[2]);
	calls = fopen(argv[3], "ae");
	if (!script || !calls)
		return 2;
	memcpy(sa.sun_path, argv[1], strlen(argv[1]));
	unlink(argv[1]);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 16) < 0)
		return 1;
	check(sd_event_new(&loop), "event");
	check(sd_event_add_io(loop, NULL, fd, EPOLLIN, on_connection, NULL), "listen");
	return sd_event_loop(loop) < 0;
}
