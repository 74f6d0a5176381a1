/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which host may run the guest, where the VM has a lease: held while the guest runs, given back while a person has
 * paused it, handed over by a migration; docs/protocol.md, "Leases".
 */
#include <errno.h>
#include <inttypes.h>
#include <sys/epoll.h>

#include "keeper/move.h"

#define PAUSE_USEC (5 * USEC_PER_SEC) /* a QEMU that does not stop the guest by then is killed */

static int open_lease(Keeper *k, const VmDefinition *def, bool create, Lease **ret, Error **err)
{
	LeaseOptions options = {.definition = def,
				.host_id = k->conf->host_id,
				.host_name = k->conf->host_name,
				.create = create,
				.fd = k->qemu ? qemu_process_lease_fd(k->qemu) : -1,
				.qemu = k->qemu ? k->qemu->pid : 0};

	return lease_open(&options, ret, err);
}

static void forget(Keeper *k)
{
	k->lease_io = sd_event_source_disable_unref(k->lease_io);
	k->lease_timer = sd_event_source_disable_unref(k->lease_timer);
	lease_free(TAKE_PTR(k->lease));
}

void keeper_lease_drop(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;

	if (k->lease && lease_release(k->lease, &err) < 0)
		log_warning("%s", err->message);
	forget(k);
}

void keeper_lease_forget(Keeper *k)
{
	forget(k);
}

/* ---- lost ---- */

static void kill_guest(Keeper *k)
{
	keeper_set_state(k, VM_SHUTOFF, "lease lost");
	machine_kill(k);
}

static int on_pause_timeout(sd_event_source *source, uint64_t usec, void *userdata)
{
	Keeper *k = userdata;

	(void)usec;
	k->lease_timer = sd_event_source_disable_unref(source);
	log_error("QEMU does not stop the guest: killed");
	kill_guest(k);
	return 0;
}

static void on_paused(json_object *ret, const char *error, void *userdata)
{
	Keeper *k = userdata;

	(void)ret;
	k->lease_timer = sd_event_source_disable_unref(k->lease_timer);
	if (error) {
		log_error("QEMU does not stop the guest (%s): killed", error);
		kill_guest(k);
		return;
	}
	keeper_set_state(k, VM_PAUSED, "lease lost");
	if (k->lease)
		(void)lease_release(k->lease, NULL);
}

static void pause_guest(Keeper *k)
{
	k->lease_timer = sd_event_source_disable_unref(k->lease_timer);
	(void)sd_event_add_time_relative(k->event, &k->lease_timer, CLOCK_MONOTONIC, PAUSE_USEC, 0, on_pause_timeout,
					 k);
	machine_qmp(k, "stop", NULL, on_paused, k);
}

/* In a migration QEMU may resume by itself when that fails: then there is only one safe way. */
void keeper_lease_lost(Keeper *k, Error *err)
{
	bool moving = move_active(k->move);

	keeper_history(k, "lease lost", json_build("why", "s", err->message, NULL));
	if (!moving)
		log_error("%s", err->message);
	if (k->def->lease_on_lost == LEASE_LOST_PAUSE && !moving)
		pause_guest(k);
	else
		kill_guest(k);
	if (moving)
		move_error(k->move, err);
	else
		error_free(err);
}

void keeper_lease_explain(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;

	if (!k->lease || lease_check(k->lease, &err) >= 0)
		return;
	keeper_history(k, "lease lost", json_build("why", "s", err->message, NULL));
	keeper_set_state(k, VM_SHUTOFF, "lease lost");
	log_error("%s", err->message);
}

static int on_lease_io(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Keeper *k = userdata;
	Error *err = NULL;

	(void)source;
	(void)fd;
	(void)revents;
	if (lease_check(k->lease, &err) < 0)
		keeper_lease_lost(k, err);
	return 0;
}

static int watch(Keeper *k)
{
	int fd = lease_watch_fd(k->lease);

	return fd < 0 ? 0 : sd_event_add_io(k->event, &k->lease_io, fd, EPOLLIN, on_lease_io, k);
}

/* ---- with QEMU ---- */

int keeper_lease_open(Keeper *k, bool take, Error **err)
{
	int r;

	forget(k);
	if (k->def->lease == LEASE_NONE)
		return 0;
	r = open_lease(k, k->def, take, &k->lease, err);
	if (r >= 0 && take)
		r = lease_acquire(k->lease, NULL, 0, err);
	return r < 0 ? r : watch(k);
}

void keeper_lease_adopt(Keeper *k)
{
	Error *err = NULL;
	int r;

	forget(k);
	error_free(TAKE_PTR(k->lease_error));
	if (k->def->lease == LEASE_NONE)
		return;
	r = open_lease(k, k->def, false, &k->lease, &err);
	if (r >= 0)
		r = watch(k);
	if (r >= 0)
		r = lease_check(k->lease, &err);
	if (r < 0) {
		error_set(&err, r, "the lease cannot be watched: %s", strerror(-r));
		k->lease_error = err;
	}
}

/* ---- people ---- */

void keeper_lease_pause(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;

	if (k->lease && lease_release(k->lease, &err) < 0)
		log_warning("%s", err->message);
}

