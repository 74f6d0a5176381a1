/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "wire.h"

/* Bytes of the format (docs/wire.md), for those who write and read it. */

#define MAGIC 0x56464354 /* "VFCT" */
#define VERSION 1
#define FLAG_END 0x01 /* byte 5 of the header */
#define FLAG_BACK 0x02

/* Byte 0 of a record. */
#define KIND_OP 0x03
#define KIND_IPV6 0x04
#define KIND_REPLY 0x08
#define KIND_ATTRIBUTES 0x10
#define KIND_EXPECT 0x20
#define KIND_UNUSED 0xc0

/* Attributes; who does not know one with this bit refuses the record, else skips the attribute. */
#define ATTR_MANDATORY 0x80
#define ATTR_MARK 0x01
#define ATTR_ZONE (0x02 | ATTR_MANDATORY)
#define ATTR_LABELS 0x03
#define ATTR_HELPER 0x04
#define ATTR_MASTER 0x05
#define ATTR_SEQADJ (0x06 | ATTR_MANDATORY)
#define ATTR_SEQADJ_REPLY (0x07 | ATTR_MANDATORY)
#define ATTR_SCTP (0x08 | ATTR_MANDATORY)
#define ATTR_DCCP (0x09 | ATTR_MANDATORY)
#define ATTR_EXPECT (0x0a | ATTR_MANDATORY)
#define ATTR_CILIUM (0x0b | ATTR_MANDATORY)
#define CILIUM_VALUE 42 /* bytes after the flags of the tuple, in all but a delete */
