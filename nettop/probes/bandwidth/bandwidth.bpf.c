// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Counts what each interface receives and sends, by protocol, service and flow. XDP or TC (TCX) sees received
// packets, the tracepoint at which the driver takes packets sees sent ones. Every packet passes unchanged.
// The loader puts struct counts, struct key, struct flow, struct evicted, struct interface and the -D numbers
// before this file.

#include <nettop/set_table.h>
#include <nettop/value.h>
#include <nettop/verifier.h>
#include <uapi/linux/ptrace.h>

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETHERNET_BYTES 14
#define VLAN_BYTES 4
#define VLAN_TAGS_MAX 3
#define IP_OFFSET_MASK 0x1fff
#define IP_MORE_FRAGMENTS 0x2000
#define IPV6_OFFSET_MASK 0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH 51
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define EXTENSIONS_MAX 6
#define EXTENSION_BYTES 8 /* the shortest; a fragment header has no length */
#define TCP_FLAGS_END 14
#define TCP_LENGTH_AT 12
#define UDP_BYTES 8
#define SCTP_BYTES 12
#define HEADERS_BYTES 72 /* one read for Ethernet, VLAN, IPv6 and TCP up to its flags: a read takes 20 ns */
#define HEADERS_MASK 0x7f
#define COPY_AT 80        /* in `headers`: header bytes that are not among the first HEADERS_BYTES */
#define OFFSET_MAX 0x1fff /* the most that the verifier lets a packet pointer move */
#define XDP_PASSED 2
#define TC_NEXT -1
#define NETDEV_TX_OK 0
#define FRAGMENTED_MAX 256 /* datagrams whose later fragments a CPU recognizes */

// The kind of an aggregate (SKB_GSO_* in include/linux/skbuff.h): TCP over IPv4 or IPv6, SCTP, UDP; tunnels:
// GRE, IP in IPv4 or IPv6, UDP (VXLAN, Geneve, FOU), some of them with a checksum.
#define GSO_TCP (1 << 0 | 1 << 4)
#define GSO_SCTP (1 << 14)
#define GSO_UDP (1 << 17)
#define GSO_TUNNEL (1 << 6 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11)
#define SEGMENT_HEADERS_MAX 512

// A redundant mask that the compiler would remove but the verifier needs: before Linux 6.4 the verifier does
// not know that a byte-swapped u16 has 16 bits, and before 6.8 it explores branches that a comparison with a
// constant on its left rules out.
#define BOUND(value, mask) asm volatile("%0 &= %1" : "+r"(value) : "i"(mask))

struct ethernet {
  u16 to[3], from[3], type;
};

struct ipv4 {
  u8 version_length, service;
  u16 length, id, offset;
  u8 hops, protocol;
  u16 checksum;
  u32 source, destination;
};

struct ipv6 {
  u32 version;
  u16 length;
  u8 next, hops;
  u32 source[4], destination[4];
};

struct tcp {
  u16 ports[2];
  u32 sequence, acknowledged;
  u8 length, flags;
};

// The counted interfaces of nettop's own network namespace, each in the set of its index. A hash table would
// take 20 to 40 ns more.
struct interface_set {
  struct interface entries[INTERFACE_SET_ENTRIES];
};
BPF_ARRAY(interfaces, struct interface_set, INTERFACE_SETS);

BPF_PERCPU_ARRAY(received, struct counts, INTERFACES_MAX);
BPF_PERCPU_ARRAY(sent, struct counts, INTERFACES_MAX);

// The service of each port: TCP ports first, then UDP ports.
struct services {
  u8 of[PORTS_MASK + 1];
};
BPF_ARRAY(services, struct services, 1);

// What is known about the current packet.
struct packet {
  struct key key;
  u32 datagram;      // the ID that its fragments share
  u16 ethertype, at; // offset of the next header to parse
  u16 transport_at;  // offset of the transport header; 0 if unknown
  u8 protocol, cast, service, tcp_flags;
  u8 is_fragment, is_later_fragment;
  u64 packets, bytes; // on the wire; parsing leaves these alone
};

