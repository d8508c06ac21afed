// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Measures how long requests wait for their responses. On a connection where requests and responses
// alternate, each one reverses the direction of the data: a response has begun as soon as more is written
// than when its request arrived. Data written, received and read is compared by TCP's sequence numbers,
// because the order of hooks is not reliable: a call that sends a request may end after the response has
// arrived. Where requests overlap, or the service sends unsolicited data, turns are counted, but not timed.
// struct client_key, struct client, struct connection, struct listener, the structs of slots.bpf.h, the -D
// numbers, the slices of kernel structs, pid_namespace.bpf.h, process.bpf.h and slots.bpf.h are prepended to
// this file.

#include <nettop/address.h>
#include <nettop/namespace.h>
#include <nettop/set_table.h>
#include <nettop/verifier.h>
#include <uapi/linux/ptrace.h>

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define ECONNREFUSED 111
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define SEND_SHUTDOWN 2
#define SHUTDOWN_MASK 3
#define SOCK_DONE (1ull << 1) /* enum sock_flags: a FIN was received */
#define GOODBYE_NS 10000000   /* data followed by the end of the stream within this time is no request */
#define PART_NS 5000000       /* parts of a message that nothing holds back follow each other this closely */
#define DELAY_NS 30000000     /* the shortest delay of an ACK, in whole ticks */
#define PAUSE_NS 60000000     /* a delayed ACK holds back the second part of a request for 40 ms */
#define SETTLED_NS 1000000000 /* after this much silence, requests alternate again */
#define INITIAL_WINDOW 14480  /* bytes that TCP sends at once: 10 segments (RFC 6928) */
#define HANDSHAKES 4          /* up to this many responses may cross a request: TLS session tickets do */
#define PINGS 2               /* so many show, for good, that both ends begin exchanges */
#define MAX_DELAYED_ACK_US 250000
#define FAILURES_FOR_A_PLACE 3 /* a port scan tries each port once or twice */
#define ONE_REFUSED (1ull << 32)

// Bytes of an HTTP/2 PING frame: plain, and in TLS.
#define PING_SIZES (1ull << 17 | 1ull << 38 | 1ull << 39 | 1ull << 46)

// Patterns in which the two ends of a connection take turns.
enum { ALTERNATES, OVERLAPS, PUSHES };

// How data follows earlier data: at once; perhaps because a delayed ACK held it back (Nagle's algorithm);
// because its sender paused; or after a pause that no part of a message has.
enum { AT_ONCE, HELD, LATER, APART };

// State of a connection, stored with its socket. Hooks on arriving data run while the socket is locked, one
// at a time; those at the end of calls run at any time.
struct turn {
  // Served: when the open request arrived, 0 without one. Used: when the current request began; 0 if that is
  // not known yet, though it may have been written.
  u64 open_since;
  u64 read_at;      // when the start of the open request was read; 0: not yet, or not seen
  u64 responded_at; // when the last response began
  u64 moved_at;     // when more of it was sent or arrived
  u64 asked_at;     // when more of a request was sent, arrived or was read
  u32 sent_seq;     // written before the open request arrived; used: before the last response arrived
  u32 written_seq;  // written by the end of the last call
  u32 received_seq; // arrived so far
  u32 request_seq;  // arrived before the open request; used: before the last response
  u32 read_seq;     // read by the end of the last call
  u32 service;
  u32 busy_before; // ticks for which TCP had had data to send when the turn began
  u8 mode, side, is_final, has_client, has_owner;
  u8 has_asked;      // the client has sent data
  u8 has_responded;  // the service has sent data after that
  u8 is_rest;        // the open request is data that was unread when the last response was written
  u8 is_inferred;    // the open request was derived from TCP's timestamps
  u8 was_timed;      // the last response was timed
  u8 has_service;    // known once the connection is established
  u8 ended_by;       // the end that closed first: 1 + its side; 0: none yet
  u8 parts;          // how the parts of the open request follow each other: the latest
  u8 was_split;      // a request had a part that was sent LATER: a request of its own, perhaps still open
  u8 owes_ack;       // this end had not yet acknowledged all data when a hook last ran
  u8 pings;          // turns that look like an HTTP/2 PING
  u32 response_size; // bytes of the last response's first part
  u64 goodbye_at;    // the `open_since` of data that came right before the end
  u64 responses, response_ns, queued_ns, queued_responses;
  u32 final_seq; // written when this end was closed: a FIN takes a number too
  u32 client;
  struct owner owner;
};

#ifdef BY_ADDRESS
BPF_HASH(turns, u64, struct turn, CONNECTIONS_MAX);
#else
BPF_SK_STORAGE(turns, struct turn);
#endif

// The processes that listen, or were the last to accept: a connection to a listener in this map is served,
// and until it is accepted, the listener's process is its only known owner. The least recently used are
// evicted.
BPF_TABLE("lru_hash", struct listener, struct owner, listening, LISTENING_MAX);

// Failed connects to destinations without a slot, plus ONE_REFUSED times those that were refused.
BPF_TABLE("lru_hash", struct key, u64, failing, FAILING_MAX);

struct client_set {
  struct client entries[SET_ENTRIES];
};
BPF_F_TABLE("array", u32, struct client_set, clients, CLIENT_SETS, 1024 /* BPF_F_MMAPABLE */);

// TCP's progress on a connection.
struct progress {
  u64 transmitted_at;
  u32 written, transmitted, acked, received, read, confirmed;
  u32 noted;       // the turn's `received_seq`, read before the others
  u32 received_at; // when data last arrived, in ticks
  u32 rtt_us, min_rtt_us;
  u32 busy; // ticks with data to send
};

