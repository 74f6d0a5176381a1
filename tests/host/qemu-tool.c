/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * src/qemu/ by hand, for test_qemu.py: each verb is about one call, results are JSON objects, a line each.
 *
 *   start DIR DEFINITION USER [incoming [OLD]]   start a QEMU (with the memory of the one in OLD), stay until killed
 *   adopt DIR | kill DIR | last-words DIR
 *   memory DIR OFFSET                      64-bit word there
 *   attach DIR INDEX DEFINITION            NIC number INDEX
 *   announce DIR INDEX DEFINITION
 *   shutdown DIR ADDRESS PORT
 *   qmp DIR COMMAND[=ARGUMENTS]...         one after the other; "wait=EVENT" waits for an event
 *   hold-lock DIR                          like a child between fork and exec whose keeper is gone
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "basic/fd.h"
#include "basic/fs.h"
#include "basic/text.h"
#include "qemu/process.h"
#include "qemu/qmp.h"
#include "qemu/tap.h"

#define _cleanup_definition_ _cleanup_(vm_definition_freep)

/* Takes the object. */
static void print(json_object *o)
{
	printf("%s\n", json_text(o));
	fflush(stdout);
	json_object_put(o);
}

static int failed(int r, const Error *err)
{
	print(json_build("error", "s", strerrorname_np(-r), "message", "s", err ? err->message : NULL, "hint", "s",
			 err ? err->hint : NULL, NULL));
	return 1;
}

static int adopt(const char *dir, QemuProcess **ret)
{
	_cleanup_error_ Error *err = NULL;
	int r = qemu_process_adopt(dir, 1, ret, &err);

	return r < 0 ? failed(r, err) : 0;
}

static int load(const char *path, VmDefinition **ret)
{
	_cleanup_error_ Error *err = NULL;
	int r = vm_definition_load("test", path, ret, &err);

	return r < 0 ? failed(r, err) : 0;
}

static int start_memory(const VmDefinition *def, const char *from, Error **err)
{
	_cleanup_qemu_process_ QemuProcess *old = NULL;
	int r;

	if (def->memory_backing == MEMORY_PRIVATE)
		return -1;
	if (!from)
		return qemu_memfd_new(def, err);
	r = qemu_process_adopt(from, 1, &old, err);
	return r < 0 ? r : qemu_process_memfd(old);
}

static int verb_start(char **argv)
{
	_cleanup_definition_ VmDefinition *def = NULL;
	_cleanup_qemu_process_ QemuProcess *process = NULL;
	_cleanup_error_ Error *err = NULL;
	QemuStart start = {.dir = argv[0], .user = argv[2], .generation = 1};
	int r;

	if (load(argv[1], &def))
		return 1;
	vm_definition_pin(def, NULL);
	start.definition = def;
	start.incoming = argv[3] != NULL;
	start.memfd = start_memory(def, argv[3] ? argv[4] : NULL, &err);
	if (start.memfd < -1 || err)
		return failed(start.memfd, err);
	r = qemu_process_start(&start, &process, &err);
	fd_close(start.memfd);
	if (r < 0)
		return failed(r, err);
	print(json_build("pid", "i", (int64_t)process->pid, NULL));
	for (;;)
		pause();
}

static int verb_adopt(char **argv)
{
	_cleanup_qemu_process_ QemuProcess *process = NULL;

	if (adopt(argv[0], &process))
		return 1;
	print(json_build("pid", "i", (int64_t)process->pid, NULL));
	return 0;
}

static int verb_kill(char **argv)
{
	_cleanup_qemu_process_ QemuProcess *process = NULL;
	int r;

	if (adopt(argv[0], &process))
		return 1;
	r = qemu_process_kill(process);
	return r < 0 ? failed(r, NULL) : 0;
}

static int verb_last_words(char **argv)
{
	_cleanup_free_ char *words = qemu_process_last_words(argv[0]);

	print(json_build("words", "s", words, NULL));
	return 0;
}

static int verb_memory(char **argv)
{
	_cleanup_qemu_process_ QemuProcess *process = NULL;
	_cleanup_fd_ int fd = -1;
	uint64_t offset, word;

	if (text_parse_u64(argv[1], &offset) < 0 || adopt(argv[0], &process))
		return 1;
	fd = qemu_process_memfd(process);
	if (fd < 0)
		return failed(fd, NULL);
	if (pread(fd, &word, sizeof(word), (off_t)offset) != sizeof(word) ||
	    pwrite(fd, &word, sizeof(word), (off_t)offset) != sizeof(word))
		return failed(-EIO, NULL);
	print(json_build("size", "i", (int64_t)lseek(fd, 0, SEEK_END), "word", "u", word, NULL));
	return 0;
}

static int nic(char **argv, const VmNic **ret_nic, VmDefinition **ret_def, int *ret_fd)
{
	_cleanup_qemu_process_ QemuProcess *process = NULL;
	uint64_t index;
	int fd;

	if (text_parse_u64(argv[1], &index) < 0 || adopt(argv[0], &process) || load(argv[2], ret_def))
		return 1;
	fd = qemu_process_tap_fd(process, index);
	if (fd < 0)
		return failed(fd, NULL);
	*ret_nic = &(*ret_def)->nics[index];
	*ret_fd = fd;
	return 0;
}

