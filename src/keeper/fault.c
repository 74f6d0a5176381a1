/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "keeper/fault.h"

#include <signal.h>
#include <unistd.h>

#include "keeper/move.h"

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
	{"self", fault_self}, {"reboot", fault_reboot}, {"qemu", fault_qemu},
	{"link", fault_link}, {"cancel", fault_cancel}, {"powerdown", fault_powerdown},
};

void fault_point(Move *m, MoveAction action, bool before)
{
	_cleanup_free_ char *path = xasprintf("%s/fault", runtime_dir()), *text = NULL;
	char *save = NULL, *name, *when, *victim;

	if (file_read(path, 256, &text, NULL) < 0)
		return;
	name = strtok_r(text, ":\n", &save);
	when = strtok_r(NULL, ":\n", &save);
	victim = strtok_r(NULL, ":\n", &save);
	if (!name || !when || !victim || !streq(name, identifiers[action]) || !streq(when, before ? "before" : "after"))
		return;
	(void)unlink(path);
	for (size_t i = 0; i < ARRAY_SIZE(victims); i++)
		if (streq(victims[i].name, victim)) {
			log_warning("fault: %s %s %s", victim, when, name);
			victims[i].strike(m);
		}
}

#endif
