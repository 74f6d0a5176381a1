/* SPDX-License-Identifier: GPL-2.0-or-later */
/* show: entries of a file for people, or a JSON object a line. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <stdio.h>
#include <unistd.h>

#include "basic/fd.h"
#include "cli/output.h"
#include "companions/conntrack.h"

static const struct {
	uint32_t bit;
	const char *name;
} status_bits[] = {
	{IPS_EXPECTED, "expected"},
	{IPS_SEEN_REPLY, "seen-reply"},
	{IPS_ASSURED, "assured"},
	{IPS_SRC_NAT, "src-nat"},
	{IPS_DST_NAT, "dst-nat"},
	{IPS_FIXED_TIMEOUT, "fixed-timeout"},
};

static char *address_text(const CtKey *key, const uint8_t *address, uint16_t port)
{
	char text[INET6_ADDRSTRLEN];

	inet_ntop(key->family, address, text, sizeof(text));
	if (!ct_protocol_has_ports(key->protocol))
		return xstrdup(text);
	return xasprintf(key->family == AF_INET ? "%s:%u" : "[%s]:%u", text, ntohs(port));
}

static json_object *status_list(uint32_t status)
{
	json_object *list = json_object_new_array();

	for (size_t i = 0; i < ARRAY_SIZE(status_bits); i++)
		if (status & status_bits[i].bit)
			json_object_array_add(list, json_object_new_string(status_bits[i].name));
	return list;
}

static void add_tuple(json_object *o, const char *name, const CtKey *key, const CtTuple *t)
{
	_cleanup_free_ char *src = address_text(key, t->src, t->a), *dst = address_text(key, t->dst, t->b);
	json_object *tuple = json_build("src", "s", src, "dst", "s", dst, NULL);
	uint8_t icmp[2];

	memcpy(icmp, &t->b, 2);
	if (ct_protocol_is_icmp(key->protocol))
		json_extend(tuple, "id", "u", (uint64_t)ntohs(t->a), "type", "u", (uint64_t)icmp[0], "code", "u",
			    (uint64_t)icmp[1], NULL);
	json_extend(o, name, "o", tuple, NULL);
}

static void add_state(json_object *o, const CtRecord *r)
{
	json_extend(o, "timeout", "u", (uint64_t)r->timeout, "status", "o", status_list(r->status), "mark", "u",
		    (uint64_t)r->mark, NULL);
	if (r->has & CT_HAS_TCP)
		json_extend(o, "state", "s", ct_tcp_state_name(r->tcp.state), NULL);
	if (r->has & CT_HAS_SCTP)
		json_extend(o, "state", "s", ct_sctp_state_name(r->extra->sctp.state), NULL);
	if (r->has & CT_HAS_DCCP)
		json_extend(o, "state", "s", ct_dccp_state_name(r->extra->dccp.state), NULL);
}

static void add_extra(json_object *o, const CtRecord *r)
{
	CtKey master;

	if (r->has & CT_HAS_LABELS) {
		_cleanup_free_ char *labels = text_hex(r->extra->labels, CT_LABELS);

		json_extend(o, "labels", "s", labels, NULL);
	}
	if (r->has & CT_HAS_HELPER) {
		_cleanup_free_ char *helper = text_clean(r->extra->helper, CT_NAME);

		json_extend(o, "helper", "s", helper, NULL);
	}
	if (r->has & (CT_HAS_SEQADJ | CT_HAS_SEQADJ_REPLY))
		json_extend(o, "adjusted", "b", 1, NULL);
	if (ct_record_master(r, &master))
		add_tuple(o, "master", &master, &master.orig);
}

static json_object *record_json(const CtRecord *r, CtWireOp op)
{
	static const char *const ops[] = {[CT_WIRE_PUT] = "put", [CT_WIRE_REPLACE] = "replace", [CT_WIRE_DELETE] = "delete"};
	static const char *const dirs[] = {[CT_ZONE_BOTH] = "both", [CT_ZONE_ORIG] = "original", [CT_ZONE_REPLY] = "reply"};
	_cleanup_free_ char *number = xasprintf("%u", r->key.protocol);
	json_object *o = json_build("op", "s", ops[op], "protocol", "s", ct_protocol_name(r->key.protocol) ?: number, NULL);

	add_tuple(o, "original", &r->key, &r->key.orig);
	if (r->key.map == CT_MAP_CILIUM)
		json_extend(o, "table", "s", "cilium", "direction", "s", r->key.flags & 1 ? "in" : "out", NULL);
	if (r->key.expect)
		json_extend(o, "expected", "b", 1, NULL);
	else if (op != CT_WIRE_DELETE)
		add_tuple(o, "reply", &r->key, &r->reply);
	if (op != CT_WIRE_DELETE) {
		add_state(o, r);
		add_extra(o, r);
	}
	if (r->key.zone)
		json_extend(o, "zone", "u", (uint64_t)r->key.zone, "zone_direction", "s", dirs[r->key.zone_dir], NULL);
	return o;
}

static char *format_status(json_object *list)
{
	char *text = xstrdup("");

	for (size_t i = 0; list && i < json_object_array_length(list); i++) {
		char *longer = xasprintf("%s%s%s", text, i ? "," : "", json_object_get_string(json_object_array_get_idx(list, i)));

		free(text);
		text = longer;
	}
	return text;
}

static const Column columns[] = {
	{"OP", "op", NULL, false},
	{"PROTOCOL", "protocol", NULL, false},
	{"SOURCE", "original.src", NULL, false},
	{"DESTINATION", "original.dst", NULL, false},
	{"ANSWERS FROM", "reply.src", NULL, false},
	{"TO", "reply.dst", NULL, false},
	{"STATE", "state", NULL, false},
	{"TIMEOUT", "timeout", NULL, true},
	{"STATUS", "status", format_status, false},
	{"MARK", "mark", NULL, true},
	{"ZONE", "zone", NULL, true},
	{"HELPER", "helper", NULL, false},
	{"LABELS", "labels", NULL, false},
};

static int show_batch(const Tool *tool, const uint8_t *batch, size_t len, json_object *rows, Error **err)
{
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;
	int r;

	ct_wire_read(&reader, batch, len);
	while ((r = ct_wire_next(&reader, &op, &record)) == 1 || r == -EINVAL) {
		json_object *o = record_json(&record, op);

		if (r < 0)
			json_extend(o, "refused", "s", reader.why, NULL);
		if (!tool->json) {
			json_object_array_add(rows, o);
			continue;
		}
		output_json(o);
		json_object_put(o);
	}
	return r < 0 ? error_set(err, r, "Connection records: %s", reader.why) : 0;
}

int tool_show(const Tool *tool, Error **err)
{
	_cleanup_(input_done) Input input = {.fd = STDIN_FILENO, .format = tool_format(tool, FORMAT_ANY)};
	_cleanup_json_ json_object *rows = json_object_new_array();
	_cleanup_fd_ int fd = -1;
	const uint8_t *batch;
	size_t len;
	int r = 0;

	if (tool->args && !streq(tool->args[0], "-")) {
		input.fd = fd = open(tool->args[0], O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return error_set(err, -errno, "%s: %m", tool->args[0]);
	}
	while (r >= 0 && (r = input_next(&input, &batch, &len, err)) > 0)
		r = show_batch(tool, batch, len, rows, err);
	if (!tool->json && output_table(columns, ARRAY_SIZE(columns), rows) < 0 && r >= 0)
		r = error_set(err, -EIO, "Cannot print the table");
	if (r >= 0 && !input.ended && input.format == FORMAT_WIRE)
		tool_say(tool, json_build("event", "s", "warning", "what", "s", "cut", NULL),
			 "warning: the input ends without the final mark: it may lack entries");
	return r;
}
