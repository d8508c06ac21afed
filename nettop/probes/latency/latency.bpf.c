// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Measures where packets wait. A stage that begins at the wire needs one hook, because the kernel's receive
// timestamp tells when the packet arrived. Every other stage has two hooks: the first decides whether to
// follow the packet and stores it under its address, the second looks it up. A followed packet also counts
// for those skipped by sampling, so counts are estimates for all packets. The loader puts struct settings,
// struct packet, struct counts, struct key, struct pair, the -D numbers and the slices of kernel structs
// before this file.

#include <nettop/address.h>
#include <nettop/buckets.h>
#include <nettop/set_table.h>
#include <uapi/linux/ptrace.h>

#define AF_INET6 10
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN 1

#define TOP_BYTE 56
#define ADDRESS_MASK 0x00ffffffffffffffull
#define LONGEST_NS (1ull << 40) /* a longer duration means no timestamp, or one of another clock */

static u64 (*ktime_get_tai_ns)(void) = (void *)208; // bpf_ktime_get_tai_ns, since Linux 6.1

BPF_ARRAY(settings, struct settings, 1);

// State of each CPU by hook: the packets left to skip, and an address (see `plain`).
struct cpu {
  u64 address[HOOKS];
  u32 left[HOOKS];
};
BPF_PERCPU_ARRAY(cpus, struct cpu, 1);

BPF_PERCPU_ARRAY(counted, struct counts, STAGES *CLASSES);

// The followed packets, in the sets of their addresses. A packet is on one CPU at a time, but another CPU may
// reuse its entry meanwhile. To read or write an entry, a CPU first exchanges its key for CLAIMED.
#define CLAIMED 1ull /* not a valid key: the top byte of a key is never 0 */
struct followed_set {
  u64 keys[SET_ENTRIES];
  struct packet packets[SET_ENTRIES];
};
BPF_F_TABLE("array", u32, struct followed_set, followed, SETS, 1024 /* BPF_F_MMAPABLE */);

// The packets now in each stage. This is an upper bound: packets that are never seen again stay counted. If
// it is 0, lookups are skipped.
BPF_ARRAY(within, u64, STAGES);

// Pairs; each CPU has its own sets.
struct pair_set {
  struct pair entries[SET_ENTRIES];
};
BPF_F_TABLE("array", u32, struct pair_set, pairs, PAIR_SETS *PAIR_PARTITIONS, 1024 /* BPF_F_MMAPABLE */);
BPF_PERCPU_ARRAY(evicted, u64, 1);

#define ADD(number, amount) __sync_fetch_and_add(&(number), amount)

// --- packets -----------------------------------------------------------------------------------------------

static __always_inline u32 class_of(u8 protocol, bool is_v6) {
  u32 kind = protocol == IPPROTO_TCP                                  ? PROTOCOL_TCP
             : protocol == IPPROTO_UDP                                ? PROTOCOL_UDP
             : protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 ? PROTOCOL_ICMP
                                                                      : PROTOCOL_OTHER;
  return kind * FAMILIES + is_v6;
}

static __always_inline bool is_ip(u16 ethertype) {
  return ethertype == bpf_htons(ETH_P_IP) || ethertype == bpf_htons(ETH_P_IPV6);
}

struct header {
  u8 bytes[40];
};

// Reads the IP header at `at` and returns its class. IPv6 extension headers are not parsed.
static __always_inline u32 read_header(struct header *header, void *at) {
  if (bpf_probe_read_kernel(header, sizeof(*header), at))
    __builtin_memset(header, 0, sizeof(*header));
  bool is_v6 = header->bytes[0] >> 4 == 6;
  return class_of(is_v6 ? header->bytes[6] : header->bytes[9], is_v6);
}

// IPv4 over an IPv6 socket counts as IPv4.
static __always_inline u32 class_of_socket(struct sock *sk, u8 protocol) {
  u32 local[3] = {sk->skc_v6_rcv_saddr[0], sk->skc_v6_rcv_saddr[1], sk->skc_v6_rcv_saddr[2]};
  u32 remote[3] = {sk->skc_v6_daddr[0], sk->skc_v6_daddr[1], sk->skc_v6_daddr[2]};
  bool is_v6 = sk->skc_family == AF_INET6 && !is_mapped(local) && !is_mapped(remote);
  return class_of(protocol, is_v6);
}

