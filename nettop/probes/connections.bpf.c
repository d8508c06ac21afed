// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The socket table. One iterator over every process's descriptors gives each socket with its owner, in all
// network namespaces; two more over a namespace's hash tables give what no descriptor holds.
// struct row, its -D numbers and the slices of kernel structs come in front of this file.

#define AF_INET 2
#define AF_INET6 10
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_CLOSING 11
#define TCP_NEW_SYN_RECV 12
#define SOCK_DONE (1ULL << 1) /* enum sock_flags: a FIN was received */
#define USEC_PER_SEC 1000000ULL

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

// What the walks through the hash tables shall list beyond sockets without a file: LIST_* bits, and with
// LIST_WANTED the sockets with these cookies.
BPF_ARRAY(listed, u32, 1);
BPF_HASH(wanted, u64, u8, WANTED_MAX);

static __always_inline bool is_listed(u32 bit) {
  int first = 0;
  u32 *bits = listed.lookup(&first);
  return bits && *bits & bit;
}

// All bits set is "unknown" in every column: what a row does not set, nobody measured.
static __always_inline void start_row(struct row *row) { __builtin_memset(row, 0xff, sizeof(*row)); }

static __always_inline void put_v4(u64 *address, u32 v4) {
  u32 *words = (u32 *)address;
  words[0] = words[1] = 0;
  words[2] = bpf_htonl(0xffff);
  words[3] = v4;
}

static __always_inline bool is_mapped(u32 *v6) { return !v6[0] && !v6[1] && v6[2] == bpf_htonl(0xffff); }

static __always_inline void put_v6(u64 *address, u32 *v6, bool as_v4) {
  if (as_v4) {
    put_v4(address, v6[3]);
    return;
  }
  u32 *words = (u32 *)address;
  words[0] = v6[0];
  words[1] = v6[1];
  words[2] = v6[2];
  words[3] = v6[3];
}

static __always_inline void put_addresses(struct row *row, struct sock_common *sk) {
  if (sk->skc_family == AF_INET) {
    row->family = AF_INET;
    put_v4(row->local_address, sk->skc_rcv_saddr);
    put_v4(row->remote_address, sk->skc_daddr);
    return;
  }
  u32 local[4] = {sk->skc_v6_rcv_saddr[0], sk->skc_v6_rcv_saddr[1], sk->skc_v6_rcv_saddr[2],
                  sk->skc_v6_rcv_saddr[3]};
  u32 remote[4] = {sk->skc_v6_daddr[0], sk->skc_v6_daddr[1], sk->skc_v6_daddr[2], sk->skc_v6_daddr[3]};
  bool as_v4 = is_mapped(local) || is_mapped(remote);
  row->family = as_v4 ? AF_INET : AF_INET6;
  put_v6(row->local_address, local, as_v4);
  put_v6(row->remote_address, remote, as_v4);
}

static __always_inline void put_identity(struct row *row, struct sock_common *sk, u8 protocol) {
  if (!sk->skc_cookie)
    bpf_get_socket_cookie((void *)sk); // gives it one; bcc declares the helper with half a cookie to return
  row->id = sk->skc_cookie;
  row->protocol = protocol;
  put_addresses(row, sk);
  if (sk->skc_num)
    row->local_port = sk->skc_num;
  if (sk->skc_dport)
    row->remote_port = bpf_ntohs(sk->skc_dport);
  struct net *net = (struct net *)sk->skc_net;
  row->netns = net->inum;
}

static __always_inline void put_rtt(struct row *row, struct tcp_sock *tp) {
  if (!tp->srtt_us)
    return; // no round trip was measured yet
  row->rtt_us = tp->srtt_us >> 3;
  row->rtt_var_us = tp->mdev_us >> 2;
  row->rtt_min_us = tp->rtt_min[0][1]; // struct minmax: samples {t, v}, the best first
}

static __always_inline void put_payload(struct row *row, struct tcp_sock *tp, u8 state) {
  u64 sent = tp->bytes_sent - tp->bytes_retrans;
  u32 snd_nxt = tp->snd_nxt, write_seq = tp->write_seq;
  u64 flying = snd_nxt - tp->snd_una;
  row->bytes_in_flight = flying;
  // SYN and FIN take a sequence number each, without being payload. A FIN is the last thing written.
  bool fin_written = state == TCP_FIN_WAIT1 || state == TCP_CLOSING || state == TCP_LAST_ACK;
  if (flying && (state == TCP_SYN_SENT || state == TCP_SYN_RECV || (fin_written && snd_nxt == write_seq)))
    flying--;
  row->bytes_sent = sent;
  row->bytes_acked = sent > flying ? sent - flying : 0;
  u64 received = tp->bytes_received;
  row->bytes_received = received && tp->skc_flags & SOCK_DONE ? received - 1 : received;
}

static __always_inline void put_queues(struct row *row, struct tcp_sock *tp) {
  s32 unread = tp->rcv_nxt - tp->copied_seq;
  row->send_queue = tp->write_seq - tp->snd_una;
  row->receive_queue = unread > 0 ? unread : 0; // a FIN can be read before it counts
}

static __always_inline void put_delivery_rate(struct row *row, struct tcp_sock *tp) {
  u64 delivered = tp->rate_delivered, interval_us = tp->rate_interval_us;
  if (delivered && interval_us)
    row->delivery_rate = delivered * tp->mss_cache * USEC_PER_SEC / interval_us;
}

