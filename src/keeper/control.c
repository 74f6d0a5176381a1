/* SPDX-License-Identifier: GPL-2.0-or-later */
/* org.vmferry.VM1 for people: a table of methods, no logic. docs/control.md. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keeper/upgrade.h"

#define CONTROL_PATH "/org/vmferry/vm"
#define CONTROL_INTERFACE "org.vmferry.VM1"
#define CLIENTS_MAX 64
#define THROTTLE_AUTO 80
#define THROTTLE_MAX 99
#define MULTIFD_CHANNELS_MAX 16
#define DEADLINE_MAX_MS (24 * 3600 * 1000UL)

/* ---- errors ---- */

static char *error_text(const Error *err)
{
	return xasprintf("%s%s%s", err ? err->message : "failed", err && err->hint ? "\n" : "",
			 err && err->hint ? err->hint : "");
}

int bus_error(sd_bus_error *error, const char *kind, const Error *err)
{
	_cleanup_free_ char *text = error_text(err), *name = xasprintf("org.vmferry.Error.%s", kind);

	return sd_bus_error_setf(error, name, "%s", text);
}

void bus_reply_error(sd_bus_message *m, const char *kind, const Error *err)
{
	_cleanup_free_ char *text = error_text(err), *name = xasprintf("org.vmferry.Error.%s", kind);

	sd_bus_reply_method_errorf(m, name, "%s", text);
}

int bus_error_read(sd_bus_message *reply, const char *what, Error **err)
{
	const sd_bus_error *e = sd_bus_message_get_error(reply);
	_cleanup_free_ char *message = NULL, *hint = NULL;
	const char *text, *newline;

	if (!e)
		return 0;
	if (sd_bus_error_has_name(e, SD_BUS_ERROR_NO_REPLY) || sd_bus_error_has_name(e, SD_BUS_ERROR_TIMEOUT)) {
		error_set(err, -ETIMEDOUT, "%s: no answer from the other host within the time limit", what);
		error_hint(err, "the limits are deadlines {} in host.conf");
		return -ETIMEDOUT;
	}
	text = e->message ? e->message : e->name;
	newline = strchr(text, '\n');
	message = text_clean(text, newline ? (size_t)(newline - text) : 512);
	error_set(err, -EREMOTEIO, "%s", message);
	if (newline) {
		hint = text_clean(newline + 1, 512);
		error_hint(err, "%s", hint);
	}
	return -EREMOTEIO;
}

static int refuse(sd_bus_error *error, const char *kind, const char *message)
{
	_cleanup_free_ char *name = xasprintf("org.vmferry.Error.%s", kind);

	return sd_bus_error_setf(error, name, "%s", message);
}

/* ---- methods ---- */

static int reply_json(sd_bus_message *m, json_object *o)
{
	int r = sd_bus_reply_method_return(m, "s", json_text(o));

	json_object_put(o);
	return r;
}

static int on_status(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)error;
	return stats_status(userdata, m);
}

static int on_show(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;

	if (!k->def)
		return refuse(error, "NotRunning", "there is no VM here yet");
	return reply_json(m, report_show(k));
}

static int on_stop(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;
	uint64_t timeout;
	int kill, r;

	r = sd_bus_message_read(m, "tb", &timeout, &kill);
	if (r < 0)
		return r;
	if (move_active(k->move))
		return refuse(error, "Busy", "a migration is under way\ncancel it first: vmferry cancel NAME");
	if (k->state != VM_RUNNING && !kill)
		return refuse(error, "NotRunning",
			      "the guest does not run, it cannot shut down\n"
			      "resume it first, or use vmferry kill");
	machine_qmp(k, "system_powerdown", NULL, NULL, NULL);
	wait_add(k, m, WAIT_OFF, timeout, kill);
	return 1;
}

static int on_kill(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;

	if (!k->qemu)
		return refuse(error, "NotRunning", "there is no QEMU here");
	if (move_active(k->move) && (move_committed(k->move->state) || move_is_target(k->move)))
		return refuse(error, "Busy", "the guest is the other host's, or may be: it cannot be killed now");
	wait_add(k, m, WAIT_OFF, 0, false);
	machine_kill(k);
	return 1;
}

