// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Counts what each interface receives and sends, by protocol, service and flow. XDP or TC (TCX) sees received
// packets, the tracepoint at which the driver takes packets sees sent ones. Every packet passes unchanged.
// The loader puts struct counts, struct key, struct flow, struct evicted, struct interface and the -D numbers
// before this file.

#include <nettop/set_table.h>
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
#define TCP_FLAGS_END 14
#define TCP_LENGTH_AT 12
#define UDP_BYTES 8
#define SCTP_BYTES 12
#define HEADERS_BYTES 72 /* one read for Ethernet, VLAN, IPv6 and TCP up to its flags: a read takes 20 ns */
#define HEADERS_MASK 0x7f
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

// State of each CPU: the time of its tick, and the packet that it last gave to a driver with its first bytes;
// it is subtracted again if the driver refuses it.
struct cpu {
  u64 tick, tick_ns;
  u64 skb, packets, bytes;
  u32 slot, set;
  u8 protocol, cast, service, entry;
  u8 headers[HEADERS_MASK + sizeof(struct ipv6)];
};
BPF_PERCPU_ARRAY(cpus, struct cpu, 1);

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

// bpf_probe_read_kernel. bcc may replace it by bpf_probe_read, which TC programs lack.
static long (*const read_kernel)(void *copy, u32 size, const void *from) = (void *)113;

// The bytes of a packet: packet memory up to `end`, which the verifier checks, or, if `end` is NULL, `size`
// bytes of kernel memory, the first of which are copied to `headers`.
struct source {
  void *data, *end;
  u32 size;
  u8 *headers;
};

struct packet {
  struct key key;
  u32 datagram;     // the ID that its fragments share
  u16 transport_at; // offset of the transport header; 0 if unknown
  u8 protocol, cast, service, tcp_flags;
  bool is_fragment, is_later_fragment;
};

