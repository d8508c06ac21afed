# SPDX-License-Identifier: Apache-2.0
"""The drops lens: packets that the kernel dropped, by reason and place, and the kernel's own counters of drops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from nettop.snapshots.ip_protocols import IP_PROTOCOLS
from nettop.snapshots.schema import (
    NAMESPACE,
    NETNS,
    Certainty,
    Field,
    FieldRole,
    Hook,
    Kind,
    Lens,
    Measure,
    Metrics,
    Rule,
    Severity,
    Table,
)

# --- names of the kernel's numbers ------------------------------------------------------------------------

SOCKET_FAMILY = 0x100
"""Offset of a socket family that is stored as an ethertype; real ethertypes begin at 0x600."""

ETHERTYPES = {
    0x0004: "802.2", 0x0800: "IPv4", 0x0806: "ARP", 0x8100: "VLAN", 0x86DD: "IPv6", 0x8809: "LACP", 0x8847: "MPLS",
    0x8863: "PPPoE", 0x8864: "PPPoE", 0x888E: "EAPOL", 0x88A8: "QinQ", 0x88CC: "LLDP", 0x88F7: "PTP",
    SOCKET_FAMILY + 1: "unix", SOCKET_FAMILY + 16: "netlink", SOCKET_FAMILY + 17: "packet",
    SOCKET_FAMILY + 40: "vsock",
}  # fmt: skip
"""Ethertypes (include/uapi/linux/if_ether.h) and socket families (include/linux/socket.h)."""


ORDINARY, REFUSED, TROUBLE = range(3)
SEVERITIES = {ORDINARY: "ordinary", REFUSED: "refused", TROUBLE: "trouble"}
"""Ordinary: nobody misses the packet. Refused: dropped by policy, or invalid. Trouble: exhaustion or damage."""


class Reason(NamedTuple):
    """The meaning of a drop reason and its severity; None if unknown."""

    meaning: str
    severity: int | None = REFUSED


REASONS: Mapping[str, Reason] = {
    "NOT_SPECIFIED": Reason("the kernel gives no reason; see the place", None),
    "NO_SOCKET": Reason("no socket listens on that port"),
    "SOCKET_CLOSE": Reason("the socket was closed with unread data", ORDINARY),
    "SOCKET_FILTER": Reason("a filter on the receiving socket"),
    "SOCKET_RCVBUFF": Reason("receive buffer full: the program reads too slowly, or the buffer is too small "
                             "(SO_RCVBUF, net.core.rmem_max)", TROUBLE),
    "SOCKET_BACKLOG": Reason("socket backlog full: the program reads too slowly", TROUBLE),
    "PROTO_MEM": Reason("the protocol's memory limit (net.ipv4.udp_mem, tcp_mem)", TROUBLE),
    "UNIX_DISCONNECT": Reason("a unix socket was closed with unread messages", ORDINARY),
    "NETFILTER_DROP": Reason("a rule of nftables or iptables"),
    "XDP": Reason("an XDP program"),
    "TC_INGRESS": Reason("a traffic control filter on the way in"),
    "TC_EGRESS": Reason("a traffic control filter on the way out"),
    "BPF_CGROUP_EGRESS": Reason("a BPF program of the sender's control group"),
    "SECURITY_HOOK": Reason("a security module (SELinux, AppArmor …)"),
    "XFRM_POLICY": Reason("the IPsec policy"),
    "OTHERHOST": Reason("for another machine: the device is promiscuous", ORDINARY),
    "UNICAST_IN_L2_MULTICAST": Reason("unicast packet in a multicast frame"),
    "IP_RPFILTER": Reason("rp_filter: replies would leave by another device"),
    "IP_INHDR": Reason("invalid IP header, or the hop limit was exceeded"),
    "IP_NOPROTO": Reason("no handler for the protocol in the IP header"),
    "IP_OUTNOROUTES": Reason("no route to the destination"),
    "IP_INNOROUTES": Reason("no route for a received packet"),
    "IP_INADDRERRORS": Reason("the destination cannot be reached"),
    "IPV6DISABLED": Reason("IPv6 is disabled on the device"),
    "UNHANDLED_PROTO": Reason("no handler for the network protocol"),
    "PKT_TOO_BIG": Reason("larger than the path's MTU"),
    "PKT_TOO_SMALL": Reason("shorter than its headers say", TROUBLE),
    "IP_CSUM": Reason("damaged: wrong IP header checksum", TROUBLE),
    "TCP_CSUM": Reason("damaged: wrong TCP checksum", TROUBLE),
    "UDP_CSUM": Reason("damaged: wrong UDP checksum", TROUBLE),
    "ICMP_CSUM": Reason("damaged: wrong ICMP checksum", TROUBLE),
    "SKB_CSUM": Reason("the checksum could not be computed", TROUBLE),
    "SKB_GSO_SEG": Reason("it could not be segmented", TROUBLE),
    "SKB_RX_HEADROOM": Reason("a received packet has no room for the headers before it", TROUBLE),
    "SKB_UCOPY_FAULT": Reason("the program's memory could not be read", TROUBLE),
    "DEV_HDR": Reason("the device's own header is invalid", TROUBLE),
    "HDR_TRUNC": Reason("its headers could not be read: out of memory, or too short", TROUBLE),
    "PACKET_SOCK_ERROR": Reason("a packet socket could not accept it", TROUBLE),
    "FRAG_TOO_FAR": Reason("too many packets between its fragments", TROUBLE),
    "NEIGH_CREATEFAIL": Reason("no room for the next hop's entry (net.ipv4.neigh.default.gc_thresh3)", TROUBLE),
    "NEIGH_HH_FILLFAIL": Reason("the link-layer header could not be made", TROUBLE),
    "NEIGH_DEAD": Reason("the next hop's entry was removed", TROUBLE),
    "CAKE_FLOOD": Reason("CAKE throttles a flow that does not slow down", TROUBLE),
    "FQ_BAND_LIMIT": Reason("qdisc fq: band limit reached", TROUBLE),
    "FQ_HORIZON_LIMIT": Reason("qdisc fq: scheduled too far in the future", TROUBLE),
    "FQ_FLOW_LIMIT": Reason("qdisc fq: flow limit reached", TROUBLE),
    "DUALPI2_STEP_DROP": Reason("qdisc dualpi2 keeps its delay low", TROUBLE),
    "TC_COOKIE_ERROR": Reason("traffic control lost its cookie", TROUBLE),
    "RECURSION_LIMIT": Reason("too many stacked devices, or a loop", TROUBLE),
    "TC_CHAIN_NOTFOUND": Reason("a traffic control rule jumps to a missing chain"),
    "TC_RECLASSIFY_LOOP": Reason("traffic control rules form a loop"),
    "TAP_FILTER": Reason("a filter of the tap device"),
    "TAP_TXFILTER": Reason("a filter of the tap device, by address"),
    "INVALID_PROTO": Reason("not the protocol it claims to be"),
    "IP_LOCAL_SOURCE": Reason("from this machine's own address"),
    "IP_INVALID_SOURCE": Reason("invalid source address"),
    "IP_LOCALNET": Reason("a loopback address on another device"),
    "IP_INVALID_DEST": Reason("invalid destination address"),
    "IPV6_BAD_EXTHDR": Reason("invalid IPv6 extension header"),
    "IPV6_NDISC_FRAG": Reason("fragmented neighbour discovery"),
    "IPV6_NDISC_HOP_LIMIT": Reason("neighbour discovery from beyond a router"),
    "IPV6_NDISC_BAD_CODE": Reason("neighbour discovery with an invalid code"),
    "IPV6_NDISC_BAD_OPTIONS": Reason("neighbour discovery with invalid options"),
    "IPV6_NDISC_NS_OTHERHOST": Reason("neighbour discovery for another machine", ORDINARY),
    "LOCAL_MAC": Reason("from the device's own link address"),
    "MAC_INVALID_SOURCE": Reason("from an invalid link address"),
    "MAC_IEEE_MAC_CONTROL": Reason("a control frame between devices", ORDINARY),
    "BRIDGE_INGRESS_STP_STATE": Reason("spanning tree blocks the bridge port"),
    "ARP_PVLAN_DISABLE": Reason("proxy ARP does not answer on the same device"),
    "VXLAN_INVALID_HDR": Reason("invalid VXLAN header"),
    "VXLAN_VNI_NOT_FOUND": Reason("no VXLAN device with its VNI"),
    "VXLAN_ENTRY_EXISTS": Reason("VXLAN has another entry for the address"),
    "NO_TX_TARGET": Reason("the device has no destination for it"),
    "IP_TUNNEL_ECN": Reason("a tunnel's congestion marks contradict each other"),
    "TUNNEL_TXINFO": Reason("a tunnel has no destination for it"),
    "CAN_RX_INVALID_FRAME": Reason("an invalid CAN frame"),
    "CANFD_RX_INVALID_FRAME": Reason("an invalid CAN FD frame"),
    "CANXL_RX_INVALID_FRAME": Reason("an invalid CAN XL frame"),
    "PSP_INPUT": Reason("PSP: not encrypted as agreed"),
    "PSP_OUTPUT": Reason("PSP: must not be sent like this"),
    "UNIX_SKIP_OOB": Reason("a unix socket skipped out-of-band data", ORDINARY),
    "TCP_AUTH_HDR": Reason("TCP's signature options contradict each other"),
    "TCP_MD5NOTFOUND": Reason("TCP without the expected MD5 signature"),
    "TCP_MD5UNEXPECTED": Reason("TCP with an unexpected MD5 signature"),
    "TCP_MD5FAILURE": Reason("TCP with a wrong MD5 signature"),
    "TCP_AONOTFOUND": Reason("TCP without the expected signature (TCP-AO)"),
    "TCP_AOUNEXPECTED": Reason("TCP with an unexpected signature (TCP-AO)"),
    "TCP_AOKEYNOTFOUND": Reason("TCP with an unknown key (TCP-AO)"),
    "TCP_AOFAILURE": Reason("TCP with a wrong signature (TCP-AO)"),
    "TCP_MINTTL": Reason("TCP from farther away than its socket allows (IP_MINTTL)"),
    "TCP_FASTOPEN": Reason("TCP Fast Open: unexpected by its connection"),
    "TCP_RFC7323_PAWS_ACK": Reason("a duplicate acknowledgement, by its timestamp", ORDINARY),
    "TCP_RFC7323_TW_PAWS": Reason("older timestamp than the connection in TIME_WAIT"),
    "TCP_RFC7323_TSECR": Reason("it echoes a timestamp that was never sent"),
    "TCP_INVALID_END_SEQUENCE": Reason("its end is outside the window"),
    "TCP_INVALID_ACK_SEQUENCE": Reason("it acknowledges data outside the window"),
    "TCP_TOO_OLD_ACK": Reason("it acknowledges data that is too old"),
    "TCP_ACK_UNSENT_DATA": Reason("it acknowledges data that was not sent yet"),
    "TCP_LISTEN_OVERFLOW": Reason("accept queue full: the program accepts too slowly, or its backlog is too small "
                                  "(listen(2), net.core.somaxconn)", TROUBLE),
    "TCPReqQFullDrop": Reason("SYN queue full, and no SYN cookies (net.ipv4.tcp_syncookies, tcp_max_syn_backlog)",
                              TROUBLE),
    "TCP_OLD_DATA": Reason("data received before: a needless retransmission", ORDINARY),
    "TCP_OLD_SEQUENCE": Reason("a segment received before", ORDINARY),
    "TCP_OLD_ACK": Reason("an acknowledgement received before", ORDINARY),
    "TCP_OFOMERGE": Reason("its data is already in the out-of-order queue", ORDINARY),
    "TCP_OFO_DROP": Reason("its data was already received", ORDINARY),
    "TCP_ZEROWINDOW": Reason("receive window closed: the program reads too slowly", TROUBLE),
    "TCP_OVERWINDOW": Reason("beyond the receive window", TROUBLE),
    "TCP_OFO_QUEUE_PRUNE": Reason("out of memory: evicted from the out-of-order queue, the peer must retransmit",
                                  TROUBLE),
    "TCP_RFC7323_PAWS": Reason("older timestamp than earlier segments"),
    "TCP_INVALID_SEQUENCE": Reason("sequence number outside the window"),
    "TCP_INVALID_SYN": Reason("a SYN in an established connection"),
    "TCP_FLAGS": Reason("no connection for it on a listening port, or contradictory flags"),
    "TCP_RESET": Reason("the peer reset the connection", ORDINARY),
    "TCP_CLOSE": Reason("the connection was already closed", ORDINARY),
    "TCP_ABORT_ON_DATA": Reason("data for a connection that its program has closed"),
    "NEIGH_FAILED": Reason("next hop silent: no answer to ARP or neighbour discovery", TROUBLE),
    "NEIGH_QUEUEFULL": Reason("next hop's queue full: too many packets wait for its link address", TROUBLE),
    "QDISC_DROP": Reason("dropped by qdisc, the device's queueing discipline", TROUBLE),
    "QDISC_OVERLIMIT": Reason("qdisc full, the device's queueing discipline", TROUBLE),
    "QDISC_CONGESTED": Reason("qdisc keeps its delay low (CoDel, PIE, RED)", TROUBLE),
    "CPU_BACKLOG": Reason("CPU's receive backlog full (net.core.netdev_max_backlog)", TROUBLE),
    "FULL_RING": Reason("queue of a tun, tap or similar device full: its reader is too slow", TROUBLE),
    "DEV_READY": Reason("the device was not ready: down, or not opened"),
    "DUP_FRAG": Reason("a duplicate fragment", ORDINARY),
    "FRAG_REASM_TIMEOUT": Reason("the other fragments did not arrive in time", TROUBLE),
    "NOMEM": Reason("out of memory", TROUBLE),
    "PFMEMALLOC": Reason("out of memory but for a reserve, which this packet may not use", TROUBLE),
    "QUEUE_PURGE": Reason("left in a queue that was destroyed", ORDINARY),
}  # fmt: skip
"""Core reasons by the kernel's names (include/net/dropreason-core.h), and those known only from a counter, by its name
(TCPReqQFullDrop). The reasons of modules have numbers only."""

OF_NAMESPACES = {
    "TcpExtListenOverflows": "accept queue full",
    "TcpExtListenDrops": "dropped by a listener",
    "TcpExtTCPReqQFullDrop": "SYN queue full",
    "TcpExtTCPReqQFullDoCookies": "SYN queue full, cookies",
    "TcpExtSyncookiesSent": "SYN cookie sent",
    "TcpExtSyncookiesFailed": "SYN cookie invalid",
    "TcpExtEmbryonicRsts": "reset during handshake",
    "TcpExtTCPSynRetrans": "SYN, SYN-ACK retransmits",
    "TcpExtTCPFastOpenPassiveFail": "Fast Open refused",
    "TcpExtTCPFastOpenListenOverflow": "Fast Open queue full",
    "TcpExtTCPBacklogDrop": "TCP backlog full",
    "TcpExtTCPRcvQDrop": "TCP receive queue full",
    "TcpExtTCPZeroWindowDrop": "TCP window closed",
    "TcpExtTCPOFODrop": "TCP out of order dropped",
    "TcpExtRcvPruned": "TCP receive queue pruned",
    "TcpExtOfoPruned": "TCP out of order pruned",
    "TcpExtPAWSEstab": "TCP timestamp too old",
    "TcpExtTCPMinTTLDrop": "TCP hop limit too low",
    "TcpExtPFMemallocDrop": "memory reserve only",
    "TcpExtIPReversePathFilter": "reverse path filter",
    "TcpInErrs": "TCP bad segments",
    "UdpRcvbufErrors": "UDP receive buffer full",
    "UdpSndbufErrors": "UDP send buffer full",
    "UdpMemErrors": "UDP memory limit",
    "UdpInCsumErrors": "UDP bad checksum",
    "UdpInErrors": "UDP not received",
    "UdpNoPorts": "UDP closed port",
    "Udp6RcvbufErrors": "UDP6 receive buffer full",
    "Udp6SndbufErrors": "UDP6 send buffer full",
    "Udp6MemErrors": "UDP6 memory limit",
    "Udp6InCsumErrors": "UDP6 bad checksum",
    "Udp6InErrors": "UDP6 not received",
    "Udp6NoPorts": "UDP6 closed port",
    "IpInDiscards": "IPv4 receive discards",
    "IpOutDiscards": "IPv4 send discards",
    "IpInHdrErrors": "IPv4 bad header",
    "IpInAddrErrors": "IPv4 wrong address",
    "IpOutNoRoutes": "IPv4 no route",
    "IpReasmFails": "IPv4 not reassembled",
    "IpFragFails": "IPv4 not fragmented",
    "Ip6InDiscards": "IPv6 receive discards",
    "Ip6OutDiscards": "IPv6 send discards",
    "Ip6InHdrErrors": "IPv6 bad header",
    "Ip6InAddrErrors": "IPv6 wrong address",
    "Ip6OutNoRoutes": "IPv6 no route",
    "Ip6ReasmFails": "IPv6 not reassembled",
    "Ip6FragFails": "IPv6 not fragmented",
}
"""Counters of a network namespace, by their names in nstat (include/uapi/linux/snmp.h)."""

INCLUDED_IN = {
    "TcpExtListenOverflows": "TcpExtListenDrops",
    "TcpExtTCPReqQFullDrop": "TcpExtListenDrops",
    "UdpRcvbufErrors": "UdpInErrors",
    "UdpMemErrors": "UdpInErrors",
    "UdpInCsumErrors": "UdpInErrors",
    "Udp6RcvbufErrors": "Udp6InErrors",
    "Udp6MemErrors": "Udp6InErrors",
    "Udp6InCsumErrors": "Udp6InErrors",
}
"""Counters whose packets are also in another counter (tcp_conn_request and tcp_v4_syn_recv_sock in net/ipv4,
__udp_queue_rcv_skb in net/ipv4/udp.c)."""

OF_DEVICES = {
    "rx_dropped": "received, not processed",
    "tx_dropped": "not sent",
    "rx_missed_errors": "device queue full",
    "rx_over_errors": "device ring overrun",
    "rx_fifo_errors": "device receive FIFO",
    "tx_fifo_errors": "device send FIFO",
    "rx_errors": "receive errors",
    "tx_errors": "send errors",
    "rx_nohandler": "received while inactive",
    "rx_otherhost_dropped": "for another machine",
}
"""Counters of a device (struct rtnl_link_stats64 in include/uapi/linux/if_link.h)."""

OF_CPUS = {"softnet_dropped": "receive backlog full"}
"""Counters of a CPU (/proc/net/softnet_stat)."""

# --- tables ---------------------------------------------------------------------------------------------------

_DROPPED = (
    "{packets_per_s} packets/s are dropped[ on {interface}][ in {place}][ for {process} :{port}]: {meaning}"
)
_NAMESPACE = (NETNS, replace(NAMESPACE, importance=45))

SILENT_HOP = frozenset(("NEIGH_FAILED", "NEIGH_QUEUEFULL"))
"""Reasons for drops of what waits for a link address."""
_SILENT_HOP = f"({' or '.join(f'reason={reason}' for reason in sorted(SILENT_HOP))})"

PACKETS = Table(
    name="packets",
    fields=(
        Field("id", Kind.KEY, "ID", "number of the row", importance=2),
        Field("reason", Kind.TEXT, "REASON", "the kernel's name of the reason (enum skb_drop_reason); modules' reasons "
              "are numbers", width=20, importance=100, role=FieldRole.REASON),
        Field("meaning", Kind.TEXT, "MEANING", "meaning of the reason, and what would help", width=36, importance=84,
              role=FieldRole.DECLARED),
        Field("severity", Kind.ENUM, "SEVERITY", "ordinary: nobody misses the packet, as when a connection ends; "
              "refused: dropped by policy, or invalid; trouble: exhaustion or damage", importance=55,
              labels=SEVERITIES),
        Field("place", Kind.TEXT, "PLACE", "the kernel function that dropped it, and its [module]", width=24,
              importance=62, role=FieldRole.SYMBOLS),
        Field("protocol", Kind.TEXT, "PROTO", "the protocol in the IP header", width=7, importance=70,
              role=FieldRole.DECLARED),
        Field("family", Kind.TEXT, "FAMILY", "network protocol, by its ethertype; the socket's family for a packet "
              "that never left a socket", width=7, importance=40, role=FieldRole.DECLARED),
        Field("interface", Kind.TEXT, "IFACE", "the packet's device, or the one it arrived on; if12 is a removed "
              "device with index 12", importance=66),
        *_NAMESPACE,
        Field("port", Kind.LABEL, "PORT", "the local port of the packet's receiving socket, else of its sender; the "
              "destination port of a received packet without a socket; unknown for a client's: an ephemeral port "
              "(net.ipv4.ip_local_port_range) whose peer has another port", width=5, importance=81),
        Field("process", Kind.TEXT, "PROCESS", "the process that owns the socket at that port", width=15,
              importance=82),
        Field("pid", Kind.LABEL, "PID", "its process ID", importance=30),
        Field("packets", Kind.COUNTER, "DROPS", "packets dropped since nettop attached; several wire packets merged "
              "into one (GSO, GRO) count once, as in netfilter's counters", unit="packets", importance=95),
        Field("bytes", Kind.COUNTER, "BYTES", "bytes of these packets, without headers that were already removed",
              unit="bytes", width=9, importance=35, formula="sum of skb->len"),
        Field("first_seen", Kind.TIME, "FIRST", "time of the refresh that saw the first drop", importance=25),
        Field("last_seen", Kind.TIME, "LAST", "time of the refresh that saw the last drop"),
    ),
    screen=("reason", "meaning", "place", "protocol", "port", "process", "interface", "namespace", "packets_per_s",
            "packets", "last_seen"),
    text=("reason", "severity", "place", "family", "protocol", "interface", "netns", "namespace", "port", "process",
          "pid", "packets", "bytes", "first_seen", "last_seen"),
    sort="-packets_per_s",
    begins_at_zero=True,
    uses=("connections",),
    rules=(
        # A few a second are announcements of IPv6 on links that are not connected.
        Rule(
            "losing packets",
            f"severity=trouble reason!=CPU_BACKLOG reason!~QDISC_ reason!~FQ_ reason!=CAKE_FLOOD not {_SILENT_HOP} "
            "packets_per_s>=5",
            _DROPPED,
            "packets dropped because a resource ran out or data was damaged; MEANING says which, and what would help",
            "see MEANING, and which interface and process they were for",
            by=("reason", "netns", "interface", "port", "process"),
            explained_by=(
                "losing datagrams", "accept queue full", "SYN queue full", "data unread", "interface down",
            ),
        ),
        # What goes to other hosts by the same interface may have another cause.
        Rule(
            "next hop silent",
            f"{_SILENT_HOP} packets_per_s>=5",
            _DROPPED,
            "packets that cannot be sent because a router or host on the link does not say its link address: it is "
            "down, or in another network",
            "ip neigh show dev {interface}: FAILED is the address; ip route get ADDRESS; see whether it is up",
            certainty=Certainty.LIKELY,
            by=("reason", "netns", "interface"),
            until_sent=True,
            pause_s=10.0,
            explained_by=("interface down",),
        ),
        # TCP fills every queue until it drops, first of all at its start; CoDel, PIE and RED drop to keep queues short.
        Rule(
            "qdisc full",
            "(reason=QDISC_DROP or reason=QDISC_OVERLIMIT or reason~FQ_ or reason=CAKE_FLOOD) packets_per_s>=5",
            "more is sent on {interface}[ in {namespace}] than its qdisc lets pass: it drops {packets_per_s} packets/s",
            "packets dropped all the time because the queue in front of an interface is full: more is sent than the "
            "link, or the limit on it, lets pass; TCP slows down, datagrams are lost",
            "tc -s qdisc show dev {interface}; the view bandwidth.flows shows who sends; a longer queue adds delay",
            Severity.WARNING,
            by=("netns", "interface"),
            after_s=3.0,
            explained_by=("interface down",),
        ),
        Rule(
            "backlog full",
            "reason=CPU_BACKLOG packets_per_s>=5",
            _DROPPED,
            "packets of an interface that are dropped because the CPU that received them could not process them",
            "the view findings.cpus shows which CPU it is, and which queue interrupts it",
            by=("reason", "netns", "interface"),
            explained_by=("backlog drops",),
        ),
        Rule(
            "BPF drops",
            "(reason=XDP or reason=TC_INGRESS or reason=BPF_CGROUP_EGRESS) packets_per_s>0 process!=–",
            "{packets_per_s} packets/s for {process} :{port} are dropped on this host by {meaning}",
            "packets that a BPF program or a filter of an interface on this host drops, though a process listens at "
            "their port",
            "bpftool net list shows the programs; tc filter show dev INTERFACE ingress; see the policy of what loads "
            "them",
            Severity.WARNING,
            by=("reason", "netns", "port", "process"),
            until_sent=True,
        ),
        Rule(
            "firewall drops",
            "reason=NETFILTER_DROP packets_per_s>0 process!=–",
            "{packets_per_s} packets/s for {process} :{port} are dropped on this host by {meaning}",
            "packets that a firewall on this host drops, though a process listens at their port",
            "nft list ruleset -a, iptables -nvL: look for the rule whose counter grows",
            Severity.WARNING,
            by=("reason", "netns", "port", "process"),
            until_sent=True,
            explained_by=(
                "firewall rule drops", "firewall drops others", "firewall rule may drop", "firewall may drop others",
            ),
        ),
        Rule(
            "no listener",
            "reason=NO_SOCKET protocol=udp packets_per_s>=5",
            "{packets_per_s} datagrams/s arrive at UDP port {port}, where nobody listens",
            "datagrams for a port without a socket; their senders get ICMP port unreachable",
            "start what should listen there, or stop the sender",
            Severity.WARNING,
            by=("netns", "port"),
        ),
    ),
    metrics=(
        Metrics(("reason", "severity", "protocol", "namespace", "interface", "process"), ("packets", "bytes"),
                prefix="drops", top="drop", limit=100),
    ),
    measures=(
        Measure("drops", ("reason", "process", "port"), "packets", 1,
                "{reason} drops {now} packets/s[ for {process}][ :{port}], {before}/s before",
                filter="not severity=ordinary", is_bad=True),
    ),
)  # fmt: skip

NO_ROUTE = frozenset(("IpOutNoRoutes", "Ip6OutNoRoutes"))
"""Counters of what is not sent for lack of a route."""

_RECEIVE_ERRORS = "name=UdpRcvbufErrors or name=Udp6RcvbufErrors"
_OVERFLOWS = "name=TcpExtListenOverflows"
_FULL_SYNS = "name=TcpExtTCPReqQFullDrop or name=TcpExtTCPReqQFullDoCookies"
_CLOSED_PORTS = "name=UdpNoPorts or name=Udp6NoPorts"
_IN_NAMESPACE = "[ in namespace {namespace}]"

# They are always read, without hooks, and prove that there is a problem, but not whose.
_COUNTER_RULES = (
    Rule(
        "connections dropped",
        f"{_OVERFLOWS} packets_per_s>0",
        "{packets_per_s} handshakes/s are dropped because an accept queue is full" + _IN_NAMESPACE,
        "connections that a listener's full accept queue drops",
        "show all listeners (--all, filter state=LISTEN), sorted by ACCEPTQ",
        by=("netns",),
        explained_by=("accept queue full", "losing packets"),
        proof=("connections", "state=LISTEN accept_queue>0"),
    ),
    Rule(
        "SYNs dropped",
        f"({_FULL_SYNS}) packets_per_s>0",
        "{packets_per_s} SYNs/s meet a full SYN queue"
        + _IN_NAMESPACE
        + ": a flood, or answers that are lost",
        "SYNs that the kernel drops, or answers with a cookie, because a listener has too many half-open connections",
        "find the senders among the SYN_RECV connections",
        certainty=Certainty.LIKELY,
        by=("netns",),
        explained_by=("SYN queue full", "accept queue full", "losing packets"),
        proof=("connections", "state=SYN_RECV"),
    ),
    Rule(
        "datagrams dropped",
        f"({_RECEIVE_ERRORS}) packets_per_s>0",
        "{packets_per_s} UDP datagrams/s are dropped because a receive buffer is full" + _IN_NAMESPACE,
        "datagrams that did not fit into a socket's receive buffer",
        "open the drops lens (5), which names the socket",
        by=("netns",),
        explained_by=("losing datagrams", "losing packets"),
        proof=("drops", "reason=SOCKET_RCVBUFF"),
    ),
    Rule(
        "closed UDP port",
        f"({_CLOSED_PORTS}) packets_per_s>=5",
        "{packets_per_s} UDP datagrams/s arrive at a port where nobody listens" + _IN_NAMESPACE,
        "datagrams for ports without a socket",
        "open the drops lens (5), which shows the port",
        Severity.WARNING,
        by=("netns",),
        explained_by=("no listener",),
        proof=("drops", "reason=NO_SOCKET protocol=udp"),
    ),
    Rule(
        "no route",
        "name=IpOutNoRoutes packets_per_s>=2",
        "{packets_per_s} packets/s or connects have no route" + _IN_NAMESPACE,
        "packets and connects for which the routing table has no route",
        "ip route, ip route get ADDRESS; open the drops lens (5)",
        by=("netns",),
        explained_by=("connects fail",),
        proof=("connections.failures", "direction=outbound"),
    ),
    # Resolvers look for a source address for each address of a name.
    Rule(
        "no IPv6 route",
        "name=Ip6OutNoRoutes packets_per_s>=2",
        "{packets_per_s} packets/s or connects have no route for IPv6" + _IN_NAMESPACE,
        "packets and connects for which the routing table has no IPv6 route; on a host with IPv4 only, programs that "
        "try both look the same",
        "ip -6 route, ip -6 route get ADDRESS",
        Severity.HINT,
        Certainty.POSSIBLE,
        by=("netns",),
        explained_by=("connects fail", "connects without IPv6"),
        proof=("connections.failures", "direction=outbound"),
    ),
)

COUNTERS = Table(
    name="counters",
    fields=(
        Field("id", Kind.KEY, "ID", "number of the row", importance=2),
        Field("counter", Kind.TEXT, "COUNTER", "what happened to the packets", width=24, importance=100,
              role=FieldRole.DECLARED),
        Field("name", Kind.TEXT, "NAME", "the kernel's name, as in nstat or ip -s link", width=24, importance=60,
              role=FieldRole.DECLARED),
        Field("interface", Kind.TEXT, "IFACE", "the device, for a device's counter", importance=80),
        Field("cpu", Kind.LABEL, "CPU", "the CPU, for a CPU's counter", importance=40),
        *_NAMESPACE,
        Field("packets", Kind.COUNTER, "DROPS", "packets counted since the start of the namespace, device or machine",
              unit="packets", importance=95),
        Field("included_in", Kind.LABEL, "INCLUDED IN", "ID of the row that counts these packets too; totals with that "
              "row leave this one out", "u8", importance=1, refers=True),
    ),
    screen=("counter", "interface", "cpu", "namespace", "packets_per_s", "packets", "name"),
    text=("counter", "name", "interface", "cpu", "netns", "namespace", "packets"),
    sort="-packets_per_s",
    default_filter="packets>0",
    included_in="included_in",
    rules=_COUNTER_RULES,
    metrics=(
        Metrics(("name", "namespace", "interface"), ("packets",), prefix="drops_by_name", top="counter", limit=100),
    ),
    # The same drops as the kernel counts them, and those that only it counts.
    measures=(
        Measure("drops", ("counter", "name", "interface"), "packets", 1,
                "{counter}[ on {interface}] ({name}): {now} packets/s, {before}/s before", is_bad=True),
    ),
)  # fmt: skip

HOOK_PACKETS = Hook("packets", "every packet that the kernel drops", ("reason", "severity", "place"))
HOOK_REASONS = Hook("reasons", "why a packet was dropped", ("reason", "severity"), HOOK_PACKETS.name,
                    remedy="Linux 5.17 and later report reasons")  # fmt: skip
HOOK_PLACES = Hook("places", "the kernel function that dropped a packet", ("place",),
                   HOOK_PACKETS.name)  # fmt: skip
HOOK_COUNTERS = Hook("counters", "the kernel's drop counters of namespaces, devices and CPUs")

LENS = Lens(
    id="drops",
    title="Drops",
    order=5,
    digit="5",
    question="what the kernel drops, where and why",
    tables=(PACKETS, COUNTERS),
    hooks=(HOOK_PACKETS, HOOK_REASONS, HOOK_PLACES, HOOK_COUNTERS),
    vocabulary=(
        IP_PROTOCOLS,
        ETHERTYPES,
        OF_NAMESPACES,
        OF_DEVICES,
        OF_CPUS,
        {name: reason.meaning for name, reason in REASONS.items()},
    ),
    losses={
        "untracked": "drops without a row, because the map was full",
        "recursion": "drops not counted because another one was being counted on that CPU",
        "namespaces": "network namespaces that could not be entered: their counters are missing",
        "devices": "network namespaces whose devices could not be listed: the devices have no names and no counters",
    },
)
