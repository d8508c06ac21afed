// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
#pragma once
#define CONFIG_64BIT 1
#define CONFIG_BPF_SYSCALL 1
#if defined(__TARGET_ARCH_arm64)
#define CONFIG_ARM64 1
#else
#define CONFIG_X86_64 1
#endif
