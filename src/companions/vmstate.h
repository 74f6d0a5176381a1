/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include <systemd/sd-bus.h>

#include "companions/tool.h"

/*
 * vmferry-vmstate: connection tracking entries inside QEMU's own migration stream, for managers that are not vmferry.
 * QEMU's object dbus-vmstate (docs/interop/dbus-vmstate.rst, qapi/qom.json) asks whoever owns org.qemu.VMState1 on a bus,
 * also queued, for its state and hands it to the same Id on the target.
 */

#define VMSTATE_NAME "org.qemu.VMState1"
#define VMSTATE_PATH "/org/qemu/VMState1"
#define VMSTATE_OURS "org.vmferry.VMStateHelper1" /* the second interface, with NumMigratedEntries and Quit */
#define VMSTATE_PROXMOX "com.proxmox.VMStateHelper"
#define VMSTATE_PROXMOX_ID "pve-vmstate-" /* an Id that begins so is of a helper with that interface */
#define VMSTATE_MAX (1 << 20) /* QEMU's DBUS_VMSTATE_SIZE_LIMIT; at least one byte, too */

/*
 * How long Save and Load hold QEMU, and with it the guest: --wait for both together. Save answers from memory: it may take a quarter
 * of it. Load needs some 3 us for each entry: seven tenths. What is left is for the bytes' way to QEMU and back.
 */
#define VMSTATE_WAIT_MSEC 100
#define VMSTATE_WAIT_MAX_MSEC 30000 /* so that neither comes near the 25 s after which QEMU gives up (GDBus's default) */
#define VMSTATE_SAVE_USEC(wait_msec) ((wait_msec) * 250)
#define VMSTATE_LOAD_USEC(wait_msec) ((wait_msec) * 700)
static_assert(VMSTATE_SAVE_USEC(1) + VMSTATE_LOAD_USEC(1) < 1000, "both together are less than --wait");
static_assert(VMSTATE_LOAD_USEC(VMSTATE_WAIT_MAX_MSEC) < 25000000, "QEMU does not give up");

/* The interface (QEMU's docs/interop/dbus-vmstate.rst), for who serves it: the helper on a bus, its door to QEMU alone. */
#define VMSTATE_TABLE(id, save, load)                                                                                  \
	{                                                                                                              \
		SD_BUS_VTABLE_START(0),                                                                                \
		SD_BUS_PROPERTY("Id", "s", id, 0, SD_BUS_VTABLE_PROPERTY_CONST),                                       \
		SD_BUS_METHOD("Save", "", "ay", save, SD_BUS_VTABLE_UNPRIVILEGED),                                     \
		SD_BUS_METHOD("Load", "ay", "", load, SD_BUS_VTABLE_UNPRIVILEGED),                                     \
		SD_BUS_VTABLE_END,                                                                                     \
	}

/**
 * struct Naming - how a helper is found and called
 * @id:        its Id
 * @interface: the second one
 * @qmp:       QEMU's QMP socket; NULL: the manager adds the object to QEMU itself
 * @bus:       address, NULL: the system bus
 */
typedef struct Naming {
	char *id;
	const char *interface;
	char *qmp;
	const char *bus;
} Naming;

/** naming_read() - from the verb's NAME and options. Return: 0, or negative errno with @err set */
int naming_read(const Tool *tool, Naming *ret, Error **err);
void naming_done(Naming *naming);

/** vmstate_bus_open() - connect. Return: 0, or negative errno with @err set */
int vmstate_bus_open(const Naming *naming, sd_bus **ret, Error **err);

/**
 * vmstate_object_add() - add the object to QEMU; one that an earlier run left is removed first
 * @bus: the address QEMU is to connect to
 * @who: called first, with the pid of the QEMU
 *
 * Blocks up to 5 s. QAPI: object-add, DBusVMStateProperties. Return: 0, or negative errno with @err set (-ENOTCONN: no QEMU there).
 */
int vmstate_object_add(const Naming *naming, const char *bus, void (*who)(void *userdata, pid_t qemu), void *userdata, Error **err);

/** vmstate_object_remove() - remove it again. Return: 0, or negative errno with @err set */
int vmstate_object_remove(const Naming *naming, Error **err);

/* Verbs. Return: 0, or negative errno with @err set. */
int vmstate_run(const Tool *tool, Error **err);
int vmstate_start(const Tool *tool, Error **err);
int vmstate_stop(const Tool *tool, Error **err);
int vmstate_status(const Tool *tool, Error **err);