static void on_stop_answer(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;

	(void)ret;
	if (error) {
		_cleanup_free_ char *text = xasprintf("QEMU: %s", error);

		wait_failed(k, WAIT_PAUSED, "org.vmferry.Error.Failed", text);
		return;
	}
	if (move_active(k->move) && move_committed(k->move->state)) {
		wait_failed(k, WAIT_PAUSED, "org.vmferry.Error.TooLate",
			    "too late: the guest has been handed over\nsee vmferry status for what became of it");
		return;
	}
	keeper_set_state(k, VM_PAUSED, "user");
	move_user_paused(k->move, true);
	keeper_lease_pause(k);
	wait_done(k, WAIT_PAUSED);
}

static void on_cont_answer(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;

	(void)ret;
	if (error) {
		_cleanup_free_ char *text = xasprintf("QEMU: %s", error);

		if (k->state == VM_PAUSED)
			keeper_lease_pause(k);
		wait_failed(k, WAIT_RUNNING, "org.vmferry.Error.Failed", text);
		return;
	}
	keeper_set_state(k, VM_RUNNING, "unpaused");
	move_user_paused(k->move, false);
	wait_done(k, WAIT_RUNNING);
}

static int set_running(Keeper *k, sd_bus_message *m, bool run, sd_bus_error *error)
{
	_cleanup_error_ Error *err = NULL;

	if (move_active(k->move) && !move_user_may_pause(k->move))
		return refuse(error, "Busy",
			      "the migration is at its switch-over: the guest cannot be paused or resumed now");
	if (k->state != VM_RUNNING && k->state != VM_PAUSED)
		return refuse(error, "NotRunning", "there is no guest to pause or resume");
	if (run && !keeper_owner(k))
		return refuse(error, "TooLate", "the journal says that the guest is not this host's");
	if (run && keeper_lease_resume(k, &err) < 0)
		return bus_error(error, "Failed", err);
	wait_add(k, m, run ? WAIT_RUNNING : WAIT_PAUSED, 0, false);
	/* A guest that sleeps is woken up (QAPI: system_wakeup); cont would do nothing. */
	machine_qmp(k, !run ? "stop" : streq(k->reason, "suspended") ? "system_wakeup" : "cont", NULL,
		    run ? on_cont_answer : on_stop_answer, k);
	return 1;
}

static int on_pause(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return set_running(userdata, m, false, error);
}

static int on_resume(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return set_running(userdata, m, true, error);
}

/* X(member of the JSON object, kind, member of MoveOptions) */
#define MOVE_OPTION_TABLE(X)                                                                                           \
	X(transport, string)                                                                                           \
	X(data_address, string)                                                                                        \
	X(remote_command, string)                                                                                      \
	X(ssh, string)                                                                                                 \
	X(ssh_auth_sock, string)                                                                                       \
	X(to_definition, string)                                                                                       \
	X(bandwidth, u64)                                                                                              \
	X(downtime, u64)                                                                                               \
	X(timeout, u64)                                                                                                \
	X(throttle, u64)                                                                                               \
	X(channels, u64)                                                                                               \
	X(conntrack, bool)                                                                                             \
	X(live, bool)

