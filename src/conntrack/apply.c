/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "apply.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdio.h>
#include <string.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "basic/text.h"
#include "wire.h"

static void list_add(CtIndexes *list, uint32_t i)
{
	if (list->n == list->size) {
		list->size = list->size ? list->size * 2 : 256;
		list->items = xrealloc(list->items, list->size, sizeof(uint32_t));
	}
	list->items[list->n++] = i;
}

static const struct {
	const char *name, *text;
} reasons[] = {
	[CT_REASON_NOT_OURS] = {"not-ours", "not of this VM's addresses"},
	[CT_REASON_FOREIGN] = {"foreign", "translates an address of another"},
	[CT_REASON_MALFORMED] = {"malformed", "a field is not right"},
	[CT_REASON_LIMIT] = {"limit", "more entries than allowed"},
	[CT_REASON_TAKEN] = {"taken", "the entry of another is in its place"},
	[CT_REASON_FULL] = {"table-full", "the table is full"},
	[CT_REASON_EXISTS] = {"exists", "clashes with another entry"},
	[CT_REASON_UNSUPPORTED] = {"unsupported", "not supported by this kernel"},
	[CT_REASON_GONE] = {"gone", "what it belongs to is gone"},
	[CT_REASON_OTHER] = {"other", "the kernel refuses it"},
	[CT_REASON_HELPER] = {"without-helper", "its helper is not known here"},
	[CT_REASON_LABELS] = {"without-labels", "no rule here uses labels"},
	[CT_REASON_MASTER] = {"without-master", "its master is not here"},
};
static_assert(ARRAY_SIZE(reasons) == _CT_REASON_MAX, "a text for each");

const char *ct_reason_name(CtReason reason, const char **ret_text)
{
	if (ret_text)
		*ret_text = reasons[reason].text;
	return reasons[reason].name;
}

/* net/netfilter/nf_conntrack_netlink.c; ENOMEM is also what nf_conntrack_alloc() says when the table is full. */
static CtReason reason_of(int error)
{
	switch (-error) {
	case ENOMEM:
	case ENOSPC:
		return CT_REASON_FULL;
	case EEXIST:
	case EBUSY:
		return CT_REASON_EXISTS;
	case EOPNOTSUPP:
	case EPROTONOSUPPORT:
		return CT_REASON_UNSUPPORTED;
	case ENOENT:
		return CT_REASON_GONE;
	case ERANGE:
	case EINVAL:
		return CT_REASON_MALFORMED;
	default:
		return CT_REASON_OTHER;
	}
}

static void note(CtApply *a, const CtRecord *record, CtReason reason, const char *why)
{
	char tuple[112];

	a->stats.reasons[reason]++;
	if (a->stats.first_refused[0])
		return;
	ct_record_describe(record, tuple, sizeof(tuple));
	snprintf(a->stats.first_refused, sizeof(a->stats.first_refused), "%.46s: %s", why ?: reasons[reason].text, tuple);
}

static void refuse(CtApply *a, const CtRecord *record, CtReason reason, const char *why)
{
	a->stats.refused++;
	note(a, record, reason, why);
}

static void fail(CtApply *a, uint32_t i, int error)
{
	CtReason reason = reason_of(error);

	a->stats.failed++;
	note(a, &ct_table_at(&a->table, i)->record, reason, reason == CT_REASON_OTHER ? strerror(-error) : NULL);
	ct_table_remove(&a->table, i);
}

/* Whether it may be taken without what the kernel did not want of it; that is gone from the record then. */
static bool give_up_something(CtApply *a, CtRecord *r, int error)
{
	if (r->key.expect)
		return false;
	if (error == -EOPNOTSUPP && (r->has & CT_HAS_HELPER)) {
		if (strv_length(a->no_helper) < 16 && !strv_contains(a->no_helper, r->extra->helper))
			strv_push(&a->no_helper, xstrdup(r->extra->helper));
		r->has &= (uint16_t)~CT_HAS_HELPER;
		a->stats.reasons[CT_REASON_HELPER]++;
		return true;
	}
	if (error != -ENOENT || !(r->has & CT_HAS_MASTER))
		return false;
	r->has &= (uint16_t)~CT_HAS_MASTER;
	a->stats.reasons[CT_REASON_MASTER]++;
	return true;
}