// State of each CPU and hook: the time of its tick, and the current packet. For sent packets also the first
// bytes of the packet, and what was counted for it: it is subtracted again if the driver refuses it.
enum hook { HOOK_XDP, HOOK_TC, HOOK_SENT, HOOKS };
struct cpu {
  u64 tick, tick_ns;
  u64 skb;
  u32 slot, set, linear, place;
  u8 entry;
  struct packet packet;
  u8 headers[HEADERS_MASK + 1 + sizeof(struct ipv6)];
};
BPF_PERCPU_ARRAY(cpus, struct cpu, HOOKS);

// Packets that a driver refused but that stay counted, because another device's packet was sent in between.
BPF_PERCPU_ARRAY(refused, u64, 1);

// The ports of fragmented datagrams, which only the first fragment has. The table is direct-mapped: the first
// fragment of another datagram overwrites an entry.
struct fragmented {
  u64 datagram;
  u16 local_port, remote_port;
};
BPF_PERCPU_ARRAY(fragmented, struct fragmented, FRAGMENTED_MAX);

#ifdef FLOW_SETS
// Each CPU has its own sets, so nothing is shared and no atomic operations are needed. A full set evicts the
// flow that was idle longest and adds its counters to `evicted`.
struct flow_set {
  struct flow entries[SET_ENTRIES];
};
BPF_F_TABLE("array", u32, struct flow_set, flows, FLOW_SETS *FLOW_PARTITIONS, 1024 /* BPF_F_MMAPABLE */);
BPF_PERCPU_ARRAY(evicted, struct evicted, 1);
#endif

// The bytes of a packet: packet memory of a context of the hook, or for HOOK_SENT kernel memory at `data`.
struct source {
  enum hook hook;
  void *ctx;
  void *data;
  struct cpu *cpu;
};

// Returns the bytes at `at`; NULL if the packet is too short.
static __always_inline void *bytes_at(struct source *from, u32 at, u32 size) {
  struct cpu *cpu = from->cpu;
  if (at > OFFSET_MAX)
    return NULL;
  if (from->hook != HOOK_SENT) {
    // Loaded again for each header: a pointer remembers how many bytes were checked, so states would differ
    // by it.
    void *data, *end;
    END_STAGE();
    if (from->hook == HOOK_XDP) {
      data = (void *)(long)((struct xdp_md *)from->ctx)->data;
      end = (void *)(long)((struct xdp_md *)from->ctx)->data_end;
    } else {
      data = (void *)(long)((struct __sk_buff *)from->ctx)->data;
      end = (void *)(long)((struct __sk_buff *)from->ctx)->data_end;
    }
    return data + at + size > end ? NULL : data + at;
  }
  if (at + size > cpu->linear)
    return NULL;
  cpu->place = at;
  if (at > HEADERS_BYTES - size) {
    if (bpf_probe_read_kernel(cpu->headers + COPY_AT, size, from->data + at))
      return NULL;
    cpu->place = COPY_AT;
  }
  END_STAGE();
  u64 place = cpu->place;
  BOUND(place, HEADERS_MASK);
  return cpu->headers + place;
}

// --- parsing -----------------------------------------------------------------------------------------------

static __always_inline u8 kind_of(u8 protocol) {
  switch (protocol) {
  case IPPROTO_TCP:
    return KIND_TCP;
  case IPPROTO_UDP:
    return KIND_UDP;
  case IPPROTO_ICMP:
    return KIND_ICMP;
  case IPPROTO_ICMPV6:
    return KIND_ICMPV6;
  case IPPROTO_SCTP:
    return KIND_SCTP;
  }
  return KIND_OTHER;
}

static __always_inline void put_addresses(struct key *key, u32 *source, u32 *destination, bool is_received) {
  u32 *local = is_received ? destination : source, *remote = is_received ? source : destination;
  __builtin_memcpy(key->local_address, local, sizeof(key->local_address));
  __builtin_memcpy(key->remote_address, remote, sizeof(key->remote_address));
}

