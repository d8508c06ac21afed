// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Fills a row from a socket, for the walks over the table and for the events. struct row, struct connection,
// their -D numbers, the slices of kernel structs and process.bpf.h are prepended to this file.

#include <nettop/address.h>
#include <nettop/namespace.h>

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
#define TCP_CHRONO_BUSY 1 /* enum tcp_chrono */
#define TCP_CHRONO_RWND_LIMITED 2
#define TCP_CHRONO_SNDBUF_LIMITED 3
#define SOCK_NOSPACE 2        /* linux/net.h */
#define SOCK_DONE (1ULL << 1) /* enum sock_flags: a FIN was received */
#define USEC_PER_SEC 1000000ULL
#define UNKNOWN (~0ULL)
#define RTT_SETTLES 100 /* measurements, after which 1 s accounts for less than 2 us of the mean */

// Records that events.bpf.c keeps of connections that it saw open, until they close: an array indexed by the
// cookie. The cookies of a group share a cache line; a connection's record has the same index as its cookie.
struct connection_group {
  u64 cookies[GROUP_SIZE];
};

// Also shared: the offset from boot time to wall time, and the process that walks over the table.
BPF_ARRAY(connection_groups, struct connection_group, CONNECTION_GROUPS);
BPF_ARRAY(connections, struct connection, CONNECTION_GROUPS *GROUP_SIZE);
BPF_ARRAY(boot_to_wall, u64, 1);
BPF_ARRAY(reader, u32, 1);

static __always_inline struct connection_group *group_of(u64 cookie) {
  int group = cookie % CONNECTION_GROUPS;
  return connection_groups.lookup(&group);
}

static __always_inline struct connection *connection_at(u64 cookie, int slot) {
  int index = cookie % CONNECTION_GROUPS * GROUP_SIZE + slot;
  return connections.lookup(&index);
}

static __always_inline struct connection *connection_of(u64 cookie) {
  struct connection_group *group = group_of(cookie);
  if (!group)
    return NULL;
#pragma unroll
  for (int slot = 0; slot < GROUP_SIZE; slot++)
    if (group->cookies[slot] == cookie)
      return connection_at(cookie, slot);
  return NULL;
}

static __always_inline u64 wall_of(u64 boot_ns) {
  int first = 0;
  u64 *offset = boot_to_wall.lookup(&first);
  return offset && boot_ns != UNKNOWN ? boot_ns + *offset : boot_ns;
}

// The PID of an owner outside nettop's PID namespace is unknown.
static __always_inline bool has_owner(struct connection *connection) {
  return connection->start_time != UNKNOWN;
}

// Returns the cookie of the MPTCP socket that this one is a subflow of; UNKNOWN for any other socket.
static __always_inline u64 holder_of(struct tcp_sock *tp) {
#ifdef HAS_TCP_SOCK_IS_MPTCP
  struct mptcp_subflow_context *subflow = NULL;
  struct sock *holder = NULL;
  u64 cookie = 0;
  if (!tp->is_mptcp)
    return UNKNOWN;
  READ_KERNEL(subflow, tp->icsk_ulp_data);
  READ_KERNEL(holder, subflow->conn);
  READ_KERNEL(cookie, holder->skc_cookie);
  return cookie ? cookie : UNKNOWN;
#else
  return UNKNOWN;
#endif
}

// Copies a connection's owner to a row or another connection.
#define COPY_OWNER(to, connection)                                                                           \
  do {                                                                                                       \
    COPY_PROCESS(to, connection);                                                                            \
    (to)->cgroup_id = (connection)->cgroup_id;                                                               \
    (to)->owner_source = (connection)->owner_source;                                                         \
  } while (0)

static __always_inline void put_connection_owner(struct connection *connection, struct task_struct *task,
                                                 u8 source) {
  PUT_PROCESS(connection, task);
  connection->owner_source = source;
}

// In every column, all bits set means unknown: the default for what was not measured.
static __always_inline void start_row(struct row *row) { __builtin_memset(row, 0xff, sizeof(*row)); }

