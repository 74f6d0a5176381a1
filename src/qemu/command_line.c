/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "command_line.h"

#include <inttypes.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "basic/json.h"
#include "basic/text.h"

#define SHARED_ALIGN ((uint64_t)2 << 20) /* a transparent huge page on x86 */

/*
 * QEMU's words for a definition. Everything a guest can see has a fixed place: ids, PCI addresses and order follow from
 * the definition alone, so that both ends of a migration make the same machine.
 *
 * Slots of the root bus (pcie.0 or pci.0), function 0 each:
 *
 *   0x00, 0x01, 0x1f   the chipset's own (host bridge; PIIX of "pc"; ICH9 of "q35")
 *   up to 0x06         left to qemu-args: QEMU makes plain -device options before those in JSON, in the lowest free
 * slots 0x07               virtio-serial, if there is a channel for an agent; else left to qemu-args as well 0x08 VGA,
 * if there are graphics 0x09               SCSI controller, if a disk is on it 0x0a upward        NICs, in order 0x1e
 * downward      virtio disks, in order
 *
 * The two grow towards each other, so that a NIC more or less moves no disk. Ids of ours contain a dot, which users' do
 * not.
 */
enum {
	SLOT_SERIAL = 0x07,
	SLOT_VGA = 0x08,
	SLOT_SCSI = 0x09,
	SLOT_FIRST = 0x0a,
	SLOT_LAST = 0x1e,
};
static_assert(SLOT_LAST - SLOT_FIRST + 1 == VM_PCI_MAX, "definitions that fit are those we have slots for");

typedef struct Words {
	char **argv;
	const VmDefinition *def;
	const char *bus;
} Words;

static void add(Words *w, const char *option)
{
	strv_push(&w->argv, xstrdup(option));
}

static void _printf_(3, 4) add_option(Words *w, const char *option, const char *fmt, ...)
{
	char *value;
	va_list ap;

	va_start(ap, fmt);
	value = xvasprintf(fmt, ap);
	va_end(ap);
	add(w, option);
	strv_push(&w->argv, value);
}

/* Takes the object. */
static void add_json(Words *w, const char *option, json_object *o)
{
	add_option(w, option, "%s", json_text(o));
	json_object_put(o);
}

/* Takes the device. */
static void add_pci_device(Words *w, json_object *device, unsigned int slot)
{
	_cleanup_free_ char *addr = xasprintf("0x%x", slot);

	json_extend(device, "bus", "s", w->bus, "addr", "s", addr, NULL);
	add_json(w, "-device", device);
}

static void add_accel(Words *w)
{
	/* QEMU tries one after the other. */
	if (w->def->accel != ACCEL_TCG)
		add_option(w, "-accel", "kvm");
	if (w->def->accel != ACCEL_KVM)
		add_option(w, "-accel", "tcg");
}

static void add_memory(Words *w)
{
	const VmDefinition *def = w->def;
	bool ours = def->memory_backing != MEMORY_PRIVATE;
	_cleanup_free_ char *path = xasprintf("/proc/self/fd/%d", QEMU_FD_MEMORY);
	json_object *o = json_build("qom-type", "s", ours ? "memory-backend-file" : "memory-backend-ram", "id", "s",
				    "pc.ram", "size", "u", def->memory, NULL);

	if (ours)
		json_extend(o, "mem-path", "s", path, "share", "b", 1, NULL);
	if (def->memory_backing == MEMORY_SHARED)
		json_extend(o, "align", "u", SHARED_ALIGN, NULL); /* else no huge page fits */
	add_json(w, "-object", o);
	add_option(w, "-m", "%" PRIu64 "M", def->memory >> 20);
}

static void add_machine(Words *w)
{
	const VmDefinition *def = w->def;

	add_option(w, "-name", "guest=%s,process=qemu:%s,debug-threads=on", def->name, def->name);
	if (def->uuid)
		add_option(w, "-uuid", "%s", def->uuid);
	add(w, "-nodefaults");
	add(w, "-no-user-config");
	/* The RAM block of a plain "-m" is called pc.ram too: such a guest can migrate into ours. */
	add_option(w, "-machine", "%s,memory-backend=pc.ram", def->machine);
	add_accel(w);
	add_option(w, "-cpu", "%s", def->cpu);
	add_option(w, "-smp", "%u", def->cpus);
	add_memory(w);
}