// Parses the IP header, and moves on to the next one, whose protocol is put in the key. Returns whether there
// is one.
static __always_inline bool parse_v4(struct source *from, struct packet *packet, bool is_received) {
  u32 at = packet->at;
  struct ipv4 *header = bytes_at(from, at, sizeof(*header));
  if (!header)
    return false;
  struct key *key = &packet->key;
  key->local_address[2] = key->remote_address[2] = bpf_htonl(0xffff);
  key->local_address[3] = is_received ? header->destination : header->source;
  key->remote_address[3] = is_received ? header->source : header->destination;
  key->protocol = header->protocol;
  packet->datagram = header->id;
  packet->is_fragment = (header->offset & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS)) != 0;
  packet->is_later_fragment = (header->offset & bpf_htons(IP_OFFSET_MASK)) != 0;
  packet->at = at + (header->version_length & 0xf) * 4;
  return true;
}

static __always_inline bool parse_v6(struct source *from, struct packet *packet, bool is_received) {
  u32 at = packet->at;
  struct ipv6 *header = bytes_at(from, at, sizeof(*header));
  if (!header)
    return false;
  put_addresses(&packet->key, header->source, header->destination, is_received);
  packet->key.protocol = header->next;
  packet->at = at + sizeof(*header);
#pragma nounroll
  for (int n = 0; n < EXTENSIONS_MAX; n++) {
    END_STAGE();
    u8 next = packet->key.protocol;
    // Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, Shim6.
    if (next != 0 && next != 43 && next != IPPROTO_FRAGMENT && next != IPPROTO_AH && next != 60 &&
        next != 135 && next != 139 && next != 140)
      break;
    END_STAGE();
    next = packet->key.protocol;
    at = packet->at;
    u8 *extension = bytes_at(from, at, EXTENSION_BYTES);
    if (!extension)
      return false;
    packet->key.protocol = extension[0];
    if (next == IPPROTO_FRAGMENT) {
      u16 offset = *(u16 *)&extension[2];
      packet->datagram = *(u32 *)&extension[4];
      packet->is_fragment = (offset & bpf_htons(IPV6_OFFSET_MASK | IPV6_MORE_FRAGMENTS)) != 0;
      packet->is_later_fragment = (offset & bpf_htons(IPV6_OFFSET_MASK)) != 0;
      packet->at = at + EXTENSION_BYTES;
    } else {
      packet->at = at + (next == IPPROTO_AH ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8);
    }
    END_STAGE();
    if (packet->is_later_fragment)
      break;
  }
  return true;
}

static __always_inline u8 service_at(struct services *services_of_ports, u64 at) {
  BOUND(at, PORTS_MASK);
  return services_of_ports->of[at];
}

static __always_inline u8 service_of(struct key *key) {
  int first = 0;
  struct services *services_of_ports = services.lookup(&first);
  if (!services_of_ports)
    return 0;
  u32 udp = key->protocol == IPPROTO_UDP ? 1 << 16 : 0;
  bool is_local_lower = key->local_port < key->remote_port;
  u16 lower = is_local_lower ? key->local_port : key->remote_port;
  u16 higher = is_local_lower ? key->remote_port : key->local_port;
  u8 service = service_at(services_of_ports, udp + lower);
  return service ? service : service_at(services_of_ports, udp + higher);
}

// Returns the slot for the ports of a packet's datagram, which may hold another datagram's.
static __always_inline struct fragmented *fragmented_of(struct packet *packet, u64 *datagram) {
  struct key key = packet->key;
  key.protocol = 0; // in IPv6, a later fragment names the header after its own
  key.local_port = packet->datagram;
  key.remote_port = packet->datagram >> 16;
  *datagram = HASH_OF(key);
  int place = *datagram % FRAGMENTED_MAX;
  return fragmented.lookup(&place);
}

static __always_inline void remember_ports(struct packet *packet) {
  u64 datagram;
  struct fragmented *of = fragmented_of(packet, &datagram);
  if (!of)
    return;
  of->datagram = datagram;
  of->local_port = packet->key.local_port;
  of->remote_port = packet->key.remote_port;
}

