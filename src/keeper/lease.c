/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which host may run the guest, where the VM has a lease: held while the guest runs, given back while a person has
 * paused it, handed over by a migration; docs/protocol.md, "Leases".
 */
#include <errno.h>
#include <inttypes.h>

#include "keeper/fault.h"
#include "keeper/move.h"
#include "keeper/worker.h"

#define PAUSE_USEC (5 * USEC_PER_SEC)  /* a QEMU that does not stop the guest by then is killed */
#define START_USEC (10 * USEC_PER_SEC) /* for a start, which is all that is done then */
#define LOOK_USEC (2 * USEC_PER_SEC)   /* where all else has to wait for it: no peer takes us for dead by then */

/*
 * All that is done with the lease is done by a worker, for its storage may not answer. k->lease is what we know of it.
 * A worker that is given up is followed by another one, which opens the lease anew when the first is gone.
 */

typedef enum LeaseOp {
	LEASE_OPEN,
	LEASE_ACQUIRE,
	LEASE_USE_UP,
	LEASE_RELEASE,
	LEASE_CHECK,
	LEASE_STARTED,
	LEASE_ENDED,
	LEASE_SHARE,
	LEASE_FOLLOW,
	LEASE_OWN
} LeaseOp;

typedef struct Ask {
	LeaseOp op;
	bool create, runs;
	pid_t qemu;
	bool open; /* first */
	size_t n;
	struct {
		bool any, mine; /* held by anybody before, by this host */
		char holder[LEASE_HOLDER_MAX + 1];
		uint64_t generation;
	} accept[2];
} Ask;

/* ---- in the worker ---- */

static int carry_out(Lease *lease, const Ask *ask, Error **err)
{
	LeaseAccept accept[2];
	int r = ask->open ? lease_begin(lease, false, false, err) : 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < ask->n; i++)
		accept[i] = (LeaseAccept){ask->accept[i].mine  ? lease_holder(lease)
					  : ask->accept[i].any ? NULL
							       : ask->accept[i].holder,
					  ask->accept[i].generation};
	switch (ask->op) {
	case LEASE_OPEN:
		return lease_begin(lease, ask->create, ask->runs, err);
	case LEASE_ACQUIRE:
		return lease_acquire(lease, accept, ask->n, err);
	case LEASE_USE_UP:
		return lease_use_up(lease, accept, ask->n, err);
	case LEASE_RELEASE:
		return lease_release(lease, err);
	case LEASE_CHECK:
		return lease_check(lease, err);
	case LEASE_STARTED:
		return lease_started(lease, ask->qemu, err);
	case LEASE_ENDED:
		lease_ended(lease);
		return 0;
	case LEASE_SHARE:
		return lease_share(lease, ask->qemu, err);
	case LEASE_FOLLOW:
		lease_follow(lease, ask->qemu);
		return 0;
	case LEASE_OWN:
		return lease_own(lease, ask->qemu, err);
	}
	return -EINVAL;
}

static void add_view(const Lease *lease, WorkerAnswer *answer)
{
	LeaseView view = lease_view(lease);

	memcpy(answer->data, &view, sizeof(view));
}

static int serve(const char *request, WorkerAnswer *answer, void *userdata)
{
	Lease *lease = userdata;
	Ask ask;
	int r;

	memcpy(&ask, request, sizeof(ask));
	r = carry_out(lease, &ask, &answer->err);
	if (ask.op == LEASE_OPEN && r >= 0)
		answer->fd = lease_fd(lease);
	add_view(lease, answer);
	return r;
}

static int look(WorkerAnswer *answer, void *userdata)
{
	int r = lease_check(userdata, &answer->err);

	add_view(userdata, answer);
	return r;
}

static int watch_fd(void *userdata)
{
	return lease_watch_fd(userdata);
}

/* ---- the worker ---- */

static int no_answer(const Keeper *k, Error **err)
{
	error_set(err, -ETIMEDOUT, "the lease's storage does not answer (%s)", lease_path(k->lease));
	error_hint(err, "is it mounted, and is its server there?");
	return -ETIMEDOUT;
}

static void take_view(Keeper *k, const WorkerAnswer *answer)
{
	LeaseView view;

	memcpy(&view, answer->data, sizeof(view));
	lease_set_view(k->lease, &view);
}

