/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "cli/cli.h"

/* What verbs that end in a state share. */

/** simple_result() - {"vm": @name, "state": @state} */
json_object *simple_result(const char *name, const char *state);

/** simple_print() - "NAME: STATE" */
void simple_print(const char *name, json_object *result);

/** status_print() - a Status answer for people (verb_status.c) */
void status_print(const char *name, json_object *status);

/**
 * simple_call() - call a method without arguments, the result is @state
 *
 * Return: ExitStatus or negative errno with @err set.
 */
int simple_call(const char *name, const char *method, const char *state, json_object **ret, Error **err);