// Takes the ports from the first fragment; without it they are unknown, which is not port 0.
static __always_inline bool recall_ports(struct packet *packet) {
  u64 datagram;
  struct fragmented *of = fragmented_of(packet, &datagram);
  bool is_known = of && of->datagram == datagram;
  packet->key.has_unknown_ports = !is_known;
  if (is_known) {
    packet->key.local_port = of->local_port;
    packet->key.remote_port = of->remote_port;
  }
  return is_known;
}

// Reads the ports of protocols that have them.
static __always_inline void parse_transport(struct source *from, struct packet *packet, bool is_received) {
  struct key *key = &packet->key;
  u32 at = packet->transport_at;
  if (!at || (packet->protocol != KIND_TCP && packet->protocol != KIND_UDP && packet->protocol != KIND_SCTP))
    return;
  END_STAGE();
  if (packet->is_later_fragment) {
    if (!recall_ports(packet))
      return;
  } else {
    struct tcp *tcp = bytes_at(from, at, sizeof(tcp->ports));
    if (!tcp)
      return;
    key->local_port = bpf_ntohs(tcp->ports[is_received]);
    key->remote_port = bpf_ntohs(tcp->ports[!is_received]);
#ifdef FLOW_SETS
    if (packet->protocol == KIND_TCP && (tcp = bytes_at(from, at, TCP_FLAGS_END)))
      packet->tcp_flags = tcp->flags;
#endif
    END_STAGE();
    if (packet->is_fragment)
      remember_ports(packet);
  }
  END_STAGE();
  if (packet->protocol != KIND_SCTP)
    packet->service = service_of(key);
}

static __always_inline void parse_ethernet(struct source *from, struct packet *packet) {
  struct ethernet *header = bytes_at(from, 0, sizeof(*header));
  if (!header)
    return;
  if ((header->to[0] & header->to[1] & header->to[2]) == 0xffff)
    packet->cast = KIND_BROADCAST;
  else if (*(u8 *)header->to & 1)
    packet->cast = KIND_MULTICAST;
  u16 type = bpf_ntohs(header->type);
  packet->ethertype = type;
  packet->at = ETHERNET_BYTES;
  if (type != ETH_P_8021Q && type != ETH_P_8021AD)
    return;
#pragma nounroll
  for (int n = 0; n < VLAN_TAGS_MAX; n++) {
    END_STAGE();
    if (packet->ethertype != ETH_P_8021Q && packet->ethertype != ETH_P_8021AD)
      break;
    u32 at = packet->at;
    u16 *tag = bytes_at(from, at, VLAN_BYTES);
    if (!tag)
      break;
    packet->ethertype = bpf_ntohs(tag[1]);
    packet->at = at + VLAN_BYTES;
  }
}

static __always_inline void parse(struct source *from, bool has_ethernet, bool is_received) {
  struct packet *packet = &from->cpu->packet;
  __builtin_memset(packet, 0, __builtin_offsetof(struct packet, packets));
  packet->protocol = KIND_OTHER;
  packet->key.protocol = PROTOCOL_NOT_IP;
  if (has_ethernet) {
    parse_ethernet(from, packet);
  } else {
    u8 *version = bytes_at(from, 0, sizeof(*version));
    if (version)
      packet->ethertype = *version >> 4 == 4 ? ETH_P_IP : *version >> 4 == 6 ? ETH_P_IPV6 : 0;
  }
  END_STAGE();
  u16 ethertype = packet->ethertype;
  if (ethertype == ETH_P_ARP)
    packet->protocol = KIND_ARP;
  if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6) {
    packet->key.remote_port = ethertype;
    return;
  }
  bool has_next =
      ethertype == ETH_P_IP ? parse_v4(from, packet, is_received) : parse_v6(from, packet, is_received);
  if (has_next)
    packet->transport_at = packet->at;
  END_STAGE();
  packet->protocol = kind_of(packet->key.protocol);
  END_STAGE();
  parse_transport(from, packet, is_received);
}

// --- counting ----------------------------------------------------------------------------------------------

