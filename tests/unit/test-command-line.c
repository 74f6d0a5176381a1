/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "basic/json.h"
#include "basic/text.h"
#include "qemu/command_line.h"

#define M "memory = 64M accel = tcg "

static VmDefinition *parse(const char *text)
{
	_cleanup_error_ Error *err = NULL;
	VmDefinition *def = NULL;

	if (vm_definition_parse("web1", text, "x.vm", &def, &err) < 0)
		fail_msg("%s: %s", text, err->message);
	return def;
}

static char **words_of(const char *text, bool incoming)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse(text);

	return qemu_command_line(def, incoming);
}

/* Whether @option stands there with @value (NULL: without one) as its next word. */
static bool has(char *const *words, const char *option, const char *value)
{
	for (size_t i = 0; words[i]; i++)
		if (streq(words[i], option) && (!value || (words[i + 1] && streq(words[i + 1], value))))
			return true;
	return false;
}

typedef struct Row {
	const char *text;
	const char *option, *value; /* value NULL: just the option */
	bool there;
} Row;

static const Row rows[] = {
	{M, "qemu-system-x86_64", NULL, true},
	{M "binary = /opt/q", "/opt/q", NULL, true},
	{M, "-name", "guest=web1,process=qemu:web1,debug-threads=on", true},
	{M, "-nodefaults", NULL, true},
	{M, "-no-user-config", NULL, true},
	{M, "-S", NULL, true},
	{M, "-no-shutdown", NULL, true},
	{M, "-nographic", NULL, false},
	{M, "-runas", NULL, false},
	{M, "-daemonize", NULL, false},
	{M, "-machine", "q35,memory-backend=pc.ram", true},
	{M "machine = \"pc-i440fx-7.2\"", "-machine", "pc-i440fx-7.2,memory-backend=pc.ram", true},
	{M, "-accel", "tcg", true},
	{M, "-accel", "kvm", false},
	{"memory = 64M accel = kvm", "-accel", "tcg", false},
	{"memory = 64M", "-accel", "kvm", true},
	{"memory = 64M", "-accel", "tcg", true},
	{M, "-cpu", "max", true},
	{M "cpus = 3", "-smp", "3", true},
	{M, "-m", "64M", true},
	{M, "-object",
	 "{\"qom-type\":\"memory-backend-file\",\"id\":\"pc.ram\",\"size\":67108864,\"mem-path\":\"/proc/self/fd/5\","
	 "\"share\":true,\"align\":2097152}",
	 true},
	{M "memory-backing = private", "-object",
	 "{\"qom-type\":\"memory-backend-ram\",\"id\":\"pc.ram\",\"size\":67108864}", true},
	{M, "-chardev", "socket,id=qmp,fd=3,server=on,wait=off", true},
	{M, "-mon", "chardev=qmp,mode=control", true},
	{M, "-chardev", "socket,id=serial0,fd=4,server=on,wait=off", true},
	{M "serial = none", "-chardev", "socket,id=serial0,fd=4,server=on,wait=off", false},
	{M "serial = none", "-device", NULL, false},
	{M "agent = true", "-chardev", "socket,id=agent.socket,fd=8,server=on,wait=off", true},
	{M, "-chardev", "socket,id=agent.socket,fd=8,server=on,wait=off", false},
	{M "agent = true", "-device",
	 "{\"driver\":\"virtio-serial-pci\",\"id\":\"serial.0\",\"bus\":\"pcie.0\",\"addr\":\"0x7\"}", true},
	{M "agent = true", "-device",
	 "{\"driver\":\"virtserialport\",\"id\":\"agent.0\",\"bus\":\"serial.0.0\",\"nr\":1,"
	 "\"chardev\":\"agent.socket\",\"name\":\"org.qemu.guest_agent.0\"}",
	 true},
	{M, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", true},
	{M, "-uuid", NULL, false},
	{M "uuid = \"0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11\"", "-uuid", "0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11", true},
	{M "kernel = /k initrd = \"/i,j\" append = \"a b, c\" firmware = /f", "-kernel", "/k", true},
	{M "kernel = /k initrd = \"/i,j\"", "-initrd", "/i,j", true},
	{M "kernel = /k append = \"a b, c\"", "-append", "a b, c", true},
	{M "firmware = /f", "-bios", "/f", true},
	{M, "-display", "none", true},
	{M, "-vnc", NULL, false},
	{M "graphics vnc { listen = \"::\" port = 5901 }", "-vnc", "none", true},
	{M "graphics vnc {}", "-device", "{\"driver\":\"VGA\",\"id\":\"vga.0\",\"bus\":\"pcie.0\",\"addr\":\"0x8\"}",
	 true},
	{M "graphics spice { listen = \"::\" port = 5901 }", "-spice", "disable-ticketing=on,seamless-migration=on", true},
	{M "graphics spice { tls-directory = \"/x,y\" }", "-spice",
	 "disable-ticketing=on,seamless-migration=on,unix=on,addr=/proc/self/fd/9/tls,tls-port=1,x509-dir=/x,,y", true},
	{M "qemu-args = { \"-device\", \"virtio-rng-pci\" }", "-device", "virtio-rng-pci", true},
	{M "nic n0 { bridge = b mac = \"52:54:00:00:00:01\" }", "-netdev",
	 "{\"type\":\"tap\",\"id\":\"n0.tap\",\"fd\":\"16\"}", true},
	{M "machine = pc nic n0 { bridge = b mac = \"52:54:00:00:00:01\" }", "-device",
	 "{\"driver\":\"virtio-net-pci\",\"id\":\"n0\",\"netdev\":\"n0.tap\",\"mac\":\"52:54:00:00:00:01\",\"romfile\":"
	 "\"\","
	 "\"bus\":\"pci.0\",\"addr\":\"0xa\"}",
	 true},
	{M "disk a { file = \"/x,\\\"y\" format = qcow2 }", "-add-fd", "fd=48,set=0,opaque=a", true},
};

static void test_rows(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_strv_ char **words = words_of(rows[i].text, false);

		if (has(words, rows[i].option, rows[i].value) == rows[i].there)
			continue;
		for (size_t j = 0; words[j]; j++)
			print_error("  %s\n", words[j]);
		fail_msg("%s: %s %s", rows[i].text, rows[i].option, rows[i].value ? rows[i].value : "");
	}
}

