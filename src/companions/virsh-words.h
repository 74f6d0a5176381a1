/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "basic/text.h"

/**
 * struct VirshWords - what of virsh migrate's options changes what we do
 * @dname:    the name it gets on the target, or NULL
 * @refused:  an option with which there are no connections to carry, or NULL
 * @suspend:  the guest is to be left paused
 * @verbose:  virsh shows how far it is, on a line without an end
 * @postcopy: it may run on the target before all of its memory is there
 */
typedef struct VirshWords {
	const char *dname, *refused;
	bool suspend, postcopy, verbose;
} VirshWords;

/**
 * virsh_words_read() - tell options from their values as virsh(1) does: "--name value", "--name=value", some values
 * alone
 * @words: what stands behind DOMAIN and DEST-URI; @ret points into it
 */
void virsh_words_read(char *const *words, VirshWords *ret);