/* What an answer says; there is none if it did not come in time. */
static int take_answer(Keeper *k, WorkerAnswer *answer, Error **err)
{
	k->lease_releasing = false;
	if (answer->r == -ETIMEDOUT && !answer->err)
		return no_answer(k, err);
	if (answer->r != -EPIPE)
		take_view(k, answer);
	if (answer->fd >= 0 && lease_fd(k->lease) < 0)
		lease_set_fd(k->lease, TAKE_FD(answer->fd));
	if (answer->r < 0 && err && !*err)
		*err = TAKE_PTR(answer->err);
	return answer->r < 0 ? error_set(err, answer->r, "the lease: %s", strerror(-answer->r)) : 0;
}

static void on_lost(WorkerAnswer *answer, void *userdata)
{
	Keeper *k = userdata;

	take_view(k, answer);
	keeper_lease_lost(k, TAKE_PTR(answer->err));
}

static int hire(Keeper *k, Error **err)
{
	_cleanup_free_ char *lock = runtime_path(k->name, "lease.lock");
	const WorkerJob job = {.serve = serve,
			       .watch_fd = watch_fd,
			       .notice = look,
			       .noticed = on_lost,
			       .userdata = k->lease,
			       .owner = k,
			       .keep_fd = lease_fd(k->lease),
			       .lock = lock};

	return worker_new(k->event, &job, &k->lease_worker, err);
}

static int ask_for(Keeper *k, const Ask *ask, uint64_t usec, WorkerDone done, void *userdata)
{
	int r = k->lease_worker ? worker_ask(k->lease_worker, ask, sizeof(*ask), usec, done, userdata) : -ENOTCONN;

	if (r >= 0 && ask->op == LEASE_RELEASE)
		k->lease_releasing = true;
	return r;
}

static void on_opened(WorkerAnswer *answer, void *userdata)
{
	Keeper *k = userdata;
	Error *err = NULL;

	k->lease_silent = false;
	if (take_answer(k, answer, &err) >= 0) {
		if (!k->recovering)
			keeper_lease_settle(k);
		return;
	}
	error_free(k->lease_error);
	k->lease_error = err;
	if (k->state == VM_RUNNING && !k->recovering)
		keeper_lease_lost(k, TAKE_PTR(k->lease_error));
}

/* @runs: the guest may run here, whatever the record says */
static int open_and_check(Keeper *k, bool runs)
{
	const Ask open = {.op = LEASE_OPEN, .runs = runs}, check = {.op = LEASE_CHECK};
	int r = ask_for(k, &open, 0, on_opened, k);

	return r < 0 ? r : ask_for(k, &check, 0, on_opened, k);
}

static void open_again(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;
	int r = hire(k, &err);

	if (r >= 0)
		r = open_and_check(k, false);
	if (r < 0)
		log_error("nobody looks after the lease: %s", err ? err->message : strerror(-r));
}

static void forget(Keeper *k)
{
	k->lease_worker = worker_free(k->lease_worker);
	k->lease_timer = sd_event_source_disable_unref(k->lease_timer);
	k->lease_releasing = k->lease_silent = false;
	lease_free(TAKE_PTR(k->lease));
}

/* What was about to be given back is ours still, if the worker had not come to that. */
static void give_up(Keeper *k)
{
	LeaseView view = lease_view(k->lease);
	bool before = worker_stop(k->lease_worker);

	if (k->lease_releasing && !before)
		view.held = false;
	lease_set_view(k->lease, &view);
	k->lease_releasing = false;
	k->lease_worker = worker_free(k->lease_worker);
	if (!k->qemu) {
		forget(k);
		return;
	}
	k->lease_silent = true;
	open_again(k);
}

typedef struct Awaited {
	Keeper *k;
	bool done;
	int r;
	Error *err;
} Awaited;

static void on_awaited(WorkerAnswer *answer, void *userdata)
{
	Awaited *a = userdata;

	a->done = true;
	a->r = take_answer(a->k, answer, &a->err);
}

/* Outside of any pause. Return: the answer's, or -ETIMEDOUT: then it was given up. */
static int await(Keeper *k, const Ask *ask, uint64_t usec, Error **err)
{
	Awaited a = {.k = k};
	int r = ask_for(k, ask, 0, on_awaited, &a);

	if (r < 0)
		return error_set(err, r, "the lease: %s", strerror(-r));
	worker_wait(k->lease_worker, usec);
	if (!a.done) {
		r = k->lease ? no_answer(k, err) : error_set(err, -ENOLCK, "the lease is lost");
		if (k->lease_worker)
			give_up(k);
		return r;
	}
	if (a.r < 0 && err && !*err)
		*err = TAKE_PTR(a.err);
	error_free(a.err);
	return a.r;
}

