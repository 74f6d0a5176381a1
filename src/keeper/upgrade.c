/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An upgrade: what is in its way, and the actions of the rows U_*. Nothing slow stands between STOP and RESUME. */
#include "keeper/upgrade.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/scope.h"

#define STREAM_FD_NAME "vmferry-upgrade"
#define COPY_THROTTLE 99 /* percent of a guest's time that it may lose where it writes faster than a copy gets on */

void upgrade_options_clear(UpgradeOptions *o)
{
	free(o->binary);
	free(o->to_definition);
	free(o->way);
	free(o->save_dir);
	*o = (UpgradeOptions){};
}

/* ---- what is in the way ---- */

/* Devices whose other end knows one QEMU only. What QEMU itself cannot migrate, it says when it is asked. */
static const struct {
	const char *word, *what;
} not_twice[] = {
	{"vfio-", "a device passed through (VFIO)"},
	{"vhost-user", "vhost-user: its back end serves one QEMU"},
	{"vhost-vdpa", "vDPA: its device serves one QEMU"},
	{"virtiofs", "virtiofs: its daemon serves one QEMU"},
};

static int check_devices(const VmDefinition *def, Error **err)
{
	for (size_t i = 0; def->qemu_args && def->qemu_args[i]; i++)
		for (size_t j = 0; j < ARRAY_SIZE(not_twice); j++)
			if (strstr(def->qemu_args[i], not_twice[j].word)) {
				error_set(err, -ENOTSUP, "qemu-args \"%s\": %s", def->qemu_args[i], not_twice[j].what);
				error_hint(err, "such a VM can only be shut down and started again");
				return -ENOTSUP;
			}
	return 0;
}

static int check_blockers(Keeper *k, Error **err)
{
	if (move_active(k->move)) {
		error_set(err, -EBUSY, "a migration or upgrade of %s is under way already", k->name);
		error_hint(err, "see vmferry status %s", k->name);
		return -EBUSY;
	}
	if ((k->state != VM_RUNNING && k->state != VM_PAUSED) || !k->qemu || !k->qmp)
		return error_set(err, -EBUSY, "%s is %s: there is no guest to keep", k->name,
				 vm_state_to_string(k->state));
	if (!keeper_owner(k))
		return error_set(err, -EPERM, "the journal says that %s is not this host's", k->name);
	return check_devices(k->def, err);
}

/* A definition may say other paths, but not other disks: the same file or device by another name. */
static int same_disks(const VmDefinition *a, const VmDefinition *b, Error **err)
{
	for (size_t i = 0; i < a->n_disks && i < b->n_disks; i++) {
		struct stat x, y;

		if (stat(a->disks[i].file, &x) < 0 || stat(b->disks[i].file, &y) < 0)
			return error_set(err, -errno, "disk %s: %s: %m", b->disks[i].id, b->disks[i].file);
		if (x.st_dev != y.st_dev || x.st_ino != y.st_ino)
			return error_set(err, -EINVAL, "disk %s: %s is not the file that the guest uses (%s)",
					 b->disks[i].id, b->disks[i].file, a->disks[i].file);
	}
	return 0;
}

static bool same_lease(const VmDefinition *a, const VmDefinition *b)
{
	return a->lease == b->lease && streq_null(a->lease_path, b->lease_path) &&
	       streq_null(a->lease_lockspace, b->lease_lockspace) &&
	       streq_null(a->lease_resource, b->lease_resource) && a->lease_offset == b->lease_offset;
}