static void installed(CtApply *a, CtApplyOp op, uint32_t i)
{
	CtEntry *e = ct_table_at(&a->table, i);

	e->flags &= ~CT_ENTRY_BUSY;
	e->flags |= CT_ENTRY_SENT;
	if (op == OP_UPDATE || !(e->record.has & CT_HAS_LABELS))
		return;
	a->labelled = i;
	a->n_labelled++;
}

/* The answer to a message that installs or updates an entry. */
static void put_done(CtApply *a, CtApplyOp op, uint32_t i, int error)
{
	CtRecord *r = &ct_table_at(&a->table, i)->record;

	/* Those on a list stay busy: they are not through yet. */
	if (!r->key.expect && (op == OP_UPDATE ? error != 0 : op == OP_CREATE && error == -EEXIST))
		list_add(&a->retry, i);
	else if (!r->key.expect && op == OP_RECREATE && error == -EEXIST)
		list_add(&a->clash, i);
	else if (error && give_up_something(a, r, error))
		list_add(&a->lacking, i);
	else if (error)
		fail(a, i, error);
	else
		installed(a, op, i);
}

static void on_done(void *userdata, uint64_t tag, int error)
{
	CtApply *a = userdata;
	uint32_t i = (uint32_t)tag;
	CtApplyOp op = (CtApplyOp)(tag >> 32);

	switch (op) {
	case OP_CREATE:
	case OP_UPDATE:
	case OP_RECREATE:
	case OP_FINAL:
		put_done(a, op, i, error);
		break;
	case OP_CLEAR:
		if (!error && !(ct_table_at(&a->table, i)->flags & CT_ENTRY_SENT))
			a->stats.replaced++;
		break;
	case OP_DELETE:
		ct_table_remove(&a->table, i);
		break;
	case OP_SETTLE:
		if (error == -ENOENT)
			ct_table_remove(&a->table, i);
		break;
	case OP_ROLLBACK:
		a->rolled_back += !error;
		break;
	case OP_LOOK_UP:
	case OP_OTHER:
		break;
	}
}

static void on_data(void *userdata, uint64_t tag, const struct nlmsghdr *nlh)
{
	CtApply *a = userdata;

	if (tag >> 32 == OP_LOOK_UP)
		a->found_valid = ct_parse_all(nlh, &a->found, &a->found_extra);
	else if (tag >> 32 == OP_SETTLE)
		ct_settle_compare(a, (uint32_t)tag, nlh);
}

int ct_apply_new(const CtSelect *allowed, const CtApplyOptions *options, CtApply **ret, Error **err)
{
	_cleanup_(ct_apply_freep)
	CtApply *a = xcalloc(1, sizeof(*a));

	ct_table_init(&a->table);
	ct_table_init(&a->waiting);
	a->labelled = CT_NONE;
	a->allowed = ct_select_copy(allowed);
	a->options = *options;
	a->foreign = options->foreign ? ct_select_copy(options->foreign) : NULL;
	a->batch = xcalloc(1, sizeof(*a->batch));
	a->batch->fd = ct_socket_open(err);
	if (a->batch->fd < 0)
		return a->batch->fd;
	ct_socket_buffer(a->batch->fd, 2 << 20);
	a->batch->first_seq = 1;
	a->batch->done = on_done;
	a->batch->data = on_data;
	a->batch->userdata = a;
	*ret = TAKE_PTR(a);
	return 0;
}

void ct_apply_free(CtApply *a)
{
	if (!a)
		return;
	if (a->batch)
		fd_close(a->batch->fd);
	free(a->batch);
	free(a->retry.items);
	free(a->clash.items);
	free(a->lacking.items);
	strv_free(a->no_helper);
	sd_event_source_disable_unref(a->settle_source);
	ct_table_clear(&a->table);
	ct_table_clear(&a->waiting);
	ct_select_free(a->allowed);
	ct_select_free(a->foreign);
	free(a);
}

