/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The source's Perform: set QEMU up, start it, watch it, and the switch. Nothing slow stands between STOP and RESUME.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#include "keeper/upgrade.h"
#include "keeper/tls.h"

#define WATCHDOG_USEC (1 * USEC_PER_SEC)
#define RECEIVING_USEC (5 * USEC_PER_SEC) /* our QEMU sends: until the target's says that it receives; the guest runs  \
					   */
#define PROGRESS_USEC (500 * USEC_PER_MSEC)
#define DOWNTIME_DEFAULT_MS 300
#define DOWNTIME_FIRST_MS 50
#define THROTTLE_NONE 1 /* the least there is */
#define THROTTLE_FIRST 20
#define THROTTLE_STEP 10
#define BANDWIDTH_UNLIMITED ((uint64_t)1 << 40)
#define DATA_FD_NAME "vmferry-data"

/* ---- what must be through before memory moves: QMP commands of which all must succeed, the connection table ---- */

static void setup_step_done(Move *m)
{
	if (m->state == MOVE_S_OPEN && m->setup_pending > 0 && --m->setup_pending == 0)
		move_event(m, MOVE_EV_DATA_READY);
}

static void on_setup_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (m->state != MOVE_S_OPEN || m->setup_pending == 0)
		return;
	if (error) {
		m->setup_pending = 0;
		error_set(&err, -EIO, "QEMU: %s", error);
		move_fail(m, err);
		return;
	}
	setup_step_done(m);
}

static void setup_command(Move *m, const char *command, json_object *arguments)
{
	m->setup_pending++;
	machine_qmp(m->k, command, arguments, on_setup_reply, m);
}

/* Every capability we care about, so that nothing of an earlier attempt is left. */
enum { ALWAYS = 1, MULTIFD = 2, THROTTLE = 4, TO_A_HOST = 8, IN_PLACE = 16, TO_A_QEMU = 32 };
static const struct {
	const char *name;
	unsigned int when;
} capabilities[] = {
	{"return-path", TO_A_QEMU},	 {"pause-before-switchover", TO_A_HOST}, {"events", ALWAYS},
	{"late-block-activate", ALWAYS}, {"multifd", MULTIFD},			 {"auto-converge", THROTTLE},
	{"x-ignore-shared", IN_PLACE},
};

static json_object *capabilities_for(unsigned int wanted)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; i < ARRAY_SIZE(capabilities); i++)
		json_object_array_add(list,
				      json_build("capability", "s", capabilities[i].name, "state", "b",
						 (capabilities[i].when & wanted) != 0, NULL));
	return json_build("capabilities", "o", list, NULL);
}

json_object *migration_capabilities(bool multifd, bool throttle)
{
	return capabilities_for(ALWAYS | TO_A_QEMU | TO_A_HOST | (multifd ? (unsigned int)MULTIFD : 0) |
				(throttle ? (unsigned int)THROTTLE : 0));
}

json_object *migration_capabilities_here(bool copy)
{
	return capabilities_for(ALWAYS | TO_A_QEMU | (unsigned int)(copy ? THROTTLE : IN_PLACE));
}

json_object *migration_capabilities_file(void)
{
	return capabilities_for(ALWAYS);
}

static uint64_t downtime_limit(const Move *m)
{
	return m->opt.downtime ? m->opt.downtime : DOWNTIME_DEFAULT_MS;
}

/*
 * QEMU's own auto-converge decides when; how much is ours to say, so that it begins when the longest pause allowed is not
 * enough: until then as little as it can take, and later at once what we say.
 */
static void add_throttle(json_object *o, uint64_t percent)
{
	json_extend(o, "cpu-throttle-initial", "u", percent, "cpu-throttle-increment", "u", (uint64_t)99,
		    "max-cpu-throttle", "u", percent, NULL);
}

void perform_followed(Move *m)
{
	if (!m->follow_awaited)
		return;
	m->follow_awaited = false;
	m->hold_timer = sd_event_source_disable_unref(m->hold_timer);
	setup_step_done(m);
}

static int on_follow_late(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	log_debug("the connection table takes long: memory is not kept waiting for it");
	perform_followed(userdata);
	return 0;
}

