/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The source's Begin: what is in the way, the options, the link to the target, Hello. */
#include <errno.h>
#include <inttypes.h>

#include "basic/cpu.h"
#include "keeper/move.h"

void move_options_clear(MoveOptions *o)
{
	free(o->destination);
	free(o->transport);
	free(o->data_address);
	free(o->remote_command);
	free(o->ssh);
	free(o->ssh_auth_sock);
	free(o->to_definition);
	*o = (MoveOptions){};
}

/* ---- what is in the way, seen from here ---- */

static int check_disk(const VmDisk *d, Error **err)
{
	if (!d->shared && !d->readonly) {
		error_set(err, -ENOTSUP, "disk %s (%s) is not shared between the hosts, and storage does not move yet",
			  d->id, d->file);
		error_hint(err, "put it on storage both hosts see, and say shared = true in the definition");
		return -ENOTSUP;
	}
	if (d->cache != CACHE_NONE && d->cache != CACHE_DIRECTSYNC && !d->readonly) {
		error_set(err, -EINVAL,
			  "disk %s: cache = \"%s\" is not safe for a migration: the target may read stale data", d->id,
			  disk_cache_to_string(d->cache));
		error_hint(err, "use cache = \"none\" or \"directsync\"");
		return -EINVAL;
	}
	return 0;
}

static int check_blockers(Keeper *k, const MoveOptions *o, Error **err)
{
	int r = 0;

	if (move_active(k->move)) {
		error_set(err, -EBUSY, "a migration of %s is under way already", k->name);
		error_hint(err, "see vmferry status %s", k->name);
		return -EBUSY;
	}
	if (k->state != VM_RUNNING && k->state != VM_PAUSED && !(k->state == VM_SHUTOFF && k->incoming && k->def))
		return error_set(err, -EBUSY, "%s is %s: there is no running guest to move", k->name,
				 vm_state_to_string(k->state));
	if (!keeper_owner(k)) {
		error_set(err, -EPERM, "the journal says that %s is not this host's", k->name);
		error_hint(err, "see vmferry status and vmferry log %s, here and on the other host", k->name);
		return -EPERM;
	}
	r = keeper_lease_answers(k, err);
	if (r < 0)
		return r;
	if (o->transport && transport_choice_from_string(o->transport) < 0) {
		error_set(err, -EINVAL, "'%s' is no transport", o->transport);
		error_hint(err, "transports are auto, tls, tcp, ssh, tunnel and unix");
		return -EINVAL;
	}
	for (size_t i = 0; r == 0 && i < k->def->n_disks; i++)
		r = check_disk(&k->def->disks[i], err);
	return r;
}

#define DIFFERENCES_MAX 20

static char *joined(char *const *words)
{
	char *text = xstrdup(words[0]);

	for (size_t i = 1; words[i] && i <= DIFFERENCES_MAX; i++) {
		_cleanup_free_ char *before = text;

		text = i < DIFFERENCES_MAX ? xasprintf("%s; %s", before, words[i]) : xasprintf("%s; and more", before);
	}
	return text;
}

/* A target's definition may differ where the guest cannot see it. */
static int take_definition(Move *m, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *to = NULL;
	_cleanup_strv_ char **differences = NULL;
	int r;

	if (!m->opt.to_definition)
		return 0;
	r = vm_definition_parse(m->k->name, m->opt.to_definition, "--to-definition", &to, err);
	if (r < 0)
		return r;
	vm_definition_pin(to, m->k->def);
	if (vm_abi_compare(m->k->def, to, &differences) > 0) {
		_cleanup_free_ char *all = joined(differences);

		error_set(err, -EINVAL, "the target's definition changes what the guest sees: %s", all);
		error_hint(err, "only host paths, bridges and listen addresses may differ");
		return -EINVAL;
	}
	free(m->opt.to_definition);
	m->opt.to_definition = vm_definition_text(to);
	return 0;
}

static int on_timeout(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	_cleanup_error_ Error *err = NULL;

	(void)usec;
	m->timeout = sd_event_source_disable_unref(source);
	if (move_committed(m->state) || !move_active(m))
		return 0;
	error_set(&err, -ETIMEDOUT, "not done within %" PRIu64 " s (predicted pause %" PRIu64 " ms)", m->opt.timeout,
		  m->predicted_pause_ms);
	error_hint(&err, "allow a longer pause (--downtime), more bandwidth, or more time (--timeout)");
	move_error(m, TAKE_PTR(err));
	move_event(m, MOVE_EV_DEADLINE);
	return 0;
}

/* What host.conf says, but for what this migration's options say. */
static void take_deadlines(Move *m)
{
	for (size_t i = 0; i < N_HOST_DEADLINES; i++) {
		uint64_t usec = *host_deadline(&m->opt.deadlines, i);

		if (usec)
			*host_deadline(&m->deadlines, i) = usec;
	}
}

