/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Why an entry is not there, or not there with all it had: names, and how they are counted. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "apply.h"
#include "basic/text.h"

static const struct {
	const char *name, *text;
	uint16_t flag; /* of an entry that is there */
} reasons[] = {
	[CT_REASON_NOT_OURS] = {"not-ours", "not of this VM's addresses", 0},
	[CT_REASON_FOREIGN] = {"foreign", "translates an address of another", 0},
	[CT_REASON_MALFORMED] = {"malformed", "a field is not right", 0},
	[CT_REASON_LIMIT] = {"limit", "more entries than allowed", 0},
	[CT_REASON_NOT_ALLOWED] = {"not-allowed", "expected by a helper that is not allowed here", 0},
	[CT_REASON_TAKEN] = {"taken", "the entry of another is in its place", 0},
	[CT_REASON_FULL] = {"table-full", "the table is full", 0},
	[CT_REASON_EXISTS] = {"exists", "clashes with another entry", 0},
	[CT_REASON_UNSUPPORTED] = {"unsupported", "not supported by this kernel", 0},
	[CT_REASON_GONE] = {"gone", "what it belongs to is gone", 0},
	[CT_REASON_OTHER] = {"other", "the kernel refuses it", 0},
	[CT_REASON_HELPER] = {"without-helper", "its helper is not known or not allowed here", CT_ENTRY_NO_HELPER},
	[CT_REASON_LABELS] = {"without-labels", "labels are not used or not allowed here", CT_ENTRY_NO_LABELS},
	[CT_REASON_MASTER] = {"without-master", "the connection it belongs to is not here", CT_ENTRY_NO_MASTER},
	[CT_REASON_MARK] = {"without-mark", "its mark is not allowed here", CT_ENTRY_NO_MARK},
};
static_assert(ARRAY_SIZE(reasons) == _CT_REASON_MAX, "a text for each");

const char *ct_reason_name(CtReason reason, const char **ret_text)
{
	if (ret_text)
		*ret_text = reasons[reason].text;
	return reasons[reason].name;
}

int ct_reason_from_name(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++)
		if (streq(reasons[i].name, name))
			return (int)i;
	return -EINVAL;
}

/* net/netfilter/nf_conntrack_netlink.c; ENOMEM is also what nf_conntrack_alloc() says when the table is full. */
static CtReason reason_of(int error)
{
	switch (-error) {
	case ENOMEM:
	case ENOSPC:
	case EMFILE: /* expectations */
		return CT_REASON_FULL;
	case EEXIST:
	case EBUSY:
		return CT_REASON_EXISTS;
	case EOPNOTSUPP:
	case EPROTONOSUPPORT:
		return CT_REASON_UNSUPPORTED;
	case ENOENT:
	case ESHUTDOWN:
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
	snprintf(a->stats.first_refused, sizeof(a->stats.first_refused), "%.46s: %s", why ?: reasons[reason].text,
		 tuple);
}

void ct_apply_refuse(CtApply *a, const CtRecord *record, CtReason reason, const char *why)
{
	a->stats.refused++;
	note(a, record, reason, why);
}

void ct_apply_fail_because(CtApply *a, uint32_t i, CtReason reason, const char *why)
{
	a->stats.failed++;
	note(a, &ct_table_at(&a->table, i)->record, reason, why);
	ct_apply_forget(a, i);
}

void ct_apply_fail(CtApply *a, uint32_t i, int error)
{
	CtReason reason = reason_of(error);

	ct_apply_fail_because(a, i, reason, reason == CT_REASON_OTHER ? strerror(-error) : NULL);
}

void ct_apply_lacks(CtApply *a, uint32_t i, unsigned flags, bool lacks)
{
	CtEntry *e = ct_table_at(&a->table, i);

	for (size_t n = 0; n < ARRAY_SIZE(reasons); n++)
		if ((reasons[n].flag & flags) && !(e->flags & reasons[n].flag) == lacks) {
			e->flags ^= reasons[n].flag;
			a->stats.reasons[n] += lacks ? 1 : (uint64_t)-1;
		}
}

void ct_apply_forget(CtApply *a, uint32_t i)
{
	ct_apply_lacks(a, i, CT_ENTRY_LACKS, false);
	ct_table_remove(&a->table, i);
}
