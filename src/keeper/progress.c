/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Figures of a migration under way, and QEMU's limits that follow from them: bandwidth, the pause, how far the guest is
 * throttled. */
#include <errno.h>
#include <inttypes.h>

#include "keeper/upgrade.h"

#define PROGRESS_USEC (500 * USEC_PER_MSEC)
#define DOWNTIME_DEFAULT_MS 300
#define DOWNTIME_FIRST_MS 50
#define THROTTLE_NONE 1 /* percent; the least there is */
#define THROTTLE_FIRST 20
#define THROTTLE_STEP 10
#define BANDWIDTH_UNLIMITED ((uint64_t)1 << 40) /* bytes/s */

static uint64_t downtime_limit(const Move *m)
{
	return m->opt.downtime ? m->opt.downtime : DOWNTIME_DEFAULT_MS;
}

/* ---- what QEMU is told before memory moves ---- */

/*
 * QEMU's own auto-converge decides when; how much is ours to say, so that it begins when the longest pause allowed is
 * not enough: until then as little as it can take, and later at once what we say.
 */
static void add_throttle(json_object *o, uint64_t percent)
{
	json_extend(o, "cpu-throttle-initial", "u", percent, "cpu-throttle-increment", "u", (uint64_t)99,
		    "max-cpu-throttle", "u", percent, NULL);
}

/* @grows: memory is copied while the guest runs, so that a short pause can be tried first. */
static json_object *parameters(Move *m, const char *tls, bool grows, bool throttle)
{
	uint64_t limit = downtime_limit(m);
	json_object *o;

	m->can_throttle = throttle;
	m->downtime_now = grows && limit > DOWNTIME_FIRST_MS ? DOWNTIME_FIRST_MS : limit;
	o = json_build("max-bandwidth", "u", m->opt.bandwidth ? m->opt.bandwidth : BANDWIDTH_UNLIMITED,
		       "downtime-limit", "u", m->downtime_now, "tls-creds", "s", tls, "tls-hostname", "s", "", NULL);
	if (throttle)
		add_throttle(o, THROTTLE_NONE);
	return o;
}

/*
 * Since 9.0 QEMU's channels can tell zero pages themselves; what then is still zero over there is never touched, and takes
 * no memory.
 */
static bool tells_zero_pages(const char *version)
{
	return version && strtoul(version, NULL, 10) >= 9;
}

json_object *migration_parameters(Move *m, const char *tls)
{
	json_object *o = parameters(m, tls, true, m->opt.throttle > 0);

	if (m->channels)
		json_extend(o, "multifd-channels", "u", m->channels, NULL);
	if (m->channels && tells_zero_pages(m->k->qemu_version)) /* an old machine type's default is legacy */
		json_extend(o, "zero-page-detection", "s",
			    tells_zero_pages(m->prepared.qemu_version) ? "multifd" : "legacy", NULL);
	return o;
}

json_object *migration_parameters_here(Move *m, bool copy)
{
	return parameters(m, "", copy, copy);
}

/* ---- what follows from how it goes ---- */

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

	if (!copying(m) || syncs < 4 || syncs < m->throttle_syncs + 2 || m->downtime_now < downtime_limit(m) ||
	    m->predicted_pause_ms <= downtime_limit(m) || m->throttle_now >= m->opt.throttle)
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

/* ---- what a person sets while it runs ---- */

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
