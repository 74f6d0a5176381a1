/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a VM that wants to come is let in: every check before anything is started. Looks, and changes nothing. */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/fault.h"
#include "keeper/local.h"
#include "keeper/move.h"
#include "keeper/scope.h"
#include "keeper/worker.h"

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

static int read_definition(PeerConnection *c, const PrepareCookie *p, VmDefinition **ret, Error **err)
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
	if (r < 0)
		return r;
	if (k->conf->binary) {
		free(def->binary);
		def->binary = xstrdup(k->conf->binary);
	}
	*ret = TAKE_PTR(def);
	return 0;
}

static int check_definition(PeerConnection *c, const PrepareCookie *p, VmDefinition **ret, Room **ret_room, Error **err)
{
	Keeper *k = c->keeper;
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL;
	int r = read_definition(c, p, &def, err);

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

/* ---- does the storage answer? ---- */

struct Admission {
	PeerConnection *c;
	PrepareCookie p;
	VmDefinition *def;
	sd_bus_message *message;
	Worker *worker;
	size_t answered; /* of the looks */
};

static int look_at_disks(const Admission *a)
{
	Keeper *k = a->c->keeper;
	int r = host_policy_check(k->conf, a->c->host_id, a->c->host_name, a->def, NULL);

	if (r >= 0)
		r = check_disks(a->def, &a->p, NULL);
	return r < 0 ? r : host_check_resources(k->conf, a->def, NULL);
}

static int look_at_lease(const Admission *a)
{
	return keeper_lease_admit(a->c->keeper, &a->p, a->def, NULL);
}

/* What target_admit() will find is nothing new; only whether it finds it in time. */
static const struct {
	int (*look)(const Admission *a);
	const char *what;
} looks[] = {{look_at_disks, "the disks' storage"}, {look_at_lease, "the lease's storage"}};

/* In a worker. One that is refused has been looked at; what comes after it is not. */
static int look(const char *request, WorkerAnswer *answer, void *userdata)
{
	static bool refused;
	size_t i;

	(void)answer;
	memcpy(&i, request, sizeof(i));
	fault_storage(looks[i].what);
	refused = refused || looks[i].look(userdata) < 0;
	return 0;
}

Admission *target_admission_free(Admission *a)
{
	if (!a)
		return NULL;
	worker_free(a->worker);
	cookie_clear(&prepare_cookie, &a->p);
	vm_definition_free(a->def);
	sd_bus_message_unref(a->message);
	free(a);
	return NULL;
}

static void on_looked(WorkerAnswer *answer, void *userdata)
{
	Admission *a = userdata;
	Keeper *k = a->c->keeper;
	_cleanup_error_ Error *err = NULL;

	if (answer->r == -ETIMEDOUT) {
		const char *path = a->answered > 0 || a->def->n_disks == 0 ? a->def->lease_path : a->def->disks[0].file;

		error_set(&err, -ETIMEDOUT, "%s does not answer on %s (%s)", looks[a->answered].what,
			  k->conf->host_name, path);
		error_hint(&err, "is it mounted there, and is its server there?");
	} else if (++a->answered < ARRAY_SIZE(looks)) {
		return;
	}
	k->admission = NULL;
	target_looked(a->c, &a->p, a->message, err);
	target_admission_free(a);
}

int target_look(PeerConnection *c, PrepareCookie *p, sd_bus_message *message, Error **err)
{
	Keeper *k = c->keeper;
	Admission *a = xcalloc(1, sizeof(*a));
	WorkerJob job = {.serve = look, .userdata = a, .keep_fd = -1};
	int r;

	a->c = c;
	a->p = *p;
	a->message = sd_bus_message_ref(message);
	r = k->admission ? error_set(err, -EBUSY, "another migration of %s is being looked at", k->name)
			 : read_definition(c, p, &a->def, err);
	if (r >= 0 && a->def->n_disks == 0 && a->def->lease == LEASE_NONE) {
		r = 0;
	} else if (r >= 0) {
		r = worker_new(k->event, &job, &a->worker, err);
		for (size_t i = 0; r >= 0 && i < ARRAY_SIZE(looks); i++)
			r = worker_ask(a->worker, &i, sizeof(i), k->conf->deadlines.prepare / 2, on_looked, a);
		if (r < 0)
			error_set(err, r, "cannot look at the storage: %s", strerror(-r));
	}
	if (r >= 0 && a->worker) {
		*p = (PrepareCookie){};
		k->admission = a;
		return 1;
	}
	a->p = (PrepareCookie){};
	target_admission_free(a);
	return r;
}

void target_look_drop(PeerConnection *c)
{
	Keeper *k = c->keeper;

	if (k->admission && k->admission->c == c)
		k->admission = target_admission_free(k->admission);
}
