/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Control calls that are answered when something has happened. */
#include "keeper/keeper.h"

static void waiter_free(Waiter *w)
{
	sd_event_source_disable_unref(w->timer);
	sd_bus_message_unref(w->message);
	free(w);
}

/* Takes the waiters for @what out of the list. */
static Waiter *take(Keeper *k, WaitFor what)
{
	Waiter *taken = NULL, **at = &k->waiters;

	while (*at) {
		Waiter *w = *at;

		if (w->what != what) {
			at = &w->next;
			continue;
		}
		*at = w->next;
		w->next = taken;
		taken = w;
	}
	return taken;
}

void wait_done(Keeper *k, WaitFor what)
{
	Waiter *w = take(k, what), *next;

	for (; w; w = next) {
		next = w->next;
		if (what == WAIT_CANCEL)
			sd_bus_reply_method_return(w->message, "s", "cancelled");
		else
			sd_bus_reply_method_return(w->message, "");
		waiter_free(w);
	}
}

void wait_failed(Keeper *k, WaitFor what, const char *name, const char *message)
{
	Waiter *w = take(k, what), *next;

	for (; w; w = next) {
		next = w->next;
		sd_bus_reply_method_errorf(w->message, name, "%s", message);
		waiter_free(w);
	}
}

static int on_timeout(sd_event_source *source, uint64_t usec, void *userdata)
{
	Waiter *w = userdata;
	Keeper *k = w->keeper;

	(void)usec;
	w->timer = sd_event_source_disable_unref(source);
	if (w->what == WAIT_OFF && w->kill) {
		log_warning("the guest did not shut down in time: killed, as asked");
		machine_kill(k);
		return 0;
	}
	for (Waiter **at = &k->waiters; *at; at = &(*at)->next)
		if (*at == w) {
			*at = w->next;
			break;
		}
	sd_bus_reply_method_errorf(
		w->message, "org.vmferry.Error.Failed",
		"the guest has not shut down in time, it still runs\nit may ignore its power button: "
		"use vmferry stop --kill, or vmferry kill");
	waiter_free(w);
	return 0;
}

void wait_add(Keeper *k, sd_bus_message *m, WaitFor what, uint64_t timeout_usec, bool kill)
{
	Waiter *w = xcalloc(1, sizeof(*w));

	w->message = sd_bus_message_ref(m);
	w->what = what;
	w->kill = kill;
	w->keeper = k;
	w->next = k->waiters;
	k->waiters = w;
	if (timeout_usec)
		(void)sd_event_add_time_relative(k->event, &w->timer, CLOCK_MONOTONIC, timeout_usec, 0, on_timeout, w);
}
