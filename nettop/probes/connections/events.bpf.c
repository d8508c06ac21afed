// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// TCP connections that open, close and fail between two readings of the table. Every state change of a socket
// passes inet_sock_set_state before the state changes. A task that changes it while holding the socket's lock
// belongs to the process that uses the socket; any other task was only interrupted by a packet. struct event,
// struct totals, socket_rows.bpf.h, hook_check.bpf.h and owners.bpf.h are prepended to this file.

#include <nettop/value.h>

#define EADDRNOTAVAIL 99
#define ECONNABORTED 103
#define NSEC_PER_USEC 1000
#define SOCK_DEAD 0 /* a bit of skc_flags, include/net/sock.h */

BPF_RINGBUF_OUTPUT(events, 1); // as large as `entries` says

// An event under construction, one per program that makes events: the others may interrupt or preempt it.
BPF_PERCPU_ARRAY(scratch, struct event, WRITERS);

// Whether the first program for state changes is running on a CPU. The kernel skips a program that was just
// interrupted there by a packet, or preempted for another process (tracepoints are preemptible since 7.0);
// the nested program takes over meanwhile.
BPF_PERCPU_ARRAY(running, u32, 1);

// Ended connections at each writer's index, since a writer never interrupts itself; everything else at index
// 0, added atomically.
BPF_PERCPU_ARRAY(host, struct totals, WRITERS);

#ifdef FOLLOWED_MAX
struct bpf_iter__task {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
};
#endif

static __always_inline struct totals *totals_of(int writer) { return host.lookup(&writer); }

#define COUNT(field)                                                                                         \
  do {                                                                                                       \
    struct totals *shared = totals_of(0);                                                                    \
    if (shared)                                                                                              \
      __sync_fetch_and_add(&shared->field, 1);                                                               \
  } while (0)

static __always_inline void reset_connection(struct connection *connection) {
  __builtin_memset(connection, 0xff, sizeof(*connection));
}

// Returns the record of a new connection; NULL, and counted, if there is no room.
static __always_inline struct connection *new_connection(u64 cookie) {
  struct connection_group *group = group_of(cookie);
  if (!group)
    return NULL;
#pragma unroll
  for (int slot = 0; slot < GROUP_SIZE; slot++)
    if (!group->cookies[slot] && !__sync_val_compare_and_swap(&group->cookies[slot], 0, cookie)) {
      struct connection *connection = connection_at(cookie, slot);
      if (connection)
        reset_connection(connection);
      return connection;
    }
  COUNT(untracked);
  return NULL;
}

static __always_inline struct connection *get_or_new_connection(u64 cookie) {
  struct connection *connection = connection_of(cookie);
  return connection ? connection : new_connection(cookie);
}

static __always_inline void forget_connection(u64 cookie) {
  struct connection_group *group = group_of(cookie);
  if (!group)
    return;
#pragma unroll
  for (int slot = 0; slot < GROUP_SIZE; slot++)
    if (group->cookies[slot] == cookie)
      group->cookies[slot] = 0;
}

static __always_inline void put_connection(struct event *event, struct connection *connection) {
  struct row *row = &event->row;
  inherit_owner(connection, row->holder);
  event->handshake_us = connection->handshake_us;
  event->is_followed = connection->is_followed;
  row->opened_at = wall_of(connection->opened_at);
  row->direction = connection->direction;
  hide_client_pause(row, connection);
  if (has_owner(connection))
    COPY_OWNER(row, connection);
}

static __always_inline struct event *start_event(struct tcp_sock *tp, u64 now, int writer) {
  struct event *event = scratch.lookup(&writer);
  if (!event)
    return NULL;
  __builtin_memset(event, 0xff, sizeof(*event));
  event->time = wall_of(now);
  put_identity(&event->row, (struct sock_common *)tp, IPPROTO_TCP);
  event->row.holder = holder_of(tp);
  event->row.uid = tp->sk_uid;
  if (tp->inet_sport)
    event->row.local_port = bpf_ntohs(tp->inet_sport); // skc_num is already cleared when a socket closes
  return event;
}

static __always_inline void send(struct event *event) {
  // Since 6.15 the ring's lock may fail although there is room: a second attempt nearly always succeeds.
  if (events.ringbuf_output(event, sizeof(*event), 0) && events.ringbuf_output(event, sizeof(*event), 0))
    COUNT(dropped);
}

static __always_inline void begin(struct sock *sk) {
  struct connection *connection = new_connection(cookie_of(sk));
  if (!connection)
    return;
  connection->begun_at = bpf_ktime_get_boot_ns();
  connection->direction = DIRECTION_OUTBOUND;
  if (sk->sk_lock_owned)
    set_owner(connection, OWNER_CONNECT, sk);
}

