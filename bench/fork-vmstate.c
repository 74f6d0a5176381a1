/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What bench/conntrack compares vmferry-vmstate with: the way Proxmox VE's helper goes, a service on the bus whose Save
 * starts conntrack(8) while the guest is stopped and hands its text over, and whose Load has conntrack(8) read it.
 * Usage: fork-vmstate BUS-ADDRESS ID GUEST-ADDRESS; "ready" on standard output when it owns the name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <systemd/sd-bus.h>

#include "basic/text.h"

#define LIMIT (1 << 20) /* QEMU's */

static const char *id, *guest;

static size_t read_table(char *to)
{
	_cleanup_free_ char *command = xasprintf("conntrack -L -o save -s %s 2>/dev/null", guest);
	FILE *f = popen(command, "r");
	size_t n = f ? fread(to, 1, LIMIT, f) : 0;

	if (f)
		pclose(f);
	while (n == LIMIT || (n && to[n - 1] != '\n')) /* what is too long for QEMU: whole lines of it */
		n--;
	if (!n)
		to[n++] = '\n';
	return n;
}

static int on_save(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	static char text[LIMIT];
	size_t n = read_table(text);
	sd_bus_message *reply = NULL;
	int r = sd_bus_message_new_method_return(m, &reply);

	if (r >= 0)
		r = sd_bus_message_append_array(reply, 'y', text, n);
	if (r >= 0)
		r = sd_bus_send(NULL, reply, NULL);
	sd_bus_message_unref(reply);
	return r < 0 ? r : 1;
}

static int on_load(sd_bus_message *m, _unused_ void *userdata, _unused_ sd_bus_error *error)
{
	const void *data = NULL;
	size_t n = 0;
	FILE *f;
	int r = sd_bus_message_read_array(m, 'y', &data, &n);

	if (r < 0)
		return r;
	f = popen("conntrack -R - >/dev/null 2>&1", "w");
	if (f) {
		(void)fwrite(data, 1, n, f);
		pclose(f);
	}
	return sd_bus_reply_method_return(m, NULL);
}

static int get_id(_unused_ sd_bus *bus, _unused_ const char *path, _unused_ const char *interface,
		  _unused_ const char *property, sd_bus_message *reply, _unused_ void *userdata,
		  _unused_ sd_bus_error *error)
{
	return sd_bus_message_append(reply, "s", id);
}

static const sd_bus_vtable table[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_PROPERTY("Id", "s", get_id, 0, SD_BUS_VTABLE_PROPERTY_CONST),
	SD_BUS_METHOD("Save", "", "ay", on_save, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Load", "ay", "", on_load, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_VTABLE_END,
};

static int serve(const char *address, sd_bus **ret)
{
	int r = sd_bus_new(ret);

	if (r >= 0)
		r = sd_bus_set_address(*ret, address);
	if (r >= 0)
		r = sd_bus_set_bus_client(*ret, true);
	if (r >= 0)
		r = sd_bus_start(*ret);
	if (r >= 0)
		r = sd_bus_add_object_vtable(*ret, NULL, "/org/qemu/VMState1", "org.qemu.VMState1", table, NULL);
	return r < 0 ? r : sd_bus_request_name(*ret, "org.qemu.VMState1", SD_BUS_NAME_QUEUE);
}

int main(int argc, char **argv)
{
	sd_bus *bus = NULL;
	int r;

	if (argc != 4)
		return 2;
	id = argv[2];
	guest = argv[3];
	r = serve(argv[1], &bus);
	if (r >= 0) {
		puts("ready");
		fflush(stdout);
	}
	while (r >= 0) {
		r = sd_bus_process(bus, NULL);
		if (r == 0)
			r = sd_bus_wait(bus, UINT64_MAX);
	}
	fprintf(stderr, "fork-vmstate: %s\n", strerror(-r));
	return 1;
}
