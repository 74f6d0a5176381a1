/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a VM that wants to come is let in: every check before anything is started. Looks, and changes nothing. */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/local.h"
#include "keeper/move.h"
#include "keeper/scope.h"

#define SHARED_HINT "shared = true needs storage that both hosts mount; is it mounted on the target?"

static int check_name_free(Keeper *k, const PrepareCookie *p, Error **err)
{
	_cleanup_free_ char *pin = state_path(k->name, "pin");
	_cleanup_(vm_definition_freep)
	VmDefinition *pinned = NULL;

	if (k->qemu || move_active(k->move) || keeper_owner(k)) {
		error_set(err, -EEXIST, "a VM named %s is on host %s already", k->name, k->conf->host_name);
		error_hint(err, "see vmferry list there");
		return -EEXIST;
	}
	if (access(pin, F_OK) == 0 && vm_definition_load(k->name, pin, &pinned, NULL) >= 0 && pinned->uuid &&
	    !streq(pinned->uuid, p->uuid)) {
		error_set(err, -EEXIST, "host %s knows another VM named %s (uuid %s)", k->conf->host_name, k->name,
			  pinned->uuid);
		error_hint(err, "rename one of them");
		return -EEXIST;
	}
	return 0;
}

static int check_transport(Keeper *k, const PrepareCookie *p, Error **err)
{
	static const char *const known[] = {"tls", "tcp", "ssh", "tunnel", "unix", NULL};
	bool direct = streq(p->transport, "tls") || streq(p->transport, "tcp");

	if (!text_is_id(p->token))
		return error_set(err, -EPROTO, "malformed token");
	if (streq(p->run_state, "shutoff") && streq(p->transport, "none"))
		return 0;
	if (!strv_contains((char *const *)(uintptr_t)known, p->transport))
		return error_set(err, -EINVAL, "transport '%.16s' is unknown here", p->transport);
	if (k->conf->transport != CHOICE_AUTO && !streq(transport_choice_to_string(k->conf->transport), p->transport)) {
		error_set(err, -EPERM, "host %s takes migrations by %s only", k->conf->host_name,
			  transport_choice_to_string(k->conf->transport));
		error_hint(err, "use --transport=%s", transport_choice_to_string(k->conf->transport));
		return -EPERM;
	}
	if (direct && !k->conf->migration_address)
		return error_set(err, -EINVAL, "host %s has no migration-address", k->conf->host_name);
	if (streq(p->transport, "tls") && (!p->psk || strlen(p->psk) != 64 || strspn(p->psk, "0123456789abcdef") != 64))
		return error_set(err, -EPROTO, "transport tls without its key");
	if (!streq(p->run_state, "running") && !streq(p->run_state, "paused"))
		return error_set(err, -EPROTO, "run state '%.16s' is unknown here", p->run_state);
	return 0;
}

/* One proof: "ID SIZE INODE TOKEN|-", made by the source's add_proof(). */
static int check_proof(const VmDefinition *def, const char *id, const char *proof, Error **err)
{
	_cleanup_free_ char *probe = NULL, *content = NULL;
	char disk[64], token[33];
	const VmDisk *d = NULL;
	uint64_t size, inode;
	struct stat st;
	bool same;

	if (sscanf(proof, "%63s %" SCNu64 " %" SCNu64 " %32s", disk, &size, &inode, token) != 4)
		return error_set(err, -EPROTO, "malformed proof of a disk");
	for (size_t i = 0; i < def->n_disks; i++)
		if (streq(def->disks[i].id, disk))
			d = &def->disks[i];
	if (!d)
		return error_set(err, -EPROTO, "a proof of a disk that the definition does not have");
	if (stat(d->file, &st) < 0) {
		error_set(err, -ENOENT, "disk %s: %s is not there: %m", d->id, d->file);
		error_hint(err, SHARED_HINT);
		return -ENOENT;
	}
	if (streq(token, "-")) {
		same = (uint64_t)st.st_size == size && (!inode || inode == (uint64_t)st.st_ino);
	} else {
		probe = xasprintf("%s.vmferry-%s", d->file, id);
		same = file_read(probe, 64, &content, NULL) >= 0 && streq(content, token);
	}
	if (same)
		return 0;
	error_set(err, -ESTALE, "disk %s: %s here is not the file the source uses", d->id, d->file);
	error_hint(err, SHARED_HINT);
	return -ESTALE;
}