/* Incoming changes nothing but the one option. */
static void test_incoming(void **state)
{
	static const char text[] = M "nic n0 { bridge = b } disk a { file = /x format = raw } graphics vnc {}";
	_cleanup_strv_ char **here = words_of(text, false), **there = words_of(text, true);
	size_t i = 0, j = 0;
	(void)state;

	assert_false(has(here, "-incoming", NULL));
	assert_true(has(there, "-incoming", "defer"));
	for (; here[i]; i++, j++) {
		if (streq(there[j], "-incoming"))
			j += 2;
		assert_string_equal(here[i], there[j]);
	}
	assert_null(there[j]);
}

/* The JSON after the @n-th @option, NULL if there are fewer. */
static json_object *json_of(char *const *words, const char *option, size_t n)
{
	for (size_t i = 0; words[i]; i++)
		if (streq(words[i], option) && words[i + 1][0] == '{' && n-- == 0)
			return json_parse(words[i + 1], strlen(words[i + 1]));
	return NULL;
}

/* The device with this id. */
static json_object *device(char *const *words, const char *id)
{
	json_object *o;
	const char *found;

	for (size_t n = 0; (o = json_of(words, "-device", n)); n++) {
		if (json_get_string(o, "id", &found) && streq(found, id))
			return o;
		json_object_put(o);
	}
	return NULL;
}

static const char *text_at(json_object *o, const char *path)
{
	const char *s = NULL;

	return json_get_string(o, path, &s) ? s : "";
}

