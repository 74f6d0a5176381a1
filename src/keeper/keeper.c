/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "basic/process.h"
#include "keeper/run.h"
#include "keeper/upgrade.h"
#include "keeper/worker.h"

#define HISTORY_MAX (256 * 1024)

static const char *const state_names[] = {
#define X(id, name, text) [VM_##id] = name,
	VM_STATES(X)
#undef X
};
static_assert(ARRAY_SIZE(state_names) == _VM_STATE_MAX, "a name for every state");

const char *vm_state_to_string(VmState state)
{
	return state_names[state];
}

int vm_state_from_string(const char *s)
{
	for (int i = 0; i < _VM_STATE_MAX; i++)
		if (streq(state_names[i], s))
			return i;
	return -EINVAL;
}

const char *vm_reason(const char *text)
{
	static const char *const reasons[] = {
#define X(text) text,
		VM_REASONS(X)
#undef X
	};

	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
		if (streq(reasons[i], text))
			return reasons[i];
	return NULL;
}

/* ---- what is told to others ---- */

void keeper_say_ready(Keeper *k, const Error *err)
{
	_cleanup_free_ char *refusal = err ? preamble_refusal(err) : NULL;
	_cleanup_free_ char *path = state_path(k->name, "start-error");
	const char *text = refusal ? refusal : "READY\n";
	_cleanup_error_ Error *trouble = NULL;

	if (!err && k->control_fd < 0 && control_open(k, &trouble) < 0)
		log_error("%s", trouble->message);
	if (k->ready_fd >= 0)
		(void)fd_write_all(k->ready_fd, text, strlen(text));
	k->ready_fd = fd_close(k->ready_fd);
	if (refusal)
		(void)file_write(path, refusal, strlen(refusal), 0600, false);
	else {
		(void)unlink(path);
		sd_notify(0, "READY=1");
	}
}

int keeper_save_state(Keeper *k)
{
	_cleanup_free_ char *path = runtime_path(k->name, "state");
	_cleanup_json_ json_object *o =
		json_build("state", "s", state_names[k->state], "reason", "s", k->reason, "since", "u", k->since,
			   "generation", "u", (uint64_t)k->generation, "arrived", "b", (int)k->arrived,
			   "graphics_port", "u", (uint64_t)k->viewers_port, NULL);
	const char *text = json_text(o);

	return file_write(path, text, strlen(text), 0600, false);
}

void keeper_set_state(Keeper *k, VmState state, const char *reason)
{
	if (k->state == state && k->reason && streq(k->reason, reason))
		return;
	log_info("state: %s (%s)", state_names[state], reason);
	k->state = state;
	k->reason = reason;
	k->since = clock_usec(CLOCK_REALTIME);
	(void)keeper_save_state(k);
	control_emit_state(k);
}

void keeper_keep_state(Keeper *k, VmState state, const char *reason)
{
	bool same = k->before.reason && k->before.state == state;

	keeper_set_state(k, state, same ? k->before.reason : reason);
	if (same)
		k->since = k->before.since;
	(void)keeper_save_state(k);
}

void keeper_history(Keeper *k, const char *event, json_object *details)
{
	_cleanup_free_ char *path = state_path(k->name, "history"), *old = NULL;
	_cleanup_json_ json_object *line = json_build("time", "u", clock_usec(CLOCK_REALTIME) / USEC_PER_SEC, "event",
						      "s", event, "details", "o", details, NULL);
	_cleanup_fd_ int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
	_cleanup_free_ char *text = xasprintf("%s\n", json_text(line));
	struct stat st;

	if (fd < 0)
		return;
	(void)fd_write_all(fd, text, strlen(text));
	if (fstat(fd, &st) == 0 && st.st_size > HISTORY_MAX) {
		old = xasprintf("%s.1", path);
		(void)rename(path, old);
	}
}

static void on_log(LogLevel level, const char *message, void *userdata)
{
	Keeper *k = userdata;

	control_emit_log(k, level, message);
	if (level <= LOG_LEVEL_WARNING)
		peer_log(k, level, message);
}

/* ---- ownership and ends ---- */

bool keeper_owner(const Keeper *k)
{
	_cleanup_free_ char *path = definition_path(k->name);

	switch (journal_last(k->journal)->kind) {
	case JOURNAL_OWNER:
	case JOURNAL_COMMITTED:
		return true;
	case JOURNAL_NONE:
		return access(path, F_OK) == 0;
	case JOURNAL_COMMIT:
	case JOURNAL_GONE:
	case JOURNAL_ABORTED:
	case _JOURNAL_KIND_MAX:
		break;
	}
	return false;
}

