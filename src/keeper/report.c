/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What people and programs read: a migration's result and progress, a VM's status. Members as in docs/control.md. */
#include <errno.h>
#include <inttypes.h>

#include "keeper/upgrade.h"

static double ms(uint64_t usec)
{
	return (double)(usec / 10) / 100.0;
}

static uint64_t between(uint64_t from, uint64_t to)
{
	return from && to > from ? to - from : 0;
}

static json_object *strings(char *const *v)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; v && v[i]; i++)
		json_object_array_add(list, json_object_new_string(v[i]));
	return list;
}

static json_object *error_json(const Move *m)
{
	if (!m->error)
		return NULL;
	return json_build("phase", "s", m->error_phase, "message", "s", m->error->message, "hint", "s", m->error->hint,
			  NULL);
}

static json_object *phases_json(const Move *m)
{
	json_object *o = json_object_new_object();

	for (size_t i = 0; i < m->n_phases; i++)
		json_extend(o, m->phases[i].name, "d", ms(m->phases[i].usec), NULL);
	return o;
}

/*
 * Upper bound of the time from @since to RESUME: to our receipt of the answer on our clock, less RESUME to the sending
 * of the answer on the target's.
 */
static uint64_t until_resume(const Move *m, uint64_t since)
{
	uint64_t seen = between(since, m->t.answered);

	return m->outcome.resumed_usec && m->outcome.resumed_usec < seen ? seen - m->outcome.resumed_usec : seen;
}

static json_object *steps_json(const Move *m)
{
	const MoveTimes *t = &m->t;
	uint64_t delta = between(t->hold, t->delta_done), commit = between(t->postmigrate, t->committed);
	uint64_t finish = between(t->committed, t->finish_sent), gate = m->outcome.gate_usec;
	uint64_t journal = m->outcome.journal_usec;

	return json_build("stop_to_hold", "d", ms(between(t->stop, t->hold)), "delta", "d", ms(delta), "device_state",
			  "d", ms(between(t->delta_done, t->postmigrate)), "journal_commit", "d", ms(commit),
			  "finish_send", "d", ms(finish), "gate", "d", ms(gate), "journal_committed", "d", ms(journal),
			  "cont", "d", ms(m->outcome.cont_usec), "commit_to_resume", "d",
			  ms(until_resume(m, t->committed)), "own", "d",
			  ms(delta + commit + finish + gate + journal), NULL);
}

static json_object *conntrack_json(const Move *m)
{
	const OutcomeReply *o = &m->outcome;

	return json_build("enabled", "b", (int)m->opt.conntrack, "followed", "u", m->followed, "applied", "u",
			  o->ct_applied, "refused", "u", o->ct_refused, "lost", "u",
			  m->followed > o->ct_applied + o->ct_refused ? m->followed - o->ct_applied - o->ct_refused
								      : (uint64_t)0,
			  "failed", "u", o->ct_failed, "replaced", "u", o->ct_replaced, "last_delta_entries", "u",
			  m->last_delta_entries, "barrier_ms", "d", ms(between(m->t.hold, m->t.barrier_answered)),
			  "untold", "u", m->untold, "reasons", "o", reasons_json(o->ct_reasons), "gate", "s",
			  o->gate ? o->gate : "none", "first_refused", "s",
			  o->ct_first_refused && *o->ct_first_refused ? o->ct_first_refused : NULL, NULL);
}

static const char *guest_where(const Move *m)
{
	const Keeper *k = m->k;

	if (m->state == MOVE_S_DOUBT || m->state == MOVE_S_RETAKE || m->state == MOVE_S_WAIT)
		return "unknown";
	if (m->facts & MOVE_FACT_OFFLINE)
		return "shut off";
	if (m->state >= MOVE_S_NEVER_LEASE && m->state <= MOVE_S_NEVER_RESUME)
		return !k->qemu ? "shut off" : m->was_running ? "running here" : "paused";
	if (move_committed(m->state))
		return !m->outcome.alive && m->outcome.outcome ? "shut off"
		       : m->was_running			       ? "running there"
							       : "paused there";
	if (k->state == VM_RUNNING || (k->state == VM_PAUSED && m->was_running && k->qemu))
		return "running here";
	return k->qemu && k->state != VM_SHUTOFF ? "paused" : "shut off";
}

