/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "basic/fs.h"
#include "basic/text.h"
#include "vm/host.h"

#define ID "host-id = h1 host-name = alpha\n"

static HostConf *parse_host(const char *text)
{
	_cleanup_error_ Error *err = NULL;
	HostConf *conf = NULL;

	if (host_conf_parse(text, "host.conf", &conf, &err) < 0)
		fail_msg("%s: %s", text, err->message);
	return conf;
}

static VmDefinition *parse_vm(const char *text)
{
	_cleanup_error_ Error *err = NULL;
	VmDefinition *def = NULL;

	if (vm_definition_parse("web1", text, "x.vm", &def, &err) < 0)
		fail_msg("%s: %s", text, err->message);
	return def;
}

static void test_defaults(void **state)
{
	_cleanup_(host_conf_freep)
	HostConf *conf = parse_host(ID);
	char name[256];
	(void)state;

	assert_string_equal(conf->host_id, "h1");
	assert_string_equal(conf->host_name, "alpha");
	assert_null(conf->migration_address);
	assert_int_equal(conf->port_min, 49152);
	assert_int_equal(conf->port_max, 49215);
	assert_int_equal(conf->transport, CHOICE_AUTO);
	assert_string_equal(conf->remote_command, "vmferry receive");
	assert_string_equal(conf->qemu_user, "nobody");
	assert_null(conf->binary);
	assert_null(conf->receive.peers);
	assert_null(conf->receive.disk_paths);
	assert_false(conf->receive.qemu_args);
	assert_null(conf->receive.helpers);
	assert_int_equal(conf->receive.marks_mask, 0);
	assert_int_equal(conf->receive.max_entries, 1000000);
	assert_int_equal(conf->receive.max_memory, 0);
	assert_int_equal(conf->deadlines.connect, 15000000);
	assert_int_equal(conf->deadlines.prepare, 30000000);
	assert_int_equal(conf->deadlines.no_progress, 60000000);
	assert_int_equal(conf->deadlines.switchover, 5000000);
	assert_int_equal(conf->deadlines.finish, 10000000);
	assert_int_equal(conf->deadlines.gate, 200000);
	assert_int_equal(conf->deadlines.link, 10000000);

	host_conf_free(TAKE_PTR(conf));
	conf = parse_host("host-id = h1");
	assert_int_equal(gethostname(name, sizeof(name)), 0);
	assert_string_equal(conf->host_name, name);
}

static void test_full(void **state)
{
	_cleanup_(host_conf_freep)
	HostConf *conf = parse_host(
		ID "migration-address = \"FD00::1\" migration-ports = \"50000-50009\" transport = tls\n"
		   "remote-command = \"sudo vmferry receive\" qemu-user = \"_qemu\" binary = /opt/qemu\n"
		   "receive { peers = { h2, beta } prefixes = { \"10.0.0.0/24\", \"fd00::/64\" } bridges = { br0 }\n"
		   "disk-paths = { /srv } binaries = { /opt/q10 } qemu-args = true marks-mask = 0xff00 helpers = { ftp, Q.931 }\n"
		   "max-entries = 5 max-memory = 4G }\n"
		   "deadlines { connect = 1 prepare = 2 no-progress = 3 switchover = 4 finish = 5 gate-ms = 6 link = 7 "
		   "}\n");
	(void)state;

	assert_string_equal(conf->migration_address, "fd00::1");
	assert_int_equal(conf->port_min, 50000);
	assert_int_equal(conf->port_max, 50009);
	assert_int_equal(conf->transport, CHOICE_TLS);
	assert_string_equal(conf->remote_command, "sudo vmferry receive");
	assert_string_equal(conf->qemu_user, "_qemu");
	assert_string_equal(conf->binary, "/opt/qemu");
	assert_string_equal(conf->receive.peers[1], "beta");
	assert_string_equal(conf->receive.prefixes[1], "fd00::/64");
	assert_string_equal(conf->receive.bridges[0], "br0");
	assert_string_equal(conf->receive.disk_paths[0], "/srv");
	assert_string_equal(conf->receive.binaries[0], "/opt/q10");
	assert_true(conf->receive.qemu_args);
	assert_int_equal(conf->receive.marks_mask, 0xff00);
	assert_int_equal(conf->receive.max_entries, 5);
	assert_int_equal(conf->receive.max_memory, 4ULL << 30);
	assert_int_equal(conf->deadlines.connect, 1000000);
	assert_int_equal(conf->deadlines.no_progress, 3000000);
	assert_int_equal(conf->deadlines.gate, 6000);
	assert_int_equal(conf->deadlines.link, 7000000);
}