// Writes an IPv4 address as ::ffff:a.b.c.d; in an IPv6 address, only the mark may be missing (the wildcard,
// ::). `v4_mask` has all bits set for IPv4, none for IPv6.
static __always_inline void put_address(u64 *address, u32 *v6, u32 v4_mask) {
  u32 *words = (u32 *)address;
  words[0] = v6[0];
  words[1] = v6[1];
  words[2] = (v6[2] & ~v4_mask) | (bpf_htonl(0xffff) & v4_mask);
  words[3] = v6[3];
}

static __always_inline void put_addresses(struct row *row, struct sock_common *sk) {
  u32 local[4] = {}, remote[4] = {}, v4_mask = sk->skc_family == AF_INET ? ~0u : 0;
  FORGET(v4_mask, sk->skc_daddr);
#pragma unroll
  for (int n = 0; n < 4; n++) {
    local[n] = sk->skc_v6_rcv_saddr[n] & ~v4_mask;
    remote[n] = sk->skc_v6_daddr[n] & ~v4_mask;
  }
  local[3] |= sk->skc_rcv_saddr & v4_mask;
  remote[3] |= sk->skc_daddr & v4_mask;
  if (is_mapped(local) || is_mapped(remote))
    v4_mask = ~0u;
  FORGET(v4_mask, sk->skc_daddr);
  row->family = AF_INET6 - ((AF_INET6 - AF_INET) & v4_mask);
  put_address(row->local_address, local, v4_mask);
  put_address(row->remote_address, remote, v4_mask);
}

static __always_inline void put_endpoints(struct row *row, struct sock_common *sk) {
  put_addresses(row, sk);
  if (sk->skc_num)
    row->local_port = sk->skc_num;
  if (sk->skc_dport)
    row->remote_port = bpf_ntohs(sk->skc_dport);
  if (sk->skc_bound_dev_if)
    row->device_index = sk->skc_bound_dev_if;
}

static __always_inline u64 cookie_of(struct sock *sk) {
  if (!sk->skc_cookie)
    bpf_get_socket_cookie((void *)sk); // creates one; bcc declares the helper with half a cookie to return
  return sk->skc_cookie;
}

static __always_inline void put_identity(struct row *row, struct sock_common *sk, u16 protocol) {
  row->id = cookie_of((struct sock *)sk);
  row->protocol = protocol;
  put_endpoints(row, sk);
  row->netns = namespace_of((struct sock *)sk);
}

// Sets what every row has, from a socket whose type the verifier may not know, so that it must be copied.
static __always_inline void put_copied(struct row *row, struct sock *sk, u8 protocol) {
  struct sock_common head;
  uid_t uid = 0;
  bpf_probe_read_kernel(&head, sizeof(head), sk);
  bpf_probe_read_kernel(&uid, sizeof(uid), &sk->sk_uid);
  if (head.skc_cookie)
    row->id = head.skc_cookie;
  row->protocol = protocol;
  row->uid = uid;
  row->netns = namespace_of(sk);
  put_endpoints(row, &head);
  row->state = head.skc_state;
}

static __always_inline void put_rtt(struct row *row, struct tcp_sock *tp) {
  if (!tp->srtt_us)
    return; // no round trip measured yet
  row->rtt_us = tp->srtt_us >> 3;
  row->rtt_var_us = tp->mdev_us >> 2;
  row->rtt_min_us = tp->rtt_min[0][1]; // struct minmax: samples {t, v}, the best first
}

// If data opened a connection, its first round trip includes the client's pause. Each later measurement
// replaces an eighth of the mean.
static __always_inline void hide_client_pause(struct row *row, struct connection *connection) {
  if (connection->opened_by_data != 1)
    return;
  if (row->packets_received < RTT_SETTLES || row->data_packets_sent < RTT_SETTLES)
    row->rtt_us = row->rtt_var_us = (u32)UNKNOWN;
  if (!row->bytes_acked)
    row->rtt_min_us = (u32)UNKNOWN;
}

static __always_inline void put_payload(struct row *row, struct tcp_sock *tp, u8 state) {
  u64 sent = tp->bytes_sent - tp->bytes_retrans;
  u32 snd_nxt = tp->snd_nxt, write_seq = tp->write_seq;
  u64 flying = snd_nxt - tp->snd_una;
  row->bytes_in_flight = flying;
  // SYN and FIN take a sequence number each, but are not payload. A FIN is the last thing written.
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
  row->receive_queue = unread > 0 ? unread : 0; // a FIN may be read before it is counted
}

