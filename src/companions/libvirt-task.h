/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "companions/libvirt.h"
#include "peer/destination.h"

/**
 * struct MigrateTask - a migration as it is asked for
 * @domain, @uri, @desturi: as given; @uri NULL: as virsh has it
 * @dname:    the name it gets on the target, or NULL
 * @name:     its name on the target
 * @known:    what libvirt on the source knows of it
 * @from, @to: where our ends run, NULL: here
 * @hard:     libvirt leaves it paused on the target
 * @suspend:  because the user says so
 * @resume:   which it is not to stay
 * @verbose:  virsh shows how far it is
 * @hold:     microseconds it is left paused at most
 */
typedef struct MigrateTask {
	const Tool *tool;
	const char *domain, *uri, *desturi, *dname, *name;
	Domain known;
	Destination *from, *to;
	bool hard, suspend, resume, verbose;
	uint64_t hold;
} MigrateTask;

/** migrate_task_read() - from the command line and from libvirt. Return: 0, or negative errno with @err set; done() it
 * in any case */
int migrate_task_read(const Tool *tool, MigrateTask *ret, Error **err);
void migrate_task_done(MigrateTask *task);

/** migrate_task_words() - a verb of vmferry-conntrack for the entries that move. strv_free() it */
char **migrate_task_words(const MigrateTask *task, const char *verb);

/** migrate_task_addresses() - the domain's, a new array */
json_object *migrate_task_addresses(const MigrateTask *task);

/**
 * migrate_task_command() - a command to run on a host: behind ssh, behind the words of exec:, or as it is
 * @words: with nothing in them that a shell would take for its own
 *
 * Return: 0 with *@ret (strv_free() it), or negative errno with @err set.
 */
int migrate_task_command(const Destination *host, char *const *words, char ***ret, Error **err);
