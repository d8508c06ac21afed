// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// bcc's own header asks for this file; no program of nettop uses more of it than the types.
#pragma once
#include <linux/types.h>
