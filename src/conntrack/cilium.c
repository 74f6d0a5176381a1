/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The agent's API: one request at a time, over a connection that stays open. */
#include "cilium.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "basic/clock.h"
#include "basic/text.h"

#define VERSION_HEADER "Cilium-Conntrack-Export-Version"
#define URL "http://localhost/v1/conntrack/"
#define IMPORT_USEC 5000000

typedef struct Cilium {
	CtOther other;
	char *socket;
	CURL *curl;
	struct curl_slist *headers;
	uint8_t *body; /* of all addresses */
	size_t len, size;
	size_t address; /* index of the one that is asked for */
	uint64_t deadline;
	char error[CURL_ERROR_SIZE];
	/* a read that runs in a loop */
	CURLM *multi; /* NULL: none */
	sd_event *event;
	sd_event_source *io, *timer;
	CtSelect *select;
	CtOtherRecord record;
	CtOtherDone done;
	void *userdata;
} Cilium;
static_assert(offsetof(Cilium, other) == 0, "of() casts");

static Cilium *of(CtOther *other)
{
	return (Cilium *)other;
}

/* ---- a request and its answer ---- */

static size_t on_body(char *data, size_t size, size_t n, void *userdata)
{
	Cilium *c = userdata;

	n *= size;
	if (n > CT_CILIUM_ENTRIES_MAX - c->len)
		return 0;
	if (c->len + n > c->size)
		c->body = xrealloc(c->body, c->size = 2 * (c->len + n), 1);
	memcpy(c->body + c->len, data, n);
	c->len += n;
	return n;
}

/* What is the same in all requests. */
static void prepare(Cilium *c, const char *url, uint64_t usec)
{
	long ms = (long)(usec / USEC_PER_MSEC);

	curl_easy_reset(c->curl);
	curl_easy_setopt(c->curl, CURLOPT_URL, url);
	curl_easy_setopt(c->curl, CURLOPT_UNIX_SOCKET_PATH, c->socket);
	curl_easy_setopt(c->curl, CURLOPT_PROTOCOLS_STR, "http");
	curl_easy_setopt(c->curl, CURLOPT_PROXY, "");
	curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(c->curl, CURLOPT_TIMEOUT_MS, ms > 0 ? ms : 1L);
	curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, c->headers);
	curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, c);
	curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, c->error);
	c->error[0] = '\0';
}

static int errno_of(CURLcode code)
{
	switch ((int)code) {
	case CURLE_OPERATION_TIMEDOUT:
		return -ETIMEDOUT;
	case CURLE_COULDNT_CONNECT:
		return -ENOTCONN;
	case CURLE_WRITE_ERROR:
		return -EFBIG;
	default:
		return -EREMOTEIO;
	}
}

/* Whether a request was answered, and well. Return: 0 or negative errno with @err set. */
static int answered(const Cilium *c, CURLcode code, Error **err)
{
	_cleanup_free_ char *why = NULL;
	long status = 0;
	int r;

	(void)curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
	if (code != CURLE_OK) {
		r = errno_of(code);
		why = text_clean(*c->error ? c->error : curl_easy_strerror(code), 200);
		return error_set(err, r, "Cilium: %s: %s", c->socket,
				 r == -EFBIG ? "more entries than anybody has" : why);
	}
	if (status == 200)
		return 0;
	if (status == 400)
		return error_set(err, -EPROTONOSUPPORT, "Cilium: 400: version 1 is not known there");
	return error_set(err, -EREMOTEIO, "Cilium: the agent answers %ld", status);
}

/* ---- export ---- */

