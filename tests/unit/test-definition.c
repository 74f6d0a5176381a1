/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "basic/fs.h"
#include "basic/text.h"
#include "vm/definition.h"
#include "vm/host.h"
#include "vm/schema.h"

#define M "memory = \"64M\"\n"
#define DISK "file = \"/d\" format = raw"

/* --- what is wrong is said with its line, and with what would be right --- */

typedef struct Bad {
	const char *text;
	const char *message; /* how the message begins, after "x.vm:" */
	const char *hint;    /* part of the hint; NULL: none needed */
} Bad;

static const Bad bads[] = {
	/* structure */
	{"", "1: the definition has no \"memory\"", "add memory"},
	{M "cpuss = 2\n", "2: unknown key \"cpuss\" in the definition", "did you mean \"cpus\"?"},
	{M "wholly-unknown = 2\n", "2: unknown key \"wholly-unknown\"", "known keys here: uuid, machine"},
	{M "include(\"/etc/passwd\")\n", "2: \"(\" does not belong here", NULL},
	{M "include = \"/etc/passwd\"\n", "2: unknown key \"include\"", NULL},
	{M "include \"/etc/passwd\"\n", "2: ", NULL},
	{M "cpus = 2\n\ncpus = 3\n", "4: cpus stands here a second time", "line 2 already"},
	{M "\"cpus\" = 2\n'cpus' = 3\n", "3: cpus stands here a second time", NULL},
	{M "cpus = 2 cpus = 3\n", "2: cpus stands here a second time", "line 2 already"},
	{M "qemu-args = {}\nqemu-args = {\"a\"}\n", "3: qemu-args stands here a second time", NULL},
	{M "qemu-args = {\"a\"}\nqemu-args += {\"b\"}\n", "3: \"+\" does not belong here", NULL},
	{M "disk a {" DISK "}\ndisk a {" DISK "}\n", "3: disk a stands here a second time", "line 2 already"},
	{M "disk a {" DISK "}\nnic a { bridge = b }\n", "3: the name \"a\" is taken by disk a in line 2", NULL},
	{M "graphics vnc {}\ngraphics spice {}\n", "3: more than 1 section \"graphics\"", NULL},
	{M "disk a {\n" DISK "\n\n", "2: section disk a begins here and is not closed", "\"}\""},
	{M "nic a {\n bridge = b\n addresses = { \"10.0.0.1\",\n", "2: section nic a begins here and is not closed",
	 NULL},
	{M "qemu-args = { \"a\"\n", "3: a list is not closed", NULL},
	{M "}\n", "2: \"}\" closes nothing", NULL},
	{M "= 2\n", "2: there is no key before", NULL},
	{M "{ }\n", "2: there is no section name before", NULL},
	{M "disk {" DISK "}\n", "2: section \"disk\" has no name", "disk NAME"},
	{M "disk = 2\n", "2: \"disk\" is a section", "disk NAME { ... }"},
	{M "cpus { }\n", "2: \"cpus\" is not a section", "cpus = "},
	{M "cpus x { }\n", "2: \"cpus\" is not a section", NULL},
	{M "cpus 2\n", "2: ", "KEY ="},
	{M "cpus\n", "3: ", "KEY ="},
	{M "cpus =\n", "3: ", "KEY ="},
	{M "cpus = = 2\n", "2: ", NULL},
	{M "cpus = { 1, 2 }\n", "2: ", "KEY ="},
	{M "qemu-args = { \"a\" \"b\" }\n", "2: ", NULL},
	{M "qemu-args = { { \"a\" } }\n", "2: a list within a list", NULL},
	{M "disk a {" DISK " nic b { bridge = b } }\n", "2: unknown key \"nic\" in disk a", NULL},
	{M "disk a|b {" DISK "}\n", "2: disk \"a|b\"", "a letter, then"},
	{M "disk|file = \"/x\"\n", "2: unknown key \"disk|file\"", NULL},
	{M "disk 1a {" DISK "}\n", "2: disk \"1a\"", "a letter, then"},
	{M "disk \"\" {" DISK "}\n", "2: disk \"\"", NULL},
	{M "disk abcdefghijklmnopqrstuvwxy {" DISK "}\n", "2: disk \"abc", "24 at most"},
	{M "disk a.b {" DISK "}\n", "2: disk \"a.b\"", NULL},
	{M "graphics sdl {}\n", "2: graphics \"sdl\" is not known", "\"spice\" or \"vnc\""},
	{M "graphics vnc { tls-directory = /x }\n", "2: graphics vnc has no tls-directory", NULL},
	{M "graphics vnc {\nport = 5899 }\n", "2: graphics: port: 5899 is too small", "from 5900 on"},
	{M "graphics vnc { port = 65536 }\n", "2: graphics vnc: port: 65536 is too large", NULL},
	{M "graphics none {}\n", "2: graphics \"none\" is not known", NULL},
	{M "conntrack { mark = \"5/4\" }\n", "2: ", "no bits outside the mask"},
	{M "conntrack { mark = x }\n", "2: ", "like \"0x100/0xff00\""},
	{M "conntrack { zone = 65536 }\n", "2: ", NULL},
	{M "lease nfs { path = \"/l\" }\n", "2: lease \"nfs\" is not known", "\"file\" or \"sanlock\""},
	{M "lease file { }\n", "2: lease file has no \"path\"", "add path"},
	{M "lease file { path = /l on-lost = reboot }\n", "2: ", "\"kill\" or \"pause\""},
	{M "lease file { path = /l lockspace = vms }\n", "2: lease file has no lockspace", NULL},
	{M "lease file { path = /l offset = 1M }\n", "2: lease file has no lockspace", NULL},
	{M "lease sanlock { path = /l lockspace = vms on-lost = pause }\n", "2: lease sanlock: on-lost", NULL},
	{M "lease sanlock { path = /l }\n", "2: lease sanlock has no \"lockspace\"", "add lockspace"},
	{M "lease sanlock { path = /l lockspace = \"a:b\" }\n", "2: ", "48 at most"},
	{M "lease sanlock { path = /l lockspace = vms resource = \"\" }\n", "2: ", "48 at most"},

	/* bytes */
	{M "append = \"${HOME}\"\n", "2: \"${\" is not allowed", "environment"},
	{M "append = '${HOME}'\n", "2: \"${\" is not allowed", NULL},
	{M "append = ${HOME}\n", "2: \"${\" is not allowed", NULL},
	{M "append = x${HOME:-y}\n", "2: \"${\" is not allowed", NULL},
	{M "append = \"a # ${HOME}\"\n", "2: \"${\" is not allowed", NULL},
	{M "append = \"/* ${HOME} */\"\n", "2: \"${\" is not allowed", NULL},
	{M "append = \"a\\\"\" ${HOME}\"\n", "2: \"${\" is not allowed", NULL},
	{M "append = x//${HOME}\n", "2: \"${\" is not allowed", NULL},
	{M "append = \"a\001b\"\n", "2: control character 0x01", NULL},
	{M "append = \"a\177b\"\n", "2: control character 0x7f", NULL},
	{M "append = \"a\302\205b\"\n", "2: control character 0x85", NULL},
	{M "append = \"a\tb\"\n", "2: a tab within a string", NULL},
	{M "cpus = 2\r\n", "2: carriage return", "UNIX line ends"},
	{M "append = \"a\nb\"\n", "2: a string begins here and is not closed", "add the missing \""},
	{M "append = 'a\nb'\n", "2: a string begins here and is not closed", "add the missing '"},
	{M "append = \"a", "2: a string begins here and is not closed", NULL},
	{M "append = \"a\\", "2: \"\\?\" is not an escape", NULL},
	{M "append = \"a\\x00b\"\n", "2: \"\\x\" is not an escape", "only"},
	{M "append = \"a\\0b\"\n", "2: \"\\0\" is not an escape", NULL},
	{M "append = \"a\\nb\"\n", "2: \"\\n\" is not an escape", NULL},
	{M "append = \"a\\\nb\"\n", "2: \"\\?\" is not an escape", NULL},
	{M "append = \"a\377b\"\n", "2: byte 0xff is not UTF-8", NULL},
	{M "append = \"a\300\200b\"\n", "2: byte 0xc0 is not UTF-8", NULL},
	{M "append = \"a\355\240\200b\"\n", "2: byte 0xed is not UTF-8", NULL},
	{M "append = \"a\342\202\"\n", "2: byte 0xe2 is not UTF-8", NULL},
	{M "/* not\nclosed\n", "2: a comment begins here", NULL},
	{M "append = a*b\n", "2: \"*\" does not belong here", "quotes"},

	/* numbers, sizes, words */
	{M "cpus = two\n", "2: cpus: \"two\" is not a number", "from 1 to 1024"},
	{M "cpus = 0\n", "2: cpus: 0 is too small", "from 1 to 1024"},
	{M "cpus = 1025\n", "2: cpus: 1025 is too large", NULL},
	{M "cpus = -1\n", "2: cpus: \"-1\" is not a number", NULL},
	{M "cpus = 0x2\n", "2: cpus: \"0x2\" is not a number", NULL},
	{M "cpus = 2;\n", "2: cpus: \"2;\" is not a number", NULL},
	{M "cpus = \"\"\n", "2: cpus: \"\" is not a number", NULL},
	{M "cpus = 99999999999999999999999\n", "2: cpus: 99999999999999999999999 is too large", NULL},
	{"memory = lots\n", "1: memory: \"lots\" is not a size", "\"2G\""},
	{"memory = 15M\n", "1: memory: 15M is too small", "from 16M"},
	{"memory = 65535K\n", "1: memory: 65535K is not a multiple", "a multiple of 1M"},
	{"memory = 99999999T\n", "1: memory: 99999999T is too large", NULL},
	{"memory = 2000000T\n", "1: memory: 2000000T is too large", NULL},
	{"memory = -2G\n", "1: memory: \"-2G\" is not a size", NULL},
	{"memory = \"2 G\"\n", "1: memory: \"2 G\" is not a size", NULL},
	{"memory = 33M memory-backing = huge\n", "1: memory: 33 MiB do not fill huge pages", "multiple of 2M"},
	{M "memory-backing = file\n", "2: memory-backing: \"file\" is not known",
	 "one of \"shared\", \"private\" or \"huge\""},
	{M "accel = hvf\n", "2: accel: \"hvf\" is not known", "\"auto\", \"kvm\" or \"tcg\""},
	{M "autostart = maybe\n", "2: autostart: \"maybe\" is neither true nor false", "true or false"},
	{M "serial = tty\n", "2: serial: \"tty\" is not known", "\"log\", \"socket\" or \"none\""},

	/* machine */
	{M "machine = microvm\n", "2: machine: \"microvm\" is not a machine type", "\"q35\""},
	{M "machine = \"q35,usb=on\"\n", "2: machine: \"q35,usb=on\"", NULL},
	{M "machine = \"pc-q35-7.2,accel=tcg\"\n", "2: machine: ", NULL},
	{M "cpu = \"host -monitor\"\n", "2: cpu: ", NULL},
	{M "cpu = \"\"\n", "2: cpu: ", NULL},
	{M "binary = \"../qemu\"\n", "2: binary: \"../qemu\" is not a program", "absolute path"},
	{M "binary = \"bin/qemu\"\n", "2: binary: ", NULL},
	{M "binary = \"-x\"\n", "2: binary: ", NULL},
	{M "uuid = 1234\n", "2: uuid: \"1234\" is not a UUID", NULL},
	{M "uuid = 0c3ba6a86a4b4a4e9d5b0d8c1c2c9f11\n", "2: uuid: ", NULL},
	{M "initrd = /i\n", "2: initrd: there is no kernel", "kernel ="},
	{M "append = x\n", "2: append: there is no kernel", NULL},
	{M "kernel = vmlinuz\n", "2: kernel: \"vmlinuz\" is not an absolute path", NULL},
	{M "kernel = /boot/\n", "2: kernel: ", NULL},
	{M "firmware = ovmf.fd\n", "2: firmware: ", NULL},

	/* disks */
	{M "disk a {\n format = raw\n}\n", "2: disk a has no \"file\"", "add file"},
	{M "disk a {\n file = /x\n}\n", "2: disk a has no \"format\"", "add format"},
	{M "disk a { file = x format = raw }\n", "2: disk a: file: \"x\" is not an absolute path", "begin it with /"},
	{M "disk a { file = \"\" format = raw }\n", "2: disk a: file: \"\"", NULL},
	{M "disk a { file = /x format = vmdk }\n", "2: disk a: format: \"vmdk\" is not known", "\"qcow2\" or \"raw\""},
	{M "disk a {\n" DISK "\n cache = fast\n}\n", "4: disk a: cache: \"fast\" is not known",
	 "\"none\", \"directsync\""},
	{M "disk a {" DISK " bus = ide }\n", "2: disk a: bus: \"ide\" is not known", "\"virtio\" or \"scsi\""},
	{M "disk a {" DISK " shared = 1 }\n", "2: disk a: shared: \"1\" is neither", NULL},
	{M "disk a {" DISK " serial = \"a,b\" }\n", "2: disk a: serial: ", "20 at most"},
	{M "disk a {" DISK " serial = 123456789012345678901 }\n", "2: disk a: serial: ", NULL},
	{M "disk a {" DISK "}\ndisk b {" DISK "}\n", "3: disk b: file: \"/d\" stands here a second time", "line 2"},
	{M "disk a {" DISK " fil = /y }\n", "2: unknown key \"fil\" in disk a", "did you mean \"file\"?"},

	/* NICs */
	{M "nic a { }\n", "2: nic a has no \"bridge\"", "add bridge"},
	{M "nic a { bridge = \"br0123456789abcd\" }\n", "2: nic a: bridge: ", "15 at most"},
	{M "nic a { bridge = \"br/0\" }\n", "2: nic a: bridge: ", NULL},
	{M "nic a { bridge = \".\" }\n", "2: nic a: bridge: ", NULL},
	{M "nic a { bridge = b vlan = 4095 }\n", "2: nic a: vlan: 4095 is too large", "from 0 to 4094"},
	{M "nic a { bridge = b model = \"virtio-net-pci,x=y\" }\n", "2: nic a: model: ", "\"virtio-net-pci\""},
	{M "nic a { bridge = b mac = \"52:54:00:12:34\" }\n", "2: nic a: mac: ", "six bytes in hex"},
	{M "nic a { bridge = b mac = \"52:54:00:12:34:5g\" }\n", "2: nic a: mac: ", NULL},
	{M "nic a { bridge = b mac = \"52-54-00-12-34-56\" }\n", "2: nic a: mac: ", NULL},
	{M "nic a { bridge = b mac = \"53:54:00:12:34:56\" }\n", "2: nic a: mac: ", "first byte must be even"},
	{M "nic a { bridge = b mac = \"00:00:00:00:00:00\" }\n", "2: nic a: mac: ", NULL},
	{M "nic a { bridge = b mac = \"52:54:00:12:34:ab\" }\nnic c { bridge = b mac = \"52:54:00:12:34:AB\" }\n",
	 "3: nic c: mac: \"52:54:00:12:34:ab\" stands here a second time", "line 2"},
	{M "nic a { bridge = b addresses = { \"10.0.0.256\" } }\n", "2: nic a: addresses: \"10.0.0.256\"",
	 "IPv4 or IPv6"},
	{M "nic a { bridge = b addresses = { \"10.0.0.1/24\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"224.0.0.1\" } }\n", "2: nic a: addresses: ", "unicast"},
	{M "nic a { bridge = b addresses = { \"127.0.0.1\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"0.0.0.0\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"255.255.255.255\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"::\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"ff02::1\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"::ffff:10.0.0.1\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"fe80::1%eth0\" } }\n", "2: nic a: addresses: ", NULL},
	{M "nic a { bridge = b addresses = { \"fd00::5\", \"fd00:0::5\" } }\n",
	 "2: nic a: addresses: \"fd00::5\" stands here a second time", NULL},
	{M "nic a { bridge = b\naddresses = { \"10.0.0.1\" } }\nnic c { bridge = b\naddresses = { \"10.0.0.1\" } }\n",
	 "5: nic c: addresses: \"10.0.0.1\" stands here a second time", "line 3"},
	{M "graphics vnc { listen = localhost }\n", "2: graphics vnc: listen: ", "0.0.0.0"},

	/* lines are counted right behind comments and in sections */
	{"/* a */ // b\n# c\n/* d\n e */ " M "cpus = x\n", "5: cpus:", NULL},
	{M "nic a {\n # c\n bridge = b /* d */\n vlan = 5000\n}\n", "5: nic a: vlan:", NULL},
	{M "nic a { bridge = b }\n/* */\ncpus = x\n", "4: cpus:", NULL},
};

