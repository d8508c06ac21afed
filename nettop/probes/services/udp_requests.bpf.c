// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Times requests and responses of UDP services at the control group's hooks for packets, which see each
// datagram once, with its socket: where it leaves in the context of the process that sends it, where it
// arrives just before it is queued. A DNS response has the number of its request; another response belongs to
// the oldest open request of the same socket and peer. struct request_key, struct request, struct question,
// the structs of slots.bpf.h, the -D numbers, the slices of kernel structs, pid_namespace.bpf.h,
// process.bpf.h and slots.bpf.h are prepended to this file.

#include <nettop/namespace.h>

#define AF_INET 2
#define AF_INET6 10
#define SOCK_DGRAM 2
#define IPPROTO_UDP 17
#define IPV4_HEADER 20
#define IPV6_HEADER 40
#define UDP_HEADER 8
#define DNS_PORT 53
#define DNS_HEADER 12
#define DNS_IS_RESPONSE 0x80
#define DNS_SERVFAIL 2
#define DNS_NXDOMAIN 3
#define PASS 1         /* what every program returns: nothing is dropped or refused */
#define SKIPPED_MAX 32 /* unanswered requests that one datagram may skip */

// A UDP socket that asked or was asked, stored with it. `process` is the last one that bound it or answered.
struct end {
  struct owner owner;
  u32 process, netns, open;
};
BPF_SK_STORAGE(ends, struct end);

// Requests without a response yet. The reader removes those that no response may follow any more.
BPF_HASH(requests, struct request_key, struct request, REQUESTS_MAX);

// Requests asked and taken off the queue, for each socket and peer whose requests have no number of their
// own.
struct queue {
  u64 asked, responded;
};
BPF_TABLE("lru_hash", struct request_key, struct queue, queues, QUEUES_MAX);

// Sockets closed with open requests, and when: the reader empties it. If it is full, they time out instead.
BPF_HASH(closed, u64, u64, CLOSED_MAX);

// The ports of services, one bit each.
BPF_ARRAY(ports, u64, 1024);

// The last question of each DNS service.
BPF_F_TABLE("array", u32, struct question, questions, SERVICES_MAX, 1024 /* BPF_F_MMAPABLE */);

// A socket's address as a number: the verifier allows no arithmetic on the pointer, but does not follow it
// through a map.
BPF_PERCPU_ARRAY(addresses, u64, 1);

struct datagram {
  struct __sk_buff *skb;
  struct bpf_sock *sk;
  u32 payload_at, bytes;
  u32 remote[4];
  u16 local_port, remote_port, number;
  u8 is_response, code; // of DNS
};

static __always_inline bool is_service(u16 port) {
  int word = port >> 6;
  u64 *bits = ports.lookup(&word);
  return bits && *bits >> (port & 63) & 1;
}

// --- requests ----------------------------------------------------------------------------------------------

static __always_inline void count_unanswered(u32 service) {
  struct tally *tally = tally_of(service);
  if (!tally)
    return;
  ADD(tally->unanswered, 1);
  ADD(tally->unanswered_ns, TIMEOUT_NS);
}

static __always_inline void count_response(struct datagram *datagram, struct request *request, u64 now) {
  struct tally *tally = tally_of(request->service);
  if (!tally)
    return;
  u64 response = now - request->since;
  ADD(tally->response_ns, response);
  ADD(tally->request_bytes, request->bytes);
  ADD(tally->response_bytes, datagram->bytes);
  COUNT_DURATION(tally->response, response);
  if (datagram->code == DNS_SERVFAIL)
    ADD(tally->failed_responses, 1);
  else if (datagram->code == DNS_NXDOMAIN)
    ADD(tally->missing_names, 1);
}

enum { NOT_OPEN, IS_LATE, IS_TAKEN };

// Takes an open request out of the table. Whoever deletes it counts it, also if the reader tries at the same
// time.
static __always_inline int take(struct request_key *key, struct request *request, u64 now) {
  struct request *open = requests.lookup(key);
  if (!open)
    return NOT_OPEN;
  *request = *open;
  if (requests.delete(key))
    return NOT_OPEN;
  if (now <= request->since + TIMEOUT_NS)
    return IS_TAKEN;
  count_unanswered(request->service);
  return IS_LATE;
}

