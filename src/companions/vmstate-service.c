/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The D-Bus object itself. Save runs while the guest is stopped: it answers at once from the table kept current. QEMU
 * has written how many states follow before it asks for them, so a Save that errs, is empty or too large would kill
 * the target with the guest stopped already, and so would a Load that errs: neither ever does.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "companions/conntrack.h"
#include "companions/counters.h"
#include "companions/vmstate-door.h"
#include "companions/vmstate.h"
#include "conntrack/save.h"

#define LOOK_USEC USEC_PER_SEC
#define NICE -10
#define RESYNC_USEC (2 * USEC_PER_SEC) /* where events are missing (nf_conntrack_events = 2) */

typedef struct Service {
	const Tool *tool;
	Naming naming;
	sd_event *event;
	sd_bus *bus;
	sd_event_source *qemu_exit, *settle, *unmute;
	Door *door; /* between QEMU and us; NULL: the manager added the object, on the bus */
	int qemu; /* pidfd, or -1 */
	CtSelect *select;
	CtFollow *follow;
	CtApply *apply; /* of the last Load */
	uint64_t max_entries, settle_usec;
	uint32_t migrated; /* saved or loaded last */
	uint64_t left;	   /* found no room in the last Save */
	bool added;	   /* our object is in QEMU */
	DoorLate late;	   /* of doors before this one */
	Counters count;	   /* without those */
	uint8_t *snapshot;
} Service;

static void service_done(Service *s)
{
	sd_event_source_disable_unref(s->qemu_exit);
	sd_event_source_disable_unref(s->settle);
	sd_event_source_disable_unref(s->unmute);
	door_free(s->door, false);
	ct_follow_free(s->follow);
	ct_apply_free(s->apply);
	ct_select_free(s->select);
	sd_bus_flush_close_unref(s->bus);
	sd_event_unref(s->event);
	naming_done(&s->naming);
	fd_close(s->qemu);
	free(s->snapshot);
}

/* ---- Save ---- */

/* The same as text, as conntrack(8) and Proxmox's helper read it. */
static size_t as_text(const uint8_t *batch, size_t len, char *to, size_t max, size_t *ret_records)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	size_t at = 0;

	*ret_records = 0;
	ct_wire_read(&reader, batch, len);
	while (ct_wire_next(&reader, &op, &record) == 1 && at + CT_SAVE_LINE_MAX <= max) {
		at += ct_save_write(&record, op, to + at);
		(*ret_records)++;
	}
	if (!at)
		at = (size_t)snprintf(to, max, "[0]\n");
	return at;
}

static size_t snapshot(Service *s, const uint8_t **ret)
{
	size_t n, left, len;

	(void)ct_follow_drain(s->follow);
	len = ct_follow_snapshot(s->follow, s->snapshot, VMSTATE_MAX, &n, &left);
	*ret = s->snapshot;
	if (tool_format(s->tool, FORMAT_WIRE) == FORMAT_SAVE) {
		size_t all = n + left;

		*ret = s->snapshot + VMSTATE_MAX;
		len = as_text(s->snapshot, len, (char *)s->snapshot + VMSTATE_MAX, VMSTATE_MAX, &n);
		left = all - n;
	}
	s->migrated = (uint32_t)n;
	s->left = left;
	return len;
}

static size_t save(Service *s, const uint8_t **ret)
{
	uint64_t begin = now_usec();
	size_t len = snapshot(s, ret);

	*(s->migrated ? &s->count.exports.success : &s->count.exports.skipped) += 1;
	s->count.exported_bytes += len;
	log_info("saved %" PRIu32 " entries, %zu bytes, in %" PRIu64 " us", s->migrated, len, now_usec() - begin);
	if (s->left)
		log_warning("%" PRIu64 " entries found no room in QEMU's 1 MiB", s->left);
	return len;
}

static int on_save(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	sd_bus_message *reply = NULL;
	Service *s = userdata;
	const uint8_t *data;
	size_t len = save(s, &data);
	int r;

	r = sd_bus_message_new_method_return(m, &reply);
	if (r >= 0)
		r = sd_bus_message_append_array(reply, 'y', data, len);
	if (r >= 0)
		r = sd_bus_send(s->bus, reply, NULL);
	sd_bus_message_unref(reply);
	return r;
}

static size_t door_save(void *userdata, uint8_t *to, _unused_ size_t max)
{
	const uint8_t *data;
	size_t len = save(userdata, &data);

	memcpy(to, data, len);
	return len;
}

/* ---- Load ---- */

