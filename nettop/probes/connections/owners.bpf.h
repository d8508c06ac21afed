// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Owners of TCP connections, set at state changes (events.bpf.c) and by messages (also udp.bpf.c).
// socket_rows.bpf.h and hook_check.bpf.h are prepended to this file.

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

// In boot time: when a connection was last accepted; then, written by nettop, the time until which all
// accepted connections have a known owner, 0 while some have none. At WATCHED: the number of entries in
// shared_sockets.
BPF_ARRAY(owned_until, u64, WATCHED + 1);

// Sockets held by several processes, by cookie, and which of them uses each.
BPF_HASH(shared_sockets, u64, struct shared_socket, SHARED_MAX);

#ifdef FOLLOWED_MAX
// Thread groups whose connections and UDP messages are wanted, by the kernel's number.
BPF_HASH(followed, u32, u8, FOLLOWED_MAX);
#endif

static __always_inline bool is_tcp_or_mptcp(struct sock *sk) {
  return sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_MPTCP;
}

static __always_inline bool may_lack_owner(void) {
  int last = 0, until = 1;
  u64 *accepted = owned_until.lookup(&last), *owned = owned_until.lookup(&until);
  return accepted && owned && *accepted >= *owned;
}

// An MPTCP subflow belongs to the process that owns the MPTCP socket.
static __always_inline void inherit_owner(struct connection *connection, u64 holder) {
  if (!connection || holder == UNKNOWN || has_owner(connection))
    return;
  struct connection *of_holder = connection_of(holder);
  if (of_holder && has_owner(of_holder)) {
    COPY_OWNER(connection, of_holder);
    connection->is_followed = of_holder->is_followed;
  }
}

// Returns whether nettop itself is the caller. nettop locks each socket that its walk passes, so it may
// handle a packet that arrives meanwhile; and it holds each file that it passes, so it may release the last
// reference to a file that an exiting process had open.
static __always_inline bool is_reader(void) {
  int first = 0;
  u32 *tgid = reader.lookup(&first);
  return tgid && *tgid == bpf_get_current_pid_tgid() >> 32;
}

// Makes the calling process, which uses the socket, its owner. A process that closes a socket may only have
// inherited it, so it becomes the owner only if there is no other. The same goes for a kernel thread, which
// closes what io_uring or a lost message held. It never owns MPTCP sockets: it opens and closes subflows on
// behalf of the owner of the MPTCP socket. `sk` is NULL where the caller cannot be such a thread.
static __always_inline void set_owner(struct connection *connection, u8 source, struct sock *sk) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  if (!connection || ((source == OWNER_CLOSE || task->flags & PF_KTHREAD) && has_owner(connection)) ||
      (source == OWNER_CLOSE && is_reader()))
    return;
  if (sk && task->flags & PF_KTHREAD) {
    struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
    u64 holder = tp ? holder_of(tp) : UNKNOWN;
    inherit_owner(connection, holder);
    if (!tp || holder != UNKNOWN)
      return;
  }
  put_connection_owner(connection, task, source);
#ifdef FOLLOWED_MAX
  u32 tgid = task->tgid;
  connection->is_followed = followed.lookup(&tgid) ? 1 : 0;
#endif
}

// Of the processes that hold a socket, the user is the one that sends or receives.
static __always_inline void note_user(struct sock *sk) {
  int at = WATCHED;
  u64 cookie = sk->skc_cookie, *watched = owned_until.lookup(&at);
  struct shared_socket *shared = watched && *watched ? shared_sockets.lookup(&cookie) : NULL;
  if (!shared)
    return;
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  u32 pid = visible_pid(task);
  if (pid == shared->owner)
    shared->owner_used = 1;
  else if (!(task->flags & PF_KTHREAD))
    shared->user = pid;
}

// The first message shows which process uses an accepted connection: it sends or receives in its own context.
// The accepting process may hand the connection to a child, and the owner found by a reading may be any
// process that holds it.
static __always_inline int set_owner_by_message(struct sock *sk, int slot) {
  note_user(sk);
  if (!is_tcp_or_mptcp(sk) || !may_lack_owner() || is_hook_check(sk, slot))
    return 0;
  struct connection *connection = connection_of(sk->skc_cookie);
  if (connection && (!has_owner(connection) || connection->owner_source == OWNER_ACCEPT ||
                     connection->owner_source == OWNER_DESCRIPTOR))
    set_owner(connection, OWNER_MESSAGE, NULL);
  return 0;
}