int keeper_lease_resume(Keeper *k, Error **err)
{
	LeaseAccept as_left;

	if (k->def->lease == LEASE_NONE)
		return 0;
	if (!k->lease)
		return error_set(err, -ENOLCK, "the lease is not known to be this host's");
	as_left = (LeaseAccept){lease_holder(k->lease), lease_generation(k->lease)};
	return lease_acquire(k->lease, &as_left, 1, err);
}

json_object *keeper_lease_status(const Keeper *k)
{
	if (!k->lease)
		return NULL;
	return json_build("driver", "s", lease_type_to_string(k->def->lease), "path", "s", k->def->lease_path, "held",
			  "b", (int)lease_held(k->lease), "generation", "u", lease_generation(k->lease), NULL);
}

/* ---- what the rows do ---- */

int do_release_lease(Move *m)
{
	Error *err = NULL;
	int r;

	if (!m->k->lease)
		return 0;
	r = lease_release(m->k->lease, &err);
	move_error(m, err);
	return r;
}

/* A migration without a guest, or of a VM without a lease, has none to hand over. */
static bool has_lease(const Move *m)
{
	return m->lease_generation > 0 && m->k->def && m->k->def->lease != LEASE_NONE;
}

/*
 * Back to the source, from itself or from @peer, one generation on (NULL: only from itself). Where QEMU is gone nobody
 * runs here: the lease is taken and given back, so that what the target could have taken it with is used up.
 */
static int take_back(Move *m, const char *peer, bool any, Error **err)
{
	Keeper *k = m->k;
	int r = 0;

	if (!k->lease)
		r = open_lease(k, k->def, false, &k->lease, err);
	if (r >= 0) {
		const LeaseAccept accept[] = {{lease_holder(k->lease), 0}, {peer, m->lease_generation + 1}};

		r = (k->qemu ? lease_acquire : lease_use_up)(k->lease, accept, any ? 0 : peer ? 2 : 1, err);
	}
	if (!k->qemu)
		forget(k);
	return r;
}

static int acquire_source(Move *m)
{
	Error *err = NULL;
	int r;

	if (!has_lease(m))
		return 0;
	/* Without a guest in memory nothing here can be out of date. */
	r = take_back(m, m->prepared.lease_holder, !m->k->qemu, &err);
	move_error(m, err);
	return r;
}

static int acquire_target(Move *m)
{
	const LeaseAccept as_given_up = {m->prepare.lease_holder, m->lease_generation};
	Error *err = NULL;
	int r;

	if (!m->k->lease)
		return 0;
	if (!m->prepare.lease_holder || !m->lease_generation)
		r = error_set(&err, -EPROTO, "the source does not say in what state it gave the lease up");
	else
		r = lease_acquire(m->k->lease, &as_given_up, 1, &err);
	move_error(m, err);
	return r;
}

int do_acquire_lease(Move *m)
{
	return move_is_target(m) ? acquire_target(m) : acquire_source(m);
}

int do_retake_lease(Move *m)
{
	Error *err = NULL;
	int r;

	if (!has_lease(m))
		return -ENOENT;
	r = take_back(m, NULL, false, &err);
	if (r < 0) {
		log_info("in doubt: %s", err->message);
		error_free(err);
		return r;
	}
	error_set(&err, -ECONNABORTED, "no answer from the target, and the lease was still this host's");
	move_error(m, err);
	return 0;
}

/* ---- may it come here ---- */

static const char *driver_name(const char *name)
{
	return name ? name : "none";
}

static int same_lease(Keeper *k, const PrepareCookie *p, const VmDefinition *def, Error **err)
{
	_cleanup_(lease_freep)
	Lease *lease = NULL;
	LeaseState state;
	int r;

	r = open_lease(k, def, false, &lease, err);
	if (r >= 0)
		r = lease_inquire(lease, &state, err);
	if (r < 0)
		return r;
	if (p->lease_holder && streq(state.holder, p->lease_holder) && state.generation == p->lease_generation)
		return 0;
	error_set(err, -ESTALE, "lease %s on %s is not the one that the source holds", def->lease_path,
		  k->conf->host_name);
	error_hint(err, "it has to lie on storage that both hosts mount; is it mounted on %s?", k->conf->host_name);
	return -ESTALE;
}

int keeper_lease_admit(Keeper *k, const PrepareCookie *p, const VmDefinition *def, Error **err)
{
	const char *name = def->lease == LEASE_NONE ? NULL : lease_type_to_string(def->lease);

	if (!streq_null(name, p->lease)) {
		error_set(err, -EINVAL, "the lease's driver is %s on the source, and %s in the definition for %s",
			  driver_name(p->lease), driver_name(name), k->conf->host_name);
		error_hint(err, "both hosts need the same one: its state is handed over");
		return -EINVAL;
	}
	if (!name)
		return 0;
	if (!lease_available(def->lease)) {
		error_set(err, -ENOTSUP, "host %s has no driver for lease %s", k->conf->host_name, name);
		error_hint(err, "vmferry there was built without libsanlock");
		return -ENOTSUP;
	}
	/* Of a VM that is off nobody holds it: whoever starts it takes it. */
	return streq(p->run_state, "shutoff") ? 0 : same_lease(k, p, def, err);
}