static void test_bad(void **state)
{
	(void)state;
	setenv("HOME", "/from-the-environment", 1);
	for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
		_cleanup_(vm_definition_freep)
		VmDefinition *def = NULL;
		_cleanup_error_ Error *err = NULL;
		int r = vm_definition_parse("web1", bads[i].text, "x.vm", &def, &err);
		const char *rest;

		if (r != -EINVAL || !err)
			fail_msg("accepted (%d): %s", r, bads[i].text);
		assert_null(def);
		rest = startswith(err->message, "x.vm:");
		if (!rest || !startswith(rest, bads[i].message))
			fail_msg("for: %s\nsaid: %s\nwanted: %s", bads[i].text, err->message, bads[i].message);
		if (bads[i].hint && (!err->hint || !strstr(err->hint, bads[i].hint)))
			fail_msg("for: %s\nhint: %s\nwanted: %s", bads[i].text, err->hint ? err->hint : "(none)",
				 bads[i].hint);
		if (strstr(err->message, "from-the-environment"))
			fail_msg("environment in: %s", err->message);
	}
}

/* A failing parse with nobody who wants to know why must not fail itself. */
static void test_bad_without_error(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
		VmDefinition *def = NULL;

		assert_int_equal(vm_definition_parse("web1", bads[i].text, "x.vm", &def, NULL), -EINVAL);
	}
}

