/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/tls.h"

#include <errno.h>
#include <pwd.h>
#include <unistd.h>

#include "basic/cpu.h"

/* RFC 7919, ffdhe2048. A server's QEMU without this file makes a prime of its own, which takes it up to seconds. */
static const char dh_params[] = "-----BEGIN DH PARAMETERS-----\n"
				"MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz\n"
				"+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a\n"
				"87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7\n"
				"YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi\n"
				"7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD\n"
				"ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==\n"
				"-----END DH PARAMETERS-----\n";

/*
 * In TLS 1.3 a pre-shared key of 256 bits leaves the ciphers with SHA-256, of which GnuTLS's own order has ChaCha20
 * first. The client's order counts. The keyword is GnuTLS's, so what its system-wide configuration forbids stays
 * forbidden.
 */
static const char aes_first[] = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305";

char *tls_object_id(const char *id)
{
	return xasprintf("tls-%.16s", id);
}

static char *key_dir(Keeper *k, const char *id)
{
	return xasprintf("%s/tls-%.16s", k->qemu->dir, id);
}

static int write_for(const struct passwd *user, const char *dir, const char *name, const char *text)
{
	_cleanup_free_ char *path = xasprintf("%s/%s", dir, name);
	int r = file_write(path, text, strlen(text), 0400, false);

	return r == 0 && lchown(path, user->pw_uid, user->pw_gid) < 0 ? -errno : r;
}

int tls_object(Keeper *k, const char *id, const char *psk, const char *endpoint, json_object **ret, Error **err)
{
	_cleanup_free_ char *dir = key_dir(k, id), *object = tls_object_id(id);
	_cleanup_free_ char *text = xasprintf("qemu:%s\n", psk);
	bool client = streq(endpoint, "client");
	const struct passwd *user = getpwnam(k->conf->qemu_user);
	int r;

	if (!user)
		return error_set(err, -ENOENT, "user %s does not exist", k->conf->qemu_user);
	/* It stays ours: QEMU knows its name, may read what is in it, and can put nothing there for us to stumble over. */
	r = dir_make(dir, 0711);
	if (r == 0)
		r = write_for(user, dir, "keys.psk", text);
	if (r == 0 && !client)
		r = write_for(user, dir, "dh-params.pem", dh_params);
	explicit_bzero(text, strlen(text));
	if (r < 0)
		return error_set(err, r, "cannot write the migration's key to %s: %s", dir, strerror(-r));
	*ret = json_build("qom-type", "s", "tls-creds-psk", "id", "s", object, "dir", "s", dir, "endpoint", "s",
			  endpoint, "username", "s", client ? "qemu" : NULL, "priority", "s",
			  client && cpu_has_aes() ? aes_first : NULL, NULL);
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
