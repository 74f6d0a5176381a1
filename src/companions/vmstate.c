/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/vmstate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BUS_OPTIONS                                                                             \
	{"bus", 'b', OPTION_TEXT, "ADDRESS", "bus", "D-Bus address, default the system bus"},  \
	{"proxmox", 0, OPTION_FLAG, NULL, "proxmox", "NAME is a VMID: names as Proxmox VE expects them"}

static const OptionSpec serve_options[] = {
	BUS_OPTIONS,
	{"qmp", 'q', OPTION_TEXT, "SOCKET", "qmp", "QEMU's QMP socket: the object dbus-vmstate is added there"},
	{"format", 'f', OPTION_CHOICE, "wire|save", "format", "of what is saved, default wire"},
	{"max-entries", 0, OPTION_TEXT, "N", "max-entries", "load no more, default 1000000"},
	{"settle", 0, OPTION_MSEC, "TIME", "settle", "strict window checks again so long after loading, default 5s"},
	{"wait", 'w', OPTION_MSEC, "TIME", "wait", "hold the guest no longer for saving and loading together, default 100ms"},
	{"log", 0, OPTION_TEXT, "FILE", "log", "write what happens to a file as well"},
	{"ready-fd", 0, OPTION_TEXT, "FD", "ready-fd", NULL},
	{NULL},
};
static const OptionSpec call_options[] = {
	BUS_OPTIONS,
	{NULL},
};

static const Verb verbs[] = {
	{"run", "NAME", "serve a VM in the foreground, as its unit does", serve_options, true, true, 1, vmstate_run},
	{"start", "NAME", "serve a VM in the background, once it is ready", serve_options, true, true, 1, vmstate_start},
	{"stop", "NAME", "end a VM's helper and say how many entries it carried", call_options, false, false, 1, vmstate_stop},
	{"status", "[NAME]", "list the helpers on the bus", call_options, false, false, 1, vmstate_status},
};
static const Program program = {
	.name = "vmferry-vmstate",
	.purpose = "Carries connection tracking entries inside QEMU's migration stream.",
	.verbs = verbs,
	.n_verbs = ARRAY_SIZE(verbs),
};

static int read_name(const Tool *tool, const char **ret, bool proxmox, Error **err)
{
	uint64_t vmid;

	*ret = tool->args[0];
	if (!vm_name_valid(*ret))
		return error_set(err, -EINVAL, "\"%s\" is not a VM's name", *ret);
	if (proxmox && (text_parse_u64(*ret, &vmid) < 0 || vmid > UINT32_MAX))
		return error_set(err, -EINVAL, "\"%s\" is not a VMID", *ret);
	return 0;
}

int naming_read(const Tool *tool, Naming *ret, Error **err)
{
	const char *name = "", *qmp = tool_text(tool, "qmp", NULL);
	bool proxmox = false;
	int r;

	(void)json_get_bool(tool->options, "proxmox", &proxmox);
	r = read_name(tool, &name, proxmox, err);
	if (r < 0)
		return r;
	*ret = (Naming){
		.id = xasprintf("%s%s", proxmox ? VMSTATE_PROXMOX_ID : "vmferry-", name),
		.interface = proxmox ? VMSTATE_PROXMOX : VMSTATE_OURS,
		.bus = tool_text(tool, "bus", NULL),
		.qmp = qmp ? xstrdup(qmp) : proxmox ? xasprintf("/var/run/qemu-server/%s.qmp", name) : NULL,
	};
	return 0;
}

void naming_done(Naming *naming)
{
	free(naming->id);
	free(naming->qmp);
}

static int connect_bus(sd_bus *bus, const char *address)
{
	int r = sd_bus_set_address(bus, address);

	if (r >= 0)
		r = sd_bus_set_bus_client(bus, true);
	return r < 0 ? r : sd_bus_start(bus);
}

int vmstate_bus_open(const Naming *naming, sd_bus **ret, Error **err)
{
	const char *what = naming->bus ? naming->bus : "the system bus";
	sd_bus *bus = NULL;
	int r;

	if (!naming->bus) {
		r = sd_bus_open_system(&bus);
	} else {
		r = sd_bus_new(&bus);
		if (r >= 0)
			r = connect_bus(bus, naming->bus);
	}
	if (r >= 0)
		r = sd_bus_get_unique_name(bus, &(const char *){NULL});
	if (r < 0) {
		sd_bus_unref(bus);
		error_set(err, r, "Cannot connect to %s: %s", what, strerror(-r));
		error_hint(err, "see that dbus-daemon runs, and --bus");
		return r;
	}
	*ret = bus;
	return 0;
}

int main(int argc, char **argv)
{
	return tool_main(&program, argc, argv);
}