static int take_definition(Keeper *k, const UpgradeOptions *o, VmDefinition **ret, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *to = NULL;
	_cleanup_strv_ char **differences = NULL;
	int r;

	if (!o->to_definition) {
		*ret = vm_definition_copy(k->def);
		return 0;
	}
	r = vm_definition_parse(k->name, o->to_definition, "--to-definition", &to, err);
	if (r < 0)
		return r;
	vm_definition_pin(to, k->def);
	if (vm_abi_compare(k->def, to, &differences) > 0) {
		error_set(err, -EINVAL, "the definition changes what the guest sees: %s%s", differences[0],
			  differences[1] ? " (and more)" : "");
		error_hint(err, "only host paths, bridges and listen addresses may differ");
		return -EINVAL;
	}
	if (to->serial != k->def->serial || !same_lease(to, k->def))
		return error_set(err, -EINVAL, "serial and lease cannot change under a running guest");
	r = same_disks(k->def, to, err);
	if (r >= 0)
		*ret = TAKE_PTR(to);
	return r;
}

/* Which program: as asked for; else what --to-definition, the VM's file or host.conf say by now. */
static int take_binary(Keeper *k, const UpgradeOptions *o, VmDefinition *def, Error **err)
{
	_cleanup_free_ char *file = xasprintf("%s/vms/%s.vm", config_dir(), k->name);
	_cleanup_(vm_definition_freep)
	VmDefinition *now = NULL;
	const char *binary = o->binary;

	if (!binary && !o->to_definition && k->arrived)
		binary = k->conf->binary;
	if (!binary && !o->to_definition && !k->arrived && access(file, F_OK) == 0) {
		int r = vm_definition_load(k->name, file, &now, err);

		if (r < 0)
			return r;
		binary = now->binary;
	}
	if (binary) {
		char *copy = xstrdup(binary);

		free(def->binary);
		def->binary = copy;
	}
	return 0;
}

static const struct {
	const char *option, *text;
} ways[] = {
#define X(id, option_, text_) [WAY_##id] = {option_, text_},
	UPGRADE_WAYS(X)
#undef X
};
static_assert(ARRAY_SIZE(ways) == _WAY_MAX, "a name for every way");

const char *upgrade_way_to_string(UpgradeWay way)
{
	return ways[way].text;
}

/* Return: what was asked for, _WAY_MAX for "auto"; or -EINVAL with @err set. */
static int parse_way(const UpgradeOptions *o, Error **err)
{
	int way = _WAY_MAX;

	if (o->way && !streq(o->way, "auto"))
		for (way = 0; way < _WAY_MAX && !streq(o->way, ways[way].option);)
			way++;
	if (way == _WAY_MAX && o->way && !streq(o->way, "auto")) {
		error_set(err, -EINVAL, "'%s' is no way to upgrade", o->way);
		error_hint(err, "ways are auto, in-place, copy and save");
		return -EINVAL;
	}
	if (o->save_dir && way != WAY_SAVE)
		return error_set(err, -EINVAL, "a directory to save to is for --way=save");
	if (o->save_dir && o->save_dir[0] != '/')
		return error_set(err, -EINVAL, "%s: the directory to save to has to be an absolute path", o->save_dir);
	return way;
}

/*
 * Memory that both QEMUs can map stays where it is. What only the old one has, or what is to be of another kind, has to
 * be copied, once: after that it is never private. Through a file any kind goes into any other.
 */
static int take_way(Keeper *k, const UpgradeOptions *o, VmDefinition *def, UpgradeWay *ret, Error **err)
{
	_cleanup_fd_ int fd = -1;
	int asked = parse_way(o, err);
	bool must;

	if (asked < 0)
		return asked;
	*ret = WAY_SAVE;
	if (asked == WAY_SAVE)
		return 0;
	if (def->memory_backing == MEMORY_PRIVATE)
		def->memory_backing = MEMORY_SHARED;
	must = def->memory_backing != k->def->memory_backing;
	*ret = must || asked == WAY_COPY ? WAY_COPY : WAY_IN_PLACE;
	if (*ret == WAY_IN_PLACE) {
		fd = qemu_process_memfd(k->qemu);
		return fd < 0 ? error_set(err, fd, "the guest's memory cannot be had from its QEMU: %s", strerror(-fd))
			      : 0;
	}
	if (asked != WAY_IN_PLACE)
		return 0;
	error_set(err, -ENOTSUP,
		  "its memory is memory-backing = \"%s\", which the new QEMU cannot map as \"%s\": it would have to be "
		  "copied",
		  memory_backing_to_string(k->def->memory_backing), memory_backing_to_string(def->memory_backing));
	error_hint(err, "without --way=in-place it is");
	return -ENOTSUP;
}