static void test_names(void **state)
{
	static const char *const names[] = {"",	   ".a",  "-a", "a b",
					    "a/b", "a;b", "ä",	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		_cleanup_error_ Error *err = NULL;
		VmDefinition *def = NULL;

		assert_int_equal(vm_definition_parse(names[i], M, "x.vm", &def, &err), -EINVAL);
		assert_non_null(strstr(err->message, "is not a name for a VM"));
	}
}

static void test_limits(void **state)
{
	static const struct {
		const char *section, *body;
		int n, r;
		const char *message;
	} rows[] = {
		{"disk", "file = \"/d%d\" format = raw bus = scsi", VM_DISKS_MAX, 0, NULL},
		{"disk", "file = \"/d%d\" format = raw bus = scsi", VM_DISKS_MAX + 1, -EINVAL,
		 "more than 64 sections \"disk\""},
		{"disk", "file = \"/d%d\" format = raw", VM_PCI_MAX, 0, NULL},
		{"disk", "file = \"/d%d\" format = raw", VM_PCI_MAX + 1, -EINVAL, "room for 21"},
		{"nic", "bridge = br%d", VM_PCI_MAX, 0, NULL},
		{"nic", "bridge = br%d", VM_NICS_MAX, -EINVAL, "room for 21"},
		{"nic", "bridge = br%d", VM_NICS_MAX + 1, -EINVAL, "more than 32 sections \"nic\""},
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_(vm_definition_freep)
		VmDefinition *def = NULL;
		_cleanup_error_ Error *err = NULL;
		char *text = xstrdup(M);

		for (int j = 0; j < rows[i].n; j++) {
			_cleanup_free_ char *old = text, *body = NULL;
			char number[16];

			snprintf(number, sizeof(number), "%d", j);
			body = xstrdup(rows[i].body);
			/* the %d of the row */
			*strstr(body, "%d") = '\0';
			text = xasprintf("%s%s s%d { %s%s%s }\n", old, rows[i].section, j, body, number,
					 strstr(rows[i].body, "%d") + 2);
		}
		assert_int_equal(vm_definition_parse("web1", text, "x.vm", &def, &err), rows[i].r);
		free(text);
		if (rows[i].message)
			assert_non_null(strstr(err->message, rows[i].message));
	}
}

