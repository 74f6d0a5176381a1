/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One domain of a libvirt daemon: what becomes of it, heard at once, and the word to run it. libvirt's own library does
 * it, in this process: nothing has to be started, connected or woken up when the guest waits.
 *
 * It has a thread to itself, with the library's own event loop: a daemon that does not answer stops that thread and
 * nothing else. Both sides share no memory. They have a socket each, for commands of a byte and for what is heard, and
 * closing ours ends the thread.
 */
#include <dlfcn.h>
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "basic/clock.h"
#include "basic/fd.h"
#include "companions/libvirt.h"

#define END_SEC 1 /* for the thread to close its connection */
#define TEXT_LEN 512

/* Loaded for who needs it: the hook, which libvirt runs at each start of a domain, does not. */
#define LIBRARY_TABLE(X)                                                                                               \
	X(virSetErrorFunc)                                                                                             \
	X(virGetLastError)                                                                                             \
	X(virEventRegisterDefaultImpl)                                                                                 \
	X(virEventRunDefaultImpl)                                                                                      \
	X(virEventAddHandle)                                                                                           \
	X(virEventRemoveHandle)                                                                                        \
	X(virConnectAuthPtrDefault)                                                                                    \
	X(virConnectOpenAuth)                                                                                          \
	X(virConnectClose)                                                                                             \
	X(virConnectRegisterCloseCallback)                                                                             \
	X(virConnectUnregisterCloseCallback)                                                                           \
	X(virConnectDomainEventRegisterAny)                                                                            \
	X(virConnectDomainEventDeregisterAny)                                                                          \
	X(virDomainLookupByName)                                                                                       \
	X(virDomainGetName)                                                                                            \
	X(virDomainGetState)                                                                                           \
	X(virDomainResume)                                                                                             \
	X(virDomainRef)                                                                                                \
	X(virDomainFree)
static struct {
#define X(name) __typeof__(name) *name;
	LIBRARY_TABLE(X)
#undef X
} lib;

typedef enum Command { COMMAND_ASK, COMMAND_RESUME } Command;

/* What the thread says; in one message each. */
typedef struct Report {
	enum { REPORT_LIFE, REPORT_ANSWER, REPORT_REFUSED, REPORT_LOST } what;
	DomainLife life;
	char text[TEXT_LEN];
} Report;

struct Watch {
	pthread_t thread;
	int fd;
	sd_event_source *source;
	const WatchHandlers *handlers;
	void *userdata;
};

/* The thread's. */
typedef struct Ear {
	int fd, handle; /* libvirt's number of it, or -1 */
	bool end;
	char *uri, *domain;
	virConnectPtr connection;
	virDomainPtr coming; /* not to be looked up when it waits */
	int callback;	     /* its number, or -1 */
} Ear;

