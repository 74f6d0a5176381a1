/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/macros.h"

/* The words of an enum, by value. */
typedef struct NameTable {
	const char *const *names;
	size_t n;
} NameTable;

extern const NameTable memory_backing_table;
extern const NameTable accel_table;
extern const NameTable disk_format_table;
extern const NameTable disk_cache_table;
extern const NameTable disk_bus_table;
extern const NameTable serial_table;
extern const NameTable graphics_type_table;
extern const NameTable lease_type_table;
extern const NameTable lease_on_lost_table;
extern const NameTable transport_choice_table;

/** name_table_find() - Return: the value of a word, or -EINVAL (also for NULL) */
int name_table_find(const NameTable *table, const char *s);

/** name_table_words() - the words from value @first on, as "a, b or c"; free() it */
char *name_table_words(const NameTable *table, size_t first);
