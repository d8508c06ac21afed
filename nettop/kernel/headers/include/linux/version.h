// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// A version that no program may ask for: what a kernel offers is read from its BTF.
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 12, 0)