/* What the rows look at, as it is when a migration begins. */
static void set_facts(Move *m)
{
	Keeper *k = m->k;

	m->was_running = k->state == VM_RUNNING;
	m->was_reason = k->reason;
	move_fact(m, MOVE_FACT_WAS_RUNNING, m->was_running);
	move_fact(m, MOVE_FACT_OWNER, keeper_owner(k));
	move_fact(m, MOVE_FACT_ALIVE, k->qemu != NULL);
	move_fact(m, MOVE_FACT_FOLLOW_DONE, true);
	move_fact(m, MOVE_FACT_OFFLINE, k->qemu == NULL);
}

static void log_start(const Move *m)
{
	log_info("migration %s of %s (%s) to %s: transport=%s conntrack=%d live=%d bandwidth=%" PRIu64
		 " downtime=%" PRIu64 " timeout=%" PRIu64,
		 m->id, m->k->name, vm_state_to_string(m->k->state), m->opt.destination,
		 m->opt.transport ? m->opt.transport : "auto", m->opt.conntrack, m->opt.live, m->opt.bandwidth,
		 m->opt.downtime, m->opt.timeout);
}

int move_start(Keeper *k, MoveOptions *options, sd_bus_message *check, Error **err)
{
	Move *m = k->move;
	_cleanup_free_ char *id = text_random_id();
	int r;

	r = check_blockers(k, options, err);
	if (r < 0 && !(r == -ENOTSUP && check)) /* a check goes on, and reports it */
		return r;
	sink_settle_now(m); /* what came with it a moment ago is settled before it goes on */
	move_reset(m);
	m->state = MOVE_S_IDLE;
	if (r < 0) {
		move_warn(m, "%s", (*err)->message);
		m->error = TAKE_PTR(*err);
		m->error_phase = "Begin";
	}
	m->opt = *options;
	*options = (MoveOptions){};
	take_deadlines(m);
	r = destination_parse(m->opt.destination, &m->dest, err);
	if (r >= 0)
		r = take_definition(m, err);
	if (r < 0) {
		move_reset(m);
		return r;
	}
	memcpy(m->id, id, sizeof(m->id));
	m->check_message = sd_bus_message_ref(check);
	m->t.begun = m->t.phase_begun = now_usec();
	set_facts(m);
	if (!k->qemu)
		m->opt.conntrack = false;
	log_start(m);
	if (m->opt.timeout)
		(void)sd_event_add_time_relative(k->event, &m->timeout, CLOCK_MONOTONIC, m->opt.timeout * USEC_PER_SEC,
						 0, on_timeout, m);
	move_save(m);
	move_event(m, MOVE_EV_MIGRATE);
	return 0;
}

/* ---- the link ---- */

static void on_link_up(void *userdata)
{
	Move *m = userdata;

	move_fact(m, MOVE_FACT_LINK, true);
	move_event(m, m->state == MOVE_S_DOUBT ? MOVE_EV_REACHED : MOVE_EV_LINK_UP);
}

static void on_link_lost(const Error *err, void *userdata)
{
	Move *m = userdata;
	Error *copy = NULL;

	move_fact(m, MOVE_FACT_LINK, false);
	if (m->state == MOVE_S_DOUBT) {
		log_info("in doubt: %s", err ? err->message : "the link is cut");
		(void)do_reconnect(m);
		return;
	}
	if (!move_committed(m->state)) {
		error_set(&copy, err ? err->code : -EPIPE, "%s", err ? err->message : "the link is cut");
		if (err && err->hint)
			error_hint(&copy, "%s", err->hint);
		move_error(m, copy);
	} else {
		log_warning("the link is cut after the commit: %s", err ? err->message : "EOF");
	}
	move_event(m, MOVE_EV_LINK_LOST);
}

DestinationOptions source_reach(const Move *m)
{
	return (DestinationOptions){
		.ssh = m->opt.ssh ? m->opt.ssh : getenv("VMFERRY_SSH"),
		.ssh_auth_sock = m->opt.ssh_auth_sock,
		.remote_command = m->opt.remote_command ? m->opt.remote_command : m->k->conf->remote_command,
		.aes = cpu_has_aes(),
	};
}

/* Another one each time: an ssh that takes its time to end removes its own. */
static char *login_path(const Move *m)
{
	_cleanup_free_ char *random = text_random_id(), *file = xasprintf("ssh.%.8s", random);
	_cleanup_free_ char *path = runtime_path(m->k->name, file);

	return m->dest->host && destination_login_usable(path) ? TAKE_PTR(path) : NULL;
}

int source_connect(Move *m, Error **err)
{
	static const LinkHandlers handlers = {.up = on_link_up, .lost = on_link_lost};
	_cleanup_free_ char *login = login_path(m);
	LinkOptions options = {
		.destination = m->dest,
		.how = source_reach(m),
		.connect_usec = m->deadlines.connect,
		.silence_usec = m->deadlines.link,
		.want = direct_want,
		.want_userdata = m->k,
	};

	options.how.login = login;
	memcpy(options.preamble.name, m->k->name, strlen(m->k->name) + 1);
	memcpy(options.preamble.id, m->id, sizeof(m->id));
	m->link = link_free(m->link);
	return link_connect(m->k->event, &options, &handlers, m, &m->link, err);
}