/* Where the target's graphics are; as it says. */
static json_object *graphics_json(const Move *m)
{
	const PrepareReply *p = &m->prepared;

	if (move_is_target(m) || !p->graphics)
		return NULL;
	return json_build("type", "s", p->graphics, "host", "s", p->graphics_host, "listen", "s", p->graphics_listen, "port",
			  "u", p->graphics_port, "tls_port", "u", p->graphics_tls_port, "cert_subject", "s", p->graphics_cert_subject,
			  NULL);
}

static json_object *ram_json(const Move *m)
{
	return json_build("total", "u", m->ram_total, "transferred", "u", m->ram_transferred, NULL);
}

json_object *report_result(Move *m)
{
	uint64_t end = m->t.ended ? m->t.ended : now_usec();
	const char *target = m->hello.host_name ? m->hello.host_name : m->opt.destination;
	bool completed = m->status && streq(m->status, "completed");

	json_object *o =
		json_build("vm", "s", m->k->name, "id", "s", m->id, "status", "s", m->status ? m->status : "running",
			   "source", "s", m->k->conf->host_name, "target", "s", target, "transport", "s", m->transport,
			   "transport_reason", "s", m->transport_reason, "phases", "o", phases_json(m), "total_ms", "d",
			   ms(between(m->t.begun, end)), NULL);

	if (completed)
		json_extend(o, "pause_ms", "d", ms(until_resume(m, m->t.stop)), "steps", "o", steps_json(m), NULL);
	json_extend(o, "ram", "o", ram_json(m), "conntrack", "o", conntrack_json(m), "error", "o", error_json(m), "warnings", "o",
		    strings(m->warnings), "guest", "s", guest_where(m), NULL);
	if (m->prepared.graphics)
		json_extend(o, "graphics", "o", graphics_json(m), NULL);
	return o;
}

json_object *report_progress(Move *m)
{
	uint64_t done = m->ram_total > m->ram_remaining ? m->ram_total - m->ram_remaining : 0;
	uint64_t left = m->rate ? m->ram_remaining * 1000 / m->rate : 0;
	CtFollowStats ct = {};

	if (m->follow)
		ct_follow_stats(m->follow, &ct);
	return json_build("id", "s", m->id, "phase", "s", move_phase(m->state), "state", "s", move_state_name(m->state),
			  "percent", "u", m->ram_total ? done * 100 / m->ram_total : (uint64_t)0, "transferred", "u",
			  m->ram_transferred, "remaining", "u", m->ram_remaining, "total", "u", m->ram_total, "rate",
			  "u", m->rate, "dirty_rate", "u", m->dirty_rate, "left_ms", "u", left, "predicted_pause_ms",
			  "u", m->predicted_pause_ms, "downtime_limit", "u", m->downtime_now, "throttle", "u", m->throttled, "transport", "s", m->transport, "conntrack_followed", "u",
			  ct.entries, "elapsed_ms", "u", between(m->t.begun, now_usec()) / 1000, NULL);
}

static void add_finding(json_object *list, const char *level, const char *what, const char *hint)
{
	json_object_array_add(list, json_build("level", "s", level, "what", "s", what, "hint", "s", hint, NULL));
}

json_object *report_check(Move *m)
{
	json_object *findings = json_object_new_array();
	bool cancelled = m->error && m->error->code == -ECANCELED;
	bool ok = !m->error || cancelled;

	if (!ok)
		add_finding(findings, "error", m->error->message, m->error->hint);
	for (size_t i = 0; m->warnings && m->warnings[i]; i++)
		if (ok || !streq(m->warnings[i], m->error->message))
			add_finding(findings, "warning", m->warnings[i], NULL);
	if (m->transport)
		add_finding(findings, "note", m->transport_reason, NULL);
	return json_build("ok", "b", (int)ok, "findings", "o", findings, "target", "s", m->hello.host_name, "transport",
			  "s", m->transport, "transport_reason", "s", m->transport_reason, NULL);
}

/* ---- upgrades ---- */

static json_object *side_json(const char *binary, const char *version)
{
	return json_build("binary", "s", binary, "version", "s", version, NULL);
}

