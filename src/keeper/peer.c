/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The peer socket: one line says what a connection is, then org.vmferry.Peer1 or a data stream. docs/protocol.md. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "keeper/move.h"
#include "keeper/prove.h"

#define CONNECTIONS_MAX 16
#define LINE_USEC (10 * USEC_PER_SEC)
#define DELTA_MAX (512 * 1024)

static void connection_free(PeerConnection *c)
{
	Keeper *k = c->keeper;

	for (PeerConnection **at = &k->peers; *at; at = &(*at)->next)
		if (*at == c) {
			*at = c->next;
			break;
		}
	sd_event_source_disable_unref(c->io);
	sd_event_source_disable_unref(c->timer);
	prove_close(c);
	target_look_drop(c);
	fd_close(c->fd);
	link_free(c->link);
	free(c->host_id);
	free(c->host_name);
	free(c);
	keeper_check_idle(k);
}

/* ---- Peer1 ---- */

static int refuse_call(sd_bus_error *error, const char *kind, const char *message)
{
	_cleanup_error_ Error *err = NULL;

	error_set(&err, -EPERM, "%s", message);
	return bus_error(error, kind, err);
}

static bool allowed_peer(PeerConnection *c, const HelloCookie *hello)
{
	char **peers = c->keeper->conf->receive.peers;

	/* A forced command that names the peer is believed before what the peer says of itself. */
	if (c->preamble.peer[0] && !streq(c->preamble.peer, hello->host_id) &&
	    !streq(c->preamble.peer, hello->host_name))
		return false;
	return !peers || strv_contains(peers, hello->host_id) || strv_contains(peers, hello->host_name);
}

static int check_hello(PeerConnection *c, const HelloCookie *hello, sd_bus_error *error)
{
	HostConf *conf = c->keeper->conf;
	_cleanup_error_ Error *err = NULL;
	_cleanup_free_ char *their = text_clean(hello->host_name, 64);

	if (!streq(hello->vm, c->keeper->name) || !streq(hello->id, c->preamble.id))
		return refuse_call(error, "Denied", "Hello names another VM or migration than the stream's first line");
	if (peer_version_check(hello->version, hello->least, &err) < 0)
		return bus_error(error, "InvalidArgument", err);
	if (!allowed_peer(c, hello)) {
		error_set(&err, -EPERM, "host %s does not take VMs from %s", conf->host_name, their);
		error_hint(&err, "allow it there: receive { peers } in host.conf, and --peer of its forced command");
		return bus_error(error, "Denied", err);
	}
	if (!streq(hello->host_id, conf->host_id))
		return 0;
	if (streq(hello->host_name, conf->host_name)) {
		error_set(&err, -EINVAL, "source and target are the same host, %s", their);
		error_hint(&err, "a newer QEMU on the same host is vmferry upgrade's work");
	} else {
		error_set(&err, -EINVAL, "hosts %s and %s have the same host id %s", their, conf->host_name,
			  conf->host_id);
		error_hint(&err, "set host-id in one host.conf (cloned machines often share /etc/machine-id)");
	}
	return bus_error(error, "InvalidArgument", err);
}

static void learn_peer(PeerConnection *c, const HelloCookie *hello)
{
	c->greeted = true;
	free(c->host_id);
	free(c->host_name);
	c->host_id = xstrdup(hello->host_id);
	c->host_name = text_clean(hello->host_name, 64);
}

static int answer_hello(PeerConnection *c, sd_bus_message *m)
{
	HostConf *conf = c->keeper->conf;
	HelloReply reply = {
		.version = PEER_VERSION,
		.least = PEER_VERSION_LEAST,
		.features = (char **)(uintptr_t)peer_features,
		.software = (char *)VMFERRY_VERSION,
		.host_id = conf->host_id,
		.host_name = conf->host_name,
	};
	CtHost ct;

	ct_host_read(&ct);
	reply.conntrack = ct.available;
	if (!ct.available)
		reply.conntrack_reason = (char *)"no access to nf_conntrack there";
	else if (ct.max && ct.count > ct.max - ct.max / 10)
		reply.conntrack_reason = (char *)"nf_conntrack's table there is nearly full";
	if (conf->migration_address && prove_listen(c) >= 0) {
		reply.address = conf->migration_address;
		reply.port = prove_port(c);
		reply.token = c->proof_token;
	}
	return cookie_reply(m, &hello_reply, &reply);
}