static __always_inline struct client *client_of(u32 client) {
  u32 place = client / SET_ENTRIES;
  struct client_set *set = clients.lookup(&place);
  return set ? &set->entries[client % SET_ENTRIES] : NULL;
}

static __always_inline bool is_after(u32 sequence, u32 other) { return (s32)(sequence - other) > 0; }

static __always_inline u64 later(u64 one, u64 other) { return one > other ? one : other; }

// --- how ends take turns -----------------------------------------------------------------------------------

// Returns how data that moves at `now` follows all earlier data. RTTs include the peer's delayed ACKs, the
// shortest one does not.
static __always_inline u32 follows(struct turn *turn, struct progress *tcp, u64 now, bool may_be_held) {
  u64 last = later(turn->asked_at, turn->moved_at);
  if (!last || now <= last + PART_NS + tcp->min_rtt_us * 1000ull)
    return AT_ONCE;
  if (now > last + PAUSE_NS + tcp->rtt_us * 1000ull)
    return APART;
  return may_be_held && now > last + DELAY_NS ? HELD : LATER;
}

// Returns how data that arrived follows the data until `before`. Its sender may have waited for an ACK that
// this end owed and has sent since.
static __always_inline u32 came_after(struct turn *turn, struct progress *tcp, u32 before, u64 now) {
  return follows(turn, tcp, now, turn->owes_ack && !is_after(before, tcp->confirmed));
}

// Marks the connection as overlapping: responses can no longer be matched to requests.
static __always_inline void overlap(struct turn *turn) {
  if (turn->mode == ALTERNATES)
    turn->mode = OVERLAPS;
}

// Resumes alternation with a new request: after a silence that followed the service's last data, no other
// request is open.
static __always_inline void resume_alternating(struct turn *turn, u64 now) {
  if (turn->moved_at < turn->asked_at || now <= turn->moved_at + SETTLED_NS)
    return;
  turn->was_split = 0;
  if (turn->pings < PINGS)
    turn->mode = ALTERNATES;
}

// Counts data that the service sent unsolicited; callers exclude its greeting.
static __always_inline void count_push(struct turn *turn) {
  struct tally *tally = tally_of(turn->service);
  if (tally)
    ADD(tally->pushes, 1);
  if (turn->mode == ALTERNATES)
    turn->mode = PUSHES;
}

// Handles more data from the service with no request open: more of its response, or a push; or, if an earlier
// request was split, the response to a part of that.
static __always_inline void on_more_response_data(struct turn *turn, u32 how) {
  struct tally *tally = tally_of(turn->service);
  if (how < LATER || turn->mode == OVERLAPS || !turn->has_asked)
    return;
  if (turn->was_split && tally) {
    overlap(turn);
    ADD(tally->overlaps, 1);
  } else if (how == APART) {
    count_push(turn);
  }
}

// --- responses ---------------------------------------------------------------------------------------------

