/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "basic/text.h"
#include "vm/schema.h"

#define BASE                                                                                                           \
	"uuid = \"0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11\" machine = \"pc-q35-7.2\" cpu = max cpus = 2 "                 \
	"memory = 64M accel = auto "
#define VDA "disk vda { file = /a format = qcow2 cache = none bus = virtio } "
#define VDB "disk vdb { file = /b format = raw } "
#define NET0 "nic net0 { bridge = br0 mac = \"52:54:00:00:00:01\" addresses = { \"10.0.0.1\" } } "
#define NET1 "nic net1 { bridge = br0 mac = \"52:54:00:00:00:02\" } "
#define ALL BASE VDA VDB NET0 NET1

typedef struct Pair {
	const char *a, *b;
	const char *difference; /* NULL: the guest sees none */
	size_t n;
} Pair;

static const Pair pairs[] = {
	{ALL, ALL, NULL, 0},
	/* backends may differ */
	{ALL, BASE "disk vda { file = /other format = raw cache = unsafe } " VDB NET0 NET1, NULL, 0},
	{ALL, BASE VDA VDB "nic net0 { bridge = br9 vlan = 7 mac = \"52:54:00:00:00:01\" } " NET1, NULL, 0},
	{ALL,
	 ALL "binary = /opt/qemu memory-backing = huge autostart = true serial = socket "
	     "conntrack { mark = 1 zone = 2 } lease file { path = /l }",
	 NULL, 0},
	{ALL "graphics vnc { port = 5905 }", ALL "graphics spice { listen = \"0.0.0.0\" }", NULL, 0},
	{ALL "kernel = /k initrd = /i firmware = /f", ALL "kernel = /k2 initrd = /i2 firmware = /f2", NULL, 0},
	{ALL "accel = kvm", ALL, NULL, 0},
	/* frontends may not */
	{ALL,
	 "uuid = \"1c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11\" machine = \"pc-q35-7.2\" cpus = 2 memory = 64M " VDA VDB NET0
		 NET1,
	 "uuid is 0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11 here, 1c3b", 1},
	{"memory = 64M", "memory = 64M machine = \"pc-q35-7.2\"", "machine is q35 here, pc-q35-7.2 there", 1},
	{"memory = 64M", "memory = 64M cpu = host", "cpu is max here, host there", 1},
	{"memory = 64M", "memory = 64M cpus = 2", "cpus is 1 here, 2 there", 1},
	{"memory = 64M", "memory = 65M", "memory is 64M here, 65M there", 1},
	{"memory = 64M accel = kvm", "memory = 64M accel = tcg", "accel is kvm here, tcg there", 1},
	{"memory = 64M agent = true", "memory = 64M", "agent is true here, false there", 1},
	{"memory = 64M serial = none", "memory = 64M", "serial is not set here, given there", 1},
	{"memory = 64M", "memory = 64M graphics vnc {}", "graphics is none here, vnc there", 1},
	{"memory = 64M firmware = /f", "memory = 64M", "firmware is given here, not set there", 1},
	{"memory = 64M kernel = /k", "memory = 64M", "kernel is given here, not set there", 1},
	{"memory = 64M kernel = /k append = a", "memory = 64M kernel = /k append = b", "append is a here, b there", 1},
	{"memory = 64M qemu-args = { \"-a\", b }", "memory = 64M qemu-args = { \"-a\", c }",
	 "qemu-args is \"-a\" \"b\" here, \"-a\" \"c\" there", 1},
	{"memory = 64M qemu-args = { \"a b\" }", "memory = 64M qemu-args = { a, b }", "qemu-args is", 1},
	{"memory = 64M qemu-args = { a }", "memory = 64M", "qemu-args is \"a\" here, not set there", 1},
	{ALL, BASE VDA VDB NET0 "nic net1 { bridge = br0 mac = \"52:54:00:00:00:03\" }",
	 "nic net1: mac is 52:54:00:00:00:02 here, 52:54:00:00:00:03 there", 1},
	{ALL, BASE VDA VDB NET0 "nic net1 { bridge = br0 }", "nic net1: mac is 52:54:00:00:00:02 here, not set there",
	 1},
	{ALL, BASE VDA VDB NET0 "nic net1 { bridge = br0 model = e1000 mac = \"52:54:00:00:00:02\" }",
	 "nic net1: model is virtio-net-pci here, e1000 there", 1},
	{ALL, BASE VDA VDB NET0, "nic net1 is here, not there", 1},
	{BASE VDA VDB NET0, ALL, "nic net1 is there, not here", 1},
	{ALL, BASE VDA VDB NET1 NET0, "nic net0: place is number 1 here, 2 there", 2},
	{ALL, BASE VDB VDA NET0 NET1, "disk vda: place is number 1 here, 2 there", 2},
	{ALL, BASE VDA "disk vdb { file = /b format = raw bus = scsi }" NET0 NET1,
	 "disk vdb: bus is virtio here, scsi there", 1},
	{ALL, BASE VDA "disk vdb { file = /b format = raw serial = x }" NET0 NET1,
	 "disk vdb: serial is not set here, x there", 1},
	{ALL, BASE VDA "disk vdb { file = /b format = raw readonly = true }" NET0 NET1,
	 "disk vdb: readonly is false here, true there", 1},
	{ALL, BASE VDA "disk vdb { file = /b format = raw cache = writethrough }" NET0 NET1,
	 "disk vdb: cache is none here, writethrough there", 1},
	{"memory = 64M", "memory = 65M cpus = 2 graphics vnc {}", "cpus is 1 here, 2 there", 3},
};

