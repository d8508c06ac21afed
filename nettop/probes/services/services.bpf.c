// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// How long requests wait for their answers. On a connection where both alternate, the direction of the data
// turns with each: an answer has begun as soon as more was written than when its request came. What was
// written, received and read is compared by TCP's sequence numbers, as the order of hooks says little: a call
// that sends a request may end after the answer has come. struct key, struct service, struct tally, struct
// client_key, struct client, struct connection, struct owner, the -D numbers, the slices of kernel structs
// and pid_namespace.bpf.h and process.bpf.h come in front of this file.

#include <nettop/buckets.h>
#include <nettop/set_table.h>
#include <uapi/linux/ptrace.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define SOCK_DONE (1ull << 1) /* enum sock_flags: a FIN was received */
#define GOODBYE_NS 10000000   /* what is followed so soon by the end of what is sent is no request */
#define ATTEMPTS 4

#define ADD(number, amount) __sync_fetch_and_add(&(number), amount)

// What is kept of a connection, with its socket. Hooks where data arrives run while the socket is locked, one
// after the other; those at the end of calls run at any time.
struct turn {
  // Served: since when the data of the open request is here, or 0 without one. Used: since when a request
  // is under way; not after `answered_at` where none is known to be.
  u64 open_since;
  u64 read_at;      // when the first of the open request was read; 0: not yet, or not seen
  u64 answered_at;  // when the last answer began
  u64 moved_at;     // when more of it was sent, or arrived
  u32 sent_seq;     // what was written before the open request came; used: before the last answer came
  u32 written_seq;  // what was written by the last call
  u32 received_seq; // what has arrived
  u32 request_seq;  // what had arrived before the open request; used: before the last answer
  u32 service;
  u8 side, is_final, has_client, has_owner;
  // The kernel puts 8 bytes in front: what comes up to here is in one cache line, and both ends use it.
  u64 goodbye_at; // the `open_since` of what came right before the end
  u64 answers, response_ns;
  u32 final_seq; // what was written when this end was closed: a FIN takes a number too
  u32 client;
  struct owner owner;
};

#ifdef BY_ADDRESS
BPF_HASH(turns, u64, struct turn, CONNECTIONS_MAX);
#else
BPF_SK_STORAGE(turns, struct turn);
#endif

// The processes that listen, by namespace and port: a port that is in here is served, and until somebody
// accepts a connection nothing else is known of who does.
BPF_HASH(listening, u64, struct owner, LISTENING_MAX);

BPF_HASH(places, struct key, u32, SERVICES_MAX);
BPF_F_TABLE("array", u32, struct service, services, SERVICES_MAX, 1024 /* BPF_F_MMAPABLE */);
BPF_F_TABLE("array", u32, struct tally, tallies, SERVICES_MAX *PARTITIONS, 1024 /* BPF_F_MMAPABLE */);

struct client_set {
  struct client entries[SET_ENTRIES];
};
BPF_F_TABLE("array", u32, struct client_set, clients, CLIENT_SETS, 1024 /* BPF_F_MMAPABLE */);

// What the whole has: the next free place among services, and what found no room.
BPF_F_TABLE("array", u32, struct whole, whole, 1, 1024 /* BPF_F_MMAPABLE */);

// What TCP has come to on a connection.
struct progress {
  u64 transmitted_at;
  u32 written, transmitted, received, read;
};

static __always_inline struct whole *the_whole() {
  int first = 0;
  return whole.lookup(&first);
}

static __always_inline struct tally *tally_of(u32 service) {
  u32 place = service * PARTITIONS + bpf_get_smp_processor_id() % PARTITIONS;
  return tallies.lookup(&place);
}

static __always_inline struct client *client_of(u32 client) {
  u32 place = client / SET_ENTRIES;
  struct client_set *set = clients.lookup(&place);
  return set ? &set->entries[client % SET_ENTRIES] : NULL;
}

static __always_inline bool is_after(u32 sequence, u32 other) { return (s32)(sequence - other) > 0; }

// --- answers -----------------------------------------------------------------------------------------------