// Returns the bytes at `at`, in place if possible, else in `copy`; NULL if the packet is too short.
static __always_inline void *bytes_at(struct source *from, u32 at, void *copy, u32 size) {
  if (at > OFFSET_MAX)
    return NULL;
  void *piece = from->data + at;
  if (from->end)
    return piece + size > from->end ? NULL : piece;
  if (at + size > from->size)
    return NULL;
  u64 place = at;
  BOUND(place, HEADERS_MASK);
  if (at <= HEADERS_BYTES - size)
    return from->headers + place;
  return bpf_probe_read_kernel(copy, size, piece) ? NULL : copy;
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

// Parses the header at `at`. Returns the offset of the next header, whose protocol is put in the key; 0 if
// there is none.
static __always_inline u32 parse_v4(struct source *from, u32 at, struct packet *packet, bool is_received) {
  struct ipv4 copy, *header = bytes_at(from, at, &copy, sizeof(copy));
  u32 source[4] = {0, 0, bpf_htonl(0xffff)}, destination[4] = {0, 0, bpf_htonl(0xffff)};
  if (!header)
    return 0;
  source[3] = header->source;
  destination[3] = header->destination;
  put_addresses(&packet->key, source, destination, is_received);
  packet->key.protocol = header->protocol;
  packet->datagram = header->id;
  packet->is_fragment = header->offset & bpf_htons(IP_OFFSET_MASK | IP_MORE_FRAGMENTS);
  packet->is_later_fragment = header->offset & bpf_htons(IP_OFFSET_MASK);
  return at + (header->version_length & 0xf) * 4;
}

static __always_inline u32 parse_v6(struct source *from, u32 at, struct packet *packet, bool is_received) {
  struct ipv6 copy, *header = bytes_at(from, at, &copy, sizeof(copy));
  if (!header)
    return 0;
  put_addresses(&packet->key, header->source, header->destination, is_received);
  u8 next = header->next;
  at += sizeof(*header);
#pragma unroll
  for (int n = 0; n < EXTENSIONS_MAX; n++) {
    // Hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, Shim6.
    if (next != 0 && next != 43 && next != IPPROTO_FRAGMENT && next != IPPROTO_AH && next != 60 &&
        next != 135 && next != 139 && next != 140)
      break;
    packet->key.protocol = next;
    u8 extension_copy[8], *extension = bytes_at(from, at, extension_copy, sizeof(extension_copy));
    if (!extension)
      return 0;
    u32 bytes = next == IPPROTO_AH ? (extension[1] + 2) * 4 : (extension[1] + 1) * 8;
    if (next == IPPROTO_FRAGMENT) {
      u16 offset = *(u16 *)&extension[2];
      packet->datagram = *(u32 *)&extension[4];
      packet->is_fragment = offset & bpf_htons(IPV6_OFFSET_MASK | IPV6_MORE_FRAGMENTS);
      packet->is_later_fragment = offset & bpf_htons(IPV6_OFFSET_MASK);
      bytes = sizeof(extension_copy);
    }
    next = extension[0];
    at += bytes;
    if (packet->is_later_fragment)
      break;
  }
  packet->key.protocol = next;
  return at;
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
static __always_inline void parse_transport(struct source *from, u32 at, struct packet *packet,
                                            bool is_received) {
  struct key *key = &packet->key;
  if (!at || (packet->protocol != KIND_TCP && packet->protocol != KIND_UDP && packet->protocol != KIND_SCTP))
    return;
  if (packet->is_later_fragment) {
    if (!recall_ports(packet))
      return;
  } else {
    struct tcp copy, *tcp = bytes_at(from, at, &copy, sizeof(copy.ports));
    if (!tcp)
      return;
    u16 local_port = bpf_ntohs(tcp->ports[is_received]), remote_port = bpf_ntohs(tcp->ports[!is_received]);
    if (packet->protocol == KIND_TCP && (tcp = bytes_at(from, at, &copy, TCP_FLAGS_END)))
      packet->tcp_flags = tcp->flags;
    key->local_port = local_port;
    key->remote_port = remote_port;
    if (packet->is_fragment)
      remember_ports(packet);
  }
  if (packet->protocol != KIND_SCTP)
    packet->service = service_of(key);
}

static __always_inline void parse_ethernet(struct source *from, struct packet *packet, u16 *ethertype,
                                           u32 *at) {
  struct ethernet copy, *header = bytes_at(from, 0, &copy, sizeof(copy));
  if (!header)
    return;
  if ((header->to[0] & header->to[1] & header->to[2]) == 0xffff)
    packet->cast = KIND_BROADCAST;
  else if (*(u8 *)header->to & 1)
    packet->cast = KIND_MULTICAST;
  *at = ETHERNET_BYTES;
  *ethertype = bpf_ntohs(header->type);
#pragma unroll
  for (int n = 0; n < VLAN_TAGS_MAX; n++) {
    if (*ethertype != ETH_P_8021Q && *ethertype != ETH_P_8021AD)
      break;
    u16 tag_copy[2], *tag = bytes_at(from, *at, tag_copy, sizeof(tag_copy));
    if (!tag)
      break;
    *ethertype = bpf_ntohs(tag[1]);
    *at += VLAN_BYTES;
  }
}

static __always_inline void parse(struct source *from, bool has_ethernet, bool is_received,
                                  struct packet *packet) {
  u16 ethertype = 0;
  u32 at = 0;
  __builtin_memset(packet, 0, sizeof(*packet));
  packet->protocol = KIND_OTHER;
  packet->key.protocol = PROTOCOL_NOT_IP;
  if (has_ethernet) {
    parse_ethernet(from, packet, &ethertype, &at);
  } else {
    u8 copy, *version = bytes_at(from, 0, &copy, sizeof(copy));
    if (version)
      ethertype = *version >> 4 == 4 ? ETH_P_IP : *version >> 4 == 6 ? ETH_P_IPV6 : 0;
  }
  if (ethertype == ETH_P_ARP)
    packet->protocol = KIND_ARP;
  if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6) {
    packet->key.remote_port = ethertype;
    return;
  }
  at = ethertype == ETH_P_IP ? parse_v4(from, at, packet, is_received)
                             : parse_v6(from, at, packet, is_received);
  packet->protocol = kind_of(packet->key.protocol);
  packet->transport_at = at;
  parse_transport(from, at, packet, is_received);
}

// --- counting ----------------------------------------------------------------------------------------------

// The packets on the wire that are one aggregate here (GSO, GRO): each but the first has headers of its own,
// which are not in memory.
struct wire {
  u64 packets, bytes;
};

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

// Returns the size on the wire of a packet of `length` bytes, with a tag that is not in memory.
static __always_inline struct wire on_wire(struct sk_buff *skb, struct skb_shared_info *shared,
                                           struct packet *packet, u32 length, u32 tag_bytes) {
  struct wire wire = {1, length + tag_bytes};
  if (!shared->gso_size)
    return wire;
  u32 header_bytes = segment_headers(skb, shared->gso_type, packet->transport_at);
  if (shared->gso_segs)
    wire.packets = shared->gso_segs;
  else if (length > header_bytes) // a guest's, whose segments are not counted yet
    wire.packets = (length - header_bytes + shared->gso_size - 1) / shared->gso_size;
  wire.bytes += (wire.packets - 1) * (header_bytes + tag_bytes);
  return wire;
}

#define ADD(counts, kind, number, length)                                                                    \
  do {                                                                                                       \
    (counts)->packets[(kind) & (KINDS - 1)] += number;                                                       \
    (counts)->bytes[(kind) & (KINDS - 1)] += length;                                                         \
  } while (0)

static __always_inline void add(struct counts *counts, u8 protocol, u8 cast, u8 service, u64 packets,
                                u64 bytes) {
  ADD(counts, protocol, packets, bytes);
  if (cast)
    ADD(counts, cast, packets, bytes);
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

// Finds or creates the flow of a packet; `set` and `entry` tell its location.
static __always_inline struct flow *flow_of(struct key *key, u64 now, u32 *set, u8 *entry) {
  *set = set_of(key);
  struct flow_set *flow_set = flows.lookup(set);
  if (!flow_set)
    return NULL;
  struct flow *idle = &flow_set->entries[0];
  *entry = 0;
#pragma unroll
  for (int n = 0; n < SET_ENTRIES; n++) {
    struct flow *flow = &flow_set->entries[n];
    if (flow->last_seen && IS_SAME(flow->key, *key)) {
      flow->last_seen = now;
      *entry = n;
      return flow;
    }
    if (flow->last_seen < idle->last_seen) {
      idle = flow;
      *entry = n;
    }
  }
  if (idle->last_seen)
    evict(idle);
  __builtin_memset(idle, 0, sizeof(*idle));
  idle->key = *key;
  idle->first_seen = idle->last_seen = now;
  return idle;
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

static __always_inline void count_received(u16 interface, struct packet *packet, u64 packets, u64 bytes) {
  int slot = interface % INTERFACES_MAX;
  struct counts *counts = received.lookup(&slot);
  if (!counts)
    return;
  add(counts, packet->protocol, packet->cast, packet->service, packets, bytes);
#ifdef FLOW_SETS
  int first = 0;
  struct cpu *cpu = cpus.lookup(&first);
  if (!cpu)
    return;
  u32 set;
  u8 entry;
  packet->key.interface = interface;
  struct flow *flow = flow_of(&packet->key, coarse_ns(cpu), &set, &entry);
  if (flow) {
    flow->packets_received += packets;
    flow->bytes_received += bytes;
    flow->tcp_flags |= packet->tcp_flags;
  }
#endif
}

static __always_inline void count_sent(u16 interface, struct packet *packet, struct cpu *cpu, u64 skb,
                                       u64 packets, u64 bytes) {
  int slot = interface % INTERFACES_MAX;
  struct counts *counts = sent.lookup(&slot);
  if (!counts)
    return;
  add(counts, packet->protocol, packet->cast, packet->service, packets, bytes);
#ifdef FLOW_SETS
  packet->key.interface = interface;
  struct flow *flow = flow_of(&packet->key, coarse_ns(cpu), &cpu->set, &cpu->entry);
  if (flow) {
    flow->packets_sent += packets;
    flow->bytes_sent += bytes;
    flow->tcp_flags |= packet->tcp_flags;
  }
#endif
  cpu->skb = skb;
  cpu->packets = packets;
  cpu->bytes = bytes;
  cpu->slot = slot;
  cpu->protocol = packet->protocol;
  cpu->cast = packet->cast;
  cpu->service = packet->service;
}

// --- hooks -------------------------------------------------------------------------------------------------

int xdp_received(struct xdp_md *ctx) {
  struct interface interface = interface_of(ctx->ingress_ifindex);
  struct source from = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
  struct packet packet;
  if (!interface.index)
    return XDP_PASSED;
  parse(&from, interface.has_ethernet, true, &packet);
  count_received(interface.number, &packet, 1, from.end - from.data);
  return XDP_PASSED;
}

int tc_received(struct __sk_buff *ctx) {
  struct interface interface = interface_of(ctx->ifindex);
  struct packet packet;
  if (!interface.index)
    return TC_NEXT;
  // The headers of a packet sent from a memory-mapped ring (PACKET_TX_RING) are not linear yet.
  u32 needed = ctx->len < HEADERS_BYTES ? ctx->len : HEADERS_BYTES;
  if ((void *)(long)ctx->data + needed > (void *)(long)ctx->data_end)
    bpf_skb_pull_data(ctx, needed);
  struct source from = {(void *)(long)ctx->data, (void *)(long)ctx->data_end};
  parse(&from, interface.has_ethernet, true, &packet);
  // The kernel has taken the outer tag out of the packet.
  u32 tag_bytes = ctx->vlan_present ? VLAN_BYTES : 0;
  struct sk_buff *skb = (struct sk_buff *)ctx;
  struct skb_shared_info shared = {};
  if (ctx->gso_size)
    shared = shared_info_of(skb);
  struct wire wire = on_wire(skb, &shared, &packet, ctx->len, tag_bytes);
  count_received(interface.number, &packet, wire.packets, wire.bytes);
  return TC_NEXT;
}

static __always_inline bool is_own(struct net_device *device) {
  struct net *net = (struct net *)device->nd_net;
  return net->inum == OWN_NAMESPACE;
}

// Here the kernel still owns the whole packet; by the time of net_dev_xmit the driver may have freed it.
int tp_btf__net_dev_start_xmit(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct net_device *device = (struct net_device *)ctx[1];
  if (!is_own(device))
    return 0;
  struct interface interface = interface_of(device->ifindex);
  int first = 0;
  struct cpu *cpu = cpus.lookup(&first);
  if (!interface.index || !cpu)
    return 0;
  struct source from = {(void *)skb->data, NULL, skb->len - skb->data_len, cpu->headers};
  // This may read past the packet, but not past its memory, which ends with skb_shared_info.
  if (bpf_probe_read_kernel(cpu->headers, HEADERS_BYTES, from.data))
    from.size = 0;
  struct packet packet;
  parse(&from, interface.has_ethernet, false, &packet);
  u32 tag_bytes = 0;
#ifdef HAS_SK_BUFF_VLAN_ALL
  if (skb->vlan_all) // the device puts the tag into the packet
    tag_bytes = VLAN_BYTES;
#endif
  struct skb_shared_info shared = {};
  bpf_probe_read_kernel(&shared, sizeof(shared), (void *)(skb->head + skb->end));
  struct wire wire = on_wire(skb, &shared, &packet, skb->len, tag_bytes);
  count_sent(interface.number, &packet, cpu, (u64)skb, wire.packets, wire.bytes);
  return 0;
}

// Undoes the count of a packet that the driver refused: it will be sent again, or was dropped.
int tp_btf__net_dev_xmit(u64 *ctx) {
  int first = 0;
  if ((int)ctx[1] == NETDEV_TX_OK)
    return 0;
  struct net_device *device = (struct net_device *)ctx[2];
  if (!is_own(device) || !interface_of(device->ifindex).index)
    return 0;
  struct cpu *cpu = cpus.lookup(&first);
  if (!cpu)
    return 0;
  if (cpu->skb != ctx[0]) {
    u64 *packets = refused.lookup(&first);
    if (packets)
      *packets += 1;
    return 0;
  }
  int slot = cpu->slot;
  struct counts *counts = sent.lookup(&slot);
  if (counts)
    add(counts, cpu->protocol, cpu->cast, cpu->service, -cpu->packets, -cpu->bytes);
#ifdef FLOW_SETS
  struct flow_set *set = flows.lookup(&cpu->set);
  if (set) {
    struct flow *flow = &set->entries[cpu->entry & (SET_ENTRIES - 1)];
    flow->packets_sent -= cpu->packets;
    flow->bytes_sent -= cpu->bytes;
  }
#endif
  cpu->skb = 0;
  return 0;
}