static void add_control(Words *w, bool incoming)
{
	add(w, "-S");
	add(w, "-no-shutdown");
	if (incoming)
		add_option(w, "-incoming", "defer");
	add_option(w, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	add_option(w, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP);
	add_option(w, "-mon", "chardev=qmp,mode=control");
}

static void add_serial(Words *w)
{
	if (w->def->serial == SERIAL_NONE)
		return;
	add_option(w, "-chardev", "socket,id=serial0,fd=%d,server=on,wait=off", QEMU_FD_SERIAL);
	add_json(w, "-device",
		 json_build("driver", "s", "isa-serial", "chardev", "s", "serial0", "index", "u", (uint64_t)0, NULL));
}

/* qemu-ga(8)'s channel. */
static void add_agent(Words *w)
{
	if (!w->def->agent)
		return;
	add_option(w, "-chardev", "socket,id=agent.socket,fd=%d,server=on,wait=off", QEMU_FD_AGENT);
	add_pci_device(w, json_build("driver", "s", "virtio-serial-pci", "id", "s", "serial.0", NULL), SLOT_SERIAL);
	add_json(w, "-device",
		 json_build("driver", "s", "virtserialport", "id", "s", "agent.0", "bus", "s", "serial.0.0", "nr", "u",
			    (uint64_t)1, "chardev", "s", "agent.socket", "name", "s", "org.qemu.guest_agent.0", NULL));
}

static void add_boot(Words *w)
{
	const struct {
		const char *option, *value;
	} words[] = {
		{"-kernel", w->def->kernel},
		{"-initrd", w->def->initrd},
		{"-append", w->def->append},
		{"-bios", w->def->firmware},
	};

	for (size_t i = 0; i < ARRAY_SIZE(words); i++)
		if (words[i].value)
			add_option(w, words[i].option, "%s", words[i].value);
}

/* --- disks --- */

/* QEMU's cache modes, qemu(1) -drive cache=: what they mean for the nodes, and for the device (disk_cache_writeback).
 */
static const struct {
	bool direct, no_flush;
} cache_modes[] = {
	[CACHE_NONE] = {true, false},	       [CACHE_DIRECTSYNC] = {true, false}, [CACHE_WRITEBACK] = {false, false},
	[CACHE_WRITETHROUGH] = {false, false}, [CACHE_UNSAFE] = {false, true},
};
static_assert(ARRAY_SIZE(cache_modes) == _CACHE_MAX, "a row for every cache mode");

static json_object *cache_json(DiskCache cache)
{
	return json_build("direct", "b", cache_modes[cache].direct, "no-flush", "b", cache_modes[cache].no_flush, NULL);
}

/* QEMU's "file" driver takes no block device and "host_device" no file. */
static const char *protocol_driver(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISBLK(st.st_mode) ? "host_device" : "file";
}

static void add_blockdev(Words *w, const VmDisk *disk, size_t i)
{
	_cleanup_free_ char *node = xasprintf("%s.file", disk->id), *path = xasprintf("/dev/fdset/%zu", i);
	json_object *file;

	add_option(w, "-add-fd", "fd=%d,set=%zu,opaque=%s", QEMU_FD_DISK + (int)i, i, disk->id);
	file = json_build("driver", "s", protocol_driver(disk->file), "node-name", "s", node, "filename", "s", path,
			  "read-only", "b", disk->readonly, "discard", "s", "unmap", "cache", "o",
			  cache_json(disk->cache), NULL);
	add_json(w, "-blockdev",
		 json_build("driver", "s", disk_format_to_string(disk->format), "node-name", "s", disk->id, "read-only",
			    "b", disk->readonly, "discard", "s", "unmap", "cache", "o", cache_json(disk->cache), "file",
			    "o", file, NULL));
}

static json_object *disk_device(const VmDisk *disk, const char *driver, size_t i)
{
	return json_build("driver", "s", driver, "id", "s", disk->id, "drive", "s", disk->id, "write-cache", "s",
			  disk_cache_writeback(disk->cache) ? "on" : "off", "serial", "s", disk->serial, "bootindex",
			  "u", (uint64_t)i + 1, NULL);
}

static bool has_scsi(const VmDefinition *def)
{
	for (size_t i = 0; i < def->n_disks; i++)
		if (def->disks[i].bus == BUS_SCSI)
			return true;
	return false;
}

static void add_disks(Words *w)
{
	unsigned int slot = SLOT_LAST;
	uint64_t scsi_id = 0;

	if (has_scsi(w->def))
		add_pci_device(w, json_build("driver", "s", "virtio-scsi-pci", "id", "s", "scsi.0", NULL), SLOT_SCSI);
	for (size_t i = 0; i < w->def->n_disks; i++) {
		const VmDisk *disk = &w->def->disks[i];
		json_object *device;

		add_blockdev(w, disk, i);
		if (disk->bus == BUS_VIRTIO) {
			add_pci_device(w, disk_device(disk, "virtio-blk-pci", i), slot--);
			continue;
		}
		device = disk_device(disk, "scsi-hd", i);
		json_extend(device, "bus", "s", "scsi.0.0", "scsi-id", "u", scsi_id++, NULL);
		add_json(w, "-device", device);
	}
}

/* --- NICs, graphics --- */

static void add_nics(Words *w)
{
	for (size_t i = 0; i < w->def->n_nics; i++) {
		const VmNic *nic = &w->def->nics[i];
		_cleanup_free_ char *netdev = xasprintf("%s.tap", nic->id), *fd = xasprintf("%d", QEMU_FD_TAP + (int)i);

		add_json(w, "-netdev", json_build("type", "s", "tap", "id", "s", netdev, "fd", "s", fd, NULL));
		/* No boot ROM: its size is part of what migrates, and hosts have different ones. */
		add_pci_device(w,
			       json_build("driver", "s", nic->model, "id", "s", nic->id, "netdev", "s", netdev, "mac",
					  "s", nic->mac, "romfile", "s", "", NULL),
			       SLOT_FIRST + (unsigned int)i);
	}
}

/* QEMU's option syntax: a comma in a value is written twice. */
static char *double_commas(const char *value)
{
	char *text = xcalloc(1, 2 * strlen(value) + 1), *p = text;

	for (; *value; value++) {
		*p++ = *value;
		if (*value == ',')
			*p++ = ',';
	}
	*p = '\0';
	return text;
}

/*
 * QEMU listens nowhere: clients come from the keeper, by add_client (keeper/viewers.c). But spice-server reads its
 * certificate only if it is to listen with TLS; it does so in a directory that nobody else can reach.
 */
static void add_spice(Words *w)
{
	_cleanup_free_ char *tls = NULL, *pki = w->def->graphics_tls ? double_commas(w->def->graphics_tls) : NULL;

	if (pki)
		tls = xasprintf(",unix=on,addr=/proc/self/fd/%d/tls,tls-port=1,x509-dir=%s", QEMU_FD_SPICE, pki);
	add_option(w, "-spice", "disable-ticketing=on,seamless-migration=on%s", tls ? tls : "");
}

static void add_graphics(Words *w)
{
	add_option(w, "-display", "none");
	switch (w->def->graphics) {
	case GRAPHICS_NONE:
	case _GRAPHICS_MAX:
		return;
	case GRAPHICS_SPICE:
		add_spice(w);
		break;
	case GRAPHICS_VNC:
		add_option(w, "-vnc", "none");
		break;
	}
	add_pci_device(w, json_build("driver", "s", "VGA", "id", "s", "vga.0", NULL), SLOT_VGA);
}

char **qemu_command_line(const VmDefinition *def, bool incoming)
{
	Words w = {.def = def,
		   .bus = startswith(def->machine, "pc-q35") || streq(def->machine, "q35") ? "pcie.0" : "pci.0"};

	add(&w, def->binary);
	add_machine(&w);
	add_control(&w, incoming);
	add_serial(&w);
	add_agent(&w);
	add_boot(&w);
	add_graphics(&w);
	add_nics(&w);
	add_disks(&w);
	for (size_t i = 0; def->qemu_args && def->qemu_args[i]; i++)
		add(&w, def->qemu_args[i]);
	return w.argv;
}
