/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "client.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "cli/local.h"

/* Between two attempts to reach a keeper that is coming back. */
#define RETRY_MSEC 50

/* Largest JSON text a keeper answers with. */
#define ANSWER_MAX (1024 * 1024)

static void message_unrefp(sd_bus_message **m)
{
	sd_bus_message_unref(*m);
}

int client_bus(int fd, bool fds, sd_bus **ret)
{
	_cleanup_bus_ sd_bus *bus = NULL;
	int r = sd_bus_new(&bus);

	if (r >= 0)
		r = sd_bus_set_fd(bus, fd, fd);
	if (r < 0) {
		fd_close(fd);
		return r;
	}
	/* From here the bus owns the fd. */
	r = sd_bus_set_anonymous(bus, true);
	if (r >= 0)
		r = sd_bus_negotiate_fds(bus, fds);
	if (r >= 0)
		r = sd_bus_start(bus);
	if (r >= 0)
		*ret = TAKE_PTR(bus);
	return r;
}

int client_connect_once(const char *name, sd_bus **ret)
{
	_cleanup_free_ char *path = runtime_path(name, "control");
	int fd = unix_connect(path);

	return fd < 0 ? fd : client_bus(fd, true, ret);
}

int client_status(sd_bus *bus, uint64_t usec, json_object **ret)
{
	sd_bus_message *call = NULL, *reply = NULL;
	const char *text;
	int r;

	r = sd_bus_message_new_method_call(bus, &call, NULL, CONTROL_PATH, CONTROL_INTERFACE, "Status");
	if (r >= 0)
		r = sd_bus_call(bus, call, usec, NULL, &reply);
	if (r >= 0)
		r = sd_bus_message_read(reply, "s", &text);
	if (r >= 0)
		r = client_json("Status", text, ret, NULL);
	sd_bus_message_unref(reply);
	sd_bus_message_unref(call);
	return r;
}

/* One that ends may take a connection and then close it unread: nothing was asked yet, so it is as if nobody listened. */
static bool nobody_listens(int r)
{
	return r == -ECONNREFUSED || r == -ECONNRESET || r == -EPIPE;
}

static int explain(int r, const char *name, Error **err)
{
	_cleanup_free_ char *definition = local_definition_path(name);
	_cleanup_json_ json_object *moved = local_moved(name);

	if (r == -EACCES || r == -EPERM) {
		error_set(err, r, "cannot reach its keeper: %s", strerror(-r));
		error_hint(err, "the control socket is root's: try sudo");
	} else if (nobody_listens(r)) {
		error_set(err, -ECONNREFUSED, "its keeper is gone and did not come back");
		error_hint(err, "the guest may still run; vmferry start %s brings the keeper back", name);
		r = -ECONNREFUSED;
	} else if (r != -ENOENT) {
		error_set(err, r, "cannot reach its keeper: %s", strerror(-r));
	} else if (moved) {
		r = local_moved_error(moved, name, err);
		error_hint(err, "ask there: vmferry -H ssh://HOST status %s", name);
	} else if (definition) {
		r = error_set(err, -ESRCH, "%s is not running", name);
		error_hint(err, "vmferry start %s", name);
	} else {
		r = local_missing(err);
	}
	return r;
}

int client_connect(const char *name, sd_bus **ret, Error **err)
{
	uint64_t end = now_usec() + KEEPER_BACK_USEC;
	int r;

	while (nobody_listens(r = client_connect_once(name, ret)) && now_usec() < end)
		poll(NULL, 0, RETRY_MSEC);
	return r < 0 ? explain(r, name, err) : 0;
}

