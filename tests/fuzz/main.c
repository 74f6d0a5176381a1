/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <dirent.h>
#include <stdio.h>

#include "basic/fs.h"
#include "basic/text.h"

/*
 * Runs a fuzz target over files, and over the files of directories, where there is no libFuzzer: the corpora are part
 * of the test suite. Exit status 1: something cannot be read, or there was nothing.
 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define INPUT_MAX (16UL << 20)

static int run_file(const char *path)
{
	_cleanup_free_ char *data = NULL;
	size_t len;
	int r = file_read(path, INPUT_MAX, &data, &len);

	if (r < 0) {
		fprintf(stderr, "cannot read %s: %s\n", path, strerror(-r));
		return r;
	}
	(void)LLVMFuzzerTestOneInput((const uint8_t *)data, len);
	return 1;
}

/* Return: number of files run, or negative errno. */
static int run(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int n = 0, r = 0;

	if (!dir)
		return run_file(path);
	while (r >= 0 && (entry = readdir(dir))) {
		_cleanup_free_ char *file = xasprintf("%s/%s", path, entry->d_name);

		if (entry->d_name[0] == '.')
			continue;
		r = run_file(file);
		n += r;
	}
	closedir(dir);
	return r < 0 ? r : n;
}

int main(int argc, char **argv)
{
	int n = 0;

	for (int i = 1; i < argc; i++) {
		int r = run(argv[i]);

		if (r < 0)
			return EXIT_FAILURE;
		n += r;
	}
	printf("%d inputs\n", n);
	return n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
