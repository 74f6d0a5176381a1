/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/tls.h"

#include <errno.h>
#include <pwd.h>
#include <unistd.h>

char *tls_object_id(const char *id)
{
	return xasprintf("tls-%.16s", id);
}

static char *key_dir(Keeper *k, const char *id)
{
	return xasprintf("%s/tls-%.16s", k->qemu->dir, id);
}

int tls_object(Keeper *k, const char *id, const char *psk, const char *endpoint, json_object **ret, Error **err)
{
	_cleanup_free_ char *dir = key_dir(k, id), *file = xasprintf("%s/keys.psk", dir), *object = tls_object_id(id);
	_cleanup_free_ char *text = xasprintf("qemu:%s\n", psk);
	const struct passwd *user = getpwnam(k->conf->qemu_user);
	int r;

	if (!user)
		return error_set(err, -ENOENT, "user %s does not exist", k->conf->qemu_user);
	r = dir_make(dir, 0700);
	if (r == 0)
		r = file_write(file, text, strlen(text), 0400, false);
	if (r == 0 && (chown(file, user->pw_uid, user->pw_gid) < 0 || chown(dir, user->pw_uid, user->pw_gid) < 0))
		r = -errno;
	explicit_bzero(text, strlen(text));
	if (r < 0)
		return error_set(err, r, "cannot write the migration's key to %s: %s", file, strerror(-r));
	*ret = json_build("qom-type", "s", "tls-creds-psk", "id", "s", object, "dir", "s", dir, "endpoint", "s",
			  endpoint, "username", "s", streq(endpoint, "client") ? "qemu" : NULL, NULL);
	return 0;
}

void tls_remove(Keeper *k, const char *id)
{
	_cleanup_free_ char *dir = NULL, *object = tls_object_id(id);

	if (!k->qemu)
		return;
	dir = key_dir(k, id);
	(void)dir_remove(dir);
	machine_qmp(k, "migrate-set-parameters", json_build("tls-creds", "s", "", NULL), NULL, NULL);
	machine_qmp(k, "object-del", json_build("id", "s", object, NULL), NULL, NULL);
}