int ct_apply_room(CtApply *a, unsigned n)
{
	return ct_batch_full(a->batch, n) ? ct_batch_flush(a->batch) : 0;
}

uint32_t ct_apply_seconds(void)
{
	return (uint32_t)(now_usec() / USEC_PER_SEC);
}

/* There must be room. */
static void add_put(CtApply *a, uint32_t i, CtApplyOp op)
{
	CtEntry *e = ct_table_at(&a->table, i);
	CtBuild how = {.create = op != OP_UPDATE,
		       .liberal = true,
		       .mark_mask = a->options.marks_mask,
		       .labels = a->labels == LABELS_KEPT};
	uint16_t flags = how.create ? NLM_F_CREATE | NLM_F_EXCL : 0;
	uint8_t family = e->record.key.family;

	how.timeout = ct_apply_held(&e->record);
	e->held = a->now;
	e->flags |= CT_ENTRY_BUSY;
	if (e->record.key.expect)
		ct_build_expect(ct_batch_add(a->batch, CT_EXPECT(IPCTNL_MSG_EXP_NEW), flags, family, ct_apply_tag(op, i)),
				&e->record);
	else
		ct_build(ct_batch_add(a->batch, IPCTNL_MSG_CT_NEW, flags, family, ct_apply_tag(op, i)), &e->record, &how);
}

static void add_delete(CtApply *a, uint32_t i, CtApplyOp op)
{
	const CtKey *key = &ct_table_at(&a->table, i)->record.key;
	uint64_t tag = ct_apply_tag(op, i);

	if (key->expect)
		ct_build_expect_key(ct_batch_add(a->batch, CT_EXPECT(IPCTNL_MSG_EXP_DELETE), 0, key->family, tag), key);
	else
		ct_build_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, key->family, tag), key);
}

/* Both in one send: no packet can come between. */
static int add_recreate(CtApply *a, uint32_t i)
{
	int r = ct_apply_room(a, 2);

	add_delete(a, i, OP_CLEAR);
	add_put(a, i, OP_RECREATE);
	return r;
}

/*
 * Whatever lies under this original tuple is the VM's own, if the tuple begins or ends at the VM: it may be deleted
 * unseen. The original tuple of a connection that is translated on its way to the VM may be anybody's.
 */
static bool tuple_is_ours(const CtApply *a, const CtRecord *r)
{
	return ct_select_has(a->allowed, r->key.family, r->key.orig.src) ||
	       ct_select_has(a->allowed, r->key.family, r->key.orig.dst);
}

/* Ask for the entry under the original or the reply tuple. Return: 0 with a->found_valid set, or negative errno. */
static int look_up(CtApply *a, const CtRecord *r, bool reply)
{
	int err = ct_apply_room(a, 1);
	struct nlmsghdr *nlh;

	if (err < 0)
		return err;
	a->found_valid = false;
	nlh = ct_batch_add(a->batch, IPCTNL_MSG_CT_GET, 0, r->key.family, ct_apply_tag(OP_LOOK_UP, 0));
	if (reply)
		ct_build_reply_key(nlh, r);
	else
		ct_build_key(nlh, &r->key);
	return ct_batch_flush(a->batch);
}

/* Delete what is under the tuple if it is the VM's. Return: 0, -EEXIST when it is another's, or negative errno. */
static int clear_own(CtApply *a, const CtRecord *r, bool reply)
{
	struct nlmsghdr *nlh;
	int err = look_up(a, r, reply);

	if (err < 0 || !a->found_valid)
		return err;
	if (!ct_record_owned(&a->found, a->allowed))
		return -EEXIST;
	nlh = ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, a->found.key.family, ct_apply_tag(OP_OTHER, 0));
	ct_build_key(nlh, &a->found.key);
	mnl_attr_put_u32(nlh, CTA_ID, htonl(a->found.id));
	a->stats.replaced++;
	return ct_batch_flush(a->batch);
}

