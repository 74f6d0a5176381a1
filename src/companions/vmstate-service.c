/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The D-Bus object, on the manager's bus and behind the door to QEMU, and its life. What is saved and loaded: vmstate-state.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "companions/vmstate-door.h"
#include "companions/vmstate-state.h"
#include "companions/vmstate.h"

#define CARE_USEC USEC_PER_SEC
#define NICE -10

typedef struct Service {
	const Tool *tool;
	Naming naming;
	CtSelect *select;
	sd_event *event;
	sd_bus *bus;
	State *state;
	Door *door; /* between QEMU and us; NULL: the manager added the object, on the bus */
	int qemu;   /* pidfd, or -1 */
	sd_event_source *qemu_exit, *care;
	uint64_t wait_msec, max_entries;
	uint64_t laid_down; /* state_changes() by then */
	bool added;	    /* our object is in QEMU */
	uint64_t bus_late;  /* loads that the manager's bus did not wait for */
	DoorLate late;	    /* of doors before this one */
} Service;

static void service_done(Service *s)
{
	sd_event_source_disable_unref(s->qemu_exit);
	sd_event_source_disable_unref(s->care);
	door_free(s->door, false);
	state_free(s->state);
	ct_select_free(s->select);
	sd_bus_flush_close_unref(s->bus);
	sd_event_unref(s->event);
	naming_done(&s->naming);
	fd_close(s->qemu);
}

/* ---- on the manager's bus ---- */