static void test_too_long(void **state)
{
	_cleanup_free_ char *text = xcalloc(1, CONF_TEXT_MAX + 2);
	_cleanup_error_ Error *err = NULL;
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL;
	VmDefinition *other = NULL;
	(void)state;

	memset(text, ' ', CONF_TEXT_MAX + 1);
	memcpy(text, M, strlen(M));
	assert_int_equal(vm_definition_parse("web1", text, "x.vm", &other, &err), -EINVAL);
	assert_non_null(strstr(err->message, "x.vm:1: longer than 64 KiB"));
	text[CONF_TEXT_MAX] = '\0';
	assert_int_equal(vm_definition_parse("web1", text, "x.vm", &def, NULL), 0);
}

static void test_load(void **state)
{
	static const char with_nul[] = M "cpus = 2\0 cpus = 3\n";
	static const char path[] = "test-definition.tmp.vm";
	_cleanup_error_ Error *err = NULL, *missing = NULL;
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL;
	(void)state;

	assert_int_equal(file_write(path, with_nul, sizeof(with_nul) - 1, 0600, false), 0);
	assert_int_equal(vm_definition_load("web1", path, &def, &err), -EINVAL);
	assert_string_equal(err->message, "test-definition.tmp.vm:2: control character 0x00 in the text");
	assert_int_equal(file_write(path, M, strlen(M), 0600, false), 0);
	assert_int_equal(vm_definition_load("web1", path, &def, NULL), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(vm_definition_load("web1", path, &def, &missing), -ENOENT);
}

/* --- what is right --- */

static const char full[] =
	"uuid = \"0C3BA6A8-6a4b-4a4e-9d5b-0d8c1c2c9f11\"\n"
	"machine = \"pc-q35-7.2\" cpu = \"Skylake-Server,-hle,hv-time=on\" cpus = 4 memory = \"3G\"\n"
	"memory-backing = huge accel = kvm binary = \"/opt/qemu 10/bin/qemu\"\n"
	"disk vda { file = '/srv/a \"b\" \\\\c.qcow2' format = qcow2 cache = directsync bus = scsi shared = true\n"
	"  readonly = yes serial = \"S-1.2_3\" }\n"
	"disk vdb { file = \"/srv/\xc3\xa4.raw\" format = raw }\n"
	"nic net0 { bridge = \"br0\" vlan = 12 model = e1000 mac = \"52:54:00:AB:cd:ef\"\n"
	"  addresses = { \"10.0.0.5\", \"FD00:0::5\" } }\n"
	"nic net1 { bridge = br1 addresses = 10.0.0.6 }\n"
	"kernel = /boot//vmlinuz initrd = /boot/initrd append = \"console=ttyS0 quote=\\\"x\\\" $HOME # no comment\"\n"
	"firmware = /usr/share/ovmf.fd serial = socket agent = yes\n"
	"graphics spice { listen = \"::\" port = 5905 tls-directory = /etc/pki/spice } // comment ${HOME}\n"
	"conntrack { mark = \"256/0xff00\" zone = 7 }\n"
	"lease sanlock { path = /dev/leases lockspace = vms resource = web offset = 3M on-lost = kill } /* ${HOME}\n */ # ${HOME}\n"
	"autostart = on qemu-args = { \"-device\", \"virtio-rng-pci,id=\\\"r\\\"\", \"\" }\n";

static VmDefinition *parse_good(const char *text)
{
	_cleanup_error_ Error *err = NULL;
	VmDefinition *def = NULL;

	if (vm_definition_parse("web1", text, "x.vm", &def, &err) < 0)
		fail_msg("%s\n%s", err->message, text);
	return def;
}

static void test_full(void **state)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_good(full);
	(void)state;

	assert_string_equal(def->name, "web1");
	assert_string_equal(def->uuid, "0c3ba6a8-6a4b-4a4e-9d5b-0d8c1c2c9f11");
	assert_string_equal(def->machine, "pc-q35-7.2");
	assert_string_equal(def->cpu, "Skylake-Server,-hle,hv-time=on");
	assert_int_equal(def->cpus, 4);
	assert_int_equal(def->memory, 3ULL << 30);
	assert_int_equal(def->memory_backing, MEMORY_HUGE);
	assert_int_equal(def->accel, ACCEL_KVM);
	assert_string_equal(def->binary, "/opt/qemu 10/bin/qemu");
	assert_int_equal(def->n_disks, 2);
	assert_string_equal(def->disks[0].id, "vda");
	assert_string_equal(def->disks[0].file, "/srv/a \"b\" \\c.qcow2");
	assert_int_equal(def->disks[0].format, DISK_QCOW2);
	assert_int_equal(def->disks[0].cache, CACHE_DIRECTSYNC);
	assert_int_equal(def->disks[0].bus, BUS_SCSI);
	assert_true(def->disks[0].shared);
	assert_true(def->disks[0].readonly);
	assert_string_equal(def->disks[0].serial, "S-1.2_3");
	assert_string_equal(def->disks[1].file, "/srv/\xc3\xa4.raw");
	assert_int_equal(def->n_nics, 2);
	assert_string_equal(def->nics[0].bridge, "br0");
	assert_int_equal(def->nics[0].vlan, 12);
	assert_string_equal(def->nics[0].model, "e1000");
	assert_string_equal(def->nics[0].mac, "52:54:00:ab:cd:ef");
	assert_string_equal(def->nics[0].addresses[0], "10.0.0.5");
	assert_string_equal(def->nics[0].addresses[1], "fd00::5");
	assert_null(def->nics[0].addresses[2]);
	assert_string_equal(def->nics[1].addresses[0], "10.0.0.6");
	assert_string_equal(def->kernel, "/boot//vmlinuz");
	assert_string_equal(def->append, "console=ttyS0 quote=\"x\" $HOME # no comment");
	assert_string_equal(def->firmware, "/usr/share/ovmf.fd");
	assert_int_equal(def->serial, SERIAL_SOCKET);
	assert_true(def->agent);
	assert_int_equal(def->graphics, GRAPHICS_SPICE);
	assert_string_equal(def->graphics_listen, "::");
	assert_int_equal(def->graphics_port, 5905);
	assert_string_equal(def->conntrack_mark, "0x100/0xff00");
	assert_int_equal(def->conntrack_zone, 7);
	assert_int_equal(def->lease, LEASE_SANLOCK);
	assert_string_equal(def->lease_path, "/dev/leases");
	assert_string_equal(def->lease_lockspace, "vms");
	assert_string_equal(def->lease_resource, "web");
	assert_int_equal(def->lease_offset, 3 << 20);
	assert_int_equal(def->lease_on_lost, LEASE_LOST_KILL);
	assert_true(def->autostart);
	assert_int_equal(strv_length(def->qemu_args), 3);
	assert_string_equal(def->qemu_args[1], "virtio-rng-pci,id=\"r\"");
	assert_string_equal(def->qemu_args[2], "");
}

