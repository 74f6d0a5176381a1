/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "place.h"

#include <signal.h>

#include "basic/fs.h"
#include "basic/log.h"
#include "basic/text.h"

static char *place;

static void clean_up(void)
{
	(void)dir_remove(place);
	free(place);
}

void fuzz_place(const char *conf)
{
	static const char *const names[] = {"VMFERRY_CONFIG_DIR", "VMFERRY_RUNTIME_DIR", "VMFERRY_STATE_DIR"};
	char dir[] = "/dev/shm/fuzz.XXXXXX";
	_cleanup_free_ char *file = NULL;

	if (place)
		return;
	if (!mkdtemp(dir))
		abort();
	place = xstrdup(dir);
	atexit(clean_up);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		setenv(names[i], place, 1);
	file = xasprintf("%s/host.conf", place);
	if (file_write(file, conf, strlen(conf), 0600, false) < 0)
		abort();
	signal(SIGPIPE, SIG_IGN);
	log_set_level(getenv("VMFERRY_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
}