/*
 * A small guest's memory is there within a second. Were the table not, the guest would stand still for all of what it lacks: so
 * memory waits for it, though not for ever.
 */
static void await_follow(Move *m)
{
	if (m->facts & MOVE_FACT_FOLLOW_DONE)
		return;
	if (sd_event_add_time_relative(m->k->event, &m->hold_timer, CLOCK_MONOTONIC, m->deadlines.prepare / 3, 0,
				       on_follow_late, m) < 0)
		return;
	m->follow_awaited = true;
	m->setup_pending++;
}

/* Since 9.0 QEMU's channels can tell zero pages themselves; what then is still zero over there is never touched, and takes no memory. */
static bool tells_zero_pages(const char *version)
{
	return version && strtoul(version, NULL, 10) >= 9;
}

static json_object *parameters(const Move *m, const char *tls)
{
	json_object *o = json_build("max-bandwidth", "u", m->opt.bandwidth ? m->opt.bandwidth : BANDWIDTH_UNLIMITED,
				    "downtime-limit", "u", m->downtime_now, "tls-creds", "s", tls, "tls-hostname", "s",
				    "", NULL);

	if (m->channels)
		json_extend(o, "multifd-channels", "u", m->channels, NULL);
	if (m->channels && tells_zero_pages(m->k->qemu_version)) /* an old machine type's default is legacy */
		json_extend(o, "zero-page-detection", "s",
			    tells_zero_pages(m->prepared.qemu_version) ? "multifd" : "legacy", NULL);
	if (m->opt.throttle)
		add_throttle(o, THROTTLE_NONE);
	return o;
}

json_object *migration_parameters_here(Move *m, bool copy)
{
	json_object *o;

	m->can_throttle = copy;
	m->downtime_now = copy && downtime_limit(m) > DOWNTIME_FIRST_MS ? DOWNTIME_FIRST_MS : downtime_limit(m);
	o = json_build("max-bandwidth", "u", m->opt.bandwidth ? m->opt.bandwidth : BANDWIDTH_UNLIMITED, "downtime-limit",
		       "u", m->downtime_now, "tls-creds", "s", "", "tls-hostname", "s", "", NULL);
	if (copy)
		add_throttle(o, THROTTLE_NONE);
	return o;
}

static void on_data_opened(Move *m, int fd, const Error *why)
{
	Error *err = NULL;

	if (m->state != MOVE_S_OPEN) {
		fd_close(fd);
		return;
	}
	if (fd < 0) {
		error_set(&err, why->code, "data channel (%s): %s", m->transport, why->message);
		if (why->hint)
			error_hint(&err, "%s", why->hint);
		move_fail(m, err);
		return;
	}
	if (!m->k->qmp) {
		fd_close(fd);
		return;
	}
	/* The pending count of data_open() is taken over by getfd. */
	qmp_command_fd(m->k->qmp, "getfd", json_build("fdname", "s", DATA_FD_NAME, NULL), fd, on_setup_reply, m);
}

/* What was proved in Begin is where QEMU goes, whatever Prepare's answer says. */
static int check_data_port(const Move *m, Error **err)
{
	if (!m->prepared.port)
		return error_set(err, -EPROTO, "the target names no port for the data");
	if (m->opt.data_address || streq_null(m->prepared.address, m->hello.address))
		return 0;
	return error_set(err, -EPROTO, "the target names another address for the data (%s) than it has proved (%s)",
			 m->prepared.address ? m->prepared.address : "none", m->hello.address);
}

