/* SPDX-License-Identifier: GPL-2.0-or-later */
/* QEMU's life as the keeper sees it: start, events, end. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

#include "keeper/move.h"
#include "keeper/scope.h"
#include "keeper/upgrade.h"
#include "qemu/tap.h"

char *machine_generation_dir(const Keeper *k, unsigned int generation)
{
	_cleanup_free_ char *file = xasprintf("qemu.%u", generation);

	return runtime_path(k->name, file);
}

unsigned int machine_next_generation(const Keeper *k)
{
	for (unsigned int n = k->generation + 1;; n++) {
		_cleanup_free_ char *dir = machine_generation_dir(k, n);

		if (access(dir, F_OK) < 0)
			return n;
	}
}

int machine_write_definition(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, "definition"), *text = vm_definition_text(k->def);
	int r = file_write(path, text, strlen(text), 0600, false);

	return r < 0 ? error_set(err, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

int machine_attach_taps_of(const QemuProcess *qemu, const VmDefinition *def, Error **err)
{
	for (size_t i = 0; i < def->n_nics; i++) {
		_cleanup_fd_ int fd = qemu_process_tap_fd(qemu, i);
		int r;

		if (fd < 0)
			return error_set(err, fd, "nic %s: its tap is gone: %s", def->nics[i].id, strerror(-fd));
		r = tap_attach(fd, &def->nics[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

int machine_attach_taps(Keeper *k, Error **err)
{
	return machine_attach_taps_of(k->qemu, k->def, err);
}

void machine_qmp(Keeper *k, const char *command, json_object *arguments, QmpReply reply, void *userdata)
{
	if (k->qmp)
		qmp_command(k->qmp, command, arguments, reply, userdata);
	else
		json_object_put(arguments); /* QEMU is going: its exit is the event */
}

void machine_link_agent(Keeper *k)
{
	_cleanup_free_ char *path = runtime_path(k->name, "agent"), *fresh = runtime_path(k->name, "agent.new"),
			    *socket = xasprintf("qemu.%u/agent", k->qemu->generation);

	if (!k->def->agent)
		return;
	(void)unlink(fresh);
	if (symlink(socket, fresh) < 0 || rename(fresh, path) < 0)
		log_warning("cannot link %s: %m", path);
}

/* ---- the end ---- */

void machine_gone(Keeper *k)
{
	_cleanup_free_ char *dir = xstrdup(k->qemu->dir);

	k->qemu_words = sd_event_source_disable_unref(k->qemu_words);
	waitid(P_PIDFD, (id_t)k->qemu->pidfd, NULL, WEXITED | WNOHANG);
	k->qemu_exit = sd_event_source_disable_unref(k->qemu_exit);
	k->qmp_usable = false;
	k->qmp = k->qmp ? qmp_free(k->qmp) : NULL;
	stats_forget(k->stats);
	viewers_close(k);
	k->console = console_free(k->console);
	qemu_process_free(TAKE_PTR(k->qemu));
	move_fact(k->move, MOVE_FACT_ALIVE, false);
	if (dir_remove(dir) < 0)
		log_warning("cannot remove %s", dir);
}

static const char *why_off(Keeper *k, bool asked)
{
	if (k->state == VM_SHUTOFF)
		return k->reason;
	return asked ? "destroyed" : "crashed";
}

/* QEMU is gone and no migration has a say in it: the VM is off. */
static void vm_off(Keeper *k, const char *words, bool asked)
{
	_cleanup_error_ Error *err = NULL;
	const char *reason = why_off(k, asked);

	if (k->ready_fd >= 0) {
		error_set(&err, -EIO, "QEMU ended: %s", words);
		error_hint(&err, "see %s/%s/log", state_dir(), k->name);
		log_error("%s", err->message);
		keeper_say_ready(k, err);
	} else if (streq(reason, "crashed")) {
		log_error("QEMU died: %s", words);
	}
	keeper_set_state(k, VM_SHUTOFF, reason);
	keeper_history(k, reason, NULL);
	keeper_leave(k);
}

