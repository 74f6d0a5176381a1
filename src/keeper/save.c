/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * --way=save: the guest goes from one QEMU to another through a file, and stands still meanwhile. For a guest that can be
 * in two at once in no other way, because there is no room for its memory twice. saved.h has the record that decides.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/fault.h"
#include "keeper/launch.h"
#include "keeper/upgrade.h"
#include "keeper/worker.h"

#define FILE_FD_NAME "vmferry-saved"
#define LOOK_USEC (500 * USEC_PER_MSEC)
#define REMOVE_USEC (5 * USEC_PER_SEC)

int save_check(const VmDefinition *def, const char *dir, uint64_t *ret_memory, Error **err)
{
	uint64_t size = saved_size_max(def);
	bool memory = false;
	int r = saved_room(dir, size, &memory, err);

	*ret_memory = r >= 0 && memory ? size : 0;
	return r;
}

int save_note(Upgrade *up, Error **err)
{
	Keeper *k = up->m->k;

	up->saved->running = up->m->was_running;
	up->saved->lease = k->lease && lease_held(k->lease);
	up->saved->old = vm_definition_text(k->def);
	up->saved->fresh = vm_definition_text(up->def);
	return saved_write(k->name, up->saved, err);
}

/* ---- out of the old one ---- */

static void on_command(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || (m->state != MOVE_U_SAVE && m->state != MOVE_U_RESTORE) || streq(error, QMP_CONNECTION_CLOSED))
		return; /* its exit says why */
	error_set(&err, -EIO, "QEMU will not %s the guest: %s", m->state == MOVE_U_SAVE ? "save" : "load", error);
	perform_hint(error, &err);
	move_fail(m, err);
}

