// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What happens to TCP connections between two readings of the table: they open, close and fail. Every change
// of a socket's state passes inet_sock_set_state, before the state changes. Who causes a change while it
// holds the socket's lock is the process that uses it; whoever else runs then was only interrupted by a
// packet. struct event, struct totals, struct process and socket_rows.bpf.h come in front of this file.

#include <uapi/linux/ptrace.h>

#define EADDRNOTAVAIL 99
#define ECONNABORTED 103
#define NSEC_PER_USEC 1000
#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

BPF_RINGBUF_OUTPUT(events, RING_PAGES);

// One for each program that fills one: any of them may be interrupted, or preempted, for another.
BPF_PERCPU_ARRAY(scratch, struct event, TELLERS);

// Whether the first program for changes of state is at work on a CPU. The kernel skips a program that it was
// just interrupted in by a packet there, or preempted in for another process (tracepoints can be since 7.0):
// meanwhile the stand-in tells.
BPF_PERCPU_ARRAY(at_work, u32, 1);

// What ended, each teller's by itself, since none can be interrupted for itself; all else by all at 0.
BPF_PERCPU_ARRAY(host, struct totals, TELLERS);

// What closed connections had moved, by the process that owned them.
BPF_F_TABLE("hash", struct process, struct totals, processes, PROCESSES_MAX, BPF_F_NO_PREALLOC);

// Which generation of `processes` is written: nettop takes the other one away.
BPF_ARRAY(generation, u32, 1);

// The number of the last reading of the table, written by nettop; the one at which a connection was last
// accepted; and, by nettop again, how many that have been accepted since long still wait for an owner. Three,
// so that who writes one never writes the other.
BPF_ARRAY(readings, u64, 3);

// At 0 the network namespace in which nettop is trying its hooks out, 0 for none; behind it which programs
// were called there. Nothing of that namespace is told or counted.
BPF_ARRAY(trial, u64, TRIAL_MARKS);

// What a connect() was called with, by its thread, until it returns: for probes, which at a function's end
// see nothing but its result.
struct connecting {
  u64 sk, name;
};
BPF_HASH(connecting, u64, struct connecting, CONNECTING_MAX);

#ifdef FOLLOW
BPF_HASH(followed, u32, u8, FOLLOWED_MAX); // thread groups whose connections are asked for
#endif

static __always_inline struct totals *totals_of(int teller) { return host.lookup(&teller); }

#define COUNT(field)                                                                                         \
  do {                                                                                                       \
    struct totals *counted = totals_of(0);                                                                   \
    if (counted)                                                                                             \
      __sync_fetch_and_add(&counted->field, 1);                                                              \
  } while (0)

static __always_inline u32 namespace_of(struct sock *sk) {
  u64 net = 0;
  u32 inode = 0;
  bpf_probe_read_kernel(&net, sizeof(net), &sk->skc_net);
  bpf_probe_read_kernel(&inode, sizeof(inode), &((struct net *)net)->inum);
  return inode;
}

static __always_inline bool is_tried(struct sock *sk, int mark) {
  int first = 0;
  u64 *room = trial.lookup(&first);
  if (!room || !*room || namespace_of(sk) != *room)
    return false;
  u64 *called = trial.lookup(&mark);
  if (called)
    *called = 1;
  return true;
}

static __always_inline void note_accepted(void) {
  int newest = 0, accepted = 1;
  u64 *now = readings.lookup(&newest), *then = readings.lookup(&accepted);
  if (now && then && *then != *now)
    *then = *now;
}

// A reading gives every connection of before an owner, so only what was accepted since the one before may
// lack it.
static __always_inline bool may_lack_owner(void) {
  int newest = 0, accepted = 1, waiting = 2;
  u64 *now = readings.lookup(&newest), *then = readings.lookup(&accepted), *old = readings.lookup(&waiting);
  return now && then && old && (*now - *then <= 1 || *old);
}

static __always_inline void start_life(struct life *life) { __builtin_memset(life, 0xff, sizeof(*life)); }

static __always_inline struct life *new_life(u64 cookie) {
  struct life_group *names = group_of(cookie);
  if (!names)
    return NULL;
#pragma unroll
  for (int way = 0; way < LIFE_WAYS; way++)
    if (!names->cookies[way] && !__sync_val_compare_and_swap(&names->cookies[way], 0, cookie)) {
      struct life *life = life_at(cookie, way);
      if (life)
        start_life(life);
      return life;
    }
  COUNT(untracked);
  return NULL;
}

