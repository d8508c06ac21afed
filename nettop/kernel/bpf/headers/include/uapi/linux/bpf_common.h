// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// bcc's own header includes this file; nettop's programs need only the types from it.
#pragma once
#include <linux/types.h>