static int load_batches(Service *s, int fd, Error **err)
{
	_cleanup_(input_done) Input input = {.fd = fd, .format = FORMAT_ANY};
	const uint8_t *batch;
	size_t len;
	int r;

	while ((r = input_next(&input, &batch, &len, err)) > 0) {
		r = ct_apply_delta(s->apply, batch, len, err);
		if (r < 0)
			break;
	}
	return r;
}

static int load(Service *s, const void *data, size_t len, Error **err)
{
	const CtApplyOptions options = {
		.max_entries = s->max_entries, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER};
	_cleanup_fd_ int fd = memfd_create("entries", MFD_CLOEXEC);
	int r;

	ct_apply_free(TAKE_PTR(s->apply));
	r = ct_apply_new(s->select, &options, &s->apply, err);
	if (r < 0)
		return r;
	if (fd < 0 || fd_write_all(fd, data, len) < 0 || lseek(fd, 0, SEEK_SET) < 0)
		return error_set(err, -errno, "Cannot keep what came: %m");
	return load_batches(s, fd, err);
}

static int on_settle(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	_cleanup_error_ Error *err = NULL;
	Service *s = userdata;

	s->settle = sd_event_source_disable_unref(s->settle);
	if (ct_apply_settle(s->apply, &err) < 0)
		log_warning("%s", err->message);
	return 0;
}

static void settle_later(Service *s)
{
	s->settle = sd_event_source_disable_unref(s->settle);
	(void)sd_event_add_time_relative(s->event, &s->settle, CLOCK_MONOTONIC, s->settle_usec, 0, on_settle, s);
}

static int on_unmute(sd_event_source *source, void *userdata)
{
	Service *s = userdata;

	(void)ct_follow_unmute(s->follow);
	return sd_event_source_set_enabled(source, SD_EVENT_OFF);
}

/* New entries are heard of again once QEMU has its answer. */
static void unmute_later(Service *s)
{
	int r = s->unmute ? sd_event_source_set_enabled(s->unmute, SD_EVENT_ONESHOT)
			  : sd_event_add_defer(s->event, &s->unmute, on_unmute, s);

	if (r < 0)
		(void)ct_follow_unmute(s->follow);
}

static void load_and_say(Service *s, const void *data, size_t len)
{
	uint64_t begin = now_usec();
	_cleanup_error_ Error *err = NULL;
	CtApplyStats stats = {};
	int r;

	s->migrated = 0;
	(void)ct_follow_mute(s->follow);
	r = load(s, data, len, &err);
	unmute_later(s);
	*(r < 0 ? &s->count.imports.error : &s->count.imports.success) += 1;
	if (r < 0)
		log_error("cannot load all: %s", err ? err->message : strerror(-r));
	if (s->apply) {
		ct_apply_stats(s->apply, &stats);
		s->migrated = (uint32_t)stats.applied;
		settle_later(s);
	}
	log_info("loaded %" PRIu64 " of %" PRIu64 " entries, %zu bytes, in %" PRIu64 " us", stats.applied, stats.received, len,
		 now_usec() - begin);
	if (stats.refused + stats.failed)
		log_warning("%" PRIu64 " entries not taken, the first: %s", stats.refused + stats.failed, stats.first_refused);
}

static int on_load(sd_bus_message *m, void *userdata, _unused_ sd_bus_error *error)
{
	const void *data = NULL;
	size_t len = 0;

	if (sd_bus_message_read_array(m, 'y', &data, &len) >= 0)
		load_and_say(userdata, data, len);
	return sd_bus_reply_method_return(m, NULL);
}

static void door_load(void *userdata, const uint8_t *data, size_t len)
{
	load_and_say(userdata, data, len);
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
	CtFollowStats stats;

	ct_follow_stats(s->follow, &stats);
	return sd_bus_message_append(reply, "u", (uint32_t)stats.entries);
}