static void test_defaults(void **state)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_good(M "disk vda {" DISK "}\nnic net0 { bridge = b }\n");
	(void)state;

	assert_null(def->uuid);
	assert_string_equal(def->machine, "q35");
	assert_string_equal(def->cpu, "max");
	assert_int_equal(def->cpus, 1);
	assert_int_equal(def->memory_backing, MEMORY_SHARED);
	assert_int_equal(def->accel, ACCEL_AUTO);
	assert_string_equal(def->binary, "qemu-system-x86_64");
	assert_int_equal(def->disks[0].cache, CACHE_NONE);
	assert_int_equal(def->disks[0].bus, BUS_VIRTIO);
	assert_false(def->disks[0].shared);
	assert_false(def->disks[0].readonly);
	assert_null(def->disks[0].serial);
	assert_int_equal(def->nics[0].vlan, 0);
	assert_string_equal(def->nics[0].model, "virtio-net-pci");
	assert_null(def->nics[0].mac);
	assert_null(def->nics[0].addresses);
	assert_null(def->kernel);
	assert_int_equal(def->serial, SERIAL_LOG);
	assert_false(def->agent);
	assert_int_equal(def->graphics, GRAPHICS_NONE);
	assert_int_equal(def->lease, LEASE_NONE);
	assert_false(def->autostart);
	assert_null(def->qemu_args);
}

