/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Save runs while the guest is stopped: it answers at once from the table kept current. QEMU has written how many states
 * follow before it asks for them, so a Save that errs, is empty or too large would kill the target with the guest
 * stopped already, and so would a Load that errs: neither ever does. Load makes entries batch by batch until QEMU is to
 * be answered, and the rest beside the loop.
 */
#include "companions/vmstate-state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/log.h"
#include "companions/vmstate.h"
#include "conntrack/save.h"

#define RESYNC_USEC (2 * USEC_PER_SEC) /* where events are missing (nf_conntrack_events = 2) */

/* A load that is under way. */
typedef struct Load {
	Input input;
	const _Atomic uint64_t *until; /* NULL: QEMU has been answered */
	uint64_t begin, in_time;       /* entries that were made by then */
	size_t len;
} Load;

struct State {
	sd_event *event;
	StateSpec spec;
	CtSelect *select;
	CtFollow *follow;
	CtApply *apply; /* of the last load */
	Load *load;	/* NULL: none */
	sd_event_source *resync, *rest, *settle;
	uint32_t migrated, late;
	Counters count;
	uint8_t *batches; /* to be made text of */
};

/* ---- save ---- */

/* The same as text, as conntrack(8) and Proxmox's helper read it. */
static size_t as_text(const uint8_t *batches, size_t len, char *to, size_t max, size_t *ret_records)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	size_t at = 0;

	*ret_records = 0;
	ct_wire_read(&reader, batches, len);
	while (ct_wire_next(&reader, &op, &record) == 1 && at + CT_SAVE_LINE_MAX <= max) {
		at += ct_save_write(&record, op, to + at);
		(*ret_records)++;
	}
	if (!at)
		at = (size_t)snprintf(to, max, "[0]\n");
	return at;
}

static size_t snapshot(const State *s, uint8_t *to, size_t *ret_n, size_t *ret_left)
{
	size_t n, all, len;

	if (s->spec.format == FORMAT_WIRE)
		return ct_follow_snapshot(s->follow, to, VMSTATE_MAX, ret_n, ret_left);
	len = ct_follow_snapshot(s->follow, s->batches, VMSTATE_MAX, &n, ret_left);
	all = n + *ret_left;
	len = as_text(s->batches, len, (char *)to, VMSTATE_MAX, ret_n);
	*ret_left = all - *ret_n;
	return len;
}

size_t state_save(State *s, uint8_t *to)
{
	uint64_t begin = now_usec();
	size_t n, left, len;

	(void)ct_follow_drain(s->follow);
	len = snapshot(s, to, &n, &left);
	s->migrated = (uint32_t)n;
	s->late = 0;
	*(n ? &s->count.exports.success : &s->count.exports.skipped) += 1;
	s->count.exported_bytes += len;
	log_info("saved %zu entries, %zu bytes, in %" PRIu64 " us", n, len, now_usec() - begin);
	if (left)
		log_warning("%zu entries found no room in QEMU's 1 MiB", left);
	return len;
}

size_t state_copy(State *s, uint8_t *to)
{
	size_t n, left;

	return snapshot(s, to, &n, &left);
}

uint64_t state_changes(const State *s)
{
	CtFollowStats stats;

	ct_follow_stats(s->follow, &stats);
	return stats.events + stats.dumps;
}

/* ---- load ---- */

static void load_free(Load *load)
{
	if (!load)
		return;
	input_done(&load->input);
	fd_close(load->input.fd);
	free(load);
}

static Load *load_new(const void *data, size_t len, const _Atomic uint64_t *until, Error **err)
{
	Load *load = xcalloc(1, sizeof(*load));

	*load = (Load){.until = until, .begin = now_usec(), .len = len};
	load->input = (Input){.fd = memfd_create("entries", MFD_CLOEXEC), .format = FORMAT_ANY};
	if (load->input.fd < 0 || fd_write_all(load->input.fd, data, len) < 0 || lseek(load->input.fd, 0, SEEK_SET) < 0)
		error_set(err, -errno, "Cannot keep what came: %m");
	return load;
}

static int on_settle(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	_cleanup_error_ Error *err = NULL;
	State *s = userdata;

	s->settle = sd_event_source_disable_unref(s->settle);
	if (ct_apply_settle(s->apply, &err) < 0)
		log_warning("%s", err->message);
	return 0;
}

static void settle_later(State *s)
{
	s->settle = sd_event_source_disable_unref(s->settle);
	(void)sd_event_add_time_relative(s->event, &s->settle, CLOCK_MONOTONIC, s->spec.settle_usec, 0, on_settle, s);
}

static bool in_time(const Load *load)
{
	return load->until && now_usec() < atomic_load(load->until);
}

/* What became of it. */
static void say(State *s, const Error *err)
{
	CtApplyStats stats = {};

	if (s->apply)
		ct_apply_stats(s->apply, &stats);
	if (in_time(s->load))
		s->load->in_time = stats.applied;
	s->migrated = (uint32_t)stats.applied;
	s->late = (uint32_t)(stats.applied > s->load->in_time ? stats.applied - s->load->in_time : 0);
	*(err ? &s->count.imports.error : &s->count.imports.success) += 1;
	if (err)
		log_error("cannot load all: %s", err->message);
	log_info("loaded %" PRIu64 " of %" PRIu64 " entries, %zu bytes, in %" PRIu64 " us", stats.applied, stats.received, s->load->len,
		 now_usec() - s->load->begin);
	if (s->late)
		log_warning("%" PRIu32 " entries after the guest ran", s->late);
	if (stats.refused + stats.failed)
		log_warning("%" PRIu64 " entries not taken, the first: %s", stats.refused + stats.failed, stats.first_refused);
}

