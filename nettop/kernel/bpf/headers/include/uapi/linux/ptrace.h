// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The registers passed to a kprobe's program, for bcc's PT_REGS_PARM1 and PT_REGS_RC.
#pragma once
#include <linux/types.h>
#ifdef __aarch64__
struct pt_regs {
  u64 regs[31], sp, pc, pstate;
};
#else
struct pt_regs {
  unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#endif