static __always_inline void *network_header(struct sk_buff *skb) {
  return (void *)(skb->head + skb->network_header);
}

static __always_inline struct cpu *this_cpu() {
  int first = 0;
  return cpus.lookup(&first);
}

// Turns a pointer into a plain number, because the verifier allows no arithmetic on trusted pointers. Each
// hook has its own slot, because a program never interrupts itself on a CPU.
static __always_inline u64 plain(struct cpu *cpu, u32 hook, void *address) {
  *(volatile u64 *)&cpu->address[hook] = (u64)address;
  return *(volatile u64 *)&cpu->address[hook];
}

static __always_inline struct settings *chosen_settings() {
  int first = 0;
  return settings.lookup(&first);
}

// Returns the number of packets that this one represents; 0 to skip it. The gaps are random, because traffic
// may be periodic.
static __always_inline u32 weight_of(struct cpu *cpu, u32 hook) {
  u32 left = cpu->left[hook];
  if (left > 1) {
    cpu->left[hook] = left - 1;
    return 0;
  }
  struct settings *chosen = chosen_settings();
  u32 one_in = chosen ? chosen->one_in : 0;
  if (one_in > 1)
    cpu->left[hook] = 1 + bpf_get_prandom_u32() % (2 * one_in - 1);
  return one_in;
}

static __always_inline struct counts *counts_of(u32 stage, u32 class) {
  u32 place = stage * CLASSES + class;
  return counted.lookup(&place);
}

// Adds the weight of a packet to a term: seen, matched, dropped or unmatched.
#define COUNT(stage, class, term, weight)                                                                    \
  do {                                                                                                       \
    struct counts *counts = counts_of(stage, class);                                                         \
    if (counts)                                                                                              \
      ADD(counts->term, weight);                                                                             \
  } while (0)

// --- durations ---------------------------------------------------------------------------------------------

// Counts a duration for the pair in the header. A full set evicts the pair that was idle longest.
static __always_inline void count_pair(struct header *header, u32 stage, u32 class, u32 weight,
                                       u64 duration) {
  struct key key = {.stage_class = stage << 8 | class};
  if (class % FAMILIES) {
    __builtin_memcpy(key.source, &header->bytes[8], 16);
    __builtin_memcpy(key.destination, &header->bytes[24], 16);
  } else {
    key.source[2] = key.destination[2] = bpf_htonl(0xffff);
    __builtin_memcpy(&key.source[3], &header->bytes[12], 4);
    __builtin_memcpy(&key.destination[3], &header->bytes[16], 4);
  }
  u64 now = bpf_jiffies64();
  u32 place = bpf_get_smp_processor_id() % PAIR_PARTITIONS * PAIR_SETS + HASH_OF(key) % PAIR_SETS;
  struct pair_set *set = pairs.lookup(&place);
  if (!set)
    return;
  struct pair *pair = NULL, *idle = &set->entries[0];
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    if (set->entries[n].last_seen && IS_SAME(set->entries[n].key, key))
      pair = &set->entries[n];
    if (set->entries[n].last_seen < idle->last_seen)
      idle = &set->entries[n];
  }
  if (!pair) {
    int first = 0;
    u64 *gone = evicted.lookup(&first);
    if (idle->last_seen && gone)
      *gone += idle->packets;
    pair = idle;
    pair->first_seen = now;
    pair->packets = 0;
    __builtin_memset(pair->latency, 0, sizeof(pair->latency));
    pair->key = key;
  }
  pair->last_seen = now;
  pair->packets += weight;
  u64 bucket = bucket_of(duration, PAIR_DIVIDED_BY_BITS);
  if (bucket < PAIR_BUCKETS)
    pair->latency[bucket] += weight;
}

static __always_inline void count_duration(u32 stage, u32 class, u32 weight, u64 duration) {
  struct counts *counts = counts_of(stage, class);
  if (!counts)
    return;
  ADD(counts->matched, weight);
  u64 bucket = bucket_of(duration, DIVIDED_BY_BITS);
  if (bucket < BUCKETS)
    ADD(counts->latency[bucket], weight);
}

// --- from the wire -----------------------------------------------------------------------------------------

