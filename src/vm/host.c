/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "host.h"

#include <errno.h>
#include <stdio.h>
#include <systemd/sd-id128.h>
#include <unistd.h>

#include "basic/fs.h"
#include "basic/paths.h"
#include "basic/text.h"
#include "conf.h"

/* The schema of host.conf: all that is said about a key is said here (and in vmferry-host.conf(5)). */

/* sd-id128(3): hosts show each other an id made of this and the machine id, never the machine id itself. */
#define VMFERRY_APP_ID SD_ID128_MAKE(5d, a2, 0b, 5e, 7b, 0e, 4c, 0c, 9a, 2f, 3d, 61, f8, 47, 19, c4)

static void store_ports(void *object, const char *value)
{
	HostConf *conf = object;

	/* The form has been checked. */
	conf->port_min = (unsigned int)strtoul(value, NULL, 10);
	conf->port_max = (unsigned int)strtoul(strchr(value, '-') + 1, NULL, 10);
}

static void store_mask(void *object, const char *value)
{
	((HostConf *)object)->receive.marks_mask = (uint32_t)strtoul(value, NULL, 10);
}

static const ConfKey receive_keys[] = {
	{"peers", CONF_LIST, 0, CONF_FIELD(HostConf, receive.peers), .check = conf_check_host_id},
	{"prefixes", CONF_LIST, 0, CONF_FIELD(HostConf, receive.prefixes), .check = conf_check_prefix},
	{"bridges", CONF_LIST, 0, CONF_FIELD(HostConf, receive.bridges), .check = conf_check_bridge},
	{"disk-paths", CONF_LIST, 0, CONF_FIELD(HostConf, receive.disk_paths), .check = conf_check_directory},
	{"binaries", CONF_LIST, 0, CONF_FIELD(HostConf, receive.binaries), .check = conf_check_binary},
	{"qemu-args", CONF_BOOL, 0, CONF_FIELD(HostConf, receive.qemu_args), .fallback = "false"},
	{"marks-mask", CONF_TEXT, .check = conf_check_mask, .store = store_mask},
	{"helpers", CONF_LIST, CONF_UNIQUE, CONF_FIELD(HostConf, receive.helpers), .check = conf_check_helper},
	{"any-address", CONF_BOOL, 0, CONF_FIELD(HostConf, receive.any_address), .fallback = "false"},
	{"max-entries", CONF_NUMBER, 0, CONF_FIELD(HostConf, receive.max_entries), .min = 0, .max = 100000000,
	 .fallback = "1000000"},
	{"max-memory", CONF_SIZE, 0, CONF_FIELD(HostConf, receive.max_memory), .max = 1ULL << 50, .fallback = "0"},
};

static const ConfSection receive_section = {
	.name = "receive",
	.keys = receive_keys,
	.n_keys = ARRAY_SIZE(receive_keys),
	.max = 1,
};

#define SECONDS(word, field, most, usual)                                                                              \
	{                                                                                                              \
		word, CONF_NUMBER, 0, CONF_FIELD(HostConf, deadlines.field), .min = 1, .max = most,                    \
									     .scale = USEC_PER_SEC, .fallback = usual  \
	}

const char *const host_deadline_names[] = {"connect", "prepare", "no-progress", "switchover", "finish", "gate", "link"};
static_assert(ARRAY_SIZE(host_deadline_names) == N_HOST_DEADLINES, "a name for every deadline");
static_assert(offsetof(HostDeadlines, link) == 6 * sizeof(uint64_t), "in their order");

static const ConfKey deadlines_keys[] = {
	SECONDS("connect", connect, 600, "15"),
	SECONDS("prepare", prepare, 600, "30"),
	SECONDS("no-progress", no_progress, 3600, "60"),
	SECONDS("switchover", switchover, 600, "5"),
	SECONDS("finish", finish, 600, "10"),
	{"gate-ms", CONF_NUMBER, 0, CONF_FIELD(HostConf, deadlines.gate), .max = 10000, .scale = USEC_PER_MSEC,
	 .fallback = "200"},
	SECONDS("link", link, 600, "10"),
};

