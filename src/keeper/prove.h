/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "keeper/keeper.h"

/*
 * Proof of the data address. QEMU's own port must not be touched (a plain connection would end the incoming QEMU), so
 * the target's keeper listens on the same address and port range for a moment and answers a token.
 */

/** prove_listen() - listen on migration-address for this connection's source, until prove_close(). Return: 0 or negative errno */
int prove_listen(PeerConnection *c);
/** prove_port() - where it listens, 0: nowhere */
unsigned int prove_port(PeerConnection *c);
/** prove_close() - listen no more; harmless when it does not */
void prove_close(PeerConnection *c);