/* An entry that clashes with one that we may not delete unseen, one at a time. */
static int resolve_clash(CtApply *a, uint32_t i)
{
	CtRecord *r = &ct_table_at(&a->table, i)->record;
	int err = clear_own(a, r, false);

	if (err >= 0)
		err = clear_own(a, r, true);
	if (err == -EEXIST) {
		refuse(a, r, CT_REASON_TAKEN, NULL);
		ct_table_remove(&a->table, i);
		return 0;
	}
	if (err < 0)
		return err;
	add_put(a, i, OP_FINAL);
	return ct_batch_flush(a->batch);
}

/* Second and third tries; after this nothing is under way. */
static int finish(CtApply *a)
{
	int r = ct_batch_flush(a->batch);

	for (size_t n = 0; r >= 0 && n < a->retry.n; n++) {
		uint32_t i = a->retry.items[n];

		if (tuple_is_ours(a, &ct_table_at(&a->table, i)->record))
			r = add_recreate(a, i);
		else
			list_add(&a->clash, i);
	}
	if (r >= 0)
		r = ct_batch_flush(a->batch);
	for (size_t n = 0; r >= 0 && n < a->clash.n; n++)
		r = resolve_clash(a, a->clash.items[n]);
	a->retry.n = a->clash.n = 0;
	while (r >= 0 && a->lacking.n) {
		uint32_t i = a->lacking.items[--a->lacking.n];

		r = ct_apply_room(a, 1);
		add_put(a, i, OP_FINAL);
		if (r >= 0 && !a->lacking.n)
			r = ct_batch_flush(a->batch);
	}
	return r;
}

/* Index of the entry with this key that nothing is under way for, or CT_NONE. */
static int find_idle(CtApply *a, const CtKey *key, uint32_t *ret)
{
	uint32_t i = ct_table_find(&a->table, key);
	int r;

	if (i != CT_NONE && (ct_table_at(&a->table, i)->flags & CT_ENTRY_BUSY)) {
		r = finish(a);
		if (r < 0)
			return r;
		i = ct_table_find(&a->table, key);
	}
	*ret = i;
	return 0;
}

/* What an update cannot change. */
static bool same_binding(const CtRecord *a, const CtRecord *b)
{
	return memcmp(&a->reply, &b->reply, sizeof(a->reply)) == 0 && !((a->status ^ b->status) & IPS_NAT_MASK) &&
	       !((a->has ^ b->has) & (CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY)) &&
	       ct_record_same_extra(a, b, CT_HAS_HELPER | CT_HAS_MASTER | CT_HAS_EXPECT);
}

static int put(CtApply *a, const CtRecord *record, bool replace)
{
	uint32_t i;
	int r = find_idle(a, &record->key, &i);
	CtEntry *e;

	if (r < 0)
		return r;
	if (i == CT_NONE) {
		if (a->table.live >= a->options.max_entries)
			r = finish(a); /* deletions may be under way */
		if (r < 0)
			return r;
		if (a->table.live >= a->options.max_entries) {
			refuse(a, record, CT_REASON_LIMIT, NULL);
			return 0;
		}
		i = ct_table_insert(&a->table, &record->key);
		ct_record_assign(&ct_table_at(&a->table, i)->record, record);
		r = ct_apply_room(a, 1);
		add_put(a, i, OP_CREATE);
		return r;
	}
	e = ct_table_at(&a->table, i);
	replace |= !same_binding(&e->record, record);
	ct_record_assign(&e->record, record);
	if (replace)
		return add_recreate(a, i);
	if (record->key.expect)
		return 0;
	r = ct_apply_room(a, 1);
	add_put(a, i, OP_UPDATE);
	return r;
}

/* Only what we installed ourselves is ever deleted at the source's word. */
static int drop(CtApply *a, const CtKey *key)
{
	uint32_t i;
	int r = find_idle(a, key, &i);

	if (r < 0 || i == CT_NONE)
		return r;
	r = ct_apply_room(a, 1);
	ct_table_at(&a->table, i)->flags |= CT_ENTRY_BUSY;
	add_delete(a, i, OP_DELETE);
	return r;
}

static bool given(const uint8_t *mask, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (mask[i])
			return true;
	return false;
}

static bool has_address(const CtRecord *r, const uint8_t *address)
{
	size_t n = ct_address_length(r->key.family);

	return memcmp(r->key.orig.src, address, n) == 0 || memcmp(r->key.orig.dst, address, n) == 0 ||
	       memcmp(r->reply.src, address, n) == 0 || memcmp(r->reply.dst, address, n) == 0;
}

