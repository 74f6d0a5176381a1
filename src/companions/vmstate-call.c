/* SPDX-License-Identifier: GPL-2.0-or-later */
/* start, stop and status: helpers are called by their unique name, for all own or wait for the same one. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/process.h"
#include "companions/vmstate.h"

#define CALL_USEC 10000000
#define READY_FD 3

typedef struct Helper {
	char *owner, *id;
	uint32_t migrated, late, followed;
} Helper;

static void helper_done(Helper *h)
{
	free(h->owner);
	free(h->id);
}

static uint32_t property(sd_bus *bus, const char *owner, const char *interface, const char *name)
{
	uint32_t value = 0;

	(void)sd_bus_get_property_trivial(bus, owner, VMSTATE_PATH, interface, name, NULL, 'u', &value);
	return value;
}

/* The policy of the bus says who may (data/org.qemu.VMState1.conf): say what its refusal means. */
static int refused(const sd_bus_error *error, int r, Error **err, const char *what)
{
	if (!sd_bus_error_has_name(error, SD_BUS_ERROR_ACCESS_DENIED))
		return error_set(err, r, "Cannot %s: %s", what, error->message ? error->message : strerror(-r));
	error_set(err, -EACCES, "Cannot %s: not permitted", what);
	error_hint(err, "root alone may, see org.qemu.VMState1.conf");
	return -EACCES;
}

/* Who owns or waits for the name. */
static int owners(sd_bus *bus, char ***ret, Error **err)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	sd_bus_message *reply = NULL;
	int r = sd_bus_call_method(bus, "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
				   "ListQueuedOwners", &error, &reply, "s", VMSTATE_NAME);

	*ret = NULL;
	if (r >= 0)
		r = sd_bus_message_read_strv(reply, ret);
	else if (sd_bus_error_has_name(&error, "org.freedesktop.DBus.Error.NameHasNoOwner"))
		r = 0;
	sd_bus_message_unref(reply);
	return r < 0 ? refused(&error, r, err, "ask the bus for helpers") : 0;
}

/* The helper behind an owner. Return: 1 when it says who it is, 0 when not, or -EACCES with @err set. */
static int ask(sd_bus *bus, const char *owner, Helper *ret, Error **err)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	char *id = NULL;
	int r = sd_bus_get_property_string(bus, owner, VMSTATE_PATH, VMSTATE_NAME, "Id", &error, &id);

	if (sd_bus_error_has_name(&error, SD_BUS_ERROR_ACCESS_DENIED))
		return refused(&error, r, err, "ask a helper who it is");
	if (r < 0)
		return 0;
	*ret = (Helper){.owner = xstrdup(owner), .id = id};
	return 1;
}

/* Return: 1 when it is there, 0 when not, or negative errno with @err set. */
static int find(sd_bus *bus, const char *id, Helper *ret, Error **err)
{
	_cleanup_strv_ char **all = NULL;
	int r = owners(bus, &all, err);

	for (size_t i = 0; r >= 0 && all && all[i]; i++) {
		_cleanup_(helper_done) Helper h = {};

		r = ask(bus, all[i], &h, err);
		if (r <= 0 || !streq(h.id, id))
			continue;
		*ret = h;
		h = (Helper){};
		return 1;
	}
	return r < 0 ? r : 0;
}

static int quit(sd_bus *bus, const Naming *naming, Helper *h, Error **err)
{
	_cleanup_(sd_bus_error_free) sd_bus_error error = SD_BUS_ERROR_NULL;
	int r;

	h->migrated = property(bus, h->owner, naming->interface, "NumMigratedEntries");
	r = sd_bus_call_method(bus, h->owner, VMSTATE_PATH, naming->interface, "Quit", &error, NULL, NULL);
	return r < 0 ? refused(&error, r, err, "have it quit") : r;
}

static int open_bus(const Naming *naming, sd_bus **ret, Error **err)
{
	int r = vmstate_bus_open(naming, ret, err);

	if (r >= 0)
		(void)sd_bus_set_method_call_timeout(*ret, CALL_USEC);
	return r;
}

/* Return: 1 when one was there and has been told to quit, 0 when not, or negative errno with @err set. */
static int end_helper(const Naming *naming, Helper *ret, Error **err)
{
	sd_bus *bus = NULL;
	int r = open_bus(naming, &bus, err);

	if (r >= 0)
		r = find(bus, naming->id, ret, err);
	if (r > 0) {
		r = quit(bus, naming, ret, err);
		r = r < 0 ? r : 1;
	}
	sd_bus_flush_close_unref(bus);
	return r;
}

int vmstate_stop(const Tool *tool, Error **err)
{
	_cleanup_(naming_done) Naming naming = {};
	_cleanup_(helper_done) Helper h = {};
	int r = naming_read(tool, &naming, err);

	if (r >= 0)
		r = end_helper(&naming, &h, err);
	if (r < 0)
		return r;
	if (r == 0)
		return error_set(err, -ESRCH, "there is no helper %s on the bus", naming.id);
	tool_say(tool, json_build("event", "s", "stopped", "id", "s", h.id, "entries", "u", (uint64_t)h.migrated, NULL),
		 "%s: %" PRIu32 " %s migrated", h.id, h.migrated, h.migrated == 1 ? "entry" : "entries");
	return 0;
}