// Counts a response that began at `began_at`, to a request open since `open_since`; `read_at`: when the start
// of the request was read, on the serving side.
static __always_inline void count_timed(struct turn *turn, struct tally *tally, u64 open_since, u64 read_at,
                                        u64 began_at, u32 bytes) {
  u64 response = began_at > open_since ? began_at - open_since : 0; // data may leave later than TCP reports
  turn->responses++;
  turn->response_ns += response;
  ADD(tally->response_ns, response);
  ADD(tally->request_bytes, bytes);
  COUNT_DURATION(tally->response, response);
  if (read_at) {
    u64 queued = read_at > open_since ? read_at - open_since : 0;
    turn->queued_ns += queued;
    turn->queued_responses++;
    COUNT_DURATION(tally->queued, queued);
    COUNT_DURATION(tally->service_time, began_at > read_at ? began_at - read_at : 0);
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

// Looks for signs that the open request and its response, of these sizes, do not belong together.
static __always_inline void check_turn(struct turn *turn, u32 bytes, u32 response_bytes) {
  // A whole request after a split one: the parts may have been requests, of which one is still open.
  if (turn->was_split && turn->parts == AT_ONCE)
    overlap(turn);
  turn->was_split |= turn->parts >= LATER;
  turn->parts = AT_ONCE;
  // Either end's PING is answered by as many bytes; other messages have other sizes.
  bool may_be_ping = bytes < 64 && PING_SIZES >> bytes & 1 && turn->pings < PINGS;
  if (may_be_ping && turn->response_size && turn->responses < 2 * HANDSHAKES &&
      (bytes == response_bytes) != (bytes == turn->response_size)) {
    overlap(turn);
    turn->pings++;
  }
  turn->response_size = response_bytes;
}

// Counts a response, timed if it is known to answer the open request.
static __always_inline void count_response(struct turn *turn, u64 open_since, u64 read_at, u64 began_at,
                                           u64 bytes, u64 response_bytes, u64 is_push) {
  u64 unknown = turn->asked_at; // all paths through a turn meet here
  FORGET(response_bytes, unknown);
  FORGET(open_since, unknown);
  FORGET(read_at, unknown);
  FORGET(began_at, unknown);
  FORGET(bytes, unknown);
  FORGET(is_push, unknown);
  struct tally *tally = tally_of(turn->service);
  if (!tally)
    return;
  check_turn(turn, bytes, response_bytes);
  turn->was_timed = turn->mode == ALTERNATES;
  if (turn->mode == ALTERNATES)
    count_timed(turn, tally, open_since, read_at, began_at, bytes);
  else if (turn->mode == OVERLAPS)
    ADD(tally->overlaps, 1);
  else
    ADD(tally->replies, 1);
  if (turn->mode == PUSHES && is_push)
    ADD(tally->pushes, 1);
  turn->responded_at = turn->moved_at = began_at;
  turn->has_responded = 1;
  turn->is_inferred = 0;
}

// Counts the parts of the last response that are known only when it is complete.
static __always_inline void count_whole_response(struct turn *turn, u32 bytes) {
  struct tally *tally = turn->was_timed ? tally_of(turn->service) : NULL;
  if (!tally)
    return;
  ADD(tally->response_bytes, bytes);
  ADD(tally->transfer_ns, turn->moved_at - turn->responded_at);
}

// Returns when the last data left: now, unless all of it left earlier, after `since`.
static __always_inline u64 last_left_at(struct progress *tcp, u64 since) {
  bool has_left = tcp->transmitted == tcp->written && tcp->transmitted_at > since;
  return has_left ? tcp->transmitted_at : bpf_ktime_get_ns();
}

// Returns when the first data written in this turn left, after `since`. A call that sends more than fits in
// the buffer ends when the peer has taken most of it: TCP counts in ticks for how long it has had data to
// send.
static __always_inline u64 first_left_at(struct turn *turn, struct progress *tcp, u64 since) {
  u32 busy = tcp->busy - turn->busy_before;
  u64 last = last_left_at(tcp, since);
  if (busy < 2 || busy > 1u << 31)
    return last;
  u64 until = is_after(tcp->written, tcp->acked) ? bpf_ktime_get_ns() : last;
  return later(since, until - (u64)busy * NS_PER_TICK);
}

// Returns whether data written since the open request arrived answers it. Data written before any of the
// request was read answers another one: requests and responses overlap.
static __always_inline bool has_response(struct turn *turn, struct progress *tcp) {
  u32 request_seq = turn->request_seq; // first: the next request, arriving on another CPU, sets it last
  IN_ORDER();
  if (tcp->written == turn->sent_seq)
    return false;
  if (is_after(tcp->read, request_seq))
    return true;
  if (!turn->is_rest)
    overlap(turn);
  turn->sent_seq = tcp->written;
  return false;
}

// Handles the start of the response to the request that arrived at `open_since`. Both the end of the call
// that sends it and the arrival of the next request detect it: the first one counts it. The response is to
// the data that was read. What TCP has received but no hook has noted may be the next request, already, on
// another CPU.
static __always_inline void on_response(struct turn *turn, struct progress *tcp, u64 open_since) {
  u64 read_at = turn->read_at;
  u64 began_at = first_left_at(turn, tcp, read_at ? read_at : open_since);
  u64 is_partial = is_after(tcp->noted, tcp->read), is_push = follows(turn, tcp, began_at, false) == APART;
  u64 request_end = is_partial ? tcp->read : tcp->noted;
  u32 bytes = request_end - turn->request_seq;
  u64 still_open = is_partial ? later(turn->asked_at, open_since + 1) : 0, unknown = turn->asked_at;
  FORGET(is_partial, unknown);
  FORGET(request_end, unknown);
  FORGET(still_open, unknown);
  if (__sync_val_compare_and_swap(&turn->open_since, open_since, 0) != open_since)
    return;
  count_response(turn, open_since, read_at, began_at, bytes, tcp->written - turn->sent_seq, is_push);
  if (!is_partial)
    return;
  count_whole_response(turn, tcp->written - turn->sent_seq);
  turn->is_rest = 1;
  turn->read_at = 0;
  turn->sent_seq = tcp->written;
  IN_ORDER();
  turn->request_seq = request_end;
  // Opened last: data that arrives meanwhile, on another CPU, would find this response again. It opens
  // itself.
  __sync_val_compare_and_swap(&turn->open_since, 0, still_open);
}

// --- turns -------------------------------------------------------------------------------------------------

// Handles more data while a request is open: a part of it, or, after a pause or a response, another one. A
// request larger than the first flight is also delayed by losses and full buffers.
static __always_inline void on_more_request_data(struct turn *turn, struct progress *tcp, u32 before,
                                                 u64 now) {
  bool is_short = before - turn->request_seq < INITIAL_WINDOW;
  u32 how = is_short && !is_after(before, tcp->read) ? came_after(turn, tcp, before, now) : AT_ONCE;
  turn->parts = later(turn->parts, how);
  if (how == APART || (is_short && turn->is_rest && turn->responses >= HANDSHAKES))
    overlap(turn);
  turn->asked_at = now;
}

// Handles data that arrived at the service, at `now`; `before` is the sequence number until then.
static __always_inline void on_request_data(struct turn *turn, struct progress *tcp, u32 before, u64 now,
                                            bool is_end, bool is_late) {
  u64 open_since = turn->open_since;
  if (open_since && !has_response(turn, tcp)) {
    on_more_request_data(turn, tcp, before, now);
    return;
  }
  if (open_since)
    on_response(turn, tcp, open_since);
  if (tcp->written != turn->written_seq) // the call that wrote the rest of the response has not ended yet
    turn->moved_at = last_left_at(tcp, turn->responded_at);
  count_whole_response(turn, tcp->written - turn->sent_seq);
  resume_alternating(turn, now);
  // A client that asks in response to a response has received it. A greeting that crosses the client's first
  // data shows that both ends send independently.
  bool is_crossing = !is_late && is_after(tcp->written, tcp->acked);
  if (is_crossing && (turn->responses >= HANDSHAKES || !turn->has_asked))
    overlap(turn);
  turn->written_seq = turn->sent_seq = tcp->written;
  IN_ORDER();
  turn->request_seq = before;
  turn->busy_before = tcp->busy;
  turn->read_at = turn->is_rest = turn->is_inferred = 0;
  turn->has_asked = 1;
  turn->asked_at = now;
  if (is_end && turn->has_responded)
    turn->goodbye_at = now;
  __sync_lock_test_and_set(&turn->open_since, now);
}

// Handles data that arrived from the service, at `now`; `before` is the sequence number until then.
static __always_inline void on_response_data(struct turn *turn, struct progress *tcp, u32 before, u64 now) {
  u64 open_since = turn->open_since;
  u32 how = came_after(turn, tcp, before, now);
  if (tcp->written == turn->sent_seq) {
    on_more_response_data(turn, how);
    turn->moved_at = now;
    return;
  }
  turn->has_asked = 1;
  // A service that answers has received the request.
  bool is_partial = is_after(tcp->written, tcp->acked), is_crossing = !is_after(tcp->acked, turn->sent_seq);
  if (turn->responses >= HANDSHAKES ? is_partial : is_crossing && !turn->has_responded)
    overlap(turn);
  if (is_crossing) {
    turn->moved_at = now;
    return;
  }
  if (!open_since)
    open_since = first_left_at(turn, tcp, turn->responded_at);
  u32 request_end = is_partial ? tcp->acked : tcp->written;
  u32 bytes = request_end - turn->sent_seq;
  count_whole_response(turn, before - turn->request_seq);
  turn->request_seq = before;
  turn->sent_seq = request_end;
  turn->busy_before = tcp->busy;
  IN_ORDER();
  turn->open_since = is_partial ? turn->asked_at : 0;
  count_response(turn, open_since, 0, now, bytes, tcp->received - before, how == APART);
}

// Handles arrived data, if there is any: the socket may repeat its notification. `is_end`: no more will
// arrive. `is_late`: found only now, because the kernel does not notify below SO_RCVLOWAT, and skips a
// program that is already running on the CPU.
static __always_inline void arrived(struct turn *turn, struct progress *tcp, bool is_end, bool is_late) {
  u32 before = turn->received_seq;
  if (tcp->received == before)
    return;
  u64 now = bpf_ktime_get_ns();
  if (is_late)
    now -= (u64)((u32)bpf_jiffies64() - tcp->received_at) * NS_PER_TICK;
  if (turn->side == SIDE_USED)
    on_response_data(turn, tcp, before, now);
  else
    on_request_data(turn, tcp, before, now, is_end, is_late);
  // Written last: the end of a call on another CPU compares it with what was read.
  turn->received_seq = tcp->received;
  turn->owes_ack = is_after(tcp->received, tcp->confirmed);
}

// Handles the end of a client's call.
static __always_inline void client_called(struct turn *turn, struct progress *tcp) {
  u32 before = turn->written_seq;
  if (tcp->written == before)
    return;
  turn->written_seq = tcp->written;
  if (tcp->written == turn->sent_seq)
    return;
  u64 now = last_left_at(tcp, turn->responded_at);
  if (is_after(before, turn->sent_seq)) {
    u32 how = before - turn->sent_seq < INITIAL_WINDOW ? follows(turn, tcp, now, false) : AT_ONCE;
    turn->parts = later(turn->parts, how);
    if (how == APART && !is_after(before, tcp->acked))
      overlap(turn);
  } else {
    resume_alternating(turn, now);
    if (is_after(tcp->noted, tcp->read))
      overlap(turn);
    if (!turn->open_since)
      __sync_lock_test_and_set(&turn->open_since, first_left_at(turn, tcp, turn->responded_at));
    if (tcp->written == turn->sent_seq) // the response arrived meanwhile, on another CPU
      turn->open_since = 0;
  }
  turn->asked_at = now;
}

// Handles data that the service wrote while no request was open: more of its response, or a push, which is
// separated from all earlier data by a pause.
static __always_inline void on_unsolicited_write(struct turn *turn, struct progress *tcp, u32 before) {
  u64 now = last_left_at(tcp, turn->responded_at);
  if (!is_after(before, tcp->acked))
    on_more_response_data(turn, follows(turn, tcp, now, false));
  turn->moved_at = now;
}

// Handles the end of a service's call.
static __always_inline void service_called(struct turn *turn, struct progress *tcp) {
  u64 open_since = turn->open_since;
  u32 before = turn->written_seq;
  turn->written_seq = tcp->written;
  if (!open_since) {
    if (tcp->written != before)
      on_unsolicited_write(turn, tcp, before);
  } else if (has_response(turn, tcp)) {
    on_response(turn, tcp, open_since);
  } else if (tcp->read != turn->read_seq && is_after(tcp->read, turn->request_seq)) {
    turn->asked_at = bpf_ktime_get_ns();
    if (!turn->read_at)
      turn->read_at = turn->asked_at;
  }
  turn->read_seq = tcp->read;
  turn->owes_ack = is_after(tcp->received, tcp->confirmed);
}

// Handles the end of a call that may have sent or read data.
static __always_inline void called(struct turn *turn, struct progress *tcp) {
  if (is_after(tcp->read, turn->received_seq))
    arrived(turn, tcp, false, true);
  if (turn->side == SIDE_USED)
    client_called(turn, tcp);
  else
    service_called(turn, tcp);
}

#ifdef BY_ADDRESS
// A kprobe's arguments are not typed, so everything is copied.
#define COPY(to, from) bpf_probe_read_kernel(&(to), sizeof(to), (void *)&(from))
#else
#define COPY(to, from) (to) = (from)
#endif

static __always_inline void read_progress(struct progress *tcp, struct tcp_sock *tp, struct turn *turn) {
  u64 flags = 0;
  u32 busy[3] = {}, began = 0;
  tcp->noted = turn ? turn->received_seq : 0;
  IN_ORDER();
  COPY(tcp->transmitted_at, tp->tcp_wstamp_ns);
  COPY(tcp->written, tp->write_seq);
  COPY(tcp->transmitted, tp->snd_nxt);
  COPY(tcp->acked, tp->snd_una);
  COPY(tcp->received, tp->rcv_nxt);
  COPY(tcp->read, tp->copied_seq);
  COPY(tcp->received_at, tp->received_at);
  COPY(tcp->confirmed, tp->rcv_wup);
  COPY(tcp->rtt_us, tp->srtt_us);
  COPY(tcp->min_rtt_us, tp->rtt_min[0][1]);
  COPY(flags, tp->skc_flags);
  COPY(busy[0], tp->chrono_stat[0]);
  COPY(busy[1], tp->chrono_stat[1]);
  COPY(busy[2], tp->chrono_stat[2]);
  COPY(began, tp->chrono_start);
  tcp->rtt_us >>= 3;
  tcp->received -= flags & SOCK_DONE ? 1 : 0;
  u32 written = tcp->written;
  KEEP(written);
  tcp->busy = busy[0] + busy[1] + busy[2];
  if (is_after(written, tcp->acked))
    tcp->busy += (u32)bpf_jiffies64() - began;
  tcp->written = turn && turn->is_final ? turn->final_seq : written;
}

// --- connections -------------------------------------------------------------------------------------------

static __always_inline void put_address(u32 *address, struct sock *sk, u32 v4, u32 *v6) {
  u32 mask = sk->skc_family == AF_INET ? 0 : ~0u;
  FORGET(mask, v6[0]);
  address[0] = v6[0] & mask;
  address[1] = v6[1] & mask;
  address[2] = (v6[2] & mask) | (bpf_htonl(0xffff) & ~mask);
  address[3] = (v6[3] & mask) | (v4 & ~mask);
}

static __always_inline void put_remote(u32 *address, struct sock *sk) {
  u32 v6[4] = {sk->skc_v6_daddr[0], sk->skc_v6_daddr[1], sk->skc_v6_daddr[2], sk->skc_v6_daddr[3]};
  put_address(address, sk, sk->skc_daddr, v6);
}

static __always_inline void put_local(u32 *address, struct sock *sk) {
  u32 v6[4] = {sk->skc_v6_rcv_saddr[0], sk->skc_v6_rcv_saddr[1], sk->skc_v6_rcv_saddr[2],
               sk->skc_v6_rcv_saddr[3]};
  put_address(address, sk, sk->skc_rcv_saddr, v6);
}

// Returns the process that a connection came to: that of the listener at its address, or at any address. Sets
// `listener` to that listener, or to the connection's own address if there is none.
static __always_inline struct owner *find_listener(struct listener *listener, struct sock *sk) {
  u32 *address = (u32 *)listener->address;
  listener->netns = namespace_of(sk);
  listener->port = sk->skc_num;
  put_local(address, sk);
  struct owner *owner = listening.lookup(listener);
  if (owner)
    return owner;
  struct listener wildcard = {.netns = listener->netns, .port = listener->port};
  if (is_mapped(address)) {
    ((u32 *)wildcard.address)[2] = bpf_htonl(0xffff);
    owner = listening.lookup(&wildcard);
    ((u32 *)wildcard.address)[2] = owner ? bpf_htonl(0xffff) : 0;
  }
  if (!owner)
    owner = listening.lookup(&wildcard);
  if (owner)
    *listener = wildcard;
  return owner;
}

// Adds a connection to a client's entry. A new client evicts the one that was idle longest, among those
// without connections.
static __always_inline bool join_client(struct turn *turn, struct sock *sk) {
  struct client_key key = {.service = turn->service};
  put_remote(key.address, sk);
  u32 place = HASH_OF(key) % CLIENT_SETS;
  struct client_set *set = clients.lookup(&place);
  struct whole *whole = get_whole();
  if (!set || !whole)
    return false;
  u64 idle = SET_ENTRIES;
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
    FORGET(idle, client->last_seen);
    FORGET(oldest, client->last_seen);
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

static __always_inline void leave_client(struct turn *turn) {
  struct client *client = turn->has_client ? client_of(turn->client) : NULL;
  if (client)
    ADD(client->open, -1);
}

// Records the process that listens on a socket; another one may accept.
static __always_inline void note_listener(struct sock *sk, struct task_struct *task) {
  struct listener listener = {.netns = namespace_of(sk), .port = sk->skc_num};
  struct owner owner = {};
  put_local((u32 *)listener.address, sk);
  PUT_PROCESS(&owner, task);
  listening.update(&listener, &owner);
}

// Sets the key of a connection's service. Returns the process that names it, if known: the one that uses the
// connection, or the listener's.
static __always_inline struct owner *put_key(struct key *key, struct turn *turn, struct sock *sk) {
  struct owner *owner = turn->has_owner ? &turn->owner : NULL;
  key->netns = namespace_of(sk);
  key->side = turn->side;
  if (turn->side == SIDE_USED) {
    key->port = bpf_ntohs(sk->skc_dport);
    put_remote((u32 *)key->address, sk);
  } else {
    struct listener listener = {};
    struct owner *listens = find_listener(&listener, sk);
    key->port = listener.port;
    key->address[0] = listener.address[0];
    key->address[1] = listener.address[1];
    if (!owner)
      owner = listens;
  }
  if (owner)
    put_user(key, owner);
  return owner;
}

static __always_inline void set_service(struct turn *turn, struct sock *sk) {
  struct key key = {};
  struct owner *owner = put_key(&key, turn, sk);
  turn->service = number_of(&key, owner);
  turn->has_service = 1;
  if (turn->side == SIDE_SERVED)
    turn->has_client = join_client(turn, sk);
}

// Sets the process that uses a connection as its owner and its service's. If the accepting process has
// another name than the listening one, the connection belongs to another service.
static __always_inline void set_owner(struct turn *turn, struct sock *sk, struct task_struct *task) {
  PUT_PROCESS(&turn->owner, task);
  turn->has_owner = 1;
  struct service *service = service_of(turn->service);
  if (!turn->has_service || !service)
    return;
  bool is_same = ((u64 *)service->comm)[0] == ((u64 *)turn->owner.comm)[0] &&
                 ((u64 *)service->comm)[1] == ((u64 *)turn->owner.comm)[1];
  if (turn->service > SIDE_USED && is_same) {
    put_owner(service, &turn->owner);
  } else if (turn->side == SIDE_SERVED) {
    struct listener listener = {};
    if (find_listener(&listener, sk))
      listening.update(&listener, &turn->owner);
    leave_client(turn);
    set_service(turn, sk);
  }
}

static __always_inline void settle(struct turn *turn, struct progress *tcp) {
  turn->sent_seq = turn->written_seq = tcp->written;
  turn->received_seq = turn->request_seq = turn->read_seq = tcp->received;
  turn->busy_before = tcp->busy;
}

// Returns whether the last data on a connection was a request: compares the ticks in which data last arrived
// and left and, within one tick, who acknowledged whom, which both ends do within a quarter of a second.
static __always_inline bool is_open_request(struct turn *turn, struct tcp_sock *tp, struct progress *tcp) {
  u32 received_at = tp->received_at, sent_at = tp->sent_at;
  s64 acked_before_us = tcp->transmitted_at / 1000 - tp->delivered_mstamp;
  if (turn->side == SIDE_SERVED) {
    if (!tp->data_segs_in || (turn->has_responded && tp->skc_flags & SOCK_DONE))
      return false;
    if (!turn->has_responded || is_after(tcp->received, tcp->read))
      return true;
    if (received_at != sent_at)
      return is_after(received_at, sent_at);
    return is_after(tcp->received, tp->rcv_wup) ||
           (acked_before_us >= 0 && acked_before_us < MAX_DELAYED_ACK_US);
  }
  if (!tp->data_segs_out)
    return false;
  if (!tp->data_segs_in)
    return true;
  if (received_at != sent_at)
    return is_after(sent_at, received_at);
  return tp->rcv_wup == tp->rcv_nxt && (is_after(tcp->written, tcp->acked) ||
                                        (acked_before_us < 0 && acked_before_us > -MAX_DELAYED_ACK_US));
}

// Adopts a connection that is older than the watch. The ticks in which data last arrived and left show
// whether a request is open, and since when.
static __always_inline void adopt(struct turn *turn, struct tcp_sock *tp) {
  struct progress tcp;
  read_progress(&tcp, tp, NULL);
  settle(turn, &tcp);
  turn->has_asked = !!tp->data_segs_in;
  turn->has_responded = tp->data_segs_in && tp->data_segs_out;
  if (!is_open_request(turn, tp, &tcp))
    return;
  u32 since = turn->side == SIDE_SERVED ? tp->received_at : tp->sent_at;
  if (turn->side == SIDE_USED)
    turn->sent_seq = tcp.written - 1;
  else
    turn->request_seq = is_after(tcp.received, tcp.read) ? tcp.read : tcp.received - 1;
  turn->is_inferred = 1;
  turn->open_since = bpf_ktime_get_ns() - (u64)((u32)bpf_jiffies64() - since) * NS_PER_TICK;
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

// Begins to watch a connection; `task` is its owner, if known.
static __always_inline struct turn *begin(struct sock *sk, u8 side, struct task_struct *task) {
  struct turn *turn = new_turn(sk);
  struct whole *whole = get_whole();
  if (!turn) {
    if (whole)
      ADD(whole->unwatched, 1);
    return NULL;
  }
  turn->side = side;
  if (task)
    set_owner(turn, sk, task);
  return turn;
}

static __always_inline bool is_open(struct sock *sk) {
  u8 state = sk->skc_state;
  return state != TCP_CLOSE && state != TCP_LISTEN && state != TCP_SYN_SENT;
}

static __always_inline struct tcp_sock *tcp_of(struct sock *sk) {
  return (struct tcp_sock *)bpf_skc_to_tcp_sock((void *)sk);
}

// Returns whether a connection came to a listener. The socket keeps the listener's backlog, even if the
// listener is gone or its process is in a PID namespace that the walk does not see; but listen(0) leaves
// none.
static __always_inline bool is_accepted(struct sock *sk) {
  struct listener listener = {};
  return sk->sk_max_ack_backlog || find_listener(&listener, sk);
}

// Begins to watch a connection that is older than the watch, or whose start was missed. Where data arrives,
// the process that uses a service is not known.
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
  if (!turn)
    return;
  set_service(turn, sk);
  adopt(turn, tp);
}

static __always_inline struct task_struct *current_task() {
  return (struct task_struct *)bpf_get_current_task_btf();
}

// Returns whether a client's call only read data that was already counted. Every second call does.
static __always_inline bool only_read(struct turn *turn, struct tcp_sock *tp) {
  return turn->side == SIDE_USED && turn->has_owner && !turn->is_final &&
         tp->write_seq == turn->written_seq && !is_after(tp->copied_seq, turn->received_seq);
}

// Runs at the end of a call on a socket.
static __always_inline int on_call(struct sock *sk) {
  struct turn *turn = turn_of(sk);
  struct tcp_sock *tp = turn ? tcp_of(sk) : NULL;
  if (tp) {
    if (only_read(turn, tp))
      return 0;
    struct progress tcp;
    read_progress(&tcp, tp, turn);
    called(turn, &tcp);
    if (!turn->has_owner)
      set_owner(turn, sk, current_task());
  } else {
    begin_late(sk, current_task(), true);
  }
  return 0;
}

// Runs when a socket signals that it is readable.
static __always_inline int on_data(struct sock *sk) {
  struct turn *turn = turn_of(sk);
  struct tcp_sock *tp = turn ? tcp_of(sk) : NULL;
  if (tp) {
    struct progress tcp;
    read_progress(&tcp, tp, turn);
    arrived(turn, &tcp, tp->skc_flags & SOCK_DONE, false);
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
    set_owner(turn, sk, current_task());
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
  arrived(turn, &tcp, flags & SOCK_DONE, false);
  return 0;
}
#else
int tp_btf__sock_send_length(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int tp_btf__sock_recv_length(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int tp_btf__sk_data_ready(u64 *ctx) { return on_data((struct sock *)ctx[0]); }
int fentry__called(u64 *ctx) { return on_call((struct sock *)ctx[0]); }
int fentry__arrived(u64 *ctx) { return on_data((struct sock *)ctx[0]); }
#endif

// Data right before the end of a connection that has been used is no request: TLS and many protocols send a
// farewell. Data before the service closes, if nothing came earlier, is a request that failed.
static __always_inline void note_end_of_requests(struct turn *turn, u64 open_since) {
  if (open_since && bpf_ktime_get_ns() - open_since < GOODBYE_NS)
    turn->goodbye_at = open_since;
}

static __always_inline u64 open_request(struct turn *turn, struct progress *tcp) {
  if (turn->mode != ALTERNATES)
    return 0;
  if (turn->side == SIDE_SERVED)
    return turn->open_since && !(tcp->written != turn->sent_seq && is_after(tcp->read, turn->request_seq))
               ? turn->open_since
               : 0;
  if (tcp->written == turn->sent_seq)
    return 0;
  return turn->open_since ? turn->open_since : first_left_at(turn, tcp, turn->responded_at);
}

static __always_inline void end(struct turn *turn, struct progress *tcp) {
  u64 open_since = turn->open_since;
  if (turn->side == SIDE_SERVED && open_since && has_response(turn, tcp))
    on_response(turn, tcp, open_since);
  open_since = open_request(turn, tcp);
  bool was_ignored = turn->is_rest && !is_after(tcp->read, turn->request_seq);
  struct tally *tally = tally_of(turn->service);
  if (tally && open_since && open_since != turn->goodbye_at && !was_ignored) {
    ADD(tally->unanswered, 1);
    ADD(tally->unanswered_ns, bpf_ktime_get_ns() - open_since);
    if (turn->ended_by == 1 + SIDE_SERVED)
      ADD(tally->closed, 1);
  }
  count_whole_response(turn, turn->side == SIDE_SERVED ? tcp->written - turn->sent_seq
                                                       : tcp->received - turn->request_seq);
  leave_client(turn);
}

// Counts a failed connect: refused, or never answered. Its destination gets a slot after several failures:
// until then they are counted separately.
static __always_inline void fail(struct turn *turn, struct sock *sk) {
  struct whole *whole = get_whole();
  struct key key = {};
  u64 none = 0, failed = sk->sk_err == ECONNREFUSED ? 1 + ONE_REFUSED : 1;
  struct owner *owner = put_key(&key, turn, sk);
  if (!known.lookup(&key)) {
    u64 *before = failing.lookup_or_try_init(&key, &none);
    if (before)
      failed += __sync_fetch_and_add(before, failed);
    bool is_often = (u32)failed >= FAILURES_FOR_A_PLACE;
    if (whole)
      ADD(whole->unlisted_failures, is_often ? 1ull - (u32)failed : 1);
    if (!is_often)
      return;
    failing.delete(&key);
  }
  turn->service = number_of(&key, owner);
  struct tally *tally = tally_of(turn->service);
  if (!tally)
    return;
  ADD(tally->failed_connects, (u32)failed);
  ADD(tally->refused, failed / ONE_REFUSED);
}

// Records the end that closes first.
static __always_inline void note_who_ends(struct turn *turn, bool is_here) {
  if (!turn->ended_by)
    turn->ended_by = 1 + (is_here ? turn->side : SIDE_SERVED + SIDE_USED - turn->side);
}

static __always_inline void established(struct turn *turn, struct sock *sk, struct tcp_sock *tp, u32 before) {
  if (!turn && before == TCP_SYN_RECV)
    turn = begin(sk, SIDE_SERVED, NULL);
  else if (before != TCP_SYN_SENT)
    return;
  if (!turn)
    return;
  struct progress tcp;
  read_progress(&tcp, tp, turn);
  settle(turn, &tcp);
  if (!turn->has_service)
    set_service(turn, sk);
}

// Handles this end's FIN. A client that only stops sending still waits for its response.
static __always_inline void on_fin_sent(struct turn *turn, struct sock *sk, struct progress *tcp) {
  bool is_half = sk_shutdown_of(sk) == SEND_SHUTDOWN;
  turn->final_seq = tcp->written;
  turn->is_final = 1;
  if (is_half)
    return;
  note_who_ends(turn, true);
  // Also on the server: it may act on the client's farewell, and close, before the client closes.
  if (turn->has_responded || turn->ended_by == 1 + SIDE_USED)
    note_end_of_requests(turn, open_request(turn, tcp));
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
  struct tcp_sock *tp = tcp_of(sk);
  if (next == TCP_SYN_SENT) {
    if (!turn)
      begin(sk, SIDE_USED, sk->sk_lock_owned ? current_task() : NULL);
    return 0;
  }
  if (!tp)
    return 0;
  if (next == TCP_ESTABLISHED) {
    established(turn, sk, tp, before);
    return 0;
  }
  if (!turn)
    return 0;
  struct progress tcp;
  read_progress(&tcp, tp, turn);
  if (next == TCP_CLOSE) {
    if (before == TCP_SYN_SENT) {
      fail(turn, sk);
    } else if (turn->has_service) {
      note_who_ends(turn, !sk->sk_err);
      end(turn, &tcp);
    }
    // The socket may connect again, and its address may be reused. After a reset, TCP may also have sequence
    // numbers for data that was never written.
    forget(sk);
  } else if (next == TCP_FIN_WAIT1 || next == TCP_LAST_ACK) {
    on_fin_sent(turn, sk, &tcp);
  } else if (next == TCP_CLOSE_WAIT) {
    note_who_ends(turn, false);
    if (turn->side == SIDE_SERVED && turn->has_responded)
      note_end_of_requests(turn, turn->open_since);
  }
  return 0;
}

// --- reading -----------------------------------------------------------------------------------------------

// Phase of the walk over descriptors: find listeners, then start to watch connections.
BPF_ARRAY(phase, u32, 1);

struct bpf_iter__task_file {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
  u32 fd, pad;
  void *file;
};

struct bpf_iter__tcp {
  struct bpf_iter_meta *meta;
  void *sk_common;
  u32 uid;
};

struct bpf_iter__bpf_sk_storage_map {
  struct bpf_iter_meta *meta;
  void *map;
  struct sock *sk;
  struct turn *value;
};

static __always_inline int write_row(struct bpf_iter_meta *meta, struct sock *sk, struct turn *turn) {
  struct tcp_sock *tp = tcp_of(sk);
  struct progress tcp;
  if (!tp || !is_open(sk) || !turn->has_service)
    return 0;
  read_progress(&tcp, tp, turn);
  struct connection row;
  __builtin_memset(&row, 0, sizeof(row));
  // A client that has closed its end waits no longer, though TCP may still send what it wrote.
  bool has_left = turn->side == SIDE_USED && sk_shutdown_of(sk) == SHUTDOWN_MASK;
  u64 open_since = has_left ? 0 : open_request(turn, &tcp);
  if (open_since && open_since != turn->goodbye_at)
    row.open_since = open_since;
  // Data below SO_RCVLOWAT is not signalled.
  else if (turn->side == SIDE_SERVED && tcp.received != turn->received_seq && turn->mode == ALTERNATES)
    row.open_since = bpf_ktime_get_ns() - (u64)((u32)bpf_jiffies64() - tcp.received_at) * NS_PER_TICK;
  u32 moved_at = tcp.received_at;
  if (turn->side == SIDE_USED)
    COPY(moved_at, tp->sent_at);
  row.moved_at = bpf_ktime_get_ns() - (u64)((u32)bpf_jiffies64() - moved_at) * NS_PER_TICK;
  row.is_inferred = row.open_since && turn->is_inferred;
  row.was_read = is_after(tcp.read, turn->request_seq);
  if (!sk->skc_cookie)
    bpf_get_socket_cookie((void *)sk);
  row.id = sk->skc_cookie;
  row.responses = turn->responses;
  row.response_ns = turn->response_ns;
  row.queued_ns = turn->queued_ns;
  row.queued_responses = turn->queued_responses;
  // TCP may count meanwhile: both numbers are read one right after the other.
  u64 acked = 0, received = 0;
  u32 unacked = 0, expected = 0;
  COPY(acked, tp->bytes_acked);
  COPY(unacked, tp->snd_una);
  COPY(received, tp->bytes_received);
  COPY(expected, tp->rcv_nxt);
  row.local_isn = unacked - (u32)acked;
  row.remote_isn = expected - (u32)received;
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
  } else if (*now == PHASE_ROWS && turn) {
    write_row(ctx->meta, sk, turn);
  }
  return 0;
}

// Some kernels let a walk over descriptors read a socket, but not pass it to a helper. There, it only finds
// listeners, and walks over the hash tables of each namespace do the rest.
int bpf_iter__listeners(struct bpf_iter__task_file *ctx) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  struct socket *socket = file ? (struct socket *)bpf_sock_from_file(file) : NULL;
  struct sock *sk = socket ? (struct sock *)socket->sk : NULL;
  if (task && sk && (sk->skc_family == AF_INET || sk->skc_family == AF_INET6) &&
      sk->sk_protocol == IPPROTO_TCP && sk->skc_state == TCP_LISTEN)
    note_listener(sk, task);
  return 0;
}

BPF_ITER(tcp) {
  int first = 0;
  u32 *now = phase.lookup(&first);
  struct sock *sk = ctx->sk_common ? (struct sock *)bpf_skc_to_tcp_sock(ctx->sk_common) : NULL;
  if (!now || !sk)
    return 0;
  struct turn *turn = turn_of(sk);
  if (*now == PHASE_CONNECTIONS && !turn)
    begin_late(sk, NULL, true);
  else if (*now == PHASE_ROWS && turn)
    write_row(ctx->meta, sk, turn);
  return 0;
}

#ifndef BY_ADDRESS
BPF_ITER(bpf_sk_storage_map) {
  if (!ctx->sk || !ctx->value)
    return 0;
  return write_row(ctx->meta, ctx->sk, ctx->value);
}
#endif