/*
 * An expectation opens a hole. Its master must be one of ours, and each address it gives one that the master has or one of
 * the VM's; the destination must be given.
 */
static bool expectation_is_ours(const CtApply *a, const CtRecord *r, const CtRecord *master)
{
	const CtTuple *mask = &r->extra->expect.mask;
	uint8_t family = r->key.family;
	size_t n = ct_address_length(family);

	return given(mask->dst, n) &&
	       (has_address(master, r->key.orig.dst) || ct_select_has(a->allowed, family, r->key.orig.dst)) &&
	       (!given(mask->src, n) || has_address(master, r->key.orig.src) ||
		ct_select_has(a->allowed, family, r->key.orig.src)) &&
	       (!r->extra->expect.has_nat || has_address(master, r->extra->expect.nat.src) ||
		!given(r->extra->expect.nat.src, n));
}

/*
 * The original destination of a translated connection may be anybody's address that led to the VM, and the reply's destination
 * any that the VM went out with. That it is not one of another here is what can be checked.
 */
static bool takes_foreign(const CtApply *a, const CtRecord *r)
{
	size_t n = ct_address_length(r->key.family);

	return a->foreign && ((memcmp(r->key.orig.dst, r->reply.src, n) != 0 &&
			       ct_select_has(a->foreign, r->key.family, r->key.orig.dst)) ||
			      (memcmp(r->key.orig.src, r->reply.dst, n) != 0 &&
			       ct_select_has(a->foreign, r->key.family, r->reply.dst)));
}

static void wait_for_master(CtApply *a, const CtRecord *record)
{
	uint32_t i = ct_table_find(&a->waiting, &record->key);

	if (i == CT_NONE && a->waiting.live + a->table.live >= a->options.max_entries)
		return;
	if (i == CT_NONE)
		i = ct_table_insert(&a->waiting, &record->key);
	ct_record_assign(&ct_table_at(&a->waiting, i)->record, record);
}

static void forget_waiting(CtApply *a, const CtKey *key)
{
	uint32_t i = a->waiting.live ? ct_table_find(&a->waiting, key) : CT_NONE;

	if (i != CT_NONE)
		ct_table_remove(&a->waiting, i);
}

static int put_expectation(CtApply *a, const CtRecord *record)
{
	uint32_t master;
	CtKey key;

	(void)ct_record_master(record, &key);
	master = ct_table_find(&a->table, &key);
	if (master == CT_NONE) {
		wait_for_master(a, record);
		return 0;
	}
	forget_waiting(a, &record->key);
	if (!expectation_is_ours(a, record, &ct_table_at(&a->table, master)->record)) {
		refuse(a, record, CT_REASON_NOT_OURS, NULL);
		return 0;
	}
	return put(a, record, false);
}

/* A child whose master is not here yet is made without it, and anew when it has come. */
static int put_entry(CtApply *a, const CtRecord *record, bool replace)
{
	CtRecord r = *record;
	CtKey master;

	if (!ct_record_owned(record, a->allowed) || takes_foreign(a, record)) {
		refuse(a, record, takes_foreign(a, record) ? CT_REASON_FOREIGN : CT_REASON_NOT_OURS, NULL);
		return 0;
	}
	forget_waiting(a, &record->key);
	if (ct_record_master(record, &master) && ct_table_find(&a->table, &master) == CT_NONE) {
		wait_for_master(a, record);
		r.has &= (uint16_t)~CT_HAS_MASTER;
	}
	if ((r.has & CT_HAS_HELPER) && strv_contains(a->no_helper, r.extra->helper))
		r.has &= (uint16_t)~CT_HAS_HELPER;
	return put(a, &r, replace);
}

static int apply_record(CtApply *a, CtWireOp op, const CtRecord *record)
{
	switch (op) {
	case CT_WIRE_PUT:
	case CT_WIRE_REPLACE:
		return record->key.expect ? put_expectation(a, record) : put_entry(a, record, op == CT_WIRE_REPLACE);
	case CT_WIRE_DELETE:
		forget_waiting(a, &record->key);
		return drop(a, &record->key);
	}
	return 0;
}