/* As the helper says them, see counters.h. */
static void add_counters(sd_bus *bus, const Helper *h, const char *interface, json_object *o)
{
	_cleanup_free_ char *text = NULL;
	json_object *counters;

	if (sd_bus_get_property_string(bus, h->owner, VMSTATE_PATH, interface, "Counters", NULL, &text) < 0)
		return;
	counters = json_parse(text, strlen(text));
	if (!counters)
		return;
	json_object_object_foreach(counters, key, value)
		json_object_object_add(o, key, json_object_get(value));
	json_object_put(counters);
}

static void print(const Tool *tool, sd_bus *bus, Helper *h)
{
	const char *interface = startswith(h->id, VMSTATE_PROXMOX_ID) ? VMSTATE_PROXMOX : VMSTATE_OURS;

	h->migrated = property(bus, h->owner, interface, "NumMigratedEntries");
	h->late = property(bus, h->owner, interface, "NumLateEntries");
	h->followed = property(bus, h->owner, interface, "NumFollowedEntries");
	if (tool->json) {
		json_object *o = json_build("id", "s", h->id, "owner", "s", h->owner, "followed", "u", (uint64_t)h->followed,
					    "migrated", "u", (uint64_t)h->migrated, "late", "u", (uint64_t)h->late, NULL);

		add_counters(bus, h, interface, o);
		printf("%s\n", json_text(o));
		json_object_put(o);
	} else {
		printf("%-32s %-10s %8" PRIu32 " followed %8" PRIu32 " migrated %8" PRIu32 " late\n", h->id, h->owner, h->followed,
		       h->migrated, h->late);
	}
}

static int print_all(const Tool *tool, sd_bus *bus, const char *id, size_t *ret_n, Error **err)
{
	_cleanup_strv_ char **all = NULL;
	int r = owners(bus, &all, err);

	*ret_n = 0;
	for (size_t i = 0; r >= 0 && all && all[i]; i++) {
		_cleanup_(helper_done) Helper h = {};

		r = ask(bus, all[i], &h, err);
		if (r <= 0 || (id && !streq(h.id, id)))
			continue;
		print(tool, bus, &h);
		(*ret_n)++;
	}
	return r;
}

int vmstate_status(const Tool *tool, Error **err)
{
	_cleanup_(naming_done) Naming naming = {.bus = tool_text(tool, "bus", NULL)};
	sd_bus *bus = NULL;
	size_t n = 0;
	int r = tool->args ? naming_read(tool, &naming, err) : 0;

	if (r >= 0)
		r = open_bus(&naming, &bus, err);
	if (r >= 0)
		r = print_all(tool, bus, naming.id, &n, err);
	sd_bus_flush_close_unref(bus);
	if (r >= 0 && naming.id && !n)
		return error_set(err, -ESRCH, "there is no helper %s on the bus", naming.id);
	return r;
}

/* The same words as a `run` in the background. */
static char **run_words(const Tool *tool)
{
	char **words = NULL;

	strv_push(&words, process_own_binary());
	strv_push(&words, xstrdup("run"));
	json_object_object_foreach(tool->options, key, value)
	{
		if (json_object_is_type(value, json_type_array))
			for (size_t i = 0; i < json_object_array_length(value); i++)
				strv_push(&words, xasprintf("--%s=%s", key, json_object_get_string(
								json_object_array_get_idx(value, i))));
		else if (json_object_is_type(value, json_type_boolean))
			strv_push(&words, xasprintf("--%s", key));
		else
			strv_push(&words, xasprintf("--%s=%s", key, json_object_get_string(value)));
	}
	strv_push(&words, xasprintf("--ready-fd=%d", READY_FD));
	strv_push(&words, xstrdup(tool->args[0]));
	return words;
}

/* Start it and wait until it says that it is ready, or ends. Return: 0, or negative errno with @err set. */
static int spawn(const Tool *tool, Error **err)
{
	_cleanup_strv_ char **words = run_words(tool);
	_cleanup_fd_ int ready = -1, its = -1;
	char answer[8];
	int pipes[2];
	pid_t pid;

	if (pipe2(pipes, O_CLOEXEC) < 0)
		return error_set(err, -errno, "Cannot make a pipe: %m");
	ready = pipes[0];
	its = pipes[1];
	const SpawnFd fds[] = {{its, READY_FD}, {STDERR_FILENO, STDERR_FILENO}};
	const Spawn how = {.argv = words, .fds = fds, .n_fds = ARRAY_SIZE(fds), .setsid = true};

	pid = process_spawn(&how, NULL, err);
	if (pid < 0)
		return (int)pid;
	its = fd_close(its);
	if (fd_read_all(ready, answer, 6) != 6)
		return error_set(err, -EIO, "the helper of %s has ended", tool->args[0]);
	return 0;
}

int vmstate_start(const Tool *tool, Error **err)
{
	_cleanup_(naming_done) Naming naming = {};
	_cleanup_(helper_done) Helper left = {};
	int r = naming_read(tool, &naming, err);

	if (r >= 0)
		r = end_helper(&naming, &left, err);
	if (r > 0)
		tool_say(tool, json_build("event", "s", "warning", "what", "s", "left-over", "id", "s", left.id, NULL),
			 "warning: a helper of %s was left by an earlier run: stopped", left.id);
	if (r >= 0)
		r = spawn(tool, err);
	if (r >= 0)
		tool_say(tool, json_build("event", "s", "started", "id", "s", naming.id, NULL), "%s is ready", naming.id);
	return r;
}
