/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What must be through before memory moves: QMP commands of which all must succeed, the data channel, the connection
 * table. */
#include <errno.h>
#include <inttypes.h>

#include "keeper/move.h"
#include "keeper/tls.h"

#define DATA_FD_NAME "vmferry-data"

static void setup_step_done(Move *m)
{
	if (m->state == MOVE_S_OPEN && m->setup_pending > 0 && --m->setup_pending == 0)
		move_event(m, MOVE_EV_DATA_READY);
}

static void on_setup_reply(json_object *ret, const char *error, void *userdata)
{
	Move *m = userdata;
	Error *err = NULL;

	(void)ret;
	if (m->state != MOVE_S_OPEN || m->setup_pending == 0)
		return;
	if (error) {
		m->setup_pending = 0;
		error_set(&err, -EIO, "QEMU: %s", error);
		move_fail(m, err);
		return;
	}
	setup_step_done(m);
}

static void setup_command(Move *m, const char *command, json_object *arguments)
{
	m->setup_pending++;
	machine_qmp(m->k, command, arguments, on_setup_reply, m);
}

/* Every capability we care about, so that nothing of an earlier attempt is left. */
enum { ALWAYS = 1, MULTIFD = 2, THROTTLE = 4, TO_A_HOST = 8, IN_PLACE = 16, TO_A_QEMU = 32 };
static const struct {
	const char *name;
	unsigned int when;
} capabilities[] = {
	{"return-path", TO_A_QEMU},
	{"pause-before-switchover", TO_A_HOST},
	{"events", ALWAYS},
	{"late-block-activate", ALWAYS},
	{"multifd", MULTIFD},
	{"auto-converge", THROTTLE},
	{"x-ignore-shared", IN_PLACE},
};

static json_object *capabilities_for(unsigned int wanted)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; i < ARRAY_SIZE(capabilities); i++)
		json_object_array_add(list, json_build("capability", "s", capabilities[i].name, "state", "b",
						       (capabilities[i].when & wanted) != 0, NULL));
	return json_build("capabilities", "o", list, NULL);
}

json_object *migration_capabilities(bool multifd, bool throttle)
{
	return capabilities_for(ALWAYS | TO_A_QEMU | TO_A_HOST | (multifd ? (unsigned int)MULTIFD : 0) |
				(throttle ? (unsigned int)THROTTLE : 0));
}

json_object *migration_capabilities_here(bool copy)
{
	return capabilities_for(ALWAYS | TO_A_QEMU | (unsigned int)(copy ? THROTTLE : IN_PLACE));
}

json_object *migration_capabilities_file(void)
{
	return capabilities_for(ALWAYS);
}

void perform_followed(Move *m)
{
	if (!m->follow_awaited)
		return;
	m->follow_awaited = false;
	m->hold_timer = sd_event_source_disable_unref(m->hold_timer);
	setup_step_done(m);
}

static int on_follow_late(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	log_debug("the connection table takes long: memory is not kept waiting for it");
	perform_followed(userdata);
	return 0;
}

/*
 * A small guest's memory is there within a second. Were the table not, the guest would stand still for all of what it
 * lacks: so memory waits for it, though not for ever.
 */
static void await_follow(Move *m)
{
	if (m->facts & MOVE_FACT_FOLLOW_DONE)
		return;
	if (sd_event_add_time_relative(m->k->event, &m->hold_timer, CLOCK_MONOTONIC, m->deadlines.prepare / 3, 0,
				       on_follow_late, m) < 0)
		return;
	m->follow_awaited = true;
	m->setup_pending++;
}

static void on_data_opened(Move *m, int fd, const Error *why)
{
	Error *err = NULL;

	if (m->state != MOVE_S_OPEN) {
		fd_close(fd);
		return;
	}
	if (fd < 0) {
		error_set(&err, why->code, "data channel (%s): %s", m->transport, why->message);
		if (why->hint)
			error_hint(&err, "%s", why->hint);
		move_fail(m, err);
		return;
	}
	if (!m->k->qmp) {
		fd_close(fd);
		return;
	}
	/* The pending count of data_open() is taken over by getfd. */
	qmp_command_fd(m->k->qmp, "getfd", json_build("fdname", "s", DATA_FD_NAME, NULL), fd, on_setup_reply, m);
}

/* What was proved in Begin is where QEMU goes, whatever Prepare's answer says. */
static int check_data_port(const Move *m, Error **err)
{
	if (!m->prepared.port)
		return error_set(err, -EPROTO, "the target names no port for the data");
	if (m->opt.data_address || streq_null(m->prepared.address, m->hello.address))
		return 0;
	return error_set(err, -EPROTO, "the target names another address for the data (%s) than it has proved (%s)",
			 m->prepared.address ? m->prepared.address : "none", m->hello.address);
}

int do_open_data(Move *m)
{
	bool direct = streq(m->transport, "tls") || streq(m->transport, "tcp");
	_cleanup_free_ char *tls = NULL;
	Error *err = NULL;
	int r = 0;

	m->setup_pending = 1; /* held until all is on its way */
	await_follow(m);
	graphics_tell(m);
	if (streq(m->transport, "tls")) {
		json_object *object;

		r = tls_object(m->k, m->id, m->psk, "client", &object, &err);
		if (r >= 0) {
			tls = tls_object_id(m->id);
			setup_command(m, "object-add", object);
		}
	}
	if (r >= 0) {
		setup_command(m, "migrate-set-capabilities",
			      migration_capabilities(m->channels > 0, m->opt.throttle > 0));
		setup_command(m, "migrate-set-parameters", migration_parameters(m, tls ? tls : ""));
	}
	free(TAKE_PTR(m->uri));
	if (r >= 0 && direct)
		r = check_data_port(m, &err);
	if (r >= 0 && direct) {
		const char *address = m->hello.address;
		bool v6 = strchr(address, ':') != NULL;

		m->uri = xasprintf("tcp:%s%s%s:%" PRIu64, v6 ? "[" : "", address, v6 ? "]" : "", m->prepared.port);
		m->setup_pending--;
	} else if (r >= 0) {
		m->uri = xstrdup("fd:" DATA_FD_NAME);
		r = data_open(m, on_data_opened, &err);
		error_prefix(&err, "data channel (%s): ", m->transport);
	}
	move_error(m, err);
	return r;
}

/* The journal's blocks were written when it was opened: a record is one overwrite and one fdatasync. Is there a slot?
 */
int do_preallocate(Move *m)
{
	Error *err = NULL;
	int r = journal_room(m->k->journal, &err);

	move_error(m, err);
	return r;
}
