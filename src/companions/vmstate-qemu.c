/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The object dbus-vmstate in QEMU, over its QMP socket, which is another's: connect, say it, leave. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/fd.h"
#include "companions/vmstate.h"
#include "qemu/qmp.h"

#define QMP_SECONDS 5
#define OBJECT_ID "vmferry-vmstate"

typedef struct Talk {
	sd_event *event;
	Qmp *qmp;
	char *error; /* of the last command, NULL: it worked */
} Talk;

static void talk_done(Talk *t)
{
	qmp_free(t->qmp);
	sd_event_unref(t->event);
	free(t->error);
}

static void on_closed(int error, void *userdata)
{
	Talk *t = userdata;

	(void)sd_event_exit(t->event, error);
}

static int on_timeout(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	Talk *t = userdata;

	return sd_event_exit(t->event, -ETIMEDOUT);
}

static void on_reply(_unused_ json_object *ret, const char *error, void *userdata)
{
	Talk *t = userdata;

	t->error = error ? xstrdup(error) : NULL;
	(void)sd_event_exit(t->event, 0);
}

static const QmpHandlers handlers = {.closed = on_closed};

static int open_talk(Talk *t, int fd)
{
	int r = sd_event_new(&t->event);

	if (r >= 0)
		r = sd_event_add_time_relative(t->event, NULL, CLOCK_MONOTONIC, QMP_SECONDS * 1000000ULL, 1, on_timeout, t);
	return r < 0 ? r : qmp_new(t->event, fd, &handlers, t, &t->qmp);
}

/* Connect, give the commands, wait for the answer to the last one. Return: 0, or negative errno with @err set. */
static int talk(const Naming *naming, json_object *add, void (*who)(void *userdata, pid_t qemu), void *userdata, Error **err)
{
	_cleanup_(talk_done) Talk t = {};
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int fd = unix_connect(naming->qmp), r;

	if (fd < 0) {
		json_object_put(add);
		error_set(err, -ENOTCONN, "VM %s is not running here: %s: %s", naming->id, naming->qmp, strerror(-fd));
		return -ENOTCONN;
	}
	if (who && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0)
		who(userdata, peer.pid);
	r = open_talk(&t, fd);
	if (r < 0) {
		fd_close(fd);
		json_object_put(add);
		return error_set(err, r, "QMP: %s", strerror(-r));
	}
	/* Left by a run that was killed: QEMU knows only one of the kind. */
	qmp_command(t.qmp, "object-del", json_build("id", "s", OBJECT_ID, NULL), add ? NULL : on_reply, &t);
	if (add)
		qmp_command(t.qmp, "object-add", add, on_reply, &t);
	r = sd_event_loop(t.event);
	if (r == -ETIMEDOUT)
		error_hint(err, "another program holds this QMP socket");
	if (r < 0)
		return error_set(err, r, "%s: %s", naming->qmp, strerror(-r));
	return t.error ? error_set(err, -EIO, "QEMU: %s", t.error) : 0;
}

int vmstate_object_add(const Naming *naming, const char *bus, void (*who)(void *userdata, pid_t qemu), void *userdata, Error **err)
{
	/* Without id-list QEMU would drop the state without a word. */
	json_object *add = json_build("qom-type", "s", "dbus-vmstate", "id", "s", OBJECT_ID, "addr", "s", bus, "id-list", "s",
				      naming->id, NULL);

	return talk(naming, add, who, userdata, err);
}

int vmstate_object_remove(const Naming *naming, Error **err)
{
	return talk(naming, NULL, NULL, NULL, err);
}