static __always_inline void end_life(u64 cookie) {
  struct life_group *names = group_of(cookie);
  if (!names)
    return;
#pragma unroll
  for (int way = 0; way < LIFE_WAYS; way++)
    if (names->cookies[way] == cookie)
      names->cookies[way] = 0;
}

// nettop locks each socket that its walk passes, so a packet that came meanwhile may be handled by nettop;
// and it holds each file that it passes, so it may be the last to let go of what an ending process had open.
static __always_inline bool is_read_now(void) {
  int first = 0;
  u32 *tgid = reader.lookup(&first);
  return tgid && *tgid == bpf_get_current_pid_tgid() >> 32;
}

// The calling process uses the socket: it is the owner from now on. A thread of the kernel closes what
// io_uring or a lost message held, so it owns only what has no other owner.
static __always_inline void own(struct life *life, u8 source) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  if (!life || (task->flags & PF_KTHREAD && has_owner(life)) || (source == OWNER_CLOSE && is_read_now()))
    return;
  put_life_owner(life, task, source);
#ifdef FOLLOW
  u32 pid = life->pid;
  life->is_followed = followed.lookup(&pid) ? 1 : 0;
#endif
}

static __always_inline struct life *known_or_new(u64 cookie) {
  struct life *life = life_of(cookie);
  return life ? life : new_life(cookie);
}

static __always_inline void put_life(struct event *event, struct life *life) {
  struct row *row = &event->row;
  event->handshake_us = life->handshake_us;
  event->is_followed = life->is_followed;
  row->opened_at = wall_of(life->opened_at);
  row->direction = life->direction;
  if (has_owner(life))
    put_owner_of(row, life);
}

static __always_inline struct event *start_event(struct tcp_sock *tp, u64 now, int teller) {
  struct event *event = scratch.lookup(&teller);
  if (!event)
    return NULL;
  __builtin_memset(event, 0xff, sizeof(*event));
  event->time = wall_of(now);
  put_identity(&event->row, (struct sock_common *)tp, IPPROTO_TCP);
  event->row.uid = tp->sk_uid;
  if (tp->inet_sport)
    event->row.local_port = bpf_ntohs(tp->inet_sport); // skc_num is gone already when a socket closes
  return event;
}

static __always_inline bool send(struct event *event) {
  // Since 6.15 the ring's lock may refuse although there is room: a second asking nearly always finds it.
  if (!events.ringbuf_output(event, sizeof(*event), 0) || !events.ringbuf_output(event, sizeof(*event), 0))
    return true;
  COUNT(dropped);
  if (event->is_uncredited == 1)
    COUNT(uncredited);
  return false;
}

static __always_inline void begin(struct sock *sk) {
  struct life *life = new_life(cookie_of(sk));
  if (!life)
    return;
  life->begun_at = bpf_ktime_get_boot_ns();
  life->direction = DIRECTION_OUTBOUND;
  if (sk->sk_lock_owned)
    own(life, OWNER_CONNECT);
}

static __always_inline void open(struct event *event, u64 cookie, struct tcp_sock *tp, u64 now) {
  struct life *life = life_of(cookie);
  // Of two that connect to each other at once neither comes from SYN_SENT, but both began there.
  bool connected = tp->skc_state == TCP_SYN_SENT || (life && life->begun_at != UNKNOWN);
  u8 direction = connected ? DIRECTION_OUTBOUND : DIRECTION_INBOUND;
  event->event = connected ? EVENT_CONNECT : EVENT_ACCEPT;
  event->row.direction = direction;
  if (connected) {
    COUNT(connected);
  } else {
    COUNT(accepted);
    note_accepted();
  }
  life = life ? life : new_life(cookie);
  if (!life)
    return;
  life->direction = direction;
  life->opened_at = now;
  if (life->begun_at != UNKNOWN)
    life->handshake_us = (now - life->begun_at) / NSEC_PER_USEC;
  else if (!connected && tp->srtt_us)
    life->handshake_us = tp->srtt_us >> 3; // so far only the SYN-ACK was answered
  put_life(event, life);
}