// Returns whether data completed the handshake of an inbound connection: the time TCP measured since its
// SYN-ACK then includes the client's pause. This happens with TCP_DEFER_ACCEPT, which ignores a client's
// first ACK, and when that ACK was lost. At this point the segment has been counted, but not received; Fast
// Open receives the data of a SYN earlier.
static __always_inline bool is_opened_by_data(struct tcp_sock *tp) {
  return tp->data_segs_in && !tp->bytes_received;
}

static __always_inline void open(struct event *event, u64 cookie, struct tcp_sock *tp, u64 now) {
  struct connection *connection = connection_of(cookie);
  // In a simultaneous open, neither side comes from SYN_SENT, but both began there.
  bool connected = tp->skc_state == TCP_SYN_SENT || (connection && connection->begun_at != UNKNOWN);
  u8 direction = connected ? DIRECTION_OUTBOUND : DIRECTION_INBOUND;
  event->event = connected ? EVENT_CONNECT : EVENT_ACCEPT;
  event->row.direction = direction;
  if (connected) {
    COUNT(connected);
  } else {
    int last = 0;
    COUNT(accepted);
    owned_until.update(&last, &now);
  }
  connection = connection ? connection : new_connection(cookie);
  if (!connection)
    return;
  connection->direction = direction;
  connection->opened_at = now;
  if (connection->begun_at != UNKNOWN)
    connection->handshake_us = (now - connection->begun_at) / NSEC_PER_USEC;
  else if (!connected && is_opened_by_data(tp))
    connection->opened_by_data = 1;
  else if (!connected && tp->srtt_us)
    connection->handshake_us = tp->srtt_us >> 3; // so far only the SYN-ACK was acknowledged
  put_connection(event, connection);
}

static __always_inline void count_ended(struct row *row, bool failed, int writer) {
  struct totals *totals = totals_of(writer);
  if (!totals)
    return;
  if (failed)
    totals->failed++;
  else
    totals->closed++;
  totals->bytes_sent += row->bytes_sent;
  totals->bytes_received += row->bytes_received;
  totals->packets_sent += row->packets_sent;
  totals->packets_received += row->packets_received;
  totals->data_packets_sent += row->data_packets_sent;
  totals->retransmits += row->retransmits;
}

// Inbound and never established: Fast Open creates the socket for data when the SYN arrives.
static __always_inline void put_never_accepted(struct event *event, struct tcp_sock *tp) {
  u64 prepared_us = tp->prepared_us;
  event->row.direction = DIRECTION_INBOUND;
  if (prepared_us)
    event->duration_us = bpf_ktime_get_ns() / NSEC_PER_USEC - prepared_us;
}

static __always_inline void end(struct event *event, u64 cookie, struct tcp_sock *tp, struct sock *sk,
                                u64 now, int writer) {
  u8 state = sk->skc_state;
  int error = sk->sk_err;
  bool failed = state == TCP_SYN_SENT || state == TCP_SYN_RECV;
  struct connection *connection = connection_of(cookie), unrecorded;
  // A socket whose lock is held is closed by its own process; only an administrator's kill comes from
  // another.
  if (sk->sk_lock_owned && error != ECONNABORTED) {
    connection = connection ? connection : new_connection(cookie);
    if (!connection) { // no room: at least the closing process is known
      reset_connection(&unrecorded);
      connection = &unrecorded;
    }
    set_owner(connection, OWNER_CLOSE, sk);
  }
  put_tcp(&event->row, tp);
  event->event = failed ? EVENT_FAIL : EVENT_CLOSE;
  // A connect() that found no local port, and so sent nothing, returns the error only to the process.
  event->reason = state == TCP_SYN_SENT && !error && !tp->segs_out ? EADDRNOTAVAIL : error;
  if (connection) {
    put_connection(event, connection);
    u64 since = failed ? connection->begun_at : connection->opened_at;
    if (since != UNKNOWN)
      event->duration_us = (now - since) / NSEC_PER_USEC;
    forget_connection(cookie);
  }
  if (state == TCP_SYN_RECV && event->row.direction != DIRECTION_OUTBOUND)
    put_never_accepted(event, tp);
  count_ended(&event->row, failed, writer);
}

// Returns whether a socket never was a connection. If two CPUs handle packets that complete the same
// handshake, both make a socket of it, and the kernel closes the second one (inet_ehash_nolisten). Unlike it,
// what fails in SYN_RECV has an error, is dead already, or is closed by its process; and what Fast Open made
// keeps its request.
static __always_inline bool is_duplicate(struct sock *sk, struct tcp_sock *tp) {
  struct request_sock *request = NULL;
  if (sk->skc_state != TCP_SYN_RECV || sk->sk_err || sk->sk_lock_owned || sk->skc_flags & 1 << SOCK_DEAD)
    return false;
  READ_KERNEL(request, tp->fastopen_rsk);
  return !request;
}

