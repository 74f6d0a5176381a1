/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>


#define SLICE "machine.slice"

const char *scope_slice(void)
{
	return access("/run/systemd/system", F_OK) < 0 ? NULL : "/" SLICE;
}

static int on_started(sd_bus_message *reply, void *userdata, sd_bus_error *error)
{
	const sd_bus_error *e = sd_bus_message_get_error(reply);

	(void)userdata;
	(void)error;
	if (e)
		log_warning("systemd does not give QEMU a scope of its own: %s", e->message);
	sd_bus_detach_event(sd_bus_message_get_bus(reply));
	return 0;
}

static int send_request(Keeper *k, const QemuProcess *qemu, sd_bus *bus)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *m = NULL;
	_cleanup_free_ char *unit = xasprintf("vmferry-%s-%u.scope", k->name, qemu->generation);
	_cleanup_free_ char *description = xasprintf("Virtual machine %s", k->name);
	int r;

	r = sd_bus_message_new_method_call(bus, &m, "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
					   "org.freedesktop.systemd1.Manager", "StartTransientUnit");
	if (r >= 0)
		r = sd_bus_message_append(m, "ss", unit, "replace");
	if (r >= 0)
		r = sd_bus_message_append(m, "a(sv)", 5, "Description", "s", description, "Slice", "s", SLICE,
					  "PIDs", "au", 1, (uint32_t)qemu->pid, "Before", "as", 1,
					  "vmferry-guests.service", "CollectMode", "s", "inactive-or-failed");
	if (r >= 0)
		r = sd_bus_message_append(m, "a(sa(sv))", 0);
	return r < 0 ? r : sd_bus_call_async(bus, NULL, m, on_started, NULL, 0);
}

void scope_start(Keeper *k, const QemuProcess *qemu)
{
	_cleanup_(sd_bus_unrefp)
	sd_bus *bus = NULL;
	int r;

	if (!scope_slice())
		return;
	r = sd_bus_open_system(&bus);
	if (r >= 0)
		r = sd_bus_attach_event(bus, k->event, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0)
		r = send_request(k, qemu, bus);
	if (r < 0)
		log_warning("systemd does not give QEMU a scope of its own: %s", strerror(-r));
	k->systemd_bus = sd_bus_flush_close_unref(k->systemd_bus);
	k->systemd_bus = TAKE_PTR(bus);
}

int scope_check(const QemuProcess *qemu, const VmDefinition *def, Error **err)
{
	_cleanup_free_ char *ours = room_own_cgroup(0), *path = room_own_cgroup(qemu->pid);
	uint64_t room = streq_null(ours, path) ? UINT64_MAX : room_cgroup(cgroup_dir(), path);

	if (def->memory_backing == MEMORY_HUGE || def->memory <= room)
		return 0;
	error_set(err, -ENOMEM, "memory: %" PRIu64 " MiB wanted, QEMU's control group %s leaves %" PRIu64 " MiB",
		  def->memory >> 20, path, room >> 20);
	error_hint(err, "raise its memory.max: systemctl cat machine.slice '%s'", strrchr(path, '/') + 1);
	return -ENOMEM;
}