#define ADD_HERE(to, n) (to) += (n)
#define ADD_SHARED(to, n) __sync_fetch_and_add(&(to), n)
#define ADD_ENDED(ADD, totals, row, is_failed)                                                               \
  do {                                                                                                       \
    if (is_failed)                                                                                           \
      ADD((totals)->failed, 1);                                                                              \
    else                                                                                                     \
      ADD((totals)->closed, 1);                                                                              \
    ADD((totals)->bytes_sent, (row)->bytes_sent);                                                            \
    ADD((totals)->bytes_received, (row)->bytes_received);                                                    \
    ADD((totals)->packets_sent, (row)->packets_sent);                                                        \
    ADD((totals)->packets_received, (row)->packets_received);                                                \
    ADD((totals)->data_packets_sent, (row)->data_packets_sent);                                              \
    ADD((totals)->retransmits, (row)->retransmits);                                                          \
  } while (0)

static __always_inline void count_ended(struct row *row, bool failed, int teller) {
  struct totals *mine = totals_of(teller);
  if (mine)
    ADD_ENDED(ADD_HERE, mine, row, failed);
}

// Where the table of processes has no room, or the kernel no memory at once, nettop adds what the event says.
static __always_inline void credit(struct event *event, bool failed) {
  struct row *row = &event->row;
  int first = 0;
  u32 *written = generation.lookup(&first);
  struct process who = {};
  COPY_PROCESS(&who, row);
  who.generation = written ? *written : 0;
  struct totals *its = processes.lookup(&who);
  if (!its) {
    struct totals none = {};
    processes.insert(&who, &none); // another CPU may have been faster
    its = processes.lookup(&who);
  }
  if (its)
    ADD_ENDED(ADD_SHARED, its, row, failed);
  else
    event->is_uncredited = 1;
}

static __always_inline void end(struct event *event, u64 cookie, struct tcp_sock *tp, struct sock *sk,
                                u64 now, int teller) {
  u8 state = sk->skc_state;
  int error = sk->sk_err;
  bool failed = state == TCP_SYN_SENT;
  struct life *life = life_of(cookie), unplaced;
  // A socket whose lock is held closes by its own process; only an administrator's kill comes from another.
  if (sk->sk_lock_owned && error != ECONNABORTED) {
    life = life ? life : new_life(cookie);
    if (!life) { // no room: the closer at least is known now
      start_life(&unplaced);
      life = &unplaced;
    }
    own(life, OWNER_CLOSE);
  }
  put_tcp(&event->row, tp);
  event->event = failed ? EVENT_FAIL : EVENT_CLOSE;
  // connect() that found no local port, and so sent nothing, says it to the process alone.
  event->reason = failed && !error && !tp->segs_out ? EADDRNOTAVAIL : error;
  if (life) {
    put_life(event, life);
    u64 since = failed ? life->begun_at : life->opened_at;
    if (since != UNKNOWN)
      event->duration_us = (now - since) / NSEC_PER_USEC;
    end_life(cookie);
  }
  count_ended(&event->row, failed, teller);
  credit(event, failed);
}

// Who holds a socket's lock may be preempted between the two programs, until the first one is at work for
// somebody else: then it may have told this change.
static __always_inline bool may_be_told(struct sock *sk, u64 cookie, bool ended) {
  struct life *life = life_of(cookie);
  return sk->sk_lock_owned && (!life || (!ended && life->opened_at != UNKNOWN));
}

