/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "definition.h"

#include <errno.h>
#include <inttypes.h>

#include "basic/text.h"
#include "schema.h"

/* The schema of a definition: all that is said about a key is said here (and in vmferry.vm(5)). */

#define MIB (1024ULL * 1024)
#define GRAPHICS_PORT_MIN 5900 /* a definition may come from another host, and must not take the place of a service */

static bool cache_differs(const void *a, const void *b);
static bool accel_differs(const void *a, const void *b);

static const ConfKey disk_keys[] = {
	{"file", CONF_TEXT, CONF_REQUIRED | CONF_UNIQUE, CONF_FIELD(VmDisk, file), .check = conf_check_path},
	{"format", CONF_WORD, CONF_REQUIRED, CONF_FIELD(VmDisk, format), .words = &disk_format_table},
	{"cache", CONF_WORD, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDisk, cache), .words = &disk_cache_table, .fallback = "none",
	 .differs = cache_differs},
	{"bus", CONF_WORD, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDisk, bus), .words = &disk_bus_table, .fallback = "virtio"},
	{"shared", CONF_BOOL, 0, CONF_FIELD(VmDisk, shared), .fallback = "false"},
	{"readonly", CONF_BOOL, CONF_GUEST, CONF_FIELD(VmDisk, readonly), .fallback = "false"},
	{"serial", CONF_TEXT, CONF_GUEST, CONF_FIELD(VmDisk, serial), .check = conf_check_serial},
};

static const ConfSection disk_section = {
	.name = "disk",
	.keys = disk_keys,
	.n_keys = ARRAY_SIZE(disk_keys),
	.max = VM_DISKS_MAX,
	.titled = true,
	.element_size = sizeof(VmDisk),
	.title_offset = offsetof(VmDisk, id),
	.array_offset = offsetof(VmDefinition, disks),
	.count_offset = offsetof(VmDefinition, n_disks),
};

static const ConfKey nic_keys[] = {
	{"bridge", CONF_TEXT, CONF_REQUIRED, CONF_FIELD(VmNic, bridge), .check = conf_check_bridge},
	{"vlan", CONF_NUMBER, 0, CONF_FIELD(VmNic, vlan), .max = 4094, .fallback = "0"},
	{"model", CONF_TEXT, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmNic, model), .check = conf_check_nic_model,
	 .fallback = "virtio-net-pci"},
	{"mac", CONF_TEXT, CONF_GUEST | CONF_UNIQUE, CONF_FIELD(VmNic, mac), .check = conf_check_mac},
	{"addresses", CONF_LIST, CONF_UNIQUE, CONF_FIELD(VmNic, addresses), .check = conf_check_address},
};

static const ConfSection nic_section = {
	.name = "nic",
	.keys = nic_keys,
	.n_keys = ARRAY_SIZE(nic_keys),
	.max = VM_NICS_MAX,
	.titled = true,
	.element_size = sizeof(VmNic),
	.title_offset = offsetof(VmNic, id),
	.array_offset = offsetof(VmDefinition, nics),
	.count_offset = offsetof(VmDefinition, n_nics),
};

static const ConfKey graphics_keys[] = {
	{"listen", CONF_TEXT, 0, CONF_FIELD(VmDefinition, graphics_listen), .check = conf_check_listen,
	 .fallback = "127.0.0.1"},
	{"port", CONF_NUMBER, 0, CONF_FIELD(VmDefinition, graphics_port), .max = UINT16_MAX, .fallback = "0"},
	{"tls-directory", CONF_TEXT, 0, CONF_FIELD(VmDefinition, graphics_tls), .check = conf_check_path},
};

static const ConfSection graphics_section = {
	.name = "graphics",
	.keys = graphics_keys,
	.n_keys = ARRAY_SIZE(graphics_keys),
	.max = 1,
	.titled = true,
	.title_words = &graphics_type_table,
	.title_offset = offsetof(VmDefinition, graphics),
};

static const ConfKey conntrack_keys[] = {
	{"mark", CONF_TEXT, 0, CONF_FIELD(VmDefinition, conntrack_mark), .check = conf_check_mark},
	{"zone", CONF_NUMBER, 0, CONF_FIELD(VmDefinition, conntrack_zone), .max = UINT16_MAX, .fallback = "0"},
};

static const ConfSection conntrack_section = {
	.name = "conntrack",
	.keys = conntrack_keys,
	.n_keys = ARRAY_SIZE(conntrack_keys),
	.max = 1,
};