/*
 * In place the guest's memory is there already: only what a second QEMU takes for itself is needed. Saved, the old one's is
 * free again before the new one takes its own, but huge pages and others do not become each other.
 */
static bool memory_is_there(Keeper *k, const VmDefinition *def, UpgradeWay way)
{
	bool huge = def->memory_backing == MEMORY_HUGE;

	return way == WAY_IN_PLACE || (way == WAY_SAVE && huge == (k->def->memory_backing == MEMORY_HUGE));
}

static int check_host(Keeper *k, const VmDefinition *def, UpgradeWay way, const char *save_dir, Room **ret, Error **err)
{
	HostMemory need = host_memory_of(def, scope_slice());
	uint64_t file = 0; /* bytes of memory that it takes */
	int r = host_check_resources(k->conf, def, err);

	if (memory_is_there(k, def, way)) {
		need.bytes = HOST_MEMORY_OF_A_QEMU;
		need.huge = 0;
	}
	if (r >= 0 && way == WAY_SAVE)
		r = save_busy(k, err);
	if (r >= 0 && way == WAY_SAVE)
		r = save_check(def, save_dir, &file, err);
	need.bytes += file;
	if (r >= 0)
		r = host_check_memory(&need, ret, err);
	if (r == -ENOMEM && way == WAY_COPY) {
		error_prefix(err, "the guest's memory has to be copied, and then it is there twice: ");
		error_hint_more(err, "or let the guest stand still while it goes through a file, which may be on a "
				     "disk: --way=save --save-dir=DIR");
	} else if (r == -ENOMEM && file) {
		error_prefix(err, "the file that the guest is saved to lies in memory: ");
		error_hint_more(err, "or name a directory on a disk: --save-dir=DIR");
	}
	return r;
}

