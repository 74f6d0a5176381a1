/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "peer/cookie.h"

/*
 * org.vmferry.Peer1, what the two keepers of a migration say to each other. The source is the D-Bus client. Documented
 * in docs/protocol.md. A method takes a cookie and returns one.
 */
#define PEER_PATH "/org/vmferry/peer"
#define PEER_INTERFACE "org.vmferry.Peer1"
#define PEER_VERSION 1	     /* what we speak */
#define PEER_VERSION_LEAST 1 /* the oldest that we speak as well */

/* Features of this version; a peer may require any of these by name. */
extern const char *const peer_features[];

typedef struct HelloCookie {
	uint64_t version; /* of the protocol: the newest the writer speaks */
	char **mandatory, **features;
	char *software; /* "0.1.0" */
	char *host_id, *host_name;
	char *vm, *id; /* id: of the migration */
	uint64_t least; /* the oldest version the writer speaks */
} HelloCookie;

typedef struct HelloReply {
	uint64_t version;
	char **mandatory, **features;
	char *software;
	char *host_id, *host_name;
	char *address;	   /* where QEMU's data may go, if anywhere */
	uint64_t port;	   /* where the address can be proved */
	char *token;	   /* what the proof answers */
	bool conntrack;	   /* can take connection state */
	char *conntrack_reason; /* why not */
	uint64_t least;
} HelloReply;

typedef struct PrepareCookie {
	char **mandatory;
	char *id, *uuid;
	char *definition; /* normalised text, pinned */
	char *run_state;  /* "running" or "paused" */
	char *reason;	  /* why it is in that state */
	char *transport;  /* "tls", "tcp", "ssh", "tunnel", "unix" */
	char *address;	  /* to bind, for tls and tcp */
	char *psk;	  /* 64 hex digits, for tls */
	char *token;	  /* what our end of a data channel says */
	uint64_t channels; /* multifd channels, 0: none */
	bool conntrack;
	bool autostart;
	char **disk_proofs; /* one for each shared disk: "ID SIZE INODE PROBE" */
	char *qemu_version;
	bool check_only;   /* "vmferry check": look at everything, start nothing */
	char *lease;	   /* its driver; NULL: the VM has none */
	char *lease_holder; /* what the source is called in it */
	uint64_t lease_generation; /* as it is now */
} PrepareCookie;

typedef struct PrepareReply {
	char **mandatory;
	uint64_t port;	   /* QEMU's, for tls and tcp */
	char *address;
	char *token;	   /* what the target's end of a data channel answers */
	char *data_socket; /* path of the socket to forward to, for ssh and unix */
	char *qemu_version;
	char **warnings;
	char *graphics, *graphics_listen, *graphics_host, *graphics_cert_subject;
	uint64_t graphics_port, graphics_tls_port;
	bool ct_told;	   /* the following are set */
	uint64_t ct_room;  /* entries that find room in the target's table */
	uint64_t ct_limit; /* entries that the target takes of one VM */
	char *ct_labels;   /* "kept", "lost", "not-allowed", "unknown" */
	char **ct_helpers; /* that are taken over */
	char *lease_holder; /* what the target is called in the lease */
} PrepareReply;

typedef struct FinishCookie {
	char **mandatory;
	char *id;
	char *run_state; /* as at Prepare, unless a person paused or resumed the guest meanwhile */
	uint64_t since_stop_usec; /* when this was sent */
	uint64_t lease_generation;
} FinishCookie;

/* The answer of Finish and of Outcome; only outcome "running" and "never" are answers (docs/protocol.md). */
typedef struct OutcomeReply {
	char **mandatory;
	char *id;
	char *outcome; /* "running": the target owns the guest for good; "never": it has not run and never will */
	bool alive;
	char *reason;  /* why never, or what became of it */
	char *hint;
	uint64_t resumed_usec; /* between RESUME and this answer, on the target's clock; 0 unless fresh */
	uint64_t gate_usec, journal_usec, cont_usec, load_usec, total_usec;
	char *gate; /* "barrier", "timeout", "none" */
	uint64_t ct_received, ct_applied, ct_refused, ct_failed, ct_replaced;
	char **ct_reasons; /* "NUMBER NAME", of ct_reason_name() */
	uint64_t barrier_usec;
	char *ct_first_refused;
	char **warnings;
} OutcomeReply;

/**
 * peer_version_check() - whether there is a version of the protocol both sides speak
 * @version, @least: the other side's newest and oldest, as Hello or its answer says; @least 0: it does not say
 *
 * Return: 0, or -EPROTONOSUPPORT with @err and hint set.
 */
int peer_version_check(uint64_t version, uint64_t least, Error **err);

extern const CookieTable hello_cookie, hello_reply, prepare_cookie, prepare_reply, finish_cookie, outcome_reply;