static VmDefinition *parse(const char *text)
{
	_cleanup_error_ Error *err = NULL;
	VmDefinition *def = NULL;
	const char *twice = strstr(text, "accel = auto");
	_cleanup_free_ char *copy = xstrdup(text);

	/* "accel" may be said again by a row */
	if (twice && strstr(twice + 1, "accel = "))
		memset(copy + (twice - text), ' ', strlen("accel = auto"));
	if (vm_definition_parse("web1", copy, "x.vm", &def, &err) < 0)
		fail_msg("%s: %s", text, err->message);
	return def;
}

static void test_pairs(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
		_cleanup_(vm_definition_freep)
		VmDefinition *a = parse(pairs[i].a), *b = parse(pairs[i].b);
		_cleanup_strv_ char **differences = NULL;
		size_t n = vm_abi_compare(a, b, &differences);

		if (n != pairs[i].n || n != strv_length(differences))
			fail_msg("%s\n%s\n%zu differences, the first: %s", pairs[i].a, pairs[i].b, n,
				 n ? differences[0] : "-");
		if (n && !startswith(differences[0], pairs[i].difference))
			fail_msg("said: %s\nwanted: %s", differences[0], pairs[i].difference);
		if (!n)
			assert_null(differences);
	}
}

/* A new key must be placed: either the guest sees it, or somebody has said here that it does not. */
static void test_every_key_is_placed(void **state)
{
	static const char *const unseen[] = {"memory-backing", "binary", "autostart", "file",	"format", "shared",
					     "bridge",	       "vlan",	 "addresses", "listen", "path",	  "on-lost",
					     "lockspace",      "resource", "offset", "mark", "zone", "tls-directory", "port"};
	(void)state;

	for (size_t i = 0; i < definition_schema.n_keys; i++) {
		const ConfKey *key = &definition_schema.keys[i];
		const ConfSection *section = key->section;

		for (size_t j = 0; j < (section ? section->n_keys : 1); j++) {
			const ConfKey *k = section ? &section->keys[j] : key;
			bool listed = false;

			for (size_t l = 0; l < ARRAY_SIZE(unseen); l++)
				listed = listed || streq(unseen[l], k->name);
			if (listed == !!(k->flags & (CONF_GUEST | CONF_PRESENCE)))
				fail_msg("%s: does the guest see it?", k->name);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pairs),
		cmocka_unit_test(test_every_key_is_placed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