static const ConfSection deadlines_section = {
	.name = "deadlines",
	.keys = deadlines_keys,
	.n_keys = ARRAY_SIZE(deadlines_keys),
	.max = 1,
};

static const ConfKey host_keys[] = {
	{"host-id", CONF_TEXT, 0, CONF_FIELD(HostConf, host_id), .check = conf_check_host_id},
	{"host-name", CONF_TEXT, 0, CONF_FIELD(HostConf, host_name), .check = conf_check_host_name},
	{"migration-address", CONF_TEXT, 0, CONF_FIELD(HostConf, migration_address), .check = conf_check_address},
	{"migration-ports", CONF_TEXT, .fallback = "49152-49215", .check = conf_check_ports, .store = store_ports},
	{"transport", CONF_WORD, 0, CONF_FIELD(HostConf, transport), .words = &transport_choice_table,
	 .fallback = "auto"},
	{"remote-command", CONF_TEXT, 0, CONF_FIELD(HostConf, remote_command), .check = conf_check_command,
	 .fallback = "vmferry receive"},
	{"qemu-user", CONF_TEXT, 0, CONF_FIELD(HostConf, qemu_user), .check = conf_check_user, .fallback = "nobody"},
	{"binary", CONF_TEXT, 0, CONF_FIELD(HostConf, binary), .check = conf_check_binary},
	{"receive", CONF_SECTION, .section = &receive_section},
	{"deadlines", CONF_SECTION, .section = &deadlines_section},
};
static_assert(ARRAY_SIZE(host_keys) <= CONF_KEYS_MAX, "ConfLines has room for every key");

static const ConfSection host_schema = {
	.name = "host.conf",
	.keys = host_keys,
	.n_keys = ARRAY_SIZE(host_keys),
	.max = 1,
};

static int default_host_id(HostConf *conf, Error **err)
{
	char text[SD_ID128_STRING_MAX];
	sd_id128_t id;
	int r;

	r = sd_id128_get_machine_app_specific(VMFERRY_APP_ID, &id);
	if (r < 0) {
		error_set(err, r, "this host has no machine id: %s", strerror(-r));
		error_hint(err, "run systemd-machine-id-setup, or set host-id in %s/host.conf", config_dir());
		return r;
	}
	conf->host_id = xstrdup(sd_id128_to_string(id, text));
	return 0;
}

static int default_host_name(HostConf *conf, Error **err)
{
	char name[256] = "";
	_cleanup_free_ char *canonical = NULL;
	int r;

	if (gethostname(name, sizeof(name) - 1) < 0)
		return error_set(err, -errno, "cannot get the host's name: %m");
	r = conf_check_host_name(name, &canonical, err);
	if (r < 0) {
		error_prefix(err, "the host's name: ");
		return r;
	}
	conf->host_name = TAKE_PTR(canonical);
	return 0;
}

int host_conf_parse(const char *text, const char *origin, HostConf **ret, Error **err)
{
	_cleanup_(host_conf_freep)
	HostConf *conf = xcalloc(1, sizeof(*conf));
	int r;

	r = conf_parse(&host_schema, text, origin, conf, NULL, err);
	if (r == 0 && !conf->host_id)
		r = default_host_id(conf, err);
	if (r == 0 && !conf->host_name)
		r = default_host_name(conf, err);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(conf);
	return 0;
}

int host_conf_load(HostConf **ret, Error **err)
{
	_cleanup_free_ char *path = xasprintf("%s/host.conf", config_dir()), *text = NULL;
	int r;

	if (access(path, F_OK) < 0 && errno == ENOENT)
		return host_conf_parse("", path, ret, err);
	r = conf_load(path, &text, err);
	return r < 0 ? r : host_conf_parse(text, path, ret, err);
}

void host_conf_free(HostConf *conf)
{
	if (!conf)
		return;
	conf_clear(&host_schema, conf);
	free(conf);
}
