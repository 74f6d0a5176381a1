/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The target: it may refuse until it has journalled COMMITTED; from then on the guest is its own. */
#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

#include "basic/tcp.h"
#include "keeper/move.h"
#include "keeper/prove.h"
#include "keeper/scope.h"
#include "keeper/tls.h"
#include "qemu/tap.h"

#define DATA_FD_NAME "vmferry-data"
#define LOOK_USEC (500 * USEC_PER_MSEC)

static int begin(PeerConnection *c, PrepareCookie *p, VmDefinition *def, Room *room, sd_bus_message *message)
{
	Keeper *k = c->keeper;
	Move *m = k->move;

	move_reset(m);
	m->state = MOVE_T_IDLE;
	memcpy(m->id, p->id, sizeof(m->id));
	m->prepare = *p;
	*p = (PrepareCookie){};
	m->from = c;
	m->room = room;
	m->prepare_message = sd_bus_message_ref(message);
	m->was_running = streq(m->prepare.run_state, "running");
	m->token = text_random_id();
	m->t.begun = m->t.phase_begun = now_usec();
	m->gate = "none";
	m->opt.live = true;
	journal_forget_peer(k->journal, c->host_id);
	vm_definition_free(k->def);
	k->def = def;
	move_fact(m, MOVE_FACT_OWNER, false);
	move_fact(m, MOVE_FACT_WAS_RUNNING, m->was_running);
	move_fact(m, MOVE_FACT_OFFLINE, streq(m->prepare.run_state, "shutoff"));
	move_fact(m, MOVE_FACT_LOAD_DONE, streq(m->prepare.run_state, "shutoff"));
	prove_close(c);
	log_info("migration %s of %s from %s: transport=%s run-state=%s conntrack=%d", m->id, k->name, c->host_name,
		 m->prepare.transport, m->prepare.run_state, m->prepare.conntrack);
	move_event(m, MOVE_EV_PREPARE);
	return 1;
}

static int answer_prepare(PeerConnection *c, PrepareCookie *p, sd_bus_message *message, Error **err)
{
	Keeper *k = c->keeper;
	VmDefinition *def = NULL;
	Room *room = NULL;
	PrepareReply reply = {};
	const char *advice;
	int r = target_admit(c, p, &def, &room, err);

	if (r < 0)
		return r;
	if (!p->check_only)
		return begin(c, p, def, room, message);
	advice = qemu_memory_advice(def);
	sink_tell_check(k, def, &reply);
	if (advice)
		strv_add(&reply.warnings, "%s", advice);
	vm_definition_free(def);
	r = cookie_reply(message, &prepare_reply, &reply);
	strv_free(reply.warnings);
	return r < 0 ? error_set(err, r, "cannot answer: %s", strerror(-r)) : r;
}

static void refused(const PeerConnection *c, const Error *err)
{
	log_warning("refused %s from %s: %s", c->keeper->name, c->host_name, err->message);
}

void target_looked(PeerConnection *c, PrepareCookie *p, sd_bus_message *message, const Error *silent)
{
	_cleanup_error_ Error *err = NULL;

	if (!silent && answer_prepare(c, p, message, &err) >= 0)
		return;
	refused(c, silent ? silent : err);
	bus_reply_error(message, "Denied", silent ? silent : err);
}

int target_prepare(PeerConnection *c, sd_bus_message *message, sd_bus_error *error)
{
	_cleanup_error_ Error *err = NULL;
	PrepareCookie p = {};
	int r;

	(void)sd_bus_message_sensitive(message); /* it has the key */
	r = cookie_read(message, &prepare_cookie, peer_features, &p, &err);
	if (r >= 0)
		r = target_look(c, &p, message, &err);
	if (r == 0)
		r = answer_prepare(c, &p, message, &err);
	if (r < 0) {
		refused(c, err);
		r = bus_error(error, "Denied", err);
	}
	cookie_clear(&prepare_cookie, &p);
	return r;
}

/* ---- QEMU ---- */

