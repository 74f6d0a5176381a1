/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/fault.h"

#include <signal.h>
#include <unistd.h>

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
	QemuProcess *old = m->up && m->up->changed_over ? m->up->other : m->k->qemu;

	if (old)
		(void)qemu_process_kill(old);
}

static void fault_new(Move *m)
{
	QemuProcess *fresh = m->up && !m->up->changed_over ? m->up->other : m->k->qemu;

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
static const char *take_line(char *text, MoveAction action, bool before, char **ret_rest)
{
	char *save = NULL, *name, *when, *victim;

	*ret_rest = strchr(text, '\n');
	if (*ret_rest)
		*(*ret_rest)++ = '\0';
	name = strtok_r(text, ":", &save);
	when = strtok_r(NULL, ":", &save);
	victim = strtok_r(NULL, ":", &save);
	if (!name || !when || !victim || !streq(name, identifiers[action]) || !streq(when, before ? "before" : "after"))
		return NULL;
	return victim;
}

void fault_point(Move *m, MoveAction action, bool before)
{
	_cleanup_free_ char *path = xasprintf("%s/fault", runtime_dir()), *text = NULL;
	const char *victim;
	char *rest;

	if (file_read(path, 256, &text, NULL) < 0)
		return;
	victim = take_line(text, action, before, &rest);
	if (!victim)
		return;
	if (rest && *rest)
		(void)file_write(path, rest, strlen(rest), 0600, false);
	else
		(void)unlink(path);
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
		if (streq(victims[i].name, victim)) {
			log_warning("fault: %s %s %s", victim, before ? "before" : "after", identifiers[action]);
			victims[i].strike(m);
		}
}

#endif
