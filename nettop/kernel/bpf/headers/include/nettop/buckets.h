// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Histogram buckets (nettop/snapshots/histograms.py) from FIRST_BIT to LAST_BIT, which are passed with -D.
#pragma once

#include <linux/types.h>

// Makes the compiler forget what it knows about a number and where it came from. Otherwise it may drop a
// comparison that the verifier needs, or merge reads from two addresses into one instruction.
#define KEEP(number) asm volatile("" : "+r"(number))

// Adds 1 << `step` to `bit` if `rest` has that many bits or more, and removes the lower ones.
#define STEP(rest, bit, step)                                                                                \
  do {                                                                                                       \
    u64 below = (1ull << (1 << (step))) - 1 - (rest);                                                        \
    KEEP(below);                                                                                             \
    u64 bits = below >> 63 << (step);                                                                        \
    (rest) >>= bits;                                                                                         \
    (bit) += bits;                                                                                           \
  } while (0)

// Returns the number of the highest bit that is set; `number` is positive and less than 1 << 63. It does not
// branch, unlike bpf_log2l: the verifier would follow the caller for each result of six comparisons.
static __always_inline u64 highest_bit(u64 number) {
  u64 bit = 0;
  STEP(number, bit, 5);
  STEP(number, bit, 4);
  STEP(number, bit, 3);
  STEP(number, bit, 2);
  STEP(number, bit, 1);
  STEP(number, bit, 0);
  return bit;
}

static __always_inline u64 bucket_of(u64 duration, u32 divided_by_bits) {
  if (duration < 1ull << FIRST_BIT)
    return 0;
  if (duration >= 1ull << LAST_BIT)
    return 1 + ((LAST_BIT - FIRST_BIT) << divided_by_bits);
  u64 bit = highest_bit(duration);
  u64 part = duration >> (bit - divided_by_bits) & ((1 << divided_by_bits) - 1);
  u64 bucket = 1 + ((bit - FIRST_BIT) << divided_by_bits) + part;
  KEEP(bucket);
  return bucket;
}
