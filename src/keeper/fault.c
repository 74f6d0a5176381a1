/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/fault.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include "basic/fd.h"
#include "keeper/upgrade.h"

#ifdef VMFERRY_FAULTS

static const char *const identifiers[] = {
#define X(id, name) [MOVE_DO_##id] = #id,
	MOVE_ACTIONS(X)
#undef X
};

static void fault_self(Move *m)
{
	(void)m;
	raise(SIGKILL);
}

/* As when the power fails: nobody carries on, until the test has killed everything. */
static void fault_reboot(Move *m)
{
	(void)m;
	raise(SIGSTOP);
}

static void fault_qemu(Move *m)
{
	if (m->k->qemu)
		(void)qemu_process_kill(m->k->qemu);
}

/* Of an upgrade: the QEMU it began with, and the one it is to end with. */
static void fault_old(Move *m)
{
	QemuProcess *old = m->up && (m->up->changed_over || m->up->filling) ? m->up->other : m->k->qemu;

	if (old)
		(void)qemu_process_kill(old);
}

static void fault_new(Move *m)
{
	QemuProcess *fresh = m->up && !m->up->changed_over && !m->up->filling ? m->up->other : m->k->qemu;

	if (fresh)
		(void)qemu_process_kill(fresh);
}

static void fault_link(Move *m)
{
	if (m->link)
		link_cut(m->link);
	else if (m->from)
		link_cut(m->from->link);
}

static void fault_cancel(Move *m)
{
	if (move_active(m) && !move_committed(m->state))
		move_cancel(m);
}

static void fault_powerdown(Move *m)
{
	machine_qmp(m->k, "system_powerdown", NULL, NULL, NULL);
}

static const struct {
	const char *name;
	void (*strike)(Move *m);
} victims[] = {
	{"self", fault_self}, {"reboot", fault_reboot}, {"qemu", fault_qemu},	  {"old", fault_old},
	{"new", fault_new},   {"link", fault_link},	{"cancel", fault_cancel}, {"powerdown", fault_powerdown},
};

/* The first line, without it what follows; NULL: there is none, or it is not for now. */
static const char *take_line(char *text, const char *when, const char *action, char **ret_rest)
{
	char *save = NULL, *name, *moment, *victim;

	*ret_rest = strchr(text, '\n');
	if (*ret_rest)
		*(*ret_rest)++ = '\0';
	name = strtok_r(text, ":", &save);
	moment = strtok_r(NULL, ":", &save);
	victim = strtok_r(NULL, ":", &save);
	if (!name || !moment || !victim || !streq(name, action) || !streq(moment, when))
		return NULL;
	return victim;
}

static int strike(Move *m, const char *victim, const char *when, const char *action)
{
	if (streq(victim, "fail")) {
		log_warning("fault: %s fails", action);
		return -EIO;
	}
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
		if (streq(victims[i].name, victim)) {
			log_warning("fault: %s %s %s", victim, when, action);
			victims[i].strike(m);
		}
	return 0;
}

static int fault_from_file(Move *m, const char *when, const char *action)
{
	_cleanup_free_ char *path = xasprintf("%s/fault", runtime_dir()), *text = NULL;
	const char *victim;
	char *rest;

	if (file_read(path, 256, &text, NULL) < 0)
		return 0;
	victim = take_line(text, when, action, &rest);
	if (!victim)
		return 0;
	if (rest && *rest)
		(void)file_write(path, rest, strlen(rest), 0600, false);
	else
		(void)unlink(path);
	return strike(m, victim, when, action);
}

/* A test that listens is told and does what it likes, while nothing happens here; then it says what we do ourselves. */
static int fault_from_test(Move *m, const char *when, const char *action)
{
	_cleanup_free_ char *path = xasprintf("%s/fault.socket", config_dir());
	_cleanup_free_ char *text = xasprintf("%s:%s:%s\n", m->k->name, action, when);
	_cleanup_fd_ int fd = unix_connect(path);
	char victim[32];
	ssize_t n;

	if (fd < 0 || fd_write_all(fd, text, strlen(text)) < 0)
		return 0;
	n = fd_read_all(fd, victim, sizeof(victim) - 1);
	victim[n > 0 ? n : 0] = '\0';
	return strike(m, victim, when, action);
}

void fault_storage(const char *what)
{
	_cleanup_free_ char *path = xasprintf("%s/silent", config_dir());

	for (;;) {
		_cleanup_free_ char *text = NULL;

		if (file_read(path, 256, &text, NULL) < 0 || !streq(text, what))
			return;
		(void)poll(NULL, 0, 20);
	}
}

int fault_point(Move *m, MoveAction action, bool before)
{
	const char *when = before ? "before" : "after";
	int r = fault_from_file(m, when, identifiers[action]), q = fault_from_test(m, when, identifiers[action]);

	return r < 0 ? r : q;
}

#endif
