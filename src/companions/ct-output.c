/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <unistd.h>

#include "basic/fd.h"
#include "companions/conntrack.h"
#include "conntrack/cilium.h"
#include "conntrack/netlink.h"
#include "conntrack/save.h"

#define BUFFER 65536
#define CT_CILIUM_RECORD_MIN 65 /* bytes of one on the wire */

static size_t write_raw(const CtRecord *record, CtWireOp op, uint8_t *to)
{
	struct nlmsghdr *nlh;

	nlh = ct_message_begin(to, op == CT_WIRE_DELETE ? IPCTNL_MSG_CT_DELETE : IPCTNL_MSG_CT_NEW, 0, record->key.family, 0);
	if (op == CT_WIRE_DELETE)
		ct_build_key(nlh, &record->key);
	else
		ct_build_as_is(nlh, record);
	return MNL_ALIGN(nlh->nlmsg_len);
}

int output_write(int fd, Format format, const uint8_t *batches, size_t len)
{
	static uint8_t buffer[BUFFER] __attribute__((aligned(8)));
	CtWireReader reader;
	CtRecord record;
	size_t used = 0;
	CtWireOp op;
	int r = 0;

	if (format == FORMAT_WIRE)
		return fd_write_all(fd, batches, len);
	ct_wire_read(&reader, batches, len);
	while (r >= 0 && ct_wire_next(&reader, &op, &record) == 1) {
		if (used + 2048 > BUFFER) {
			r = fd_write_all(fd, buffer, used);
			used = 0;
		}
		if (record.key.expect || record.key.map != CT_MAP_KERNEL)
			continue; /* only the wire format has those */
		if (format == FORMAT_SAVE)
			used += ct_save_write(&record, op, (char *)buffer + used);
		else
			used += write_raw(&record, op, buffer + used);
	}
	return r < 0 ? r : fd_write_all(fd, buffer, used);
}

/* A batch of no records. */
int output_begun(int fd, Format format)
{
	uint8_t batch[CT_WIRE_HEADER];

	if (format != FORMAT_WIRE)
		return 0;
	ct_wire_header(batch, sizeof(batch), 0);
	return fd_write_all(fd, batch, sizeof(batch));
}

/* Only Cilium's entries have a place in it. */
int output_frame(int fd, const uint8_t *batches, size_t len)
{
	_cleanup_free_ uint8_t *frame = xcalloc(1, CT_CILIUM_FRAME + len / CT_CILIUM_RECORD_MIN * CT_CILIUM_ENTRY);
	size_t used = CT_CILIUM_FRAME;
	CtWireReader reader;
	CtRecord record;
	CtWireOp op;

	ct_wire_read(&reader, batches, len);
	while (ct_wire_next(&reader, &op, &record) == 1)
		if (record.key.map == CT_MAP_CILIUM) {
			ct_cilium_write(&record, frame + used);
			used += CT_CILIUM_ENTRY;
		}
	ct_cilium_frame_write(frame, used - CT_CILIUM_FRAME);
	return fd_write_all(fd, frame, used);
}

int output_end(int fd, Format format)
{
	uint8_t batch[CT_WIRE_HEADER];

	if (format != FORMAT_WIRE)
		return 0;
	ct_wire_end(batch);
	return fd_write_all(fd, batch, sizeof(batch));
}