/* Writing and parsing give the same again, for every key. */
static void test_round_trip(void **state)
{
	static const char *const texts[] = {full, M, M "disk a {" DISK "}", M "kernel = /k append = \"\""};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		_cleanup_(vm_definition_freep)
		VmDefinition *a = parse_good(texts[i]), *copy = vm_definition_copy(a);
		_cleanup_free_ char *text = vm_definition_text(a), *copied = vm_definition_text(copy), *again = NULL;
		_cleanup_(vm_definition_freep)
		VmDefinition *b = parse_good(text);
		_cleanup_strv_ char **differences = NULL;

		again = vm_definition_text(b);
		assert_string_equal(text, again);
		assert_string_equal(text, copied);
		assert_int_equal(vm_abi_compare(a, b, &differences), 0);
		assert_string_equal(copy->name, a->name);
	}
}

/* Every key of the schema is written when it is set to what it is not by default: none can be forgotten. */
static void test_text_is_complete(void **state)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_good(full), *other = parse_good(M "lease file { path = /l on-lost = pause }");
	_cleanup_free_ char *one = vm_definition_text(def), *two = vm_definition_text(other),
			    *text = xasprintf("%s%s", one, two);
	(void)state;

	for (size_t i = 0; i < definition_schema.n_keys; i++) {
		const ConfKey *key = &definition_schema.keys[i];

		if (!strstr(text, key->name))
			fail_msg("%s is not written", key->name);
		for (size_t j = 0; key->section && j < key->section->n_keys; j++) {
			_cleanup_free_ char *line = xasprintf("\t%s = ", key->section->keys[j].name);

			if (!strstr(text, line))
				fail_msg("%s: %s is not written", key->name, line);
		}
	}
}