/* Of each disk that both hosts are to see. */
static bool has_proof(const PrepareCookie *p, const char *id)
{
	size_t len = strlen(id);

	for (size_t i = 0; p->disk_proofs && p->disk_proofs[i]; i++)
		if (startswith(p->disk_proofs[i], id) && p->disk_proofs[i][len] == ' ')
			return true;
	return false;
}

static int check_disks(const VmDefinition *def, const PrepareCookie *p, Error **err)
{
	for (size_t i = 0; p->disk_proofs && p->disk_proofs[i]; i++) {
		int r = check_proof(def, p->id, p->disk_proofs[i], err);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < def->n_disks; i++)
		if (!def->disks[i].shared && !def->disks[i].readonly) {
			error_set(err, -ENOTSUP, "disk %s is not shared between the hosts", def->disks[i].id);
			error_hint(err, "say shared = true in its definition, if it is");
			return -ENOTSUP;
		}
	return 0;
}

static int check_proved(const VmDefinition *def, const PrepareCookie *p, Error **err)
{
	for (size_t i = 0; i < def->n_disks; i++)
		if (def->disks[i].shared && !has_proof(p, def->disks[i].id))
			return error_set(err, -EPROTO, "disk %s: the source sends no proof of what it uses",
					 def->disks[i].id);
	return 0;
}

/* Only a moment's look: it is taken when QEMU starts. */
static int check_port(Keeper *k, const VmDefinition *def, Error **err)
{
	int fd, r = viewers_listen(k, def, &fd, err);

	fd_close(fd);
	return r;
}

/* Last of all, and before anything is begun. A check, and a VM that is off, take none. */
static int check_memory(const PrepareCookie *p, const VmDefinition *def, Room **ret, Error **err)
{
	HostMemory need = host_memory_of(def, scope_slice());
	bool takes = !p->check_only && !streq(p->run_state, "shutoff");

	return host_check_memory(&need, takes ? ret : NULL, err);
}

static int check_definition(PeerConnection *c, const PrepareCookie *p, VmDefinition **ret, Room **ret_room, Error **err)
{
	Keeper *k = c->keeper;
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL;
	int r;

	r = vm_definition_parse(k->name, p->definition, "definition from the source", &def, err);
	if (r >= 0 && (!def->uuid || !streq(def->uuid, p->uuid)))
		r = error_set(err, -EPROTO, "the definition's uuid is not the migration's");
	for (size_t i = 0; r >= 0 && i < def->n_nics; i++)
		if (!def->nics[i].mac)
			r = error_set(err, -EPROTO, "the definition is not pinned: nic %s has no MAC", def->nics[i].id);
	if (r >= 0 && k->conf->binary) {
		free(def->binary);
		def->binary = xstrdup(k->conf->binary);
	}
	if (r >= 0)
		r = host_policy_check(k->conf, c->host_id, c->host_name, def, err);
	if (r >= 0)
		r = local_conflict(def, err);
	if (r >= 0)
		r = check_disks(def, p, err);
	if (r >= 0)
		r = keeper_lease_admit(k, p, def, err);
	if (r >= 0)
		r = host_check_resources(k->conf, def, err);
	if (r >= 0)
		r = check_proved(def, p, err);
	if (r >= 0)
		r = check_port(k, def, err);
	if (r >= 0)
		r = check_memory(p, def, ret_room, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(def);
	return 0;
}

int target_admit(PeerConnection *c, const PrepareCookie *p, VmDefinition **ret, Room **ret_room, Error **err)
{
	Keeper *k = c->keeper;
	int r;

	if (!text_is_id(p->id) || !streq(p->id, c->preamble.id))
		return error_set(err, -EPROTO, "Prepare names another migration than the stream's first line");
	if (journal_find(k->journal, p->id))
		return error_set(err, -EEXIST, "this migration is over already");
	r = check_name_free(k, p, err);
	if (r >= 0)
		r = check_transport(k, p, err);
	return r < 0 ? r : check_definition(c, p, ret, ret_room, err);
}
