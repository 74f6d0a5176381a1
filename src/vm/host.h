/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/error.h"
#include "vm/definition.h"
#include "vm/room.h"

/* host.conf (vmferry-host.conf(5)): this host as a whole, and what it takes from others. */

typedef enum TransportChoice {
	CHOICE_AUTO,
	CHOICE_TLS,
	CHOICE_TCP,
	CHOICE_SSH,
	CHOICE_TUNNEL,
	CHOICE_UNIX,
	_CHOICE_MAX
} TransportChoice;
const char *transport_choice_to_string(TransportChoice v);
int transport_choice_from_string(const char *s);

/* Deadlines in microseconds. */
typedef struct HostDeadlines {
	uint64_t connect;     /* ssh or exec until Hello is answered */
	uint64_t prepare;     /* Prepare's answer */
	uint64_t no_progress; /* Perform without a byte more */
	uint64_t switchover;  /* STOP until the source's QEMU is in postmigrate */
	uint64_t finish;      /* Finish's answer, before we call it "in doubt" */
	uint64_t gate;	      /* conntrack's share of the pause, from STOP: 200 ms */
	uint64_t link;	      /* a peer silent for so long is a cut link: 10 s */
} HostDeadlines;

/* All members of HostDeadlines, by number and by name: "connect", "no-progress" ... */
#define N_HOST_DEADLINES (sizeof(HostDeadlines) / sizeof(uint64_t))
static inline uint64_t *host_deadline(HostDeadlines *deadlines, size_t i)
{
	return (uint64_t *)deadlines + i;
}
extern const char *const host_deadline_names[N_HOST_DEADLINES];

typedef struct HostReceive {
	char **peers;	      /* host ids or names that may send VMs; NULL: any that can log in */
	char **prefixes;      /* guest addresses must lie in one of these ("10.0.0.0/24"); NULL: any */
	char **bridges;	      /* NICs may be on these; NULL: any that exists */
	char **disk_paths;    /* disks, kernel, initrd, firmware, lease and SPICE certificate must lie below one of these; NULL: any */
	char **binaries;      /* QEMU programs a definition may name; NULL: only our own default */
	bool qemu_args;	      /* whether a definition that arrives may carry qemu-args */
	uint32_t marks_mask;  /* bits of ct mark that are taken over; 0: none */
	char **helpers;	      /* conntrack helpers whose connections and expectations are taken over; "*": any; NULL: none */
	bool any_address;     /* conntrack entries of a VM without addresses are taken too, by its mark or zone alone */
	uint64_t max_entries; /* of a VM's conntrack table */
	uint64_t max_memory;  /* of one VM, bytes; 0: what is free */
} HostReceive;

typedef struct HostConf {
	char *host_id;	 /* 32 hex digits by default (application-specific machine id), any [A-Za-z0-9_.-]{1,64} */
	char *host_name; /* for people: gethostname() unless set */
	char *migration_address;	 /* where other hosts' QEMU reach ours, NULL: not given */
	unsigned int port_min, port_max; /* migration-ports, default 49152-49215 */
	TransportChoice transport;
	char *remote_command; /* default "vmferry receive" */
	char *qemu_user;      /* who QEMU runs as, default "nobody" */
	char *binary;	      /* this host's QEMU: decides over the definition of a VM that arrives; NULL: as defined */
	HostReceive receive;
	HostDeadlines deadlines;
} HostConf;

/** host_conf_parse() - as vm_definition_parse(); an empty text gives the defaults */
int host_conf_parse(const char *text, const char *origin, HostConf **ret, Error **err);
/** host_conf_load() - CONFIG_DIR/host.conf; a missing file gives the defaults */
int host_conf_load(HostConf **ret, Error **err);
void host_conf_free(HostConf *conf);
DEFINE_CLEANUP(HostConf *, host_conf_free)

/**
 * host_policy_check() - whether this host takes a VM that arrives (`receive {}`), first thing that does not fit
 * @peer_id, @peer_name: who sends it
 *
 * To be called when `binary` has been decided. Pure: looks at no file but for the real paths of those it names. Return:
 * 0, or -EPERM with @err and hint set.
 */
int host_policy_check(const HostConf *conf, const char *peer_id, const char *peer_name, const VmDefinition *def,
		      Error **err);

/**
 * host_path_allowed() - whether an open file lies below one of @dirs, `receive { disk-paths }`, wherever the path that it was
 * opened by has led since host_policy_check(). proc(5), fd
 * @dirs: NULL: any will do
 */
bool host_path_allowed(char *const *dirs, int fd);

/**
 * host_check_resources() - whether this host has what the definition needs: bridges, disk files (openable, right kind),
 * kernel, initrd, firmware, the QEMU program
 *
 * Return: 0, or negative errno with @err and hint set.
 */
int host_check_resources(const HostConf *conf, const VmDefinition *def, Error **err);

#define HOST_MEMORY_OF_A_QEMU ((uint64_t)48 << 20) /* what one takes beside the guest's memory, measured: 36 MiB */

/**
 * struct HostMemory - memory that is about to be used
 * @name:   the VM that is to use it
 * @bytes:  in ordinary pages
 * @huge:   in huge pages; they need no promise, the kernel has them reserved when QEMU's file is made
 * @cgroup: the control group that it will count for, "/machine.slice"; NULL: this process's
 */
typedef struct HostMemory {
	const char *name;
	uint64_t bytes, huge;
	const char *cgroup;
} HostMemory;

/** host_memory_of() - what a QEMU with all of @def's memory takes; @def and @cgroup are borrowed */
HostMemory host_memory_of(const VmDefinition *def, const char *cgroup);

/**
 * host_check_memory() - whether there is memory: MemAvailable and what the control groups leave, less what is promised to
 * others (room.h); free huge pages
 * @ret: it is promised to @need->name, in the same step, so that no two are told of the same memory; free the promise
 *       when it is in use. NULL: only looked for
 *
 * Return: 0, or negative errno with @err and hint set; -ENOMEM; -EAGAIN: there is memory, but it is promised to others.
 */
int host_check_memory(const HostMemory *need, Room **ret, Error **err);