static int on_check_off(sd_event_source *source, uint64_t usec, void *userdata)
{
	Keeper *k = userdata;

	(void)usec;
	k->idle_timer = sd_event_source_disable_unref(source);
	if (!k->qemu && !k->leaving && !move_active(k->move))
		vm_off(k, "without a word", k->kill_sent);
	return 0;
}

void machine_check_off(Keeper *k)
{
	if (k->incoming)
		return;
	k->idle_timer = sd_event_source_disable_unref(k->idle_timer);
	(void)sd_event_add_time_relative(k->event, &k->idle_timer, CLOCK_MONOTONIC, 0, 1, on_check_off, k);
}

static int on_qemu_exit(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Keeper *k = userdata;
	_cleanup_free_ char *words = qemu_process_last_words(k->qemu->dir);
	bool asked = TAKE_PTR(k->qemu_exit) && k->kill_sent;

	(void)fd;
	(void)revents;
	sd_event_source_disable_unref(source);
	k->kill_sent = false;
	if (!asked)
		keeper_lease_explain(k);
	machine_gone(k);
	if (move_active(k->move)) {
		_cleanup_error_ Error *err = NULL;

		if (!asked) {
			error_set(&err, -EPIPE, "QEMU ended: %s", *words ? words : "without a word");
			move_error(k->move, TAKE_PTR(err));
		}
		move_event(k->move, MOVE_EV_QEMU_DEAD);
	}
	confirm_qemu_gone(k->move);
	if (move_active(k->move) || k->leaving || move_recover_dead(k))
		return 0;
	keeper_lease_drop(k);
	if (k->incoming)
		keeper_check_idle(k);
	else
		vm_off(k, words, asked);
	return 0;
}

int machine_watch_exit(Keeper *k)
{
	return sd_event_add_io(k->event, &k->qemu_exit, k->qemu->pidfd, EPOLLIN, on_qemu_exit, k);
}

static void on_run_state(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;
	const char *status = "";

	if (!error && json_get_string(ret, "status", &status) && streq(status, "suspended") && k->state == VM_RUNNING)
		keeper_set_state(k, VM_RUNNING, "suspended");
}

void machine_learn_suspended(Keeper *k)
{
	machine_qmp(k, "query-status", NULL, on_run_state, k);
}

void machine_kill(Keeper *k)
{
	if (!k->qemu)
		return;
	k->kill_sent = true;
	(void)qemu_process_kill(k->qemu);
}

/* ---- QMP ---- */

static void on_powered_off(Keeper *k, const char *reason)
{
	keeper_set_state(k, VM_SHUTOFF, reason);
	if (move_active(k->move)) {
		_cleanup_error_ Error *err = NULL;

		error_set(&err, -ESHUTDOWN, "the guest %s during the migration",
			  streq(reason, "panicked") ? reason : "was shut down");
		move_error(k->move, TAKE_PTR(err));
		move_event(k->move, MOVE_EV_GUEST_OFF);
	}
	if (!move_active(k->move) || !move_committed(k->move->state))
		machine_kill(k);
}

/* QAPI: GUEST_PANICKED. With -no-shutdown QEMU only pauses; a guest that was told to run on (-action panic=none) does. */
static void on_panicked(Keeper *k, json_object *data)
{
	const char *action = "";

	keeper_history(k, "panicked", NULL);
	(void)json_get_string(data, "action", &action);
	if (!streq(action, "run"))
		on_powered_off(k, "panicked");
}

