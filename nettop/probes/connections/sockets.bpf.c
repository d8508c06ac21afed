// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The socket table. One iterator over every process's descriptors returns each socket with its owner process,
// in all network namespaces; two more over a namespace's hash tables return the sockets that no descriptor
// holds. socket_rows.bpf.h is prepended to this file.

#define SOCK_RAW 3

struct bpf_iter__task_file {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
  u32 fd, pad;
  void *file;
};

struct bpf_iter__tcp {
  struct bpf_iter_meta *meta;
  struct sock_common *sk_common;
  uid_t uid;
};

struct bpf_iter__udp {
  struct bpf_iter_meta *meta;
  struct sock *sk;
  uid_t uid;
  int bucket;
};

// Sockets that the walks over the hash tables list besides those without a file: LIST_* bits.
BPF_ARRAY(listed, u32, 1);

static __always_inline bool is_listed(u32 bit) {
  int first = 0;
  u32 *bits = listed.lookup(&first);
  return bits && *bits & bit;
}

static __always_inline void put_datagrams(struct row *row, struct sock *sk, u32 deficit) {
  row->uid = sk->sk_uid;
  s32 unread = sk->sk_rmem_alloc - deficit;
  row->state = sk->skc_state == TCP_ESTABLISHED ? TCP_ESTABLISHED : STATE_UNCONN;
  row->receive_queue = unread > 0 ? unread : 0;
  row->send_queue = sk->sk_wmem_alloc - 1; // the socket itself holds one
  row->drops = sk->sk_drops;
#ifdef HAS_SOCK_SK_DROP_COUNTERS
  // Since 6.18 UDP sockets count drops separately from the rest of the socket, in two places because of NUMA.
  struct numa_drop_counters *counters = NULL;
  READ_KERNEL(counters, sk->sk_drop_counters);
  u32 drops[2];
  if (counters && !READ_KERNEL(drops[0], counters->drops0) && !READ_KERNEL(drops[1], counters->drops1))
    row->drops = drops[0] + drops[1];
#endif
}

// A typed pointer to this socket covers only struct sock; the rest must be copied.
static __always_inline void put_udp(struct row *row, struct sock *sk) {
  u32 deficit = 0;
  u64 handler = 0;
  READ_KERNEL(deficit, ((struct udp_sock *)sk)->forward_deficit);
  READ_KERNEL(handler, ((struct udp_sock *)sk)->encap_rcv);
  put_datagrams(row, sk, deficit);
  row->is_tunnel = handler != 0;
}

static __always_inline void put_owner(struct row *row, struct task_struct *task, u32 fd) {
  PUT_PROCESS(row, task);
  row->descriptor = fd;
  // A limit is a struct rlimit, which begins with the current limit; slices declare it as an array of words.
  struct signal_struct *shared = (struct signal_struct *)task->signal;
  u64 descriptors_max = *(u64 *)shared->rlim[RLIMIT_NOFILE];
  if (descriptors_max < (u32)UNKNOWN)
    row->descriptors_max = descriptors_max;
  row->owner_source = OWNER_DESCRIPTOR;
}

// Adds the events' record of a connection to its row. Puts the task that holds the connection in the record,
// for later events; if no task holds it any more, the record has the one that closed it.
static __always_inline void put_recorded(struct row *row, struct task_struct *task) {
  struct connection *connection = connection_of(row->id);
  if (!connection)
    return;
  row->opened_at = wall_of(connection->opened_at);
  if (connection->direction != (u8)UNKNOWN)
    row->direction = connection->direction;
  row->is_opener = has_owner(connection) && connection->owner_source != OWNER_DESCRIPTOR &&
                   row->start_time == connection->start_time && row->pid == connection->pid;
  hide_client_pause(row, connection);
  if (task && !has_owner(connection))
    put_connection_owner(connection, task, OWNER_DESCRIPTOR);
  if (!task && has_owner(connection))
    COPY_OWNER(row, connection);
}

