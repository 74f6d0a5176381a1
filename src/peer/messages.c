/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "peer/messages.h"

#include <errno.h>
#include <inttypes.h>

#define FIELD(struct_, member, type_, max_, required_, text_)                                                      \
	{ .name = #member, .type = type_, .offset = offsetof(struct_, member), .max = max_, .required = required_, \
	  .text = text_ }
#define S(struct_, member, max_, required_) FIELD(struct_, member, COOKIE_STRING, max_, required_, false)
/* Of several lines. */
#define L(struct_, member, max_, required_)                                                                \
	{ .name = #member, .type = COOKIE_STRING, .offset = offsetof(struct_, member), .max = max_, \
	  .required = required_, .lines = true }
#define V(struct_, member, max_) FIELD(struct_, member, COOKIE_STRV, max_, false, false)
#define U(struct_, member, max_, required_) FIELD(struct_, member, COOKIE_U64, max_, required_, false)
#define B(struct_, member) FIELD(struct_, member, COOKIE_BOOL, 0, false, false)
/* For people: a string, and a list of strings. */
#define P(struct_, member, max_) FIELD(struct_, member, COOKIE_STRING, max_, false, true)
#define PV(struct_, member, max_) FIELD(struct_, member, COOKIE_STRV, max_, false, true)
#define TABLE(variable, title, struct_, fields_)                                                             \
	const CookieTable variable = { .name = title, .fields = fields_, .n_fields = ARRAY_SIZE(fields_), \
				       .size = sizeof(struct_) };                                          \
	static_assert(ARRAY_SIZE(fields_) <= 64, "cookie_read() keeps a 64-bit set of fields seen")

const char *const peer_features[] = { "conntrack", "run-state", "lease", NULL };

static const CookieField hello_fields[] = {
	U(HelloCookie, version, UINT32_MAX, true), V(HelloCookie, mandatory, 32),  V(HelloCookie, features, 64),
	P(HelloCookie, software, 64),	   S(HelloCookie, host_id, 64, true), S(HelloCookie, host_name, 256, true),
	S(HelloCookie, vm, 48, true),		   S(HelloCookie, id, 32, true),
	U(HelloCookie, least, UINT32_MAX, false),
};
TABLE(hello_cookie, "Hello", HelloCookie, hello_fields);

static const CookieField hello_reply_fields[] = {
	U(HelloReply, version, UINT32_MAX, true), V(HelloReply, mandatory, 32),	V(HelloReply, features, 64),
	P(HelloReply, software, 64),	  S(HelloReply, host_id, 64, true), S(HelloReply, host_name, 256, true),
	S(HelloReply, address, 64, false),	  U(HelloReply, port, 65535, false), S(HelloReply, token, 32, false),
	B(HelloReply, conntrack),		  P(HelloReply, conntrack_reason, 512),
	U(HelloReply, least, UINT32_MAX, false),
};
TABLE(hello_reply, "Hello's answer", HelloReply, hello_reply_fields);

static const CookieField prepare_fields[] = {
	V(PrepareCookie, mandatory, 32),
	S(PrepareCookie, id, 32, true),
	S(PrepareCookie, uuid, 36, true),
	L(PrepareCookie, definition, 65536, true),
	S(PrepareCookie, run_state, 16, true),
	P(PrepareCookie, reason, 64),
	S(PrepareCookie, transport, 16, true),
	S(PrepareCookie, address, 64, false),
	S(PrepareCookie, psk, 64, false),
	S(PrepareCookie, token, 32, true),
	U(PrepareCookie, channels, 16, false),
	B(PrepareCookie, conntrack),
	B(PrepareCookie, autostart),
	V(PrepareCookie, disk_proofs, 64),
	P(PrepareCookie, qemu_version, 128),
	B(PrepareCookie, check_only),
	S(PrepareCookie, lease, 16, false),
	S(PrepareCookie, lease_holder, 64, false),
	U(PrepareCookie, lease_generation, 0, false),
};
TABLE(prepare_cookie, "Prepare", PrepareCookie, prepare_fields);

static const CookieField prepare_reply_fields[] = {
	V(PrepareReply, mandatory, 32),
	U(PrepareReply, port, 65535, false),
	S(PrepareReply, address, 64, false),
	S(PrepareReply, token, 32, false),
	S(PrepareReply, data_socket, 107, false),
	P(PrepareReply, qemu_version, 128),
	PV(PrepareReply, warnings, 32),
	S(PrepareReply, graphics, 16, false),
	S(PrepareReply, graphics_listen, 64, false),
	S(PrepareReply, graphics_host, 256, false),
	U(PrepareReply, graphics_port, 65535, false),
	U(PrepareReply, graphics_tls_port, 65535, false),
	S(PrepareReply, graphics_cert_subject, 1024, false),
	S(PrepareReply, lease_holder, 64, false),
	B(PrepareReply, ct_told),
	U(PrepareReply, ct_room, 0, false),
	U(PrepareReply, ct_limit, 0, false),
	S(PrepareReply, ct_labels, 16, false),
	V(PrepareReply, ct_helpers, 64),
};
TABLE(prepare_reply, "Prepare's answer", PrepareReply, prepare_reply_fields);

static const CookieField finish_fields[] = {
	V(FinishCookie, mandatory, 32),
	S(FinishCookie, id, 32, true),
	S(FinishCookie, run_state, 16, false),
	U(FinishCookie, since_stop_usec, 0, true),
	U(FinishCookie, lease_generation, 0, false),
};
TABLE(finish_cookie, "Finish", FinishCookie, finish_fields);

static const CookieField outcome_reply_fields[] = {
	V(OutcomeReply, mandatory, 32),
	S(OutcomeReply, id, 32, true),
	S(OutcomeReply, outcome, 16, true),
	B(OutcomeReply, alive),
	P(OutcomeReply, reason, 512),
	P(OutcomeReply, hint, 512),
	U(OutcomeReply, resumed_usec, 0, false),
	U(OutcomeReply, gate_usec, 0, false),
	U(OutcomeReply, journal_usec, 0, false),
	U(OutcomeReply, cont_usec, 0, false),
	U(OutcomeReply, load_usec, 0, false),
	U(OutcomeReply, total_usec, 0, false),
	S(OutcomeReply, gate, 16, false),
	U(OutcomeReply, ct_received, 0, false),
	U(OutcomeReply, ct_applied, 0, false),
	U(OutcomeReply, ct_refused, 0, false),
	U(OutcomeReply, ct_failed, 0, false),
	U(OutcomeReply, ct_replaced, 0, false),
	U(OutcomeReply, barrier_usec, 0, false),
	P(OutcomeReply, ct_first_refused, 512),
	PV(OutcomeReply, warnings, 32),
	V(OutcomeReply, ct_reasons, 32),
};
TABLE(outcome_reply, "Finish's answer", OutcomeReply, outcome_reply_fields);

int peer_version_check(uint64_t version, uint64_t least, Error **err)
{
	if (version >= PEER_VERSION_LEAST && least <= PEER_VERSION && least <= version)
		return 0;
	error_set(err, -EPROTONOSUPPORT, "the other host speaks version %" PRIu64 " of the protocol, this one version %d",
		  version, PEER_VERSION);
	error_hint(err, "bring both hosts to the same version of vmferry");
	return -EPROTONOSUPPORT;
}