static int on_save(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	static uint8_t data[VMSTATE_MAX];
	sd_bus_message *reply = NULL;
	Service *s = userdata;
	size_t len = state_save(s->state, data);
	int r = sd_bus_message_new_method_return(m, &reply);

	if (r >= 0)
		r = sd_bus_message_append_array(reply, 'y', data, len);
	if (r >= 0)
		r = sd_bus_send(s->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static int on_load(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Service *s = userdata;
	const _Atomic uint64_t until = now_usec() + VMSTATE_LOAD_USEC(s->wait_msec);
	const void *data = NULL;
	size_t len = 0;

	if (sd_bus_message_read_array(m, 'y', &data, &len) >= 0)
		s->bus_late += !state_load(s->state, data, len, &until);
	return sd_bus_reply_method_return(m, NULL);
}

/* ---- the object ---- */

static int get_id(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface,
		  _unused_ const char *property, sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	const Service *s = userdata;

	return sd_bus_message_append(reply, "s", s->naming.id);
}

static int get_followed(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface,
			_unused_ const char *property, sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	const Service *s = userdata;
	StateReport report;

	state_report(s->state, &report);
	return sd_bus_message_append(reply, "u", (uint32_t)report.followed);
}

/* Who asks is told of all of them. */
static int get_migrated(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface, const char *property,
			sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	const Service *s = userdata;
	StateReport report;

	state_finish(s->state);
	state_report(s->state, &report);
	return sd_bus_message_append(reply, "u", streq(property, "NumLateEntries") ? report.late : report.migrated);
}

/* A door counts whom it has let through without us; we may have come to it later all the same. */
static Counters counters(const Service *s)
{
	DoorLate late = {};
	StateReport report;
	Counters *c = &report.count;
	uint64_t loads;

	if (s->door)
		door_late(s->door, &late);
	state_report(s->state, &report);
	loads = c->imports.success + c->imports.error;
	c->exports.error = s->late.save + late.save;
	c->waits.timeout = s->late.load + late.load + s->bus_late;
	c->waits.completed = loads > c->waits.timeout ? loads - c->waits.timeout : 0;
	return *c;
}

static int get_counters(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface,
			_unused_ const char *property, sd_bus_message *reply, void *userdata, _unused_ sd_bus_error *error)
{
	json_object *o = json_object_new_object();
	Counters c = counters(userdata);
	int r;

	counters_extend(o, &c);
	r = sd_bus_message_append(reply, "s", json_text(o));
	json_object_put(o);
	return r;
}

static void take_out(Service *s)
{
	_cleanup_error_ Error *err = NULL;

	if (s->added && vmstate_object_remove(&s->naming, &err) < 0 && err->code != -ENOTCONN)
		log_warning("%s", err->message);
	s->added = false;
}

/* Who told it to may migrate the VM without it as soon as it has its answer. */
static int on_quit(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	Service *s = userdata;

	log_info("told to quit");
	take_out(s);
	(void)sd_event_exit(s->event, 0);
	return sd_bus_reply_method_return(m, NULL);
}

static const sd_bus_vtable vmstate_table[] = VMSTATE_TABLE(get_id, on_save, on_load);
static const sd_bus_vtable helper_table[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("NumMigratedEntries", "u", get_migrated, 0, 0),
	SD_BUS_PROPERTY("NumLateEntries", "u", get_migrated, 0, 0),
	SD_BUS_PROPERTY("NumFollowedEntries", "u", get_followed, 0, 0),
	SD_BUS_PROPERTY("Counters", "s", get_counters, 0, 0),
	SD_BUS_METHOD("Quit", "", "", on_quit, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

static int export(Service *s, Error **err)
{
	int r = sd_bus_add_object_vtable(s->bus, NULL, VMSTATE_PATH, VMSTATE_NAME, vmstate_table, s);

	if (r >= 0)
		r = sd_bus_add_object_vtable(s->bus, NULL, VMSTATE_PATH, s->naming.interface, helper_table, s);
	if (r >= 0)
		r = sd_bus_attach_event(s->bus, s->event, 0);
	/* Each VM's helper owns the same name; QEMU asks all that wait for it. */
	if (r >= 0)
		r = sd_bus_request_name(s->bus, VMSTATE_NAME, SD_BUS_NAME_QUEUE);
	if (r >= 0)
		return 0;
	error_set(err, r, "Cannot own %s on the bus: %s", VMSTATE_NAME, strerror(-r));
	error_hint(err, "root alone may, where the bus has the policy org.qemu.VMState1.conf");
	return r;
}

/* ---- life ---- */

static int on_qemu_exit(_unused_ sd_event_source *source, _unused_ int fd, _unused_ uint32_t revents, void *userdata)
{
	Service *s = userdata;

	log_info("QEMU has ended");
	s->added = false;
	return sd_event_exit(s->event, 0);
}

static int watch_signals(Service *s)
{
	static const int signals[] = {SIGTERM, SIGINT};

	return tool_signals(s->event, signals, ARRAY_SIZE(signals), NULL, NULL);
}

/* ---- the door ---- */

static size_t door_save(void *userdata, uint8_t *to)
{
	Service *s = userdata;

	return state_save(s->state, to);
}

static size_t door_copy(void *userdata, uint8_t *to)
{
	Service *s = userdata;

	return state_copy(s->state, to);
}

static bool door_load(void *userdata, const uint8_t *data, size_t len, const _Atomic uint64_t *until)
{
	Service *s = userdata;

	return state_load(s->state, data, len, until);
}

static void on_door_gone(void *userdata);

static int open_door(Service *s, Error **err)
{
	static const DoorHandlers handlers = {.save = door_save, .copy = door_copy, .load = door_load, .gone = on_door_gone};
	static uint8_t empty[CT_WIRE_HEADER];
	DoorSpec spec = {
		.id = s->naming.id,
		.none = "[0]\n",
		.none_len = 4,
		.save_usec = VMSTATE_SAVE_USEC(s->wait_msec),
		.load_usec = VMSTATE_LOAD_USEC(s->wait_msec),
	};

	if (tool_format(s->tool, FORMAT_WIRE) == FORMAT_WIRE) {
		ct_wire_header(empty, sizeof(empty), 0);
		spec.none = empty;
		spec.none_len = sizeof(empty);
	}
	s->laid_down = 0;
	return door_open(s->event, &spec, &handlers, s, &s->door, err);
}

static void on_qemu(void *userdata, pid_t qemu)
{
	Service *s = userdata;

	door_let_in(s->door, qemu);
	if (s->qemu < 0)
		s->qemu = (int)syscall(SYS_pidfd_open, qemu, 0);
}

static int add_to_qemu(Service *s, Error **err)
{
	int r = vmstate_object_add(&s->naming, door_address(s->door), on_qemu, s, err);

	if (r < 0)
		return r;
	s->added = true;
	if (s->qemu >= 0 && !s->qemu_exit)
		(void)sd_event_add_io(s->event, &s->qemu_exit, s->qemu, EPOLLIN, on_qemu_exit, s);
	return 0;
}

static void lay_down(Service *s)
{
	uint64_t changes = state_changes(s->state);

	door_lay_down(s->door, changes == s->laid_down);
	s->laid_down = changes;
}

static void replace_door(Service *s)
{
	_cleanup_error_ Error *err = NULL;
	int r = open_door(s, &err);

	if (r >= 0) {
		lay_down(s);
		r = add_to_qemu(s, &err);
	}
	if (r >= 0)
		return;
	log_error("%s", err->message);
	s->door = door_free(s->door, true);
}

/* It was killed: another one, before QEMU comes to it. */
static void on_door_gone(void *userdata)
{
	Service *s = userdata;
	DoorLate late;

	log_warning("the door to QEMU has ended: made anew");
	door_late(s->door, &late);
	s->late.save += late.save;
	s->late.load += late.load;
	s->door = door_free(s->door, true);
	replace_door(s);
}

static int on_care(sd_event_source *source, uint64_t usec, void *userdata)
{
	Service *s = userdata;

	if (s->door)
		lay_down(s);
	else
		replace_door(s);
	(void)sd_event_source_set_time(source, usec + CARE_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* QEMU is given a bus of its own, see vmstate-door.h. */
static int meet_qemu(Service *s, Error **err)
{
	int r;

	if (!s->naming.qmp)
		return 0;
	lay_down(s);
	r = add_to_qemu(s, err);
	return r < 0 ? r : sd_event_add_time_relative(s->event, &s->care, CLOCK_MONOTONIC, CARE_USEC, 0, on_care, s);
}

static int say_ready(const Service *s)
{
	uint64_t fd;
	int null;

	(void)sd_notify(0, "READY=1");
	log_info("serves %s", s->naming.id);
	if (text_parse_u64(tool_text(s->tool, "ready-fd", ""), &fd) < 0 || fd > INT32_MAX)
		return 0;
	(void)fd_write_all((int)fd, "ready\n", 6);
	(void)fd_close((int)fd);
	/* Who started us must not wait for the end of what we say. */
	null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (null >= 0)
		(void)dup2(null, STDERR_FILENO);
	fd_close(null);
	return 0;
}

static int mark_of_proxmox(Service *s, Error **err)
{
	bool proxmox = false;

	(void)json_get_bool(s->tool->options, "proxmox", &proxmox);
	if (proxmox && ct_select_empty(s->select))
		return ct_select_mark(s->select, s->tool->args[0], err);
	if (!ct_select_empty(s->select))
		return 0;
	error_set(err, -EINVAL, "whose entries?");
	error_hint(err, "give one or more of --address, --mark and --zone");
	return -EINVAL;
}

static int read_wait(Service *s, Error **err)
{
	s->wait_msec = tool_number(s->tool, "wait", VMSTATE_WAIT_MSEC);
	return s->wait_msec <= VMSTATE_WAIT_MAX_MSEC ? 0 : error_set(err, -EINVAL, "--wait: at most 30s: QEMU does not wait for longer");
}

static int set_up(Service *s, Error **err)
{
	const char *log = tool_text(s->tool, "log", NULL);
	int r = naming_read(s->tool, &s->naming, err);

	s->select = ct_select_copy(s->tool->select);
	if (r >= 0)
		r = mark_of_proxmox(s, err);
	if (r >= 0)
		r = tool_max_entries(s->tool, &s->max_entries, err);
	if (r >= 0)
		r = read_wait(s, err);
	if (r >= 0 && log && log_open(log) < 0)
		r = error_set(err, -errno, "Cannot write %s: %m", log);
	if (r >= 0)
		r = sd_event_new(&s->event);
	if (r >= 0)
		r = watch_signals(s);
	return r;
}

/* Ready means: a Save that comes now has the whole table. */
static int follow(Service *s, Error **err)
{
	const StateSpec spec = {
		.select = s->select,
		.format = tool_format(s->tool, FORMAT_WIRE),
		.max_entries = s->max_entries,
		.settle_usec = tool_number(s->tool, "settle", 5000) * USEC_PER_MSEC,
	};

	return state_new(s->event, &spec, &s->state, err);
}

static int serve(Service *s, Error **err)
{
	int r = s->naming.qmp ? open_door(s, err) : 0;

	if (r >= 0)
		r = vmstate_bus_open(&s->naming, &s->bus, err);
	if (r >= 0)
		r = sd_bus_set_exit_on_disconnect(s->bus, true);
	if (r >= 0)
		r = follow(s, err);
	if (r >= 0)
		r = export(s, err);
	if (r >= 0)
		r = meet_qemu(s, err);
	if (r >= 0)
		r = say_ready(s);
	if (r >= 0)
		r = sd_event_loop(s->event);
	return r > 0 ? error_set(err, -ENOTCONN, "the bus has gone") : r;
}

static void leave(Service *s)
{
	(void)sd_notify(0, "STOPPING=1");
	take_out(s);
	s->door = door_free(s->door, false);
	if (!s->state)
		return;
	state_finish(s->state);
	state_settle_behind(s->state);
}

int vmstate_run(const Tool *tool, Error **err)
{
	_cleanup_(service_done) Service s = {.tool = tool, .qemu = -1, .max_entries = 1000000};
	int r = set_up(&s, err);

	/* Idle but for the switch; there a guest waits. */
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	if (r >= 0)
		r = serve(&s, err);
	leave(&s);
	return r;
}