static Ask acquire(LeaseOp op, const LeaseAccept *accept, size_t n)
{
	Ask ask = {.op = op, .n = n};

	for (size_t i = 0; i < n; i++) {
		ask.accept[i].any = !accept[i].holder;
		ask.accept[i].generation = accept[i].generation;
		snprintf(ask.accept[i].holder, sizeof(ask.accept[i].holder), "%s",
			 accept[i].holder ? accept[i].holder : "");
	}
	return ask;
}

/* ---- with QEMU ---- */

static int describe(Keeper *k, Error **err)
{
	LeaseOptions options = {.definition = k->def,
				.host_id = k->conf->host_id,
				.host_name = k->conf->host_name,
				.fd = k->qemu ? qemu_process_lease_fd(k->qemu) : -1,
				.qemu = k->qemu ? k->qemu->pid : 0,
				.may_release = worker_may};
	int r;

	forget(k);
	r = lease_new(&options, &k->lease, err);
	return r < 0 ? r : hire(k, err);
}

static int open_lease(Keeper *k, bool create, uint64_t usec, Error **err)
{
	const Ask open = {.op = LEASE_OPEN, .create = create};
	int r = describe(k, err);

	if (r >= 0)
		r = await(k, &open, usec, err);
	if (r < 0)
		forget(k);
	return r;
}

static int release_now(Keeper *k, Error **err)
{
	const Ask release = {.op = LEASE_RELEASE};

	return k->lease && lease_held(k->lease) ? await(k, &release, LOOK_USEC, err) : 0;
}

void keeper_lease_drop(Keeper *k)
{
	keeper_lease_pause(k);
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
	(void)release_now(k, NULL);
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
	const Ask check = {.op = LEASE_CHECK};

	if (!k->lease || worker_busy(k->lease_worker) || await(k, &check, LOOK_USEC, &err) >= 0 ||
	    err->code == -ETIMEDOUT)
		return;
	keeper_history(k, "lease lost", json_build("why", "s", err->message, NULL));
	keeper_set_state(k, VM_SHUTOFF, "lease lost");
	log_error("%s", err->message);
}

int keeper_lease_open(Keeper *k, bool take, Error **err)
{
	const Ask any = {.op = LEASE_ACQUIRE};
	int r;

	forget(k);
	if (k->def->lease == LEASE_NONE)
		return 0;
	r = open_lease(k, take, START_USEC, err);
	return r < 0 || !take ? r : await(k, &any, START_USEC, err);
}

int keeper_lease_started(Keeper *k, Error **err)
{
	const Ask started = {.op = LEASE_STARTED, .qemu = k->qemu->pid};

	if (!k->lease)
		return 0;
	lease_follow(k->lease, k->qemu->pid);
	return await(k, &started, START_USEC, err);
}

static void on_followed(WorkerAnswer *answer, void *userdata)
{
	(void)take_answer(userdata, answer, NULL);
}

void keeper_lease_follow(Keeper *k)
{
	const Ask follow = {.op = LEASE_FOLLOW, .qemu = k->qemu->pid};

	if (!k->lease)
		return;
	lease_follow(k->lease, k->qemu->pid);
	(void)ask_for(k, &follow, 0, on_followed, k);
}

void keeper_lease_ended(Keeper *k)
{
	const Ask ended = {.op = LEASE_ENDED};
	_cleanup_error_ Error *err = NULL;

	if (k->lease && await(k, &ended, LOOK_USEC, &err) < 0)
		log_warning("%s", err->message);
	if (k->lease)
		lease_follow(k->lease, 0);
}

int keeper_lease_share(Keeper *k, pid_t other, Error **err)
{
	const Ask share = {.op = LEASE_SHARE, .qemu = other};

	return k->lease ? await(k, &share, START_USEC, err) : 0;
}

int keeper_lease_own(Keeper *k, pid_t other, Error **err)
{
	const Ask own = {.op = LEASE_OWN, .qemu = other};

	return k->lease ? await(k, &own, START_USEC, err) : 0;
}

