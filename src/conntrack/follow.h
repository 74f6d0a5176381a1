/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/socket.h>

#include "other.h"
#include "table.h"

/*
 * Inside of the follower: follow.c hands out what is known, follow-kernel.c reads it from the kernel by events and dumps,
 * follow-other.c from another table.
 */

#define CT_EVENT_SIZE 4096
#define CT_EVENTS_AT_ONCE 32
#define CT_DUMP_CHUNK 65536
#define CT_ADJUSTED_MAX 256
#define CT_ZONES_MAX 64 /* of masters; expectations in others are not found */

struct CtFollow {
	CtSelect *select;
	CtOther *other; /* in place of the sockets, or NULL */
	sd_event *event;
	CtTable table;
	int event_fd, expect_fd, dump_fd;
	sd_event_source *event_source, *expect_source, *dump_source;
	CtExtra extra; /* of the record parsed last */
	struct {
		uint16_t zone;
		uint8_t dir;
	} zones[CT_ZONES_MAX]; /* the first is none */
	size_t n_zones;
	/* Connections whose helper has just expected something: it may have changed lengths, and no event tells of that. */
	struct {
		CtKey key;
		unsigned looks; /* still to be taken: the first may come while the helper is at it */
	} adjusted[CT_ADJUSTED_MAX];
	size_t n_adjusted;
	bool dump_expect; /* the running dump is through with entries and reads expectations */
	uint32_t dump_seq;
	unsigned interrupted; /* dumps in a row */
	bool dump_spoilt;     /* the running one was interrupted by a change */
	bool overrun;	      /* events were lost: read the queue empty, then dump */
	bool dump_again;      /* when the running one is through */
	CtFollowStats stats;
	uint8_t *delta;
	size_t delta_size;
	struct mmsghdr headers[CT_EVENTS_AT_ONCE];
	struct iovec vectors[CT_EVENTS_AT_ONCE];
	uint8_t events[CT_EVENTS_AT_ONCE][CT_EVENT_SIZE];
	uint8_t chunk[CT_DUMP_CHUNK];
};

/** ct_follow_alloc() - a follower of nothing yet */
CtFollow *ct_follow_alloc(const CtSelect *select);

/* ---- follow-kernel.c ---- */

/** ct_follow_kernel_dump() - begin to dump; none may run. Return: 0 or negative errno */
int ct_follow_kernel_dump(CtFollow *follow);
/** ct_follow_kernel_events() - read up to about @max datagrams of events. Return: how many were read, or negative errno */
int ct_follow_kernel_events(CtFollow *follow, unsigned max);
/** ct_follow_kernel_adjusted() - look at connections whose lengths may have changed without an event */
void ct_follow_kernel_adjusted(CtFollow *follow);

/* ---- follow-other.c ---- */

/** ct_follow_other_read() - read all of the table within @usec; a read that was begun is given up. Return: 0 or negative errno with @err set */
int ct_follow_other_read(CtFollow *follow, uint64_t usec, Error **err);
/** ct_follow_other_begin() - the same from the loop. Return: 0 or negative errno */
int ct_follow_other_begin(CtFollow *follow);
