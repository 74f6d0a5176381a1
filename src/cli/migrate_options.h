/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "cli/cli.h"

/* What migrate, check and watch share. */

/* What Migrate and Check take; the keys are the keeper's (docs/control.md). */
extern const OptionSpec migrate_option_table[];
/* What is shown on the way; of migrate and watch, the keeper does not see them. */
extern const OptionSpec follow_option_table[];

/** migrate_options() - the JSON object of options for Migrate and Check: what was given, and ssh's environment */
json_object *migrate_options(const Cli *cli, const char *dest);

/** migrate_format_times() - {name: ms, ...} as "begin 3 ms, prepare 120 ms" */
char *migrate_format_times(json_object *value);

/** migrate_print() - a migration's result for people */
void migrate_print(const char *name, json_object *result);