/* A storage that does not answer now may do so later, while the guest goes on: on_opened(). */
void keeper_lease_adopt(Keeper *k)
{
	Error *err = NULL;
	int r;

	error_free(TAKE_PTR(k->lease_error));
	if (k->def->lease == LEASE_NONE) {
		forget(k);
		return;
	}
	r = describe(k, &err);
	if (r >= 0)
		r = open_and_check(k, keeper_owner(k));
	if (r < 0) {
		error_set(&err, r, "the lease cannot be watched: %s", strerror(-r));
		k->lease_error = err;
		return;
	}
	worker_wait(k->lease_worker, LOOK_USEC);
	k->lease_silent = k->lease_worker && worker_busy(k->lease_worker);
	if (k->lease_silent && no_answer(k, &err) < 0)
		log_warning("%s", err->message);
	error_free(err);
}

static void on_settled(WorkerAnswer *answer, void *userdata)
{
	Keeper *k = userdata;
	Error *err = NULL;

	k->lease_silent = false;
	if (take_answer(k, answer, &err) < 0 && k->state != VM_PAUSED)
		keeper_lease_lost(k, TAKE_PTR(err));
	error_free(err);
}

/* A worker that was given up may have written that it is given back, while the guest went on; and then its keeper died. */
void keeper_lease_settle(Keeper *k)
{
	bool paused = k->state == VM_PAUSED && !move_active(k->move);
	LeaseAccept as_left;
	Ask ask = {.op = LEASE_RELEASE};

	if (!k->lease || lease_held(k->lease) || k->lease_silent || k->lease_error || move_is_target(k->move) || !keeper_owner(k) ||
	    (paused && worker_busy(k->lease_worker)))
		return;
	if (!paused) {
		log_warning("the lease says that it was given back, but the guest is here: it is taken again");
		as_left = (LeaseAccept){lease_holder(k->lease), lease_generation(k->lease)};
		ask = acquire(LEASE_ACQUIRE, &as_left, 1);
	}
	if (ask_for(k, &ask, 0, on_settled, k) >= 0)
		k->lease_silent = true; /* until it has answered nothing is handed over */
}

int keeper_lease_answers(const Keeper *k, Error **err)
{
	return k->lease && k->lease_silent ? no_answer(k, err) : 0;
}

/* ---- people ---- */

void keeper_lease_pause(Keeper *k)
{
	_cleanup_error_ Error *err = NULL;

	if (release_now(k, &err) < 0)
		log_warning("%s", err->message);
}

int keeper_lease_resume(Keeper *k, Error **err)
{
	LeaseAccept as_left;
	Ask ask;

	if (k->def->lease == LEASE_NONE)
		return 0;
	if (!k->lease)
		return error_set(err, -ENOLCK, "the lease is not known to be this host's");
	as_left = (LeaseAccept){lease_holder(k->lease), lease_generation(k->lease)};
	ask = acquire(LEASE_ACQUIRE, &as_left, 1);
	return lease_held(k->lease) ? 0 : await(k, &ask, LOOK_USEC, err);
}

int keeper_lease_retake(Keeper *k, Error **err)
{
	const LeaseAccept any = {};
	Ask ask = acquire(LEASE_ACQUIRE, &any, 1);

	ask.accept[0].mine = true;
	if (!k->lease)
		return error_set(err, -ENOLCK, "the lease is not known to be this host's");
	return lease_held(k->lease) ? 0 : await(k, &ask, START_USEC, err);
}

int keeper_lease_check(Keeper *k, Error **err)
{
	const Ask check = {.op = LEASE_CHECK};

	return await(k, &check, LOOK_USEC, err);
}

json_object *keeper_lease_status(const Keeper *k)
{
	json_object *o;

	if (!k->lease)
		return NULL;
	o = json_build("driver", "s", lease_type_to_string(k->def->lease), "path", "s", k->def->lease_path, "held", "b",
		       (int)lease_held(k->lease), "generation", "u", lease_generation(k->lease), NULL);
	if (k->lease_silent)
		json_extend(o, "answers", "b", 0, NULL);
	return o;
}

/* ---- what the rows do: each ends with LEASE_DONE or LEASE_FAILED, or is given up when its state is left ---- */

static void done(Move *m, int r)
{
	MoveAction action = m->lease_action;
	Error *err = NULL;

	if (action == MOVE_DO_RETAKE_LEASE && r >= 0) {
		error_set(&err, -ECONNABORTED, "no answer from the target, and the lease was still this host's");
		move_error(m, err);
	}
	m->lease_action = MOVE_DO_NOTHING;
	if (r >= 0)
		(void)fault_point(m, action, false);
	move_event(m, r < 0 ? MOVE_EV_LEASE_FAILED : MOVE_EV_LEASE_DONE);
}