#define COUNT_DURATION(histogram, duration)                                                                  \
  do {                                                                                                       \
    u64 bucket = bucket_of(duration, DIVIDED_BY_BITS);                                                       \
    if (bucket < BUCKETS)                                                                                    \
      ADD((histogram)[bucket], 1);                                                                           \
  } while (0)

// Counts an answer that began at `began_at`, to a request that has been open since `open_since`; `read_at`:
// when the first of it was read, at the side that serves.
static __always_inline void count_answer(struct turn *turn, u64 open_since, u64 read_at, u64 began_at,
                                         u32 bytes) {
  struct tally *tally = tally_of(turn->service);
  u64 response = began_at > open_since ? began_at - open_since : 0; // data may leave later than TCP says
  if (!tally)
    return;
  turn->answered_at = turn->moved_at = began_at;
  turn->answers++;
  turn->response_ns += response;
  ADD(tally->response_ns, response);
  ADD(tally->request_bytes, bytes);
  COUNT_DURATION(tally->response, response);
  if (read_at) {
    COUNT_DURATION(tally->queued, read_at - open_since);
    COUNT_DURATION(tally->service_time, began_at - read_at);
  }
  struct client *client = turn->has_client ? client_of(turn->client) : NULL;
  if (client) {
    u64 bucket = bucket_of(response, CLIENT_DIVIDED_BY_BITS);
    client->last_seen = bpf_jiffies64();
    ADD(client->response_ns, response);
    if (bucket < CLIENT_BUCKETS)
      ADD(client->response[bucket], 1);
  }
}

// Counts what is known of the last answer only now that it is over.
static __always_inline void count_whole_answer(struct turn *turn, u32 bytes) {
  struct tally *tally = turn->answers ? tally_of(turn->service) : NULL;
  if (!tally)
    return;
  ADD(tally->answer_bytes, bytes);
  ADD(tally->transfer_ns, turn->moved_at - turn->answered_at);
}

static __always_inline void count_overlap(struct turn *turn) {
  struct tally *tally = tally_of(turn->service);
  if (tally)
    ADD(tally->overlaps, 1);
}

// When the last data left: now, unless all of it has, after `since`.
static __always_inline u64 left_at(struct progress *tcp, u64 since) {
  bool has_left = tcp->transmitted == tcp->written && tcp->transmitted_at > since;
  return has_left ? tcp->transmitted_at : bpf_ktime_get_ns();
}

// Whether the open request is answered by what was written since it came. What was written before any of
// it was read answers another one: requests and answers overlap.
static __always_inline bool has_answer(struct turn *turn, struct progress *tcp) {
  if (tcp->written == turn->sent_seq)
    return false;
  if (is_after(tcp->read, turn->request_seq))
    return true;
  count_overlap(turn);
  turn->sent_seq = tcp->written;
  return false;
}

// The answer to the request that came at `open_since` has begun. The end of the call that sends it and the
// arrival of the next request both find it: whichever is first counts it.
static __always_inline void answer(struct turn *turn, struct progress *tcp, u64 open_since, u32 received) {
  u64 read_at = turn->read_at;
  u64 began_at = left_at(tcp, read_at ? read_at : open_since);
  u32 bytes = received - turn->request_seq;
  if (__sync_val_compare_and_swap(&turn->open_since, open_since, 0) == open_since)
    count_answer(turn, open_since, read_at, began_at, bytes);
}

// --- turns -------------------------------------------------------------------------------------------------

// Data has arrived, unless the socket only says so again; `is_end` where no more will.
static __always_inline void arrived(struct turn *turn, struct progress *tcp, bool is_end) {
  u32 before = turn->received_seq;
  if (tcp->received == before)
    return;
  u64 open_since = turn->open_since, now = bpf_ktime_get_ns();
  turn->received_seq = tcp->received;
  if (turn->side == SIDE_USED) {
    if (tcp->written == turn->sent_seq) {
      turn->moved_at = now;
      return;
    }
    if (open_since <= turn->answered_at)
      open_since = left_at(tcp, turn->answered_at);
    u32 bytes = tcp->written - turn->sent_seq;
    count_whole_answer(turn, before - turn->request_seq);
    turn->request_seq = before;
    turn->sent_seq = tcp->written;
    count_answer(turn, open_since, 0, now, bytes);
    return;
  }
  if (open_since && !has_answer(turn, tcp))
    return;
  if (open_since)
    answer(turn, tcp, open_since, before);
  count_whole_answer(turn, tcp->written - turn->sent_seq);
  turn->written_seq = turn->sent_seq = tcp->written;
  turn->request_seq = before;
  turn->read_at = 0;
  if (is_end)
    turn->goodbye_at = now;
  __sync_lock_test_and_set(&turn->open_since, now);
}