static int prepare(Keeper *k, const UpgradeOptions *o, VmDefinition **ret, UpgradeWay *ret_way, Room **ret_room,
		   Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL;
	UpgradeWay way = WAY_IN_PLACE;
	int r = check_blockers(k, err);

	if (r >= 0)
		r = take_definition(k, o, &def, err);
	if (r >= 0)
		r = take_binary(k, o, def, err);
	if (r >= 0)
		r = take_way(k, o, def, &way, err);
	if (r >= 0)
		r = check_host(k, def, way, o->save_dir, ret_room, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(def);
	*ret_way = way;
	return 0;
}

static Upgrade *upgrade_new(Move *m, VmDefinition *def, UpgradeWay way)
{
	Keeper *k = m->k;
	Upgrade *up = xcalloc(1, sizeof(*up));

	*up = (Upgrade){.m = m,
			.old = k->qemu->generation,
			.fresh = machine_next_generation(k),
			.def = def,
			.way = way,
			.save_fd = -1,
			.serial_fd = -1,
			.viewers_fd = -1,
			.stream = {-1, -1},
			.from_binary = xstrdup(k->def->binary),
			.to_binary = xstrdup(def->binary),
			.from_version = k->qemu_version ? xstrdup(k->qemu_version) : NULL,
			.memory_needed = HOST_MEMORY_OF_A_QEMU + (way == WAY_COPY	? def->memory
							     : way == WAY_SAVE ? saved_size_max(def)
									       : 0)};
	return up;
}

static void warn_of_memory(Move *m, const VmDefinition *def)
{
	const char *advice = qemu_memory_advice(def);

	if (advice)
		move_warn(m, "%s", advice);
	if (m->k->def->memory_backing == MEMORY_PRIVATE && m->up->way == WAY_COPY)
		move_warn(
			m,
			"its memory is its QEMU's own and has to be copied; from then on it is shared, until the VM's "
			"next start: its definition says memory-backing = \"private\"");
}

int upgrade_start(Keeper *k, UpgradeOptions *options, sd_bus_message *check, Error **err)
{
	Move *m = k->move;
	_cleanup_free_ char *id = text_random_id();
	VmDefinition *def = NULL;
	Room *room = NULL;
	UpgradeWay way;
	int r = prepare(k, options, &def, &way, &room, err);

	if (r < 0)
		return r;
	sink_settle_now(m);
	move_reset(m);
	m->state = MOVE_S_IDLE;
	memcpy(m->id, id, sizeof(m->id));
	m->up = upgrade_new(m, def, way);
	m->room = room;
	if (way == WAY_SAVE)
		m->up->saved = saved_new(k->name, m->id, options->save_dir);
	m->up->binary = TAKE_PTR(options->binary);
	m->up->to_definition = TAKE_PTR(options->to_definition);
	m->opt.check_only = options->check_only;
	m->opt.live = way == WAY_IN_PLACE || (way == WAY_COPY && options->live);
	if (way == WAY_COPY)
		m->opt.throttle = COPY_THROTTLE;
	m->check_message = sd_bus_message_ref(check);
	m->t.begun = m->t.phase_begun = now_usec();
	m->was_running = k->state == VM_RUNNING;
	m->was_reason = k->reason;
	move_fact(m, MOVE_FACT_WAS_RUNNING, m->was_running);
	move_fact(m, MOVE_FACT_OWNER, true);
	move_fact(m, MOVE_FACT_ALIVE, true);
	log_info("upgrade %s of %s (%s): %s -> %s%s", m->id, k->name, vm_state_to_string(k->state), m->up->from_binary,
		 m->up->to_binary, m->opt.check_only ? " (check)" : "");
	warn_of_memory(m, def);
	move_event(m, MOVE_EV_UPGRADE);
	return 0;
}

/* ---- the note, and the new QEMU ---- */

/* One file in the runtime directory: a reboot ends both QEMUs, a killed keeper loses nothing that was written. */
static int record(Move *m, unsigned int generation)
{
	Error *err = NULL;
	int r;

	m->k->generation = generation;
	r = keeper_save_state(m->k);
	if (r >= 0)
		return 0;
	m->k->generation = m->up->old;
	error_set(&err, r, "cannot record which QEMU has the guest: %s", strerror(-r));
	move_error(m, err);
	return r;
}

/* The record first: what a failed write has left there may name this new one's generation, as numbers are used again. */
int do_note_upgrade(Move *m)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "move");
	_cleanup_json_ json_object *o =
		json_build("id", "s", m->id, "target", "b", 0, "upgrade", "b", 1, "old", "u", (uint64_t)m->up->old,
			   "fresh", "u", (uint64_t)m->up->fresh, "way", "s", ways[m->up->way].option, "live", "b",
			   (int)m->opt.live, "running", "b", (int)m->was_running, NULL);
	const char *text = json_text(o);
	int r = record(m, m->up->old);
	Error *err = NULL;

	if (r >= 0 && m->up->saved) {
		r = save_note(m->up, &err);
		move_error(m, TAKE_PTR(err));
	}
	if (r < 0)
		return r;
	r = file_write(path, text, strlen(text), 0600, false);
	if (r < 0)
		error_set(&err, r, "cannot write %s: %s", path, strerror(-r));
	move_error(m, err);
	return r;
}

int do_start_new(Move *m)
{
	Error *err = NULL;
	int r = second_start(m->up, &err);

	move_error(m, err);
	return r;
}

/* ---- set-up: every command of both must succeed ---- */

