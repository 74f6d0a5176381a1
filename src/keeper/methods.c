/* SPDX-License-Identifier: GPL-2.0-or-later */
/* org.vmferry.VM1 for people: a table of methods, no logic. docs/control.md. */
#include <errno.h>

#include "keeper/upgrade.h"

#define THROTTLE_AUTO 80 /* percent */
#define THROTTLE_MAX 99
#define MULTIFD_CHANNELS_MAX 16
#define DEADLINE_MAX_MS (24 * 3600 * 1000UL)

static int refuse(sd_bus_error *error, const char *kind, const char *message)
{
	_cleanup_free_ char *name = xasprintf("org.vmferry.Error.%s", kind);

	return sd_bus_error_setf(error, name, "%s", message);
}

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
	if (move_active(k->move) && k->move->state != MOVE_U_RESUMING &&
	    (move_committed(k->move->state) || move_is_target(k->move)))
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

static int options_in(const char *text, json_object **ret, sd_bus_error *error)
{
	*ret = json_parse(text, strlen(text));
	if (!json_object_is_type(*ret, json_type_object))
		return refuse(error, "InvalidArgument", "the options are no JSON object");
	return 0;
}

static int read_options(sd_bus_message *m, MoveOptions *options, sd_bus_error *error)
{
	_cleanup_json_ json_object *o = NULL;
	const char *destination, *text;
	int r;

	r = sd_bus_message_read(m, "ss", &destination, &text);
	if (r < 0)
		return r;
	r = options_in(text, &o, error);
	if (r < 0)
		return r;
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

/* Which connection a call came on. */
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
	r = options_in(text, &o, error);
	if (r < 0)
		return r;
	READ_string(o, &options, binary);
	READ_string(o, &options, to_definition);
	READ_string(o, &options, way);
	READ_string(o, &options, save_dir);
	READ_bool(o, &options, live);
	r = upgrade_start(k, &options, check ? m : NULL, &err);
	if (r < 0 && r != -EBUSY && r != -EAGAIN && check) /* what is in the way is what a check is for */
		return reply_json(m, report_upgrade_refused(k, err));
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
	r = options_in(text, &o, error);
	if (r < 0)
		return r;
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
	if (k->move->state != MOVE_S_DOUBT && k->move->state != MOVE_S_RETAKE && k->move->state != MOVE_S_WAIT)
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

const sd_bus_vtable control_methods[] = {
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
