/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

#include "conf.h"
#include "definition.h"

/* What the files of this folder share about definitions. */

extern const ConfSection definition_schema;