static void set_up_done(Move *m)
{
	m->up->opened = now_usec();
	move_event(m, m->opt.check_only		? MOVE_EV_CANCEL /* a check has seen enough */
		      : m->up->way == WAY_SAVE ? MOVE_EV_TRIED
					       : MOVE_EV_DATA_READY);
}

static bool set_up_answer(Move *m, const char *error)
{
	Error *err = NULL;

	if (m->state != MOVE_U_OPEN || m->up->pending == 0)
		return false;
	if (!error)
		return true;
	if (streq(error, QMP_CONNECTION_CLOSED))
		return false; /* its exit says why */
	m->up->pending = 0;
	error_set(&err, -EIO, "QEMU: %s", error);
	move_fail(m, err);
	return false;
}

static void on_set_up(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (set_up_answer(m, error) && --m->up->pending == 0)
		set_up_done(m);
}

/* QAPI Memdev: "share": false is accepted by an incoming QEMU, which would then run on a private copy. */
static void on_memdev(json_object *ret, const char *error, void *userdata)
{
	json_object *o = json_object_is_type(ret, json_type_array) ? json_object_array_get_idx(ret, 0) : NULL;
	bool share = false;

	if (!error && (!o || !json_get_bool(o, "share", &share) || !share))
		error = "its memory is not shared";
	on_set_up(ret, error, userdata);
}

/* QAPI MigrationInfo: "blocked-reasons" is what of this guest cannot be migrated. */
static void on_blocked(json_object *ret, const char *error, void *userdata)
{
	json_object *reasons;
	_cleanup_free_ char *why = NULL;

	if (!error && json_get_array(ret, "blocked-reasons", &reasons) && json_object_array_length(reasons) > 0) {
		why = text_clean(json_object_get_string(json_object_array_get_idx(reasons, 0)), 512);
		error = why;
	}
	on_set_up(ret, error, userdata);
}

static void ask(Move *m, Qmp *qmp, const char *command, json_object *arguments, QmpReply reply)
{
	m->up->pending++;
	qmp_command(qmp, command, arguments, reply, m);
}

static void give_stream(Move *m, Qmp *qmp, int fd)
{
	m->up->pending++;
	qmp_command_fd(qmp, "getfd", json_build("fdname", "s", STREAM_FD_NAME, NULL), fd, on_set_up, m);
}

json_object *upgrade_capabilities(const Upgrade *up)
{
	return up->way == WAY_SAVE ? migration_capabilities_file() : migration_capabilities_here(up->way == WAY_COPY);
}

int do_set_up_both(Move *m)
{
	Upgrade *up = m->up;
	Qmp *both[] = {m->k->qmp, up->qmp};
	Error *err = NULL;

	if (!both[0] || !both[1])
		return -ENOTCONN; /* one of them is going: its exit is the error */
	if (up->way == WAY_COPY && scope_check(up->other, up->def, &err) < 0) {
		move_error(m, err);
		return -ENOMEM;
	}
	if (up->way != WAY_SAVE && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, up->stream) < 0)
		return -errno;
	up->pending = 1; /* held until all is on its way */
	if (up->way != WAY_SAVE)
		ask(m, both[1], "query-memdev", NULL, on_memdev);
	ask(m, both[0], "query-migrate", NULL, on_blocked);
	for (size_t i = 0; i < ARRAY_SIZE(both); i++) {
		ask(m, both[i], "migrate-set-capabilities", upgrade_capabilities(up), on_set_up);
		ask(m, both[i], "migrate-set-parameters", migration_parameters_here(m, up->way == WAY_COPY), on_set_up);
		if (up->way != WAY_SAVE)
			give_stream(m, both[i], TAKE_FD(up->stream[i]));
	}
	up->pending--;
	return 0;
}

/* ---- the copy ---- */

void upgrade_progress(Move *m)
{
	if (m->up->way == WAY_COPY && m->up->other)
		room_used(m->room, qemu_process_memory(m->up->other));
}

