/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "paths.h"

#include "text.h"

static const char *dir_from(const char *variable, const char *otherwise)
{
	const char *dir = getenv(variable);

	return dir && *dir ? dir : otherwise;
}

const char *config_dir(void)
{
	return dir_from("VMFERRY_CONFIG_DIR", "/etc/vmferry");
}

const char *runtime_dir(void)
{
	return dir_from("VMFERRY_RUNTIME_DIR", "/run/vmferry");
}

const char *state_dir(void)
{
	return dir_from("VMFERRY_STATE_DIR", "/var/lib/vmferry");
}

const char *cgroup_dir(void)
{
	return dir_from("VMFERRY_CGROUP_DIR", "/sys/fs/cgroup");
}

static char *vm_path(const char *dir, const char *name, const char *file)
{
	return xasprintf("%s/%s%s%s", dir, name, file ? "/" : "", file ? file : "");
}

char *runtime_path(const char *name, const char *file)
{
	return vm_path(runtime_dir(), name, file);
}

char *state_path(const char *name, const char *file)
{
	return vm_path(state_dir(), name, file);
}

char *definition_path(const char *name)
{
	return xasprintf("%s/vms/%s.vm", config_dir(), name);
}