/* A VM that never came and is not defined here leaves no state: a peer may name as many as it likes. */
static void forget_stranger(Keeper *k)
{
	_cleanup_free_ char *config = definition_path(k->name), *dir = state_path(k->name, NULL);
	_cleanup_free_ char *pin = state_path(k->name, "pin");

	if (k->incoming && journal_last(k->journal)->kind == JOURNAL_NONE && access(config, F_OK) < 0 &&
	    access(pin, F_OK) < 0)
		(void)dir_remove(dir);
}

void keeper_leave(Keeper *k)
{
	_cleanup_free_ char *dir = runtime_path(k->name, NULL);

	if (k->leaving)
		return;
	k->leaving = true;
	wait_done(k, WAIT_OFF);
	wait_failed(k, WAIT_RUNNING, "org.vmferry.Error.NotRunning", "the VM is off");
	wait_failed(k, WAIT_PAUSED, "org.vmferry.Error.NotRunning", "the VM is off");
	log_set_sink(NULL, NULL);
	keeper_lease_drop(k);
	if (dir_remove(dir) < 0)
		log_warning("cannot remove %s", dir);
	forget_stranger(k);
	sd_event_exit(k->event, 0);
}

int keeper_restart(Keeper *k, Error **err)
{
	_cleanup_free_ char *program = process_own_binary();

	if (move_active(k->move) || k->peers)
		return error_set(err, -EBUSY, "a migration or upgrade is under way");
	if (!k->qemu || k->state == VM_STARTING || k->leaving)
		return error_set(err, -EBUSY, "there is no guest to watch over, or not yet");
	if (access(program, X_OK) < 0)
		return error_set(err, -errno, "%s: %m", program);
	k->restart = k->leaving = true;
	return sd_event_exit(k->event, 0);
}

/* All fds are close-on-exec, the VM's lock too: who comes back takes it as after a crash. */
static void restart_now(Keeper *k)
{
	_cleanup_free_ char *program = process_own_binary();
	char *argv[] = {program, (char *)"run", k->name, NULL};

	log_info("the keeper restarts: %s", program);
	control_close(k);
	keeper_lease_forget(k);
	execv(program, argv);
	log_error("cannot run %s: %m", program);
	raise(SIGKILL); /* a keeper that dies is started again; one that ends is not */
}

static int on_idle(sd_event_source *source, uint64_t usec, void *userdata)
{
	Keeper *k = userdata;

	(void)source;
	(void)usec;
	k->idle_timer = sd_event_source_disable_unref(k->idle_timer);
	if (k->incoming && !k->qemu && !k->peers && !move_active(k->move))
		keeper_leave(k);
	return 0;
}

void keeper_check_idle(Keeper *k)
{
	keeper_check_idle_in(k, 0);
}

void keeper_check_idle_in(Keeper *k, uint64_t usec)
{
	if (!k->incoming || k->qemu || k->peers || k->leaving)
		return;
	/* From the loop: nothing is freed below its own caller, and a migration that ends just now has ended by then. */
	k->idle_timer = sd_event_source_disable_unref(k->idle_timer);
	(void)sd_event_add_time_relative(k->event, &k->idle_timer, CLOCK_MONOTONIC, usec, 1, on_idle, k);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *si, void *userdata)
{
	Keeper *k = userdata;

	(void)source;
	/* Only the keeper goes: the guest runs on, and the next keeper finds it. */
	log_info("signal %u: the keeper ends, the guest goes on", si->ssi_signo);
	k->leaving = true;
	return sd_event_exit(k->event, 0);
}

/* ---- the process ---- */

static int make_directory(const char *path, mode_t mode, Error **err)
{
	int r = dir_make(path, mode);

	if (r >= 0)
		return 0;
	error_set(err, r, "cannot make %s: %s", path, strerror(-r));
	if (r == -EACCES || r == -EPERM)
		error_hint(err, "VMs are root's: try sudo");
	return r;
}

static int make_directories(Keeper *k, Error **err)
{
	_cleanup_free_ char *runtime = runtime_path(k->name, NULL), *state = state_path(k->name, NULL);
	int r = make_directory(runtime, 0711, err);

	return r < 0 ? r : make_directory(state, 0700, err);
}