// A call that may have sent or read has ended.
static __always_inline void called(struct turn *turn, struct progress *tcp) {
  // Data that was read has arrived: the kernel skips a program that is running on that CPU already.
  if (is_after(tcp->read, turn->received_seq))
    arrived(turn, tcp, false);
  if (turn->side == SIDE_USED) {
    if (tcp->written == turn->sent_seq || turn->open_since > turn->answered_at)
      return;
    if (tcp->received != tcp->read)
      count_overlap(turn);
    turn->open_since = left_at(tcp, turn->answered_at);
    return;
  }
  u64 open_since = turn->open_since;
  if (tcp->written != turn->written_seq) {
    turn->written_seq = tcp->written;
    if (!open_since)
      turn->moved_at = left_at(tcp, turn->answered_at);
  }
  if (!open_since)
    return;
  if (has_answer(turn, tcp))
    answer(turn, tcp, open_since, tcp->received);
  else if (!turn->read_at && is_after(tcp->read, turn->request_seq))
    turn->read_at = bpf_ktime_get_ns();
}

#ifdef BY_ADDRESS
// A probe's arguments have no types, so that everything is copied.
#define COPY(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (void *)&(from))
#else
#define COPY(to, from) (to) = (from)
#endif

static __always_inline void read_progress(struct progress *tcp, struct tcp_sock *tp, struct turn *turn) {
  u64 flags = 0;
  COPY(tcp->transmitted_at, tp->tcp_wstamp_ns);
  COPY(tcp->written, tp->write_seq);
  COPY(tcp->transmitted, tp->snd_nxt);
  COPY(tcp->received, tp->rcv_nxt);
  COPY(tcp->read, tp->copied_seq);
  COPY(flags, tp->skc_flags);
  tcp->received -= flags & SOCK_DONE ? 1 : 0;
  u32 written = tcp->written;
  KEEP(written);
  tcp->written = turn && turn->is_final ? turn->final_seq : written;
}

// --- connections -------------------------------------------------------------------------------------------

static __always_inline bool is_mapped(u32 *v6) { return !v6[0] && !v6[1] && v6[2] == bpf_htonl(0xffff); }

static __always_inline void put_remote(u32 *address, struct sock *sk) {
  u32 v6[4] = {sk->skc_v6_daddr[0], sk->skc_v6_daddr[1], sk->skc_v6_daddr[2], sk->skc_v6_daddr[3]};
  bool is_v4 = sk->skc_family == AF_INET;
  address[0] = is_v4 ? 0 : v6[0];
  address[1] = is_v4 ? 0 : v6[1];
  address[2] = is_v4 ? bpf_htonl(0xffff) : v6[2];
  address[3] = is_v4 ? sk->skc_daddr : v6[3];
}

static __always_inline u32 namespace_of(struct sock *sk) {
  struct net *net = (struct net *)sk->skc_net;
  return net->inum;
}

static __always_inline u64 port_in(u32 netns, u16 port) { return (u64)netns << 16 | port; }

static __always_inline u64 port_of(struct sock *sk) { return port_in(namespace_of(sk), sk->skc_num); }

static __always_inline void put_owner(struct service *service, struct owner *owner) {
  COPY_PROCESS(service, owner);
  service->cgroup_id = owner->cgroup_id;
}