/* Agents that do not say so write version 1. */
static int version_known(const Cilium *c, Error **err)
{
	struct curl_header *header;
	uint64_t version;

	if (curl_easy_header(c->curl, VERSION_HEADER, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
		return 0;
	if (text_parse_u64(header->value, &version) >= 0 && version == CT_CILIUM_VERSION)
		return 0;
	return error_set(err, -EPROTONOSUPPORT, "Cilium: the agent writes entries of an unknown version");
}

static int exported(const Cilium *c, CURLcode code, Error **err)
{
	int r = answered(c, code, err);

	if (r >= 0)
		r = version_known(c, err);
	if (r >= 0 && c->len % CT_CILIUM_ENTRY != 0)
		r = error_set(err, -EBADMSG, "Cilium: what the agent wrote ends in the middle of an entry");
	return r;
}

/* Begin with the first IPv4 address from c->address on. Return: whether there is one. */
static bool prepare_export(Cilium *c, const CtSelect *select)
{
	char text[INET_ADDRSTRLEN], url[128];
	uint64_t now = now_usec();

	while (c->address < select->n_addresses && select->addresses[c->address].family != AF_INET)
		c->address++;
	if (c->address == select->n_addresses)
		return false;
	inet_ntop(AF_INET, select->addresses[c->address++].bytes, text, sizeof(text));
	snprintf(url, sizeof(url), URL "export?ip4=%s", text);
	prepare(c, url, c->deadline > now ? c->deadline - now : 0);
	return true;
}

static void tell_all(const Cilium *c, CtOtherRecord tell, void *userdata)
{
	uint32_t now = (uint32_t)(now_usec() / USEC_PER_SEC);
	CtExtra extra = {};
	CtRecord record;

	for (size_t at = 0; at < c->len; at += CT_CILIUM_ENTRY)
		if (ct_cilium_read(c->body + at, now, &extra, &record))
			tell(userdata, &record);
}

static int selectable(const CtSelect *select, Error **err)
{
	bool any = false;

	for (size_t i = 0; i < select->n_addresses; i++)
		any |= select->addresses[i].family == AF_INET;
	if (select->by_mark || select->by_zone)
		return error_set(err, -EINVAL, "Cilium's entries have neither mark nor zone: give addresses");
	return any ? 0
		   : error_set(err, -EINVAL,
			       "Cilium's agent hands out entries of IPv4 addresses only, and none is given");
}

static void begin(Cilium *c, uint64_t usec)
{
	c->len = c->address = 0;
	c->deadline = now_usec() + usec;
}

/* ---- in a loop ---- */

static void give_up(Cilium *c)
{
	if (!c->multi)
		return;
	c->io = sd_event_source_disable_unref(c->io);
	c->timer = sd_event_source_disable_unref(c->timer);
	curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, NULL);
	curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, NULL);
	(void)curl_multi_remove_handle(c->multi, c->curl);
	(void)curl_multi_cleanup(c->multi);
	c->multi = NULL;
	ct_select_free(TAKE_PTR(c->select));
	c->event = sd_event_unref(c->event);
}

static void through(Cilium *c, int result, const Error *err)
{
	give_up(c);
	if (result >= 0)
		tell_all(c, c->record, c->userdata);
	c->done(c->userdata, result, err);
}

/* An answer is there: the next address, or all is done. */
static void next(Cilium *c, CURLcode code)
{
	_cleanup_error_ Error *err = NULL;
	int r = exported(c, code, &err);

	(void)curl_multi_remove_handle(c->multi, c->curl);
	if (r < 0 || !prepare_export(c, c->select))
		through(c, r, err);
	else if (curl_multi_add_handle(c->multi, c->curl) != CURLM_OK)
		through(c, -EIO, NULL);
}

static int turn(Cilium *c, int fd, int what)
{
	int running, left;
	CURLMsg *m;

	(void)curl_multi_socket_action(c->multi, fd, what, &running);
	while (c->multi && (m = curl_multi_info_read(c->multi, &left)))
		if (m->msg == CURLMSG_DONE)
			next(c, m->data.result);
	return 0;
}

