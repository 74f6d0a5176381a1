/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <sys/types.h>

#include "basic/json.h"
#include "conntrack/record.h"
#include "conntrack/wire.h"

/* What the verbs of ct-bench share. Nothing here is installed: a step that fails ends the program. */

/** die_if() - end the program with @what and errno's text if @failed */
void die_if(bool failed, const char *what);

/** enter_namespace() - move this process to a network namespace of `ip netns` */
void enter_namespace(const char *name);

/** print_json() - a line on standard output; @o is taken over */
void print_json(json_object *o);

/** vm_select() - the VM's one address as a selection; free it */
CtSelect *vm_select(const char *address);

/** sink_new() - a CtApply for the VM without limits; free it */
CtApply *sink_new(const char *address);

/** rss_bytes() - resident memory of this process */
uint64_t rss_bytes(void);

/** cpu_usec() - user and system time of this process so far */
uint64_t cpu_usec(void);

/**
 * write_entry() - an established TCP connection of the VM as a wire record; entry @i has a peer and a port of its own
 *
 * Return: its bytes, at most CT_WIRE_RECORD_MAX.
 */
size_t write_entry(uint8_t *to, CtWireOp op, const char *address, uint32_t i);

/**
 * apply_entries() - put or delete entries @first to @first + @n in batches as large as the keeper's
 * @ret_longest: the longest batch in microseconds, may be NULL
 *
 * Return: microseconds spent in ct_apply_delta().
 */
uint64_t apply_entries(CtApply *sink, CtWireOp op, const char *address, uint32_t first, uint32_t n,
		       uint64_t *ret_longest);

/**
 * struct Churn - how the generator works
 * @rate:    new connections a second, 0: as fast as it can
 * @count:   end after so many, 0: on SIGTERM
 * @pending: connections open at a time, from the first packet to the last
 * @tuples:  connections have one of so many tuples in turn
 */
typedef struct Churn {
	const char *address;
	uint32_t rate, count, pending, tuples;
} Churn;

/**
 * churn_run() - real TCP connections from outside to the VM through this namespace's forward hook
 *
 * The packets (SYN, SYN+ACK, ACK; later FIN, FIN+ACK, ACK) come in by the tun device "churn", which is there already,
 * and leave by the default route. A connection on the tuple of one that has ended replaces it, as the kernel sees to.
 * Prints what it did as a JSON line.
 */
void churn_run(const Churn *churn);

/** churn_start() - the same in a process of its own, which lives in this namespace. Return: its pid */
pid_t churn_start(const Churn *churn);

typedef struct SwitchOptions {
	const char *source, *target, *address;
	uint32_t rounds, rate;
	uint32_t interval_ms; /* between two deltas */
	bool churn_goes_on;   /* the generator is not stopped for the switch */
} SwitchOptions;

/** switch_run() - follow in one namespace, apply in the other, and switch again and again. Prints a JSON line */
void switch_run(const SwitchOptions *options);
