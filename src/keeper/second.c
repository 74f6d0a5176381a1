/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The other QEMU process of an upgrade: the new one until the guest is its own, then the old one until it is reaped. */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "keeper/scope.h"
#include "keeper/upgrade.h"
#include "keeper/worker.h"

/* ---- its end ---- */

static void reap(Upgrade *up)
{
	_cleanup_free_ char *dir = xstrdup(up->other->dir);

	up->other_exit = sd_event_source_disable_unref(up->other_exit);
	up->qmp = up->qmp ? qmp_free(up->qmp) : NULL;
	/* Not a child of ours when it was started by the keeper before us: then its parent reaps it. */
	(void)waitid(P_PIDFD, (id_t)up->other->pidfd, NULL, WEXITED | WNOHANG);
	qemu_process_free(TAKE_PTR(up->other));
	if (dir_remove(dir) < 0)
		log_warning("cannot remove %s", dir);
	up->reaped = now_usec();
}

static int on_other_exit(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Upgrade *up = userdata;
	Move *m = up->m;
	_cleanup_free_ char *words = qemu_process_last_words(up->other->dir);
	Error *err = NULL;

	(void)source;
	(void)fd;
	(void)revents;
	if (!up->other_killed) {
		error_set(&err, -EPIPE, "the new QEMU ended: %s", *words ? words : "without a word");
		error_hint(&err, "it is %s; see vmferry upgrade --check", up->to_binary);
	}
	reap(up);
	move_fact(m, MOVE_FACT_OTHER, false);
	if (err)
		move_error(m, err);
	move_event(m, up->changed_over ? MOVE_EV_QEMU_GONE : MOVE_EV_NEW_DEAD);
	return 0;
}

int second_watch(Upgrade *up, QemuProcess *process)
{
	up->other = process;
	move_fact(up->m, MOVE_FACT_OTHER, true);
	up->other_exit = sd_event_source_disable_unref(up->other_exit);
	return sd_event_add_io(up->m->k->event, &up->other_exit, process->pidfd, EPOLLIN, on_other_exit, up);
}

void second_kill(Upgrade *up)
{
	up->qmp = up->qmp ? qmp_free(up->qmp) : NULL;
	if (!up->other || up->other_killed)
		return;
	up->other_killed = true;
	(void)qemu_process_kill(up->other);
}

Upgrade *upgrade_free(Upgrade *up)
{
	if (!up)
		return NULL;
	if (up->other && up->other_killed) {
		struct pollfd p = {.fd = up->other->pidfd, .events = POLLIN};

		(void)poll(&p, 1, 1000); /* SIGKILL was sent long ago */
		reap(up);
	}
	up->other_exit = sd_event_source_disable_unref(up->other_exit);
	if (up->qmp)
		qmp_free(up->qmp);
	qemu_process_free(up->other);
	vm_definition_free(up->def);
	fd_close(up->serial_fd);
	fd_close(up->viewers_fd);
	fd_close(up->stream[0]);
	fd_close(up->stream[1]);
	up->sync = worker_free(up->sync);
	fd_close(up->save_fd);
	up->load_watch = sd_event_source_disable_unref(up->load_watch);
	saved_free(up->saved);
	free(up->binary);
	free(up->to_definition);
	free(up->from_binary);
	free(up->to_binary);
	free(up->from_version);
	free(up->to_version);
	free(up);
	return NULL;
}

/* ---- its QMP, until the guest is its own ---- */

static void on_version(json_object *ret, const char *error, void *userdata)
{
	Upgrade *up = userdata;

	if (error)
		return; /* its exit says more */
	free(up->to_version);
	up->to_version = machine_version_text(ret);
	log_info("the new QEMU is %s, process %d", up->to_version, up->other ? (int)up->other->pid : 0);
	up->ready = now_usec();
	move_event(up->m, MOVE_EV_QEMU_READY);
}

static void on_ready(void *userdata)
{
	Upgrade *up = userdata;

	qmp_command(up->qmp, "query-version", NULL, on_version, up);
}

static void on_event(const char *name, json_object *data, uint64_t at, void *userdata)
{
	Upgrade *up = userdata;
	Move *m = up->m;
	const char *status;
	Error *err = NULL;

	if (!streq(name, "MIGRATION") || !json_get_string(data, "status", &status))
		return;
	log_debug("the new QEMU: migration %s", status);
	if (streq(status, "completed")) {
		m->t.loaded = at;
		move_fact(m, MOVE_FACT_LOAD_DONE, true);
		move_event(m, MOVE_EV_LOADED);
	} else if (streq(status, "failed")) {
		error_set(&err, -EIO, "the new QEMU could not load the guest's state");
		error_hint(&err, "see %s/stderr and %s/%s/log", up->other ? up->other->dir : "", state_dir(),
			   m->k->name);
		move_fail(m, err);
	}
}