int do_open_data(Move *m)
{
	bool direct = streq(m->transport, "tls") || streq(m->transport, "tcp");
	_cleanup_free_ char *tls = NULL;
	Error *err = NULL;
	int r = 0;

	m->can_throttle = m->opt.throttle > 0;
	m->setup_pending = 1; /* held until all is on its way */
	await_follow(m);
	graphics_tell(m);
	m->downtime_now = downtime_limit(m) < DOWNTIME_FIRST_MS ? downtime_limit(m) : DOWNTIME_FIRST_MS;
	if (streq(m->transport, "tls")) {
		json_object *object;

		r = tls_object(m->k, m->id, m->psk, "client", &object, &err);
		if (r >= 0) {
			tls = tls_object_id(m->id);
			setup_command(m, "object-add", object);
		}
	}
	if (r >= 0) {
		setup_command(m, "migrate-set-capabilities", migration_capabilities(m->channels > 0, m->opt.throttle > 0));
		setup_command(m, "migrate-set-parameters", parameters(m, tls ? tls : ""));
	}
	free(TAKE_PTR(m->uri));
	if (r >= 0 && direct)
		r = check_data_port(m, &err);
	if (r >= 0 && direct) {
		const char *address = m->hello.address;
		bool v6 = strchr(address, ':') != NULL;

		m->uri = xasprintf("tcp:%s%s%s:%" PRIu64, v6 ? "[" : "", address, v6 ? "]" : "", m->prepared.port);
		m->setup_pending--;
	} else if (r >= 0) {
		m->uri = xstrdup("fd:" DATA_FD_NAME);
		r = data_open(m, on_data_opened, &err);
		error_prefix(&err, "data channel (%s): ", m->transport);
	}
	move_error(m, err);
	return r;
}

/* The journal's blocks were written when it was opened: a record is one overwrite and one fdatasync. Is there a slot?
 */
int do_preallocate(Move *m)
{
	Error *err = NULL;
	int r = journal_room(m->k->journal, &err);

	move_error(m, err);
	return r;
}

/* ---- the watchdog of rule 7: a silent peer must not freeze the guest ---- */

static void shut_sockets(Move *m)
{
	const char *address = m->hello.address;
	int n = 0;

	if (m->k->qemu && address && m->prepared.port)
		n = qemu_process_shutdown_sockets(m->k->qemu, address, (unsigned int)m->prepared.port);
	if (n > 0)
		log_warning("the data port %s:%" PRIu64 " is silent: %d of QEMU's connections to it are shut", address,
			    m->prepared.port, n);
	m->data = data_free(m->data);
}

void perform_silent(const Move *m, Error **err)
{
	if (!m->prepared.port) {
		error_set(err, -ETIMEDOUT, "the target's QEMU does not receive: the data channel leads somewhere else");
		error_hint(err, "see the target's log; another way: --transport=tls");
		return;
	}
	error_set(err, -ETIMEDOUT, "the target's QEMU does not receive: its data port %s:%" PRIu64 " is silent",
		  m->hello.address, m->prepared.port);
	error_hint(err, "see what listens on the target's migration-ports; another way: --transport=ssh");
}

static int on_not_receiving(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_PERFORM || m->facts & MOVE_FACT_TARGET_ACTIVE)
		return 0;
	perform_silent(m, &err);
	shut_sockets(m);
	move_fail(m, err);
	return 0;
}

static int on_watchdog(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	perform_silent(m, &err);
	shut_sockets(m);
	move_fail(m, err);
	return 0;
}

static void on_ping(json_object *ret, const char *error, void *userdata);

static int on_next_ping(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_PERFORM)
		return 0;
	m->ping_pending = true;
	(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC, 0, on_watchdog, m);
	machine_qmp(m->k, "query-status", NULL, on_ping, m);
	return 0;
}

static void on_ping(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;

	(void)ret;
	if (!m->ping_pending || error)
		return;
	m->ping_pending = false;
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
	if (m->state == MOVE_S_PERFORM && !m->ping_done)
		(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC / 4, 0,
						 on_next_ping, m);
}

static void stop_watchdog(Move *m)
{
	m->ping_done = true;
	m->ping_pending = false;
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
}

/* ---- progress: figures for people, and the no-progress deadline ---- */

/* Memory moves while the guest runs, to another host or to another QEMU here. */
static bool copying(const Move *m)
{
	return m->state == MOVE_S_PERFORM || m->state == MOVE_U_PERFORM || m->state == MOVE_U_SAVE;
}

