/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a source may say: bytes for the peer socket of a keeper without a VM, through everything that is between them
 * and the engine. The first byte chooses: 1 the first line and D-Bus's first words are said as they should be, 2 a
 * second connection says the same, 4 the bytes come in two parts, 8 the first connection ends before the second part.
 *
 * No QEMU is started, no port listened on and no connection table touched: these are replaced (meson.build). A VM that is off arrives
 * in full. Afterwards no connection is left, and a migration that was not committed is over.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keeper/move.h"
#include "place.h"

#define NAME "fuzz"
#define HELLO "vmferry/1 peer " NAME " 0123456789abcdef0123456789abcdef -\n"
#define AUTH "\0AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n"
#define TURNS 2000

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_qemu_process_start(const QemuStart *start, QemuProcess **ret, Error **err);
int __wrap_tcp_listen(const char *address, unsigned int first, unsigned int last, int backlog);
int __wrap_ct_apply_new(const CtSelect *select, const CtApplyOptions *options, CtApply **ret, Error **err);

int __wrap_qemu_process_start(_unused_ const QemuStart *start, _unused_ QemuProcess **ret, Error **err)
{
	return error_set(err, -EPERM, "no QEMU here");
}

int __wrap_tcp_listen(_unused_ const char *address, unsigned int first, _unused_ unsigned int last, _unused_ int backlog)
{
	return first & 1 ? -EADDRINUSE : -EADDRNOTAVAIL;
}

int __wrap_ct_apply_new(_unused_ const CtSelect *select, _unused_ const CtApplyOptions *options, _unused_ CtApply **ret,
			Error **err)
{
	return error_set(err, -EPERM, "no connections here");
}

static const char conf[] = "host-id = \"here\"\nhost-name = \"here\"\nbinary = \"/bin/true\"\n"
			   "receive { bridges = { \"lo\" } }\ndeadlines { link = 600 }\n";

static void begin(Keeper *k)
{
	_cleanup_free_ char *dir = runtime_path(NAME, NULL), *journal = state_path(NAME, "journal");
	_cleanup_error_ Error *err = NULL;

	*k = (Keeper){
		.ready_fd = -1, .lock_fd = -1, .control_fd = -1, .peer_fd = -1, .viewers_fd = -1, .name = xstrdup(NAME), .reason = ""};
	if (dir_make(dir, 0700) < 0 || sd_event_new(&k->event) < 0 || host_conf_load(&k->conf, &err) < 0 ||
	    journal_open(journal, &k->journal, &err) < 0) {
		fprintf(stderr, "%s\n", err ? err->message : dir);
		abort();
	}
	k->move = move_new(k);
	k->stats = stats_new(k);
	if (peer_open(k, NULL) < 0)
		abort();
}

static void run(Keeper *k)
{
	for (int i = 0; i < TURNS; i++)
		if (sd_event_get_state(k->event) == SD_EVENT_FINISHED || sd_event_run(k->event, 0) <= 0)
			return;
}

static int connect_and_say(uint8_t flags, const uint8_t *data, size_t size)
{
	_cleanup_free_ char *path = runtime_path(NAME, "peer");
	int fd = unix_connect(path);

	if (fd < 0)
		return -1;
	if (flags & 1)
		(void)!send(fd, HELLO AUTH, sizeof(HELLO AUTH) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (size > 0)
		(void)!send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	return fd;
}

static void end(Keeper *k)
{
	_cleanup_free_ char *dir = runtime_path(NAME, NULL);
	MoveState state = k->move->state;

	if (k->qemu || (k->peers && sd_event_get_state(k->event) != SD_EVENT_FINISHED))
		abort();
	if (state != MOVE_S_IDLE && state != MOVE_T_IDLE && state != MOVE_T_OWNER)
		abort();
	if (state == MOVE_T_OWNER && journal_last(k->journal)->kind != JOURNAL_COMMITTED)
		abort();
	peer_close(k);
	k->move = move_free(k->move);
	k->stats = stats_free(k->stats);
	sd_event_source_disable_unref(k->idle_timer);
	journal_free(k->journal);
	vm_definition_free(k->def);
	host_conf_free(k->conf);
	free(k->name);
	json_object_put(k->last_result);
	sd_event_unref(k->event);
	(void)dir_remove(dir);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int first, second = -1;
	size_t half;
	Keeper k;

	if (size == 0)
		return 0;
	fuzz_place(conf);
	begin(&k);
	half = data[0] & 4 ? (size - 1) / 2 : size - 1;
	first = connect_and_say(data[0], data + 1, half);
	run(&k);
	if (data[0] & 2)
		second = connect_and_say(data[0], data + 1, size - 1);
	if (data[0] & 8)
		first = fd_close(first);
	run(&k);
	if (first >= 0 && size - 1 > half)
		(void)!send(first, data + 1 + half, size - 1 - half, MSG_DONTWAIT | MSG_NOSIGNAL);
	run(&k);
	fd_close(first);
	fd_close(second);
	run(&k);
	end(&k);
	return 0;
}
