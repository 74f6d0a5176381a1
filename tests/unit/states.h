/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/** states_text() - docs/states.md, made from the engine's table; free() it */
char *states_text(void);
