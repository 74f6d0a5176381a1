/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a keeper does first: whose the guest is and whether it is there; to go on with it, to start it, or to wait for one. */
#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#include "keeper/launch.h"
#include "keeper/run.h"
#include "keeper/scope.h"
#include "keeper/upgrade.h"
#include "move/arrival.h"

#define IDLE_USEC (5 * USEC_PER_SEC)

static int load_definition(Keeper *k, Error **err)
{
	_cleanup_free_ char *arrived = state_path(k->name, "definition"), *config = definition_path(k->name);
	_cleanup_free_ char *pin_path = state_path(k->name, "pin"), *text = NULL;
	_cleanup_(vm_definition_freep)
	VmDefinition *pinned = NULL;
	int r;

	arrival_settle(k->name);
	k->arrived = access(arrived, F_OK) == 0;
	if (!k->arrived && access(config, F_OK) < 0) {
		error_set(err, -ENOENT, "no VM named %s is defined here", k->name);
		error_hint(err, "write %s, see vmferry.vm(5)", config);
		return -ENOENT;
	}
	r = vm_definition_load(k->name, k->arrived ? arrived : config, &k->def, err);
	if (r < 0 || k->arrived)
		return r;
	if (access(pin_path, F_OK) == 0 && (r = vm_definition_load(k->name, pin_path, &pinned, err)) < 0)
		return r;
	vm_definition_pin(k->def, pinned);
	text = vm_definition_text(k->def);
	r = file_write(pin_path, text, strlen(text), 0600, true);
	return r < 0 ? error_set(err, r, "cannot write %s: %s", pin_path, strerror(-r)) : 0;
}

/* Whether a fresh start is allowed: the journal decides, a person may overrule it. */
static int may_start(Keeper *k, bool force, Error **err)
{
	const JournalRecord *last = journal_last(k->journal);

	if (last->kind == JOURNAL_COMMIT) {
		error_set(err, -EREMOTE, "%s was being moved to %s and the outcome is not known", k->name, last->peer);
		error_hint(err, "its keeper asks there; or, if you know it better: vmferry recover %s --assume=...",
			   k->name);
		return -EREMOTE;
	}
	if (last->kind != JOURNAL_GONE && last->kind != JOURNAL_ABORTED)
		return 0;
	if (force) {
		JournalRecord record = {.kind = JOURNAL_OWNER};
		_cleanup_free_ char *note = state_path(k->name, "moved");

		log_warning("start is forced although the VM is not this host's");
		(void)unlink(note);
		return journal_write(k->journal, &record, err);
	}
	if (last->kind == JOURNAL_GONE)
		error_set(err, -EREMOTE, "%s moved to %s", k->name, last->peer);
	else
		error_set(err, -EREMOTE, "%s is another host's: a migration to this host did not complete", k->name);
	error_hint(err, "start it there; or, if it surely runs nowhere: vmferry start --force %s", k->name);
	return -EREMOTE;
}

/* "start" in the runtime directory: how systemd's unit was meant. */
static unsigned int flags_from_file(Keeper *k, unsigned int flags)
{
	_cleanup_free_ char *path = runtime_path(k->name, "start"), *text = NULL;

	if (file_read(path, 64, &text, NULL) < 0)
		return flags;
	(void)unlink(path);
	if (streq(text, "incoming\n"))
		flags |= KEEPER_INCOMING;
	if (streq(text, "force\n"))
		flags |= KEEPER_FORCE;
	if (streq(text, "offline\n"))
		flags |= KEEPER_OFFLINE;
	return flags;
}

/* A keeper before us in this boot. Return: whether there was one. */
static bool load_state(Keeper *k)
{
	_cleanup_json_ json_object *o = keeper_read_state(k->name);
	const char *state, *reason;
	uint64_t generation, port;

	if (!o)
		return false;
	if (json_get_u64(o, "graphics_port", &port) && port <= UINT16_MAX)
		k->viewers_port = (unsigned int)port;
	if (json_get_u64(o, "generation", &generation))
		k->generation = (unsigned int)generation;
	(void)json_get_bool(o, "arrived", &k->arrived);
	(void)json_get_u64(o, "since", &k->since);
	if (json_get_string(o, "state", &state) && vm_state_from_string(state) >= 0)
		k->state = (VmState)vm_state_from_string(state);
	if (json_get_string(o, "reason", &reason))
		k->before.reason = vm_reason(reason);
	k->before.state = k->state;
	k->before.since = k->since;
	return true;
}

