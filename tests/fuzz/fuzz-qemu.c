/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a QEMU that a guest has taken over may say to its keeper: answers and events, at any time. The first byte
 * chooses what is under way: 0 nothing, 1 a migration to another host that copies memory, 2 one that comes, 3 a keeper
 * that came back in the middle of one. Then lines: "!..." is said as it is, "?..." is the error of the next command
 * that waits, "+N" is event number N of the migration protocol, anything else is what the next command returns.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/move.h"
#include "place.h"

#define NAME "fuzz"
#define ID "0123456789abcdef0123456789abcdef"
#define TURNS 2000
#define LINES_MAX 200

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_qemu_process_adopt(const char *dir, unsigned int generation, QemuProcess **ret, Error **err);
int __wrap_qemu_process_kill(QemuProcess *process);

static const char conf[] = "migration-address = \"10.99.0.1\"\n";
static int dies = -1; /* what is written here ends the "process" */
static int ends;      /* its pidfd, as far as anybody can tell */

int __wrap_qemu_process_adopt(const char *dir, unsigned int generation, QemuProcess **ret, Error **err)
{
	QemuProcess *p;

	if (access(dir, F_OK) < 0)
		return error_set(err, -ENOENT, "%s is gone", dir);
	p = xcalloc(1, sizeof(*p));
	*p = (QemuProcess){.pid = 1, .pidfd = ends, .generation = generation, .dir = xstrdup(dir)};
	*ret = p;
	return 0;
}

int __wrap_qemu_process_kill(_unused_ QemuProcess *process)
{
	(void)!write(dies, "x", 1);
	return 0;
}

static void run(Keeper *k)
{
	for (int i = 0; i < TURNS; i++)
		if (sd_event_get_state(k->event) == SD_EVENT_FINISHED || sd_event_run(k->event, 0) <= 0)
			return;
}

static void write_file(const char *name, const char *text)
{
	_cleanup_free_ char *path = runtime_path(NAME, name);

	if (file_write(path, text, strlen(text), 0600, false) < 0)
		abort();
}

/* ---- QEMU's end ---- */

typedef struct Qemu {
	int listening, fd;
	char heard[65536];
	size_t have;
	uint64_t waiting[64]; /* ids of commands that have no answer */
	size_t n_waiting;
} Qemu;

