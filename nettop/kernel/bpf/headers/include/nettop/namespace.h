// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The network namespace of a socket. Slices with `skc_net` of struct sock and `inum` of struct net come
// before.
#pragma once

#include <nettop/verifier.h>

static __always_inline u32 namespace_of(struct sock *sk) {
  struct net *net = NULL;
  u32 inode = 0;
  READ_KERNEL(net, sk->skc_net);
  READ_KERNEL(inode, net->inum);
  return inode;
}