static int take_lock(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, "lock");

	for (;;) {
		struct stat mine, there;
		int r;

		r = make_directories(k, err);
		if (r < 0)
			return r;
		k->lock_fd = file_lock(path);
		if (k->lock_fd == -EWOULDBLOCK)
			return error_set(err, -EBUSY, "%s has a keeper already: it runs here", k->name);
		if (k->lock_fd < 0)
			return error_set(err, k->lock_fd, "cannot lock %s: %s", path, strerror(-k->lock_fd));
		/* A keeper that leaves removes the file: what we hold must be what is there. */
		if (fstat(k->lock_fd, &mine) == 0 && stat(path, &there) == 0 && mine.st_ino == there.st_ino)
			return 0;
		k->lock_fd = fd_close(k->lock_fd);
	}
}

json_object *keeper_read_state(const char *name)
{
	_cleanup_free_ char *path = runtime_path(name, "state"), *text = NULL;
	size_t len;

	return file_read(path, 4096, &text, &len) < 0 ? NULL : json_parse(text, len);
}

static int open_all(Keeper *k, Error **err)
{
	_cleanup_free_ char *log = state_path(k->name, "log"), *journal = state_path(k->name, "journal");
	int r;

	r = log_open(log);
	if (r < 0)
		return error_set(err, r, "cannot open %s: %s", log, strerror(-r));
	r = host_conf_load(&k->conf, err);
	if (r >= 0)
		r = journal_open(journal, &k->journal, err);
	if (r < 0)
		return r;
	k->move = move_new(k);
	k->stats = stats_new(k);
	return peer_open(k, err);
}

static int watch_signals(Keeper *k)
{
	sigset_t set;
	int r;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	r = sd_event_add_signal(k->event, NULL, SIGTERM, on_signal, k);
	return r < 0 ? r : sd_event_add_signal(k->event, NULL, SIGINT, on_signal, k);
}

static void keeper_free(Keeper *k)
{
	log_set_sink(NULL, NULL);
	control_close(k);
	peer_close(k);
	k->move = move_free(k->move);
	k->remover = worker_free(k->remover);
	k->console = console_free(k->console);
	viewers_close(k);
	k->qmp = k->qmp ? qmp_free(k->qmp) : NULL;
	keeper_lease_forget(k);
	error_free(k->lease_error);
	sd_event_source_disable_unref(k->qemu_exit);
	sd_event_source_disable_unref(k->qemu_words);
	sd_event_source_disable_unref(k->idle_timer);
	sd_bus_flush_close_unref(k->systemd_bus);
	qemu_process_free(k->qemu);
	k->stats = stats_free(k->stats);
	json_object_put(k->last_result);
	journal_free(k->journal);
	vm_definition_free(k->def);
	host_conf_free(k->conf);
	free(k->qemu_version);
	fd_close(k->ready_fd);
	fd_close(k->lock_fd);
	free(k->name);
	sd_event_unref(k->event);
}

int keeper_run(const char *name, unsigned int flags, int ready_fd)
{
	_cleanup_(keeper_free)
	Keeper k = {.ready_fd = ready_fd, .lock_fd = -1, .control_fd = -1, .peer_fd = -1, .viewers_fd = -1};
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ char *dir = NULL;
	int r;

	k.name = xstrdup(name);
	k.reason = "unknown";
	prctl(PR_SET_NAME, "vmferry");
	r = sd_event_default(&k.event);
	if (r >= 0)
		r = watch_signals(&k);
	if (r < 0)
		return 1;
	r = take_lock(&k, &err);
	if (r < 0) {
		keeper_say_ready(&k, err);
		fprintf(stderr, "vmferry: %s: %s\n", name, err->message);
		return 1;
	}
	r = open_all(&k, &err);
	if (r >= 0) {
		log_set_sink(on_log, &k);
		r = keeper_begin(&k, flags, &err);
	}
	if (r < 0) {
		log_error("%s", err ? err->message : strerror(-r));
		keeper_say_ready(&k, err);
		dir = runtime_path(name, NULL);
		if (!k.qemu)
			(void)dir_remove(dir);
		return 1;
	}
	r = sd_event_loop(k.event);
	if (k.restart)
		restart_now(&k);
	return r < 0 ? 1 : 0;
}