// The task that holds a socket's lock may be preempted between the two programs, until the first one runs for
// another task: then it may have reported this change already.
static __always_inline bool may_be_reported(struct sock *sk, u64 cookie, bool ended) {
  struct connection *connection = connection_of(cookie);
  return sk->sk_lock_owned && (!connection || (!ended && connection->opened_at != UNKNOWN));
}

static __always_inline void report(struct sock *sk, bool ended, int writer) {
  struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
  if (!tp || (ended && is_duplicate(sk, tp)))
    return;
  u64 cookie = cookie_of(sk), now = bpf_ktime_get_boot_ns();
  struct event *event = start_event(tp, now, writer);
  if (!event)
    return;
  if (ended)
    end(event, cookie, tp, sk, now, writer);
  else
    open(event, cookie, tp, now);
  send(event);
}

// An MPTCP subflow may be closed without being locked, and outlive the MPTCP socket.
static __always_inline void note_closing(struct sock *sk) {
  u64 cookie = cookie_of(sk);
  if (sk->sk_lock_owned) {
    set_owner(get_or_new_connection(cookie), OWNER_CLOSE, sk);
    return;
  }
  struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
  if (tp)
    inherit_owner(connection_of(cookie), holder_of(tp));
}

// The owner of an MPTCP socket is remembered for the socket's lifetime; events are those of its subflows.
static __always_inline void track_mptcp_socket(struct sock *sk, bool opened, bool ended) {
  if (opened)
    get_or_new_connection(cookie_of(sk));
  else if (ended)
    forget_connection(cookie_of(sk));
}

static __always_inline void note_change(u64 *ctx, int writer) {
  struct sock *sk = (struct sock *)ctx[0];
  u32 old = ctx[1], next = ctx[2];
  bool ended = next == TCP_CLOSE && old != TCP_LISTEN && old != TCP_CLOSE;
  // A connection that carried Fast Open data may be closed before it is established.
  bool opened = next == TCP_ESTABLISHED || (old == TCP_SYN_RECV && !ended);
  if (is_tcp_or_mptcp(sk) && !is_hook_check(sk, CALLED_tp_btf__inet_sock_set_state)) {
    if (sk->sk_protocol == IPPROTO_MPTCP)
      track_mptcp_socket(sk, opened, ended);
    else if (opened || ended) {
      if (writer == WRITER_NESTED && may_be_reported(sk, cookie_of(sk), ended))
        return;
      report(sk, ended, writer);
    }
    if (next == TCP_SYN_SENT)
      begin(sk);
    else if (next == TCP_FIN_WAIT1 || next == TCP_LAST_ACK)
      note_closing(sk);
  }
  if (writer == WRITER_NESTED)
    COUNT(nested);
}

int tp_btf__inet_sock_set_state(u64 *ctx) {
  int first = 0;
  volatile u32 *is_running = running.lookup(&first);
  if (!is_running)
    return 0;
  *is_running = 1;
  note_change(ctx, WRITER_CHANGES);
  *is_running = 0;
  return 0;
}

int tp_btf__nested(u64 *ctx) {
  int first = 0;
  volatile u32 *is_running = running.lookup(&first);
  if (is_running && *is_running)
    note_change(ctx, WRITER_NESTED);
  return 0;
}