/*
 * What is sent to other hosts, byte by byte: a key that was not there in the first version appears only where it is made
 * use of; what the guest sees is said even where it is what everybody takes by default.
 */
static void test_text(void **state)
{
	static const struct {
		const char *definition, *text;
	} cases[] = {
		{M, "machine = \"q35\"\ncpu = \"max\"\ncpus = 1\nmemory = \"64M\"\naccel = \"auto\"\nserial = \"log\"\n"},
		{M "memory-backing = shared binary = qemu-system-x86_64 agent = no autostart = no qemu-args = {}\n"
		   "disk a { file = /a format = raw shared = no readonly = no }\n"
		   "nic n { bridge = b vlan = 0 }\n"
		   "graphics vnc { listen = 127.0.0.1 port = 0 } conntrack { zone = 0 }\n"
		   "lease file { path = /l on-lost = kill offset = 0 }\n",
		 "machine = \"q35\"\ncpu = \"max\"\ncpus = 1\nmemory = \"64M\"\naccel = \"auto\"\n"
		 "disk a {\n\tfile = \"/a\"\n\tformat = \"raw\"\n\tcache = \"none\"\n\tbus = \"virtio\"\n}\n"
		 "nic n {\n\tbridge = \"b\"\n\tmodel = \"virtio-net-pci\"\n}\n"
		 "serial = \"log\"\ngraphics vnc {\n}\nlease file {\n\tpath = \"/l\"\n}\n"},
		{M "machine = pc cpus = 2 memory-backing = private accel = tcg agent = on conntrack { zone = 1 } autostart = yes\n"
		   "graphics spice { port = 5901 }\n",
		 "machine = \"pc\"\ncpu = \"max\"\ncpus = 2\nmemory = \"64M\"\nmemory-backing = \"private\"\naccel = \"tcg\"\n"
		 "serial = \"log\"\nagent = true\ngraphics spice {\n\tport = 5901\n}\nconntrack {\n\tzone = 1\n}\n"
		 "autostart = true\n"},
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		_cleanup_(vm_definition_freep)
		VmDefinition *def = parse_good(cases[i].definition), *again = NULL;
		_cleanup_free_ char *text = vm_definition_text(def), *second = NULL;

		assert_string_equal(text, cases[i].text);
		again = parse_good(text);
		second = vm_definition_text(again);
		assert_string_equal(second, cases[i].text);
	}
}