// Counts the time since the packet with the IP header at `at` was timestamped. Until delivery, packets that
// this machine's own TCP sent carry their send time instead, by CLOCK_MONOTONIC.
static __always_inline void since_wire(u32 stage, u64 stamp, void *at, u32 weight) {
  struct settings *chosen = chosen_settings();
  struct header header;
  if (!chosen)
    return;
  u64 duration = ktime_get_tai_ns() - chosen->tai_ahead_ns - stamp;
  if (duration > LONGEST_NS)
    duration = bpf_ktime_get_ns() - stamp;
  u32 class = read_header(&header, at);
  COUNT(stage, class, seen, weight);
  if (!stamp || duration > LONGEST_NS) {
    COUNT(stage, class, unmatched, weight);
    return;
  }
  count_duration(stage, class, weight, duration);
  count_pair(&header, stage, class, weight, duration);
}

// --- from hook to hook -------------------------------------------------------------------------------------

static __always_inline struct followed_set *set_of(u64 address) {
  u32 place = ((address >> 6) * 0x9E3779B97F4A7C15ull >> 40) % SETS;
  return followed.lookup(&place);
}

static __always_inline u64 key_of(u64 address, u32 stage) {
  return (address & ADDRESS_MASK) | (u64)(stage + 1) << TOP_BYTE;
}

static __always_inline u32 stage_of(u64 key) { return (key >> TOP_BYTE) - 1; }

// Returns the order in which entries are reused: first the packet's own earlier entry, then free ones, this
// CPU's before others, then the oldest; never one claimed by another CPU.
static __always_inline u64 rank_of(struct followed_set *set, u32 n, u64 key, u32 own) {
  if (set->keys[n] == key)
    return 0;
  if (!set->keys[n])
    return 1 + (n != own % SET_ENTRIES);
  if (set->keys[n] == CLAIMED)
    return ~0ull;
  return 3 + set->packets[n].since;
}

static __always_inline void count_within(u32 stage, s64 change) {
  u64 *packets = within.lookup(&stage);
  if (packets)
    ADD(*packets, change);
}

static __always_inline bool has_any(u32 stage) {
  u64 *packets = within.lookup(&stage);
  return packets && *packets;
}

// Stores the packet at this address, with the number of packets it represents. An entry that it replaces
// missed the end of its stage and counts as unmatched; so does this packet if another CPU takes the entry
// first.
static __always_inline void follow(u64 address, u64 check, u32 stage, u32 class, u32 weight) {
  struct followed_set *set = set_of(address);
  if (!set)
    return;
  u64 key = key_of(address, stage), least = ~0ull;
  u32 place = 0, own = bpf_get_smp_processor_id();
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    u64 rank = rank_of(set, n, key, own);
    if (rank < least) {
      least = rank;
      place = n;
    }
  }
  struct packet *packet = &set->packets[place & (SET_ENTRIES - 1)];
  u64 *entry = &set->keys[place & (SET_ENTRIES - 1)];
  u64 before = __sync_lock_test_and_set(entry, CLAIMED);
  if (before == CLAIMED) {
    COUNT(stage, class, unmatched, weight);
    return;
  }
  if (before) {
    COUNT(stage_of(before), packet->class, unmatched, packet->weight);
    count_within(stage_of(before), -1);
  }
  packet->since = bpf_ktime_get_ns();
  packet->check = check;
  packet->class = class;
  packet->weight = weight;
  count_within(stage, 1);
  __sync_lock_test_and_set(entry, key);
}

// Copies and frees an entry if it still has this key.
static __always_inline bool take_entry(struct packet *packet, struct followed_set *set, u32 n, u64 key) {
  if (set->keys[n] != key || __sync_val_compare_and_swap(&set->keys[n], key, CLAIMED) != key)
    return false;
  *packet = set->packets[n];
  __sync_lock_test_and_set(&set->keys[n], 0);
  count_within(stage_of(key), -1);
  return true;
}

// Takes the packet at this address out of the table; false if it is not followed.
static __always_inline bool take(struct packet *packet, u64 address, u32 stage) {
  struct followed_set *set = has_any(stage) ? set_of(address) : NULL;
  if (!set)
    return false;
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++)
    if (take_entry(packet, set, n, key_of(address, stage)))
      return true;
  return false;
}