static int load(Error **err)
{
	void *library = dlopen("libvirt.so.0", RTLD_NOW | RTLD_LOCAL);

	if (!library)
		return error_set(err, -ENOENT, "Cannot load libvirt.so.0: %s", dlerror());
#define X(name)                                                                                                        \
	lib.name = (__typeof__(lib.name))dlsym(library, #name);                                                        \
	if (!lib.name)                                                                                                 \
		return error_set(err, -ENOSYS, "This libvirt.so.0 has no %s()", #name);
	LIBRARY_TABLE(X)
#undef X
	return 0;
}

/* ---- the thread ---- */

static void say(const Ear *e, const Report *report)
{
	(void)send(e->fd, report, sizeof(*report), MSG_NOSIGNAL); /* whoever has closed it does not want it */
}

static void say_life(const Ear *e, DomainLife life)
{
	say(e, &(Report){.what = REPORT_LIFE, .life = life});
}

/* What libvirt says last: it forgets that at the next call. */
static Report why(int what, const char *doing)
{
	virErrorPtr last = lib.virGetLastError();
	Report report = {.what = what};

	(void)snprintf(report.text, sizeof(report.text), "%s: %s", doing,
		       last && last->message ? last->message : "no reason given");
	return report;
}

/* What it has to say is asked for. */
static void be_quiet(_unused_ void *userdata, _unused_ virErrorPtr error)
{
}

/* libvirt-domain.h: virDomainEventType and the details of each. */
static const struct {
	int event, detail; /* -1: any */
	DomainLife life;
} lives[] = {
	{VIR_DOMAIN_EVENT_STARTED, VIR_DOMAIN_EVENT_STARTED_MIGRATED, LIFE_COMING},
	{VIR_DOMAIN_EVENT_SUSPENDED, VIR_DOMAIN_EVENT_SUSPENDED_PAUSED, LIFE_PAUSED},
	{VIR_DOMAIN_EVENT_SUSPENDED, VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED, LIFE_LEAVING},
	{VIR_DOMAIN_EVENT_SUSPENDED, VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY, LIFE_LEAVING},
	{VIR_DOMAIN_EVENT_RESUMED, -1, LIFE_RUNNING},
	{VIR_DOMAIN_EVENT_STOPPED, -1, LIFE_GONE},
	{VIR_DOMAIN_EVENT_CRASHED, -1, LIFE_GONE},
};

static void keep(Ear *e, virDomainPtr domain)
{
	if (e->coming)
		lib.virDomainFree(e->coming);
	e->coming = lib.virDomainRef(domain) < 0 ? NULL : domain;
}

static int on_event(_unused_ virConnectPtr connection, virDomainPtr domain, int event, int detail, void *userdata)
{
	const char *name = lib.virDomainGetName(domain);
	Ear *e = userdata;

	for (size_t i = 0; name && streq(name, e->domain) && i < ARRAY_SIZE(lives); i++)
		if (lives[i].event == event && (lives[i].detail < 0 || lives[i].detail == detail)) {
			if (lives[i].life == LIFE_COMING)
				keep(e, domain);
			say_life(e, lives[i].life);
			break;
		}
	return 0;
}

static void on_close(_unused_ virConnectPtr connection, _unused_ int reason, void *userdata)
{
	say(userdata, &(Report){.what = REPORT_LOST, .text = "libvirt has ended"});
}

/* virDomainState and the reasons of VIR_DOMAIN_PAUSED. */
static DomainLife life_of(int state, int reason)
{
	if (state == VIR_DOMAIN_RUNNING)
		return LIFE_RUNNING;
	if (state != VIR_DOMAIN_PAUSED)
		return LIFE_GONE;
	return reason == VIR_DOMAIN_PAUSED_MIGRATION || reason == VIR_DOMAIN_PAUSED_STARTING_UP ? LIFE_COMING
												: LIFE_PAUSED;
}

static Report life_now(const Ear *e)
{
	virDomainPtr domain = lib.virDomainLookupByName(e->connection, e->domain);
	Report report = {.what = REPORT_ANSWER, .life = LIFE_GONE};
	int state, reason;

	if (domain && lib.virDomainGetState(domain, &state, &reason, 0) >= 0)
		report.life = life_of(state, reason);
	else if (!lib.virGetLastError() || lib.virGetLastError()->code != VIR_ERR_NO_DOMAIN)
		report = why(REPORT_LOST, "libvirt does not say what has become of it");
	if (domain)
		lib.virDomainFree(domain);
	return report;
}

static void answer(const Ear *e)
{
	Report report = life_now(e);

	say(e, &report);
}

static void resume(Ear *e)
{
	Report refused;

	if (!e->coming)
		e->coming = lib.virDomainLookupByName(e->connection, e->domain);
	if (e->coming && lib.virDomainResume(e->coming) >= 0)
		return;
	refused = why(REPORT_REFUSED, "libvirt does not resume it");
	if (life_now(e).life == LIFE_RUNNING) /* another was quicker */
		say_life(e, LIFE_RUNNING);
	else
		say(e, &refused);
}

static void on_command(_unused_ int handle, int fd, _unused_ int events, void *userdata)
{
	Ear *e = userdata;
	uint8_t command;
	ssize_t n = recv(fd, &command, 1, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	e->end = n <= 0;
	if (n > 0 && command == COMMAND_ASK)
		answer(e);
	else if (n > 0 && command == COMMAND_RESUME)
		resume(e);
}

static bool listen_to(Ear *e)
{
	if (lib.virEventRegisterDefaultImpl() < 0)
		return false;
	e->connection = lib.virConnectOpenAuth(e->uri, *lib.virConnectAuthPtrDefault, 0);
	if (!e->connection)
		return false;
	e->callback = lib.virConnectDomainEventRegisterAny(e->connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
							   VIR_DOMAIN_EVENT_CALLBACK(on_event), e, NULL);
	if (e->callback < 0 || lib.virConnectRegisterCloseCallback(e->connection, on_close, e, NULL) < 0)
		return false;
	e->handle =
		lib.virEventAddHandle(e->fd, VIR_EVENT_HANDLE_READABLE | VIR_EVENT_HANDLE_HANGUP, on_command, e, NULL);
	return e->handle >= 0;
}

static void ear_free(Ear *e)
{
	if (e->handle >= 0)
		(void)lib.virEventRemoveHandle(e->handle);
	if (e->coming)
		lib.virDomainFree(e->coming);
	if (e->connection) {
		(void)lib.virConnectUnregisterCloseCallback(e->connection, on_close);
		if (e->callback >= 0)
			(void)lib.virConnectDomainEventDeregisterAny(e->connection, e->callback);
		(void)lib.virConnectClose(e->connection);
	}
	fd_close(e->fd);
	free(e->domain);
	free(e->uri);
	free(e);
}

static void *hear(void *userdata)
{
	Ear *e = userdata;

	lib.virSetErrorFunc(NULL, be_quiet);
	if (listen_to(e)) {
		answer(e); /* what it was before is no event */
	} else {
		Report report = why(REPORT_LOST, "Cannot hear from libvirt");

		say(e, &report);
	}
	while (!e->end && e->handle >= 0 && lib.virEventRunDefaultImpl() >= 0)
		;
	ear_free(e);
	return NULL;
}

/* ---- whom it tells ---- */

static int on_report(_unused_ sd_event_source *s, int fd, _unused_ uint32_t revents, void *userdata)
{
	Watch *w = userdata;
	Report report;
	ssize_t n = recv(fd, &report, sizeof(report), MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n != sizeof(report)) { /* the thread has ended, and has said why */
		w->source = sd_event_source_disable_unref(w->source);
		return 0;
	}
	switch (report.what) {
	case REPORT_LIFE:
		w->handlers->life(w->userdata, report.life);
		break;
	case REPORT_ANSWER:
		if (w->handlers->answer)
			w->handlers->answer(w->userdata, report.life);
		break;
	case REPORT_REFUSED:
		if (w->handlers->refused)
			w->handlers->refused(w->userdata, report.text);
		break;
	case REPORT_LOST:
		w->handlers->lost(w->userdata, report.text);
		break;
	}
	return 0;
}

/* No signal is the thread's. */
static int start_thread(pthread_t *ret, Ear *e)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &before);
	r = -pthread_create(ret, NULL, hear, e);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r;
}

static int start(Watch *w, sd_event *event, const char *uri, const char *domain)
{
	int ends[2], r;
	Ear *e;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return -errno;
	w->fd = ends[0];
	e = xcalloc(1, sizeof(*e));
	*e = (Ear){.fd = ends[1],
		   .handle = -1,
		   .callback = -1,
		   .uri = uri ? xstrdup(uri) : NULL,
		   .domain = xstrdup(domain)};
	r = sd_event_add_io(event, &w->source, w->fd, EPOLLIN, on_report, w);
	if (r >= 0)
		r = start_thread(&w->thread, e);
	if (r < 0)
		ear_free(e);
	return r;
}

int watch_new(sd_event *event, const char *uri, const char *domain, const WatchHandlers *handlers, void *userdata,
	      Watch **ret, Error **err)
{
	Watch *w;
	int r = load(err);

	if (r < 0)
		return r;
	w = xcalloc(1, sizeof(*w));
	*w = (Watch){.fd = -1, .handlers = handlers, .userdata = userdata};
	r = start(w, event, uri, domain);
	if (r < 0) {
		sd_event_source_disable_unref(w->source);
		fd_close(w->fd);
		free(w);
		return error_set(err, r, "Cannot start to hear from libvirt: %s", strerror(-r));
	}
	*ret = w;
	return 0;
}

static void command(const Watch *w, Command what)
{
	(void)send(w->fd, &(uint8_t){what}, 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* who has ended has said so */
}

void watch_ask(const Watch *w)
{
	command(w, COMMAND_ASK);
}

void watch_resume(const Watch *w)
{
	command(w, COMMAND_RESUME);
}

Watch *watch_free(Watch *w)
{
	struct timespec end;

	if (!w)
		return NULL;
	sd_event_source_disable_unref(w->source);
	fd_close(w->fd);
	(void)clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += END_SEC;
	if (pthread_clockjoin_np(w->thread, NULL, CLOCK_MONOTONIC, &end) != 0)
		(void)pthread_detach(w->thread); /* it waits for the daemon, and ends with the process */
	free(w);
	return NULL;
}
