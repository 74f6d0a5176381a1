/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "simple.h"

#include "cli/client.h"
#include "cli/output.h"

json_object *simple_result(const char *name, const char *state)
{
	return json_build("vm", "s", name, "state", "s", state, NULL);
}

void simple_print(const char *name, json_object *result)
{
	_cleanup_free_ char *state = format_value(json_member(result, "state"));

	printf("%s: %s\n", name, state);
}

int simple_call(const char *name, const char *method, const char *state, json_object **ret, Error **err)
{
	int r = client_call(name, method, false, NULL, err, NULL);

	if (r < 0)
		return r;
	*ret = simple_result(name, state);
	return STATUS_DONE;
}
