/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Entries that were let in, to the kernel: batches, and what is tried when it says no. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <string.h>

#include "apply.h"
#include "basic/text.h"

#define ANSWER_BUFFER (2 << 20)
#define NO_HELPER_MAX 16

void ct_indexes_add(CtIndexes *list, uint32_t i)
{
	if (list->n == list->size) {
		list->size = list->size ? list->size * 2 : 256;
		list->items = xrealloc(list->items, list->size, sizeof(uint32_t));
	}
	list->items[list->n++] = i;
}

/* ---- answers ---- */

/* Whether it may be taken without what the kernel did not want of it; that is gone from the record then. */
static bool give_up_something(CtApply *a, uint32_t i, int error)
{
	CtRecord *r = &ct_table_at(&a->table, i)->record;

	if (r->key.expect)
		return false;
	if (error == -EOPNOTSUPP && (r->has & CT_HAS_HELPER)) {
		if (strv_length(a->no_helper) < NO_HELPER_MAX && !strv_contains(a->no_helper, r->extra->helper))
			strv_push(&a->no_helper, xstrdup(r->extra->helper));
		r->has &= (uint16_t)~CT_HAS_HELPER;
		ct_apply_lacks(a, i, CT_ENTRY_NO_HELPER, true);
		return true;
	}
	if (error != -ENOENT || !(r->has & CT_HAS_MASTER))
		return false;
	r->has &= (uint16_t)~CT_HAS_MASTER;
	ct_apply_lacks(a, i, CT_ENTRY_NO_MASTER, true);
	return true;
}

static bool has_label(const CtRecord *r)
{
	static const uint8_t none[CT_LABELS];

	return (r->has & CT_HAS_LABELS) && memcmp(r->extra->labels, none, CT_LABELS) != 0;
}

static void installed(CtApply *a, CtApplyOp op, uint32_t i)
{
	CtEntry *e = ct_table_at(&a->table, i);

	e->flags &= (uint16_t)~CT_ENTRY_BUSY;
	e->flags |= CT_ENTRY_SENT;
	if (op != OP_UPDATE && has_label(&e->record))
		a->labelled = i;
}

/* The answer to a message that installs or updates an entry. Those on a list stay busy: they are not through yet. */
static void put_done(CtApply *a, CtApplyOp op, uint32_t i, int error)
{
	if (op == OP_UPDATE ? error != 0 : op == OP_CREATE && error == -EEXIST)
		ct_indexes_add(&a->retry, i);
	else if (op == OP_RECREATE && error == -EEXIST)
		ct_indexes_add(&a->clash, i);
	else if (error && give_up_something(a, i, error))
		ct_indexes_add(&a->lacking, i);
	else if (error)
		ct_apply_fail(a, i, error);
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
		ct_apply_forget(a, i);
		break;
	case OP_SETTLE:
		if (error == -ENOENT)
			ct_apply_forget(a, i);
		break;
	case OP_ROLLBACK:
		a->rolled_back += !error;
		break;
	case OP_SWEEP:
		a->stats.swept += !error;
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

int ct_install_open(CtApply *a, Error **err)
{
	a->batch = xcalloc(1, sizeof(*a->batch));
	a->batch->fd = ct_socket_open(err);
	if (a->batch->fd < 0)
		return a->batch->fd;
	ct_socket_buffer(a->batch->fd, ANSWER_BUFFER);
	a->batch->first_seq = 1;
	a->batch->done = on_done;
	a->batch->data = on_data;
	a->batch->userdata = a;
	return 0;
}

/* ---- messages ---- */

int ct_install_room(CtApply *a, unsigned n)
{
	return ct_batch_full(a->batch, n) ? ct_batch_flush(a->batch) : 0;
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
	uint64_t tag = ct_apply_tag(op, i);

	how.timeout = ct_apply_held(&e->record);
	e->held = a->now;
	e->flags |= CT_ENTRY_BUSY;
	if (e->record.key.expect)
		ct_build_expect(ct_batch_add(a->batch, CT_EXPECT(IPCTNL_MSG_EXP_NEW), flags, family, tag), &e->record);
	else
		ct_build(ct_batch_add(a->batch, IPCTNL_MSG_CT_NEW, flags, family, tag), &e->record, &how);
}

void ct_install_delete(CtApply *a, uint32_t i, CtApplyOp op)
{
	const CtRecord *r = &ct_table_at(&a->table, i)->record;
	uint64_t tag = ct_apply_tag(op, i);

	if (r->key.expect)
		ct_build_expect_key(ct_batch_add(a->batch, CT_EXPECT(IPCTNL_MSG_EXP_DELETE), 0, r->key.family, tag),
				    &r->key);
	else if (ct_guard_name(a, r) == CTA_TUPLE_REPLY)
		ct_build_reply_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, r->key.family, tag), r);
	else
		ct_build_key(ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, r->key.family, tag), &r->key);
}