static void test_bad(void **state)
{
	static const struct {
		const char *text, *message, *hint;
	} rows[] = {
		{"host-id = \"a b\"", "1: host-id: ", "64 at most"},
		{"\nhost-name = \"a/b\"", "2: host-name: ", NULL},
		{"\nmigration-address = eth0", "2: migration-address: ", NULL},
		{"migration-ports = \"80-90\"", "1: migration-ports: ", "49152-49215"},
		{"migration-ports = \"50009-50000\"", "1: migration-ports: ", NULL},
		{"migration-ports = 50000", "1: migration-ports: ", NULL},
		{"migration-ports = \"50000-99999\"", "1: migration-ports: ", NULL},
		{"transport = rdma", "1: transport: \"rdma\" is not known", "\"tls\""},
		{"remote-command = \"\"", "1: remote-command: ", NULL},
		{"remote-command = \"vmferry 'receive\"", "1: remote-command: ", NULL},
		{"qemu-user = root", "1: qemu-user: ", "never runs as root"},
		{"qemu-user = \"_\"", "1: qemu-user: ", NULL},
		{"qemu-user = \"_a/../b\"", "1: qemu-user: ", NULL},
		{"receive { prefixes = { \"10.0.0.1/24\" } }", "1: receive: prefixes: ", "10.0.0.0/24"},
		{"receive { prefixes = { \"10.0.0.0\" } }", "1: receive: prefixes: ", NULL},
		{"receive { prefixes = { \"10.0.0.0/33\" } }", "1: receive: prefixes: ", NULL},
		{"receive { disk-paths = { srv } }", "1: receive: disk-paths: ", NULL},
		{"receive { marks-mask = 0x1ffffffff }", "1: receive: marks-mask: ", NULL},
		{"receive { marks-mask = \"-1\" }", "1: receive: marks-mask: ", NULL},
		{"receive { helpers = { \"f t p\" } }", "1: receive: helpers: ", NULL},
		{"receive { helpers = { abcdefghijklmnop } }", "1: receive: helpers: ", NULL},
		{"receive { max-memory = much }", "1: receive: max-memory: ", NULL},
		{"receive { }\nreceive { }", "2: receive stands here a second time", "line 1"},
		{"receive x { }", "1: section \"receive\" takes no name", "receive {"},
		{"receive {\npeer = { a } }", "2: unknown key \"peer\" in receive", "\"peers\""},
		{"deadlines { connect = 0 }", "1: deadlines: connect: 0 is too small", NULL},
		{"deadlines { gate-ms = 10001 }", "1: deadlines: gate-ms: 10001 is too large", NULL},
		{"deadlines { connect = 1", "1: section deadlines begins here", NULL},
		{"binary = \"${HOME}/qemu\"", "1: \"${\" is not allowed", NULL},
	};
	(void)state;

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_error_ Error *err = NULL;
		HostConf *conf = NULL;
		const char *rest;

		if (host_conf_parse(rows[i].text, "host.conf", &conf, &err) != -EINVAL)
			fail_msg("accepted: %s", rows[i].text);
		rest = startswith(err->message, "host.conf:");
		if (!rest || !startswith(rest, rows[i].message))
			fail_msg("for: %s\nsaid: %s", rows[i].text, err->message);
		if (rows[i].hint && (!err->hint || !strstr(err->hint, rows[i].hint)))
			fail_msg("for: %s\nhint: %s", rows[i].text, err->hint ? err->hint : "(none)");
	}
}

/* --- policy: each forged field is refused by the key that guards it, and by no other --- */

#define VM(body) "memory = 64M " body
#define NIC(body) VM("nic net0 { bridge = br0 " body "}")
#define DISK(path) VM("disk vda { format = raw file = \"" path "\" }")