/* ---- the lease: both hold it from before STOP until one of them is gone ---- */

int do_share_lease(Move *m)
{
	Error *err = NULL;
	int r;

	if (!m->up->other)
		return -ENOTCONN; /* its exit is the error */
	r = keeper_lease_share(m->k, m->up->other->pid, &err);
	move_error(m, err);
	return r;
}

/* One that stays shared is as good to keep other hosts away. */
int do_own_lease(Move *m)
{
	_cleanup_error_ Error *err = NULL;
	Keeper *k = m->k;

	if (m->up && k->qemu && keeper_lease_own(k, m->up->other ? m->up->other->pid : 0, &err) < 0)
		move_warn(m, "%s: it stays shared until the next upgrade or migration", err->message);
	return 0;
}

/* ---- the switch ---- */

static void on_migrate(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || m->state != MOVE_U_PERFORM)
		return;
	error_set(&err, -EIO, "QEMU will not hand the guest over: %s", error);
	perform_hint(error, &err);
	move_fail(m, err);
}

int do_start_upgrade(Move *m)
{
	if (!m->k->qmp || !m->up->qmp)
		return -ENOTCONN;
	if (!m->opt.live && m->was_running) {
		machine_qmp(m->k, "stop", NULL, NULL, NULL);
		keeper_set_state(m->k, VM_PAUSED, "migration");
	}
	qmp_command(m->up->qmp, "migrate-incoming", json_build("uri", "s", "fd:" STREAM_FD_NAME, NULL), on_migrate, m);
	qmp_command(m->k->qmp, "migrate", json_build("uri", "s", "fd:" STREAM_FD_NAME, NULL), on_migrate, m);
	if (!m->was_running)
		m->t.stop = now_usec();
	if (m->up->way == WAY_COPY)
		perform_watch(m);
	return 0;
}

/* While QEMU writes its devices' state: what comes for the guest from now on waits in the new tap. */
static void attach_taps(Move *m)
{
	Error *err = NULL;

	m->up->taps_attached = true;
	if (second_attach_taps(m->up, &err) < 0)
		move_fail(m, err);
}

static void on_failure(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *why = NULL;
	Error *err = NULL;

	if (m->state != MOVE_U_PERFORM && m->state != MOVE_U_LOAD && m->state != MOVE_U_SAVE)
		return;
	if (!error)
		(void)json_get_string(ret, "error-desc", &why);
	error_set(&err, -EIO, "QEMU did not hand the guest over%s%s", why ? ": " : "", why ? why : "");
	move_fail(m, err);
}

static void on_copied(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	if (error || !m->up)
		return;
	(void)json_get_u64(ret, "ram.total", &m->ram_total);
	(void)json_get_u64(ret, "ram.transferred", &m->ram_transferred);
}

static void on_migration(Move *m, const char *status, uint64_t at)
{
	log_debug("QEMU: migration %s", status);
	if (m->state == MOVE_S_CANCEL) {
		perform_migration_event(m, status);
	} else if (m->up->filling) {
		save_migration_event(m, status, at);
	} else if (streq(status, "completed")) {
		m->t.postmigrate = at;
		if (m->up->way != WAY_IN_PLACE)
			machine_qmp(m->k, "query-migrate", NULL, on_copied, m);
		move_fact(m, MOVE_FACT_POST, true);
		move_event(m, MOVE_EV_POSTMIGRATE);
	} else if (streq(status, "failed") || streq(status, "cancelled")) {
		machine_qmp(m->k, "query-migrate", NULL, on_failure, m);
	}
}