static json_object *upgrade_steps(const Move *m)
{
	const Upgrade *up = m->up;
	const MoveTimes *t = &m->t;

	return json_build("start", "d", ms(between(t->begun, up->ready)), "set_up", "d", ms(between(up->ready, up->opened)),
			  "migrate", "d", ms(between(up->opened, t->stop)), "device_state", "d",
			  ms(between(t->stop, t->postmigrate)), "load", "d", ms(between(t->postmigrate, t->loaded)),
			  "record", "d", ms(between(t->loaded, t->committed)), "kill", "d",
			  ms(between(t->committed, up->killed)), "cont", "d", ms(between(t->cont_sent, t->resumed)), "reap",
			  "d", ms(between(up->killed, up->reaped)), NULL);
}

/* The trial of the new one is over before the guest stops. */
static json_object *save_steps(const Move *m)
{
	const Upgrade *up = m->up;
	const MoveTimes *t = &m->t;

	return json_build("try", "d", ms(between(t->begun, up->reaped)), "save", "d",
			  ms(between(t->stop, t->postmigrate)), "record", "d", ms(between(t->postmigrate, t->committed)),
			  "kill", "d", ms(between(t->committed, up->killed)), "start", "d",
			  ms(between(up->killed, up->filled)), "load", "d", ms(between(up->filled, t->loaded)), "cont",
			  "d", ms(between(t->cont_sent, t->resumed)), NULL);
}

static const char *upgrade_guest(const Move *m)
{
	const Keeper *k = m->k;

	if (m->up->saved && m->up->saved->kind == SAVED_WHOLE && !k->qemu)
		return "saved to a file";

	if (!k->qemu || k->state == VM_SHUTOFF)
		return "shut off";
	return m->was_running && (!(m->up->changed_over || m->up->restored) || m->up->resumed) ? "running here" : "paused";
}

json_object *report_upgrade(Move *m)
{
	const Upgrade *up = m->up;
	bool completed = m->status && streq(m->status, "completed");
	json_object *o = json_build("vm", "s", m->k->name, "id", "s", m->id, "kind", "s", "upgrade", "way", "s", upgrade_way_to_string(up->way), "status",
				    "s", m->status ? m->status : "running", "host", "s", m->k->conf->host_name, "from", "o",
				    side_json(up->from_binary, up->from_version), "to", "o",
				    side_json(up->to_binary, up->to_version), "phases", "o", phases_json(m), "total_ms",
				    "d", ms(between(m->t.begun, m->t.ended ? m->t.ended : now_usec())), NULL);

	if (completed && m->was_running && m->t.stop && m->t.resumed)
		json_extend(o, "pause_ms", "d", ms(between(m->t.stop, m->t.resumed)), NULL);
	if (completed)
		json_extend(o, "steps", "o", up->way == WAY_SAVE ? save_steps(m) : upgrade_steps(m), NULL);
	if (up->saved)
		json_extend(o, "file", "o",
			    json_build("path", "s", up->saved->file, "size", "u", up->saved->size, "kept", "b",
				       (int)(up->saved->kind == SAVED_WHOLE), NULL),
			    NULL);
	if (up->way != WAY_IN_PLACE && m->ram_transferred)
		json_extend(o, "ram", "o", ram_json(m), NULL);
	json_extend(o, "error", "o", error_json(m), "warnings", "o", strings(m->warnings), "guest", "s", upgrade_guest(m),
		    NULL);
	return o;
}

json_object *report_upgrade_check(Move *m)
{
	const Upgrade *up = m->up;
	json_object *findings = json_object_new_array();
	bool ok = !m->error;

	if (!ok)
		add_finding(findings, "error", m->error->message, m->error->hint);
	for (size_t i = 0; m->warnings && m->warnings[i]; i++)
		add_finding(findings, "warning", m->warnings[i], NULL);
	return json_build("vm", "s", m->k->name, "ok", "b", (int)ok, "findings", "o", findings, "way", "s",
			  !ok ? "none" : upgrade_way_to_string(up->way), "from", "o", side_json(up->from_binary, up->from_version), "to", "o",
			  side_json(up->to_binary, up->to_version), "memory_needed", "u", up->memory_needed, NULL);
}