// Takes the oldest open request of a socket and peer. Those that the reader has removed are skipped.
static __always_inline int take_oldest(struct request_key *key, struct request *request, u64 now) {
  struct queue *queue = queues.lookup(key);
  int found = NOT_OPEN;
  if (!queue)
    return NOT_OPEN;
#pragma clang loop unroll(disable)
  for (int n = 0; n < SKIPPED_MAX && found != IS_TAKEN; n++) {
    u64 next = queue->responded;
    if (next == queue->asked)
      break;
    if (__sync_val_compare_and_swap(&queue->responded, next, next + 1) != next)
      continue;
    key->number = next;
    found = take(key, request, now);
  }
  key->number = 0;
  return found;
}

static __always_inline u16 number_in_queue(struct request_key *key) {
  struct queue none = {};
  struct queue *queue = queues.lookup_or_try_init(key, &none);
  return queue ? __sync_fetch_and_add(&queue->asked, 1) : 0;
}

// --- ends --------------------------------------------------------------------------------------------------

static __always_inline struct task_struct *current_task() {
  return (struct task_struct *)bpf_get_current_task_btf();
}

static __always_inline u32 read_namespace(struct bpf_sock *sk) {
  int first = 0;
  u64 *address = addresses.lookup(&first);
  if (!address)
    return 0;
  *(volatile u64 *)address = (u64)sk;
  return namespace_of((struct sock *)*(volatile u64 *)address);
}