#define READ_string(o, options, name)                                                                                  \
	do {                                                                                                           \
		const char *s_;                                                                                        \
		if (json_get_string(o, #name, &s_))                                                                    \
			(options)->name = xstrdup(s_);                                                                 \
	} while (0)
#define READ_u64(o, options, name) (void)json_get_u64(o, #name, &(options)->name)
#define READ_bool(o, options, name) (void)json_get_bool(o, #name, &(options)->name)

static int read_options(sd_bus_message *m, MoveOptions *options, sd_bus_error *error)
{
	_cleanup_json_ json_object *o = NULL;
	const char *destination, *text;
	int r;

	r = sd_bus_message_read(m, "ss", &destination, &text);
	if (r < 0)
		return r;
	o = json_parse(text, strlen(text));
	if (!json_object_is_type(o, json_type_object))
		return refuse(error, "InvalidArgument", "the options are no JSON object");
	options->conntrack = options->live = true;
	options->throttle = THROTTLE_AUTO;
	options->destination = xstrdup(destination);
#define X(name, kind) READ_##kind(o, options, name);
	MOVE_OPTION_TABLE(X)
#undef X
	if (options->throttle > THROTTLE_MAX)
		return refuse(error, "InvalidArgument", "throttle is a percentage, 0 to 99");
	if (options->channels > MULTIFD_CHANNELS_MAX)
		return refuse(error, "InvalidArgument", "channels is a number, 1 to 16");
	for (size_t i = 0; i < N_HOST_DEADLINES; i++) {
		_cleanup_free_ char *path = xasprintf("deadlines.%s", host_deadline_names[i]);
		uint64_t ms;

		if (json_get_u64(o, path, &ms) && ms <= DEADLINE_MAX_MS)
			*host_deadline(&options->deadlines, i) = ms * USEC_PER_MSEC;
	}
	return 0;
}

static Client *calling(Keeper *k, sd_bus_message *m)
{
	Client *c = k->clients;

	while (c && c->bus != sd_bus_message_get_bus(m))
		c = c->next;
	return c;
}

static const char *kind_of(int error)
{
	return error == -EBUSY ? "Busy" : error == -EAGAIN ? "Later" : error == -EINVAL ? "InvalidArgument" : "Failed";
}

static int started(sd_bus_message *m, Keeper *k, bool check, int r, Error *err, sd_bus_error *error)
{
	if (r < 0)
		return bus_error(error, kind_of(r), err);
	return check ? 1 : sd_bus_reply_method_return(m, "s", k->move->id);
}

static int start_move(sd_bus_message *m, Keeper *k, bool check, sd_bus_error *error)
{
	_cleanup_(move_options_clear)
	MoveOptions options = {};
	_cleanup_error_ Error *err = NULL;
	Client *before;
	int r;

	r = read_options(m, &options, error);
	if (r < 0)
		return r;
	options.check_only = check;
	before = k->relay;
	if (startswith(options.destination, "direct:") && !move_active(k->move))
		k->relay = calling(k, m);
	r = move_start(k, &options, check ? m : NULL, &err);
	if (r < 0)
		k->relay = before;
	return started(m, k, check, r, err, error);
}

static int on_migrate(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return start_move(m, userdata, false, error);
}

static int on_check(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return start_move(m, userdata, true, error);
}

/* What is in the way of an upgrade is what a check is for. */
static int answer_refused(sd_bus_message *m, json_object *report)
{
	int r = sd_bus_reply_method_return(m, "s", json_text(report));

	json_object_put(report);
	return r;
}

static int start_upgrade(sd_bus_message *m, Keeper *k, bool check, sd_bus_error *error)
{
	_cleanup_(upgrade_options_clear)
	UpgradeOptions options = {.check_only = check, .live = true};
	_cleanup_json_ json_object *o = NULL;
	_cleanup_error_ Error *err = NULL;
	const char *text;
	int r;

	r = sd_bus_message_read(m, "s", &text);
	if (r < 0)
		return r;
	o = json_parse(text, strlen(text));
	if (!json_object_is_type(o, json_type_object))
		return refuse(error, "InvalidArgument", "the options are no JSON object");
	READ_string(o, &options, binary);
	READ_string(o, &options, to_definition);
	READ_string(o, &options, way);
	READ_string(o, &options, save_dir);
	READ_bool(o, &options, live);
	r = upgrade_start(k, &options, check ? m : NULL, &err);
	if (r < 0 && r != -EBUSY && r != -EAGAIN && check)
		return answer_refused(m, report_upgrade_refused(k, err));
	return started(m, k, check, r, err, error);
}

static int on_upgrade(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return start_upgrade(m, userdata, false, error);
}

static int on_check_upgrade(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return start_upgrade(m, userdata, true, error);
}

static int on_set(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_json_ json_object *o = NULL;
	_cleanup_error_ Error *err = NULL;
	uint64_t bandwidth, downtime, throttle;
	bool b, d, t;
	const char *text;
	int r;

	r = sd_bus_message_read(m, "s", &text);
	if (r < 0)
		return r;
	o = json_parse(text, strlen(text));
	b = json_get_u64(o, "bandwidth", &bandwidth) && bandwidth > 0;
	d = json_get_u64(o, "downtime", &downtime) && downtime > 0;
	t = json_get_u64(o, "throttle", &throttle) && throttle <= THROTTLE_MAX;
	if (!b && !d && !t)
		return refuse(error, "InvalidArgument",
			      "bandwidth (bytes/s), downtime (ms) or throttle (%) is what can be set");
	r = perform_set(userdata, b ? &bandwidth : NULL, d ? &downtime : NULL, t ? &throttle : NULL, &err);
	return r < 0 ? bus_error(error, "Failed", err) : sd_bus_reply_method_return(m, "");
}

static int on_cancel(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;

	if (!move_active(k->move) || move_is_target(k->move))
		return refuse(error, "NotRunning", "no migration is under way from this host");
	if (move_committed(k->move->state))
		return refuse(error, "TooLate",
			      "too late: the guest has been handed over\n"
			      "see vmferry status for what became of it");
	wait_add(k, m, WAIT_CANCEL, 0, false);
	move_cancel(k->move);
	return 1;
}

static int on_recover(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;
	const char *assume;
	int r;

	r = sd_bus_message_read(m, "s", &assume);
	if (r < 0)
		return r;
	if (k->move->state != MOVE_S_DOUBT && k->move->state != MOVE_S_WAIT)
		return refuse(error, "Failed", "nothing is in doubt here");
	if (streq(assume, "runs-there") || streq(assume, "runs-nowhere")) {
		log_warning("a person says: %s", assume);
		if (k->move->state == MOVE_S_WAIT)
			move_event(k->move, MOVE_EV_DEADLINE);
		move_event(k->move, streq(assume, "runs-there") ? MOVE_EV_ASSUME_THERE : MOVE_EV_ASSUME_NOWHERE);
	} else if (!*assume) {
		move_retry_now(k->move);
	} else {
		return refuse(error, "InvalidArgument", "assume is runs-there or runs-nowhere");
	}
	return reply_json(m, report_status(k));
}

static int on_relay(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	Keeper *k = userdata;

	if (!move_active(k->move) || !k->move->dest || !k->move->dest->direct)
		return refuse(error, "NotRunning", "no migration is under way from this host that needs a relay");
	direct_relay(k, calling(k, m));
	move_retry_now(k->move);
	return sd_bus_reply_method_return(m, "s", k->move->id);
}

static int on_stream(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_error_ Error *err = NULL;
	const char *stream;
	int fd, r;

	r = sd_bus_message_read(m, "sh", &stream, &fd);
	if (r < 0)
		return r;
	r = direct_stream(userdata, stream, fd, &err);
	return r < 0 ? bus_error(error, "Failed", err) : sd_bus_reply_method_return(m, "");
}

static int on_stream_failed(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_error_ Error *err = NULL;
	const char *stream, *message, *hint;
	int busy, r;

	(void)error;
	r = sd_bus_message_read(m, "sbss", &stream, &busy, &message, &hint);
	if (r < 0)
		return r;
	error_set(&err, -ECONNREFUSED, "%s", message);
	if (*hint)
		error_hint(&err, "%s", hint);
	direct_failed(userdata, stream, busy, err);
	return sd_bus_reply_method_return(m, "");
}

static int on_restart(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	_cleanup_error_ Error *err = NULL;

	if (keeper_restart(userdata, &err) < 0)
		return bus_error(error, "Busy", err);
	return sd_bus_reply_method_return(m, "");
}

static const sd_bus_vtable vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("Status", "", "s", on_status, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Show", "", "s", on_show, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Stop", "tb", "", on_stop, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Kill", "", "", on_kill, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Pause", "", "", on_pause, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Resume", "", "", on_resume, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Migrate", "ss", "s", on_migrate, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Check", "ss", "s", on_check, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Upgrade", "s", "s", on_upgrade, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("CheckUpgrade", "s", "s", on_check_upgrade, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Restart", "", "", on_restart, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Set", "s", "", on_set, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Cancel", "", "s", on_cancel, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Recover", "s", "s", on_recover, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Relay", "", "s", on_relay, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Stream", "sh", "", on_stream, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("StreamFailed", "sbss", "", on_stream_failed, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_SIGNAL("StreamWanted", "sb", 0),
	SD_BUS_SIGNAL("Progress", "s", 0),
	SD_BUS_SIGNAL("Log", "is", 0),
	SD_BUS_SIGNAL("Finished", "s", 0),
	SD_BUS_SIGNAL("StateChanged", "ss", 0),
	SD_BUS_VTABLE_END,
};

/* ---- connections ---- */

static void client_free(Client *c)
{
	for (Client **at = &c->keeper->clients; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	if (c->keeper->relay == c && c->keeper->leaving)
		c->keeper->relay = NULL;
	else if (c->keeper->relay == c)
		direct_relay(c->keeper, NULL);
	sd_bus_flush_close_unref(c->bus);
	free(c);
}

static int on_disconnected(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	(void)m;
	(void)error;
	client_free(userdata);
	return 0;
}

static int client_new(Keeper *k, int fd)
{
	static const sd_id128_t id = SD_ID128_MAKE(3a, 77, 0c, 51, 9e, 4b, 4d, 0e, b2, 60, 8f, 11, 5d, e3, 29, c8);
	Client *c = xcalloc(1, sizeof(*c));
	int r;

	c->keeper = k;
	c->next = k->clients;
	k->clients = c;
	r = sd_bus_new(&c->bus);
	if (r >= 0)
		r = sd_bus_set_fd(c->bus, fd, fd);
	if (r < 0)
		fd_close(fd);
	if (r >= 0)
		r = sd_bus_set_server(c->bus, true, id);
	if (r >= 0)
		r = sd_bus_set_anonymous(c->bus, true);
	if (r >= 0)
		r = sd_bus_set_trusted(c->bus, true);
	if (r >= 0)
		r = sd_bus_add_object_vtable(c->bus, NULL, CONTROL_PATH, CONTROL_INTERFACE, vtable, k);
	if (r >= 0)
		r = sd_bus_match_signal_async(c->bus, NULL, NULL, "/org/freedesktop/DBus/Local",
					      "org.freedesktop.DBus.Local", "Disconnected", on_disconnected, NULL, c);
	if (r >= 0)
		r = sd_bus_start(c->bus);
	if (r >= 0)
		r = sd_bus_attach_event(c->bus, k->event, SD_EVENT_PRIORITY_NORMAL);
	if (r < 0)
		client_free(c);
	return r;
}

static int on_connect(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Keeper *k = userdata;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	size_t n = 0;

	(void)source;
	(void)revents;
	for (Client *c = k->clients; c; c = c->next)
		n++;
	if (client < 0)
		return 0;
	if (n >= CLIENTS_MAX || !unix_peer_is_us(client))
		fd_close(client);
	else
		(void)client_new(k, client);
	return 0;
}

int control_open(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, "control");
	int r;

	k->control_fd = r = unix_listen(path, 0600);
	if (r >= 0)
		r = sd_event_add_io(k->event, &k->control_io, k->control_fd, EPOLLIN, on_connect, k);
	return r < 0 ? error_set(err, r, "cannot listen on %s: %s", path, strerror(-r)) : 0;
}

void control_close(Keeper *k)
{
	while (k->clients)
		client_free(k->clients);
	k->control_io = sd_event_source_disable_unref(k->control_io);
	k->control_fd = fd_close(k->control_fd);
}

int control_want_stream(Client *client, const char *stream, bool data)
{
	return sd_bus_emit_signal(client->bus, CONTROL_PATH, CONTROL_INTERFACE, "StreamWanted", "sb", stream, (int)data);
}

void control_emit_text(Keeper *k, const char *member, const char *text)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, member, "s", text);
}

void control_emit_log(Keeper *k, LogLevel level, const char *message)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, "Log", "is", (int)level, message);
}

void control_emit_state(Keeper *k)
{
	for (Client *c = k->clients; c; c = c->next)
		(void)sd_bus_emit_signal(c->bus, CONTROL_PATH, CONTROL_INTERFACE, "StateChanged", "ss",
					 vm_state_to_string(k->state), k->reason);
}