static int keep_definition(Move *m, Error **err)
{
	_cleanup_free_ char *file = xasprintf("definition.%s", m->id), *path = state_path(m->k->name, file);
	_cleanup_free_ char *text = vm_definition_text(m->k->def);
	int r = file_write(path, text, strlen(text), 0600, true);

	return r < 0 ? error_set(err, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

int do_start_qemu(Move *m)
{
	Error *err = NULL;
	int r;

	/* The note first: a keeper that finds an incoming QEMU must know that it is one. */
	move_save(m);
	r = keep_definition(m, &err);
	if (r >= 0 && !(m->facts & MOVE_FACT_OFFLINE))
		r = machine_start(m->k, true, &err);
	move_error(m, err);
	if (r < 0)
		return r;
	if (m->facts & MOVE_FACT_OFFLINE)
		move_event(m, MOVE_EV_QEMU_READY);
	sink_open(m);
	return 0;
}

static void setup_failed(Move *m, const char *what, const char *error)
{
	Error *err = NULL;

	error_set(&err, -EIO, "%s: %s", what, error);
	move_fail(m, err);
}

static void on_setup_reply(json_object *ret, const char *error, void *userdata)
{
	(void)ret;
	if (error)
		setup_failed(userdata, "QEMU", error);
}

/* Where QEMU listens: it bound the first free port of the range itself. */
static void on_listening(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	json_object *addresses, *first;
	const char *port;
	uint64_t number;

	if (m->state != MOVE_T_PREP)
		return;
	if (error || !json_get_array(ret, "socket-address", &addresses) || json_object_array_length(addresses) < 1 ||
	    !(first = json_object_array_get_idx(addresses, 0)) || !json_get_string(first, "port", &port) ||
	    text_parse_u64(port, &number) < 0) {
		setup_failed(m, "QEMU does not say where it listens", error ? error : "no socket-address");
		return;
	}
	m->prepared.port = number;
	move_event(m, MOVE_EV_QEMU_READY);
}

static void listen_direct(Move *m)
{
	HostConf *conf = m->k->conf;
	bool v6 = strchr(conf->migration_address, ':') != NULL;
	_cleanup_free_ char *uri = xasprintf("tcp:%s%s%s:%u,to=%u", v6 ? "[" : "", conf->migration_address,
					     v6 ? "]" : "", conf->port_min, conf->port_max);

	machine_qmp(m->k, "migrate-incoming", json_build("uri", "s", uri, NULL), on_setup_reply, m);
	machine_qmp(m->k, "query-migrate", NULL, on_listening, m);
}

static void on_set_up(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (m->state != MOVE_T_PREP)
		return;
	if (error)
		setup_failed(m, "QEMU", error);
	else if (streq(m->prepare.transport, "tls") || streq(m->prepare.transport, "tcp"))
		listen_direct(m);
	else
		move_event(m, MOVE_EV_QEMU_READY);
}

void move_qemu_ready(Move *m)
{
	_cleanup_free_ char *tls = NULL;
	json_object *object, *parameters;
	Error *err = NULL;

	if (m->state != MOVE_T_PREP)
		return;
	if (scope_check(m->k->qemu, m->k->def, &err) < 0) {
		move_fail(m, err);
		return;
	}
	if (m->prepare.psk) {
		if (tls_object(m->k, m->id, m->prepare.psk, "server", &object, &err) < 0) {
			move_fail(m, err);
			return;
		}
		machine_qmp(m->k, "object-add", object, on_setup_reply, m);
		tls = tls_object_id(m->id);
	}
	parameters = json_build("tls-creds", "s", tls ? tls : "", NULL);
	if (m->prepare.channels)
		json_extend(parameters, "multifd-channels", "u", m->prepare.channels, NULL);
	machine_qmp(m->k, "migrate-set-capabilities", migration_capabilities(m->prepare.channels > 0, false), on_setup_reply,
		    m);
	machine_qmp(m->k, "migrate-set-parameters", parameters, on_set_up, m);
}

/* A source that prepares and then sends nothing does not keep a QEMU here. */
static int on_nothing_came(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)usec;
	m->timeout = sd_event_source_disable_unref(source);
	if (m->state != MOVE_T_WAIT)
		return 0;
	error_set(&err, -ETIMEDOUT, "no memory of the guest began to arrive within %.1f s",
		  (double)m->deadlines.prepare / (double)USEC_PER_SEC);
	move_error(m, err);
	move_event(m, MOVE_EV_DEADLINE);
	return 0;
}

/* What has arrived is seen in the kernel's figures: it is promised no more. */
static int on_look(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	if (m->k->qemu)
		room_used(m->room, qemu_process_memory(m->k->qemu));
	sd_event_source_set_time_relative(source, LOOK_USEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

/* Where clients of the guest's graphics go on. */
static void tell_graphics(const Keeper *k, PrepareReply *reply)
{
	if (k->def->graphics == GRAPHICS_NONE)
		return;
	reply->graphics = (char *)(uintptr_t)graphics_type_to_string(k->def->graphics);
	reply->graphics_listen = k->def->graphics_listen;
	reply->graphics_host = k->conf->host_name;
	if (k->def->graphics_tls)
		reply->graphics_tls_port = tcp_port(k->viewers_fd);
	else
		reply->graphics_port = tcp_port(k->viewers_fd);
}

int do_prepare_reply(Move *m)
{
	_cleanup_free_ char *path = runtime_path(m->k->name, "peer"), *cert_subject = graphics_cert_subject(m->k->def);
	PrepareReply reply = {
		.port = m->prepared.port,
		.address = m->prepared.port ? m->k->conf->migration_address : NULL,
		.token = m->token,
		.data_socket = path,
		.qemu_version = m->k->qemu_version,
		.warnings = m->warnings,
		.lease_holder = m->k->lease ? (char *)(uintptr_t)lease_holder(m->k->lease) : NULL,
	};
	int r;

	if (!m->prepare_message)
		return 0;
	reply.graphics_cert_subject = cert_subject;
	tell_graphics(m->k, &reply);
	sink_tell(m, &reply);
	r = cookie_reply(m->prepare_message, &prepare_reply, &reply);
	m->prepare_message = sd_bus_message_unref(m->prepare_message);
	if (!(m->facts & MOVE_FACT_OFFLINE)) {
		(void)sd_event_add_time_relative(m->k->event, &m->timeout, CLOCK_MONOTONIC,
						 m->deadlines.prepare, 0, on_nothing_came, m);
		(void)sd_event_add_time_relative(m->k->event, &m->progress, CLOCK_MONOTONIC, LOOK_USEC, 0, on_look, m);
	}
	return r;
}

static void on_incoming(json_object *ret, const char *error, void *userdata)
{
	(void)ret;
	if (error)
		setup_failed(userdata, "QEMU does not take the data stream", error);
}

void target_data(Keeper *k, int fd)
{
	Move *m = k->move;

	if (!k->qmp) {
		fd_close(fd);
		return;
	}
	qmp_command_fd(k->qmp, "getfd", json_build("fdname", "s", DATA_FD_NAME, NULL), fd, on_incoming, m);
	machine_qmp(k, "migrate-incoming", json_build("uri", "s", "fd:" DATA_FD_NAME, NULL), on_incoming, m);
}

void target_migration_event(Move *m, const char *status)
{
	Error *err = NULL;

	if (streq(status, "active")) {
		m->timeout = sd_event_source_disable_unref(m->timeout); /* from here on the source has the clock */
		sd_bus *bus = m->from ? link_bus(m->from->link) : NULL;

		if (bus)
			(void)sd_bus_emit_signal(bus, PEER_PATH, PEER_INTERFACE, "Receiving", "");
	} else if (streq(status, "completed")) {
		m->t.loaded = now_usec();
		move_fact(m, MOVE_FACT_LOAD_DONE, true);
		move_event(m, MOVE_EV_LOADED);
	} else if (streq(status, "failed")) {
		error_set(&err, -EIO, "QEMU could not load the guest's state");
		move_fail(m, err);
	}
}

/* ---- connections ---- */

static void attach_taps(Move *m)
{
	_cleanup_error_ Error *err = NULL;

	if (m->attached || !m->k->qemu)
		return;
	if (machine_attach_taps(m->k, &err) < 0)
		move_fail(m, TAKE_PTR(err));
	m->attached = true;
}

int target_delta(PeerConnection *c, const void *data, size_t len, bool last, Error **err)
{
	Move *m = c->keeper->move;
	int r = 0;

	if (m->from != c || !move_is_target(m) || (m->state != MOVE_T_WAIT && m->state != MOVE_T_GATE))
		return error_set(err, -EPROTO, "Delta outside a migration");
	if (len > 0 && m->apply) {
		r = ct_apply_delta(m->apply, data, len, err);
		if (r < 0 && !m->ct_problem)
			m->ct_problem = xstrdup(err && *err ? (*err)->message : strerror(-r));
	}
	if (last) {
		/* Whatever became of the records: no more will come, and the guest must not wait for any. */
		move_fact(m, MOVE_FACT_BARRIER_DONE, true);
		attach_taps(m);
		move_event(m, MOVE_EV_BARRIER);
	}
	return r;
}

/* ---- Finish ---- */

static int on_gate_over(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->gate_timer = sd_event_source_disable_unref(source);
	move_fact(m, MOVE_FACT_GATE_PASSED, true);
	move_event(m, MOVE_EV_GATE_OVER);
	return 0;
}

int do_arm_gate(Move *m)
{
	uint64_t gate = m->deadlines.gate;

	if (m->facts & MOVE_FACT_BARRIER_DONE)
		return 0;
	if (m->finish_since >= gate || !m->prepare.conntrack) {
		move_fact(m, MOVE_FACT_GATE_PASSED, true);
		return 0;
	}
	return sd_event_add_time(m->k->event, &m->gate_timer, CLOCK_MONOTONIC,
				 m->t.finish_came + gate - m->finish_since, 1, on_gate_over, m);
}

int target_finish(PeerConnection *c, sd_bus_message *message, sd_bus_error *error)
{
	Keeper *k = c->keeper;
	Move *m = k->move;
	_cleanup_error_ Error *err = NULL;
	FinishCookie f = {};
	int r;

	r = cookie_read(message, &finish_cookie, peer_features, &f, &err);
	if (r < 0)
		return bus_error(error, "InvalidArgument", err);
	if (!streq(f.id, c->preamble.id)) {
		r = error_set(&err, -EPROTO, "Finish names another migration than the stream's first line");
		r = bus_error(error, "InvalidArgument", err);
	} else if (m->from != c || !streq(m->id, f.id) || m->state != MOVE_T_WAIT) {
		r = target_outcome(c, message, f.id, error);
	} else {
		m->t.finish_came = now_usec();
		m->finish_since = f.since_stop_usec;
		m->lease_generation = f.lease_generation;
		if (f.run_state)
			m->was_running = streq(f.run_state, "running");
		m->finish_message = sd_bus_message_ref(message);
		move_event(m, MOVE_EV_FINISH);
		r = 1;
	}
	cookie_clear(&finish_cookie, &f);
	return r;
}

int do_journal_committed(Move *m)
{
	JournalRecord r = {.kind = JOURNAL_COMMITTED, .running = m->was_running};
	Error *err = NULL;
	int n;

	m->t.gate_passed = now_usec();
	m->gate = m->facts & MOVE_FACT_BARRIER_DONE ? "barrier" : m->prepare.conntrack ? "timeout" : "none";
	if (streq(m->gate, "timeout"))
		move_warn(m, "the last connections did not come in time: some might get dropped");
	attach_taps(m);
	memcpy(r.id, m->id, sizeof(r.id));
	snprintf(r.peer, sizeof(r.peer), "%s", m->from && m->from->host_id ? m->from->host_id : "");
	n = journal_write(m->k->journal, &r, &err);
	m->t.journalled = now_usec();
	move_error(m, err);
	return n;
}

static void on_cont_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (m->state != MOVE_T_RESUMING)
		return;
	if (!error) {
		if (!m->t.resumed)
			m->t.resumed = now_usec();
		move_event(m, MOVE_EV_CONT_OK);
		return;
	}
	if (streq(error, QMP_CONNECTION_CLOSED))
		return; /* no answer is no error reply: it may have run; QEMU's exit decides */
	error_set(&err, -EIO, "the guest does not start here: %s", error);
	move_error(m, err);
	move_event(m, MOVE_EV_CONT_ERROR);
}

int do_cont(Move *m)
{
	m->t.cont_sent = now_usec();
	if (m->was_running)
		machine_qmp(m->k, "cont", NULL, on_cont_reply, m);
	else
		move_event(m, MOVE_EV_CONT_OK);
	return 0;
}

/* ---- answers ---- */

static uint64_t between(uint64_t from, uint64_t to)
{
	return from && to > from ? to - from : 0;
}

/* What is known of the migration that this side has carried out, or given up, beside its outcome; @ct is borrowed. */
static void tell_how(const Move *m, CtApplyStats *ct, OutcomeReply *reply)
{
	if (m->error) {
		reply->reason = m->error->message;
		reply->hint = m->error->hint;
	}
	sink_stats(m, ct);
	reply->ct_reasons = sink_reasons(ct);
	reply->ct_received = ct->received;
	reply->ct_applied = ct->applied;
	reply->ct_refused = ct->refused;
	reply->ct_failed = ct->failed;
	reply->ct_replaced = ct->replaced;
	reply->ct_first_refused = ct->first_refused;
	reply->gate = (char *)(uintptr_t)m->gate;
	reply->gate_usec = between(m->t.finish_came, m->t.gate_passed);
	reply->journal_usec = between(m->t.gate_passed, m->t.journalled);
	reply->cont_usec = between(m->t.cont_sent, m->t.resumed);
	reply->warnings = m->warnings;
	reply->resumed_usec = between(m->t.resumed, now_usec());
}

static int send_outcome(Move *m, sd_bus_message *message, const char *id, const char *outcome, bool alive)
{
	OutcomeReply reply = {.id = (char *)(uintptr_t)id, .outcome = (char *)(uintptr_t)outcome, .alive = alive};
	CtApplyStats ct = {};
	int r;

	if (streq(m->id, id))
		tell_how(m, &ct, &reply);
	r = cookie_reply(message, &outcome_reply, &reply);
	strv_free(reply.ct_reasons);
	return r;
}

void target_answer(Move *m, const char *outcome, bool alive)
{
	if (m->finish_message)
		(void)send_outcome(m, m->finish_message, m->id, outcome, alive);
	m->finish_message = sd_bus_message_unref(m->finish_message);
}

/* An unknown migration: a record first, so that what is said now is true for ever. */
int target_tombstone(Keeper *k, const char *id, Error **err)
{
	JournalRecord r = {.kind = JOURNAL_ABORTED};

	memcpy(r.id, id, sizeof(r.id));
	return journal_write(k->journal, &r, err);
}

int target_outcome(PeerConnection *c, sd_bus_message *message, const char *id, sd_bus_error *error)
{
	Keeper *k = c->keeper;
	Move *m = k->move;
	const JournalRecord *record = journal_find(k->journal, id);
	_cleanup_error_ Error *err = NULL;

	if (!text_is_id(id))
		return sd_bus_error_set(error, "org.vmferry.Error.InvalidArgument", "that is no migration id");
	if (move_is_target(m) && move_active(m) && streq(m->id, id)) {
		/* Decide now: undecided becomes Never; what is being carried out is answered at its end. */
		sd_bus_message_unref(m->finish_message);
		m->finish_message = sd_bus_message_ref(message);
		m->from = c;
		move_event(m, MOVE_EV_OUTCOME);
		return 1;
	}
	if (record && record->kind != JOURNAL_COMMITTED && record->kind != JOURNAL_ABORTED) {
		/* Our own question has come back to us (a moved address): whatever we said would be believed. */
		error_set(&err, -ELOOP, "host %s is the source of this migration", k->conf->host_name);
		return bus_error(error, "InvalidArgument", err);
	}
	if (record && record->kind == JOURNAL_COMMITTED)
		return send_outcome(m, message, id, "running", k->qemu != NULL);
	if (!record && target_tombstone(k, id, &err) < 0)
		return bus_error(error, "Failed", err);
	return send_outcome(m, message, id, "never", false);
}