static void on_event(const char *name, json_object *data, uint64_t at, void *userdata)
{
	Keeper *k = userdata;
	const char *reason = "";

	log_debug("QEMU: %s", name);
	if (streq(name, "SHUTDOWN")) {
		(void)json_get_string(data, "reason", &reason);
		on_powered_off(k, streq(reason, "guest-panic") ? "panicked" : "shutdown");
		return;
	}
	/* ACPI S3: for people only, QEMU itself keeps it through a migration. */
	if (streq(name, "SUSPEND") && k->state == VM_RUNNING)
		keeper_set_state(k, VM_RUNNING, "suspended");
	if (streq(name, "WAKEUP") && k->state == VM_RUNNING)
		keeper_set_state(k, VM_RUNNING, "wakeup");
	if (streq(name, "GUEST_PANICKED")) {
		on_panicked(k, data);
		return;
	}
	if (streq(name, "RESET"))
		keeper_history(k, "reset", NULL);
	if (streq(name, "SPICE_MIGRATE_COMPLETED")) {
		graphics_handed_over(k->move);
	} else if (move_active(k->move)) {
		move_qemu_event(k->move, name, data, at);
	} else if (streq(name, "STOP") && k->state == VM_RUNNING) {
		keeper_set_state(k, VM_PAUSED, "stopped by QEMU");
	} else if (streq(name, "RESUME")) {
		keeper_set_state(k, VM_RUNNING, "unpaused");
		wait_done(k, WAIT_RUNNING);
	}
}

static void on_closed(int error, void *userdata)
{
	Keeper *k = userdata;

	/* QEMU's exit, seen by its pidfd, says more; a QEMU that lives without QMP is of no use to anybody. */
	log_debug("QMP connection closed: %s", strerror(-error));
	k->qmp = qmp_free(k->qmp);
	k->qmp_usable = false;
	if (error == -EBADMSG) {
		log_error("QEMU said something that is not QMP: killed");
		machine_kill(k);
	}
}

static void on_booted(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)ret;
	if (error) {
		error_set(&err, -EIO, "QEMU will not start the guest: %s", error);
		keeper_say_ready(k, err);
		machine_kill(k);
		return;
	}
	keeper_set_state(k, VM_RUNNING, "booted");
	keeper_history(k, "started", NULL);
	keeper_say_ready(k, NULL);
}

/* "pc-q35-10.0-machine": what "q35" means today is what it will mean for this VM. */
static void on_machine_type(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;
	_cleanup_free_ char *path = NULL, *text = NULL;
	const char *type = ret ? json_object_get_string(ret) : NULL;
	size_t len = type ? strlen(type) : 0;

	if (error || len <= 8 || !streq(type + len - 8, "-machine")) {
		log_warning("QEMU does not say its machine type: the VM's is not pinned");
		return;
	}
	free(k->def->machine);
	k->def->machine = strndup(type, len - 8);
	path = k->arrived ? state_path(k->name, "definition") : state_path(k->name, "pin");
	text = vm_definition_text(k->def);
	(void)file_write(path, text, strlen(text), 0600, true);
	(void)machine_write_definition(k, NULL);
}

char *machine_version_text(json_object *ret)
{
	uint64_t major = 0, minor = 0, micro = 0;

	(void)json_get_u64(ret, "qemu.major", &major);
	(void)json_get_u64(ret, "qemu.minor", &minor);
	(void)json_get_u64(ret, "qemu.micro", &micro);
	return xasprintf("%u.%u.%u", (unsigned int)major, (unsigned int)minor, (unsigned int)micro);
}

static void on_version(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;

	if (error)
		return;
	free(k->qemu_version);
	k->qemu_version = machine_version_text(ret);
}

void machine_boot(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;

	if (machine_attach_taps(k, &err) < 0) {
		log_error("%s", err->message);
		keeper_say_ready(k, err);
		machine_kill(k);
		return;
	}
	machine_qmp(k, "qom-get", json_build("path", "s", "/machine", "property", "s", "type", NULL), on_machine_type,
		    k);
	machine_qmp(k, "cont", NULL, on_booted, k);
}

static void on_ready(void *userdata)
{
	Keeper *k = userdata;

	k->qmp_usable = true;
	viewers_look(k);
	machine_qmp(k, "query-version", NULL, on_version, k);
	switch (k->state) {
	case VM_STARTING:
		machine_boot(k);
		break;
	case VM_INCOMING:
		if (k->move->up)
			save_qemu_ready(k->move);
		else
			move_qemu_ready(k->move);
		break;
	case VM_SHUTOFF:
	case VM_RUNNING:
	case VM_PAUSED:
	case VM_CRASHED:
	case VM_IN_DOUBT:
	case _VM_STATE_MAX:
		break;
	}
}