static const struct {
	const char *receive, *vm;
	const char *key; /* NULL: taken */
	const char *message;
} policies[] = {
	{"", VM("disk vda { format = raw file = /anywhere } nic net0 { bridge = any addresses = { \"1.2.3.4\" } }"),
	 NULL, NULL},
	{"peers = { p1 }", VM(""), NULL, NULL},
	{"peers = { peer-name }", VM(""), NULL, NULL},
	{"peers = { p2, other }", VM(""), "peers", "host peer-name (p1)"},
	{"peers = { p }", VM(""), "peers", NULL},

	{"prefixes = { \"10.0.0.0/24\" }", NIC("addresses = { \"10.0.0.255\" }"), NULL, NULL},
	{"prefixes = { \"10.0.0.0/24\" }", NIC(""), NULL, NULL},
	{"prefixes = { \"10.0.0.0/24\" }", NIC("addresses = { \"10.0.1.0\" }"), "prefixes",
	 "nic net0: address 10.0.1.0"},
	{"prefixes = { \"10.0.0.0/24\" }", NIC("addresses = { \"10.0.0.1\", \"9.0.0.1\" }"), "prefixes", "9.0.0.1"},
	{"prefixes = { \"10.0.0.0/24\" }", NIC("addresses = { \"a00::1\" }"), "prefixes", NULL},
	{"prefixes = { \"10.0.0.0/25\" }", NIC("addresses = { \"10.0.0.128\" }"), "prefixes", NULL},
	{"prefixes = { \"10.0.0.0/25\" }", NIC("addresses = { \"10.0.0.127\" }"), NULL, NULL},
	{"prefixes = { \"0.0.0.0/0\" }", NIC("addresses = { \"10.0.0.127\" }"), NULL, NULL},
	{"prefixes = { \"0.0.0.0/0\" }", NIC("addresses = { \"fd00::1\" }"), "prefixes", NULL},
	{"prefixes = { \"::/0\" }", NIC("addresses = { \"10.0.0.1\" }"), "prefixes", NULL},
	{"prefixes = { \"10.0.0.7/32\" }", NIC("addresses = { \"10.0.0.7\" }"), NULL, NULL},
	{"prefixes = { \"10.0.0.7/32\" }", NIC("addresses = { \"10.0.0.6\" }"), "prefixes", NULL},
	{"prefixes = { \"fd00:1::/33\", \"10.0.0.0/8\" }", NIC("addresses = { \"fd00:1:7fff::1\", \"10.1.1.1\" }"),
	 NULL, NULL},
	{"prefixes = { \"fd00:1::/33\" }", NIC("addresses = { \"fd00:1:8000::1\" }"), "prefixes", NULL},

	{"bridges = { br0 }", NIC(""), NULL, NULL},
	{"bridges = { br1, br00 }", NIC(""), "bridges", "nic net0: bridge br0"},

	{"disk-paths = { \"@/ok\" }", DISK("@/ok/a.raw"), NULL, NULL},
	{"disk-paths = { \"@/ok/\" }", DISK("@/ok/new.raw"), NULL, NULL},
	{"disk-paths = { \"/nowhere\", \"@/ok\" }", DISK("@/ok/sub/a.raw"), NULL, NULL},
	{"disk-paths = { \"/\" }", DISK("@/other/a.raw"), NULL, NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/other/a.raw"), "disk-paths", "disk vda: file: "},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok2/a.raw"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/../other/a.raw"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/sub/../a.raw"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/.."), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/a..raw"), NULL, NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/out.raw"), "disk-paths", NULL},      /* link to a file outside */
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/outdir/a.raw"), "disk-paths", NULL}, /* directory link */
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/outdir/new.raw"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/dangling.raw"), "disk-paths", NULL}, /* link to what may come to be */
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/inside.raw"), NULL, NULL},
	{"disk-paths = { \"@/ok\" }", DISK("@/ok/missing/new.raw"), "disk-paths", NULL},
	{"disk-paths = { \"@/ok\" }", VM("kernel = \"@/other/a.raw\""), "disk-paths", "kernel: "},
	{"disk-paths = { \"@/ok\" }", VM("kernel = \"@/ok/k\" initrd = /etc/passwd"), "disk-paths", "initrd: "},
	{"disk-paths = { \"@/ok\" }", VM("firmware = /etc/passwd"), "disk-paths", "firmware: "},
	{"disk-paths = { \"@/ok\" }", VM("lease file { path = /etc/passwd }"), "disk-paths", "lease: "},

	{"", VM("binary = \"qemu-system-x86_64\""), NULL, NULL},
	{"", VM("binary = /opt/own"), NULL, NULL},
	{"", VM("binary = /bin/sh"), "binaries", "binary /bin/sh"},
	{"binaries = { /opt/q }", VM("binary = /opt/q"), NULL, NULL},
	{"binaries = { /opt/q }", VM("binary = /opt/q/../sh"), "binaries", NULL},

	{"", VM("qemu-args = { \"-device\", \"x\" }"), "qemu-args", "qemu-args"},
	{"qemu-args = false", VM("qemu-args = { \"-device\" }"), "qemu-args", NULL},
	{"qemu-args = true", VM("qemu-args = { \"-device\" }"), NULL, NULL},

	{"max-memory = 64M", VM(""), NULL, NULL},
	{"max-memory = 63M", VM(""), "max-memory", "memory 64 MiB"},
};