// The place of a service; that of all others of its side where there is no room.
static __always_inline u32 place_of(struct key *key) {
  u32 *known = places.lookup(key);
  if (known)
    return *known;
  struct whole *whole = the_whole();
  if (!whole)
    return key->side;
  u32 place = SERVICES_MAX;
#pragma unroll
  for (int n = 0; n < ATTEMPTS; n++) {
    u32 next = whole->next_service;
    if (place == SERVICES_MAX && next < SERVICES_MAX &&
        __sync_val_compare_and_swap(&whole->next_service, next, next + 1) == next)
      place = next;
  }
  struct service *service = services.lookup(&place);
  if (!service) {
    ADD(whole->without_place, 1);
    return key->side;
  }
  if (places.insert(key, &place)) { // another CPU was first
    known = places.lookup(key);
    return known ? *known : key->side;
  }
  u64 port = port_in(key->netns, key->port);
  struct owner *listener = key->side == SIDE_SERVED ? listening.lookup(&port) : NULL;
  if (listener)
    put_owner(service, listener);
  service->key = *key;
  service->began_at = bpf_ktime_get_ns();
  return place;
}

// The entry of a client, with one more connection. One without any makes room, that which was idle for
// longest.
static __always_inline bool join_client(struct turn *turn, struct sock *sk) {
  struct client_key key = {.service = turn->service};
  put_remote(key.address, sk);
  u32 place = HASH_OF(key) % CLIENT_SETS;
  struct client_set *set = clients.lookup(&place);
  struct whole *whole = the_whole();
  if (!set || !whole)
    return false;
  u32 idle = SET_ENTRIES;
  u64 oldest = ~0ull;
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    struct client *client = &set->entries[n];
    if (client->last_seen && IS_SAME(client->client_key, key)) {
      ADD(client->open, 1);
      turn->client = place * SET_ENTRIES + n;
      return true;
    }
    if (!client->open && client->last_seen < oldest) {
      oldest = client->last_seen;
      idle = n;
    }
  }
  if (idle >= SET_ENTRIES) {
    ADD(whole->without_client, 1);
    return false;
  }
  struct client *client = &set->entries[idle & (SET_ENTRIES - 1)];
  if (__sync_val_compare_and_swap(&client->open, 0, 1)) {
    ADD(whole->without_client, 1);
    return false;
  }
  if (client->last_seen)
    ADD(whole->evicted, 1);
  client->last_seen = client->first_seen = bpf_jiffies64();
  client->client_key = key;
  client->response_ns = 0;
  __builtin_memset(client->response, 0, sizeof(client->response));
  turn->client = place * SET_ENTRIES + idle;
  return true;
}

// The process that listens on a socket; another one may be the one that accepts.
static __always_inline void note_listener(struct sock *sk, struct task_struct *task) {
  u64 port = port_of(sk);
  struct owner owner = {};
  PUT_PROCESS(&owner, task);
  listening.update(&port, &owner);
}

// The name of the process is part of who uses a service, so that the task has to be the owner's.
static __always_inline void set_service(struct turn *turn, struct sock *sk, struct task_struct *task) {
  struct key key = {.netns = namespace_of(sk), .side = turn->side};
  if (turn->side == SIDE_SERVED) {
    key.port = sk->skc_num;
  } else {
    key.port = bpf_ntohs(sk->skc_dport);
    put_remote(key.address, sk);
    if (task) {
      struct task_struct *leader = (struct task_struct *)task->group_leader;
      ((u64 *)key.user)[0] = ((u64 *)leader->comm)[0];
      ((u64 *)key.user)[1] = ((u64 *)leader->comm)[1];
    }
  }
  turn->service = place_of(&key);
}

// The process that uses a connection, which is a service's too until another one does.
static __always_inline void own(struct turn *turn, struct task_struct *task) {
  PUT_PROCESS(&turn->owner, task);
  turn->has_owner = 1;
  struct service *service = services.lookup(&turn->service);
  if (service && turn->service > SIDE_USED)
    put_owner(service, &turn->owner);
}

static __always_inline void settle(struct turn *turn, struct progress *tcp) {
  turn->sent_seq = turn->written_seq = tcp->written;
  turn->received_seq = turn->request_seq = tcp->received;
}

