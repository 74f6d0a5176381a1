/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"

/* A VM's definition: what NAME.vm says (vmferry.vm(5)), with the pins filled in. */

#define VM_NICS_MAX 32
#define VM_DISKS_MAX 64
#define VM_PCI_MAX 21 /* NICs and virtio disks together: the slots QEMU's command line gives out */
#define VM_BINARY_DEFAULT "qemu-system-x86_64"

typedef enum MemoryBacking { MEMORY_SHARED, MEMORY_PRIVATE, MEMORY_HUGE, _MEMORY_MAX } MemoryBacking;
typedef enum Accel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG, _ACCEL_MAX } Accel;
typedef enum DiskFormat { DISK_QCOW2, DISK_RAW, _DISK_FORMAT_MAX } DiskFormat;
typedef enum DiskCache {
	CACHE_NONE,
	CACHE_DIRECTSYNC,
	CACHE_WRITEBACK,
	CACHE_WRITETHROUGH,
	CACHE_UNSAFE,
	_CACHE_MAX
} DiskCache;
typedef enum DiskBus { BUS_VIRTIO, BUS_SCSI, _DISK_BUS_MAX } DiskBus;
typedef enum Serial { SERIAL_LOG, SERIAL_SOCKET, SERIAL_NONE, _SERIAL_MAX } Serial;
typedef enum GraphicsType { GRAPHICS_NONE, GRAPHICS_SPICE, GRAPHICS_VNC, _GRAPHICS_MAX } GraphicsType;
typedef enum LeaseType { LEASE_NONE, LEASE_FILE, LEASE_SANLOCK, _LEASE_MAX } LeaseType;
typedef enum LeaseOnLost { LEASE_LOST_KILL, LEASE_LOST_PAUSE, _LEASE_ON_LOST_MAX } LeaseOnLost;

/* Name tables of the enums above: NULL / -EINVAL for what is not in them. */
const char *memory_backing_to_string(MemoryBacking v);
int memory_backing_from_string(const char *s);
const char *accel_to_string(Accel v);
int accel_from_string(const char *s);
const char *disk_format_to_string(DiskFormat v);
int disk_format_from_string(const char *s);
const char *disk_cache_to_string(DiskCache v);
int disk_cache_from_string(const char *s);
const char *disk_bus_to_string(DiskBus v);
int disk_bus_from_string(const char *s);
const char *serial_to_string(Serial v);
int serial_from_string(const char *s);
const char *graphics_type_to_string(GraphicsType v);
int graphics_type_from_string(const char *s);
const char *lease_type_to_string(LeaseType v);
int lease_type_from_string(const char *s);
const char *lease_on_lost_to_string(LeaseOnLost v);
int lease_on_lost_from_string(const char *s);

typedef struct VmDisk {
	char *id;
	char *file;
	DiskFormat format;
	DiskCache cache;
	DiskBus bus;
	bool shared;
	bool readonly;
	char *serial; /* NULL: none */
} VmDisk;

typedef struct VmNic {
	char *id;
	char *bridge;
	unsigned int vlan; /* 0: none; else the tap's untagged VLAN on a VLAN-filtering bridge */
	char *model;
	char *mac;	  /* "52:54:00:12:34:56", NULL until pinned */
	char **addresses; /* IPv4 and IPv6, canonical text (inet_ntop) */
} VmNic;

typedef struct VmDefinition {
	char *name;
	char *uuid;    /* NULL until pinned */
	char *machine; /* "q35" or a versioned type; the versioned one once pinned */
	char *cpu;
	unsigned int cpus;
	uint64_t memory; /* bytes */
	MemoryBacking memory_backing;
	Accel accel;
	char *binary; /* QEMU program; a bare name is searched in PATH */
	VmDisk *disks;
	size_t n_disks;
	VmNic *nics;
	size_t n_nics;
	char *kernel, *initrd, *append, *firmware; /* NULL: none */
	Serial serial;
	bool agent; /* a channel for the guest's agent */
	GraphicsType graphics;
	char *graphics_listen;
	unsigned int graphics_port; /* 0: one that is free */
	char *graphics_tls;	     /* SPICE: a directory with its certificate; NULL: in the clear */
	char *conntrack_mark;	     /* "0x100/0xff00": which connections are its own; NULL: whatever their mark */
	unsigned int conntrack_zone; /* the same by zone; 0: whatever their zone */
	LeaseType lease;
	char *lease_path;
	LeaseOnLost lease_on_lost;
	char *lease_lockspace, *lease_resource; /* sanlock; resource NULL: the VM's name */
	uint64_t lease_offset;			/* sanlock: of the resource in its file, bytes */
	bool autostart;
	char **qemu_args;
} VmDefinition;

/**
 * vm_definition_parse() - parse and check a definition
 * @name:   the VM's name (the file's name without .vm)
 * @text:   NUL-terminated text
 * @origin: file name for messages ("FILE:LINE: what is wrong", the hint says what would be right)
 *
 * Return: 0, or negative errno with @err set (-EINVAL for what is wrong in the text).
 */
int vm_definition_parse(const char *name, const char *text, const char *origin, VmDefinition **ret, Error **err);

/** vm_definition_load() - the same from a file of at most 64 KiB */
int vm_definition_load(const char *name, const char *path, VmDefinition **ret, Error **err);

/**
 * vm_definition_text() - the normalised text, pins included; parsing it gives an equal definition
 *
 * Return: text, free() it.
 */
char *vm_definition_text(const VmDefinition *def);

/** vm_definition_copy() - a deep copy; vm_definition_free() takes NULL, too */
VmDefinition *vm_definition_copy(const VmDefinition *def);
void vm_definition_free(VmDefinition *def);
DEFINE_CLEANUP(VmDefinition *, vm_definition_free)

/**
 * vm_definition_pin() - give a definition the uuid and MACs it lacks (random, 52:54:00 prefix for MACs)
 * @def:    changed in place
 * @pinned: a definition pinned earlier, or NULL: what it has (uuid, machine type of the same family, MAC of the NIC of
 *          the same id) is taken where @def leaves it open
 */
void vm_definition_pin(VmDefinition *def, const VmDefinition *pinned);

/** disk_cache_writeback() - whether the guest sees a disk with a write cache it has to flush */
bool disk_cache_writeback(DiskCache cache);

/**
 * vm_abi_compare() - guest ABI check: what the guest can see must be equal; pin both before, a MAC that is not
 * set differs from every one that is
 * @ret_differences: one line for each difference ("nic net0: mac is A here, B there"); NULL when there is none
 *
 * Return: number of differences.
 */
size_t vm_abi_compare(const VmDefinition *a, const VmDefinition *b, char ***ret_differences);