static void end_load(State *s, const Error *err)
{
	say(s, err);
	load_free(TAKE_PTR(s->load));
	if (s->apply)
		settle_later(s);
}

/* The next batch; after the last the load has ended. */
static void step(State *s)
{
	_cleanup_error_ Error *err = NULL;
	const uint8_t *batch;
	CtApplyStats stats;
	size_t len;
	int r = input_next(&s->load->input, &batch, &len, &err);

	if (r > 0)
		r = ct_apply_delta(s->apply, batch, len, &err) < 0 ? 0 : 1;
	if (r <= 0) {
		end_load(s, err);
	} else if (in_time(s->load)) {
		ct_apply_stats(s->apply, &stats);
		s->load->in_time = stats.applied;
	}
}

/* QEMU has its answer: a batch of what is left; after the last new entries are heard of again. */
static int on_rest(_unused_ sd_event_source *source, void *userdata)
{
	State *s = userdata;

	if (s->load)
		step(s);
	if (s->load)
		return 0;
	s->rest = sd_event_source_disable_unref(s->rest);
	(void)ct_follow_unmute(s->follow);
	return 0;
}

static void abort_load(State *s)
{
	if (!s->load)
		return;
	log_warning("a load ends for a newer one");
	s->count.imports.aborted++;
	load_free(TAKE_PTR(s->load));
}

static int begin_load(State *s, const void *data, size_t len, const _Atomic uint64_t *until, Error **err)
{
	const CtApplyOptions options = {
		.max_entries = s->spec.max_entries, .marks_mask = UINT32_MAX, .helpers = CT_ANY_HELPER};

	s->settle = sd_event_source_disable_unref(s->settle);
	ct_apply_free(TAKE_PTR(s->apply));
	s->load = load_new(data, len, until, err);
	return *err ? (*err)->code : ct_apply_new(s->select, &options, &s->apply, err);
}

bool state_load(State *s, const void *data, size_t len, const _Atomic uint64_t *until)
{
	_cleanup_error_ Error *err = NULL;
	int r = 0;

	abort_load(s);
	(void)ct_follow_mute(s->follow);
	if (begin_load(s, data, len, until, &err) < 0)
		end_load(s, err);
	if (!s->rest)
		r = sd_event_add_defer(s->event, &s->rest, on_rest, s);
	if (r >= 0)
		r = sd_event_source_set_enabled(s->rest, SD_EVENT_ON);
	while (s->load && (r < 0 || in_time(s->load)))
		step(s);
	if (s->load)
		s->load->until = NULL;
	if (r < 0)
		(void)ct_follow_unmute(s->follow);
	return !s->load;
}

void state_finish(State *s)
{
	while (s->load)
		step(s);
}

void state_settle_behind(State *s)
{
	if (!s->settle || fork() != 0)
		return;
	(void)setsid();
	(void)usleep((useconds_t)s->spec.settle_usec);
	(void)ct_apply_settle(s->apply, NULL);
	_exit(0);
}

/* ---- life ---- */

static int on_resync(sd_event_source *source, uint64_t usec, void *userdata)
{
	State *s = userdata;

	(void)ct_follow_resync(s->follow);
	(void)sd_event_source_set_time(source, usec + RESYNC_USEC);
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* Without events what changes is found by reading all again. */
static void see_host(State *s)
{
	CtHost host;

	ct_host_read(&host);
	if (host.events == 0)
		log_warning("net.netfilter.nf_conntrack_events is 0: changes are not seen (set it to 1)");
	if (host.events == 2)
		(void)sd_event_add_time_relative(s->event, &s->resync, CLOCK_MONOTONIC, RESYNC_USEC, 0, on_resync, s);
}

int state_new(sd_event *event, const StateSpec *spec, State **ret, Error **err)
{
	State *s = xcalloc(1, sizeof(*s));
	CtFollowStats stats = {};
	int r;

	*s = (State){.event = event, .spec = *spec, .select = ct_select_copy(spec->select)};
	if (spec->format != FORMAT_WIRE)
		s->batches = xcalloc(1, VMSTATE_MAX);
	r = ct_follow_new(event, s->select, &s->follow, err);
	while (r >= 0 && !stats.complete) {
		r = sd_event_run(event, UINT64_MAX);
		ct_follow_stats(s->follow, &stats);
	}
	if (r < 0) {
		state_free(s);
		return r;
	}
	see_host(s);
	*ret = s;
	return 0;
}

State *state_free(State *s)
{
	if (!s)
		return NULL;
	sd_event_source_disable_unref(s->resync);
	sd_event_source_disable_unref(s->rest);
	sd_event_source_disable_unref(s->settle);
	load_free(s->load);
	ct_follow_free(s->follow);
	ct_apply_free(s->apply);
	ct_select_free(s->select);
	free(s->batches);
	free(s);
	return NULL;
}

void state_report(const State *s, StateReport *ret)
{
	CtFollowStats stats;

	ct_follow_stats(s->follow, &stats);
	*ret = (StateReport){.followed = stats.entries, .migrated = s->migrated, .late = s->late, .count = s->count};
}
