// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// A placeholder version. Programs must not test it: nettop reads what a kernel offers from its BTF.
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 12, 0)