static int on_io(_unused_ sd_event_source *s, int fd, uint32_t revents, void *userdata)
{
	return turn(userdata, fd,
		    (revents & EPOLLIN ? CURL_CSELECT_IN : 0) | (revents & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
			    (revents & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0));
}

static int on_timer(_unused_ sd_event_source *s, _unused_ uint64_t usec, void *userdata)
{
	return turn(userdata, CURL_SOCKET_TIMEOUT, 0);
}

static int want_socket(_unused_ CURL *curl, curl_socket_t fd, int what, void *userdata, _unused_ void *socketp)
{
	Cilium *c = userdata;
	uint32_t events = (what & CURL_POLL_IN ? EPOLLIN : 0U) | (what & CURL_POLL_OUT ? EPOLLOUT : 0U);

	c->io = sd_event_source_disable_unref(c->io);
	if (what == CURL_POLL_REMOVE)
		return 0;
	return sd_event_add_io(c->event, &c->io, fd, events, on_io, c) < 0 ? -1 : 0;
}

static int want_timer(_unused_ CURLM *multi, long ms, void *userdata)
{
	Cilium *c = userdata;

	c->timer = sd_event_source_disable_unref(c->timer);
	if (ms < 0)
		return 0;
	return sd_event_add_time_relative(c->event, &c->timer, CLOCK_MONOTONIC, (uint64_t)ms * USEC_PER_MSEC, 1000,
					  on_timer, c) < 0
		       ? -1
		       : 0;
}

static int cilium_read_begin(CtOther *other, sd_event *event, const CtSelect *select, CtOtherRecord record,
			     CtOtherDone done, void *userdata)
{
	Cilium *c = of(other);

	give_up(c);
	c->multi = curl_multi_init();
	if (!c->multi)
		return -ENOMEM;
	c->event = sd_event_ref(event);
	c->select = ct_select_copy(select);
	c->record = record;
	c->done = done;
	c->userdata = userdata;
	curl_multi_setopt(c->multi, CURLMOPT_SOCKETFUNCTION, want_socket);
	curl_multi_setopt(c->multi, CURLMOPT_SOCKETDATA, c);
	curl_multi_setopt(c->multi, CURLMOPT_TIMERFUNCTION, want_timer);
	curl_multi_setopt(c->multi, CURLMOPT_TIMERDATA, c);
	begin(c, CT_OTHER_READ_USEC);
	if (prepare_export(c, select) && curl_multi_add_handle(c->multi, c->curl) == CURLM_OK)
		return 0;
	give_up(c);
	return -EIO;
}

/* ---- the table ---- */

static int cilium_read(CtOther *other, const CtSelect *select, uint64_t usec, CtOtherRecord record, void *userdata,
		       Error **err)
{
	Cilium *c = of(other);
	int r = selectable(select, err);

	give_up(c);
	begin(c, usec);
	while (r >= 0 && prepare_export(c, select))
		r = exported(c, curl_easy_perform(c->curl), err);
	if (r >= 0)
		tell_all(c, record, userdata);
	return r;
}

static int cilium_write(CtOther *other, const CtRecord *const *records, size_t n, Error **err)
{
	Cilium *c = of(other);
	_cleanup_free_ uint8_t *entries = xcalloc(n + 1, CT_CILIUM_ENTRY);

	give_up(c);
	for (size_t i = 0; i < n; i++)
		ct_cilium_write(records[i], entries + i * CT_CILIUM_ENTRY);
	c->len = 0;
	prepare(c, URL "import", IMPORT_USEC);
	curl_easy_setopt(c->curl, CURLOPT_POST, 1L);
	curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(n * CT_CILIUM_ENTRY));
	curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, entries);
	return answered(c, curl_easy_perform(c->curl), err);
}

static void cilium_free(CtOther *other)
{
	Cilium *c = of(other);

	give_up(c);
	curl_easy_cleanup(c->curl);
	curl_slist_free_all(c->headers);
	free(c->body);
	free(c->socket);
	free(c);
}

static const char *const headers[] = {
	VERSION_HEADER ": 1", "Content-Type: application/octet-stream", "Accept: application/octet-stream",
	"Expect:", /* send the body at once */
};
static_assert(CT_CILIUM_VERSION == 1, "in the headers");

int ct_cilium_new(const char *socket, CtOther **ret, Error **err)
{
	Cilium *c;
	CURL *curl;

	(void)curl_global_init(CURL_GLOBAL_NOTHING);
	curl = curl_easy_init();
	if (!curl)
		return error_set(err, -ENOMEM, "Cannot make an HTTP client");
	c = xcalloc(1, sizeof(*c));
	*c = (Cilium){.other = {.map = CT_MAP_CILIUM,
				.read = cilium_read,
				.read_begin = cilium_read_begin,
				.write = cilium_write,
				.free = cilium_free},
		      .socket = xstrdup(socket),
		      .curl = curl};
	for (size_t i = 0; i < ARRAY_SIZE(headers); i++)
		c->headers = curl_slist_append(c->headers, headers[i]);
	*ret = &c->other;
	return 0;
}
