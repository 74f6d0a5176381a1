/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/** tls_object_id() - the QOM id of a migration's credentials; free() it */
char *tls_object_id(const char *id);

/**
 * tls_object() - write the pre-shared key where QEMU can read it, and make object-add's arguments (QAPI tls-creds-psk)
 * @endpoint: "client" or "server"
 *
 * Return: 0, or negative errno with @err set.
 */
int tls_object(Keeper *k, const char *id, const char *psk, const char *endpoint, json_object **ret, Error **err);

/** tls_remove() - remove the key file and QEMU's object */
void tls_remove(Keeper *k, const char *id);