json_object *report_upgrade_refused(Keeper *k, const Error *why)
{
	json_object *findings = json_object_new_array();

	add_finding(findings, "error", why->message, why->hint);
	return json_build("vm", "s", k->name, "ok", "b", 0, "findings", "o", findings, "way", "s", "none", "from", "o",
			  side_json(k->def ? k->def->binary : NULL, k->qemu_version), NULL);
}

static json_object *conntrack_status(const Move *m)
{
	_cleanup_strv_ char **reasons = NULL;
	CtApplyStats apply;
	CtFollowStats follow = {};

	sink_stats(m, &apply);
	reasons = sink_reasons(&apply);
	if (m->follow)
		ct_follow_stats(m->follow, &follow);
	return json_build("followed", "u", follow.entries, "overruns", "u", follow.overruns, "received", "u",
			  apply.received, "applied", "u", apply.applied, "refused", "u", apply.refused, "failed", "u",
			  apply.failed, "replaced", "u", apply.replaced, "swept", "u", apply.swept, "reasons", "o",
			  reasons_json(reasons), "untold", "u", follow.untold, NULL);
}

json_object *report_status(Keeper *k)
{
	_cleanup_strv_ char **addresses = k->def ? vm_addresses(k->def) : NULL;
	Move *m = k->move;
	json_object *o = json_build("name", "s", k->name, "uuid", "s", k->def ? k->def->uuid : NULL, "state", "s",
				    vm_state_to_string(k->state), "reason", "s", k->reason, "since", "u",
				    k->since / USEC_PER_SEC, "qemu_version", "s", k->qemu_version, "host", "s",
				    k->conf->host_name, "memory", "u", k->def ? k->def->memory : (uint64_t)0,
				    "addresses", "o", strings(addresses), "conntrack", "o", conntrack_status(m), NULL);

	if (k->lease)
		json_extend(o, "lease", "o", keeper_lease_status(k), NULL);
	if (k->def && k->def->graphics != GRAPHICS_NONE)
		json_extend(o, "graphics", "o", viewers_json(k), NULL);
	if (k->qemu)
		json_extend(o, "pid", "u", (uint64_t)k->qemu->pid, NULL);
	if (k->qemu)
		json_extend(o, "block", "o", stats_disks(k->stats), NULL);
	if (move_active(m))
		json_extend(o, "migration", "o", report_progress(m), NULL);
	if (k->last_result)
		json_extend(o, "last_result", "o", json_object_get(k->last_result), NULL);
	return o;
}

static json_object *nics_json(const VmDefinition *def)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; i < def->n_nics; i++) {
		const VmNic *n = &def->nics[i];

		json_object_array_add(list, json_build("id", "s", n->id, "bridge", "s", n->bridge, "vlan", "u",
						       (uint64_t)n->vlan, "model", "s", n->model, "mac", "s", n->mac,
						       "addresses", "o", strings(n->addresses), NULL));
	}
	return list;
}

static json_object *disks_json(const VmDefinition *def)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; i < def->n_disks; i++) {
		const VmDisk *d = &def->disks[i];

		json_object_array_add(list,
				      json_build("id", "s", d->id, "file", "s", d->file, "format", "s",
						 disk_format_to_string(d->format), "cache", "s",
						 disk_cache_to_string(d->cache), "shared", "b", (int)d->shared, NULL));
	}
	return list;
}

json_object *report_show(Keeper *k)
{
	const VmDefinition *d = k->def;
	_cleanup_free_ char *text = vm_definition_text(d);

	json_object *o = json_build("name", "s", d->name, "uuid", "s", d->uuid, "machine", "s", d->machine, "cpu", "s", d->cpu,
			  "cpus", "u", (uint64_t)d->cpus, "memory", "u", d->memory, "memory_backing", "s",
			  memory_backing_to_string(d->memory_backing), "binary", "s", d->binary, "disks", "o",
			  disks_json(d), "nics", "o", nics_json(d), "arrived", "b", (int)k->arrived, "text", "s", text,
			  NULL);

	if (d->graphics != GRAPHICS_NONE)
		json_extend(o, "graphics", "o", viewers_json(k), NULL);
	return o;
}
