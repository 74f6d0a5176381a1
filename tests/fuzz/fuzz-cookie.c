/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A peer's message with a cookie: one byte for the table, then a D-Bus message as it comes over the link, past
 * frame_check(), through sd-bus, into cookie_read(). What is read is appended and read again the same.
 */
#include <stdlib.h>
#include <string.h>

#include "../unit/wire-bus.h"
#include "basic/text.h"
#include "peer/frame.h"
#include "peer/messages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const CookieTable *const tables[] = {&hello_cookie,  &hello_reply,   &prepare_cookie,
					    &prepare_reply, &finish_cookie, &outcome_reply};

static void append_and_read(WireBus *wire, const CookieTable *table, const void *data)
{
	_cleanup_(sd_bus_message_unrefp)
	sd_bus_message *m = NULL;
	void *back = xcalloc(1, table->size);

	if (sd_bus_message_new_signal(wire->bus, &m, PEER_PATH, PEER_INTERFACE, "Again") < 0 ||
	    cookie_append(m, table, data) < 0 || sd_bus_message_seal(m, 1, 0) < 0 ||
	    cookie_read(m, table, peer_features, back, NULL) < 0)
		abort();
	cookie_clear(table, back);
	free(back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FrameCheck check = {.started = true};
	const CookieTable *table;
	sd_bus_message *m;
	WireBus wire;
	void *cookie;

	if (size < 1 || frame_check(&check, data + 1, size - 1) < 0)
		return 0;
	table = tables[data[0] % ARRAY_SIZE(tables)];
	wire_bus_open(&wire, true);
	m = wire_bus_feed(&wire, data + 1, size - 1);
	cookie = xcalloc(1, table->size);
	if (m && cookie_read(m, table, peer_features, cookie, NULL) == 0)
		append_and_read(&wire, table, cookie);
	cookie_clear(table, cookie);
	free(cookie);
	wire_bus_close(&wire);
	return 0;
}