// Returns the bytes of headers that each segment of an aggregate has: up to the end of the transport header,
// or of the inner one in a tunnel, at the offset that the kernel keeps for segmentation. After decapsulation
// that offset may still be the outer header's, so the parsed one is preferred.
static __always_inline u32 segment_headers(struct sk_buff *skb, u32 gso_type, u16 transport_at) {
  u64 head = 0, data = 0;
  u16 at = 0;
  u8 tcp_length = 0;
  read_kernel(&head, sizeof(head), &skb->head);
  read_kernel(&data, sizeof(data), &skb->data);
  if (gso_type & GSO_TUNNEL)
    read_kernel(&at, sizeof(at), &skb->inner_transport_header);
  else if (transport_at)
    at = data - head + transport_at;
  else
    read_kernel(&at, sizeof(at), &skb->transport_header);
  u32 bytes = head + at - data;
  if (gso_type & GSO_TCP)
    read_kernel(&tcp_length, sizeof(tcp_length), (void *)head + at + TCP_LENGTH_AT);
  bytes += gso_type & GSO_TCP    ? (tcp_length >> 4) * 4
           : gso_type & GSO_UDP  ? UDP_BYTES
           : gso_type & GSO_SCTP ? SCTP_BYTES
                                 : 0;
  return bytes <= SEGMENT_HEADERS_MAX ? bytes : 0;
}

static __always_inline struct skb_shared_info shared_info_of(struct sk_buff *skb) {
  struct skb_shared_info shared = {};
  u64 head = 0;
  u32 end = 0;
  read_kernel(&head, sizeof(head), &skb->head);
  read_kernel(&end, sizeof(end), &skb->end);
  read_kernel(&shared, sizeof(shared), (void *)head + end);
  return shared;
}

// Determines the size on the wire of a packet of `length` bytes, with a tag that is not in memory. If it is
// an aggregate (GSO, GRO), it is several packets there: each but the first has headers of its own, which are
// not in memory.
static __always_inline void put_on_wire(struct packet *packet, struct sk_buff *skb,
                                        struct skb_shared_info *shared, u32 length, u32 tag_bytes) {
  packet->packets = 1;
  packet->bytes = length + tag_bytes;
  if (!shared->gso_size)
    return;
  u32 header_bytes = segment_headers(skb, shared->gso_type, packet->transport_at);
  if (shared->gso_segs)
    packet->packets = shared->gso_segs;
  else if (length > header_bytes) // a guest's, whose segments are not counted yet
    packet->packets = (length - header_bytes + shared->gso_size - 1) / shared->gso_size;
  END_STAGE();
  packet->bytes += (packet->packets - 1) * (header_bytes + tag_bytes);
}

#define ADD(counts, kind, number, length)                                                                    \
  do {                                                                                                       \
    (counts)->packets[(kind) & (KINDS - 1)] += number;                                                       \
    (counts)->bytes[(kind) & (KINDS - 1)] += length;                                                         \
  } while (0)

static __always_inline void add(struct counts *counts, struct packet *packet, u64 packets, u64 bytes) {
  u8 service = packet->service;
  ADD(counts, packet->protocol, packets, bytes);
  if (packet->cast)
    ADD(counts, packet->cast, packets, bytes);
  ADD(counts, service ? service : KIND_NO_SERVICE, packets, bytes);
}

#ifdef FLOW_SETS
static __always_inline u32 set_of(struct key *key) {
  return bpf_get_smp_processor_id() % FLOW_PARTITIONS * FLOW_SETS + HASH_OF(*key) % FLOW_SETS;
}

static __always_inline void evict(struct flow *flow) {
  int first = 0;
  struct evicted *sum = evicted.lookup(&first);
  if (!sum)
    return;
  sum->flows++;
  sum->packets_received += flow->packets_received;
  sum->bytes_received += flow->bytes_received;
  sum->packets_sent += flow->packets_sent;
  sum->bytes_sent += flow->bytes_sent;
}

// The exact clock takes up to 40 ns, so it is read once per tick. Tracing programs may not read the coarse
// one.
static __always_inline u64 coarse_ns(struct cpu *cpu) {
  u64 tick = bpf_jiffies64();
  if (cpu->tick != tick) {
    cpu->tick = tick;
    cpu->tick_ns = bpf_ktime_get_ns();
  }
  return cpu->tick_ns;
}

