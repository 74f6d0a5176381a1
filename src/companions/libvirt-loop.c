/* SPDX-License-Identifier: GPL-2.0-or-later */
/* libvirt's event loop interface (libvirt-event.h, virEventRegisterImpl()) on sd-event, for one loop of this process.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <sys/epoll.h>

#include "basic/clock.h"
#include "companions/libvirt.h"

/* A handle or a timer. One that is removed is freed later, and libvirt's data with it: it may be in a callback now. */
typedef struct Slot {
	struct Slot *next;
	int id, fd, msec; /* of a timer: -1 is off */
	bool removed;
	sd_event_source *source;
	virEventHandleCallback on_handle;
	virEventTimeoutCallback on_timeout;
	void *opaque;
	virFreeCallback release;
} Slot;

static struct {
	sd_event *event;
	sd_event_source *later;
	Slot *slots;
	int ids;
} loop;

static const struct {
	int libvirt;
	uint32_t epoll;
} bits[] = {
	{VIR_EVENT_HANDLE_READABLE, EPOLLIN},
	{VIR_EVENT_HANDLE_WRITABLE, EPOLLOUT},
	{VIR_EVENT_HANDLE_ERROR, EPOLLERR},
	{VIR_EVENT_HANDLE_HANGUP, EPOLLHUP},
};

static uint32_t to_epoll(int events)
{
	uint32_t found = 0;

	for (size_t i = 0; i < ARRAY_SIZE(bits); i++)
		found |= events & bits[i].libvirt ? bits[i].epoll : 0;
	return found;
}

static int from_epoll(uint32_t events)
{
	int found = 0;

	for (size_t i = 0; i < ARRAY_SIZE(bits); i++)
		found |= events & bits[i].epoll ? bits[i].libvirt : 0;
	return found;
}

static Slot *find(int id)
{
	for (Slot *s = loop.slots; s; s = s->next)
		if (s->id == id && !s->removed)
			return s;
	return NULL;
}

static Slot *add(void *opaque, virFreeCallback release)
{
	Slot *s = xcalloc(1, sizeof(*s));

	*s = (Slot){.next = loop.slots, .id = ++loop.ids, .fd = -1, .msec = -1, .opaque = opaque, .release = release};
	return loop.slots = s;
}

/* Unlinked first: to release data may remove others. */
static void free_removed(void)
{
	for (Slot **at = &loop.slots; *at;) {
		Slot *s = *at;

		if (!s->removed) {
			at = &s->next;
			continue;
		}
		*at = s->next;
		if (s->release)
			s->release(s->opaque);
		free(s);
		at = &loop.slots;
	}
}

static int on_later(sd_event_source *source, _unused_ void *userdata)
{
	(void)sd_event_source_set_enabled(source, SD_EVENT_OFF);
	free_removed();
	return 0;
}

static int on_io(_unused_ sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	Slot *s = userdata;

	s->on_handle(s->id, fd, from_epoll(revents), s->opaque);
	return 0;
}

static void arm(Slot *s)
{
	(void)sd_event_source_set_enabled(s->source, s->msec < 0 ? SD_EVENT_OFF : SD_EVENT_ONESHOT);
	if (s->msec >= 0)
		(void)sd_event_source_set_time_relative(s->source, (uint64_t)s->msec * USEC_PER_MSEC);
}

/* It comes again and again, until it is set to another time. */
static int on_time(_unused_ sd_event_source *source, _unused_ uint64_t usec, void *userdata)
{
	Slot *s = userdata;

	arm(s);
	s->on_timeout(s->id, s->opaque);
	return 0;
}

static int remove_slot(int id)
{
	Slot *s = find(id);

	if (!s)
		return -1;
	s->removed = true;
	s->source = sd_event_source_disable_unref(s->source);
	(void)sd_event_source_set_enabled(loop.later, SD_EVENT_ONESHOT);
	return 0;
}

static int added(Slot *s, int r)
{
	if (r >= 0)
		return s->id;
	s->release = NULL; /* it was not taken over */
	(void)remove_slot(s->id);
	return -1;
}

static void update_handle(int id, int events)
{
	Slot *s = find(id);

	if (!s)
		return;
	(void)sd_event_source_set_io_events(s->source, to_epoll(events));
	(void)sd_event_source_set_enabled(s->source, events ? SD_EVENT_ON : SD_EVENT_OFF);
}

static int add_handle(int fd, int events, virEventHandleCallback callback, void *opaque, virFreeCallback release)
{
	Slot *s = add(opaque, release);
	int r = sd_event_add_io(loop.event, &s->source, fd, to_epoll(events), on_io, s);

	s->on_handle = callback;
	if (r >= 0)
		update_handle(s->id, events);
	return added(s, r);
}

static void update_timeout(int id, int msec)
{
	Slot *s = find(id);

	if (!s)
		return;
	s->msec = msec;
	arm(s);
}

static int add_timeout(int msec, virEventTimeoutCallback callback, void *opaque, virFreeCallback release)
{
	Slot *s = add(opaque, release);
	int r = sd_event_add_time_relative(loop.event, &s->source, CLOCK_MONOTONIC, 0, 1, on_time, s);

	s->on_timeout = callback;
	if (r >= 0)
		update_timeout(s->id, msec);
	return added(s, r);
}

int libvirt_loop_begin(sd_event *event, LibvirtRegister *library_register)
{
	int r = sd_event_add_defer(event, &loop.later, on_later, NULL);

	if (r < 0)
		return r;
	loop.event = sd_event_ref(event);
	library_register(add_handle, update_handle, remove_slot, add_timeout, update_timeout, remove_slot);
	return sd_event_source_set_enabled(loop.later, SD_EVENT_OFF);
}

void libvirt_loop_end(void)
{
	free_removed();
	loop.later = sd_event_source_disable_unref(loop.later);
	loop.event = sd_event_unref(loop.event);
}