static __always_inline void put_tcp(struct row *row, struct tcp_sock *tp) {
  u8 state = tp->skc_state;
  row->state = state;
  row->uid = tp->sk_uid;
  row->drops = tp->sk_drops;
  if (state == TCP_LISTEN) {
    row->send_queue = tp->sk_max_ack_backlog;
    row->receive_queue = tp->sk_ack_backlog;
    row->syn_queue = tp->syn_queue;
    return;
  }
  put_payload(row, tp, state);
  put_queues(row, tp);
  put_rtt(row, tp);
  put_delivery_rate(row, tp);
  row->packets_sent = tp->segs_out;
  row->data_packets_sent = tp->data_segs_out;
  row->packets_received = tp->segs_in;
  row->retransmits = tp->total_retrans;
  row->cwnd = tp->snd_cwnd;
  row->mss = tp->mss_cache;
}

static __always_inline void put_udp(struct row *row, struct sock *sk) {
  u32 deficit = 0;
  row->uid = sk->sk_uid;
  // A typed pointer to this socket ends with struct sock; what lies behind it has to be copied.
  bpf_probe_read_kernel(&deficit, sizeof(deficit), &((struct udp_sock *)sk)->forward_deficit);
  s32 unread = sk->sk_rmem_alloc - deficit;
  row->state = sk->skc_state == TCP_ESTABLISHED ? TCP_ESTABLISHED : STATE_UNCONN;
  row->receive_queue = unread > 0 ? unread : 0;
  row->send_queue = sk->sk_wmem_alloc - 1; // the socket itself holds one
  row->drops = sk->sk_drops;
#ifdef HAS_SOCK_SK_DROP_COUNTERS
  // Since 6.18 UDP sockets count drops apart from the rest of the socket, in two places for NUMA's sake.
  struct numa_drop_counters *counters = (struct numa_drop_counters *)sk->sk_drop_counters;
  if (counters)
    row->drops = counters->drops0 + counters->drops1;
#endif
}

static __always_inline void put_owner(struct row *row, struct task_struct *task, u32 fd) {
  struct task_struct *leader = (struct task_struct *)task->group_leader;
  row->pid = task->tgid;
  row->fd = fd;
  row->start_time = leader->start_boottime;
  row->css_set = task->cgroups;
  ((u64 *)row->comm)[0] = ((u64 *)leader->comm)[0];
  ((u64 *)row->comm)[1] = ((u64 *)leader->comm)[1];
  row->owner_source = OWNER_DESCRIPTOR;
}

BPF_ITER(task_file) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  if (!task || !file)
    return 0;
  struct socket *socket = (struct socket *)bpf_sock_from_file(file);
  if (!socket)
    return 0;
  struct sock *sk = (struct sock *)socket->sk;
  if (!sk || (sk->skc_family != AF_INET && sk->skc_family != AF_INET6))
    return 0;
  u16 protocol = sk->sk_protocol;
  if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
    return 0;
  struct row row;
  start_row(&row);
  if (protocol == IPPROTO_TCP) {
    struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
    if (!tp)
      return 0;
    put_tcp(&row, tp);
  } else {
    put_udp(&row, sk);
  }
  put_identity(&row, (struct sock_common *)sk, protocol);
  put_owner(&row, task, ctx->fd);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}

static __always_inline bool has_file(struct sock *sk) {
  struct socket *socket = (struct socket *)sk->sk_socket;
  return socket && socket->file;
}

static __always_inline bool is_wanted(struct sock *sk) {
  if (is_listed(LIST_WITH_FILE))
    return true;
  if (!is_listed(LIST_WANTED))
    return false;
  u64 cookie = sk->skc_cookie;
  return wanted.lookup(&cookie);
}

BPF_ITER(tcp) {
  struct sock_common *sk = ctx->sk_common;
  if (!sk)
    return 0;
  u8 state = sk->skc_state;
  struct row row;
  start_row(&row);
  if (state == TCP_TIME_WAIT) {
    struct tcp_timewait_sock *tw = (struct tcp_timewait_sock *)bpf_skc_to_tcp_timewait_sock((void *)sk);
    if (!tw)
      return 0;
    row.state = tw->tw_substate; // FIN_WAIT2 waits here too, once its process has gone
    if (row.state == TCP_TIME_WAIT && !is_listed(LIST_TIME_WAIT))
      return 0;
  } else if (state == TCP_NEW_SYN_RECV) {
    row.state = TCP_SYN_RECV;
    row.uid = ctx->uid;
  } else {
    struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
    if (!tp)
      return 0;
    // A socket with a file is some process's: the walk over descriptors has it already.
    row.has_file = has_file((struct sock *)tp);
    if (row.has_file && !is_wanted((struct sock *)tp))
      return 0;
    put_tcp(&row, tp);
  }
  put_identity(&row, sk, IPPROTO_TCP);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}

BPF_ITER(udp) {
  struct sock *sk = ctx->sk;
  if (!sk)
    return 0;
  struct row row;
  start_row(&row);
  row.has_file = has_file(sk);
  if (row.has_file && !is_wanted(sk))
    return 0;
  put_udp(&row, sk);
  put_identity(&row, (struct sock_common *)sk, IPPROTO_UDP);
  bpf_seq_write((void *)ctx->meta->seq, &row, sizeof(row));
  return 0;
}