static __always_inline void begin(u64 address, u64 check, u32 stage, void *at, u32 weight) {
  struct header header;
  u32 class = read_header(&header, at);
  COUNT(stage, class, seen, weight);
  follow(address, check, stage, class, weight);
}

// A failed check means that another packet reused the address; the followed one is then unmatched.
static __always_inline void end(struct packet *packet, u64 check, u32 stage, void *at) {
  struct header header;
  u64 duration = bpf_ktime_get_ns() - packet->since;
  if (packet->check != check) {
    COUNT(stage, packet->class, unmatched, packet->weight);
    return;
  }
  count_duration(stage, packet->class, packet->weight, duration);
  read_header(&header, at);
  count_pair(&header, stage, packet->class, packet->weight, duration);
}

// --- receiving ---------------------------------------------------------------------------------------------

int tp_btf__netif_rx(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct cpu *cpu = this_cpu();
  if (!cpu || !is_ip(skb->protocol))
    return 0;
  u32 weight = weight_of(cpu, HOOK_NETIF_RX);
  if (weight)
    begin(plain(cpu, HOOK_NETIF_RX, skb), skb->tstamp, STAGE_BACKLOG, (void *)skb->data, weight);
  return 0;
}

int tp_btf__netif_receive_skb(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct cpu *cpu = this_cpu();
  if (!cpu || !is_ip(skb->protocol))
    return 0;
  struct packet packet;
  if (take(&packet, plain(cpu, HOOK_NETIF_RECEIVE_SKB, skb), STAGE_BACKLOG))
    end(&packet, skb->tstamp, STAGE_BACKLOG, (void *)skb->data);
  u32 weight = weight_of(cpu, HOOK_NETIF_RECEIVE_SKB);
  if (weight)
    since_wire(STAGE_WIRE_IP, skb->tstamp, (void *)skb->data, weight);
  return 0;
}

// --- sockets -----------------------------------------------------------------------------------------------

// The first members of struct tcp_skb_cb (include/net/tcp.h), which TCP keeps in each packet.
struct tcp_control {
  u32 sequence, end_sequence, other;
  u8 flags;
};

static __always_inline void read_control(struct tcp_control *control, struct sk_buff *skb) {
  if (bpf_probe_read_kernel(control, sizeof(*control), skb->cb))
    __builtin_memset(control, 0, sizeof(*control));
}

// Sees segments that are about to be queued if they have data. When others are merged into a segment, it
// keeps its sequence number, but not its timestamp.
int tp_btf__tcp_probe(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[1];
  struct cpu *cpu = this_cpu();
  u32 weight = cpu ? weight_of(cpu, HOOK_TCP_PROBE) : 0;
  if (!weight)
    return 0;
  struct tcp_control control;
  since_wire(STAGE_WIRE_SOCKET, skb->tstamp, network_header(skb), weight);
  read_control(&control, skb);
  if (control.end_sequence - control.sequence > (control.flags & TCP_FIN))
    begin(plain(cpu, HOOK_TCP_PROBE, skb), control.sequence, STAGE_SOCKET_WAIT, network_header(skb), weight);
  return 0;
}

// Sees queued datagrams: the last one in the queue, unless a reader has taken it already.
int tp_btf__sk_data_ready(u64 *ctx) {
  struct sock *sk = (struct sock *)ctx[0];
  struct cpu *cpu = this_cpu();
  if (!cpu || sk->sk_protocol != IPPROTO_UDP)
    return 0;
  u32 weight = weight_of(cpu, HOOK_UDP_QUEUED);
  if (!weight)
    return 0;
  struct sk_buff *skb = (struct sk_buff *)sk->last_queued;
  u64 queue = plain(cpu, HOOK_UDP_QUEUED, sk) + __builtin_offsetof(struct sock, first_queued);
  if (plain(cpu, HOOK_UDP_QUEUED, skb) != queue) {
    since_wire(STAGE_WIRE_SOCKET, skb->tstamp, network_header(skb), weight);
    return 0;
  }
  u32 class = class_of_socket(sk, IPPROTO_UDP);
  COUNT(STAGE_WIRE_SOCKET, class, seen, weight);
  COUNT(STAGE_WIRE_SOCKET, class, unmatched, weight);
  return 0;
}