// A connection that is older than the watch. When data last came and went tells in ticks whether a request
// is open, and since when.
static __always_inline void adopt(struct turn *turn, struct tcp_sock *tp) {
  u32 received_at = tp->received_at, sent_at = tp->sent_at, ticks = bpf_jiffies64();
  u64 now = bpf_ktime_get_ns();
  struct progress tcp;
  read_progress(&tcp, tp, NULL);
  settle(turn, &tcp);
  bool is_unread = is_after(tcp.received, tcp.read);
  // Before there is data both are when the connection was made.
  if (turn->side == SIDE_SERVED && tp->data_segs_in && (is_unread || is_after(received_at, sent_at))) {
    turn->request_seq = is_unread ? tcp.read : tcp.received - 1;
    turn->open_since = now - (u64)(ticks - received_at) * NS_PER_TICK;
  } else if (turn->side == SIDE_USED && tp->data_segs_out && is_after(sent_at, received_at)) {
    turn->sent_seq = tcp.written - 1;
    turn->open_since = now - (u64)(ticks - sent_at) * NS_PER_TICK;
  }
}

// --- hooks -------------------------------------------------------------------------------------------------

static __always_inline struct turn *turn_of(struct sock *sk) {
#ifdef BY_ADDRESS
  u64 address = (u64)sk;
  return turns.lookup(&address);
#else
  return turns.sk_storage_get((void *)sk, 0, 0);
#endif
}