int client_bus_error(const sd_bus_error *e, Error **err)
{
	static const struct {
		const char *name;
		int code;
	} names[] = {
		{"org.vmferry.Error.InvalidArgument", -EINVAL},
		{"org.vmferry.Error.NotRunning", -ESRCH},
		{"org.vmferry.Error.Busy", -EBUSY},
		{"org.vmferry.Error.Later", -EAGAIN},
		{"org.vmferry.Error.TooLate", -EALREADY},
		{"org.vmferry.Error.NotFound", -ENOENT},
		{"org.vmferry.Error.Denied", -EPERM},
		{SD_BUS_ERROR_NO_REPLY, -ECONNRESET},
		{SD_BUS_ERROR_DISCONNECTED, -ECONNRESET},
		{"System.Error.ECONNRESET", -ECONNRESET},
		{"System.Error.EPIPE", -ECONNRESET},
		{"System.Error.ENOTCONN", -ECONNRESET},
	};
	const char *message = e->message ? e->message : e->name, *rest = strchr(message, '\n');
	_cleanup_free_ char *first = strndup(message, strcspn(message, "\n"));
	int code = -EIO;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (sd_bus_error_has_name(e, names[i].name))
			code = names[i].code;
	if (code == -ECONNRESET)
		return error_set(err, code, "its keeper went away before it answered");
	error_set(err, code, "%s", first && *first ? first : "the keeper gave no reason");
	if (rest && rest[1])
		error_hint(err, "%s", rest + 1);
	return code;
}

static int call_once(sd_bus *bus, const char *method, char **ret, Error **err, const char *types, va_list ap)
{
	_cleanup_(message_unrefp)
	sd_bus_message *call = NULL, *reply = NULL;
	_cleanup_(sd_bus_error_free)
	sd_bus_error error = SD_BUS_ERROR_NULL;
	const char *text;
	int r;

	r = sd_bus_message_new_method_call(bus, &call, NULL, CONTROL_PATH, CONTROL_INTERFACE, method);
	if (r >= 0 && types)
		r = sd_bus_message_appendv(call, types, ap);
	if (r < 0)
		return error_set(err, r, "cannot ask its keeper: %s", strerror(-r));
	r = sd_bus_call(bus, call, UINT64_MAX, &error, &reply);
	if (r < 0 && sd_bus_error_is_set(&error))
		return client_bus_error(&error, err);
	if (r >= 0 && ret) {
		r = sd_bus_message_read(reply, "s", &text);
		if (r >= 0)
			*ret = xstrdup(text);
	}
	return r < 0 ? error_set(err, r, "%s: %s", method, strerror(-r)) : 0;
}

int client_call(const char *name, const char *method, bool query, char **ret, Error **err, const char *types, ...)
{
	uint64_t end = now_usec() + KEEPER_BACK_USEC;

	for (;;) {
		_cleanup_bus_ sd_bus *bus = NULL;
		_cleanup_error_ Error *error = NULL;
		va_list ap;
		int r;

		r = client_connect(name, &bus, err);
		if (r < 0)
			return r;
		va_start(ap, types);
		r = call_once(bus, method, ret, &error, types, ap);
		va_end(ap);
		if (r >= 0)
			return 0;
		/* More than once: the socket of a keeper that is dying may still take a connection. */
		if (r == -ECONNRESET && query && now_usec() < end) {
			poll(NULL, 0, RETRY_MSEC);
			continue;
		}
		error_set(err, r, "%s", error->message);
		if (error->hint)
			error_hint(err, "%s", error->hint);
		else if (r == -ECONNRESET)
			error_hint(err, "vmferry status %s tells what became of it", name);
		return r;
	}
}

int client_json(const char *method, const char *text, json_object **ret, Error **err)
{
	size_t len = strlen(text);
	json_object *o = len <= ANSWER_MAX ? json_parse(text, len) : NULL;

	if (!json_object_is_type(o, json_type_object)) {
		json_object_put(o);
		return error_set(err, -EBADMSG, "its keeper's answer to %s is no JSON object", method);
	}
	*ret = o;
	return 0;
}

int client_query(const char *name, const char *method, json_object **ret, Error **err)
{
	_cleanup_free_ char *text = NULL;
	int r;

	r = client_call(name, method, true, &text, err, NULL);
	return r < 0 ? r : client_json(method, text, ret, err);
}