// Returns the number of a key's entry; if it has none, the entry that was idle longest, plus SET_ENTRIES.
static __always_inline u32 entry_of(struct flow_set *set, struct key *key) {
  u64 oldest = set->entries[0].last_seen;
  u32 idle = 0;
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    struct flow *flow = &set->entries[n];
    if (flow->last_seen && IS_SAME(flow->key, *key))
      return n;
    if (flow->last_seen < oldest) {
      oldest = flow->last_seen;
      idle = n;
    }
  }
  return idle + SET_ENTRIES;
}

// Finds or creates the flow of the packet, whose place it keeps.
static __always_inline struct flow *flow_of(struct cpu *cpu, u16 interface) {
  struct key *key = &cpu->packet.key;
  key->interface = interface;
  u64 now = coarse_ns(cpu);
  END_STAGE();
  u32 number = set_of(key);
  cpu->set = number;
  struct flow_set *set = flows.lookup(&number);
  if (!set)
    return NULL;
  cpu->place = entry_of(set, key);
  END_STAGE();
  u64 entry = cpu->place;
  BOUND(entry, SET_ENTRIES - 1);
  cpu->entry = entry;
  struct flow *flow = &set->entries[entry];
  if (cpu->place >= SET_ENTRIES) {
    if (flow->last_seen)
      evict(flow);
    __builtin_memset(flow, 0, sizeof(*flow));
    flow->key = *key;
    flow->first_seen = now;
  }
  flow->last_seen = now;
  return flow;
}
#endif

// Returns the entry of an interface by index, with index 0 if it is not counted. With a pointer to the entry,
// the verifier would follow each entry of the set to the end of the program.
static __always_inline struct interface interface_of(u32 index) {
  struct interface none = {};
  int number = index % INTERFACE_SETS;
  struct interface_set *set = interfaces.lookup(&number);
  if (!set)
    return none;
#pragma unroll
  for (int n = 0; n < INTERFACE_SET_ENTRIES; n++)
    if (set->entries[n].index == index)
      return set->entries[n];
  return none;
}

static __always_inline void count_received(u16 interface, struct cpu *cpu, u64 packets, u64 bytes) {
  int slot = interface % INTERFACES_MAX;
  struct counts *counts = received.lookup(&slot);
  if (!counts)
    return;
  add(counts, &cpu->packet, packets, bytes);
#ifdef FLOW_SETS
  struct flow *flow = flow_of(cpu, interface);
  if (flow) {
    flow->packets_received += packets;
    flow->bytes_received += bytes;
    flow->tcp_flags |= cpu->packet.tcp_flags;
  }
#endif
}

static __always_inline void count_sent(u16 interface, struct cpu *cpu) {
  struct packet *packet = &cpu->packet;
  int slot = interface % INTERFACES_MAX;
  struct counts *counts = sent.lookup(&slot);
  if (!counts)
    return;
  cpu->slot = slot;
  add(counts, packet, packet->packets, packet->bytes);
#ifdef FLOW_SETS
  struct flow *flow = flow_of(cpu, interface);
  if (flow) {
    flow->packets_sent += packet->packets;
    flow->bytes_sent += packet->bytes;
    flow->tcp_flags |= packet->tcp_flags;
  }
#endif
}

// --- hooks -------------------------------------------------------------------------------------------------

int xdp_received(struct xdp_md *ctx) {
  struct interface interface = interface_of(ctx->ingress_ifindex);
  int hook = HOOK_XDP;
  struct cpu *cpu = cpus.lookup(&hook);
  if (!interface.index || !cpu)
    return XDP_PASSED;
  struct source from = {HOOK_XDP, ctx, NULL, cpu};
  parse(&from, interface.has_ethernet, true);
  END_STAGE();
  count_received(interface.number, cpu, 1, ctx->data_end - ctx->data);
  return XDP_PASSED;
}