// Sees data being copied to the application. UDP datagrams, which belong to no socket by then, may or may not
// pass here: they are counted elsewhere.
int tp_btf__skb_copy_datagram_iovec(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct sock *sk = (struct sock *)skb->sk;
  struct cpu *cpu = this_cpu();
  if (!cpu || !sk || !is_ip(skb->protocol))
    return 0;
  struct packet packet;
  if (take(&packet, plain(cpu, HOOK_COPIED, skb), STAGE_SOCKET_WAIT)) {
    struct tcp_control control;
    read_control(&control, skb);
    end(&packet, control.sequence, STAGE_SOCKET_WAIT, network_header(skb));
  }
  u32 weight = weight_of(cpu, HOOK_COPIED);
  if (weight)
    since_wire(STAGE_WIRE_APP, skb->tstamp, network_header(skb), weight);
  return 0;
}

// --- sending -----------------------------------------------------------------------------------------------

int tp_btf__net_dev_queue(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct cpu *cpu = this_cpu();
  if (!cpu || !is_ip(skb->protocol))
    return 0;
  u32 weight = weight_of(cpu, HOOK_NET_DEV_QUEUE);
  if (weight)
    begin(plain(cpu, HOOK_NET_DEV_QUEUE, skb), skb->tstamp, STAGE_QDISC, network_header(skb), weight);
  return 0;
}

int tp_btf__net_dev_start_xmit(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct cpu *cpu = has_any(STAGE_QDISC) ? this_cpu() : NULL;
  struct packet packet;
  if (cpu && take(&packet, plain(cpu, HOOK_NET_DEV_START_XMIT, skb), STAGE_QDISC))
    end(&packet, skb->tstamp, STAGE_QDISC, network_header(skb));
  return 0;
}

// --- dropping ----------------------------------------------------------------------------------------------

int tp_btf__kfree_skb(u64 *ctx) {
  struct cpu *cpu = this_cpu();
  if (!cpu)
    return 0;
  u64 address = plain(cpu, HOOK_KFREE_SKB, (void *)ctx[0]);
  struct followed_set *set = set_of(address);
  if (!set)
    return 0;
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    struct packet packet;
    u64 key = set->keys[n];
    if (!key || (key ^ address) & ADDRESS_MASK || !take_entry(&packet, set, n, key))
      continue;
    COUNT(stage_of(key), packet.class, dropped, packet.weight);
  }
  return 0;
}

// --- connections -------------------------------------------------------------------------------------------

static __always_inline void connected(struct sock *sk, u32 class) {
  struct tcp_sock *tp = (struct tcp_sock *)sk;
  u32 srtt_us = 0, data_segs_in = 0; // srtt_us has one sample so far: from our SYN-ACK to its ACK
  u64 bytes_received = 0;
  bpf_probe_read_kernel(&srtt_us, sizeof(srtt_us), &tp->srtt_us);
  bpf_probe_read_kernel(&data_segs_in, sizeof(data_segs_in), &tp->data_segs_in);
  bpf_probe_read_kernel(&bytes_received, sizeof(bytes_received), &tp->bytes_received);
  // An ACK with data may be late, as with TCP_DEFER_ACCEPT; with Fast Open the data came with the SYN.
  bool has_data = data_segs_in && !bytes_received;
  COUNT(STAGE_HANDSHAKE, class, seen, 1);
  if (srtt_us && !has_data)
    count_duration(STAGE_HANDSHAKE, class, 1, (u64)(srtt_us >> 3) * 1000);
  else
    COUNT(STAGE_HANDSHAKE, class, unmatched, 1);
}

// Every handshake is followed, because they are few compared with packets.
int tp_btf__inet_sock_set_state(u64 *ctx) {
  struct sock *sk = (struct sock *)ctx[0];
  int before = ctx[1], now = ctx[2];
  struct cpu *cpu = this_cpu();
  if (!cpu || sk->sk_protocol != IPPROTO_TCP)
    return 0;
  u32 class = class_of_socket(sk, IPPROTO_TCP);
  u64 address = plain(cpu, HOOK_SET_STATE, sk);
  if (now == TCP_SYN_SENT) {
    COUNT(STAGE_HANDSHAKE, class, seen, 1);
    follow(address, 0, STAGE_HANDSHAKE, class, 1);
  } else if (before == TCP_SYN_SENT) {
    struct packet syn;
    struct counts *counts =
        take(&syn, address, STAGE_HANDSHAKE) ? counts_of(STAGE_HANDSHAKE, syn.class) : NULL;
    if (counts && now == TCP_ESTABLISHED)
      count_duration(STAGE_HANDSHAKE, class, 1, bpf_ktime_get_ns() - syn.since);
    else if (counts)
      ADD(counts->dropped, 1);
  } else if (before == TCP_SYN_RECV && now == TCP_ESTABLISHED) {
    connected(sk, class);
  }
  return 0;
}

