/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Figures of the disks, for Status. A migration is never asked on somebody's behalf: while one runs, its own timer
 * brings them along and Status is answered at once with what is known. Otherwise QEMU is asked, and waited for a
 * moment.
 */
#include "keeper/move.h"

#define WAIT_USEC (300 * USEC_PER_MSEC)
#define ASKERS_MAX 64

struct Stats {
	Keeper *k;
	json_object *disks; /* by id */
	uint64_t at;
	bool asked;
	sd_bus_message *askers[ASKERS_MAX];
	size_t n_askers;
	sd_event_source *timer;
};

/* X(our name, QEMU's name in BlockDeviceStats) */
#define FIGURES(X)                                                                                                     \
	X("read_bytes", "rd_bytes")                                                                                    \
	X("written_bytes", "wr_bytes")                                                                                 \
	X("reads", "rd_operations")                                                                                    \
	X("writes", "wr_operations")                                                                                   \
	X("flushes", "flush_operations")                                                                               \
	X("failed_reads", "failed_rd_operations")                                                                      \
	X("failed_writes", "failed_wr_operations")

static json_object *disk_figures(const VmDisk *disk, json_object *stats)
{
	static const char *const names[][2] = {
#define X(ours, qemus) {ours, qemus},
		FIGURES(X)
#undef X
	};
	json_object *o = json_build("id", "s", disk->id, "file", "s", disk->file, NULL);

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		uint64_t v;

		if (json_get_u64(stats, names[i][1], &v))
			json_extend(o, names[i][0], "u", v, NULL);
	}
	return o;
}

/* A format's node has the disk's id (command_line.c). */
static const VmDisk *disk_of(const VmDefinition *def, json_object *node)
{
	const char *name;

	for (size_t i = 0; json_get_string(node, "node-name", &name) && i < def->n_disks; i++)
		if (streq(def->disks[i].id, name))
			return &def->disks[i];
	return NULL;
}

static void answer(Stats *s)
{
	s->timer = sd_event_source_disable_unref(s->timer);
	while (s->n_askers > 0) {
		sd_bus_message *m = s->askers[--s->n_askers];
		json_object *o = s->k->leaving ? NULL : report_status(s->k);

		if (o) /* a keeper that goes answers nobody */
			(void)sd_bus_reply_method_return(m, "s", json_text(o));
		json_object_put(o);
		sd_bus_message_unref(m);
	}
}

static void on_figures(json_object *ret, const char *error, void *userdata)
{
	Stats *s = userdata;
	json_object *list = json_object_new_array();

	s->asked = false;
	error = error || json_object_is_type(ret, json_type_array) ? error : "no list";
	for (size_t i = 0; !error && s->k->def && i < json_object_array_length(ret); i++) {
		json_object *node = json_object_array_get_idx(ret, i), *stats;
		const VmDisk *disk = disk_of(s->k->def, node);

		if (disk && json_get_object(node, "stats", &stats))
			json_object_array_add(list, disk_figures(disk, stats));
	}
	if (error) {
		json_object_put(list);
	} else {
		json_object_put(s->disks);
		s->disks = list;
		s->at = now_usec();
	}
	answer(s);
}

static int on_late(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)source;
	(void)usec;
	answer(userdata);
	return 0;
}

void stats_refresh(Keeper *k)
{
	if (!k->stats->asked && k->qmp && k->qmp_usable && k->def && k->def->n_disks > 0) {
		k->stats->asked = true;
		machine_qmp(k, "query-blockstats", NULL, on_figures, k->stats);
	}
}

int stats_status(Keeper *k, sd_bus_message *m)
{
	Stats *s = k->stats;

	if (!move_active(k->move))
		stats_refresh(k);
	s->askers[s->n_askers++] = sd_bus_message_ref(m);
	if (move_active(k->move) || !s->asked || s->n_askers == ASKERS_MAX)
		answer(s);
	else if (!s->timer)
		(void)sd_event_add_time_relative(k->event, &s->timer, CLOCK_MONOTONIC, WAIT_USEC, 0, on_late, s);
	return 1;
}

json_object *stats_disks(const Stats *s)
{
	return s->disks ? json_build("age_ms", "u", (now_usec() - s->at) / USEC_PER_MSEC, "disks", "o",
				     json_object_get(s->disks), NULL)
			: NULL;
}

void stats_forget(Stats *s)
{
	s->asked = false;
	json_object_put(TAKE_PTR(s->disks));
	answer(s);
}

Stats *stats_new(Keeper *k)
{
	Stats *s = xcalloc(1, sizeof(*s));

	s->k = k;
	return s;
}

Stats *stats_free(Stats *s)
{
	if (!s)
		return NULL;
	sd_event_source_disable_unref(s->timer);
	while (s->n_askers > 0)
		sd_bus_message_unref(s->askers[--s->n_askers]);
	json_object_put(s->disks);
	free(s);
	return NULL;
}
