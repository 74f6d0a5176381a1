/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "macros.h"

/* Where things are; each by an environment variable, so that many hosts fit on one machine. */

/** config_dir() - VMFERRY_CONFIG_DIR or /etc/vmferry: host.conf, vms/NAME.vm */
const char *config_dir(void);
/** runtime_dir() - VMFERRY_RUNTIME_DIR or /run/vmferry: what dies with a reboot */
const char *runtime_dir(void);
/** state_dir() - VMFERRY_STATE_DIR or /var/lib/vmferry: what must survive one */
const char *state_dir(void);
/** cgroup_dir() - VMFERRY_CGROUP_DIR or /sys/fs/cgroup: control groups (v2) */
const char *cgroup_dir(void);

/** runtime_path() - RUNTIME_DIR/NAME/FILE, or RUNTIME_DIR/NAME if @file is NULL; free() it */
char *runtime_path(const char *name, const char *file);
/** state_path() - STATE_DIR/NAME/FILE, or STATE_DIR/NAME if @file is NULL; free() it */
char *state_path(const char *name, const char *file);
/** definition_path() - CONFIG_DIR/vms/NAME.vm: where a person defines a VM; free() it */
char *definition_path(const char *name);