/* A door counts whom it has let through without us; we may have come to it later all the same. */
static Counters counters(const Service *s)
{
	DoorLate late = {};
	Counters c = s->count;
	uint64_t loads = c.imports.success + c.imports.error;

	if (s->door)
		door_late(s->door, &late);
	c.exports.error = s->late.save + late.save;
	c.waits.timeout = s->late.load + late.load;
	c.waits.completed = loads > c.waits.timeout ? loads - c.waits.timeout : 0;
	return c;
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
	SD_BUS_PROPERTY("NumMigratedEntries", "u", NULL, offsetof(Service, migrated), 0),
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

static int on_resync(sd_event_source *source, uint64_t usec, void *userdata)
{
	Service *s = userdata;

	(void)ct_follow_resync(s->follow);
	(void)sd_event_source_set_time(source, usec + RESYNC_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int watch_signals(Service *s)
{
	static const int signals[] = {SIGTERM, SIGINT};

	return tool_signals(s->event, signals, ARRAY_SIZE(signals), NULL, NULL);
}

static int follow(Service *s, Error **err)
{
	CtFollowStats stats = {};
	CtHost host;
	int r = ct_follow_new(s->event, s->select, &s->follow, err);

	/* Ready means: a Save that comes now has the whole table. */
	while (r >= 0 && !stats.complete) {
		r = sd_event_run(s->event, UINT64_MAX);
		ct_follow_stats(s->follow, &stats);
	}
	ct_host_read(&host);
	if (host.events == 0)
		log_warning("net.netfilter.nf_conntrack_events is 0: changes are not seen (set it to 1)");
	if (r >= 0 && host.events == 2)
		(void)sd_event_add_time_relative(s->event, NULL, CLOCK_MONOTONIC, RESYNC_USEC, 0, on_resync, s);
	return r;
}

static int open_door(Service *s, Error **err)
{
	static const DoorHandlers handlers = {.save = door_save, .load = door_load};
	static uint8_t empty[CT_WIRE_HEADER];
	DoorSpec spec = {.id = s->naming.id, .none = "[0]\n", .none_len = 4};

	if (tool_format(s->tool, FORMAT_WIRE) == FORMAT_WIRE) {
		ct_wire_header(empty, sizeof(empty), 0);
		spec.none = empty;
		spec.none_len = sizeof(empty);
	}
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

/* A door that is stopped, or was killed, is replaced before QEMU comes to it. */
static void replace_door(Service *s)
{
	_cleanup_error_ Error *err = NULL;
	DoorLate late;
	int r;

	if (s->door) {
		log_warning("the door to QEMU is stopped or has ended: made anew");
		door_late(s->door, &late);
		s->late.save += late.save;
		s->late.load += late.load;
		s->door = door_free(s->door, true);
	}
	r = open_door(s, &err);
	if (r >= 0)
		r = add_to_qemu(s, &err);
	if (r < 0)
		log_error("%s", err->message);
}

static int on_look(sd_event_source *source, uint64_t usec, void *userdata)
{
	Service *s = userdata;

	if (!s->door || !door_stands(s->door))
		replace_door(s);
	(void)sd_event_source_set_time(source, usec + LOOK_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* QEMU is given a bus of its own, see vmstate-door.h. */
static int meet_qemu(Service *s, Error **err)
{
	int r;

	if (!s->naming.qmp)
		return 0;
	r = add_to_qemu(s, err);
	return r < 0 ? r : sd_event_add_time_relative(s->event, NULL, CLOCK_MONOTONIC, LOOK_USEC, 0, on_look, s);
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

static int set_up(Service *s, Error **err)
{
	const char *log = tool_text(s->tool, "log", NULL);
	int r = naming_read(s->tool, &s->naming, err);

	s->select = ct_select_copy(s->tool->select);
	if (r >= 0)
		r = mark_of_proxmox(s, err);
	if (r >= 0)
		r = tool_max_entries(s->tool, &s->max_entries, err);
	if (r >= 0 && log && log_open(log) < 0)
		r = error_set(err, -errno, "Cannot write %s: %m", log);
	if (r >= 0)
		r = sd_event_new(&s->event);
	if (r >= 0)
		r = watch_signals(s);
	return r;
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

/* What was loaded is set right by a child of its own, if that is still to come: nobody need wait for it. */
static void settle_behind(Service *s)
{
	if (!s->settle || fork() != 0)
		return;
	(void)setsid();
	(void)usleep((useconds_t)s->settle_usec);
	(void)ct_apply_settle(s->apply, NULL);
	_exit(0);
}

static void leave(Service *s)
{
	(void)sd_notify(0, "STOPPING=1");
	take_out(s);
	s->door = door_free(s->door, false);
	settle_behind(s);
}

int vmstate_run(const Tool *tool, Error **err)
{
	_cleanup_(service_done) Service s = {
		.tool = tool,
		.qemu = -1,
		.max_entries = 1000000,
		.settle_usec = tool_number(tool, "settle", 5000) * USEC_PER_MSEC,
		.snapshot = xcalloc(2, VMSTATE_MAX),
	};
	int r = set_up(&s, err);

	/* Idle but for the switch; there a guest waits. */
	(void)setpriority(PRIO_PROCESS, 0, NICE);
	if (r >= 0)
		r = serve(&s, err);
	leave(&s);
	return r;
}