static void on_closed(int error, void *userdata)
{
	Upgrade *up = userdata;

	/* Its exit, seen by its pidfd, says more; one that lives without QMP is of no use. */
	up->qmp = qmp_free(up->qmp);
	if (error != -EPIPE && up->other)
		(void)qemu_process_kill(up->other);
}

int second_connect(Upgrade *up)
{
	static const QmpHandlers handlers = {.ready = on_ready, .event = on_event, .closed = on_closed};
	_cleanup_free_ char *qmp = xasprintf("%s/qmp", up->other->dir),
			    *serial = xasprintf("%s/serial", up->other->dir);
	_cleanup_fd_ int fd = unix_connect(qmp);
	int r;

	if (fd < 0)
		return fd;
	r = qmp_new(up->m->k->event, fd, &handlers, up, &up->qmp);
	if (r < 0)
		return r;
	TAKE_FD(fd);
	if (up->def->serial == SERIAL_NONE)
		return 0;
	/* Before the guest runs there, so that no output is lost. */
	up->serial_fd = unix_connect(serial);
	return up->serial_fd < 0 ? up->serial_fd : 0;
}

/* ---- its beginning ---- */

static int write_definition(Upgrade *up, Error **err)
{
	_cleanup_free_ char *path = runtime_path(up->m->k->name, "definition.next"),
			    *text = vm_definition_text(up->def);
	int r = file_write(path, text, strlen(text), 0600, false);

	return r < 0 ? error_set(err, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

/* One that is only tried gets memory that it does not touch, so never of pages that have to be set aside. */
static void memory_for_a_try(VmDefinition *def)
{
	if (def->memory_backing == MEMORY_HUGE)
		def->memory_backing = MEMORY_SHARED;
}

static int guest_memory(Upgrade *up, const VmDefinition *def, Error **err)
{
	int fd;

	if (def->memory_backing == MEMORY_PRIVATE)
		return -1;
	if (up->way != WAY_IN_PLACE)
		return qemu_memfd_new(def, err);
	fd = qemu_process_memfd(up->m->k->qemu);
	return fd < 0 ? error_set(err, fd, "the guest's memory cannot be had from its QEMU: %s", strerror(-fd)) : fd;
}

int second_start(Upgrade *up, Error **err)
{
	Keeper *k = up->m->k;
	_cleanup_fd_ int memfd = -1;
	_cleanup_free_ char *dir = machine_generation_dir(k, up->fresh);
	QemuProcess *process = NULL;
	VmDefinition def = *up->def;
	int r;

	if (up->way == WAY_SAVE)
		memory_for_a_try(&def);
	memfd = guest_memory(up, &def, err);
	if (memfd < 0 && def.memory_backing != MEMORY_PRIVATE)
		return memfd;
	r = viewers_listen(k, up->def, &up->viewers_fd, err);
	if (r >= 0)
		r = write_definition(up, err);
	if (r < 0)
		return r;
	r = qemu_process_start(&(QemuStart){.definition = &def,
					    .user = k->conf->qemu_user,
					    .dir = dir,
					    .generation = up->fresh,
					    .incoming = true,
					    .memfd = memfd,
					    .disk_paths = k->arrived && !up->to_definition ? k->conf->receive.disk_paths : NULL,
					    .lease = k->lease},
			       &process, err);
	if (r < 0)
		return r;
	up->spawned = now_usec();
	scope_start(k, process);
	r = second_watch(up, process);
	if (r >= 0)
		r = second_connect(up);
	if (r == -ECONNREFUSED)
		return 0; /* nobody listens any more: it has ended, and its exit says why */
	return r < 0 ? error_set(err, r, "cannot reach the new QEMU in %s: %s", dir, strerror(-r)) : 0;
}

int second_attach_taps(Upgrade *up, Error **err)
{
	return up->other ? machine_attach_taps_of(up->other, up->def, err) : 0;
}

/* ---- the change ---- */

void second_change_over(Upgrade *up)
{
	Keeper *k = up->m->k;
	VmDefinition *def = k->def;

	if (up->viewers_fd < 0) /* the keeper before us had it */
		(void)viewers_listen(k, up->def, &up->viewers_fd, NULL);
	up->other_exit = sd_event_source_disable_unref(up->other_exit);
	k->def = up->def;
	up->def = def;
	console_switch(k, TAKE_FD(up->serial_fd));
	viewers_open(k, TAKE_FD(up->viewers_fd));
	(void)second_watch(up, machine_take_over(k, TAKE_PTR(up->other), TAKE_PTR(up->qmp)));
	up->other_killed = up->changed_over = true;
	keeper_lease_follow(k);
	up->killed = now_usec();
	free(k->qemu_version);
	k->qemu_version = up->to_version ? xstrdup(up->to_version) : NULL;
}
