// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Lets programs ignore the traffic of nettop's own hook check, and record that they were called.
// socket_rows.bpf.h and CHECK_SLOTS are prepended to this file.

// Index 0: network namespace of the hook check, 0 for none. After it: which programs were called there.
// Traffic in that namespace is neither reported nor counted.
BPF_ARRAY(hook_check, u64, CHECK_SLOTS);

static __always_inline bool is_hook_check(struct sock *sk, int slot) {
  int first = 0;
  u64 *namespace = hook_check.lookup(&first);
  if (!namespace || !*namespace || namespace_of(sk) != *namespace)
    return false;
  u64 *called = hook_check.lookup(&slot);
  if (called)
    *called = 1;
  return true;
}