/* Masters first, then children, then expectations. */
static unsigned turn_of(CtWireOp op, const CtRecord *record)
{
	if (record->key.expect)
		return 2;
	return op != CT_WIRE_DELETE && (record->has & CT_HAS_MASTER) ? 1 : 0;
}

/* Apply the records whose turn it is. Return: number of those whose turn comes later, or negative errno. */
static int apply_turn(CtApply *a, const void *data, size_t len, unsigned turn)
{
	CtWireReader reader;
	CtRecord record;
	int r = 0, s, later = 0;
	CtWireOp op;

	ct_wire_read(&reader, data, len);
	while (r >= 0 && (s = ct_wire_next(&reader, &op, &record)) != 0) {
		unsigned its = s == -EINVAL ? 0 : turn_of(op, &record);

		later += its > turn;
		if (its != turn)
			continue;
		a->stats.received++;
		if (s == -EINVAL)
			refuse(a, &record, CT_REASON_MALFORMED, reader.why);
		else
			r = apply_record(a, op, &record);
	}
	s = finish(a);
	return r < 0 ? r : s < 0 ? s : later;
}

/* Those whose master has come by now. */
static int apply_waiting(CtApply *a)
{
	int r = 0;

	for (uint32_t i = 0; r >= 0 && a->waiting.live && i < a->waiting.used; i++) {
		CtRecord own = ct_table_in_use(&a->waiting, i) ? ct_table_at(&a->waiting, i)->record : (CtRecord){};
		CtKey master;

		if (!ct_record_master(&own, &master) || ct_table_find(&a->table, &master) == CT_NONE)
			continue;
		ct_table_at(&a->waiting, i)->record.extra = NULL;
		ct_table_remove(&a->waiting, i);
		r = apply_record(a, CT_WIRE_PUT, &own);
		free(own.extra);
	}
	return r < 0 ? r : finish(a);
}

/* Where no rule of the host uses labels, the kernel takes them without a word and keeps none. */
static int learn_labels(CtApply *a)
{
	int r;

	if (a->labels != LABELS_UNKNOWN || a->labelled == CT_NONE || !ct_table_in_use(&a->table, a->labelled))
		return 0;
	r = look_up(a, &ct_table_at(&a->table, a->labelled)->record, false);
	if (r >= 0 && a->found_valid)
		a->labels = a->found.has & CT_HAS_LABELS ? LABELS_KEPT : LABELS_LOST;
	return r;
}

int ct_apply_delta(CtApply *a, const void *data, size_t len, Error **err)
{
	const char *why;
	size_t n;
	int r;

	r = ct_wire_check(data, len, &n, &why);
	if (r < 0)
		return error_set(err, r, "Connection records: %s", why);
	a->now = ct_apply_seconds();
	r = 1;
	for (unsigned turn = 0; r > 0 && turn < 3; turn++)
		r = apply_turn(a, data, len, turn);
	if (r >= 0)
		r = apply_waiting(a);
	if (r >= 0)
		r = learn_labels(a);
	return r < 0 ? error_set(err, r, "Cannot install connections: %s", strerror(-r)) : 0;
}

int ct_apply_rollback(CtApply *a)
{
	int r = 0;

	a->rolled_back = 0;
	for (uint32_t i = 0; r >= 0 && i < a->table.used; i++)
		if (ct_table_in_use(&a->table, i)) {
			r = ct_apply_room(a, 1);
			add_delete(a, i, OP_ROLLBACK);
		}
	if (r >= 0)
		r = ct_batch_flush(a->batch);
	if (r < 0)
		return r;
	ct_table_clear(&a->table);
	ct_table_init(&a->table);
	return (int)a->rolled_back;
}

void ct_apply_stats(const CtApply *a, CtApplyStats *ret)
{
	*ret = a->stats;
	ret->applied = a->table.live;
	ret->reasons[CT_REASON_LABELS] = a->labels == LABELS_LOST ? a->n_labelled : 0;
	ret->reasons[CT_REASON_MASTER] += a->waiting.live;
}
