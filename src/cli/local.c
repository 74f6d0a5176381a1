/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "local.h"

#include <dirent.h>
#include <errno.h>
#include <unistd.h>

#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "cli/output.h"
#include "move/arrival.h"

#define MOVED_MAX 65536
#define HISTORY_MAX (1024 * 1024)
#define MISSING "there is no VM of this name here"

/* One that came with a migration, of a host that went down right after it had taken the guest over. */
static char *taken_over(const char *name)
{
	_cleanup_free_ char *path = state_path(name, NULL), *found = NULL;
	struct dirent *entry;
	DIR *d = opendir(path);

	while (d && !found && (entry = readdir(d))) {
		const char *id = startswith(entry->d_name, "definition.");

		if (id && text_is_id(id))
			found = xasprintf("%s/%s", path, entry->d_name);
	}
	if (d)
		closedir(d);
	return TAKE_PTR(found);
}

char *local_definition_path(const char *name)
{
	_cleanup_free_ char *arrived = state_path(name, "definition");
	_cleanup_free_ char *own = definition_path(name);

	arrival_settle(name);
	if (access(arrived, F_OK) == 0)
		return TAKE_PTR(arrived);
	return access(own, F_OK) == 0 ? TAKE_PTR(own) : taken_over(name);
}

int local_definition(const char *name, VmDefinition **ret, Error **err)
{
	_cleanup_free_ char *path = local_definition_path(name), *own = definition_path(name);
	int r;

	if (path)
		return vm_definition_load(name, path, ret, err);
	r = error_set(err, -ENOENT, MISSING);
	error_hint(err, "define it in %s, see vmferry.vm(5)", own);
	return r;
}

int local_missing(Error **err)
{
	error_set(err, -ENOENT, MISSING);
	error_hint(err, "vmferry list shows those there are");
	return -ENOENT;
}

json_object *local_moved(const char *name)
{
	_cleanup_free_ char *path = state_path(name, "moved"), *text = NULL;
	json_object *moved;
	size_t len;

	arrival_settle(name);
	if (file_read(path, MOVED_MAX, &text, &len) < 0)
		return NULL;
	moved = json_parse(text, len);
	/* A note that cannot be read still says that the VM moved. */
	return json_object_is_type(moved, json_type_object) ? moved : json_object_new_object();
}

/* How it ended here, as its history says: {"reason", "since"}. */
static json_object *ended(const char *name)
{
	static const char *const ends[] = {"shutdown", "destroyed", "crashed", "panicked", "failed", "saved"};
	_cleanup_free_ char *path = state_path(name, "history"), *text = NULL;
	char *end = NULL, *line;
	size_t len;

	if (file_read(path, HISTORY_MAX, &text, &len) < 0)
		return NULL;
	/* The last line but those that say nothing of it. */
	for (; (end = strrchr(text, '\n')); *end = '\0') {
		_cleanup_json_ json_object *o = NULL;
		const char *event;
		uint64_t time;

		*end = '\0';
		line = strrchr(text, '\n');
		line = line ? line + 1 : text;
		o = json_parse(line, strlen(line));
		for (size_t i = 0;
		     json_get_string(o, "event", &event) && json_get_u64(o, "time", &time) && i < ARRAY_SIZE(ends); i++)
			if (streq(event, ends[i]) && !json_member(o, "details"))
				return json_build("reason", "s", event, "since", "u", time, NULL);
	}
	return NULL;
}

json_object *local_off(const char *name)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *definition = NULL;
	int r = local_definition(name, &definition, NULL);

	return r < 0 && r != -ENOENT ? json_build("reason", "s", "its definition has an error", NULL) : ended(name);
}

int local_moved_error(json_object *moved, const char *name, Error **err)
{
	_cleanup_free_ char *to = format_value(json_member(moved, "to")), *at = format_time(json_member(moved, "at"));

	return error_set(err, -EREMOTE, "%s moved to %s%s%s", name, *to ? to : "another host", *at ? " at " : "", at);
}

/* Adds the valid names among a directory's entries, less @suffix, which they must have. */
static void add_names(const char *dir, const char *suffix, char ***names)
{
	struct dirent *entry;
	DIR *d = opendir(dir);

	while (d && (entry = readdir(d))) {
		size_t len = strlen(entry->d_name), tail = strlen(suffix);
		_cleanup_free_ char *name = NULL;

		if (len <= tail || !streq(entry->d_name + len - tail, suffix))
			continue;
		name = strndup(entry->d_name, len - tail);
		if (name && vm_name_valid(name) && !strv_contains(*names, name))
			strv_push(names, TAKE_PTR(name));
	}
	if (d)
		closedir(d);
}

/* A directory is a VM's only if it holds something that says so: others may keep files there, too. */
static bool is_vm(const char *name)
{
	_cleanup_free_ char *control = runtime_path(name, "control"), *moved = state_path(name, "moved");
	_cleanup_free_ char *definition = local_definition_path(name);

	return definition || access(control, F_OK) == 0 || access(moved, F_OK) == 0;
}

static int compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

char **local_names(void)
{
	_cleanup_free_ char *vms = xasprintf("%s/vms", config_dir());
	_cleanup_strv_ char **all = NULL;
	char **names = NULL;

	add_names(runtime_dir(), "", &all);
	add_names(vms, ".vm", &all);
	add_names(state_dir(), "", &all);
	for (size_t i = 0; all && all[i]; i++)
		if (is_vm(all[i]))
			strv_push(&names, xstrdup(all[i]));
	if (names)
		qsort(names, strv_length(names), sizeof(*names), compare);
	return names;
}