static const ConfKey lease_keys[] = {
	{"path", CONF_TEXT, CONF_REQUIRED, CONF_FIELD(VmDefinition, lease_path), .check = conf_check_path},
	{"on-lost", CONF_WORD, 0, CONF_FIELD(VmDefinition, lease_on_lost), .words = &lease_on_lost_table,
	 .fallback = "kill"},
	{"lockspace", CONF_TEXT, 0, CONF_FIELD(VmDefinition, lease_lockspace),
	 .check = conf_check_lease_name},
	{"resource", CONF_TEXT, 0, CONF_FIELD(VmDefinition, lease_resource),
	 .check = conf_check_lease_name},
	{"offset", CONF_SIZE, 0, CONF_FIELD(VmDefinition, lease_offset), .max = MIB * MIB * MIB, .fallback = "0"},
};

static const ConfSection lease_section = {
	.name = "lease",
	.keys = lease_keys,
	.n_keys = ARRAY_SIZE(lease_keys),
	.max = 1,
	.titled = true,
	.title_words = &lease_type_table,
	.title_offset = offsetof(VmDefinition, lease),
};

static const ConfKey definition_keys[] = {
	{"uuid", CONF_TEXT, CONF_GUEST, CONF_FIELD(VmDefinition, uuid), .check = conf_check_uuid},
	{"machine", CONF_TEXT, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDefinition, machine), .check = conf_check_machine,
	 .fallback = "q35"},
	{"cpu", CONF_TEXT, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDefinition, cpu), .check = conf_check_cpu, .fallback = "max"},
	{"cpus", CONF_NUMBER, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDefinition, cpus), .min = 1, .max = 1024, .fallback = "1"},
	{"memory", CONF_SIZE, CONF_GUEST | CONF_REQUIRED, CONF_FIELD(VmDefinition, memory), .min = 16 * MIB,
	 .max = 64 * MIB * MIB, .step = MIB},
	{"memory-backing", CONF_WORD, 0, CONF_FIELD(VmDefinition, memory_backing), .words = &memory_backing_table,
	 .fallback = "shared"},
	{"accel", CONF_WORD, CONF_GUEST | CONF_PINNED, CONF_FIELD(VmDefinition, accel), .words = &accel_table, .fallback = "auto",
	 .differs = accel_differs},
	{"binary", CONF_TEXT, 0, CONF_FIELD(VmDefinition, binary), .check = conf_check_binary,
	 .fallback = VM_BINARY_DEFAULT},
	{"disk", CONF_SECTION, .section = &disk_section},
	{"nic", CONF_SECTION, .section = &nic_section},
	{"kernel", CONF_TEXT, CONF_PRESENCE, CONF_FIELD(VmDefinition, kernel), .check = conf_check_path},
	{"initrd", CONF_TEXT, CONF_PRESENCE, CONF_FIELD(VmDefinition, initrd), .check = conf_check_path},
	{"append", CONF_TEXT, CONF_GUEST, CONF_FIELD(VmDefinition, append)},
	{"firmware", CONF_TEXT, CONF_PRESENCE, CONF_FIELD(VmDefinition, firmware), .check = conf_check_path},
	{"serial", CONF_WORD, CONF_PRESENCE | CONF_PINNED, CONF_FIELD(VmDefinition, serial), .words = &serial_table,
	 .fallback = "log", .absent = SERIAL_NONE},
	{"agent", CONF_BOOL, CONF_GUEST, CONF_FIELD(VmDefinition, agent), .fallback = "false"},
	{"graphics", CONF_SECTION, .section = &graphics_section},
	{"conntrack", CONF_SECTION, .section = &conntrack_section},
	{"lease", CONF_SECTION, .section = &lease_section},
	{"autostart", CONF_BOOL, 0, CONF_FIELD(VmDefinition, autostart), .fallback = "false"},
	{"qemu-args", CONF_LIST, CONF_GUEST, CONF_FIELD(VmDefinition, qemu_args)},
};
static_assert(ARRAY_SIZE(definition_keys) <= CONF_KEYS_MAX, "ConfLines has room for every key");

const ConfSection definition_schema = {
	.name = "the definition",
	.keys = definition_keys,
	.n_keys = ARRAY_SIZE(definition_keys),
	.max = 1,
};

/* The guest sees whether there is a write cache to flush, not how the host keeps it. */
static bool cache_differs(const void *a, const void *b)
{
	return disk_cache_writeback(((const VmDisk *)a)->cache) != disk_cache_writeback(((const VmDisk *)b)->cache);
}