void upgrade_qemu_event(Move *m, const char *name, json_object *data, uint64_t at)
{
	const char *status;

	if (streq(name, "STOP") && (m->state == MOVE_U_SAVE || m->state == MOVE_U_SYNC)) {
		m->t.stop = at;
	} else if (streq(name, "STOP") && m->state == MOVE_U_PERFORM) {
		m->t.stop = at;
		move_progress_made(m); /* another deadline, from here on */
		attach_taps(m);
	} else if (streq(name, "RESUME")) {
		m->t.resumed = at;
	} else if (streq(name, "MIGRATION") && json_get_string(data, "status", &status)) {
		on_migration(m, status, at);
	}
}

/* ---- commit ---- */

static void on_look(_unused_ json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	if (m->state != MOVE_U_LOOK || (error && streq(error, QMP_CONNECTION_CLOSED)))
		return; /* its exit says more */
	if (!error) {
		move_event(m, MOVE_EV_ANSWERS);
		return;
	}
	error_set(&err, -EIO, "the new QEMU: %s", error);
	move_fail(m, err);
}

/* Its main loop answers, not the thread that its events may come from. */
int do_ask_new(Move *m)
{
	if (!m->up->qmp)
		return -ENOTCONN; /* it is going: its exit is the error */
	qmp_command(m->up->qmp, "query-status", NULL, on_look, m);
	return 0;
}

int do_commit_new(Move *m)
{
	int r;

	if (!m->up->taps_attached) /* a paused guest does not stop */
		attach_taps(m);
	if (m->state != MOVE_U_CHECK || m->error)
		return -ECANCELED;
	r = record(m, m->up->fresh);
	m->t.committed = now_usec();
	return r;
}

int do_kill_old(Move *m)
{
	int r = qemu_process_kill(m->k->qemu);

	if (r < 0)
		return r;
	second_change_over(m->up);
	return 0;
}

static void on_cont(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (m->state != MOVE_U_RESUMING)
		return;
	if (!error) {
		m->up->resumed = true;
		if (!m->t.resumed)
			m->t.resumed = now_usec();
		move_event(m, MOVE_EV_CONT_OK);
		return;
	}
	if (streq(error, QMP_CONNECTION_CLOSED))
		return; /* QEMU's exit decides */
	if (!(m->facts & MOVE_FACT_OTHER)) {
		error_set(&err, -EIO, "the guest does not resume in the new QEMU: %s", error);
		error_hint(&err, "vmferry resume %s tries again", m->k->name);
		move_error(m, err);
	}
	move_event(m, MOVE_EV_CONT_ERROR);
}

int do_cont_new(Move *m)
{
	if (!m->t.cont_sent)
		m->t.cont_sent = now_usec();
	machine_qmp(m->k, "cont", NULL, on_cont, m);
	return 0;
}

int do_say_silent(Move *m)
{
	_cleanup_json_ json_object *result = NULL;

	move_warn(m, "the guest is the new QEMU's (process %d), and that does not answer: the guest stands still, and goes on "
		     "when it does; or end it: vmferry kill %s",
		  m->k->qemu ? (int)m->k->qemu->pid : 0, m->k->name);
	keeper_set_state(m->k, VM_PAUSED, "QEMU does not answer");
	m->status = "in-doubt";
	result = report_upgrade(m);
	m->status = NULL; /* it is waited for */
	control_emit_text(m->k, "Finished", json_text(result));
	return 0;
}

/* ---- the way back ---- */

int do_kill_new(Move *m)
{
	second_kill(m->up);
	save_give_up(m->up);
	m->up->stream[0] = fd_close(m->up->stream[0]);
	m->up->stream[1] = fd_close(m->up->stream[1]);
	return 0;
}

int do_clear_new(Move *m)
{
	_cleanup_free_ char *next = runtime_path(m->k->name, "definition.next");
	_cleanup_error_ Error *err = NULL;

	/* The bridge has learned where the guest was to be. */
	if (m->up->taps_attached && m->k->qemu && machine_attach_taps(m->k, &err) < 0)
		log_warning("%s", err->message);
	(void)unlink(next);
	return m->k->generation == m->up->old ? 0 : record(m, m->up->old);
}
