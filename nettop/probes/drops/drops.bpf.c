// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Counts packets that the kernel drops. One program at the tracepoint kfree_skb counts them by reason,
// caller, protocols, device and network namespace. The loader puts struct kind, struct count, the -D numbers
// and the slices of kernel structs before this file.

#define AF_INET 2
#define AF_INET6 10
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define IPV4_FRAGMENT 6 /* offsets in the header */
#define IPV4_PROTOCOL 9
#define IPV4_OFFSET_BITS 0x1F /* of the first byte */
#define IPV6_NEXT_HEADER 6
#define IPV6_HEADER 40
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define RTF_LOCAL 0x80000000U
#define RTN_LOCAL 2
#define SKB_DST_NOREF 1UL
#define SOCK_RAW 3
#define TCP_TIME_WAIT 6
#define TCP_NEW_SYN_RECV 12

// A drop takes 180 ns here, and 220 ns without a socket, 60 ns of which are the measurement itself. With one
// map for all CPUs, two CPUs with the same kind of drop take 253 ns each; recording the time of the drop
// would cost another 80 ns.
BPF_TABLE("percpu_hash", struct kind, struct count, counted, KINDS_MAX);
// Drops of kinds that did not fit in the map.
BPF_PERCPU_ARRAY(untracked, u64, 1);
// Ports read from headers, and those of services that may be a client's, since the last reading, which clears
// them: neither a scan of all ports nor many connections must fill the map.
BPF_ARRAY(header_ports, struct header_ports, 1);

// A packet's `dev` shares its memory with other members (a red-black node in TCP's queues, UDP's scratch
// space), so the namespace is trusted only if its loopback device points back to it. Returns 0 if not.
static __always_inline u32 namespace_of(struct net *net) {
  struct net_device *loopback = (struct net_device *)net->loopback_dev;
  return loopback->nd_net == (u64)net ? net->inum : 0;
}

static __always_inline u32 namespace_of_socket(struct sock *sk) {
  return sk ? namespace_of((struct net *)sk->skc_net) : 0;
}

static __always_inline struct dst_entry *route_of(struct sk_buff *skb) {
  return (struct dst_entry *)(skb->_skb_refdst & ~SKB_DST_NOREF);
}

// After TCP has cleared a packet's device, its route still leads to its namespace.
static __always_inline u32 namespace_of_route(struct sk_buff *skb) {
  struct dst_entry *route = route_of(skb);
  struct net_device *device = 0;
  struct net *net = 0;
  u64 back = 0;
  u32 inum = 0;
  bpf_probe_read_kernel(&device, sizeof(device), &route->dev);
  bpf_probe_read_kernel(&net, sizeof(net), &device->nd_net);
  bpf_probe_read_kernel(&device, sizeof(device), &net->loopback_dev);
  bpf_probe_read_kernel(&back, sizeof(back), &device->nd_net);
  bpf_probe_read_kernel(&inum, sizeof(inum), &net->inum);
  return net && back == (u64)net ? inum : 0;
}

static __always_inline void put_device(struct kind *kind, struct sk_buff *skb, struct sock *receiver) {
  struct net_device *device = (struct net_device *)skb->dev;
  u32 inum = namespace_of((struct net *)device->nd_net);
  if (inum) {
    kind->netns = inum;
    kind->ifindex = device->ifindex;
    return;
  }
  inum = namespace_of_socket(receiver);
  if (!inum)
    inum = namespace_of_socket((struct sock *)skb->sk);
  kind->netns = inum ? inum : namespace_of_route(skb);
  kind->ifindex = skb->skb_iif; // the ingress device, 0 for what this machine sends
}

static __always_inline u16 family_of(struct sk_buff *skb) {
  u16 ethertype = bpf_ntohs(skb->protocol);
  if (ethertype)
    return ethertype;
  // The packet has not reached a device: take the family from its socket.
  struct sock *sk = (struct sock *)skb->sk;
  u16 family = sk ? sk->skc_family : 0;
  return family == AF_INET ? ETH_P_IP : family == AF_INET6 ? ETH_P_IPV6 : family ? SOCKET_FAMILY + family : 0;
}

// An IPv4 header without options, and the ports after it; of IPv6, the first bytes.
struct ip_header {
  u8 bytes[20];
  u16 ports[2];
};

static __always_inline u8 protocol_of(struct ip_header *ip, u16 family) {
  if (family == ETH_P_IP && ip->bytes[0] >> 4 == 4)
    return ip->bytes[IPV4_PROTOCOL];
  if (family == ETH_P_IPV6 && ip->bytes[0] >> 4 == 6)
    return ip->bytes[IPV6_NEXT_HEADER];
  return PROTOCOL_UNKNOWN;
}

static __always_inline bool is_client_port(u16 port) {
  return port >= CLIENT_PORTS_FIRST && port <= CLIENT_PORTS_LAST;
}

// Returns whether a port from a header may have kinds of its own until the next reading.
static __always_inline bool may_name(u16 port) {
  int first = 0;
  struct header_ports *ports = header_ports.lookup(&first);
  if (!ports)
    return false;
  u64 *word = &ports->seen[port >> 6], bit = 1ULL << (port & 63);
  if (*word & bit)
    return true;
  if (ports->count >= HEADER_PORTS_MAX)
    return false;
  __sync_fetch_and_add(&ports->count, 1);
  __sync_fetch_and_or(word, bit);
  return true;
}

