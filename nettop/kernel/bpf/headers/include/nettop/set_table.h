// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Keys of set-associative tables (nettop/kernel/bpf/set_table.py): structs of whole u64 words, without
// padding.
#pragma once

#include <linux/types.h>

static __always_inline u64 hash_of_words(u64 *words, int count) {
  u64 hash = 0;
#pragma unroll
  for (int n = 0; n < count; n++) {
    hash = (hash ^ words[n]) * 0x9E3779B97F4A7C15ull;
    hash ^= hash >> 32;
  }
  return hash;
}

static __always_inline bool are_same_words(u64 *words, u64 *others, int count) {
  u64 differing = 0;
#pragma unroll
  for (int n = 0; n < count; n++)
    differing |= words[n] ^ others[n];
  return !differing;
}

#define HASH_OF(key) hash_of_words((u64 *)&(key), sizeof(key) / sizeof(u64))
#define IS_SAME(key, other) are_same_words((u64 *)&(key), (u64 *)&(other), sizeof(key) / sizeof(u64))