/* What a guest can make QEMU say must not fill the file system. */
static int on_words(sd_event_source *source, const struct inotify_event *event, void *userdata)
{
	Keeper *k = userdata;

	(void)source;
	(void)event;
	if (k->qemu)
		qemu_process_trim_words(k->qemu->dir);
	return 0;
}

static int watch_words(Keeper *k)
{
	_cleanup_free_ char *path = xasprintf("%s/stderr", k->qemu->dir);

	qemu_process_trim_words(k->qemu->dir);
	return sd_event_add_inotify(k->event, &k->qemu_words, path, IN_MODIFY, on_words, k);
}

static const QmpHandlers handlers = {.ready = on_ready, .event = on_event, .closed = on_closed};

QemuProcess *machine_take_over(Keeper *k, QemuProcess *qemu, Qmp *qmp)
{
	QemuProcess *old = k->qemu;
	sd_event_source *words = TAKE_PTR(k->qemu_words);

	k->qemu_exit = sd_event_source_disable_unref(k->qemu_exit);
	if (k->qmp)
		qmp_free(k->qmp);
	k->qemu = qemu;
	k->qmp = qmp;
	if (qmp)
		qmp_set_handlers(qmp, &handlers, k);
	if (machine_watch_exit(k) < 0)
		log_error("QEMU's end will not be seen");
	viewers_look(k);
	/* In this order sd-event keeps its inotify fd: to close it is to wait for the kernel, 10-25 ms (SRCU). */
	(void)watch_words(k);
	sd_event_source_disable_unref(words);
	return old;
}

int machine_connect(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = xasprintf("%s/qmp", k->qemu->dir);
	int fd = unix_connect(path), r;

	r = fd < 0 ? fd : qmp_new(k->event, fd, &handlers, k, &k->qmp);
	if (r >= 0)
		r = machine_watch_exit(k);
	if (r >= 0 && watch_words(k) < 0)
		log_warning("QEMU's standard error cannot be watched");
	if (r < 0)
		return error_set(err, r, "cannot reach QEMU on %s: %s", path, strerror(-r));
	move_fact(k->move, MOVE_FACT_ALIVE, true);
	machine_link_agent(k);
	return console_open(k, err);
}

static int not_started(Keeper *k, int r)
{
	viewers_close(k);
	keeper_lease_drop(k);
	return r;
}

int machine_start(Keeper *k, bool incoming, Error **err)
{
	_cleanup_fd_ int memfd = -1;
	_cleanup_free_ char *dir = NULL;
	int r;

	if (k->def->memory_backing != MEMORY_PRIVATE) {
		memfd = qemu_memfd_new(k->def, err);
		if (memfd < 0)
			return memfd;
	}
	r = viewers_start(k, err);
	if (r >= 0)
		r = machine_write_definition(k, err);
	if (r >= 0 && !k->lease)
		r = keeper_lease_open(k, !incoming, err);
	if (r < 0)
		return not_started(k, r);
	k->generation = machine_next_generation(k);
	dir = machine_generation_dir(k, k->generation);
	keeper_set_state(k, incoming ? VM_INCOMING : VM_STARTING, incoming ? "migration" : "starting");
	r = qemu_process_start(&(QemuStart){.definition = k->def,
					    .user = k->conf->qemu_user,
					    .dir = dir,
					    .generation = k->generation,
					    .incoming = incoming,
					    .memfd = memfd,
					    .disk_paths = incoming || k->arrived ? k->conf->receive.disk_paths : NULL,
					    .lease = k->lease},
			       &k->qemu, err);
	if (r < 0)
		return not_started(k, r);
	r = keeper_lease_started(k, err);
	if (r >= 0)
		r = machine_connect(k, err);
	if (r < 0) {
		(void)qemu_process_kill(k->qemu);
		waitid(P_PIDFD, (id_t)k->qemu->pidfd, NULL, WEXITED);
		machine_gone(k);
		return not_started(k, r);
	}
	scope_start(k, k->qemu);
	return 0;
}