static int verb_attach(char **argv)
{
	_cleanup_definition_ VmDefinition *def = NULL;
	_cleanup_free_ char *name = NULL;
	_cleanup_error_ Error *err = NULL;
	_cleanup_fd_ int fd = -1;
	const VmNic *n;
	int r;

	if (nic(argv, &n, &def, &fd))
		return 1;
	r = tap_attach(fd, n, &err);
	if (r < 0)
		return failed(r, err);
	name = tap_name(fd);
	print(json_build("tap", "s", name, NULL));
	return 0;
}

static int verb_announce(char **argv)
{
	_cleanup_definition_ VmDefinition *def = NULL;
	_cleanup_fd_ int fd = -1;
	const VmNic *n;
	int r;

	if (nic(argv, &n, &def, &fd))
		return 1;
	r = tap_announce(fd, n);
	if (r < 0)
		return failed(r, NULL);
	print(json_build("sent", "i", (int64_t)r, NULL));
	return 0;
}

static int verb_shutdown(char **argv)
{
	_cleanup_qemu_process_ QemuProcess *process = NULL;
	uint64_t port;
	int r;

	if (text_parse_u64(argv[2], &port) < 0 || adopt(argv[0], &process))
		return 1;
	r = qemu_process_shutdown_sockets(process, argv[1], (unsigned int)port);
	if (r < 0)
		return failed(r, NULL);
	print(json_build("shut", "i", (int64_t)r, NULL));
	return 0;
}

static int verb_hold_lock(char **argv)
{
	_cleanup_free_ char *path = xasprintf("%s/lock", argv[0]);
	int fd = file_lock(path);

	if (fd < 0)
		return failed(fd, NULL);
	print(json_build("pid", "i", (int64_t)getpid(), NULL));
	for (;;)
		pause();
}

/* --- qmp --- */

typedef struct Talk {
	sd_event *event;
	Qmp *qmp;
	char **next; /* words still to be done */
	const char *wait;
	char **seen; /* events since the last command */
} Talk;

static void talk_on(Talk *t);

static void on_reply(json_object *ret, const char *error, void *userdata)
{
	Talk *t = userdata;

	print(json_build("return", "o", json_object_get(ret), "error", "s", error, NULL));
	talk_on(t);
}

static void talk_on(Talk *t)
{
	_cleanup_free_ char *word = xstrdup(*t->next);
	json_object *arguments = NULL;
	char *value;

	if (!word) {
		sd_event_exit(t->event, 0);
		return;
	}
	value = strchr(word, '=');
	if (value)
		*value++ = '\0';
	if (streq(word, "wait")) {
		t->wait = strchr(*t->next++, '=') + 1;
		if (!strv_contains(t->seen, t->wait))
			return;
		t->wait = NULL;
		talk_on(t);
		return;
	}
	t->next++;
	strv_free(TAKE_PTR(t->seen));
	if (value)
		arguments = json_parse(value, strlen(value));
	qmp_command(t->qmp, word, arguments, on_reply, t);
}

static void on_ready(void *userdata)
{
	talk_on(userdata);
}

static void on_event(const char *name, json_object *data, _unused_ uint64_t at, void *userdata)
{
	Talk *t = userdata;

	print(json_build("event", "s", name, "data", "o", json_object_get(data), NULL));
	strv_add(&t->seen, "%s", name);
	if (t->wait && streq(t->wait, name)) {
		t->wait = NULL;
		talk_on(t);
	}
}

static void on_closed(int error, void *userdata)
{
	Talk *t = userdata;

	print(json_build("closed", "s", strerrorname_np(-error), NULL));
	sd_event_exit(t->event, 1);
}

static int verb_qmp(char **argv)
{
	static const QmpHandlers handlers = {.ready = on_ready, .event = on_event, .closed = on_closed};
	_cleanup_free_ char *path = xasprintf("%s/qmp", argv[0]);
	Talk t = {.next = argv + 1};
	int fd = unix_connect(path), r;

	if (fd < 0)
		return failed(fd, NULL);
	r = sd_event_new(&t.event);
	if (r >= 0)
		r = qmp_new(t.event, fd, &handlers, &t, &t.qmp);
	if (r < 0)
		return failed(r, NULL);
	r = sd_event_loop(t.event);
	qmp_free(t.qmp);
	sd_event_unref(t.event);
	strv_free(t.seen);
	return r;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int words;
		int (*run)(char **argv);
	} verbs[] = {
		{"start", 3, verb_start},	  {"adopt", 1, verb_adopt},	      {"kill", 1, verb_kill},
		{"memory", 2, verb_memory},	  {"last-words", 1, verb_last_words}, {"attach", 3, verb_attach},
		{"announce", 3, verb_announce},	  {"shutdown", 3, verb_shutdown},     {"qmp", 1, verb_qmp},
		{"hold-lock", 1, verb_hold_lock},
	};

	for (size_t i = 0; argc > 1 && i < ARRAY_SIZE(verbs); i++)
		if (streq(argv[1], verbs[i].name) && argc - 2 >= verbs[i].words)
			return verbs[i].run(argv + 2);
	fprintf(stderr, "qemu-tool VERB DIR …: see the top of its source\n");
	return 2;
}