static void check_converging(Move *m, uint64_t syncs)
{
	if (m->warned_converge || syncs < 4 || m->predicted_pause_ms <= downtime_limit(m))
		return;
	m->warned_converge = true;
	move_warn(m,
		  "the guest writes %" PRIu64 " MiB/s and the way carries %" PRIu64
		  " MiB/s: it does not converge, the pause now would be %" PRIu64 " ms (limit %" PRIu64
		  " ms; raise it with vmferry set %s downtime=...)%s",
		  m->dirty_rate >> 20, m->rate >> 20, m->predicted_pause_ms, downtime_limit(m), m->k->name,
		  m->opt.throttle ? "; the guest is slowed down" : "");
}

/* The last step before giving up: once more of the guest's time with each second look at its memory. */
static void throttle(Move *m, uint64_t syncs)
{
	json_object *o;

	if (!copying(m) || syncs < 4 || syncs < m->throttle_syncs + 2 ||
	    m->downtime_now < downtime_limit(m) || m->predicted_pause_ms <= downtime_limit(m) ||
	    m->throttle_now >= m->opt.throttle)
		return;
	m->throttle_syncs = syncs;
	m->throttle_now = m->throttle_now ? m->throttle_now + THROTTLE_STEP : THROTTLE_FIRST;
	if (m->throttle_now > m->opt.throttle)
		m->throttle_now = m->opt.throttle;
	log_info("the guest is throttled: it may lose %" PRIu64 " %% of its time", m->throttle_now);
	o = json_object_new_object();
	add_throttle(o, m->throttle_now);
	machine_qmp(m->k, "migrate-set-parameters", o, NULL, NULL);
}

/* QEMU switches as soon as what is left fits the limit: a low one first, and more only if the guest needs it. */
static void raise_downtime(Move *m, uint64_t syncs)
{
	uint64_t limit = downtime_limit(m);

	if (!copying(m) || syncs < 3 || m->downtime_now >= limit)
		return;
	m->downtime_now = 2 * m->downtime_now < limit ? 2 * m->downtime_now : limit;
	log_debug("the pause may now be %" PRIu64 " ms", m->downtime_now);
	machine_qmp(m->k, "migrate-set-parameters", json_build("downtime-limit", "u", m->downtime_now, NULL), NULL,
		    NULL);
}

static void on_figures(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	uint64_t pages = 0, page = 4096, syncs = 0, transferred = 0, now = now_usec();
	json_object *text;

	if (error || (!copying(m) && m->state != MOVE_S_HOLD && m->state != MOVE_S_SWITCHOVER))
		return;
	(void)json_get_u64(ret, "ram.total", &m->ram_total);
	(void)json_get_u64(ret, "ram.remaining", &m->ram_remaining);
	(void)json_get_u64(ret, "ram.transferred", &transferred);
	(void)json_get_u64(ret, "ram.page-size", &page);
	(void)json_get_u64(ret, "ram.dirty-sync-count", &syncs);
	if (json_get_u64(ret, "ram.dirty-pages-rate", &pages))
		m->dirty_rate = pages * page;
	if (m->progress_at && now > m->progress_at)
		m->rate = (transferred - m->progress_transferred) * USEC_PER_SEC / (now - m->progress_at);
	if (transferred != m->ram_transferred)
		move_progress_made(m);
	m->ram_transferred = m->progress_transferred = transferred;
	m->progress_at = now;
	if (m->rate)
		m->predicted_pause_ms = m->ram_remaining * 1000 / m->rate;
	m->throttled = 0;
	(void)json_get_u64(ret, "cpu-throttle-percentage", &m->throttled);
	if (m->up)
		upgrade_progress(m);
	raise_downtime(m, syncs);
	check_converging(m, syncs);
	throttle(m, syncs);
	text = report_progress(m);
	control_emit_text(m->k, "Progress", json_text(text));
	json_object_put(text);
}