static void test_caches(void **state)
{
	static const struct {
		const char *cache;
		bool direct, no_flush;
		const char *write_cache;
	} modes[] = {
		{"none", true, false, "on"},	   {"directsync", true, false, "off"},
		{"writeback", false, false, "on"}, {"writethrough", false, false, "off"},
		{"unsafe", false, true, "on"},
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
		_cleanup_free_ char *text =
			xasprintf(M "disk a { file = /x format = qcow2 cache = %s serial = s1 }", modes[i].cache);
		_cleanup_strv_ char **words = words_of(text, false);
		_cleanup_json_ json_object *node = json_of(words, "-blockdev", 0), *dev = device(words, "a");
		bool v;

		assert_string_equal(text_at(node, "driver"), "qcow2");
		assert_string_equal(text_at(node, "node-name"), "a");
		assert_string_equal(text_at(node, "file.filename"), "/dev/fdset/0");
		assert_string_equal(text_at(node, "file.driver"), "file");
		assert_true(json_get_bool(node, "cache.direct", &v) && v == modes[i].direct);
		assert_true(json_get_bool(node, "cache.no-flush", &v) && v == modes[i].no_flush);
		assert_true(json_get_bool(node, "file.cache.direct", &v) && v == modes[i].direct);
		assert_true(json_get_bool(node, "file.cache.no-flush", &v) && v == modes[i].no_flush);
		assert_true(json_get_bool(node, "read-only", &v) && !v);
		assert_string_equal(text_at(dev, "driver"), "virtio-blk-pci");
		assert_string_equal(text_at(dev, "drive"), "a");
		assert_string_equal(text_at(dev, "write-cache"), modes[i].write_cache);
		assert_string_equal(text_at(dev, "serial"), "s1");
	}
}

static void test_readonly_scsi(void **state)
{
	_cleanup_strv_ char **words = words_of(M "disk a { file = /x format = raw bus = scsi readonly = true } "
						 "disk b { file = /y format = raw bus = scsi }",
					       false);
	_cleanup_json_ json_object *node = json_of(words, "-blockdev", 0), *a = device(words, "a"),
				   *b = device(words, "b"), *controller = device(words, "scsi.0");
	uint64_t id;
	bool v;
	(void)state;

	assert_true(json_get_bool(node, "read-only", &v) && v);
	assert_true(json_get_bool(node, "file.read-only", &v) && v);
	assert_string_equal(text_at(a, "driver"), "scsi-hd");
	assert_string_equal(text_at(a, "bus"), "scsi.0.0");
	assert_true(json_get_u64(a, "scsi-id", &id) && id == 0);
	assert_true(json_get_u64(b, "scsi-id", &id) && id == 1);
	assert_string_equal(text_at(controller, "driver"), "virtio-scsi-pci");
	assert_string_equal(text_at(controller, "addr"), "0x9");
}

/* As full as a machine gets: every address is used once, and a NIC more moves no disk. */
static void test_addresses(void **state)
{
	_cleanup_free_ char *text = xstrdup(M "graphics vnc {} disk s { file = /s format = raw bus = scsi } ");
	_cleanup_strv_ char **words = NULL, **fewer = NULL;
	bool used[32] = {false};
	size_t n = 0;
	(void)state;

	for (int i = 0; i < VM_PCI_MAX; i++) {
		_cleanup_free_ char *old = text;

		if (i == VM_PCI_MAX - 1)
			fewer = words_of(text, false);
		text = i < 8 ? xasprintf("%s disk d%d { file = /d%d format = raw } ", old, i, i)
			     : xasprintf("%s nic n%d { bridge = b } ", old, i);
	}
	words = words_of(text, false);
	for (size_t i = 0;; i++) {
		_cleanup_json_ json_object *dev = json_of(words, "-device", i), *other = NULL;
		unsigned long slot;

		if (!dev)
			break;
		if (!*text_at(dev, "addr"))
			continue;
		slot = strtoul(text_at(dev, "addr"), NULL, 16);
		assert_in_range(slot, 2, 0x1e);
		assert_false(used[slot]);
		used[slot] = true;
		n++;
		other = device(fewer, text_at(dev, "id"));
		if (other)
			assert_string_equal(text_at(other, "addr"), text_at(dev, "addr"));
	}
	assert_int_equal(n, VM_PCI_MAX + 2);
}

/* Nothing a definition may contain breaks out of the JSON. */
static void test_quoting(void **state)
{
	_cleanup_strv_ char **words = words_of(M "disk a { file = '/x\",\"driver\":\"evil\\\\' format = raw }", false);
	_cleanup_json_ json_object *node = json_of(words, "-blockdev", 0);
	(void)state;

	assert_non_null(node);
	assert_string_equal(text_at(node, "driver"), "raw");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rows),	      cmocka_unit_test(test_incoming),	cmocka_unit_test(test_caches),
		cmocka_unit_test(test_readonly_scsi), cmocka_unit_test(test_addresses), cmocka_unit_test(test_quoting),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
