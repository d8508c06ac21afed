// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Bytes and messages of UDP sockets, from the return value of each send or receive call. A message is what
// one call transfers, however many datagrams the kernel turns it into (UDP_SEGMENT, UDP_GRO). struct row,
// struct udp_totals, socket_rows.bpf.h, hook_check.bpf.h and owners.bpf.h are prepended to this file.

#include <nettop/value.h>
#include <uapi/linux/ptrace.h>

#define SOCK_DGRAM 2
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

// Sockets by cookie: a row with the traffic since the first message, and the process that sent or received
// it. nettop deletes the entries of sockets that are gone. Preallocated: up to 6.0 the kernel warns
// (WARN_ONCE) about a kprobe that writes to a hash table which allocates.
BPF_HASH(udp_sockets, u64, struct row, UDP_SOCKETS_MAX);

// New rows are built here, as they do not fit on the stack: one slot per direction, as the program for one
// may interrupt the program for the other.
BPF_PERCPU_ARRAY(new_rows, struct row, 2);

// Traffic of sockets without a row, for lack of room.
BPF_PERCPU_ARRAY(untracked, struct udp_totals, 1);

#ifdef FOLLOWED_MAX
// Traffic of the followed thread groups on any socket, whoever opened it, with or without a row.
BPF_PERCPU_ARRAY(of_followed, struct udp_totals, 1);
#endif

// The socket that a thread is sending on: a return probe sees only the result.
BPF_HASH(sending, u64, u64, SENDING_MAX);

// Atomic even on per-CPU values: one program may interrupt another.
#define ADD_MESSAGE(to, length, is_sent)                                                                     \
  do {                                                                                                       \
    if (is_sent) {                                                                                           \
      __sync_fetch_and_add(&(to)->bytes_sent, length);                                                       \
      __sync_fetch_and_add(&(to)->messages_sent, 1);                                                         \
    } else {                                                                                                 \
      __sync_fetch_and_add(&(to)->bytes_received, length);                                                   \
      __sync_fetch_and_add(&(to)->messages_received, 1);                                                     \
    }                                                                                                        \
  } while (0)

static __always_inline struct row *new_row(struct sock *sk, u64 cookie, int is_sent) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  struct row *row = new_rows.lookup(&is_sent);
  if (!row)
    return NULL;
  start_row(row);
  put_copied(row, sk, IPPROTO_UDP);
  if (row->state != TCP_ESTABLISHED)
    row->state = STATE_UNCONN;
  PUT_PROCESS(row, task);
  row->owner_source = OWNER_MESSAGE;
  row->bytes_sent = row->bytes_received = row->messages_sent = row->messages_received = 0;
  udp_sockets.insert(&cookie, row); // another CPU may have been faster
  return udp_sockets.lookup(&cookie);
}

static __always_inline void count_followed(u64 length, bool is_sent) {
#ifdef FOLLOWED_MAX
  u32 caller = bpf_get_current_pid_tgid() >> 32;
  int first = 0;
  struct udp_totals *totals = of_followed.lookup(&first);
  if (totals && followed.lookup(&caller))
    ADD_MESSAGE(totals, length, is_sent);
#endif
}

// No socket of the hook check has a row: only messages of others find one at once.
static __always_inline void count(struct sock *sk, u64 cookie, u64 length, bool is_sent, int slot) {
  struct row *row = cookie ? udp_sockets.lookup(&cookie) : NULL;
  if (!row && is_hook_check(sk, slot))
    return;
  count_followed(length, is_sent);
  if (!row && cookie)
    row = new_row(sk, cookie, is_sent);
  if (row) {
    ADD_MESSAGE(row, length, is_sent);
    return;
  }
  int first = 0;
  struct udp_totals *totals = untracked.lookup(&first);
  if (totals)
    ADD_MESSAGE(totals, length, is_sent);
}

// A raw socket may have UDP's protocol number too.
static __always_inline bool is_udp(u16 protocol, u16 type, u16 family) {
  return protocol == IPPROTO_UDP && type == SOCK_DGRAM && (family == AF_INET || family == AF_INET6);
}

static __always_inline int note(struct sock *sk, int length, bool is_sent, int slot) {
  if (is_udp(sk->sk_protocol, sk->sk_type, sk->skc_family) && length >= 0)
    count(sk, cookie_of(sk), length, is_sent, slot);
  return 0;
}