static __always_inline void tell(struct sock *sk, bool ended, int teller) {
  struct tcp_sock *tp = (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
  u64 cookie = cookie_of(sk), now = bpf_ktime_get_boot_ns();
  struct event *event = tp ? start_event(tp, now, teller) : NULL;
  if (!event)
    return;
  if (ended)
    end(event, cookie, tp, sk, now, teller);
  else
    open(event, cookie, tp, now);
  send(event);
}

static __always_inline void note_change(u64 *ctx, int teller) {
  struct sock *sk = (struct sock *)ctx[0];
  u32 old = ctx[1], next = ctx[2];
  bool ended = next == TCP_CLOSE && old != TCP_LISTEN && old != TCP_CLOSE;
  if (sk->sk_protocol == IPPROTO_TCP && !is_tried(sk, MARK_tp_btf__inet_sock_set_state)) {
    if (next == TCP_SYN_SENT)
      begin(sk);
    else if ((next == TCP_FIN_WAIT1 || next == TCP_LAST_ACK) && sk->sk_lock_owned)
      own(known_or_new(cookie_of(sk)), OWNER_CLOSE);
    else if (next == TCP_ESTABLISHED || ended) {
      if (teller == TELLER_STAND_IN && may_be_told(sk, cookie_of(sk), ended))
        return;
      tell(sk, ended, teller);
    }
  }
  if (teller == TELLER_STAND_IN)
    COUNT(stood_in);
}

int tp_btf__inet_sock_set_state(u64 *ctx) {
  int here = 0;
  volatile u32 *is_at_work = at_work.lookup(&here);
  if (!is_at_work)
    return 0;
  *is_at_work = 1;
  note_change(ctx, TELLER_FIRST);
  *is_at_work = 0;
  return 0;
}

int tp_btf__stand_in(u64 *ctx) {
  int here = 0;
  volatile u32 *is_at_work = at_work.lookup(&here);
  if (is_at_work && *is_at_work)
    note_change(ctx, TELLER_STAND_IN);
  return 0;
}

// The first message tells whose an accepted connection is: it is sent or received by the process itself. Who
// accepts it may leave it to a child.
static __always_inline int own_by_message(struct sock *sk, int mark) {
  if (!may_lack_owner() || sk->sk_protocol != IPPROTO_TCP || is_tried(sk, mark))
    return 0;
  struct life *life = life_of(sk->skc_cookie);
  if (life && (!has_owner(life) || life->owner_source == OWNER_ACCEPT))
    own(life, OWNER_MESSAGE);
  return 0;
}

#define OWN_BY_MESSAGE(function)                                                                             \
  int function(u64 *ctx) { return own_by_message((struct sock *)ctx[0], MARK_##function); }
OWN_BY_MESSAGE(tp_btf__sock_send_length)
OWN_BY_MESSAGE(tp_btf__sock_recv_length)
OWN_BY_MESSAGE(tp_btf__tcp_rcv_space_adjust)

// The hooks at functions. Those of a probe know no types, so what both do reads by bpf_probe_read_kernel; nor
// may they ask for a cookie, but only see the one that was asked for before.

static __always_inline int own_accepted(struct sock *sk, int mark) {
  u64 cookie = 0;
  u16 protocol = 0;
  u8 state = TCP_CLOSE;
  if (!sk || is_tried(sk, mark))
    return 0;
  bpf_probe_read_kernel(&cookie, sizeof(cookie), &sk->skc_cookie);
  bpf_probe_read_kernel(&protocol, sizeof(protocol), &sk->sk_protocol);
  bpf_probe_read_kernel(&state, sizeof(state), (void *)&sk->skc_state);
  if (cookie && protocol == IPPROTO_TCP && state != TCP_CLOSE) // which may come before it is accepted
    own(known_or_new(cookie), OWNER_ACCEPT);
  return 0;
}

int fexit__inet_csk_accept(u64 *ctx) {
  u64 accepted = 0;
  bpf_get_func_ret(ctx, &accepted); // how many arguments stand before it differs between kernels
  return own_accepted((struct sock *)accepted, MARK_fexit__inet_csk_accept);
}

int return__inet_csk_accept(struct pt_regs *ctx) {
  return own_accepted((struct sock *)PT_REGS_RC(ctx), MARK_return__inet_csk_accept);
}

static __always_inline void put_unconnected(struct row *row, struct sock *sk) {
  struct sock_common head;
  uid_t uid = 0;
  u16 port = 0;
  bpf_probe_read_kernel(&head, sizeof(head), sk);
  bpf_probe_read_kernel(&uid, sizeof(uid), &sk->sk_uid);
  bpf_probe_read_kernel(&port, sizeof(port), &((struct tcp_sock *)sk)->inet_sport);
  if (head.skc_cookie)
    row->id = head.skc_cookie;
  row->protocol = IPPROTO_TCP;
  row->uid = uid;
  row->netns = namespace_of(sk);
  put_addresses(row, &head);
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
  bool as_v4 = !is_v6 || is_mapped(to);
  row->family = as_v4 ? AF_INET : AF_INET6;
  row->remote_port = bpf_ntohs(port);
  put_v6(row->remote_address, to, as_v4);
}

// A connect() that finds no way to its peer fails before the socket leaves CLOSE, so that no change of state
// tells of it: where kernel functions can be hooked, the function's end does.
static __always_inline struct event *fail_at_once(struct sock *sk, void *name, int result, bool is_v6,
                                                  int mark) {
  int error = -result, teller = is_v6 ? TELLER_CONNECT_V6 : TELLER_CONNECT_V4;
  if (error <= 0 || error == EADDRNOTAVAIL || is_tried(sk, mark)) // no port: told by a change of state
    return NULL;
  struct event *event = scratch.lookup(&teller);
  if (!event)
    return NULL;
  __builtin_memset(event, 0xff, sizeof(*event));
  struct row *row = &event->row;
  put_unconnected(row, sk);
  put_target(row, name, is_v6);
  struct life life;
  start_life(&life);
  own(&life, OWNER_CONNECT);
  life.direction = DIRECTION_OUTBOUND;
  put_life(event, &life);
  event->time = wall_of(bpf_ktime_get_boot_ns());
  event->event = EVENT_FAIL;
  event->reason = error;
  count_ended(row, true, teller);
  return event;
}

static __always_inline int fail_at_exit(u64 *ctx, bool is_v6, int mark) {
  struct sock *sk = (struct sock *)ctx[0];
  u64 result = 0;
  bpf_get_func_ret(ctx, &result);
  if ((int)result >= 0 || (!is_v6 && sk->skc_family != AF_INET)) // called by tcp_v6_connect, which tells
    return 0;
  cookie_of(sk);
  struct event *event = fail_at_once(sk, (void *)ctx[1], result, is_v6, mark);
  if (!event)
    return 0;
  credit(event, true);
  send(event);
  return 0;
}

static __always_inline int note_connect(struct pt_regs *ctx, int mark) {
  u64 thread = bpf_get_current_pid_tgid();
  struct connecting called = {.sk = PT_REGS_PARM1(ctx), .name = PT_REGS_PARM2(ctx)};
  if (connecting.update(&thread, &called))
    COUNT(untold);
  is_tried((struct sock *)called.sk, mark);
  return 0;
}

static __always_inline int fail_at_return(struct pt_regs *ctx, bool is_v6, int mark) {
  u64 thread = bpf_get_current_pid_tgid();
  struct connecting *found = connecting.lookup(&thread);
  if (!found)
    return 0;
  struct connecting called = *found;
  connecting.delete(&thread);
  struct event *event =
      fail_at_once((struct sock *)called.sk, (void *)called.name, PT_REGS_RC(ctx), is_v6, mark);
  // The process's totals are nettop's to add to: up to 6.0 the kernel complains aloud (WARN_ONCE) of a probe
  // that writes a hash table which grows.
  if (!event)
    return 0;
  event->is_uncredited = 1;
  send(event);
  return 0;
}

int fexit__tcp_v4_connect(u64 *ctx) { return fail_at_exit(ctx, false, MARK_fexit__tcp_v4_connect); }
int entry__tcp_v4_connect(struct pt_regs *ctx) { return note_connect(ctx, MARK_entry__tcp_v4_connect); }
int return__tcp_v4_connect(struct pt_regs *ctx) {
  return fail_at_return(ctx, false, MARK_return__tcp_v4_connect);
}

int fexit__tcp_v6_connect(u64 *ctx) { return fail_at_exit(ctx, true, MARK_fexit__tcp_v6_connect); }
int entry__tcp_v6_connect(struct pt_regs *ctx) { return note_connect(ctx, MARK_entry__tcp_v6_connect); }
int return__tcp_v6_connect(struct pt_regs *ctx) {
  return fail_at_return(ctx, true, MARK_return__tcp_v6_connect);
}

#ifdef FOLLOW
int tp_btf__sched_process_fork(u64 *ctx) {
  struct task_struct *parent = (struct task_struct *)ctx[0], *child = (struct task_struct *)ctx[1];
  u32 from = parent->tgid, to = child->tgid;
  u8 yes = 1;
  if (from != to && followed.lookup(&from) && followed.update(&to, &yes))
    COUNT(unfollowed);
  return 0;
}

// After its sockets have closed, when its number may be another's.
int tp_btf__sched_process_free(u64 *ctx) {
  struct task_struct *task = (struct task_struct *)ctx[0];
  u32 pid = task->pid;
  if (pid == task->tgid)
    followed.delete(&pid);
  return 0;
}
#endif