// --- functions of the kernel -------------------------------------------------------------------------------

static __always_inline u64 stamp_of(struct sk_buff *skb) {
  u64 stamp = 0;
  bpf_probe_read_kernel(&stamp, sizeof(stamp), &skb->tstamp);
  return stamp;
}

static __always_inline void *header_of(struct sk_buff *skb) {
  void *head = NULL;
  u16 at = 0;
  bpf_probe_read_kernel(&head, sizeof(head), &skb->head);
  bpf_probe_read_kernel(&at, sizeof(at), &skb->network_header);
  return head + at;
}

static __always_inline int ip_begins(struct cpu *cpu, u64 address) {
  struct sk_buff *skb = (struct sk_buff *)address;
  void *data = NULL;
  u32 weight = weight_of(cpu, HOOK_IP_BEGINS);
  if (!weight)
    return 0;
  bpf_probe_read_kernel(&data, sizeof(data), &skb->data);
  begin(address, stamp_of(skb), STAGE_IP, data, weight);
  return 0;
}

static __always_inline int ip_ends(struct cpu *cpu, u64 address) {
  struct packet packet;
  if (take(&packet, address, STAGE_IP))
    end(&packet, stamp_of((struct sk_buff *)address), STAGE_IP, header_of((struct sk_buff *)address));
  return 0;
}

static __always_inline int udp_queues(struct cpu *cpu, u64 address) {
  struct sk_buff *skb = (struct sk_buff *)address;
  u32 weight = weight_of(cpu, HOOK_UDP_QUEUED);
  if (!weight)
    return 0;
  since_wire(STAGE_WIRE_SOCKET, stamp_of(skb), header_of(skb), weight);
  begin(address, stamp_of(skb), STAGE_SOCKET_WAIT, header_of(skb), weight);
  return 0;
}

// Skips datagrams that are only peeked at: the queue still holds a reference to them.
static __always_inline int udp_reads(struct cpu *cpu, u64 address) {
  struct sk_buff *skb = (struct sk_buff *)address;
  u32 users = 0;
  bpf_probe_read_kernel(&users, sizeof(users), &skb->users);
  if (users > 1)
    return 0;
  struct packet packet;
  if (take(&packet, address, STAGE_SOCKET_WAIT))
    end(&packet, stamp_of(skb), STAGE_SOCKET_WAIT, header_of(skb));
  u32 weight = weight_of(cpu, HOOK_UDP_READ);
  if (weight)
    since_wire(STAGE_WIRE_APP, stamp_of(skb), header_of(skb), weight);
  return 0;
}

// Defines the programs at the entry of a kernel function that takes the packet as this argument: one for
// fentry, one for kprobes.
#define AT_FENTRY(name, hook, argument)                                                                      \
  int fentry__##name(u64 *ctx) {                                                                             \
    struct cpu *cpu = this_cpu();                                                                            \
    return cpu ? name(cpu, plain(cpu, hook, (void *)ctx[argument - 1])) : 0;                                 \
  }
#ifdef HAS_KPROBES
#define AT_ENTRY(name, hook, argument)                                                                       \
  AT_FENTRY(name, hook, argument)                                                                            \
  int entry__##name(struct pt_regs *ctx) {                                                                   \
    struct cpu *cpu = this_cpu();                                                                            \
    return cpu ? name(cpu, PT_REGS_PARM##argument(ctx)) : 0;                                                 \
  }
#else
#define AT_ENTRY(name, hook, argument) AT_FENTRY(name, hook, argument)
#endif

AT_ENTRY(ip_begins, HOOK_IP_BEGINS, 1)
AT_ENTRY(ip_ends, HOOK_IP_ENDS, 1)
AT_ENTRY(udp_queues, HOOK_UDP_QUEUED, 2)
AT_ENTRY(udp_reads, HOOK_UDP_READ, 2)