static void say(Qemu *q, const char *text, size_t len)
{
	(void)!send(q->fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	(void)!send(q->fd, "\n", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void hear(Qemu *q)
{
	ssize_t n = recv(q->fd, q->heard + q->have, sizeof(q->heard) - q->have, MSG_DONTWAIT);
	char *end, *line = q->heard;

	q->have += n > 0 ? (size_t)n : 0;
	while ((end = memchr(line, '\n', q->have - (size_t)(line - q->heard)))) {
		_cleanup_json_ json_object *o = json_parse(line, (size_t)(end - line));
		uint64_t id;

		if (json_get_u64(o, "id", &id) && q->n_waiting < ARRAY_SIZE(q->waiting))
			q->waiting[q->n_waiting++] = id;
		line = end + 1;
	}
	q->have -= (size_t)(line - q->heard);
	memmove(q->heard, line, q->have);
}

static void answer(Qemu *q, const char *kind, const char *text, size_t len)
{
	_cleanup_free_ char *line = NULL;

	hear(q);
	if (q->n_waiting == 0)
		return;
	line = xasprintf("{\"%s\": %.*s, \"id\": %llu}", kind, (int)len, text, (unsigned long long)q->waiting[0]);
	memmove(q->waiting, q->waiting + 1, --q->n_waiting * sizeof(q->waiting[0]));
	say(q, line, strlen(line));
}

static void obey(Keeper *k, Qemu *q, const char *line, size_t len)
{
	if (len == 0)
		return;
	if (line[0] == '!')
		say(q, line + 1, len - 1);
	else if (line[0] == '?')
		answer(q, "error", line + 1, len - 1);
	else if (line[0] == '+' && len > 1)
		move_event(k->move, (MoveEvent)((unsigned char)line[1] % _MOVE_EVENT_MAX));
	else
		answer(q, "return", line, len);
	run(k);
}

/* ---- the keeper ---- */

static void begin(Keeper *k, Qemu *q, unsigned int what)
{
	_cleanup_free_ char *dir = runtime_path(NAME, "qemu.1"), *journal = state_path(NAME, "journal");
	_cleanup_free_ char *qmp = xasprintf("%s/qmp", dir);
	_cleanup_error_ Error *err = NULL;
	int fds[2];

	*q = (Qemu){.fd = -1};
	*k = (Keeper){.ready_fd = -1,
		      .lock_fd = -1,
		      .control_fd = -1,
		      .peer_fd = -1,
		      .viewers_fd = -1,
		      .generation = 1,
		      .name = xstrdup(NAME),
		      .reason = "booted",
		      .state = VM_RUNNING};
	if (dir_make(dir, 0700) < 0 || sd_event_new(&k->event) < 0 || host_conf_load(&k->conf, &err) < 0 ||
	    journal_open(journal, &k->journal, NULL) < 0 || (q->listening = unix_listen(qmp, 0600)) < 0 ||
	    pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0) {
		fprintf(stderr, "%s\n", err ? err->message : strerror(errno));
		abort();
	}
	ends = fds[0];
	dies = fds[1];
	write_file("definition", "memory = \"32M\"\nserial = \"none\"\ndisk vda { file = \"/d\" format = \"raw\" }\n");
	write_file("qemu.1/stderr", "");
	if (what == 3)
		write_file("move",
			   "{\"id\": \"" ID "\", \"target\": false, \"running\": true, \"destination\": \"exec:x\"}");
	k->move = move_new(k);
	k->stats = stats_new(k);
	if (machine_adopt(k, &(Error *){NULL}) <= 0)
		abort();
	q->fd = accept4(q->listening, NULL, NULL, SOCK_CLOEXEC);
}

static void under_way(Keeper *k, unsigned int what)
{
	static const char running[] = "running", tunnel[] = "tcp";
	Move *m = k->move;

	if (what == 1 || what == 2) {
		memcpy(m->id, ID, sizeof(m->id));
		m->opt.destination = xstrdup("direct:hostb");
		(void)destination_parse(m->opt.destination, &m->dest, NULL);
		m->opt.live = m->was_running = true;
		m->opt.throttle = 80;
		m->was_reason = "booted";
		m->transport = tunnel;
		m->uri = xstrdup("fd:x");
		m->t.begun = m->t.phase_begun = now_usec();
		m->facts = MOVE_FACT_ALIVE | MOVE_FACT_OWNER | MOVE_FACT_FOLLOW_DONE | MOVE_FACT_WAS_RUNNING |
			   MOVE_FACT_LINK | MOVE_FACT_TARGET_ACTIVE;
	}
	if (what == 1) {
		k->state = VM_RUNNING;
		m->state = MOVE_S_PERFORM;
		(void)do_start_migrate(m);
	} else if (what == 2) {
		k->state = VM_INCOMING;
		m->state = MOVE_T_PREP;
		m->gate = "none";
		m->prepare.transport = xstrdup(tunnel);
		m->prepare.run_state = xstrdup(running);
		k->incoming = true;
	} else if (what == 3) {
		move_recover(k, true);
	}
}

static void end(Keeper *k, Qemu *q)
{
	_cleanup_free_ char *dir = runtime_path(NAME, NULL);

	fd_close(q->fd);
	run(k);
	(void)!write(dies, "x", 1); /* and then it is gone */
	run(k);
	if (sd_event_get_state(k->event) != SD_EVENT_FINISHED && k->qemu)
		abort();
	k->leaving = true;
	control_close(k);
	k->move = move_free(k->move);
	k->qmp = k->qmp ? qmp_free(k->qmp) : NULL;
	sd_event_source_disable_unref(k->qemu_exit);
	sd_event_source_disable_unref(k->qemu_words);
	sd_event_source_disable_unref(k->idle_timer);
	qemu_process_free(k->qemu);
	k->stats = stats_free(k->stats);
	journal_free(k->journal);
	vm_definition_free(k->def);
	host_conf_free(k->conf);
	free(k->qemu_version);
	free(k->name);
	json_object_put(k->last_result);
	sd_event_unref(k->event);
	fd_close(q->listening);
	fd_close(dies);
	(void)dir_remove(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char greeting[] = "{\"QMP\": {\"capabilities\": [\"oob\"]}}";
	static Qemu q;
	_cleanup_free_ char *text = NULL;
	char *save = NULL;
	size_t lines = 0;
	Keeper k;

	if (size == 0)
		return 0;
	fuzz_place(conf);
	text = strndup((const char *)data + 1, size - 1);
	begin(&k, &q, data[0] % 4);
	under_way(&k, data[0] % 4);
	if (!(data[0] & 4)) {
		say(&q, greeting, strlen(greeting));
		run(&k);
		answer(&q, "return", "{}", 2);
		run(&k);
	}
	for (char *line = strtok_r(text, "\n", &save); line && lines < LINES_MAX;
	     line = strtok_r(NULL, "\n", &save), lines++)
		obey(&k, &q, line, strlen(line));
	end(&k, &q);
	return 0;
}
