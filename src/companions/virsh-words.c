/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "companions/virsh-words.h"

/* Options of virsh migrate that take a value, up to libvirt 11; the first four also without their names, in this order.
 */
static const char *const with_value[] = {
	"migrateuri",
	"graphicsuri",
	"listen-address",
	"dname",
	"auto-converge-increment",
	"auto-converge-initial",
	"available-switchover-bandwidth",
	"bandwidth",
	"comp-methods",
	"comp-mt-dthreads",
	"comp-mt-level",
	"comp-mt-threads",
	"comp-xbzrle-cache",
	"comp-zlib-level",
	"comp-zstd-level",
	"disks-port",
	"disks-uri",
	"migrate-disks",
	"migrate-disks-detect-zeroes",
	"parallel-connections",
	"persistent-xml",
	"postcopy-bandwidth",
	"timeout",
	"tls-destination",
	"xml",
};
#define N_UNNAMED 4
#define DNAME 3

/* Return: its place in the table, or -1. @ret_value: behind "=", or NULL */
static int option_of(const char *word, const char **ret_value)
{
	size_t len = strcspn(word, "=");

	*ret_value = word[len] ? word + len + 1 : NULL;
	for (size_t i = 0; i < ARRAY_SIZE(with_value); i++)
		if (strlen(with_value[i]) == len && strncmp(with_value[i], word, len) == 0)
			return (int)i;
	return -1;
}

static void take_flag(const char *flag, VirshWords *ret)
{
	if (streq(flag, "--offline") || streq(flag, "--postcopy-resume"))
		ret->refused = flag;
	else if (streq(flag, "--postcopy") || streq(flag, "--postcopy-after-precopy") ||
		 streq(flag, "--timeout-postcopy"))
		ret->postcopy = true;
	else if (streq(flag, "--suspend"))
		ret->suspend = true;
	else if (streq(flag, "--verbose"))
		ret->verbose = true;
}

void virsh_words_read(char *const *words, VirshWords *ret)
{
	bool seen[ARRAY_SIZE(with_value)] = {}, names = true;

	*ret = (VirshWords){};
	for (; *words; words++) {
		const char *value = *words;
		int at = 0;

		if (names && streq(value, "--")) { /* no options behind it */
			names = false;
			continue;
		}
		if (names && startswith(value, "--")) {
			at = option_of(*words + 2, &value);
			if (at < 0)
				take_flag(*words, ret);
			else if (!value)
				value = words[1] ? *++words : NULL;
		} else {
			while (at < N_UNNAMED && seen[at])
				at++;
		}
		if (at >= 0)
			seen[at] = true;
		if (at == DNAME)
			ret->dname = value;
	}
}