/* Both in one send: no packet can come between. */
static int add_recreate(CtApply *a, uint32_t i)
{
	int r = ct_install_room(a, 2);

	ct_install_delete(a, i, OP_CLEAR);
	add_put(a, i, OP_RECREATE);
	return r;
}

int ct_install_look_up(CtApply *a, const CtRecord *r, bool reply)
{
	int err = ct_install_room(a, 1);
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

/* ---- what is in the way ---- */

/* Delete what is under the tuple if it is the VM's. Return: whether something was, -EEXIST: it is another's, or errno.
 */
static int clear_own(CtApply *a, const CtRecord *r, bool reply)
{
	struct nlmsghdr *nlh;
	int err = ct_install_look_up(a, r, reply);

	if (err < 0 || !a->found_valid)
		return err;
	if (!ct_record_owned(&a->found, a->allowed))
		return -EEXIST;
	nlh = ct_batch_add(a->batch, IPCTNL_MSG_CT_DELETE, 0, a->found.key.family, ct_apply_tag(OP_OTHER, 0));
	ct_build_key(nlh, &a->found.key);
	mnl_attr_put_u32(nlh, CTA_ID, htonl(a->found.id));
	err = ct_batch_flush(a->batch);
	return err < 0 ? err : 1;
}

/* An entry that clashes with one that we may not delete unseen, one at a time. */
static int resolve_clash(CtApply *a, uint32_t i)
{
	CtRecord *r = &ct_table_at(&a->table, i)->record;
	int err = 0;

	if (r->key.expect) {
		ct_apply_fail(a, i, -EEXIST);
		return 0;
	}
	for (int reply = 0; err >= 0 && reply < 2; reply++) {
		err = clear_own(a, r, reply);
		a->stats.replaced += err > 0;
	}
	if (err == -EEXIST) {
		ct_apply_refuse(a, r, CT_REASON_TAKEN, NULL);
		ct_apply_forget(a, i);
		return 0;
	}
	if (err < 0)
		return err;
	add_put(a, i, OP_FINAL);
	return ct_batch_flush(a->batch);
}

/* Those that could not be made as they were, without what was not wanted; it may take another turn. */
static int make_lacking(CtApply *a)
{
	int r = 0;

	while (r >= 0 && a->lacking.n) {
		uint32_t i = a->lacking.items[--a->lacking.n];

		r = ct_install_room(a, 1);
		add_put(a, i, OP_FINAL);
		if (r >= 0 && !a->lacking.n)
			r = ct_batch_flush(a->batch);
	}
	return r;
}

int ct_install_finish(CtApply *a)
{
	int r = ct_batch_flush(a->batch);

	for (size_t n = 0; r >= 0 && n < a->retry.n; n++) {
		uint32_t i = a->retry.items[n];

		if (ct_guard_name(a, &ct_table_at(&a->table, i)->record))
			r = add_recreate(a, i);
		else
			ct_indexes_add(&a->clash, i);
	}
	if (r >= 0)
		r = ct_batch_flush(a->batch);
	for (size_t n = 0; r >= 0 && n < a->clash.n; n++)
		r = resolve_clash(a, a->clash.items[n]);
	if (r >= 0)
		r = make_lacking(a);
	a->retry.n = a->clash.n = a->lacking.n = 0;
	return r;
}

/* ---- entries ---- */

uint32_t ct_install_find(const CtApply *a, const CtKey *key)
{
	uint32_t i = ct_table_find(&a->table, key);

	return i == CT_NONE || (ct_table_at(&a->table, i)->flags & CT_ENTRY_BUSY) ? CT_NONE : i;
}

/* The same, once what is under way for it has been answered. Return: 0 or negative errno. */
static int find_idle(CtApply *a, const CtKey *key, uint32_t *ret)
{
	uint32_t i = ct_table_find(&a->table, key);
	int r = 0;

	if (i != CT_NONE && (ct_table_at(&a->table, i)->flags & CT_ENTRY_BUSY)) {
		r = ct_install_finish(a);
		i = ct_table_find(&a->table, key);
	}
	*ret = i;
	return r;
}

/* What an update cannot change. */
static bool same_binding(const CtRecord *a, const CtRecord *b)
{
	return memcmp(&a->reply, &b->reply, sizeof(a->reply)) == 0 && !((a->status ^ b->status) & IPS_NAT_MASK) &&
	       ct_record_same_extra(a, b, CT_HAS_HELPER | CT_HAS_MASTER | CT_HAS_EXPECT);
}

static int create(CtApply *a, const CtRecord *record, unsigned lacks)
{
	uint32_t i;
	int r = 0;

	if (a->table.live >= a->options.max_entries)
		r = ct_install_finish(a); /* deletions may be under way */
	if (r < 0)
		return r;
	if (a->table.live >= a->options.max_entries) {
		ct_apply_refuse(a, record, CT_REASON_LIMIT, NULL);
		return 0;
	}
	i = ct_table_insert(&a->table, &record->key);
	ct_record_assign(&ct_table_at(&a->table, i)->record, record);
	ct_apply_lacks(a, i, lacks, true);
	r = ct_install_room(a, 1);
	add_put(a, i, OP_CREATE);
	return r;
}

int ct_install_put(CtApply *a, const CtRecord *record, bool replace, unsigned lacks)
{
	uint32_t i;
	int r = find_idle(a, &record->key, &i);
	CtRecord *known;

	if (r < 0)
		return r;
	if (i == CT_NONE)
		return create(a, record, lacks);
	known = &ct_table_at(&a->table, i)->record;
	replace |= !same_binding(known, record);
	if (replace && !ct_guard_name(a, known)) {
		r = clear_own(a, known, false);
		if (r < 0 && r != -EEXIST)
			return r;
	}
	ct_apply_lacks(a, i, CT_ENTRY_LACKS, false);
	ct_apply_lacks(a, i, lacks, true);
	if (replace && ct_guard_name(a, known)) {
		r = ct_install_room(a, 2);
		ct_install_delete(a, i, OP_CLEAR); /* by the old tuples, before they are overwritten */
		ct_record_assign(known, record);
		add_put(a, i, OP_RECREATE);
		return r;
	}
	ct_record_assign(known, record);
	if (!replace && record->key.expect)
		return 0;
	r = ct_install_room(a, 1);
	add_put(a, i, replace ? OP_RECREATE : OP_UPDATE);
	return r;
}

int ct_install_drop(CtApply *a, const CtKey *key)
{
	CtRecord *known;
	uint32_t i;
	int r = find_idle(a, key, &i);

	if (r < 0 || i == CT_NONE)
		return r;
	known = &ct_table_at(&a->table, i)->record;
	if (!key->expect && !ct_guard_name(a, known)) {
		r = clear_own(a, known, false);
		ct_apply_forget(a, i);
		return r == -EEXIST || r > 0 ? 0 : r;
	}
	r = ct_install_room(a, 1);
	ct_table_at(&a->table, i)->flags |= CT_ENTRY_BUSY;
	ct_install_delete(a, i, OP_DELETE);
	return r;
}