/* "auto" may come out as either: what it became is checked with the running QEMU, not here. */
static bool accel_differs(const void *a, const void *b)
{
	Accel x = ((const VmDefinition *)a)->accel, y = ((const VmDefinition *)b)->accel;

	return x != y && x != ACCEL_AUTO && y != ACCEL_AUTO;
}

bool disk_cache_writeback(DiskCache cache)
{
	return cache != CACHE_DIRECTSYNC && cache != CACHE_WRITETHROUGH;
}

/* How many PCI slots NICs and virtio disks take. */
static size_t pci_devices(const VmDefinition *def)
{
	size_t n = def->n_nics;

	for (size_t i = 0; i < def->n_disks; i++)
		n += def->disks[i].bus == BUS_VIRTIO;
	return n;
}

static int check_lease(const VmDefinition *def, const ConfLines *lines, Error **err)
{
	if (def->lease == LEASE_SANLOCK && !def->lease_lockspace) {
		conf_fail(lines, "lease", err, "lease sanlock has no \"lockspace\"");
		error_hint(err, "add lockspace = the name under which this host has joined it: sanlock client status");
		return -EINVAL;
	}
	if (def->lease == LEASE_SANLOCK && def->lease_on_lost != LEASE_LOST_KILL)
		return conf_fail(lines, "lease", err, "lease sanlock: on-lost can only be \"kill\": sanlock does it");
	if (def->lease == LEASE_FILE && (def->lease_lockspace || def->lease_resource || def->lease_offset))
		return conf_fail(lines, "lease", err, "lease file has no lockspace, resource and offset: sanlock has");
	return 0;
}

/* One key against another. */
static int check_together(const VmDefinition *def, const ConfLines *lines, Error **err)
{
	if (def->memory_backing == MEMORY_HUGE && def->memory % (2 * MIB)) {
		conf_fail(lines, "memory", err, "memory: %" PRIu64 " MiB do not fill huge pages", def->memory >> 20);
		error_hint(err, "a multiple of 2M, or memory-backing = \"shared\"");
		return -EINVAL;
	}
	if (!def->kernel && (def->initrd || def->append)) {
		const char *key = def->initrd ? "initrd" : "append";

		conf_fail(lines, key, err, "%s: there is no kernel to give it to", key);
		error_hint(err, "add kernel = ..., or remove it");
		return -EINVAL;
	}
	if (pci_devices(def) > VM_PCI_MAX) {
		conf_fail(lines, "disk", err, "%zu NICs and virtio disks, and room for %d", pci_devices(def),
			  VM_PCI_MAX);
		error_hint(err, "put disks on bus = \"scsi\": they share one slot");
		return -EINVAL;
	}
	if (def->graphics_port && def->graphics_port < GRAPHICS_PORT_MIN) {
		conf_fail(lines, "graphics", err, "graphics: port: %u is too small", def->graphics_port);
		error_hint(err, "from %d on; without it, one that is free", GRAPHICS_PORT_MIN);
		return -EINVAL;
	}
	if (def->graphics_tls && def->graphics != GRAPHICS_SPICE)
		return conf_fail(lines, "graphics", err, "graphics vnc has no tls-directory: spice has");
	return check_lease(def, lines, err);
}

int vm_definition_parse(const char *name, const char *text, const char *origin, VmDefinition **ret, Error **err)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = xcalloc(1, sizeof(*def));
	ConfLines lines;
	int r;

	if (!vm_name_valid(name)) {
		_cleanup_free_ char *clean = text_clean(name, 60);

		error_set(err, -EINVAL, "%s:1: \"%s\" is not a name for a VM", origin, clean);
		error_hint(err, "a letter or digit, then letters, digits, _, . and -, 48 at most");
		return -EINVAL;
	}
	def->name = xstrdup(name);
	r = conf_parse(&definition_schema, text, origin, def, &lines, err);
	if (r == 0)
		r = check_together(def, &lines, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(def);
	return 0;
}

int vm_definition_load(const char *name, const char *path, VmDefinition **ret, Error **err)
{
	_cleanup_free_ char *text = NULL;
	int r = conf_load(path, &text, err);

	return r < 0 ? r : vm_definition_parse(name, text, path, ret, err);
}

char *vm_definition_text(const VmDefinition *def)
{
	return conf_text(&definition_schema, def);
}

VmDefinition *vm_definition_copy(const VmDefinition *def)
{
	VmDefinition *copy = xcalloc(1, sizeof(*copy));

	copy->name = xstrdup(def->name);
	conf_copy(&definition_schema, def, copy);
	return copy;
}

void vm_definition_free(VmDefinition *def)
{
	if (!def)
		return;
	conf_clear(&definition_schema, def);
	free(def->name);
	free(def);
}
