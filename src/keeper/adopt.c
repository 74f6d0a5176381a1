/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A keeper came back: which QEMU lives, and has the guest; the others go. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sys/wait.h>

#include "keeper/upgrade.h"

#define ADOPT_TRIES 250 /* of 20 ms */
#define KILLED_MSEC 1000

/*
 * A QEMU that was killed a moment ago holds its lock until its last thread is gone: wait for that, it is no migration's
 * pause. Return: as qemu_process_adopt().
 */
static int adopt_settled(const char *dir, unsigned int generation, QemuProcess **ret, Error **err)
{
	struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};

	for (unsigned int tries = 0;; tries++) {
		int r = qemu_process_adopt(dir, generation, ret, err);

		if (r != -EAGAIN || tries == ADOPT_TRIES)
			return r;
		error_free(TAKE_PTR(*err));
		(void)ppoll(NULL, 0, &pause, NULL);
	}
}

int machine_adopt_generation(Keeper *k, unsigned int generation, QemuProcess **ret, Error **err)
{
	_cleanup_free_ char *dir = machine_generation_dir(k, generation);
	int r = adopt_settled(dir, generation, ret, err);

	if (r == -ESRCH || r == -ENOENT) {
		error_free(TAKE_PTR(*err));
		return 0;
	}
	return r < 0 ? r : 1;
}

/* A QEMU of a generation that does not have the guest: it was being killed when the keeper before us ended. */
static void sweep(Keeper *k, unsigned int generation)
{
	_cleanup_free_ char *dir = machine_generation_dir(k, generation);
	_cleanup_qemu_process_ QemuProcess *left = NULL;
	_cleanup_error_ Error *err = NULL;

	if (machine_adopt_generation(k, generation, &left, &err) > 0) {
		struct pollfd p = {.fd = left->pidfd, .events = POLLIN};

		log_warning("process %d is a QEMU without the guest: killed", (int)left->pid);
		(void)qemu_process_kill(left);
		(void)poll(&p, 1, KILLED_MSEC);
	}
	(void)dir_remove(dir);
}

/*
 * Calls @each for every generation that has a directory, until one says other than 0. Return: what the last one said; 0
 * when there is none.
 */
static int for_each_generation(Keeper *k, int (*each)(Keeper *k, unsigned int generation, Error **err), Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, NULL);
	DIR *dir = opendir(path);
	struct dirent *entry;
	int r = 0;

	while (dir && r == 0 && (entry = readdir(dir))) {
		const char *number = startswith(entry->d_name, "qemu.");
		uint64_t n;

		if (number && text_parse_u64(number, &n) == 0 && n <= UINT_MAX)
			r = each(k, (unsigned int)n, err);
	}
	if (dir)
		closedir(dir);
	return r;
}

static int sweep_unused(Keeper *k, unsigned int generation, _unused_ Error **err)
{
	const QemuProcess *other = k->move->up ? k->move->up->other : NULL;

	if (!(k->qemu && generation == k->qemu->generation) && !(other && generation == other->generation))
		sweep(k, generation);
	return 0;
}

void machine_sweep(Keeper *k)
{
	(void)for_each_generation(k, sweep_unused, NULL);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		; /* ours, when this process was the keeper before already */
}

static int adopt_one(Keeper *k, unsigned int generation, Error **err)
{
	int r = machine_adopt_generation(k, generation, &k->qemu, err);

	if (r > 0)
		k->generation = generation;
	return r;
}

/* The record names a dead one only if it could not be written: then the one that lives has the guest. */
static int adopt_any(Keeper *k, Error **err)
{
	return for_each_generation(k, adopt_one, err);
}

int machine_adopt_doomed(Keeper *k, Error **err)
{
	int r = adopt_any(k, err);

	if (r < 0)
		return r;
	machine_sweep(k);
	if (r == 0)
		return 0;
	r = machine_watch_exit(k);
	return r < 0 ? error_set(err, r, "QEMU's end will not be seen: %s", strerror(-r)) : 0;
}

static int find(Keeper *k, Error **err)
{
	int r = upgrade_adopt(k, err);

	if (r == 0)
		r = machine_adopt_generation(k, k->generation, &k->qemu, err);
	if (r == 0 && !k->move->up)
		r = adopt_any(k, err);
	return r;
}

static int reach(Keeper *k, Error **err)
{
	_cleanup_free_ char *definition = runtime_path(k->name, "definition");
	_cleanup_error_ Error *no_viewers = NULL;
	int r;

	log_info("found QEMU alive: process %d", (int)k->qemu->pid);
	machine_sweep(k);
	vm_definition_free(TAKE_PTR(k->def));
	r = vm_definition_load(k->name, definition, &k->def, err);
	if (r < 0)
		return r;
	k->state = VM_PAUSED; /* not known yet; move_recover() asks */
	k->reason = "keeper restarted";
	k->recovering = true;
	keeper_lease_adopt(k);
	if (viewers_start(k, &no_viewers) < 0)
		log_error("%s", no_viewers->message); /* the guest can do without */
	return machine_connect(k, err);
}

static bool ended(const QemuProcess *qemu)
{
	struct pollfd p = {.fd = qemu->pidfd, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

/* One that ends meanwhile was not there: another may have the guest. */
int machine_adopt(Keeper *k, Error **err)
{
	int r;

	while ((r = find(k, err)) > 0) {
		r = reach(k, err);
		if (r >= 0)
			return 1;
		if (!ended(k->qemu))
			return r;
		error_free(TAKE_PTR(*err));
		machine_gone(k);
	}
	return r;
}
