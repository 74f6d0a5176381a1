/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdio.h>

#include "basic/text.h"
#include "qemu/command_line.h"
#include "vm/host.h"

/* Definitions come from peers: whatever parses must write and parse again as the same, and give a command line. */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "%s\n", what);
	abort();
}

static void fuzz_definition(const char *text)
{
	_cleanup_(vm_definition_freep)
	VmDefinition *def = NULL, *again = NULL, *copy = NULL;
	_cleanup_strv_ char **differences = NULL, **words = NULL;
	_cleanup_free_ char *first = NULL, *second = NULL, *copied = NULL;
	_cleanup_error_ Error *err = NULL;

	if (vm_definition_parse("web1", text, "fuzz", &def, &err) < 0) {
		check(err && startswith(err->message, "fuzz:"), "an error without its place");
		return;
	}
	vm_definition_pin(def, NULL);
	first = vm_definition_text(def);
	check(vm_definition_parse("web1", first, "fuzz", &again, &err) == 0, err ? err->message : "");
	second = vm_definition_text(again);
	check(streq(first, second), "not the same again");
	check(vm_abi_compare(def, again, &differences) == 0, "another machine");
	copy = vm_definition_copy(def);
	copied = vm_definition_text(copy);
	check(streq(first, copied), "not the same copy");
	words = qemu_command_line(def, true);
	check(strv_length(words) > 10, "no command line");
}

static void fuzz_host(const char *text)
{
	_cleanup_(host_conf_freep)
	HostConf *conf = NULL;
	_cleanup_error_ Error *err = NULL;

	if (host_conf_parse(text, "fuzz", &conf, &err) < 0)
		check(err != NULL, "no error");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *text = xcalloc(1, size + 1);

	/* No value may come from here. */
	setenv("A", "\"\001", 1);
	memcpy(text, data, size);
	fuzz_definition(text);
	fuzz_host(text);
	return 0;
}