static int on_hello(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;
	HelloCookie hello = {};
	_cleanup_error_ Error *err = NULL;
	int r;

	r = cookie_read(m, &hello_cookie, peer_features, &hello, &err);
	if (r < 0)
		return bus_error(error, "InvalidArgument", err);
	r = check_hello(c, &hello, error);
	if (r >= 0) {
		learn_peer(c, &hello);
		r = answer_hello(c, m);
	}
	cookie_clear(&hello_cookie, &hello);
	return r;
}

static int on_prepare(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;

	if (!c->greeted)
		return refuse_call(error, "Denied", "Prepare came before Hello");
	return target_prepare(c, m, error);
}

static int on_delta(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;
	_cleanup_error_ Error *err = NULL;
	const void *data;
	size_t len;
	int last, r;

	r = sd_bus_message_read(m, "b", &last);
	if (r >= 0)
		r = sd_bus_message_read_array(m, 'y', &data, &len);
	if (r < 0)
		return r;
	if (len > DELTA_MAX)
		return refuse_call(error, "InvalidArgument", "a Delta over its size limit");
	r = target_delta(c, data, len, last, &err);
	return r < 0 ? bus_error(error, "Failed", err) : sd_bus_reply_method_return(m, "");
}

static int on_finish(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	return target_finish(userdata, m, error);
}

/* The id a call names: that of the stream's first line, which a peer knows only if the migration is its own. */
static int read_id(PeerConnection *c, sd_bus_message *m, const char **ret, sd_bus_error *error)
{
	int r = sd_bus_message_read(m, "s", ret);

	if (r >= 0 && !streq(*ret, c->preamble.id))
		return refuse_call(error, "InvalidArgument",
				   "that is another migration than the stream's first line names");
	return r;
}

static int on_outcome(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;
	const char *id;
	int r = read_id(c, m, &id, error);

	return r < 0 ? r : target_outcome(c, m, id, error);
}

static int on_abort(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;
	Move *move = c->keeper->move;
	const char *id;
	int r = read_id(c, m, &id, error);

	if (r < 0)
		return r;
	if (move_active(move) && move_is_target(move) && streq(move->id, id)) {
		log_info("the source gives up this migration");
		move_event(move, MOVE_EV_ABORT);
	}
	return sd_bus_reply_method_return(m, "");
}

static int on_forget(sd_bus_message *m, void *userdata, sd_bus_error *error)
{
	PeerConnection *c = userdata;
	const char *id;
	int r = read_id(c, m, &id, error);

	if (r < 0)
		return r;
	journal_forget(c->keeper->journal, id);
	return sd_bus_reply_method_return(m, "");
}

