/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The other VMs of this host, by what their keepers leave in the runtime directory. */
#include "keeper/local.h"

#include <dirent.h>
#include <errno.h>

#include "keeper/move.h"

typedef int (*Visit)(const VmDefinition *def, void *userdata, Error **err);

static const char *next_name(DIR *dir, const char *except)
{
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (vm_name_valid(entry->d_name) && !streq(entry->d_name, except))
			return entry->d_name;
	return NULL;
}

static int for_each(const char *except, Visit visit, void *userdata, Error **err)
{
	DIR *dir = opendir(runtime_dir());
	const char *name;
	int r = 0;

	while (r == 0 && (name = next_name(dir, except))) {
		_cleanup_(vm_definition_freep)
		VmDefinition *def = NULL;
		_cleanup_free_ char *path = runtime_path(name, "definition");

		if (vm_definition_load(name, path, &def, NULL) >= 0)
			r = visit(def, userdata, err);
	}
	if (dir)
		closedir(dir);
	return r;
}

static int collect(const VmDefinition *def, void *userdata, Error **err)
{
	_cleanup_strv_ char **addresses = vm_addresses(def);

	(void)err;
	for (size_t i = 0; addresses && addresses[i]; i++)
		strv_push((char ***)userdata, xstrdup(addresses[i]));
	return 0;
}

char **local_addresses(const char *except)
{
	char **all = NULL;

	(void)for_each(except, collect, &all, NULL);
	return all;
}

void local_ports(const char *except, unsigned int first, size_t n, bool *taken)
{
	DIR *dir = opendir(runtime_dir());
	const char *name;

	while ((name = next_name(dir, except))) {
		_cleanup_json_ json_object *state = keeper_read_state(name);
		uint64_t port;

		if (state && json_get_u64(state, "graphics_port", &port) && port >= first && port - first < n)
			taken[port - first] = true;
	}
	if (dir)
		closedir(dir);
}

static const char *same_mac(const VmDefinition *a, const VmDefinition *b)
{
	for (size_t i = 0; i < a->n_nics; i++)
		for (size_t j = 0; j < b->n_nics; j++)
			if (a->nics[i].mac && b->nics[j].mac && streq(a->nics[i].mac, b->nics[j].mac))
				return a->nics[i].mac;
	return NULL;
}

static int clash(const VmDefinition *here, void *userdata, Error **err)
{
	const VmDefinition *def = userdata;
	_cleanup_strv_ char **addresses = vm_addresses(here), **mine = vm_addresses(def);
	const char *mac;
	int r = 0;

	for (size_t i = 0; r == 0 && mine && mine[i]; i++)
		if (strv_contains(addresses, mine[i]))
			r = error_set(err, -EEXIST, "address %s belongs to the VM %s there", mine[i], here->name);
	if (r == 0 && (mac = same_mac(def, here)))
		r = error_set(err, -EEXIST, "MAC %s belongs to the VM %s there", mac, here->name);
	if (r == 0 && streq_null(def->uuid, here->uuid) && def->uuid)
		r = error_set(err, -EEXIST, "uuid %s is that of the VM %s there", def->uuid, here->name);
	if (r < 0)
		error_hint(err, "two VMs cannot share it: see vmferry show %s there", here->name);
	return r;
}

int local_conflict(const VmDefinition *def, Error **err)
{
	return for_each(def->name, clash, (void *)(uintptr_t)def, err);
}
