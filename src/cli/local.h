/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/json.h"
#include "vm/definition.h"

/* What this host's files say of a VM, without its keeper. */

/** local_definition_path() - the file that defines a VM: one that arrived before the user's own; NULL if there is none
 */
char *local_definition_path(const char *name);

/** local_definition() - load it. Return: 0, -ENOENT if the VM is not known here, or negative errno; @err is set */
int local_definition(const char *name, VmDefinition **ret, Error **err);

/** local_moved() - the note a VM left when it moved away: {to, at, id}. Return: object to put, or NULL */
json_object *local_moved(const char *name);

/** local_missing() - the error that there is no such VM. Return: -ENOENT */
int local_missing(Error **err);

/**
 * local_off() - why a VM that is off is off, and since when: {reason, since}; from its history, or what is wrong with its definition
 *
 * Return: object to put, or NULL.
 */
json_object *local_off(const char *name);

/** local_moved_error() - "NAME moved to HOST at TIME". Return: -EREMOTE */
int local_moved_error(json_object *moved, const char *name, Error **err);

/** local_names() - the VMs of this host, sorted: keepers, definitions and state; free with strv_free() */
char **local_names(void);