// A second program at a tracepoint costs more than both do in one: these also set the owners of connections.
static __always_inline int note_message(struct sock *sk, int length, bool is_sent, int slot) {
  if (VALUE(SETS_OWNERS))
    set_owner_by_message(sk, slot);
  return note(sk, length, is_sent, slot);
}

int tp_btf__udp_sent(u64 *ctx) {
  return note_message((struct sock *)ctx[0], ctx[1], true, CALLED_tp_btf__udp_sent);
}

// Peeked messages stay in the queue; the error queue returns part of what was sent.
int tp_btf__udp_received(u64 *ctx) {
  int length = ctx[2] & (MSG_PEEK | MSG_ERRQUEUE) ? -1 : ctx[1];
  return note_message((struct sock *)ctx[0], length, false, CALLED_tp_btf__udp_received);
}

int fexit__udp_sendmsg(u64 *ctx) {
  struct sock *sk = (struct sock *)ctx[0];
  if (sk->skc_family != AF_INET) // called by udpv6_sendmsg, which counts it
    return 0;
  return note(sk, ctx[3], true, CALLED_fexit__udp_sendmsg);
}

int fexit__udpv6_sendmsg(u64 *ctx) {
  return note((struct sock *)ctx[0], ctx[3], true, CALLED_fexit__udpv6_sendmsg);
}

// Its last argument is the result of the receive call, below 0 for a peek. Unlike the flags of udp_recvmsg,
// it is the third argument on every kernel.
int fentry__skb_consume_udp(u64 *ctx) {
  return note((struct sock *)ctx[0], ctx[2], false, CALLED_fentry__skb_consume_udp);
}

// Kprobes. They cannot create a cookie: a socket is tracked once another program, such as the walk over the
// table, has created one.
static __always_inline int note_copied(struct sock *sk, int length, bool is_sent, int slot) {
  u64 cookie = 0;
  u16 protocol = 0, type = 0, family = 0;
  bpf_probe_read_kernel(&protocol, sizeof(protocol), &sk->sk_protocol);
  bpf_probe_read_kernel(&type, sizeof(type), &sk->sk_type);
  bpf_probe_read_kernel(&family, sizeof(family), &sk->skc_family);
  if (!is_udp(protocol, type, family) || length < 0)
    return 0;
  bpf_probe_read_kernel(&cookie, sizeof(cookie), &sk->skc_cookie);
  count(sk, cookie, length, is_sent, slot);
  return 0;
}

static __always_inline int note_sending(struct pt_regs *ctx, int slot) {
  u64 thread = bpf_get_current_pid_tgid(), sk = PT_REGS_PARM1(ctx);
  int first = 0;
  struct udp_totals *totals = untracked.lookup(&first);
  if (sending.update(&thread, &sk) && totals)
    ADD_MESSAGE(totals, 0, true);
  is_hook_check((struct sock *)sk, slot);
  return 0;
}

// udpv6_sendmsg may call udp_sendmsg: the first to return counts the message, and the other finds nothing.
static __always_inline int note_sent(struct pt_regs *ctx, int slot) {
  u64 thread = bpf_get_current_pid_tgid();
  u64 *entered = sending.lookup(&thread);
  if (!entered)
    return 0;
  u64 sk = *entered;
  sending.delete(&thread);
  return note_copied((struct sock *)sk, PT_REGS_RC(ctx), true, slot);
}

int entry__udp_sendmsg(struct pt_regs *ctx) { return note_sending(ctx, CALLED_entry__udp_sendmsg); }
int return__udp_sendmsg(struct pt_regs *ctx) { return note_sent(ctx, CALLED_return__udp_sendmsg); }
int entry__udpv6_sendmsg(struct pt_regs *ctx) { return note_sending(ctx, CALLED_entry__udpv6_sendmsg); }
int return__udpv6_sendmsg(struct pt_regs *ctx) { return note_sent(ctx, CALLED_return__udpv6_sendmsg); }

int entry__skb_consume_udp(struct pt_regs *ctx) {
  struct sock *sk = (struct sock *)PT_REGS_PARM1(ctx);
  return note_copied(sk, PT_REGS_PARM3(ctx), false, CALLED_entry__skb_consume_udp);
}
