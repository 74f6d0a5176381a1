/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <stdlib.h>

#include "basic/text.h"
#include "table.h"
#include "wire.h"

/* Whoever makes these entries may have something else to do in between: see after each batch. */
#define BATCH_RECORDS 1000

/* What an entry is worth in a number: its kind above, the seconds it has left below. */
#define SECONDS_BITS 22
#define DIGIT_BITS 12
#define DIGITS (1 << DIGIT_BITS)
static_assert(CT_WIRE_TIMEOUT_MAX < 1 << SECONDS_BITS, "a timeout fits");
static_assert(SECONDS_BITS + 2 <= 2 * DIGIT_BITS, "two digits are the whole number");

typedef struct Choice {
	uint32_t worth, index;
} Choice;

static bool wanted(const CtTable *table, uint32_t i)
{
	const CtEntry *e = ct_table_at(table, i);

	return ct_table_in_use(table, i) && !(e->flags & CT_ENTRY_GONE) && ct_record_complete(&e->record);
}

/* A connection that both sides use is missed most; one that belongs to another can only be made once that one is there. */
static uint32_t kind(const CtRecord *r)
{
	if (r->key.expect)
		return 0;
	if (!(r->status & IPS_ASSURED) || ((r->has & CT_HAS_TCP) && r->tcp.state != TCP_CONNTRACK_ESTABLISHED))
		return 1;
	return r->has & CT_HAS_MASTER ? 2 : 3;
}

/* Of one kind that with more time left is worth more: its last packet is the newest, as far as anybody knows. */
static uint32_t worth(const CtRecord *r)
{
	return kind(r) << SECONDS_BITS | (r->timeout < CT_WIRE_TIMEOUT_MAX ? r->timeout : CT_WIRE_TIMEOUT_MAX);
}

static unsigned digit(const Choice *c, unsigned shift)
{
	return ~c->worth >> shift & (DIGITS - 1); /* ~: the most first */
}

/* By one digit; what is equal stays in its order. */
static void sort_by_digit(const Choice *from, Choice *to, size_t n, unsigned shift)
{
	uint32_t at[DIGITS + 1] = {};

	for (size_t i = 0; i < n; i++)
		at[digit(&from[i], shift) + 1]++;
	for (size_t d = 0; d < DIGITS; d++)
		at[d + 1] += at[d];
	for (size_t i = 0; i < n; i++)
		to[at[digit(&from[i], shift)]++] = from[i];
}

/* All that is there, by worth. A guest waits: radix sort is linear. Return: their number. */
static size_t choose(const CtTable *table, Choice *ret)
{
	_cleanup_free_ Choice *spare = xcalloc(table->live + 1, sizeof(Choice));
	size_t n = 0;

	for (uint32_t i = 0; i < table->used; i++)
		if (wanted(table, i))
			ret[n++] = (Choice){.worth = worth(&ct_table_at(table, i)->record), .index = i};
	sort_by_digit(ret, spare, n, 0);
	sort_by_digit(spare, ret, n, DIGIT_BITS);
	return n;
}

/* One batch, until it is full. Return: how many were written. */
static size_t fill_batch(const CtTable *table, const Choice *choices, size_t n, uint8_t *to, size_t max, size_t *ret_len)
{
	uint8_t record[CT_WIRE_RECORD_MAX];
	size_t len = CT_WIRE_HEADER, i;

	for (i = 0; i < n && i < BATCH_RECORDS; i++) {
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
	size_t n = choose(table, choices), done, len, more;

	assert(max >= CT_WIRE_HEADER);
	done = fill_batch(table, choices, n, to, max, &len);
	while (done < n && max - len >= CT_WIRE_HEADER) {
		size_t written = fill_batch(table, choices + done, n - done, to + len, max - len, &more);

		if (!written)
			break;
		done += written;
		len += more;
	}
	*ret_records = done;
	*ret_left = n - done;
	return len;
}