/* Definitions of migrations to this host that a killed keeper left behind; the journal knows which one counts. */
static void sweep_definitions(Keeper *k)
{
	_cleanup_free_ char *path = state_path(k->name, NULL);
	DIR *dir = opendir(path);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		const char *id = startswith(entry->d_name, "definition.");
		const JournalRecord *record = id && text_is_id(id) ? journal_find(k->journal, id) : NULL;

		if (id && text_is_id(id) && (!record || record->kind != JOURNAL_COMMITTED))
			(void)unlinkat(dirfd(dir), entry->d_name, 0);
	}
	if (dir)
		closedir(dir);
}

/* A keeper without a QEMU, for a migration that is about to come or to be asked for; it leaves when none does. */
static int begin_transient(Keeper *k, const char *reason)
{
	k->incoming = true;
	k->state = VM_SHUTOFF;
	k->reason = reason;
	sweep_definitions(k);
	keeper_say_ready(k, NULL);
	keeper_check_idle_in(k, IDLE_USEC);
	return 0;
}

static int start_fresh(Keeper *k, unsigned int flags, Error **err)
{
	int r;

	k->start_wanted = false;
	vm_definition_free(TAKE_PTR(k->def));
	r = may_start(k, flags & KEEPER_FORCE, err);
	if (r >= 0)
		r = load_definition(k, err);
	if (r >= 0 && flags & KEEPER_OFFLINE)
		return begin_transient(k, "offline");
	if (r >= 0)
		r = host_check_resources(k->conf, k->def, err);
	if (r >= 0) {
		HostMemory need = host_memory_of(k->def, scope_slice());

		r = host_check_memory(&need, NULL, err); /* it takes it little by little, if ever: nothing is promised */
	}
	return r < 0 ? r : machine_start(k, false, err);
}

static int on_without_guest(sd_event_source *source, uint64_t usec, void *userdata)
{
	Keeper *k = userdata;
	_cleanup_error_ Error *err = NULL;
	bool start = k->start_wanted;

	(void)source;
	(void)usec;
	k->idle_timer = sd_event_source_disable_unref(k->idle_timer);
	if (k->leaving)
		return 0;
	if (start) {
		log_info("the guest runs nowhere and is this host's: starting it");
		if (start_fresh(k, 0, &err) >= 0)
			return 0;
		log_error("%s", err->message);
	}
	keeper_set_state(k, VM_SHUTOFF, start ? "failed" : "crashed");
	keeper_history(k, k->reason, NULL);
	keeper_leave(k);
	return 0;
}

void keeper_without_guest(Keeper *k)
{
	k->idle_timer = sd_event_source_disable_unref(k->idle_timer);
	(void)sd_event_add_time_relative(k->event, &k->idle_timer, CLOCK_MONOTONIC, 0, 1, on_without_guest, k);
}

int keeper_begin(Keeper *k, unsigned int flags, Error **err)
{
	JournalKind last = journal_last(k->journal)->kind;
	bool before = load_state(k);
	int r;

	flags = flags_from_file(k, flags);
	source_drop_probes(k);
	k->start_wanted = !before && !(flags & (KEEPER_INCOMING | KEEPER_OFFLINE));
	r = save_adopt(k, flags, err);
	if (r != 0)
		return r < 0 ? r : 0;
	r = machine_adopt(k, err);
	if (r < 0)
		return r;
	if (r > 0 || last == JOURNAL_COMMIT || (before && (last == JOURNAL_GONE || move_noted(k)))) {
		if (r == 0 && last == JOURNAL_COMMIT)
			(void)load_definition(k, NULL); /* its lease may decide */
		if (r == 0) {
			k->incoming = flags & (KEEPER_INCOMING | KEEPER_OFFLINE);
			keeper_say_ready(k, NULL); /* else when QEMU has said how the guest is */
		}
		move_recover(k, r > 0);
		return 0;
	}
	if (flags & KEEPER_INCOMING)
		return begin_transient(k, "incoming");
	if (before && !(flags & KEEPER_FORCE) && k->state != VM_SHUTOFF) {
		/* QEMU died while no keeper was there. */
		log_warning("QEMU is gone");
		keeper_history(k, "crashed", NULL);
		keeper_leave(k);
		return 0;
	}
	return start_fresh(k, flags, err);
}