static int on_progress(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	machine_qmp(m->k, "query-migrate", NULL, on_figures, m);
	stats_refresh(m->k);
	sd_event_source_set_time_relative(source, PROGRESS_USEC);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

void perform_watch(Move *m)
{
	(void)sd_event_add_time_relative(m->k->event, &m->progress, CLOCK_MONOTONIC, PROGRESS_USEC, 0, on_progress, m);
}

/* ---- start ---- */

void perform_hint(const char *error, Error **err)
{
	static const struct {
		const char *said, *hint;
	} hints[] = {
		{"duplicate yank instance", "an earlier migration has failed and hangs in QEMU, a fault of QEMU's: the guest runs "
					    "on, but it can move again only when it has been stopped and started"},
		/* The run state postmigrate, which only running the guest ends. */
		{"previous migration", "the guest was paused when a migration failed at its end: vmferry resume NAME, then "
				       "move it"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(hints); i++)
		if (strstr(error, hints[i].said))
			error_hint(err, "%s", hints[i].hint);
}

static void on_migrate_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || m->state != MOVE_S_PERFORM)
		return;
	error_set(&err, -EIO, "QEMU will not migrate: %s", error);
	perform_hint(error, &err);
	move_fail(m, err);
}

int do_start_migrate(Move *m)
{
	Keeper *k = m->k;

	if (!m->opt.live && m->was_running) {
		machine_qmp(k, "stop", NULL, NULL, NULL);
		keeper_set_state(k, VM_PAUSED, "migration");
	}
	log_info("QEMU migrates to %s", m->uri);
	m->ping_done = false;
	m->ping_pending = true;
	(void)sd_event_add_time_relative(k->event, &m->watchdog, CLOCK_MONOTONIC, WATCHDOG_USEC, 0, on_watchdog, m);
	machine_qmp(k, "migrate", json_build("uri", "s", m->uri, NULL), on_migrate_reply, m);
	machine_qmp(k, "query-status", NULL, on_ping, m);
	perform_watch(m);
	return 0;
}

/* ---- the switch ---- */

void perform_stop(Move *m)
{
	if (!move_is_target(m) && m->k->state == VM_RUNNING)
		keeper_set_state(m->k, VM_PAUSED, "migration");
}

static int on_hold_over(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->hold_timer = sd_event_source_disable_unref(source);
	if (!(m->facts & MOVE_FACT_FOLLOW_DONE)) {
		move_warn(m, "the connection table was not complete in time: some connections might get dropped");
		move_fact(m, MOVE_FACT_FOLLOW_DONE, true);
		move_event(m, MOVE_EV_FOLLOWED);
	}
	return 0;
}

void perform_hold(Move *m)
{
	m->t.hold = now_usec();
	if (!m->t.stop)
		m->t.stop = m->t.hold; /* a paused guest does not stop */
	if (!(m->facts & MOVE_FACT_FOLLOW_DONE))
		(void)sd_event_add_time(m->k->event, &m->hold_timer, CLOCK_MONOTONIC,
					m->t.stop + m->deadlines.gate, 1, on_hold_over, m);
}

static void on_continue_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (!error || m->state != MOVE_S_SWITCHOVER)
		return;
	error_set(&err, -EIO, "QEMU will not switch over: %s", error);
	move_fail(m, err);
}

int do_continue(Move *m)
{
	machine_qmp(m->k, "migrate-continue", json_build("state", "s", "pre-switchover", NULL), on_continue_reply, m);
	return 0;
}

/* ---- QEMU's word ---- */

static void on_failure_details(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *why = NULL;
	Error *err = NULL;

	if (m->state < MOVE_S_OPEN || m->state > MOVE_S_SWITCHOVER)
		return;
	if (!error)
		(void)json_get_string(ret, "error-desc", &why);
	error_set(&err, -EIO, "QEMU's migration failed%s%s", why ? ": " : "", why ? why : "");
	error_hint(&err, "the target's log says more: %s/%s/log there", state_dir(), m->k->name);
	move_fail(m, err);
}

void perform_migration_event(Move *m, const char *status)
{
	if (m->state == MOVE_S_CANCEL) {
		(void)do_settle(m);
	} else if (streq(status, "active")) {
		stop_watchdog(m);
		(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC, RECEIVING_USEC, 0,
						 on_not_receiving, m);
	} else if (streq(status, "pre-switchover")) {
		stop_watchdog(m);
		move_event(m, MOVE_EV_PRE_SWITCHOVER);
	} else if (streq(status, "completed")) {
		m->t.postmigrate = now_usec();
		move_fact(m, MOVE_FACT_POST, true);
		move_event(m, MOVE_EV_POSTMIGRATE);
	} else if (streq(status, "failed") || streq(status, "cancelled")) {
		stop_watchdog(m);
		machine_qmp(m->k, "query-migrate", NULL, on_failure_details, m);
	}
}

