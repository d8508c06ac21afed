// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Numbers that are set when a program is loaded (nettop/kernel/bpf/compiled.py). -D defines each as a mark,
// which becomes the operand of an instruction that loads 64 bits; the loader replaces it.
#pragma once

#include <linux/types.h>

#define LOAD_MARK(mark)                                                                                      \
  ({                                                                                                         \
    u64 value;                                                                                               \
    asm("%0 = " #mark " ll" : "=r"(value));                                                                  \
    value;                                                                                                   \
  })
#define VALUE(mark) LOAD_MARK(mark)
