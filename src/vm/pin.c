/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <sys/random.h>
#include <systemd/sd-id128.h>

#include "basic/text.h"
#include "definition.h"

static bool has_mac(const VmDefinition *def, const char *mac)
{
	for (size_t i = 0; i < def->n_nics; i++)
		if (streq_null(def->nics[i].mac, mac))
			return true;
	return false;
}

/* The prefix is the one QEMU and others use for virtual NICs. */
static char *random_mac(const VmDefinition *def)
{
	for (;;) {
		_cleanup_free_ char *mac = NULL;
		unsigned char b[3];

		if (getrandom(b, sizeof(b), 0) != (ssize_t)sizeof(b))
			abort();
		mac = xasprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2]);
		if (!has_mac(def, mac))
			return TAKE_PTR(mac);
	}
}

static char *random_uuid(void)
{
	char text[SD_ID128_UUID_STRING_MAX];
	sd_id128_t id;

	if (sd_id128_randomize(&id) < 0)
		abort();
	return xstrdup(sd_id128_to_uuid_string(id, text));
}

static const char *pinned_mac(const VmDefinition *pinned, const char *id)
{
	for (size_t i = 0; pinned && i < pinned->n_nics; i++)
		if (streq(pinned->nics[i].id, id))
			return pinned->nics[i].mac;
	return NULL;
}

/* "q35" stands for every "pc-q35-...", "pc" for every "pc-i440fx-...". */
static void pin_machine(VmDefinition *def, const VmDefinition *pinned)
{
	const char *family = streq(def->machine, "q35") ? "pc-q35-" : streq(def->machine, "pc") ? "pc-i440fx-" : NULL;

	if (!family || !startswith(pinned->machine, family))
		return;
	free(def->machine);
	def->machine = xstrdup(pinned->machine);
}

void vm_definition_pin(VmDefinition *def, const VmDefinition *pinned)
{
	if (pinned)
		pin_machine(def, pinned);
	if (!def->uuid)
		def->uuid = pinned && pinned->uuid ? xstrdup(pinned->uuid) : random_uuid();
	/* Those pinned before go first, so that no random one can take theirs. */
	for (size_t i = 0; i < def->n_nics; i++) {
		const char *mac = def->nics[i].mac ? NULL : pinned_mac(pinned, def->nics[i].id);

		if (mac && !has_mac(def, mac))
			def->nics[i].mac = xstrdup(mac);
	}
	for (size_t i = 0; i < def->n_nics; i++)
		if (!def->nics[i].mac)
			def->nics[i].mac = random_mac(def);
}