static void on_row_answer(WorkerAnswer *answer, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;
	int r = take_answer(m->k, answer, &err);

	if (m->lease_action == MOVE_DO_RETAKE_LEASE && r < 0) {
		log_info("in doubt: %s", err->message);
		error_free(TAKE_PTR(err));
	}
	move_error(m, err);
	/* Where QEMU is gone it was used up, and that was all. */
	if (!move_is_target(m) && !m->k->qemu)
		forget(m->k);
	done(m, r);
}

static int begin(Move *m, MoveAction action, const Ask *ask)
{
	Error *err = NULL;
	int r;

	m->lease_action = action;
	r = ask_for(m->k, ask, 0, on_row_answer, m);
	if (r < 0) {
		error_set(&err, r, "the lease: %s", strerror(-r));
		move_error(m, err);
		done(m, r);
	}
	return 0;
}

void move_lease_leave(Move *m)
{
	if (m->lease_action == MOVE_DO_NOTHING)
		return;
	log_warning("%s: given up", move_action_name(m->lease_action));
	m->lease_action = MOVE_DO_NOTHING;
	if (m->k->lease_worker)
		give_up(m->k);
}

bool move_lease_late(const Move *m, Error **err)
{
	return m->lease_action != MOVE_DO_NOTHING && m->k->lease && no_answer(m->k, err) < 0;
}

int do_release_lease(Move *m)
{
	const Ask release = {.op = LEASE_RELEASE};

	m->lease_action = MOVE_DO_RELEASE_LEASE;
	if (m->k->lease && lease_held(m->k->lease))
		return begin(m, MOVE_DO_RELEASE_LEASE, &release);
	done(m, 0);
	return 0;
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
static int take_back(Move *m, MoveAction action, const char *peer, bool any)
{
	const LeaseAccept accept[] = {{NULL, 0}, {peer, m->lease_generation + 1}};
	Keeper *k = m->k;
	Error *err = NULL;
	Ask ask = acquire(k->qemu ? LEASE_ACQUIRE : LEASE_USE_UP, accept, any ? 0 : peer ? 2 : 1);

	m->lease_action = action;
	ask.accept[0].mine = true;
	ask.open = !k->lease;
	if (k->lease ? k->qemu && lease_held(k->lease) : describe(k, &err) < 0) {
		int r = err ? err->code : 0;

		move_error(m, err);
		done(m, r);
		return 0;
	}
	return begin(m, action, &ask);
}

int do_acquire_lease(Move *m)
{
	const LeaseAccept as_given_up = {m->prepare.lease_holder, m->lease_generation};
	const Ask ask = acquire(LEASE_ACQUIRE, &as_given_up, 1);
	Error *err = NULL;

	m->lease_action = MOVE_DO_ACQUIRE_LEASE;
	/* Without a guest in memory nothing here can be out of date. */
	if (!move_is_target(m) && has_lease(m))
		return take_back(m, MOVE_DO_ACQUIRE_LEASE, m->prepared.lease_holder, !m->k->qemu);
	if (!move_is_target(m) || !m->k->lease) {
		done(m, 0);
		return 0;
	}
	if (m->prepare.lease_holder && m->lease_generation)
		return begin(m, MOVE_DO_ACQUIRE_LEASE, &ask);
	error_set(&err, -EPROTO, "the source does not say in what state it gave the lease up");
	move_error(m, err);
	done(m, -EPROTO);
	return 0;
}

int do_retake_lease(Move *m)
{
	m->lease_action = MOVE_DO_RETAKE_LEASE;
	if (has_lease(m))
		return take_back(m, MOVE_DO_RETAKE_LEASE, NULL, false);
	done(m, -ENOENT);
	return 0;
}

/* ---- may it come here ---- */

static const char *driver_name(const char *name)
{
	return name ? name : "none";
}

static int same_lease(Keeper *k, const PrepareCookie *p, const VmDefinition *def, Error **err)
{
	const LeaseOptions options = {
		.definition = def, .host_id = k->conf->host_id, .host_name = k->conf->host_name, .fd = -1};
	_cleanup_(lease_freep)
	Lease *lease = NULL;
	LeaseState state;
	int r;

	r = lease_open(&options, &lease, err);
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
