/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/saved.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/json.h"
#include "basic/log.h"
#include "basic/paths.h"
#include "basic/text.h"

#define RECORD_MAX ((size_t)256 * 1024)
#define BESIDE_MEMORY ((uint64_t)64 << 20) /* devices, among them the memory of a graphics card */
#define MEMORY_PER_HEADER 128		   /* 8 bytes and more to a page: less than a 128th */

static const char *const kinds[] = {
#define X(id, name) [SAVED_##id] = name,
	SAVED_KINDS(X)
#undef X
};
static_assert(ARRAY_SIZE(kinds) == _SAVED_KIND_MAX, "a name for every kind");

/* ".saved" is no VM's name. */
char *saved_directory(const char *dir)
{
	return dir ? xstrdup(dir) : xasprintf("%s/.saved", runtime_dir());
}

bool saved_in_runtime(const Saved *saved)
{
	_cleanup_free_ char *ours = saved_directory(NULL);
	const char *rest = startswith(saved->file, ours);

	return rest && rest[0] == '/';
}

Saved *saved_new(const char *name, const char *id, const char *dir)
{
	_cleanup_free_ char *where = saved_directory(dir);
	Saved *saved = xcalloc(1, sizeof(*saved));

	memcpy(saved->id, id, sizeof(saved->id));
	saved->file = xasprintf("%s/%s.%s.saved", where, name, id);
	return saved;
}

void saved_free(Saved *saved)
{
	if (!saved)
		return;
	free(saved->file);
	free(saved->old);
	free(saved->fresh);
	free(saved);
}

/* ---- the record ---- */

static bool parse_kind(const char *text, SavedKind *ret)
{
	for (int i = 0; i < _SAVED_KIND_MAX; i++)
		if (streq(text, kinds[i])) {
			*ret = (SavedKind)i;
			return true;
		}
	return false;
}

static bool parse(json_object *o, Saved *saved)
{
	const char *kind, *id, *file, *old, *fresh;

	if (!json_get_string(o, "kind", &kind) || !parse_kind(kind, &saved->kind) || !json_get_string(o, "id", &id) ||
	    !text_is_id(id) || !json_get_string(o, "file", &file) || file[0] != '/' ||
	    !json_get_string(o, "old", &old) || !json_get_string(o, "fresh", &fresh) ||
	    !json_get_u64(o, "size", &saved->size) || !json_get_bool(o, "running", &saved->running) ||
	    !json_get_bool(o, "lease", &saved->lease) || !json_get_bool(o, "fell_back", &saved->fell_back))
		return false;
	memcpy(saved->id, id, sizeof(saved->id));
	saved->file = xstrdup(file);
	saved->old = xstrdup(old);
	saved->fresh = xstrdup(fresh);
	return true;
}

int saved_read(const char *name, Saved **ret, Error **err)
{
	_cleanup_free_ char *path = state_path(name, "saved"), *text = NULL;
	_cleanup_(saved_freep)
	Saved *saved = xcalloc(1, sizeof(*saved));
	_cleanup_json_ json_object *o = NULL;
	size_t len;
	int r = file_read(path, RECORD_MAX, &text, &len);

	if (r == -ENOENT)
		return r;
	if (r < 0)
		return error_set(err, r, "cannot read %s: %s", path, strerror(-r));
	o = json_parse(text, len);
	if (!o || !parse(o, saved)) {
		error_set(err, -EBADMSG, "%s is damaged: it does not say where the guest's saved state is", path);
		error_hint(err, "without it the VM starts from its disks, as after a power cut: remove it if that is meant");
		return -EBADMSG;
	}
	*ret = TAKE_PTR(saved);
	return 0;
}

int saved_write(const char *name, const Saved *saved, Error **err)
{
	_cleanup_free_ char *path = state_path(name, "saved");
	_cleanup_json_ json_object *o =
		json_build("kind", "s", kinds[saved->kind], "id", "s", saved->id, "file", "s", saved->file, "size", "u",
			   saved->size, "running", "b", (int)saved->running, "lease", "b", (int)saved->lease,
			   "fell_back", "b", (int)saved->fell_back, "old", "s", saved->old, "fresh", "s", saved->fresh,
			   NULL);
	const char *text = json_text(o);
	int r = file_write(path, text, strlen(text), 0600, true);

	return r < 0 ? error_set(err, r, "cannot write %s: %s", path, strerror(-r)) : 0;
}

int saved_remove_file(const Saved *saved, Error **err)
{
	_cleanup_free_ char *ours = saved_directory(NULL);

	if (unlink(saved->file) < 0 && errno != ENOENT)
		return error_set(err, -errno, "cannot remove %s: %m", saved->file);
	(void)rmdir(ours); /* unless another VM has its file there */
	return 0;
}

void saved_remove_record(const char *name)
{
	_cleanup_free_ char *path = state_path(name, "saved");

	(void)unlink(path);
}

void saved_remove(const char *name, const Saved *saved)
{
	_cleanup_error_ Error *err = NULL;

	if (saved_remove_file(saved, &err) < 0)
		log_warning("%s", err->message);
	saved_remove_record(name);
}

/* ---- the file ---- */

int saved_create(const Saved *saved, Error **err)
{
	_cleanup_free_ char *dir = xstrdup(saved->file), *ours = saved_directory(NULL);
	int fd, r = 0;

	*strrchr(dir, '/') = '\0';
	do { /* another VM's keeper may just remove it */
		if (streq(dir, ours))
			r = dir_make(dir, 0700);
		if (r < 0)
			return error_set(err, r, "cannot make %s: %s", dir, strerror(-r));
		fd = open(saved->file, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	} while (fd < 0 && errno == ENOENT && streq(dir, ours));
	return fd < 0 ? error_set(err, -errno, "cannot make %s: %m", saved->file) : fd;
}

int saved_open(const Saved *saved, Error **err)
{
	_cleanup_fd_ int fd = open(saved->file, O_RDONLY | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, -errno, "the guest's saved state %s: %m", saved->file);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != saved->size)
		return error_set(err, -EBADMSG, "the guest's saved state %s is not whole: %" PRIu64 " bytes, not %" PRIu64,
				 saved->file, (uint64_t)st.st_size, saved->size);
	return TAKE_FD(fd);
}

uint64_t saved_size_max(const VmDefinition *def)
{
	return def->memory + def->memory / MEMORY_PER_HEADER + BESIDE_MEMORY;
}

int saved_room(const char *dir, uint64_t bytes, bool *ret_memory, Error **err)
{
	_cleanup_free_ char *where = saved_directory(dir);
	struct statfs fs;
	uint64_t have;

	if (statfs(dir ? dir : runtime_dir(), &fs) < 0)
		return error_set(err, -errno, "cannot save to %s: %m", where);
	have = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
	*ret_memory = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
	if (fs.f_blocks == 0 || have >= bytes) /* a tmpfs without a limit has none */
		return 0;
	error_set(err, -ENOSPC, "no room for the guest's state: it may take %" PRIu64 " MiB, %s has %" PRIu64 " MiB",
		  bytes >> 20, where, have >> 20);
	error_hint(err, "name another directory: --save-dir=DIR");
	return -ENOSPC;
}