static void set_throttle(Move *m, json_object *parameters, uint64_t percent)
{
	m->opt.throttle = percent;
	m->throttle_now = m->throttle_now < percent ? m->throttle_now : percent;
	add_throttle(parameters, m->throttle_now ? m->throttle_now : THROTTLE_NONE);
}

int perform_set(Keeper *k, const uint64_t *bandwidth, const uint64_t *downtime_ms, const uint64_t *throttle_percent,
		Error **err)
{
	Move *m = k->move;
	json_object *o;

	if (!move_active(m) || move_is_target(m) || move_committed(m->state))
		return error_set(err, -ESRCH, "no migration is under way from this host");
	if (throttle_percent && *throttle_percent && m->state >= MOVE_S_OPEN && !m->can_throttle) {
		error_set(err, -EINVAL, "the migration was started with --throttle=off: QEMU cannot begin with it now");
		error_hint(err, "raise the pause: downtime=MS; or cancel, and migrate again");
		return -EINVAL;
	}
	o = json_object_new_object();
	if (bandwidth) {
		m->opt.bandwidth = *bandwidth;
		json_extend(o, "max-bandwidth", "u", *bandwidth, NULL);
	}
	if (downtime_ms) {
		m->opt.downtime = m->downtime_now = *downtime_ms;
		json_extend(o, "downtime-limit", "u", *downtime_ms, NULL);
	}
	if (throttle_percent)
		set_throttle(m, o, *throttle_percent);
	log_info("set: %s", json_text(o));
	machine_qmp(k, "migrate-set-parameters", o, NULL, NULL);
	return 0;
}

/* ---- the way back: migrate_cancel, and wait until it settles ---- */

static const char *const unsettled[] = {"setup",	  "cancelling", "active",      "postcopy-active",
					"pre-switchover", "device",	"wait-unplug", NULL};

static int on_settle_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	Move *m = userdata;

	(void)usec;
	m->watchdog = sd_event_source_disable_unref(source);
	if (m->state != MOVE_S_CANCEL)
		return 0;
	shut_sockets(m);
	return do_settle(m);
}

static void on_settle_status(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *status = "";

	if (m->state != MOVE_S_CANCEL)
		return;
	if (error || !json_get_string(ret, "status", &status) || streq(status, "finish-migrate"))
		return; /* QEMU's exit, its next event, or the timer goes on from here */
	move_fact(m, MOVE_FACT_POST, streq(status, "postmigrate") || (streq(status, "paused") && !m->opt.live));
	if (streq(status, "running") && m->k->state != VM_RUNNING)
		keeper_set_state(m->k, VM_RUNNING, "migration cancelled");
	m->watchdog = sd_event_source_disable_unref(m->watchdog);
	move_event(m, MOVE_EV_SETTLED);
}

static void on_settle_migration(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	const char *status = "none";

	if (m->state != MOVE_S_CANCEL || error)
		return;
	(void)json_get_string(ret, "status", &status);
	if (strv_contains((char *const *)(uintptr_t)unsettled, status))
		return;
	machine_qmp(m->k, "query-status", NULL, on_settle_status, m);
}

int do_settle(Move *m)
{
	m->data = data_free(m->data);
	stop_watchdog(m);
	if (m->settle_tries++ == 0)
		machine_qmp(m->k, "migrate_cancel", NULL, NULL, NULL);
	machine_qmp(m->k, "query-migrate", NULL, on_settle_migration, m);
	(void)sd_event_add_time_relative(m->k->event, &m->watchdog, CLOCK_MONOTONIC,
					 m->settle_tries > 3 ? USEC_PER_SEC : 300 * USEC_PER_MSEC, 0, on_settle_late,
					 m);
	return 0;
}