static __always_inline void note_reader(struct bpf_iter_meta *meta) {
  int first = 0;
  u32 *tgid = reader.lookup(&first);
  if (tgid && !meta->seq_num)
    *tgid = bpf_get_current_pid_tgid() >> 32;
}

BPF_ITER(task_file) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  if (!task || !file)
    return 0;
  note_reader(ctx->meta);
  struct socket *socket = (struct socket *)bpf_sock_from_file(file);
  if (!socket)
    return 0;
  struct sock *sk = (struct sock *)socket->sk;
  if (!sk || (sk->skc_family != AF_INET && sk->skc_family != AF_INET6))
    return 0;
  u16 protocol = sk->sk_type == SOCK_RAW ? IPPROTO_RAW : sk->sk_protocol;
  if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_RAW &&
      protocol != IPPROTO_MPTCP)
    return 0;
  struct row row;
  start_row(&row);
  if (protocol == IPPROTO_TCP) {
    struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
    if (!tp)
      return 0;
    put_tcp(&row, tp);
  } else if (protocol == IPPROTO_UDP) {
    put_udp(&row, sk);
  } else if (protocol == IPPROTO_RAW) {
    put_datagrams(&row, sk, 0);
  } else {
    row.state = sk->skc_state; // an MPTCP socket's counters are those of its subflows
    row.uid = sk->sk_uid;
  }
  put_identity(&row, (struct sock_common *)sk, protocol);
  put_owner(&row, task, ctx->fd);
  if (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
    put_recorded(&row, task);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}

// Sets the holder of a socket that no descriptor led to: a process, through a file, or the kernel, whose
// sockets have none. A socket that is not yet accepted, or already closed, has no struct socket.
static __always_inline void put_holder(struct row *row, struct sock *sk) {
  struct socket *socket = NULL;
  void *file = NULL;
  READ_KERNEL(socket, sk->sk_socket);
  READ_KERNEL(file, socket->file);
  row->held_by = row->holder != UNKNOWN || !socket ? 0 : file ? HELD_BY_PROCESS : HELD_BY_KERNEL;
}

BPF_ITER(tcp) {
  struct sock_common *sk = ctx->sk_common;
  if (!sk)
    return 0;
  note_reader(ctx->meta);
  u8 state = sk->skc_state;
  struct row row;
  start_row(&row);
  if (state == TCP_TIME_WAIT) {
    struct tcp_timewait_sock *tw = (struct tcp_timewait_sock *)bpf_skc_to_tcp_timewait_sock((void *)sk);
    if (!tw)
      return 0;
    row.state = tw->tw_substate; // also FIN_WAIT2, once its process is gone
    if (row.state == TCP_TIME_WAIT && !is_listed(LIST_TIME_WAIT))
      return 0;
  } else if (state == TCP_NEW_SYN_RECV) {
    row.state = TCP_SYN_RECV;
    row.uid = ctx->uid;
  } else {
    struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
    if (!tp)
      return 0;
    // A socket with a file belongs to a process: the walk over descriptors lists it already. The exception is
    // MPTCP subflows, whose file leads to the MPTCP socket.
    row.holder = holder_of(tp);
    put_holder(&row, (struct sock *)tp);
    if (row.held_by == HELD_BY_PROCESS && !is_listed(LIST_WITH_FILE))
      return 0;
    put_tcp(&row, tp);
  }
  put_identity(&row, sk, IPPROTO_TCP);
  put_recorded(&row, NULL);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}

BPF_ITER(udp) {
  struct sock *sk = ctx->sk;
  if (!sk)
    return 0;
  struct row row;
  start_row(&row);
  put_holder(&row, sk);
  if (row.held_by == HELD_BY_PROCESS && !is_listed(LIST_WITH_FILE))
    return 0;
  put_udp(&row, sk);
  put_identity(&row, (struct sock_common *)sk, IPPROTO_UDP);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}