int tc_received(struct __sk_buff *ctx) {
  struct interface interface = interface_of(ctx->ifindex);
  int hook = HOOK_TC;
  struct cpu *cpu = cpus.lookup(&hook);
  if (!interface.index || !cpu)
    return TC_NEXT;
  // The headers of a packet sent from a memory-mapped ring (PACKET_TX_RING) are not linear yet.
  u32 needed = ctx->len < HEADERS_BYTES ? ctx->len : HEADERS_BYTES;
  if ((void *)(long)ctx->data + needed > (void *)(long)ctx->data_end)
    bpf_skb_pull_data(ctx, needed);
  struct source from = {HOOK_TC, ctx, NULL, cpu};
  parse(&from, interface.has_ethernet, true);
  END_STAGE();
  // The kernel has taken the outer tag out of the packet.
  u32 tag_bytes = ctx->vlan_present ? VLAN_BYTES : 0;
  struct sk_buff *skb = (struct sk_buff *)ctx;
  struct skb_shared_info shared = {};
  if (ctx->gso_size)
    shared = shared_info_of(skb);
  put_on_wire(&cpu->packet, skb, &shared, ctx->len, tag_bytes);
  END_STAGE();
  count_received(interface.number, cpu, cpu->packet.packets, cpu->packet.bytes);
  return TC_NEXT;
}

static __always_inline bool is_own(struct net_device *device) {
  struct net *net = (struct net *)device->nd_net;
  return net->inum == VALUE(OWN_NAMESPACE);
}

// Here the kernel still owns the whole packet; by the time of net_dev_xmit the driver may have freed it.
int tp_btf__net_dev_start_xmit(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct net_device *device = (struct net_device *)ctx[1];
  if (!is_own(device))
    return 0;
  struct interface interface = interface_of(device->ifindex);
  int hook = HOOK_SENT;
  struct cpu *cpu = cpus.lookup(&hook);
  if (!interface.index || !cpu)
    return 0;
  struct source from = {HOOK_SENT, NULL, (void *)skb->data, cpu};
  cpu->linear = skb->len - skb->data_len;
  // This may read past the packet, but not past its memory, which ends with skb_shared_info.
  if (bpf_probe_read_kernel(cpu->headers, HEADERS_BYTES, from.data))
    cpu->linear = 0;
  parse(&from, interface.has_ethernet, false);
  u32 tag_bytes = 0;
#ifdef HAS_SK_BUFF_VLAN_ALL
  if (skb->vlan_all) // the device puts the tag into the packet
    tag_bytes = VLAN_BYTES;
#endif
  struct skb_shared_info shared = {};
  bpf_probe_read_kernel(&shared, sizeof(shared), (void *)(skb->head + skb->end));
  put_on_wire(&cpu->packet, skb, &shared, skb->len, tag_bytes);
  END_STAGE();
  cpu->skb = (u64)skb;
  count_sent(interface.number, cpu);
  return 0;
}

// Undoes the count of a packet that the driver refused: it will be sent again, or was dropped.
int tp_btf__net_dev_xmit(u64 *ctx) {
  int first = 0, hook = HOOK_SENT;
  if ((int)ctx[1] == NETDEV_TX_OK)
    return 0;
  struct net_device *device = (struct net_device *)ctx[2];
  if (!is_own(device) || !interface_of(device->ifindex).index)
    return 0;
  struct cpu *cpu = cpus.lookup(&hook);
  if (!cpu)
    return 0;
  if (cpu->skb != ctx[0]) {
    u64 *packets = refused.lookup(&first);
    if (packets)
      *packets += 1;
    return 0;
  }
  struct packet *packet = &cpu->packet;
  int slot = cpu->slot;
  struct counts *counts = sent.lookup(&slot);
  if (counts)
    add(counts, packet, -packet->packets, -packet->bytes);
#ifdef FLOW_SETS
  struct flow_set *set = flows.lookup(&cpu->set);
  if (set) {
    struct flow *flow = &set->entries[cpu->entry & (SET_ENTRIES - 1)];
    flow->packets_sent -= packet->packets;
    flow->bytes_sent -= packet->bytes;
  }
#endif
  cpu->skb = 0;
  return 0;
}
