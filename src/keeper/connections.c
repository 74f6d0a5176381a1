/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guest's connections: the target's sink, what it says of itself before, and what both say of it afterwards. */
#include <errno.h>
#include <inttypes.h>

#include "keeper/local.h"
#include "keeper/move.h"

#define SETTLE_USEC (1 * USEC_PER_SEC)
#define CHECK_USEC (1 * USEC_PER_SEC)

/* ---- the target ---- */

/* Addresses that no entry may translate traffic of: those of other VMs here, and the host's own. */
static CtSelect *others_here(Keeper *k, const CtSelect *vm)
{
	_cleanup_strv_ char **addresses = local_addresses(k->name);
	_cleanup_(ct_select_freep)
	CtSelect *vms = NULL;
	CtSelect *all = NULL;

	if (ct_select_own(&all, NULL) < 0)
		all = xcalloc(1, sizeof(*all));
	for (size_t i = 0; addresses && addresses[i]; i++) {
		char *one[] = {addresses[i], NULL};

		vms = (ct_select_free(vms), NULL);
		if (ct_select_new(one, &vms, NULL) >= 0)
			ct_select_join(all, vms, NULL);
	}
	ct_select_join(all, NULL, vm);
	return all;
}

/* Return: 1, 0 when there is nothing to take, or negative errno with @err set. */
static int open_apply(Keeper *k, const VmDefinition *def, CtSelect **ret_select, CtApply **ret, Error **err)
{
	const HostReceive *receive = &k->conf->receive;
	_cleanup_(ct_select_freep)
	CtSelect *others = NULL;
	CtApplyOptions options = {
		.max_entries = receive->max_entries, .marks_mask = receive->marks_mask, .helpers = receive->helpers};
	int r = vm_select(def, ret_select, err);

	if (r <= 0)
		return r;
	if (!(*ret_select)->by_address && !receive->any_address)
		return error_set(err, -EPERM, "no NIC has an address, and receive { any-address } is off");
	options.foreign = others = others_here(k, *ret_select);
	r = ct_apply_new(*ret_select, &options, ret, err);
	return r < 0 ? r : 1;
}

void sink_open(Move *m)
{
	_cleanup_error_ Error *err = NULL;
	int r;

	if (!m->prepare.conntrack)
		return;
	r = open_apply(m->k, m->k->def, &m->select, &m->apply, &err);
	if (r < 0)
		move_warn(m, "connections cannot be taken over: %s", err ? err->message : strerror(-r));
	else if (r > 0 && ct_apply_survey(m->apply, m->k->event) < 0)
		move_warn(m, "old connections of the VM are not looked for");
}

static const char *labels_word(const Keeper *k, CtApply *apply)
{
	int r;

	if (!k->conf->receive.marks_mask)
		return "not-allowed";
	r = apply ? ct_apply_keeps_labels(apply) : -ENODATA;
	return r < 0 ? "unknown" : r ? "kept" : "lost";
}

static void tell(const Keeper *k, CtApply *apply, PrepareReply *reply)
{
	CtHost host;

	ct_host_read(&host);
	reply->ct_told = true;
	reply->ct_room = host.max > host.count ? host.max - host.count : 0;
	if (!host.max)
		reply->ct_room = UINT64_MAX; /* no limit */
	reply->ct_limit = k->conf->receive.max_entries;
	reply->ct_labels = (char *)(uintptr_t)labels_word(k, apply);
	reply->ct_helpers = k->conf->receive.helpers;
}

void sink_tell(Move *m, PrepareReply *reply)
{
	if (m->apply)
		tell(m->k, m->apply, reply);
}

void sink_tell_check(Keeper *k, const VmDefinition *def, PrepareReply *reply)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL;
	_cleanup_(ct_apply_freep)
	CtApply *apply = NULL;
	_cleanup_error_ Error *err = NULL;
	CtHost host;
	int r = open_apply(k, def, &select, &apply, &err);

	if (r < 0)
		strv_add(&reply->warnings, "connections cannot be taken over: %s", err ? err->message : strerror(-r));
	if (r <= 0)
		return;
	tell(k, apply, reply);
	ct_host_read(&host);
	if (host.tcp_loose)
		strv_add(&reply->warnings,
			 "packets that come before their connection does make another one in its place "
			 "(sysctl -w net.netfilter.nf_conntrack_tcp_loose=0)");
}

static void on_settled(void *userdata, int result, const Error *err)
{
	Move *m = userdata;
	CtApplyStats stats;

	ct_apply_stats(m->apply, &stats);
	if (result < 0)
		log_warning("connections are not settled: %s", err ? err->message : strerror(-result));
	if (stats.swept)
		log_info("%" PRIu64 " old connection%s of the VM deleted", stats.swept,
			 stats.swept == 1 ? " is" : "s are");
	m->applied = stats;
	ct_apply_free(TAKE_PTR(m->apply));
}

void sink_settle_now(Move *m)
{
	_cleanup_error_ Error *err = NULL;

	int r = m->apply ? ct_apply_settle(m->apply, &err) : 0;

	if (m->apply)
		on_settled(m, r, err);
}

/* With many connections it takes seconds, and the guest has just begun to run here. */
void sink_settle_begin(Move *m)
{
	if (m->apply && ct_apply_settle_begin(m->apply, m->k->event, SETTLE_USEC, on_settled, m) < 0)
		sink_settle_now(m);
}