int do_connect(Move *m)
{
	Error *err = NULL;
	int r;

	if (m->opt.ssh_auth_sock && m->dest->host && !m->opt.check_only)
		log_warning("your ssh agent is lent to this migration: %s", m->opt.ssh_auth_sock);
	r = source_connect(m, &err);
	move_error(m, err);
	return r;
}

/* ---- calls ---- */

int source_call(Move *m, const char *method, const CookieTable *table, const void *cookie, uint64_t timeout_usec,
		sd_bus_message_handler_t reply)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *call = NULL;
	sd_bus *bus = link_bus(m->link);
	Error *err = NULL;
	int r;

	if (!bus)
		r = -ENOTCONN;
	else
		r = sd_bus_message_new_method_call(bus, &call, NULL, PEER_PATH, PEER_INTERFACE, method);
	if (r >= 0)
		r = sd_bus_message_sensitive(call); /* overwritten when it is freed: Prepare has the key */
	if (r >= 0)
		r = cookie_append(call, table, cookie);
	if (r >= 0)
		r = sd_bus_call_async(bus, NULL, call, reply, m, timeout_usec);
	if (r < 0) {
		error_set(&err, r, "cannot send %s: %s", method, strerror(-r));
		/* After the commit that is no failure: the target will be asked. */
		if (!move_committed(m->state))
			move_error(m, TAKE_PTR(err));
		else
			log_warning("%s", err->message);
		error_free(err);
	}
	return r;
}

static int on_remote_log(sd_bus_message *msg, void *userdata, sd_bus_error *error)
{
	_cleanup_free_ char *clean = NULL;
	Move *m = userdata;
	const char *text;
	int level;

	(void)error;
	if (sd_bus_message_read(msg, "is", &level, &text) < 0)
		return 0;
	clean = text_clean(text, 512);
	log_line(level <= LOG_LEVEL_ERROR ? LOG_LEVEL_WARNING : LOG_LEVEL_INFO, "%s says: %s",
		 m->hello.host_name ? m->hello.host_name : "target", clean);
	return 0;
}

static int on_receiving(sd_bus_message *msg, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;

	(void)msg;
	(void)error;
	move_fact(m, MOVE_FACT_TARGET_ACTIVE, true);
	move_event(m, MOVE_EV_RECEIVING);
	return 0;
}

/* Whether connections travel, and a word when they do not. */
static void decide_conntrack(Move *m)
{
	_cleanup_free_ char *why = text_clean(m->hello.conntrack_reason ? m->hello.conntrack_reason : "", 200);

	m->follow_wanted = m->opt.conntrack && m->hello.conntrack && !m->opt.check_only;
	if (m->facts & MOVE_FACT_OFFLINE)
		return;
	if (!m->opt.conntrack)
		move_warn(m, "conntrack is off: active connections might get dropped");
	else if (!m->hello.conntrack)
		move_warn(m, "the target cannot take connection state (%s): active connections might get dropped", why);
	else if (*why)
		move_warn(m, "connections might get dropped: %s", why);
}

static int on_hello_reply(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;
	Error *err = NULL;
	int r;

	(void)error;
	if (m->state != MOVE_S_HELLO)
		return 0;
	r = bus_error_read(reply, "Hello", &err);
	if (r >= 0)
		r = cookie_read(reply, &hello_reply, peer_features, &m->hello, &err);
	if (r >= 0)
		r = peer_version_check(m->hello.version, m->hello.least, &err);
	if (r >= 0 && streq(m->hello.host_id, m->k->conf->host_id))
		r = error_set(&err, -EINVAL,
			      "%s answers with this host's own id, %s: it is the same host, or a copy of it",
			      m->hello.host_name, m->hello.host_id);
	if (r >= 0 && m->k->def->lease != LEASE_NONE && !strv_contains(m->hello.features, "lease"))
		r = error_set(&err, -ENOTSUP, "vmferry on %s cannot take over a lease", m->hello.host_name);
	if (r < 0) {
		move_fail(m, err);
		return 0;
	}
	decide_conntrack(m);
	move_event(m, MOVE_EV_HELLO_OK);
	return 0;
}

int do_hello(Move *m)
{
	HostConf *conf = m->k->conf;
	sd_bus *bus = link_bus(m->link);
	HelloCookie hello = {
		.version = PEER_VERSION,
		.least = PEER_VERSION_LEAST,
		.features = (char **)(uintptr_t)peer_features,
		.software = (char *)VMFERRY_VERSION,
		.host_id = conf->host_id,
		.host_name = conf->host_name,
		.vm = m->k->name,
		.id = m->id,
	};

	(void)sd_bus_match_signal_async(bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Log", on_remote_log, NULL, m);
	(void)sd_bus_match_signal_async(bus, NULL, NULL, PEER_PATH, PEER_INTERFACE, "Receiving", on_receiving, NULL, m);
	return source_call(m, "Hello", &hello_cookie, &hello, m->deadlines.prepare, on_hello_reply);
}