static __always_inline struct end *end_of(struct bpf_sock *sk) {
  struct end *end = ends.sk_storage_get((void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (end && !end->netns)
    end->netns = read_namespace(sk);
  return end;
}

static __always_inline void set_owner(struct end *end, struct task_struct *task) {
  PUT_PROCESS(&end->owner, task);
  end->process = task->tgid;
}

// Sets an address from both forms of a socket. It does not branch: the compiler would choose an address in
// the socket first, and the verifier allows no arithmetic on it.
static __always_inline void put_address(u32 *address, struct bpf_sock *sk, u32 v4, u32 *v6) {
  u32 mask = sk->family == AF_INET ? 0 : ~0u;
  FORGET(mask, v4);
  address[0] = v6[0] & mask;
  address[1] = v6[1] & mask;
  address[2] = (v6[2] & mask) | (bpf_htonl(0xffff) & ~mask);
  address[3] = (v6[3] & mask) | (v4 & ~mask);
}

static __always_inline void put_local(u32 *address, struct bpf_sock *sk) {
  u32 v6[4] = {sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3]};
  put_address(address, sk, sk->src_ip4, v6);
}

static __always_inline u32 service_of_end(struct datagram *datagram, struct end *end, struct owner *owner,
                                          u8 side) {
  struct key key = {.netns = end->netns, .side = side, .protocol = PROTOCOL_UDP};
  if (side == SIDE_SERVED) {
    key.port = datagram->local_port;
    put_local((u32 *)key.address, datagram->sk);
  } else {
    key.port = datagram->remote_port;
    __builtin_memcpy(key.address, datagram->remote, sizeof(datagram->remote));
  }
  put_user(&key, owner);
  u32 number = number_of(&key, owner->start_time ? owner : NULL);
  struct service *service = number > SIDE_USED ? service_of(number) : NULL;
  if (service && owner->start_time && service->pid != owner->pid)
    put_owner(service, owner);
  return number;
}

static __always_inline void note_question(struct datagram *datagram, u32 service) {
  u32 slot = service % SERVICES_MAX;
  struct question *question = service > SIDE_USED ? questions.lookup(&slot) : NULL;
  u64 last = datagram->bytes - DNS_HEADER - 1ull; // without a question, more than can be loaded
  KEEP(last);
  if (last >= sizeof(question->text))
    last = sizeof(question->text) - 1;
  if (question &&
      !bpf_skb_load_bytes(datagram->skb, datagram->payload_at + DNS_HEADER, question->text, last + 1))
    question->bytes = last + 1;
}

// --- datagrams ---------------------------------------------------------------------------------------------

// Adds a request, unless it is one that is sent again: that still waits since it was sent first.
static __always_inline bool add(struct request_key *key, struct request *request) {
  if (!requests.insert(key, request))
    return true;
  struct request *open = requests.lookup(key);
  if (open && request->since <= open->since + TIMEOUT_NS)
    return false;
  struct request before;
  if (open && take(key, &before, request->since) && !requests.insert(key, request))
    return true;
  struct whole *whole = get_whole();
  if (whole)
    ADD(whole->untimed_requests, 1);
  return false;
}

static __always_inline void ask(struct datagram *datagram, struct request_key *key, u64 now) {
  struct request request = {.since = now, .bytes = datagram->bytes};
  struct end *end = end_of(datagram->sk);
  struct whole *whole = get_whole();
  if (!end || !whole) {
    if (whole)
      ADD(whole->untimed_requests, 1);
    return;
  }
  if (key->side == SIDE_USED)
    PUT_PROCESS(&request.owner, current_task());
  else
    request.owner = end->owner;
  request.netns = end->netns;
  request.local_port = datagram->local_port;
  put_local((u32 *)request.local_address, datagram->sk);
  request.service = service_of_end(datagram, end, &request.owner, key->side);
  bool is_dns = key->port == DNS_PORT || request.local_port == DNS_PORT;
  if (!add(key, &request))
    return;
  ADD(end->open, 1);
  if (is_dns)
    note_question(datagram, request.service);
}

// Counts a response for the process that sends it, which may not be the one that bound the socket.
static __always_inline void on_response(struct datagram *datagram, struct request *request, u8 side,
                                        u64 now) {
  struct end *end = end_of(datagram->sk);
  if (!end)
    return;
  ADD(end->open, -1);
  if (side == SIDE_SERVED && end->process != current_task()->tgid) {
    set_owner(end, current_task());
    request->service = service_of_end(datagram, end, &end->owner, side);
  }
  count_response(datagram, request, now);
}

// Reads the part of DNS's header that matters.
static __always_inline bool read_dns(struct datagram *datagram) {
  u8 header[DNS_HEADER];
  if (bpf_skb_load_bytes(datagram->skb, datagram->payload_at, header, sizeof(header)))
    return false;
  datagram->number = header[0] << 8 | header[1];
  datagram->is_response = !!(header[2] & DNS_IS_RESPONSE);
  datagram->code = header[3] & 15;
  return true;
}

static __always_inline void put_request_key(struct request_key *key, struct datagram *datagram, u8 side) {
  __builtin_memset(key, 0, sizeof(*key));
  key->cookie = bpf_get_socket_cookie(datagram->skb);
  __builtin_memcpy(key->address, datagram->remote, sizeof(datagram->remote));
  key->port = datagram->remote_port;
  key->side = side;
}

// Handles a datagram from or to the port of a service. One that leaves answers what arrived at this port, or
// asks at the other one; one that arrives answers what was asked there, or asks here. DNS says which. Between
// two ports of services, as in NTP's symmetric modes, the first datagram asks.
static __always_inline void handle(struct datagram *datagram, bool is_sent) {
  u16 server_port = is_sent ? datagram->local_port : datagram->remote_port;
  u16 asked = is_sent ? datagram->remote_port : datagram->local_port;
  u8 response_side = is_sent ? SIDE_SERVED : SIDE_USED, ask_side = is_sent ? SIDE_USED : SIDE_SERVED;
  bool may_response = is_service(server_port), may_ask = is_service(asked);
  u64 now = bpf_ktime_get_ns();
  struct request_key key;
  struct request request;
  if (server_port == DNS_PORT || asked == DNS_PORT) {
    if (!read_dns(datagram))
      return;
    may_response = server_port == DNS_PORT && datagram->is_response;
    may_ask = asked == DNS_PORT && !datagram->is_response;
  }
  if (may_response) {
    put_request_key(&key, datagram, response_side);
    key.number = datagram->number;
    int found = server_port == DNS_PORT ? take(&key, &request, now) : take_oldest(&key, &request, now);
    if (found == IS_TAKEN)
      on_response(datagram, &request, response_side, now);
    if (found != NOT_OPEN)
      return;
  }
  if (!may_ask)
    return;
  put_request_key(&key, datagram, ask_side);
  key.number = asked == DNS_PORT ? datagram->number : number_in_queue(&key);
  ask(datagram, &key, now);
}

// Sets the remote address: a connected socket's own, as the packet's may be translated on its way.
static __always_inline void put_remote(struct datagram *datagram, u32 *ip, bool is_v4, bool is_sent) {
  struct bpf_sock *sk = datagram->sk;
  u32 v6[4] = {sk->dst_ip6[0], sk->dst_ip6[1], sk->dst_ip6[2], sk->dst_ip6[3]};
  put_address(datagram->remote, sk, sk->dst_ip4, v6);
  if (datagram->skb->remote_port)
    return;
  u32 *from = ip + (is_v4 ? (is_sent ? 4 : 3) : (is_sent ? 6 : 2));
  datagram->remote[0] = is_v4 ? 0 : from[0];
  datagram->remote[1] = is_v4 ? 0 : from[1];
  datagram->remote[2] = is_v4 ? bpf_htonl(0xffff) : from[2];
  datagram->remote[3] = is_v4 ? from[0] : from[3];
}

static __always_inline int on_packet(struct __sk_buff *skb, bool is_sent) {
  u8 *ip = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end;
  if (ip + IPV4_HEADER + UDP_HEADER > end)
    return PASS;
  bool is_v4 = ip[0] >> 4 == 4;
  if ((is_v4 ? ip[9] : ip[6]) != IPPROTO_UDP)
    return PASS;
  u32 header = is_v4 ? (ip[0] & 15) * 4 : IPV6_HEADER;
  u8 *udp = ip + header;
  if (ip + IPV6_HEADER > end && !is_v4)
    return PASS;
  if (udp + UDP_HEADER > end)
    return PASS;
  struct datagram datagram = {.skb = skb, .local_port = skb->local_port, .payload_at = header + UDP_HEADER};
  u16 remote_port = bpf_ntohl(skb->remote_port);
  if (!remote_port)
    remote_port = bpf_ntohs(*(u16 *)(udp + (is_sent ? 2 : 0)));
  if (!is_service(datagram.local_port) && !is_service(remote_port))
    return PASS;
  datagram.remote_port = remote_port;
  datagram.bytes = bpf_ntohs(*(u16 *)(udp + 4)) - UDP_HEADER;
  datagram.sk = skb->sk;
  if (!datagram.sk)
    return PASS;
  datagram.sk = bpf_sk_fullsock(datagram.sk);
  if (!datagram.sk || datagram.sk->type != SOCK_DGRAM || datagram.sk->protocol != IPPROTO_UDP)
    return PASS;
  put_remote(&datagram, (u32 *)ip, is_v4, is_sent);
  handle(&datagram, is_sent);
  return PASS;
}

int skb__egress(struct __sk_buff *skb) { return on_packet(skb, true); }
int skb__ingress(struct __sk_buff *skb) { return on_packet(skb, false); }

// --- sockets -----------------------------------------------------------------------------------------------

// Notes the process that binds a socket to the port of a service.
static __always_inline int on_bind(struct bpf_sock *sk) {
  if (sk->protocol != IPPROTO_UDP || !is_service(sk->src_port))
    return PASS;
  struct end *end = ends.sk_storage_get((void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (end)
    set_owner(end, current_task());
  return PASS;
}

int sock__post_bind4(u64 *ctx) { return on_bind((struct bpf_sock *)(long)ctx); }
int sock__post_bind6(u64 *ctx) { return on_bind((struct bpf_sock *)(long)ctx); }

int sock__release(u64 *ctx) {
  struct bpf_sock *sk = (struct bpf_sock *)(long)ctx;
  if (sk->protocol != IPPROTO_UDP)
    return PASS;
  struct end *end = ends.sk_storage_get((void *)sk, 0, 0);
  if (!end || (s32)end->open <= 0)
    return PASS;
  u64 cookie = bpf_get_socket_cookie(sk), now = bpf_ktime_get_ns();
  closed.update(&cookie, &now);
  return PASS;
}

struct bpf_iter__task_file {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
  u32 fd, pad;
  void *file;
};

// Notes the processes of sockets that are bound already.
BPF_ITER(task_file) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  if (!task || !file)
    return 0;
  struct socket *socket = (struct socket *)bpf_sock_from_file(file);
  struct sock *sk = socket ? (struct sock *)socket->sk : NULL;
  if (!sk || (sk->skc_family != AF_INET && sk->skc_family != AF_INET6) || sk->sk_protocol != IPPROTO_UDP ||
      sk->sk_type != SOCK_DGRAM || !is_service(sk->skc_num))
    return 0;
  struct end *end = ends.sk_storage_get((void *)sk, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (end && !end->process)
    set_owner(end, task);
  return 0;
}