// Sets how long ago data was sent and received, or the connection opened, if it ever did.
static __always_inline void put_last_data(struct row *row, struct tcp_sock *tp, u8 state) {
  if (state == TCP_SYN_SENT || state == TCP_SYN_RECV || !tp->sent_at)
    return;
  u32 now = bpf_jiffies64();
  row->last_sent_ms = (u64)(now - tp->sent_at) * US_PER_TICK / 1000;
  row->last_received_ms = (u64)(now - tp->received_at) * US_PER_TICK / 1000;
}

static __always_inline void put_delivery_rate(struct row *row, struct tcp_sock *tp) {
  u64 delivered = tp->rate_delivered, interval_us = tp->rate_interval_us;
  if (delivered && interval_us)
    row->delivery_rate = delivered * tp->mss_cache * USEC_PER_SEC / interval_us;
}

// Sets how long the connection was busy, and by what it was limited (tcp_get_info_chrono_stats): the kernel's
// times do not include its current state.
static __always_inline void put_limits(struct row *row, struct tcp_sock *tp) {
  u8 now = chrono_type_of(tp);
  u32 ticks = (u32)bpf_jiffies64() - tp->chrono_start;
  u64 receiver = tp->chrono_stat[TCP_CHRONO_RWND_LIMITED - 1];
  u64 send_buffer = tp->chrono_stat[TCP_CHRONO_SNDBUF_LIMITED - 1];
  u64 busy = tp->chrono_stat[TCP_CHRONO_BUSY - 1] + receiver + send_buffer;
  row->busy_us = (now ? busy + ticks : busy) * US_PER_TICK;
  row->receiver_limited_us = (now == TCP_CHRONO_RWND_LIMITED ? receiver + ticks : receiver) * US_PER_TICK;
  row->send_buffer_limited_us =
      (now == TCP_CHRONO_SNDBUF_LIMITED ? send_buffer + ticks : send_buffer) * US_PER_TICK;
  row->application_limited = rate_app_limited_of(tp);
  row->congestion_limited = is_cwnd_limited_of(tp);
  struct socket *socket = NULL;
  u64 flags = 0;
  READ_KERNEL(socket, tp->sk_socket);
  if (socket && !READ_KERNEL(flags, socket->flags))
    row->send_buffer_full = flags >> SOCK_NOSPACE & 1;
}

static __always_inline void put_sending(struct row *row, struct tcp_sock *tp) {
  u64 pacing_rate = tp->sk_pacing_rate;
  if (pacing_rate && pacing_rate != UNKNOWN)
    row->pacing_rate = pacing_rate;
  row->cwnd = tp->snd_cwnd;
  row->mss = tp->mss_cache;
  row->peer_window = tp->snd_wnd;
  row->lost = tp->lost_out;
  row->reordered = tp->reord_seen;
  row->probes = probes_out_of(tp);
  struct tcp_congestion_ops *algorithm = NULL;
  READ_KERNEL(algorithm, tp->congestion_control);
  READ_KERNEL(row->algorithm, algorithm->name);
}

static __always_inline void put_tcp(struct row *row, struct tcp_sock *tp) {
  u8 state = tp->skc_state;
  row->state = state;
  row->uid = tp->sk_uid;
  row->drops = tp->sk_drops;
  if (state == TCP_LISTEN) {
    row->backlog = tp->sk_max_ack_backlog;
    row->accept_queue = tp->sk_ack_backlog;
    row->syn_queue = tp->syn_queue;
    return;
  }
  // An accepted connection has its listener's backlog, even after the listener is gone.
  if (tp->sk_max_ack_backlog)
    row->direction = DIRECTION_WAS_INBOUND;
  put_payload(row, tp, state);
  put_queues(row, tp);
  put_last_data(row, tp, state);
  put_rtt(row, tp);
  put_delivery_rate(row, tp);
  row->packets_sent = tp->segs_out;
  row->data_packets_sent = tp->data_segs_out;
  row->packets_received = tp->segs_in;
  row->retransmits = tp->total_retrans;
  row->spurious = tp->dsack_dups;
  put_limits(row, tp);
  put_sending(row, tp);
}
