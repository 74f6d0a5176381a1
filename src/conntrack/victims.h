/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "netlink.h"

/* Entries that are to be deleted. */

/* What names one: the id too, so that a new one with the same tuple stays. */
typedef struct CtVictim {
	CtKey key;
	uint32_t id;
} CtVictim;

typedef struct CtVictims {
	CtVictim *items; /* free() it */
	size_t n, size;
} CtVictims;

/** ct_victims_add() - one more, grows @victims */
void ct_victims_add(CtVictims *victims, const CtRecord *record);

/** ct_victim_build() - name it, for DELETE */
void ct_victim_build(struct nlmsghdr *nlh, const CtVictim *victim);