#define SET_OWNER_BY_MESSAGE(function)                                                                       \
  int function(u64 *ctx) { return set_owner_by_message((struct sock *)ctx[0], CALLED_##function); }
SET_OWNER_BY_MESSAGE(tp_btf__sock_send_length)
SET_OWNER_BY_MESSAGE(tp_btf__sock_recv_length)
SET_OWNER_BY_MESSAGE(tp_btf__tcp_rcv_space_adjust)

// Hooks at functions. The result of bpf_get_func_ret is not typed, so it is read with bpf_probe_read_kernel;
// a cookie cannot be created, only read if it already exists.

int fexit__inet_csk_accept(u64 *ctx) {
  u64 accepted = 0, cookie = 0;
  u16 protocol = 0;
  u8 state = TCP_CLOSE;
  bpf_get_func_ret(ctx, &accepted); // how many arguments precede it differs between kernels
  struct sock *sk = (struct sock *)accepted;
  if (!sk || is_hook_check(sk, CALLED_fexit__inet_csk_accept))
    return 0;
  bpf_probe_read_kernel(&cookie, sizeof(cookie), &sk->skc_cookie);
  bpf_probe_read_kernel(&protocol, sizeof(protocol), &sk->sk_protocol);
  bpf_probe_read_kernel(&state, sizeof(state), (void *)&sk->skc_state);
  if (cookie && protocol == IPPROTO_TCP && state != TCP_CLOSE) // it may be closed before it is accepted
    set_owner(get_or_new_connection(cookie), OWNER_ACCEPT, NULL);
  return 0;
}

static __always_inline void put_unconnected(struct row *row, struct sock *sk) {
  u16 port = 0;
  put_copied(row, sk, IPPROTO_TCP);
  bpf_probe_read_kernel(&port, sizeof(port), &((struct tcp_sock *)sk)->inet_sport);
  if (port)
    row->local_port = bpf_ntohs(port);
  row->state = TCP_CLOSE;
  row->bytes_sent = row->bytes_acked = row->bytes_received = 0;
  row->packets_sent = row->packets_received = row->data_packets_sent = row->retransmits = 0;
}

// `name` is a struct sockaddr_in or sockaddr_in6: family, port, [flow,] address.
static __always_inline void put_target(struct row *row, void *name, bool is_v6) {
  u16 port = 0;
  u32 to[4] = {};
  bpf_probe_read_kernel(&port, sizeof(port), name + 2);
  if (is_v6)
    bpf_probe_read_kernel(to, sizeof(to), name + 8);
  else
    bpf_probe_read_kernel(&to[3], sizeof(to[3]), name + 4);
  u32 v4_mask = !is_v6 || is_mapped(to) ? ~0u : 0;
  row->family = v4_mask ? AF_INET : AF_INET6;
  row->remote_port = bpf_ntohs(port);
  put_address(row->remote_address, to, v4_mask);
}

// A connect() without a route to its peer fails before the socket leaves CLOSE, so there is no state change
// to report: the end of the function is hooked.
static __always_inline int fail_at_once(u64 *ctx, bool is_v6, int slot) {
  struct sock *sk = (struct sock *)ctx[0];
  u64 result = 0;
  bpf_get_func_ret(ctx, &result);
  if ((int)result >= 0 || (!is_v6 && sk->skc_family != AF_INET)) // called by tcp_v6_connect, which reports it
    return 0;
  cookie_of(sk);
  int error = -(int)result, writer = is_v6 ? WRITER_CONNECT_V6 : WRITER_CONNECT_V4;
  if (error == EADDRNOTAVAIL || is_hook_check(sk, slot)) // no port: a state change reports it
    return 0;
  struct event *event = scratch.lookup(&writer);
  if (!event)
    return 0;
  __builtin_memset(event, 0xff, sizeof(*event));
  struct row *row = &event->row;
  put_unconnected(row, sk);
  put_target(row, (void *)ctx[1], is_v6);
  struct connection connection;
  reset_connection(&connection);
  set_owner(&connection, OWNER_CONNECT, NULL);
  connection.direction = DIRECTION_OUTBOUND;
  put_connection(event, &connection);
  event->time = wall_of(bpf_ktime_get_boot_ns());
  event->event = EVENT_FAIL;
  event->reason = error;
  count_ended(row, true, writer);
  send(event);
  return 0;
}

int fexit__tcp_v4_connect(u64 *ctx) { return fail_at_once(ctx, false, CALLED_fexit__tcp_v4_connect); }
int fexit__tcp_v6_connect(u64 *ctx) { return fail_at_once(ctx, true, CALLED_fexit__tcp_v6_connect); }

#ifdef FOLLOWED_MAX
// Run once, before the process starts: finds it by its PID in nettop's namespace.
BPF_ITER(task) {
  struct task_struct *task = ctx->task;
  u8 yes = 1;
  if (!task || visible_pid(task) != VALUE(FOLLOWED_PID))
    return 0;
  u32 tgid = task->tgid;
  followed.update(&tgid, &yes);
  return 0;
}

int tp_btf__sched_process_fork(u64 *ctx) {
  struct task_struct *parent = (struct task_struct *)ctx[0], *child = (struct task_struct *)ctx[1];
  u32 from = parent->tgid, to = child->tgid;
  u8 yes = 1;
  if (from != to && followed.lookup(&from) && followed.update(&to, &yes))
    COUNT(unfollowed);
  return 0;
}

// Runs after the process's sockets were closed; from now on its number may be reused.
int tp_btf__sched_process_free(u64 *ctx) {
  struct task_struct *task = (struct task_struct *)ctx[0];
  u32 pid = task->pid;
  if (pid == task->tgid)
    followed.delete(&pid);
  return 0;
}
#endif
