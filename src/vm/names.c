/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "names.h"

#include <errno.h>

#include "basic/text.h"
#include "definition.h"
#include "host.h"

int name_table_find(const NameTable *table, const char *s)
{
	for (size_t i = 0; s && i < table->n; i++)
		if (streq(table->names[i], s))
			return (int)i;
	return -EINVAL;
}

char *name_table_words(const NameTable *table, size_t first)
{
	char *words = xstrdup("");

	for (size_t i = first; i < table->n; i++) {
		_cleanup_free_ char *old = words;
		const char *glue = i == first ? "" : i + 1 == table->n ? " or " : ", ";

		words = xasprintf("%s%s\"%s\"", old, glue, table->names[i]);
	}
	return words;
}

/* Defines the table of an enum and its two public functions; the table cannot fall behind the enum. */
#define DEFINE_NAMES(prefix, type, max, ...)                                                                           \
	static const char *const prefix##_names[] = {__VA_ARGS__};                                                     \
	static_assert(ARRAY_SIZE(prefix##_names) == (max), "a word for every value");                                  \
	const NameTable prefix##_table = {prefix##_names, max};                                                        \
	const char *prefix##_to_string(type v)                                                                         \
	{                                                                                                              \
		return (size_t)v < (max) ? prefix##_names[v] : NULL;                                                   \
	}                                                                                                              \
	int prefix##_from_string(const char *s)                                                                        \
	{                                                                                                              \
		return name_table_find(&prefix##_table, s);                                                            \
	}

DEFINE_NAMES(memory_backing, MemoryBacking, _MEMORY_MAX, "shared", "private", "huge")
DEFINE_NAMES(accel, Accel, _ACCEL_MAX, "auto", "kvm", "tcg")
DEFINE_NAMES(disk_format, DiskFormat, _DISK_FORMAT_MAX, "qcow2", "raw")
DEFINE_NAMES(disk_cache, DiskCache, _CACHE_MAX, "none", "directsync", "writeback", "writethrough", "unsafe")
DEFINE_NAMES(disk_bus, DiskBus, _DISK_BUS_MAX, "virtio", "scsi")
DEFINE_NAMES(serial, Serial, _SERIAL_MAX, "log", "socket", "none")
DEFINE_NAMES(graphics_type, GraphicsType, _GRAPHICS_MAX, "none", "spice", "vnc")
DEFINE_NAMES(lease_type, LeaseType, _LEASE_MAX, "none", "file", "sanlock")
DEFINE_NAMES(lease_on_lost, LeaseOnLost, _LEASE_ON_LOST_MAX, "kill", "pause")
DEFINE_NAMES(transport_choice, TransportChoice, _CHOICE_MAX, "auto", "tls", "tcp", "ssh", "tunnel", "unix")