// Reads the source and destination port of a received packet; zeros for a later fragment, and for what this
// machine sends.
static __always_inline void read_ports(u16 ports[2], struct sk_buff *skb, struct ip_header *ip, u16 family) {
  u32 length = family == ETH_P_IP ? (ip->bytes[0] & 0xf) * 4 : IPV6_HEADER;
  if (!skb->skb_iif ||
      (family == ETH_P_IP && (ip->bytes[IPV4_FRAGMENT] & IPV4_OFFSET_BITS || ip->bytes[IPV4_FRAGMENT + 1])))
    return;
  u32 raw = (u32)ip->ports[1] << 16 | ip->ports[0];
  if (length != sizeof(ip->bytes) &&
      bpf_probe_read_kernel(&raw, sizeof(raw), (void *)(skb->head + skb->network_header + length)))
    return;
  ports[0] = bpf_ntohs((u16)raw);
  ports[1] = bpf_ntohs(raw >> 16);
}

// Returns 0 if a port is a client's: each would be a kind of drop of its own. Services may have ports in that
// range too (WireGuard, gRPC); what talks to them has a client port as well, and services of others do not.
static __always_inline u16 service_port(u16 port, u16 other) {
  return is_client_port(port) && !is_client_port(other) ? 0 : port;
}

// Returns whether the packet's route says that it is for this machine; false if this kernel does not show it.
static __always_inline bool is_for_us(struct sk_buff *skb, u16 family) {
  u16 type = 0;
  u32 flags = 0;
#ifdef HAS_RTABLE_RT_TYPE
  if (family == ETH_P_IP)
    bpf_probe_read_kernel(&type, sizeof(type), &((struct rtable *)route_of(skb))->rt_type);
#endif
#ifdef HAS_RT6_INFO_RT6I_FLAGS
  if (family == ETH_P_IPV6)
    bpf_probe_read_kernel(&flags, sizeof(flags), &((struct rt6_info *)route_of(skb))->rt6i_flags);
#endif
  return type == RTN_LOCAL || flags & RTF_LOCAL;
}

// Returns 0 if the socket has no port, or a client's, or if the packet has left its namespace. `source` is
// that of a received packet: some sockets have no peer.
static __always_inline u16 port_of_socket(struct sock *sk, u32 netns, u16 source) {
  if (!sk || !netns || namespace_of_socket(sk) != netns)
    return 0;
  u16 family = sk->skc_family;
  if (family != AF_INET && family != AF_INET6)
    return 0;
  // Raw sockets, such as the kernel's own for resets, have their protocol in place of a port. Sockets in
  // these two states are minisockets, which have no type.
  u8 state = sk->skc_state;
  if (state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV && sk->sk_type == SOCK_RAW)
    return 0;
  u16 port = sk->skc_num, peer = bpf_ntohs(sk->skc_dport);
  if (!is_client_port(port))
    return port;
  port = service_port(port, peer ? peer : source);
  return port && may_name(port) ? port : 0;
}

static __always_inline void put_port(struct kind *kind, struct sk_buff *skb, struct ip_header *ip,
                                     struct sock *receiver) {
  struct sock *sk = receiver ? receiver : (struct sock *)skb->sk;
  u16 ports[2] = {};
  read_ports(ports, skb, ip, kind->family);
  if (sk)
    kind->port = port_of_socket(sk, kind->netns, ports[0]);
  else if (service_port(ports[1], ports[0]) && may_name(ports[1]))
    kind->port = ports[1];
  kind->has_owner = kind->port && (sk || is_for_us(skb, kind->family));
}

int tp_btf__kfree_skb(u64 *ctx) {
  struct sk_buff *skb = (struct sk_buff *)ctx[0];
  struct sock *receiver = 0;
  struct kind kind;
  __builtin_memset(&kind, 0, sizeof(kind));
  kind.location = ctx[1];
#ifdef REASON_CONSUMED
  kind.reason = ctx[2];
  if (kind.reason == REASON_NOT_DROPPED || kind.reason == REASON_CONSUMED)
    return 0;
#endif
#ifdef HAS_RECEIVER
  receiver = (struct sock *)ctx[3];
#endif
  put_device(&kind, skb, receiver);
  kind.family = family_of(skb);
  struct ip_header ip;
  bool is_read = !bpf_probe_read_kernel(&ip, sizeof(ip), (void *)(skb->head + skb->network_header));
  kind.protocol = is_read ? protocol_of(&ip, kind.family) : PROTOCOL_UNKNOWN;
  if (kind.protocol == IPPROTO_TCP || kind.protocol == IPPROTO_UDP)
    put_port(&kind, skb, &ip, receiver);
  struct count none = {};
  struct count *count = counted.lookup_or_try_init(&kind, &none);
  if (!count) {
    int first = 0;
    u64 *drops = untracked.lookup(&first);
    if (drops)
      __sync_fetch_and_add(drops, 1);
    return 0;
  }
  // On some kernels another drop can interrupt this program on its CPU and count here too.
  __sync_fetch_and_add(&count->packets, 1);
  __sync_fetch_and_add(&count->bytes, skb->len);
  return 0;
}