static int give_file(Move *m, int file, Error **err)
{
	int fd = fcntl(file, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return error_set(err, -errno, "the saved state: %m");
	qmp_command_fd(m->k->qmp, "getfd", json_build("fdname", "s", FILE_FD_NAME, NULL), fd, on_command, m);
	return 0;
}

int do_start_save(Move *m)
{
	Upgrade *up = m->up;
	Error *err = NULL;
	int r;

	if (!m->k->qmp)
		return -ENOTCONN; /* its exit is the error */
	up->save_fd = saved_create(up->saved, &err);
	r = up->save_fd < 0 ? up->save_fd : give_file(m, up->save_fd, &err);
	move_error(m, err);
	if (r < 0)
		return r;
	if (m->was_running) {
		machine_qmp(m->k, "stop", NULL, on_command, m);
		keeper_set_state(m->k, VM_PAUSED, "migration");
	} else {
		m->t.stop = now_usec();
	}
	log_info("the guest is saved to %s", up->saved->file);
	machine_qmp(m->k, "migrate", json_build("uri", "s", "fd:" FILE_FD_NAME, NULL), on_command, m);
	perform_watch(m);
	return 0;
}

/* In the worker: of a file of many GiB it may take minutes, and of storage that does not answer for ever. */
static int sync_file(const char *request, WorkerAnswer *answer, void *userdata)
{
	const Upgrade *up = userdata;

	(void)request;
	fault_storage("the saved state's storage");
	if (fsync(up->save_fd) < 0)
		return error_set(&answer->err, -errno, "cannot write %s: %m", up->saved->file);
	return 0;
}

static void on_synced(WorkerAnswer *answer, void *userdata)
{
	Move *m = userdata;

	if (answer->r < 0)
		move_fail(m, TAKE_PTR(answer->err));
	else
		move_event(m, MOVE_EV_SYNCED);
}

int do_sync_file(Move *m)
{
	Upgrade *up = m->up;
	Error *err = NULL;
	int r = worker_run(m->k->event, sync_file, up, up->save_fd, 0, on_synced, m, &up->sync, &err);

	move_error(m, err);
	return r;
}

void save_give_up(Upgrade *up)
{
	if (!up->sync)
		return;
	up->sync = worker_free(up->sync);
	up->silent = true;
}

int do_commit_save(Move *m)
{
	Upgrade *up = m->up;
	Error *err = NULL;
	struct stat st;
	int r = 0;

	if (m->error)
		return -ECANCELED;
	if (fstat(up->save_fd, &st) < 0)
		r = error_set(&err, -errno, "the saved state %s: %m", up->saved->file);
	if (r >= 0) {
		up->saved->size = (uint64_t)st.st_size;
		up->saved->kind = SAVED_WHOLE;
		r = saved_write(m->k->name, up->saved, &err);
	}
	move_error(m, err);
	if (r < 0) {
		up->saved->kind = SAVED_WRITING;
		return r;
	}
	up->save_fd = fd_close(up->save_fd);
	m->t.committed = now_usec();
	log_info("%s has the guest", up->saved->file);
	return 0;
}

int do_kill_saved(Move *m)
{
	m->up->load_watch = sd_event_source_disable_unref(m->up->load_watch);
	keeper_lease_ended(m->k); /* the next one is to have it */
	machine_kill(m->k);
	return 0;
}

/* ---- into another one ---- */

static void swap_definitions(Upgrade *up)
{
	VmDefinition *def = up->def;

	up->def = up->m->k->def;
	up->m->k->def = def;
}

/* What was ours when the guest was saved is ours still: we hold it, or nobody else has had it since. */
static int take_lease(Upgrade *up, Error **err)
{
	Keeper *k = up->m->k;
	int r = 0;

	if (k->def->lease == LEASE_NONE)
		return 0;
	if (k->lease)
		keeper_lease_ended(k); /* its QEMU may have gone by itself */
	else
		r = keeper_lease_open(k, false, err);
	if (r < 0 || !up->saved->lease)
		return r;
	return keeper_lease_retake(k, err);
}

int do_start_fill(Move *m)
{
	Upgrade *up = m->up;
	Keeper *k = m->k;
	Error *err = NULL;
	int r;

	if (!up->killed)
		up->killed = now_usec();
	up->viewers_fd = fd_close(up->viewers_fd); /* machine_start() takes the port */
	if (!up->filling)
		swap_definitions(up);
	up->filling = true;
	m->ram_remaining = up->saved->size;
	m->ram_total = up->saved->size;
	r = take_lease(up, &err);
	if (r >= 0)
		r = machine_start(k, true, &err);
	move_error(m, err);
	return r;
}

/* The file's offset is QEMU's, too: open(2), "open file description". */
static int on_look(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	off_t at = lseek(m->up->save_fd, 0, SEEK_CUR);
	json_object *text;

	(void)usec;
	if (m->state != MOVE_U_RESTORE)
		return 0;
	if (at > 0 && (uint64_t)at <= m->ram_total && m->ram_total - (uint64_t)at != m->ram_remaining) {
		m->ram_remaining = m->ram_total - (uint64_t)at;
		move_progress_made(m);
	}
	text = report_progress(m);
	control_emit_text(m->k, "Progress", json_text(text));
	json_object_put(text);
	sd_event_source_set_time_relative(source, LOOK_USEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

void save_qemu_ready(Move *m)
{
	m->up->filled = now_usec();
	move_event(m, MOVE_EV_QEMU_READY);
}

int do_load_file(Move *m)
{
	Upgrade *up = m->up;
	Error *err = NULL;
	int r = 0;

	if (!m->k->qmp)
		return -ENOTCONN;
	fd_close(up->save_fd);
	up->save_fd = saved_open(up->saved, &err);
	r = up->save_fd < 0 ? up->save_fd : 0;
	if (r >= 0) {
		machine_qmp(m->k, "migrate-set-capabilities", migration_capabilities_file(), on_command, m);
		r = give_file(m, up->save_fd, &err);
	}
	move_error(m, err);
	if (r < 0)
		return r;
	machine_qmp(m->k, "migrate-incoming", json_build("uri", "s", "fd:" FILE_FD_NAME, NULL), on_command, m);
	up->load_watch = sd_event_source_disable_unref(up->load_watch);
	return sd_event_add_time_relative(m->k->event, &up->load_watch, CLOCK_MONOTONIC, LOOK_USEC, 0, on_look, m);
}

/* One that cannot load it ends, and its last words say why. */
void save_migration_event(Move *m, const char *status, uint64_t at)
{
	if (!streq(status, "completed") || m->state != MOVE_U_RESTORE)
		return;
	m->t.loaded = at;
	m->ram_remaining = 0;
	m->up->load_watch = sd_event_source_disable_unref(m->up->load_watch);
	move_event(m, MOVE_EV_LOADED);
}

static int check_lease(const Upgrade *up, Error **err)
{
	Lease *lease = up->m->k->lease;

	if (!up->saved->lease)
		return 0;
	return lease && lease_held(lease) ? keeper_lease_check(up->m->k, err) : error_set(err, -ENOLCK, "the lease is lost");
}

/* The last moment at which the file is good for anything: from here on the guest may run. */
int do_use_up(Move *m)
{
	Upgrade *up = m->up;
	Error *err = NULL;
	int r = machine_attach_taps(m->k, &err);

	if (r >= 0)
		r = check_lease(up, &err);
	if (r >= 0 && (r = keeper_save_state(m->k)) < 0)
		error_set(&err, r, "cannot record which QEMU has the guest: %s", strerror(-r));
	if (r >= 0) {
		up->saved->kind = SAVED_USED;
		up->saved->fell_back = up->fell_back;
		r = saved_write(m->k->name, up->saved, &err);
	}
	move_error(m, err);
	if (r < 0) {
		up->saved->kind = SAVED_WHOLE;
		return r;
	}
	up->restored = true;
	up->changed_over = !up->fell_back;
	return 0;
}

int do_fall_back(Move *m)
{
	Upgrade *up = m->up;

	if (up->fell_back)
		return -ENOENT; /* both have been tried */
	move_warn(m, "the new version did not take the guest: the old one goes on with it");
	up->fell_back = true;
	swap_definitions(up);
	return 0;
}

/* ---- the end ---- */

static int remove_file(const char *request, WorkerAnswer *answer, void *userdata)
{
	(void)request;
	return saved_remove_file(userdata, &answer->err);
}

/* As long as the record is there, the next keeper tries as well. */
static void on_removed(WorkerAnswer *answer, void *userdata)
{
	Keeper *k = userdata;

	if (answer->r < 0)
		log_warning("%s", answer->err->message);
	else
		saved_remove_record(k->name);
}

/* Its storage may not answer: then the file goes when it does, and the record after it. */
static void remove_saved(Keeper *k, Upgrade *up)
{
	_cleanup_error_ Error *err = NULL;

	up->save_fd = fd_close(up->save_fd);
	if (worker_run(k->event, remove_file, up->saved, -1, 0, on_removed, k, &k->remover, &err) < 0) {
		log_error("%s", err->message);
		return;
	}
	if (!up->silent)
		worker_wait(k->remover, REMOVE_USEC);
	if (k->remover)
		log_warning("%s is not removed yet", up->saved->file);
}

int save_busy(const Keeper *k, Error **err)
{
	if (!k->remover)
		return 0;
	error_set(err, -EBUSY, "the file of the upgrade before is not removed yet");
	error_hint(err, "its storage does not answer: see to that");
	return -EBUSY;
}

void save_end(Move *m)
{
	Upgrade *up = m->up;
	Saved *saved = up->saved;
	Keeper *k = m->k;

	if (!saved)
		return;
	if (saved->kind != SAVED_WHOLE) {
		remove_saved(k, up);
		return;
	}
	error_hint_more(&m->error,
			"the guest is kept in %s: vmferry start %s goes on with it when the cause is gone; remove that "
			"file to start the VM from its disks, as after a power cut",
			saved->file, k->name);
	log_error("%s has the guest, and no QEMU: the file is kept", saved->file);
	keeper_history(k, "saved", json_build("file", "s", saved->file, NULL));
	keeper_set_state(k, VM_SHUTOFF, "saved");
}

/* ---- a keeper came (back) ---- */

/* The file has gone with the runtime directory: nothing is left of the guest but its disks. */
static int lost(Keeper *k, const Saved *saved, const Error *why)
{
	log_error("%s: the VM is off, as after a power cut", why->message);
	keeper_history(k, "saved state lost", json_build("file", "s", saved->file, NULL));
	machine_sweep(k);
	saved_remove(k->name, saved);
	return 0;
}

static int load_definitions(Keeper *k, Upgrade *up, Error **err)
{
	int r;

	vm_definition_free(TAKE_PTR(k->def));
	r = vm_definition_parse(k->name, up->saved->old, "saved", &k->def, err);
	return r < 0 ? r : vm_definition_parse(k->name, up->saved->fresh, "saved", &up->def, err);
}

static int go_on(Keeper *k, Saved *saved, Error **err)
{
	Move *m = k->move;
	Upgrade *up = xcalloc(1, sizeof(*up));
	int r;

	move_reset(m);
	*up = (Upgrade){.m = m, .way = WAY_SAVE, .saved = saved, .save_fd = -1, .serial_fd = -1, .viewers_fd = -1, .stream = {-1, -1}};
	m->up = up;
	memcpy(m->id, saved->id, sizeof(m->id));
	m->was_running = saved->running;
	r = load_definitions(k, up, err);
	if (r >= 0)
		r = machine_adopt_doomed(k, err);
	if (r < 0)
		return r;
	up->from_binary = xstrdup(k->def->binary);
	up->to_binary = xstrdup(up->def->binary);
	up->old = k->generation;
	keeper_set_state(k, VM_PAUSED, "saved");
	move_begin_at(m, k->qemu ? MOVE_U_QUIT : MOVE_U_EMPTY, "a file has the guest");
	move_event(m, MOVE_EV_RESTART);
	if (k->ready_fd < 0)
		keeper_say_ready(k, NULL); /* else when it is known how that ends */
	return 1;
}

int save_adopt(Keeper *k, unsigned int flags, Error **err)
{
	_cleanup_(saved_freep)
	Saved *saved = NULL;
	_cleanup_error_ Error *why = NULL;
	_cleanup_fd_ int fd = -1;
	int r = saved_read(k->name, &saved, err);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (saved->kind != SAVED_WHOLE) {
		if (!move_noted(k)) /* of a host that went down meanwhile */
			saved_remove(k->name, saved);
		return 0;
	}
	fd = saved_open(saved, &why);
	if (fd < 0 && saved_in_runtime(saved))
		return lost(k, saved, why);
	if (fd < 0) { /* it may be mounted yet */
		error_hint(&why, "mount what it is on; or remove %s/%s/saved, and %s starts from its disks, as after a power cut",
			   state_dir(), k->name, k->name);
		*err = TAKE_PTR(why);
		return fd;
	}
	if (!keeper_owner(k))
		return error_set(err, -EPERM, "%s's guest is saved in %s, but the journal says that it is not this host's",
				 k->name, saved->file);
	if (flags & (KEEPER_INCOMING | KEEPER_OFFLINE)) {
		error_set(err, -EBUSY, "%s's guest is saved in %s", k->name, saved->file);
		error_hint(err, "vmferry start %s goes on with it", k->name);
		return -EBUSY;
	}
	return go_on(k, TAKE_PTR(saved), err);
}