static char *replace_at(const char *text, const char *with)
{
	char *out = xstrdup("");

	for (; *text; text++) {
		_cleanup_free_ char *old = out;

		out = *text == '@' ? xasprintf("%s%s", old, with) : xasprintf("%s%c", old, *text);
	}
	return out;
}

static void make_tree(const char *base)
{
	static const char *const dirs[] = {"@/ok/sub", "@/ok2", "@/other"};
	static const char *const files[] = {"@/ok/a.raw", "@/ok2/a.raw", "@/other/a.raw", "@/ok/sub/a.raw", "@/ok/k"};
	static const char *const links[][2] = {
		{"@/other/a.raw", "@/ok/out.raw"},
		{"@/other", "@/ok/outdir"},
		{"@/other/not-yet", "@/ok/dangling.raw"},
		{"sub/a.raw", "@/ok/inside.raw"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		_cleanup_free_ char *dir = replace_at(dirs[i], base);

		assert_int_equal(dir_make(dir, 0755), 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		_cleanup_free_ char *file = replace_at(files[i], base);

		assert_int_equal(file_write(file, "x", 1, 0644, false), 0);
	}
	for (size_t i = 0; i < ARRAY_SIZE(links); i++) {
		_cleanup_free_ char *to = replace_at(links[i][0], base), *at = replace_at(links[i][1], base);

		assert_int_equal(symlink(to, at), 0);
	}
}

static void check_policy(size_t i, const char *base)
{
	_cleanup_free_ char *receive = replace_at(policies[i].receive, base), *vm = replace_at(policies[i].vm, base);
	_cleanup_free_ char *text = xasprintf(ID "binary = /opt/own receive { %s }", receive), *hint = NULL;
	_cleanup_(host_conf_freep)
	HostConf *conf = parse_host(text);
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_vm(vm);
	_cleanup_error_ Error *err = NULL;
	int r = host_policy_check(conf, "p1", "peer-name", def, &err);

	if (r != (policies[i].key ? -EPERM : 0))
		fail_msg("receive { %s }\n%s\n%d: %s", receive, vm, r, err ? err->message : "taken");
	if (r == 0)
		return;
	hint = xasprintf("host.conf on alpha, receive { %s }", policies[i].key);
	if (!startswith(err->hint, hint))
		fail_msg("%s\nhint: %s", vm, err->hint);
	if (policies[i].message && !strstr(err->message, policies[i].message))
		fail_msg("%s\nsaid: %s", vm, err->message);
}

static void test_policy(void **state)
{
	_cleanup_free_ char *base = xasprintf("/tmp/vmferry-test-host.%d", (int)getpid());
	(void)state;

	dir_remove(base);
	make_tree(base);
	for (size_t i = 0; i < ARRAY_SIZE(policies); i++)
		check_policy(i, base);
	assert_int_equal(dir_remove(base), 0);
}

/* A path may lead elsewhere when it is opened: what counts is the file that was. */
static void test_policy_opened(void **state)
{
	_cleanup_free_ char *base = xasprintf("/tmp/vmferry-test-host.%d", (int)getpid()),
			    *inside = xasprintf("%s/ok/k", base), *outside = xasprintf("%s/ok2/k", base),
			    *link = xasprintf("%s/ok/link", base), *dir = xasprintf("%s/ok", base);
	char *dirs[] = {dir, NULL}, *none[] = {NULL};
	int fd;
	(void)state;

	dir_remove(base);
	make_tree(base);
	assert_int_equal(file_write(outside, "x", 1, 0600, false), 0);
	assert_int_equal(symlink(inside, link), 0);
	fd = open(link, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_true(host_path_allowed(NULL, fd));
	assert_true(host_path_allowed(dirs, fd));
	assert_false(host_path_allowed(none, fd));
	close(fd);
	assert_int_equal(unlink(link), 0);
	assert_int_equal(symlink(outside, link), 0);
	fd = open(link, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_false(host_path_allowed(dirs, fd));
	assert_true(host_path_allowed(NULL, fd));
	close(fd);
	assert_int_equal(dir_remove(base), 0);
}

/* What a peer says of itself is printed only clean. */
static void test_policy_hostile_name(void **state)
{
	_cleanup_(host_conf_freep)
	HostConf *conf = parse_host(ID "receive { peers = { p2 } }");
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_vm(VM(""));
	_cleanup_error_ Error *err = NULL;
	(void)state;

	assert_int_equal(host_policy_check(conf, "\033[2J", "a\nb", def, &err), -EPERM);
	assert_null(strpbrk(err->message, "\033\n"));
}

/* --- resources --- */

static void test_resources(void **state)
{
	static const struct {
		const char *vm;
		int code;
		const char *message;
	} rows[] = {
		{"binary = /bin/true", 0, NULL},
		{"binary = true", 0, NULL},
		{"binary = /nowhere/qemu", -ENOENT, "there is no program /nowhere/qemu"},
		{"binary = no-such-qemu", -ENOENT, "there is no program no-such-qemu"},
		{"binary = /tmp", -ENOENT, "there is no program /tmp"},
		{"binary = /etc/passwd", -ENOENT, "there is no program"},
		{"binary = true nic n { bridge = nosuchbr }", -ENODEV, "nic n: there is no bridge nosuchbr"},
		{"binary = true nic n { bridge = lo }", -ENODEV, "nic n: lo is not a bridge"},
		{"binary = true disk a { format = raw file = \"@/ok/a.raw\" }", 0, NULL},
		{"binary = true disk a { format = qcow2 file = \"@/ok/a.raw\" }", -EINVAL, "is not a qcow2 image"},
		{"binary = true disk a { format = qcow2 file = \"@/ok/k\" }", -EINVAL, "is not a qcow2 image"},
		{"binary = true disk a { format = raw file = \"@/ok/none\" }", -ENOENT, "disk a: cannot open"},
		{"binary = true disk a { format = raw file = \"@/ok/sub\" readonly = true }", -EINVAL,
		 "neither a file nor a block device"},
		{"binary = true disk a { format = raw file = /dev/null }", -EINVAL, "neither a file"},
		{"binary = true kernel = \"@/ok/k\"", 0, NULL},
		{"binary = true kernel = \"@/ok/none\"", -ENOENT, "kernel: user nobody cannot open"},
		{"binary = true kernel = \"@/ok/k\" initrd = \"@/ok/sub\"", -EINVAL, "initrd: "},
		{"binary = true firmware = \"@/ok2/secret\"", -EACCES, "firmware: user nobody cannot open"},
		{"binary = true firmware = \"@/ok2/group\"", -EACCES, "firmware: user nobody cannot open"},
	};
	_cleanup_free_ char *base = xasprintf("/tmp/vmferry-test-host.%d", (int)getpid()),
			    *secret = xasprintf("%s/ok2/secret", base), *group = xasprintf("%s/ok2/group", base);
	_cleanup_(host_conf_freep)
	HostConf *conf = parse_host(ID);
	(void)state;

	dir_remove(base);
	make_tree(base);
	assert_int_equal(file_write(secret, "x", 1, 0600, false), 0);
	assert_int_equal(file_write(group, "x", 1, 0640, false), 0); /* root's group is not QEMU's */
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_free_ char *body = replace_at(rows[i].vm, base), *text = xasprintf("memory = 16M %s", body);
		_cleanup_(vm_definition_freep)
		VmDefinition *def = parse_vm(text);
		_cleanup_error_ Error *err = NULL;
		int r;

		if (rows[i].code == -EACCES && geteuid() != 0)
			continue;
		r = host_check_resources(conf, def, &err);
		if (r != rows[i].code || (r < 0 && !strstr(err->message, rows[i].message)))
			fail_msg("%s: %d %s", text, r, err ? err->message : "");
		/* the rights are back */
		assert_int_equal(access(secret, R_OK), 0);
	}
	assert_int_equal(dir_remove(base), 0);
}

static void test_resources_memory(void **state)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_vm("memory = 64M"), *huge = parse_vm("memory = 64M memory-backing = huge");
	HostMemory need = host_memory_of(def, NULL);
	_cleanup_error_ Error *err = NULL, *no_pages = NULL;
	(void)state;

	assert_true(need.bytes == (64 + 48) << 20 && need.huge == 0);
	assert_string_equal(need.name, def->name);
	assert_int_equal(host_check_memory(&need, NULL, NULL), 0);
	need.bytes = 1ULL << 55;
	assert_int_equal(host_check_memory(&need, NULL, &err), -ENOMEM);
	assert_non_null(strstr(err->message, "memory: 34359738368 MiB wanted"));
	assert_non_null(strstr(err->message, "MiB available"));
	need = host_memory_of(huge, NULL);
	assert_true(need.bytes == 48 << 20 && need.huge == 64 << 20);
	need.huge = 1ULL << 55;
	assert_int_equal(host_check_memory(&need, NULL, &no_pages), -ENOMEM);
	assert_non_null(strstr(no_pages->message, "MiB free in huge pages"));
}

/* Under systemd QEMU is in another control group than we are: its limit counts, with what is promised to others. */
static void test_resources_promised(void **state)
{
	char base[] = "/tmp/vmferry-test-host.XXXXXX";
	_cleanup_(vm_definition_freep)
	VmDefinition *def = parse_vm("memory = 64M");
	HostMemory need = host_memory_of(def, "/machine.slice");
	_cleanup_error_ Error *less = NULL, *taken = NULL;
	_cleanup_free_ char *slice = NULL, *max = NULL, *vm = NULL, *other = NULL;
	Room *room = NULL, *second = NULL;
	(void)state;

	assert_non_null(mkdtemp(base));
	slice = xasprintf("%s/machine.slice", base);
	max = xasprintf("%s/memory.max", slice);
	vm = xasprintf("%s/%s", base, def->name);
	other = xasprintf("%s/other", base);
	assert_int_equal(dir_make(slice, 0755) + dir_make(vm, 0711) + dir_make(other, 0711), 0);
	assert_int_equal(setenv("VMFERRY_CGROUP_DIR", base, 1) + setenv("VMFERRY_RUNTIME_DIR", base, 1), 0);

	assert_int_equal(file_write(max, "117440511\n", 10, 0644, false), 0);
	assert_int_equal(host_check_memory(&need, &room, &less), -ENOMEM);
	assert_string_equal(less->message, "memory: 112 MiB wanted, 111 MiB available");
	assert_null(room);

	assert_int_equal(file_write(max, "234881024\n", 10, 0644, false), 0); /* two of them */
	assert_int_equal(host_check_memory(&need, &room, NULL), 0);
	need.name = "other";
	need.bytes++;
	assert_int_equal(host_check_memory(&need, &second, &taken), -EAGAIN);
	assert_null(second);
	assert_non_null(strstr(taken->message, "memory: 112 MiB wanted, 224 MiB available, of which are promised: "));
	assert_non_null(strstr(taken->message, " 112 MiB"));
	assert_non_null(strstr(taken->message, def->name));
	need.bytes--;
	assert_int_equal(host_check_memory(&need, &second, NULL), 0);
	room_free(second);
	room_free(room);
	assert_int_equal(unsetenv("VMFERRY_CGROUP_DIR") + unsetenv("VMFERRY_RUNTIME_DIR"), 0);
	assert_int_equal(dir_remove(base), 0);
}

static void test_load(void **state)
{
	_cleanup_free_ char *base = xasprintf("/tmp/vmferry-test-host.%d", (int)getpid()),
			    *path = xasprintf("%s/host.conf", base);
	_cleanup_(host_conf_freep)
	HostConf *conf = NULL;
	_cleanup_error_ Error *err = NULL, *quiet = NULL;
	int r;
	(void)state;

	dir_remove(base);
	assert_int_equal(dir_make(base, 0755), 0);
	assert_int_equal(setenv("VMFERRY_CONFIG_DIR", base, 1), 0);
	assert_int_equal(file_write(path, ID, strlen(ID), 0644, false), 0);
	assert_int_equal(host_conf_load(&conf, &err), 0);
	assert_string_equal(conf->host_name, "alpha");
	host_conf_free(TAKE_PTR(conf));

	/* without a file: this machine's id, or word of what to do */
	assert_int_equal(unlink(path), 0);
	r = host_conf_load(&conf, &quiet);
	if (r < 0)
		assert_non_null(strstr(quiet->hint, "set host-id"));
	else
		assert_true(text_is_id(conf->host_id));

	assert_int_equal(dir_make(path, 0755), 0);
	host_conf_free(TAKE_PTR(conf));
	assert_int_equal(host_conf_load(&conf, &err), -EISDIR);
	assert_int_equal(dir_remove(base), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_policy_hostile_name),
		cmocka_unit_test(test_policy_opened),
		cmocka_unit_test(test_resources),
		cmocka_unit_test(test_resources_memory),
		cmocka_unit_test(test_resources_promised),
		cmocka_unit_test(test_load),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