void sink_stats(const Move *m, CtApplyStats *ret)
{
	*ret = m->applied;
	if (m->apply)
		ct_apply_stats(m->apply, ret);
}

char **sink_reasons(const CtApplyStats *stats)
{
	char **list = NULL;

	for (CtReason i = 0; i < _CT_REASON_MAX; i++)
		if (stats->reasons[i])
			strv_add(&list, "%" PRIu64 " %s", stats->reasons[i], ct_reason_name(i, NULL));
	return list;
}

/* ---- the source ---- */

/* "2 table-full", with a reason that is known here. Return: the number, 0 for none. */
static uint64_t parse_reason(const char *text, CtReason *ret)
{
	_cleanup_free_ char *number = xstrdup(text);
	char *name = strchr(number, ' ');
	uint64_t n;
	int reason;

	if (!name)
		return 0;
	*name++ = '\0';
	reason = ct_reason_from_name(name);
	if (reason < 0 || text_parse_u64(number, &n) < 0)
		return 0;
	*ret = (CtReason)reason;
	return n;
}

json_object *reasons_json(char *const *list)
{
	json_object *o = json_object_new_object();
	CtReason reason = 0;

	for (size_t i = 0; list && list[i]; i++) {
		uint64_t n = parse_reason(list[i], &reason);

		if (n)
			json_extend(o, ct_reason_name(reason, NULL), "u", n, NULL);
	}
	return o;
}

/* One warning for those that are not there, or for those that are there without something. */
static void warn_of(Move *m, bool lost, const char *what)
{
	_cleanup_free_ char *text = xstrdup("");
	CtReason reason = 0;
	uint64_t all = 0;

	for (size_t i = 0; m->outcome.ct_reasons && m->outcome.ct_reasons[i]; i++) {
		uint64_t n = parse_reason(m->outcome.ct_reasons[i], &reason);
		const char *word = ct_reason_name(reason, NULL);
		char *longer;

		if (!n || ct_reason_lost(reason) != lost)
			continue;
		longer = xasprintf("%s%s%" PRIu64 " %s", text, all ? ", " : "", n, word);
		free(text);
		text = longer;
		all += n;
	}
	if (all)
		move_warn(m, "%" PRIu64 " %s %s: %s", all, all == 1 ? "entry" : "entries", what, text);
}

void warn_of_reasons(Move *m)
{
	warn_of(m, true, "not taken");
	warn_of(m, false, "taken without all it had");
}

/* What is in the way of these connections on the target, and how to make room. */
static void judge(Move *m, const CtSummary *s)
{
	const PrepareReply *t = &m->prepared;
	const char *there = m->hello.host_name;

	if (!t->ct_told)
		return;
	if (s->entries > t->ct_room)
		move_warn(m,
			  "%s has room for %" PRIu64 " more connections, the VM has %" PRIu64
			  " (there: sysctl -w net.netfilter.nf_conntrack_max=...)",
			  there, t->ct_room, s->entries);
	if (s->entries > t->ct_limit)
		move_warn(m,
			  "%s takes %" PRIu64 " connections of a VM, this one has %" PRIu64
			  " (receive { max-entries } there)",
			  there, t->ct_limit, s->entries);
	for (size_t i = 0; s->helpers && s->helpers[i]; i++)
		if (!strv_contains(t->ct_helpers, s->helpers[i]) && !strv_contains(t->ct_helpers, "*"))
			move_warn(m,
				  "connections with the helper %s go on without it: %s does not take it (receive { "
				  "helpers } "
				  "there)",
				  s->helpers[i], there);
	if (s->labelled && t->ct_labels && streq(t->ct_labels, "lost"))
		move_warn(m,
			  "%" PRIu64
			  " connections have labels, and %s keeps none: no rule there uses them (one with `ct label` "
			  "does)",
			  s->labelled, there);
	if (s->labelled && t->ct_labels && streq(t->ct_labels, "not-allowed"))
		move_warn(m, "%" PRIu64 " connections have labels, and %s takes none (receive { marks-mask } there)",
			  s->labelled, there);
}

void judge_target(Move *m)
{
	CtSummary s;

	ct_follow_summary(m->follow, &s);
	judge(m, &s);
	ct_summary_done(&s);
}

void judge_target_for_check(Move *m)
{
	_cleanup_(ct_select_freep)
	CtSelect *select = NULL;
	_cleanup_error_ Error *err = NULL;
	CtSummary s = {};
	CtHost host;
	int r;

	if (!m->opt.conntrack || !m->hello.conntrack || (m->facts & MOVE_FACT_OFFLINE))
		return;
	r = vm_select(m->k->def, &select, &err);
	if (r > 0)
		r = ct_summary_read(select, CHECK_USEC, &s, &err);
	if (r < 0) {
		move_warn(m, "connections cannot be followed: %s", err ? err->message : strerror(-r));
		return;
	}
	judge(m, &s);
	ct_summary_done(&s);
	ct_host_read(&host);
	if (host.events != 1)
		move_warn(m, host.events ? "connections older than the first listener change without an event here: "
					   "the table is "
					   "read again and again (sysctl -w net.netfilter.nf_conntrack_events=1)"
					 : "changes of connections are not seen here "
					   "(sysctl -w net.netfilter.nf_conntrack_events=1)");
}
