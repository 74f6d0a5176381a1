/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/** fuzz_place() - at the first call: a host in a directory of its own, which goes at the end, with this host.conf */
void fuzz_place(const char *conf);
