/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <stdlib.h>

#include "basic/text.h"
#include "table.h"
#include "wire.h"

static bool wanted(const CtTable *table, uint32_t i)
{
	const CtEntry *e = ct_table_at(table, i);

	return ct_table_in_use(table, i) && !(e->flags & CT_ENTRY_GONE) && ct_record_complete(&e->record);
}

/*
 * What is missed most when it is missing: a connection that both sides use. Of the same kind the one with more time
 * left, which is the one whose last packet is the newest, as far as anybody knows.
 */
static uint64_t worth(const CtRecord *r)
{
	bool established = !(r->has & CT_HAS_TCP) || r->tcp.state == TCP_CONNTRACK_ESTABLISHED;
	uint64_t rank = r->key.expect ? 0 : (r->status & IPS_ASSURED) && established ? 2 : 1;

	return rank << 32 | r->timeout;
}

typedef struct Choice {
	uint64_t worth;
	uint32_t index;
} Choice;

static int by_worth(const void *a, const void *b)
{
	uint64_t x = ((const Choice *)a)->worth, y = ((const Choice *)b)->worth;

	return x < y ? 1 : -(x > y);
}

/* All that is there, as it comes or by worth. Return: their number. */
static size_t choose(const CtTable *table, Choice *ret, bool sorted)
{
	size_t n = 0;

	for (uint32_t i = 0; i < table->used; i++)
		if (wanted(table, i))
			ret[n++] = (Choice){.worth = sorted ? worth(&ct_table_at(table, i)->record) : 0, .index = i};
	if (sorted)
		qsort(ret, n, sizeof(*ret), by_worth);
	return n;
}

/* Write until it is full. Return: how many were written. */
static size_t fill(const CtTable *table, const Choice *choices, size_t n, uint8_t *to, size_t max, size_t *ret_len)
{
	uint8_t record[CT_WIRE_RECORD_MAX];
	size_t len = CT_WIRE_HEADER, i;

	for (i = 0; i < n; i++) {
		size_t more = ct_wire_record(record, CT_WIRE_PUT, &ct_table_at(table, choices[i].index)->record);

		if (len + more > max)
			break;
		memcpy(to + len, record, more);
		len += more;
	}
	ct_wire_header(to, len, (uint32_t)i);
	*ret_len = len;
	return i;
}

size_t ct_table_snapshot(const CtTable *table, uint8_t *to, size_t max, size_t *ret_records, size_t *ret_left)
{
	_cleanup_free_ Choice *choices = xcalloc(table->live + 1, sizeof(Choice));
	size_t n = choose(table, choices, false), len;

	assert(max >= CT_WIRE_HEADER);
	*ret_records = fill(table, choices, n, to, max, &len);
	if (*ret_records < n) {
		(void)choose(table, choices, true);
		*ret_records = fill(table, choices, n, to, max, &len);
	}
	*ret_left = n - *ret_records;
	return len;
}