static __always_inline struct turn *new_turn(struct sock *sk) {
#ifdef BY_ADDRESS
  u64 address = (u64)sk;
  struct turn turn = {};
  turns.update(&address, &turn);
  return turns.lookup(&address);
#else
  return turns.sk_storage_get((void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
#endif
}

static __always_inline void forget(struct sock *sk) {
#ifdef BY_ADDRESS
  u64 address = (u64)sk;
  turns.delete(&address);
#else
  turns.sk_storage_delete((void *)sk);
#endif
}

// Begins to watch a connection; `task` is its owner, if it is known.
static __always_inline struct turn *begin(struct sock *sk, u8 side, struct task_struct *task) {
  struct turn *turn = new_turn(sk);
  struct whole *whole = the_whole();
  if (!turn) {
    if (whole)
      ADD(whole->unwatched, 1);
    return NULL;
  }
  turn->side = side;
  set_service(turn, sk, task);
  if (task)
    own(turn, task);
  if (side == SIDE_SERVED)
    turn->has_client = join_client(turn, sk);
  return turn;
}

static __always_inline bool is_open(struct sock *sk) {
  u8 state = sk->skc_state;
  return state != TCP_CLOSE && state != TCP_LISTEN && state != TCP_SYN_SENT;
}

static __always_inline struct tcp_sock *tcp_of(struct sock *sk) {
  return (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
}

// Whether a connection came to a listener. The socket has the listener's backlog since then, also where the
// listener is gone, or its process is in a PID namespace that the walk does not see; but listen(0) leaves
// none.
static __always_inline bool is_accepted(struct sock *sk) {
  u64 port = port_of(sk);
  return sk->sk_max_ack_backlog || listening.lookup(&port);
}

// Begins to watch a connection that is older than the watch, or whose beginning was missed. Who uses a
// service is not known where data arrives.
static __always_inline void begin_late(struct sock *sk, struct task_struct *task, bool is_owner) {
  if (sk->sk_protocol != IPPROTO_TCP || !is_open(sk))
    return;
  bool is_served = is_accepted(sk);
  u8 side = is_served ? SIDE_SERVED : SIDE_USED;
  struct tcp_sock *tp = tcp_of(sk);
  if (!is_served && !is_owner)
    return;
  if (!tp)
    return;
  struct turn *turn = begin(sk, side, task);
  if (turn)
    adopt(turn, tp);
}

static __always_inline struct task_struct *current_task() {
  return (struct task_struct *)bpf_get_current_task_btf();
}

// At the end of a call on a socket.
static __always_inline int on_call(struct sock *sk) {
  struct turn *turn = turn_of(sk);
  struct tcp_sock *tp = turn ? tcp_of(sk) : NULL;
  if (tp) {
    struct progress tcp;
    read_progress(&tcp, tp, turn);
    called(turn, &tcp);
    if (!turn->has_owner)
      own(turn, current_task());
  } else {
    begin_late(sk, current_task(), true);
  }
  return 0;
}

// Where a socket says that it may be read.
static __always_inline int on_data(struct sock *sk) {
  struct turn *turn = turn_of(sk);
  struct tcp_sock *tp = turn ? tcp_of(sk) : NULL;
  if (tp) {
    struct progress tcp;
    read_progress(&tcp, tp, turn);
    arrived(turn, &tcp, tp->skc_flags & SOCK_DONE);
  } else {
    begin_late(sk, NULL, false);
  }
  return 0;
}

#ifdef BY_ADDRESS
int entry__called(struct pt_regs *ctx) {
  struct sock *sk = (struct sock *)PT_REGS_PARM1(ctx);
  struct turn *turn = turn_of(sk);
  if (!turn)
    return 0;
  struct progress tcp;
  read_progress(&tcp, (struct tcp_sock *)sk, turn);
  called(turn, &tcp);
  if (!turn->has_owner)
    own(turn, current_task());
  return 0;
}

int entry__arrived(struct pt_regs *ctx) {
  struct sock *sk = (struct sock *)PT_REGS_PARM1(ctx);
  struct turn *turn = turn_of(sk);
  if (!turn)
    return 0;
  struct progress tcp;
  u64 flags = 0;
  read_progress(&tcp, (struct tcp_sock *)sk, turn);
  COPY(flags, sk->skc_flags);
  arrived(turn, &tcp, flags & SOCK_DONE);
  return 0;
}
#else
int tp_btf__sock_send_length(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int tp_btf__sock_recv_length(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int tp_btf__sk_data_ready(u64 *ctx) { return on_data((struct sock *)ctx[0]); }
int fentry__called(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int fentry__arrived(u64 *ctx) { return on_data((struct sock *)ctx[0]); }
#endif

// What comes right before the end of a connection is no request: the last words of TLS and many protocols.
static __always_inline void note_end_of_requests(struct turn *turn, u64 open_since) {
  if (open_since && bpf_ktime_get_ns() - open_since < GOODBYE_NS)
    turn->goodbye_at = open_since;
}

static __always_inline u64 open_request(struct turn *turn, struct progress *tcp) {
  if (turn->side == SIDE_SERVED)
    return turn->open_since && !(tcp->written != turn->sent_seq && is_after(tcp->read, turn->request_seq))
               ? turn->open_since
               : 0;
  if (tcp->written == turn->sent_seq)
    return 0;
  return turn->open_since > turn->answered_at ? turn->open_since : left_at(tcp, turn->answered_at);
}

static __always_inline void end(struct turn *turn, struct progress *tcp) {
  u64 open_since = turn->open_since;
  if (turn->side == SIDE_SERVED && open_since && has_answer(turn, tcp))
    answer(turn, tcp, open_since, tcp->received);
  open_since = open_request(turn, tcp);
  struct tally *tally = tally_of(turn->service);
  if (tally && open_since && open_since != turn->goodbye_at) {
    ADD(tally->unanswered, 1);
    ADD(tally->unanswered_ns, bpf_ktime_get_ns() - open_since);
  }
  count_whole_answer(turn, turn->side == SIDE_SERVED ? tcp->written - turn->sent_seq
                                                     : tcp->received - turn->request_seq);
  struct client *client = turn->has_client ? client_of(turn->client) : NULL;
  if (client)
    ADD(client->open, -1);
}

int tp_btf__inet_sock_set_state(u64 *ctx) {
  struct sock *sk = (struct sock *)ctx[0];
  u32 before = ctx[1], next = ctx[2];
  if (sk->sk_protocol != IPPROTO_TCP)
    return 0;
  if (next == TCP_LISTEN) {
    note_listener(sk, current_task());
    return 0;
  }
  struct turn *turn = turn_of(sk);
  if (!turn && next == TCP_SYN_SENT)
    begin(sk, SIDE_USED, sk->sk_lock_owned ? current_task() : NULL);
  struct tcp_sock *tp = tcp_of(sk);
  struct progress tcp;
  if (!tp || next == TCP_SYN_SENT)
    return 0;
  read_progress(&tcp, tp, turn);
  if (next == TCP_ESTABLISHED) {
    if (!turn && before == TCP_SYN_RECV)
      turn = begin(sk, SIDE_SERVED, NULL);
    else if (before != TCP_SYN_SENT)
      return 0;
    if (turn)
      settle(turn, &tcp);
  } else if (turn && next == TCP_CLOSE) {
    end(turn, &tcp);
    // The socket may connect again, and its address be another one's. A reset, too, has TCP number what was
    // never written.
    forget(sk);
  } else if (turn && (next == TCP_FIN_WAIT1 || next == TCP_LAST_ACK)) {
    turn->final_seq = tcp.written;
    turn->is_final = 1;
    // At the server too: it may act on last words, and close, before the client gets to its own close.
    note_end_of_requests(turn, open_request(turn, &tcp));
  } else if (turn && next == TCP_CLOSE_WAIT && turn->side == SIDE_SERVED) {
    note_end_of_requests(turn, turn->open_since);
  }
  return 0;
}

// --- reading -----------------------------------------------------------------------------------------------

// What the walk over descriptors does: find listeners, then begin to watch connections.
BPF_ARRAY(phase, u32, 1);

struct bpf_iter__task_file {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
  u32 fd, pad;
  void *file;
};

struct bpf_iter__bpf_sk_storage_map {
  struct bpf_iter_meta *meta;
  void *map;
  struct sock *sk;
  struct turn *value;
};

static __always_inline void put_local(u32 *address, struct sock *sk) {
  u32 v6[4] = {sk->skc_v6_rcv_saddr[0], sk->skc_v6_rcv_saddr[1], sk->skc_v6_rcv_saddr[2],
               sk->skc_v6_rcv_saddr[3]};
  bool is_v4 = sk->skc_family == AF_INET;
  address[0] = is_v4 ? 0 : v6[0];
  address[1] = is_v4 ? 0 : v6[1];
  address[2] = is_v4 ? bpf_htonl(0xffff) : v6[2];
  address[3] = is_v4 ? sk->skc_rcv_saddr : v6[3];
}

static __always_inline int write_row(struct bpf_iter_meta *meta, struct sock *sk, struct turn *turn) {
  struct tcp_sock *tp = tcp_of(sk);
  struct progress tcp;
  if (!tp || !is_open(sk))
    return 0;
  read_progress(&tcp, tp, turn);
  struct connection row;
  __builtin_memset(&row, 0, sizeof(row));
  u64 open_since = open_request(turn, &tcp);
  if (open_since != turn->goodbye_at)
    row.open_since = open_since;
  row.was_read = is_after(tcp.read, turn->request_seq);
  if (!sk->skc_cookie)
    bpf_get_socket_cookie((void *)sk);
  row.id = sk->skc_cookie;
  row.answers = turn->answers;
  row.response_ns = turn->response_ns;
  row.service = turn->service;
  row.side = turn->side;
  row.netns = namespace_of(sk);
  row.local_port = sk->skc_num;
  row.remote_port = bpf_ntohs(sk->skc_dport);
  put_local((u32 *)row.local_address, sk);
  put_remote((u32 *)row.remote_address, sk);
  if (turn->has_owner) {
    row.has_owner = 1;
    row.cgroup_id = turn->owner.cgroup_id;
    COPY_PROCESS(&row, &turn->owner);
  }
  bpf_seq_write((void *)meta->seq, &row, sizeof(row));
  return 0;
}

BPF_ITER(task_file) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  int first = 0;
  u32 *now = phase.lookup(&first);
  if (!task || !file || !now)
    return 0;
  struct socket *socket = (struct socket *)bpf_sock_from_file(file);
  struct sock *sk = socket ? (struct sock *)socket->sk : NULL;
  if (!sk || (sk->skc_family != AF_INET && sk->skc_family != AF_INET6) || sk->sk_protocol != IPPROTO_TCP)
    return 0;
  struct turn *turn = turn_of(sk);
  if (*now == PHASE_LISTENERS && sk->skc_state == TCP_LISTEN) {
    note_listener(sk, task);
  } else if (*now == PHASE_CONNECTIONS && !turn) {
    begin_late(sk, task, true);
#ifdef BY_ADDRESS
  } else if (*now == PHASE_ROWS && turn) {
    write_row(ctx->meta, sk, turn);
#endif
  }
  return 0;
}

#ifndef BY_ADDRESS
BPF_ITER(bpf_sk_storage_map) {
  if (!ctx->sk || !ctx->value)
    return 0;
  return write_row(ctx->meta, ctx->sk, ctx->value);
}
#endif
