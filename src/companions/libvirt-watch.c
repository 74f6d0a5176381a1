/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One domain of a libvirt daemon: what becomes of it, heard at once, and the word to run it. libvirt's own library does
 * it, in this process: nothing has to be started, connected or woken up when the guest waits.
 */
#include <dlfcn.h>
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include "companions/libvirt.h"

/* Loaded for who needs it: the hook, which libvirt runs at each start of a domain, does not. */
#define LIBRARY_TABLE(X)                                                                                               \
	X(virSetErrorFunc)                                                                                             \
	X(virGetLastError)                                                                                             \
	X(virEventRegisterImpl)                                                                                        \
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

struct Watch {
	virConnectPtr connection;
	virDomainPtr coming; /* not to be looked up when it waits */
	int callback;	     /* its number, or -1 */
	char *domain;
	const WatchHandlers *handlers;
	void *userdata;
};

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

/* What it has to say is asked for. */
static void be_quiet(_unused_ void *userdata, _unused_ virErrorPtr error)
{
}

static int failed(const char *what, const char *of, Error **err)
{
	virErrorPtr last = lib.virGetLastError();

	return error_set(err, -EIO, "%s %s: %s", what, of, last && last->message ? last->message : "no reason given");
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

static void keep(Watch *w, virDomainPtr domain)
{
	if (w->coming)
		lib.virDomainFree(w->coming);
	w->coming = lib.virDomainRef(domain) < 0 ? NULL : domain;
}

static int on_event(_unused_ virConnectPtr connection, virDomainPtr domain, int event, int detail, void *userdata)
{
	const char *name = lib.virDomainGetName(domain);
	Watch *w = userdata;

	for (size_t i = 0; name && streq(name, w->domain) && i < ARRAY_SIZE(lives); i++)
		if (lives[i].event == event && (lives[i].detail < 0 || lives[i].detail == detail)) {
			if (lives[i].life == LIFE_COMING)
				keep(w, domain);
			w->handlers->life(w->userdata, lives[i].life);
			break;
		}
	return 0;
}

static void on_close(_unused_ virConnectPtr connection, _unused_ int reason, void *userdata)
{
	Watch *w = userdata;

	w->handlers->lost(w->userdata);
}

static int connect(Watch *w, const char *uri, Error **err)
{
	w->connection = lib.virConnectOpenAuth(uri, *lib.virConnectAuthPtrDefault, 0);
	if (!w->connection)
		return failed("Cannot connect to libvirt", uri ?: "here", err);
	w->callback = lib.virConnectDomainEventRegisterAny(w->connection, NULL, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
							   VIR_DOMAIN_EVENT_CALLBACK(on_event), w, NULL);
	if (w->callback < 0 || lib.virConnectRegisterCloseCallback(w->connection, on_close, w, NULL) < 0)
		return failed("Cannot hear from libvirt of", w->domain, err);
	return 0;
}

int watch_new(sd_event *event, const char *uri, const char *domain, const WatchHandlers *handlers, void *userdata,
	      Watch **ret, Error **err)
{
	Watch *w;
	int r = load(err);

	if (r < 0)
		return r;
	lib.virSetErrorFunc(NULL, be_quiet);
	r = libvirt_loop_begin(event, lib.virEventRegisterImpl);
	if (r < 0)
		return error_set(err, r, "Cannot make an event loop: %s", strerror(-r));
	w = xcalloc(1, sizeof(*w));
	*w = (Watch){.callback = -1, .domain = xstrdup(domain), .handlers = handlers, .userdata = userdata};
	r = connect(w, uri, err);
	if (r < 0) {
		watch_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

/* Its state, where it says that the domain is not coming any more. */
static DomainLife life_now(virDomainPtr domain)
{
	int state, reason;

	if (lib.virDomainGetState(domain, &state, &reason, 0) < 0 || state == VIR_DOMAIN_SHUTOFF ||
	    state == VIR_DOMAIN_CRASHED)
		return LIFE_GONE;
	if (state == VIR_DOMAIN_RUNNING)
		return LIFE_RUNNING;
	return state == VIR_DOMAIN_PAUSED && reason == VIR_DOMAIN_PAUSED_USER ? LIFE_PAUSED : LIFE_COMING;
}

DomainLife watch_ask(Watch *w)
{
	virDomainPtr domain = lib.virDomainLookupByName(w->connection, w->domain);
	DomainLife life = domain ? life_now(domain) : LIFE_GONE;

	if (domain)
		lib.virDomainFree(domain);
	return life;
}

int watch_resume(Watch *w, Error **err)
{
	if (!w->coming)
		w->coming = lib.virDomainLookupByName(w->connection, w->domain);
	if (!w->coming || lib.virDomainResume(w->coming) < 0)
		return failed("libvirt does not resume", w->domain, err);
	return 0;
}

Watch *watch_free(Watch *w)
{
	if (!w)
		return NULL;
	if (w->coming)
		lib.virDomainFree(w->coming);
	if (w->connection) {
		(void)lib.virConnectUnregisterCloseCallback(w->connection, on_close);
		if (w->callback >= 0)
			(void)lib.virConnectDomainEventDeregisterAny(w->connection, w->callback);
		(void)lib.virConnectClose(w->connection);
	}
	libvirt_loop_end();
	free(w->domain);
	free(w);
	return NULL;
}