static const sd_bus_vtable vtable[] = {
	SD_BUS_VTABLE_START(0),
	SD_BUS_METHOD("Hello", "a{sv}", "a{sv}", on_hello, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Prepare", "a{sv}", "a{sv}", on_prepare, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Delta", "bay", "", on_delta, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Finish", "a{sv}", "a{sv}", on_finish, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Outcome", "s", "a{sv}", on_outcome, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Abort", "s", "", on_abort, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Forget", "s", "", on_forget, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_METHOD("Ping", "", "", link_ping_reply, SD_BUS_VTABLE_UNPRIVILEGED),
	SD_BUS_SIGNAL("Log", "is", 0),
	SD_BUS_SIGNAL("Receiving", "", 0),
	SD_BUS_VTABLE_END,
};

static int add_objects(sd_bus *bus, void *userdata)
{
	return sd_bus_add_object_vtable(bus, NULL, PEER_PATH, PEER_INTERFACE, vtable, userdata);
}

/* ---- connections ---- */

static int on_lost_later(sd_event_source *source, uint64_t usec, void *userdata)
{
	PeerConnection *c = userdata;

	(void)source;
	(void)usec;
	connection_free(c);
	return 0;
}

static void on_lost(const Error *err, void *userdata)
{
	PeerConnection *c = userdata;
	Move *m = c->keeper->move;

	log_debug("peer connection ended: %s", err ? err->message : "EOF");
	target_look_drop(c);
	if (m->from == c) {
		m->from = NULL;
		m->prepare_message = sd_bus_message_unref(m->prepare_message);
		m->finish_message = sd_bus_message_unref(m->finish_message);
		if (move_active(m) && move_is_target(m))
			move_event(m, MOVE_EV_LINK_LOST);
	}
	/* The link calls us: it is freed from the loop. */
	sd_event_source_disable_unref(c->timer);
	(void)sd_event_add_time_relative(c->keeper->event, &c->timer, CLOCK_MONOTONIC, 0, 1, on_lost_later, c);
}

static void answer(PeerConnection *c, const char *text)
{
	(void)send(c->fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void data_stream(PeerConnection *c)
{
	Keeper *k = c->keeper;
	Move *m = k->move;
	_cleanup_free_ char *text = NULL;

	if (!move_is_target(m) || m->state != MOVE_T_WAIT || !streq(m->id, c->preamble.id) || !m->prepare.token ||
	    !text_equal_secret(m->prepare.token, c->preamble.token)) {
		answer(c, "vmferry/1 error this data stream belongs to no migration here\t\n");
		connection_free(c);
		return;
	}
	text = xasprintf("vmferry/1 ok %s\n", m->token);
	answer(c, text);
	/* Out of the loop before it is QEMU's as well: epoll goes on with a description that someone else keeps open.
	 */
	c->io = sd_event_source_disable_unref(c->io);
	target_data(k, TAKE_FD(c->fd));
	connection_free(c);
}

static void peer_stream(PeerConnection *c)
{
	static const LinkHandlers handlers = {.lost = on_lost};
	_cleanup_error_ Error *err = NULL;

	answer(c, "vmferry/1 ok -\n");
	c->io = sd_event_source_disable_unref(c->io);
	c->timer = sd_event_source_disable_unref(c->timer);
	if (link_accept(c->keeper->event, TAKE_FD(c->fd), c->keeper->conf->deadlines.link, &handlers, c, add_objects,
			&c->link, &err) < 0) {
		log_warning("%s", err->message);
		connection_free(c);
	}
}

static int on_line(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	PeerConnection *c = userdata;
	_cleanup_error_ Error *err = NULL;
	int r;

	(void)source;
	(void)revents;
	r = preamble_read(fd, c->line, &c->line_have);
	if (r == 0)
		return 0;
	if (r > 0)
		r = preamble_parse(c->line, &c->preamble, &err);
	if (r >= 0 && !streq(c->preamble.name, c->keeper->name))
		r = error_set(&err, -EPROTO, "that is another VM's stream");
	if (r < 0) {
		_cleanup_free_ char *text = preamble_refusal(err);

		answer(c, text);
		connection_free(c);
	} else if (c->preamble.data) {
		data_stream(c);
	} else {
		peer_stream(c);
	}
	return 0;
}

static int on_line_timeout(sd_event_source *source, uint64_t usec, void *userdata)
{
	(void)source;
	(void)usec;
	connection_free(userdata);
	return 0;
}

static int on_connect(sd_event_source *source, int fd, uint32_t revents, void *userdata)
{
	static const char too_many[] = "vmferry/1 error too many connections to this VM's keeper\ttry again later\n";
	Keeper *k = userdata;
	PeerConnection *c;
	int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	size_t n = 0;

	(void)source;
	(void)revents;
	for (c = k->peers; c; c = c->next)
		n++;
	if (client >= 0 && n >= CONNECTIONS_MAX)
		(void)send(client, too_many, strlen(too_many), MSG_NOSIGNAL | MSG_DONTWAIT);
	if (client < 0 || n >= CONNECTIONS_MAX || !unix_peer_is_us(client)) {
		fd_close(client);
		return 0;
	}
	c = xcalloc(1, sizeof(*c));
	c->keeper = k;
	c->fd = client;
	c->proof_fd = -1;
	c->next = k->peers;
	k->peers = c;
	if (sd_event_add_io(k->event, &c->io, client, EPOLLIN, on_line, c) < 0 ||
	    sd_event_add_time_relative(k->event, &c->timer, CLOCK_MONOTONIC, LINE_USEC, 0, on_line_timeout, c) < 0)
		connection_free(c);
	return 0;
}

int peer_open(Keeper *k, Error **err)
{
	_cleanup_free_ char *path = runtime_path(k->name, "peer");
	int r;

	k->peer_fd = r = unix_listen(path, 0600);
	if (r >= 0)
		r = sd_event_add_io(k->event, &k->peer_io, k->peer_fd, EPOLLIN, on_connect, k);
	return r < 0 ? error_set(err, r, "cannot listen on %s: %s", path, strerror(-r)) : 0;
}

void peer_close(Keeper *k)
{
	k->leaving = true;
	while (k->peers)
		connection_free(k->peers);
	k->peer_io = sd_event_source_disable_unref(k->peer_io);
	k->peer_fd = fd_close(k->peer_fd);
}

void peer_log(Keeper *k, LogLevel level, const char *message)
{
	PeerConnection *c = k->move ? k->move->from : NULL;
	sd_bus *bus = c ? link_bus(c->link) : NULL;

	if (bus)
		(void)sd_bus_emit_signal(bus, PEER_PATH, PEER_INTERFACE, "Log", "is", (int)level, message);
}
