// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Histogram buckets (nettop/snapshots/histograms.py) from FIRST_BIT to LAST_BIT, which are passed with -D.
#pragma once

#include <linux/types.h>

// Makes the compiler forget what it knows about a number and where it came from. Otherwise it may drop a
// comparison that the verifier needs, or merge reads from two addresses into one instruction.
#define KEEP(number) asm volatile("" : "+r"(number))

static __always_inline u64 bucket_of(u64 duration, u32 divided_by_bits) {
  if (duration < 1ull << FIRST_BIT)
    return 0;
  if (duration >= 1ull << LAST_BIT)
    return 1 + ((LAST_BIT - FIRST_BIT) << divided_by_bits);
  u64 bit = bpf_log2l(duration) - 1;
  u64 part = duration >> (bit - divided_by_bits) & ((1 << divided_by_bits) - 1);
  u64 bucket = 1 + ((bit - FIRST_BIT) << divided_by_bits) + part;
  KEEP(bucket);
  return bucket;
}
