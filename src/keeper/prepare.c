/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The source's Prepare: what the target has to know of the guest, and the proof that both hosts see the same disks. */
#include <inttypes.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/move.h"

#define MULTIFD_CHANNELS 2
#define MULTIFD_MEMORY ((uint64_t)256 << 20)
#define PROBES_MAX 65536 /* bytes of paths */

/* ---- disks ---- */

/*
 * Proof that both hosts see the same file: a small file beside the image, made here and read there; where we may not
 * make one, size and inode have to do. "ID SIZE INODE PROBE-TOKEN|-"
 */
static char *probe_path(const Move *m, const VmDisk *d)
{
	return xasprintf("%s.vmferry-%s", d->file, m->id);
}

static void add_proof(Move *m, const VmDisk *d, char ***proofs)
{
	_cleanup_free_ char *probe = probe_path(m, d), *token = text_random_id();
	struct stat st = {};
	bool made;

	if (stat(d->file, &st) < 0)
		return;
	made = S_ISREG(st.st_mode) && file_write(probe, token, strlen(token), 0600, false) == 0;
	strv_add(proofs, "%s %" PRIu64 " %" PRIu64 " %s", d->id, (uint64_t)st.st_size,
		 S_ISREG(st.st_mode) ? (uint64_t)st.st_ino : 0, made ? token : "-");
}

/* What is about to be made is written down first: a keeper after us, or after a reboot, removes it. */
static char **make_proofs(Move *m)
{
	Keeper *k = m->k;
	_cleanup_free_ char *note = state_path(k->name, "probes"), *paths = xstrdup("");
	char **proofs = NULL;

	for (size_t i = 0; i < k->def->n_disks; i++) {
		_cleanup_free_ char *before = paths, *probe = probe_path(m, &k->def->disks[i]);

		paths = xasprintf("%s%s\n", before, probe);
	}
	if (file_write(note, paths, strlen(paths), 0600, false) < 0)
		return NULL;
	for (size_t i = 0; i < k->def->n_disks; i++)
		if (k->def->disks[i].shared)
			add_proof(m, &k->def->disks[i], &proofs);
	return proofs;
}

void source_drop_probes(Keeper *k)
{
	_cleanup_free_ char *note = state_path(k->name, "probes"), *paths = NULL;
	char *save = NULL;

	if (file_read(note, PROBES_MAX, &paths, NULL) < 0)
		return;
	for (char *path = strtok_r(paths, "\n", &save); path; path = strtok_r(NULL, "\n", &save))
		(void)unlink(path);
	(void)unlink(note);
}

static int on_prepare_reply(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	Move *m = userdata;
	Error *err = NULL;
	int r;

	(void)error;
	if (m->state != MOVE_S_PREPARE)
		return 0;
	source_drop_probes(m->k);
	r = bus_error_read(reply, "Prepare", &err);
	if (r >= 0)
		r = cookie_read(reply, &prepare_reply, peer_features, &m->prepared, &err);
	if (r < 0) {
		move_fail(m, err);
		return 0;
	}
	for (size_t i = 0; m->prepared.warnings && m->prepared.warnings[i]; i++) {
		_cleanup_free_ char *clean = text_clean(m->prepared.warnings[i], 256);

		move_warn(m, "%s: %s", m->hello.host_name, clean);
	}
	journal_forget_peer(m->k->journal, m->hello.host_id);
	if (m->prepared.lease_holder)
		move_save(m); /* a keeper after this one needs to know it */
	if (m->opt.check_only) {
		judge_target_for_check(m);
		move_event(m, MOVE_EV_CANCEL);
	} else {
		move_event(m, MOVE_EV_PREPARE_OK);
	}
	return 0;
}

static void make_psk(Move *m)
{
	uint8_t key[32];

	if (getrandom(key, sizeof(key), 0) != (ssize_t)sizeof(key))
		abort();
	secret_free(m->psk);
	m->psk = text_hex(key, sizeof(key));
	explicit_bzero(key, sizeof(key));
}

/*
 * The one connection that there always is gets a TLS record for each page and one for its header, and the target's QEMU touches every
 * page, also one that is zero: shared memory takes room for it. Two more do neither (docs/figures.md). A guest smaller than MULTIFD_MEMORY
 * is through as soon without them, and each is one more that may fail while they are made, on which QEMU (10.0 at least) may hang in its
 * migration: the guest runs on, but cannot move any more.
 */
static uint64_t choose_channels(const Move *m)
{
	uint64_t n = m->opt.channels;

	if (!streq(m->transport, "tls") && !streq(m->transport, "tcp"))
		return 0;
	if (n == 0 && m->k->def->memory >= MULTIFD_MEMORY)
		n = MULTIFD_CHANNELS;
	return n > 1 ? n : 0;
}

static const char *run_state(const Move *m)
{
	if (m->facts & MOVE_FACT_OFFLINE)
		return "shutoff";
	return m->was_running ? "running" : "paused";
}

int do_send_prepare(Move *m)
{
	Keeper *k = m->k;
	_cleanup_free_ char *definition = vm_definition_text(k->def);
	_cleanup_strv_ char **proofs = NULL;
	bool direct = streq(m->transport, "tls") || streq(m->transport, "tcp");
	static char *const lease_feature[] = {(char *)"lease", NULL};
	bool lease = k->def->lease != LEASE_NONE;
	PrepareCookie cookie;
	int r;

	m->token = text_random_id();
	m->channels = choose_channels(m);
	if (streq(m->transport, "tls"))
		make_psk(m);
	if (k->def->n_disks > 0)
		proofs = make_proofs(m);
	cookie = (PrepareCookie){
		.id = m->id,
		.uuid = k->def->uuid,
		.definition = m->opt.to_definition ? m->opt.to_definition : definition,
		.run_state = (char *)(uintptr_t)run_state(m),
		.reason = (char *)(uintptr_t)m->was_reason,
		.transport = (char *)(uintptr_t)m->transport,
		.address = direct ? m->hello.address : NULL,
		.psk = m->psk,
		.token = m->token,
		.channels = m->channels,
		.conntrack = m->follow_wanted,
		.autostart = k->def->autostart,
		.disk_proofs = proofs,
		.qemu_version = k->qemu_version,
		.check_only = m->opt.check_only,
		.mandatory = lease ? (char **)(uintptr_t)lease_feature : NULL,
		.lease = lease ? (char *)(uintptr_t)lease_type_to_string(k->def->lease) : NULL,
		.lease_holder = k->lease ? (char *)(uintptr_t)lease_holder(k->lease) : NULL,
		.lease_generation = k->lease ? lease_generation(k->lease) : 0,
	};
	r = source_call(m, "Prepare", &prepare_cookie, &cookie, m->deadlines.prepare, on_prepare_reply);
	if (r >= 0 && m->follow_wanted)
		follow_start(m); /* while the target starts its QEMU: subscribing takes the kernel some milliseconds */
	return r;
}