static void test_pin(void **state)
{
	static const char text[] = M "nic a { bridge = b }\nnic c { bridge = b }\n";
	_cleanup_(vm_definition_freep)
	VmDefinition *first = parse_good(text), *second = parse_good(text), *pc = parse_good(M "machine = pc"),
		     *own = NULL;
	(void)state;

	vm_definition_pin(first, NULL);
	assert_int_equal(strlen(first->uuid), 36);
	assert_non_null(startswith(first->nics[0].mac, "52:54:00:"));
	assert_string_not_equal(first->nics[0].mac, first->nics[1].mac);
	assert_string_equal(first->machine, "q35");

	free(first->machine);
	first->machine = xstrdup("pc-q35-7.2");
	vm_definition_pin(second, first);
	assert_string_equal(second->uuid, first->uuid);
	assert_string_equal(second->machine, "pc-q35-7.2");
	assert_string_equal(second->nics[0].mac, first->nics[0].mac);
	assert_string_equal(second->nics[1].mac, first->nics[1].mac);

	/* another family, and what the user has written himself, stay */
	vm_definition_pin(pc, first);
	assert_string_equal(pc->machine, "pc");
	own = parse_good(M "machine = pc-q35-6.0\nnic a { bridge = b mac = \"52:54:00:00:00:01\" }\n");
	vm_definition_pin(own, first);
	assert_string_equal(own->machine, "pc-q35-6.0");
	assert_string_equal(own->nics[0].mac, "52:54:00:00:00:01");
}

/* The user gave one NIC the MAC that another one was pinned to. */
static void test_pin_taken(void **state)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *pinned = parse_good(M "nic a { bridge = b }\n"), *def = NULL;
	_cleanup_free_ char *text = NULL;
	(void)state;

	vm_definition_pin(pinned, NULL);
	text = xasprintf(M "nic a { bridge = b }\nnic c { bridge = b mac = \"%s\" }\n", pinned->nics[0].mac);
	def = parse_good(text);
	vm_definition_pin(def, pinned);
	assert_string_not_equal(def->nics[0].mac, def->nics[1].mac);
}

/* --- enum names --- */

#define NAMES(prefix, max)                                                                                             \
	{                                                                                                              \
#prefix, max, (const char *(*)(unsigned int))(void (*)(void))prefix##_to_string, prefix##_from_string  \
	}

static void test_name_tables(void **state)
{
	static const struct {
		const char *name;
		unsigned int max;
		const char *(*to_string)(unsigned int v);
		int (*from_string)(const char *s);
	} tables[] = {
		NAMES(memory_backing, _MEMORY_MAX),   NAMES(accel, _ACCEL_MAX),
		NAMES(disk_format, _DISK_FORMAT_MAX), NAMES(disk_cache, _CACHE_MAX),
		NAMES(disk_bus, _DISK_BUS_MAX),	      NAMES(serial, _SERIAL_MAX),
		NAMES(graphics_type, _GRAPHICS_MAX),  NAMES(lease_type, _LEASE_MAX),
		NAMES(lease_on_lost, _LEASE_ON_LOST_MAX),
		NAMES(transport_choice, _CHOICE_MAX),
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		for (unsigned int v = 0; v < tables[i].max; v++) {
			assert_non_null(tables[i].to_string(v));
			assert_int_equal(tables[i].from_string(tables[i].to_string(v)), v);
		}
		assert_null(tables[i].to_string(tables[i].max));
		assert_null(tables[i].to_string((unsigned int)-1));
		assert_int_equal(tables[i].from_string("no such word"), -EINVAL);
		assert_int_equal(tables[i].from_string(""), -EINVAL);
		assert_int_equal(tables[i].from_string(NULL), -EINVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad),	    cmocka_unit_test(test_bad_without_error),
		cmocka_unit_test(test_names),	    cmocka_unit_test(test_limits),
		cmocka_unit_test(test_too_long),    cmocka_unit_test(test_load),
		cmocka_unit_test(test_full),	    cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_text_is_complete),
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_pin),	    cmocka_unit_test(test_pin_taken),
		cmocka_unit_test(test_name_tables),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
