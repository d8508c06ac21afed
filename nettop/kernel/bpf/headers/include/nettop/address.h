// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// IPv6 addresses as four words in network order.
#pragma once

#include <linux/types.h>

static __always_inline bool is_mapped(u32 *v6) { return !v6[0] && !v6[1] && v6[2] == bpf_htonl(0xffff); }
