# SPDX-License-Identifier: Apache-2.0
"""The bandwidth lens: traffic of each interface by protocol, service and flow."""

from __future__ import annotations

import re
from dataclasses import replace

from nettop.errors import UsageError
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
    Option,
    Rule,
    Severity,
    Table,
    moved_bytes,
)

NEAR_SPEED = 0.9
"""Share of an interface's speed from which queues build up during bursts."""

# --- names of numbers ----------------------------------------------------------------------------------------

PROTOCOLS = ("tcp", "udp", "icmp", "icmpv6", "arp", "sctp", "other")
CASTS = ("broadcast", "multicast")
KINDS = 32
"""Number of kinds a packet is counted as: a protocol, a cast (never kind 0, which means neither), a service."""
NO_SERVICE = len(PROTOCOLS) + len(CASTS)
SERVICES_MAX = KINDS - NO_SERVICE - 1

SERVICES = (
    ("HTTP", 80, "tcp"), ("HTTPS", 443, "tcp"), ("QUIC", 443, "udp"), ("DNS", 53, "tcp"), ("DNS", 53, "udp"),
    ("SSH", 22, "tcp"),
)  # fmt: skip
"""Services counted by default: name, port, protocol."""

MODES = {0: "counters", 1: "XDP native", 2: "XDP generic", 3: "TCX", 4: "after XDP"}
COUNTERS_MODE, NATIVE_MODE, GENERIC_MODE, TCX_MODE, AFTER_XDP_MODE = MODES
BACKINGS = {0: "virtual", 1: "uplink"}
VIRTUAL, UPLINK = BACKINGS
STATES = {0: "down", 1: "up", 2: "unplugged"}
DOWN, UP, UNPLUGGED = STATES
DUPLEX_MODES = {0: "half", 1: "full"}
"""DUPLEX_* in linux/ethtool.h."""

PROTOCOL_NOT_IP = 255
ETHERTYPES = {
    0x0806: "arp", 0x8809: "lacp", 0x8847: "mpls", 0x8863: "pppoe", 0x8864: "pppoe", 0x888E: "eapol",
    0x88CC: "lldp", 0x88F7: "ptp",
}  # fmt: skip
_KINDS = """
    bond bridge dummy ether geneve gre gretap ifb ip6gre ip6tnl ipip ipvlan macsec macvlan macvtap netkit sit team tun
    veth vlan vrf vti vxlan wireguard xfrm
"""
"""Kinds of interfaces (IFLA_INFO_KIND)."""

# --- options --------------------------------------------------------------------------------------------------

_SERVICE = re.compile(r"([^=,]{1,24})=(\d{1,5})(?:/(tcp|udp))?")


def parse_services(text: str) -> list[tuple[str, int, str]]:
    """Parse `name=port[/proto],…` into name, port and protocol; without a protocol, both.

    Raise UsageError for invalid or too many services.
    """
    services: list[tuple[str, int, str]] = []
    for word in filter(None, map(str.strip, text.split(","))):
        match = _SERVICE.fullmatch(word)
        if match is None or not 0 < int(match[2]) < 1 << 16:
            raise UsageError(
                f"--service {word!r} is not NAME=PORT[/PROTO]", "write it like --service redis=6379/tcp"
            )
        services += [
            (match[1], int(match[2]), proto) for proto in ([match[3]] if match[3] else ["tcp", "udp"])
        ]
    names = {name for name, _, _ in (*SERVICES, *services)}
    if len(names) > SERVICES_MAX:
        raise UsageError(
            f"too many services: {len(names)} with the built-in ones, and there is room for {SERVICES_MAX}",
            "give --service less often",
        )
    return services


INTERFACE = Option(
    "interface",
    "Count only these interfaces, by name, altname or pattern (eth*); repeatable (all that are up, except loopback)",
    default="",
    metavar="NAME",
    short="-i",
    repeatable=True,
)
NO_INTERFACE = "--interface"
"""The gap for patterns of --interface that match no interface yet."""
LOOPBACK = Option(
    "loopback",
    "Count the loopback interface too",
    default="off",
    metavar="on|off",
    steps=("off", "on"),
    key="L",
)
XDP = Option(
    "xdp",
    "Receive mechanism: native XDP in drivers that have it (attaching it may reset a device's queues and stop traffic "
    "for a moment), tcx (Linux 6.6), generic XDP on any device, or off: only the interfaces' own counters",
    default="native",
    metavar="native|tcx|generic|off",
    steps=("native", "tcx", "generic", "off"),
    unattended_default="tcx",
)
FLOWS_OPTION = Option(
    "flows", "Follow flows", default="on", metavar="on|off", steps=("on", "off"), tables=("flows",)
)
SERVICE = Option(
    "service",
    "Count this service too; repeatable",
    default="",
    metavar="NAME=PORT[/PROTO]",
    repeatable=True,
    tables=("services",),
    check=lambda text, _interval_s: parse_services(text),
)

# --- tables ---------------------------------------------------------------------------------------------------

_INTERFACE = Field("interface", Kind.TEXT, "INTERFACE", "the network interface", width=14, importance=100)
_RECEIVED = Field("bytes_received", Kind.COUNTER, "RECV", "bytes received, with link-layer headers, without checksum "
                  "and preamble; every packet merged by GRO counts with its own headers", unit="bytes", importance=95,
                  tone="received", rate_title="IN")  # fmt: skip
_SENT = Field("bytes_sent", Kind.COUNTER, "SENT", "bytes sent, with link-layer headers, without checksum and preamble; "
              "every packet segmented by the interface (GSO) counts with its own headers", unit="bytes", importance=94,
              tone="sent", rate_title="OUT")  # fmt: skip
_BYTES = Field("bytes", Kind.SUM, "BYTES", "bytes received and sent", importance=20,
               parts=("bytes_received", "bytes_sent"))  # fmt: skip
_PACKETS_RECEIVED = Field("packets_received", Kind.COUNTER, "PKTS IN", "packets received", unit="packets",
                          importance=70, tone="received", rate_title="PPS IN")  # fmt: skip
_PACKETS_SENT = Field("packets_sent", Kind.COUNTER, "PKTS OUT", "packets sent", unit="packets", importance=69,
                      tone="sent", rate_title="PPS OUT")  # fmt: skip

_MOVED = ("bytes_received", "bytes_sent", "packets_received", "packets_sent")

INTERFACES = Table(
    name="interfaces",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of its namespace and index", importance=2),
        _INTERFACE,
        Field("kind", Kind.TEXT, "KIND", "kind of interface, as in `ip -d link`; ether for a network card", width=8,
              importance=45, role=FieldRole.DECLARED),
        NETNS,
        replace(NAMESPACE, importance=30),
        Field("backing", Kind.ENUM, "BACKING", "uplink: a device or, if there is none, a link to another namespace; "
              "host totals add these up. virtual: its traffic passes an uplink too", width=8, importance=40,
              labels=BACKINGS),
        Field("mode", Kind.ENUM, "MODE", "how received packets are seen. counters: only the kernel's own counters; "
              "after XDP: TCX sees what another XDP program lets pass", importance=75, labels=MODES),
        Field("state", Kind.ENUM, "STATE", "up, down, or unplugged: up, but without a carrier", importance=25,
              labels=STATES),
        Field("link_ups", Kind.GAUGE, "LINK UPS", "times that its carrier appeared", "u4", "times", importance=4),
        Field("speed", Kind.GAUGE, "SPEED", "negotiated link speed; a virtual interface has none, unless it is that of "
              "the cards below", unit="bytes/s", width=9, importance=35),
        Field("duplex", Kind.ENUM, "DUPLEX", "full: it sends and receives at once; half: one at a time", importance=5,
              labels=DUPLEX_MODES),
        _RECEIVED,
        _SENT,
        _BYTES,
        Field("capacity", Kind.COUNTER, "CAPACITY", "bytes that the link speed allows, each way", unit="bytes",
              importance=3),
        Field("use_received", Kind.RATIO, "IN %", "bytes received ÷ capacity", width=6, importance=85,
              parts=("bytes_received", "capacity"), tone="received"),
        Field("use_sent", Kind.RATIO, "OUT %", "bytes sent ÷ capacity", width=6, importance=84,
              parts=("bytes_sent", "capacity"), tone="sent"),
        _PACKETS_RECEIVED,
        _PACKETS_SENT,
        Field("broadcast", Kind.COUNTER, "BCAST", "broadcast packets, received and sent", unit="packets", width=8,
              importance=28),
        Field("multicast", Kind.COUNTER, "MCAST", "multicast packets, received and sent", unit="packets", width=8,
              importance=27),
        Field("unseen", Kind.COUNTER, "UNSEEN", "received packets, by the interface's own counter, that nettop's "
              "program did not see (lower bound): another program, bridge rules or the hardware took them first",
              unit="packets", width=8, importance=57, formula="rx_packets − packets seen", tone="warn",
              rate_title="UNSEEN"),
        Field("drops_received", Kind.COUNTER, "DROP IN", "received packets that the interface dropped, by its own "
              "counters", unit="packets", width=8, importance=60, formula="rx_dropped + rx_missed_errors", tone="warn",
              rate_title="DROP IN"),
        Field("drops_sent", Kind.COUNTER, "DROP OUT", "packets that the interface did not send, by its own counters",
              unit="packets", width=8, importance=59, formula="tx_dropped", tone="warn", rate_title="DROP OUT"),
        Field("errors", Kind.COUNTER, "ERRORS", "receive and send errors, by its own counters", unit="packets", width=8,
              importance=58, formula="rx_errors + tx_errors", tone="warn", rate_title="ERRORS"),
    ),
    screen=("interface", "mode", "bytes_received_per_s", "bytes_sent_per_s", "use_received", "use_sent",
            "packets_received_per_s", "packets_sent_per_s", "drops_received_per_s", "drops_sent_per_s", "errors_per_s",
            "kind", "speed"),
    text=("interface", "kind", "netns", "namespace", "mode", "speed", "bytes_received", "bytes_sent",
          "packets_received", "packets_sent", "use_received", "use_sent", "unseen", "drops_received", "drops_sent",
          "errors"),
    sort="-bytes_per_s",
    text_sort="interface",
    watched="bytes",
    default_filter="state!=down",
    adds_up=False,
    whole="backing=uplink",
    begins_at_zero=True,
    cumulative=True,
    rules=(
        Rule(
            "interface errors",
            "kind=ether errors_per_s>0",
            "{interface}[ in {namespace}] has {errors_per_s} receive or send errors/s",
            "interfaces that receive or send damaged packets: cable, connector, transceiver or duplex",
            "ethtool -S {interface}; replace the cable or the transceiver; compare duplex and speed of both ends",
            by=("interface", "netns"),
        ),
        Rule(
            "virtual interface errors",
            "kind!=ether kind!=bond kind!=team errors_per_s>=1",
            "{interface}[ in {namespace}] has {errors_per_s} receive or send errors/s",
            "tunnels and other virtual interfaces with packets that they cannot deliver: no peer for their address, no "
            "route to the peer, or damage; announcements to multicast addresses, which most tunnels cannot send, look "
            "the same",
            "ip -s -s link show {interface}; see whether the peer of the tunnel answers",
            Severity.HINT,
            Certainty.POSSIBLE,
            by=("interface", "netns"),
        ),
        Rule(
            "half duplex",
            "duplex=half state=up",
            "{interface}[ in {namespace}] cannot send and receive at once: its link is half duplex",
            "interfaces whose link is half duplex: most likely only one end negotiates, so that frames collide and are "
            "lost",
            "ethtool {interface}; let both ends negotiate (ethtool -s {interface} autoneg on), or set both the same",
            Severity.WARNING,
            by=("interface", "netns"),
        ),
        # A few drops a second are frames of protocols that nobody listens for, as on most networks.
        Rule(
            "interface drops",
            "drops_received_per_s>=10 or drops_sent_per_s>=10",
            "{interface}[ in {namespace}] drops {drops_received_per_s} received and {drops_sent_per_s} sent packets/s",
            "interfaces that drop packets: their queue is full (ethtool -g), or nothing listens for the packets' "
            "protocol",
            "a longer ring (ethtool -G {interface}) or queue (tc -s qdisc show dev {interface}); lens 5 says why",
            Severity.WARNING,
            by=("interface", "netns"),
            explained_by=("losing packets", "qdisc full", "backlog full"),
        ),
        Rule(
            "interface near its speed",
            f"use_received>={NEAR_SPEED:.0%} or use_sent>={NEAR_SPEED:.0%}",
            "{interface} is almost full: {use_received} in, {use_sent} out",
            "interfaces that carry almost as much as their speed allows",
            "lens 3 shows whose traffic it is",
            Severity.WARNING,
            by=("interface", "netns"),
        ),
        Rule(
            "interface down",
            "state=unplugged link_ups>0 (kind=ether or kind=veth or kind=bond)",
            "{interface}[ in {namespace}] has lost its link",
            "interfaces that are up, but have lost their carrier",
            "ip link show {interface}: check the cable, the switch's port, or the other end of the pair",
            Severity.WARNING,
            Certainty.LIKELY,
            by=("interface", "netns"),
        ),
    ),
    metrics=(
        Metrics(
            ("namespace", "interface", "backing"),
            (*_MOVED, "broadcast", "multicast", "unseen", "drops_received", "drops_sent", "errors", "speed"),
        ),
    ),
    measures=(
        *moved_bytes("interfaces", "interface", 10_000),
        Measure("interface errors", ("interface",), "errors", 0.2,
                "{interface} has {now} errors/s, {before}/s before", is_bad=True),
    ),
)  # fmt: skip


def _split_table(name: str, field: Field) -> Table:
    """Declare a table of interface traffic, split by one more field."""
    return Table(
        name=name,
        fields=(
            Field("id", Kind.KEY, "ID", "number of the row", importance=2),
            _INTERFACE,
            field,
            _RECEIVED,
            _SENT,
            _BYTES,
            _PACKETS_RECEIVED,
            _PACKETS_SENT,
        ),
        screen=("interface", field.name, "bytes_received_per_s", "bytes_sent_per_s", "packets_received_per_s",
                "packets_sent_per_s"),
        sort="-bytes_per_s",
        watched="bytes",
        adds_up=False,
        begins_at_zero=True,
        hooks=("received", "sent"),
        cumulative=True,
        metrics=(Metrics(("interface", field.name), _MOVED, prefix=f"bandwidth_{field.name}"),),
    )  # fmt: skip


PROTOCOL_TABLE = _split_table(
    "protocols",
    Field("protocol", Kind.ENUM, "PROTO", "the packet's protocol; later fragments count as their packet's protocol",
          width=8, importance=99, labels=dict(enumerate(PROTOCOLS))),
)  # fmt: skip
SERVICE_TABLE = _split_table(
    "services",
    Field("service", Kind.TEXT, "SERVICE", "the service by port, the lower port first; (other) is everything else",
          importance=99, role=FieldRole.SERVICE),
)  # fmt: skip

FLOWS = Table(
    name="flows",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the flow's addresses, ports, protocol and interface", importance=2),
        replace(_INTERFACE, importance=60),
        Field("protocol", Kind.TEXT, "PROTO", "the protocol in the IP header, or the network protocol if not IP",
              width=7, importance=80, role=FieldRole.DECLARED),
        Field("local", Kind.ENDPOINT, "LOCAL", "destination of received packets, source of sent ones", width=21,
              importance=88, parts=("local_address", "local_port")),
        Field("remote", Kind.ENDPOINT, "REMOTE", "source of received packets, destination of sent ones", width=21,
              importance=92, parts=("remote_address", "remote_port")),
        Field("local_address", Kind.ADDRESS, "LADDR", "address on this side of the interface", width=15, importance=10),
        Field("local_port", Kind.LABEL, "LPORT", "port on this side", "u2", importance=9),
        Field("remote_address", Kind.ADDRESS, "RADDR", "address on the other side", width=15, importance=11),
        Field("remote_port", Kind.LABEL, "RPORT", "port on the other side", "u2", importance=8),
        Field("process", Kind.TEXT, "PROCESS", "the process that owns the flow's socket", width=15, importance=90),
        Field("pid", Kind.LABEL, "PID", "its process ID", importance=38),
        _RECEIVED,
        _SENT,
        _BYTES,
        _PACKETS_RECEIVED,
        _PACKETS_SENT,
        Field("tcp_flags", Kind.TEXT, "FLAGS", "TCP flags seen: F S R P A U E C", width=8, role=FieldRole.TCP_FLAGS),
        Field("first_seen", Kind.TIME, "FIRST", "the first packet since counting of the flow began", importance=15),
        Field("last_seen", Kind.TIME, "LAST", "the last packet", importance=18),
    ),
    screen=("process", "remote", "local", "protocol", "interface", "bytes_received_per_s", "bytes_sent_per_s",
            "packets_received_per_s", "packets_sent_per_s", "tcp_flags"),
    text=("interface", "protocol", "local", "remote", "process", "pid", "bytes_received", "bytes_sent",
          "packets_received", "packets_sent", "tcp_flags", "first_seen", "last_seen"),
    sort="-bytes_per_s",
    watched="bytes",
    adds_up=False,
    begins_at_zero=True,
    cumulative=True,
    uses=("connections",),
    hooks=("flows",),
    metrics=(),
)  # fmt: skip

HOOK_RECEIVED = Hook(
    "received", "every packet received by an interface, by protocol and service", ("broadcast", "multicast")
)
HOOK_SENT = Hook("sent", "every packet handed to an interface for sending, by protocol and service")
HOOK_FLOWS = Hook("flows", "packets by addresses and ports", requires=HOOK_RECEIVED.name)
HOOK_INTERFACES = Hook("interfaces", "the interfaces and their own counters")

REMOVED = "(removed)"
"""The row of each table that sums up removed interfaces."""
EVICTED = "(evicted)"
"""The row that sums up evicted flows."""
WITHOUT_SLOT = "uncounted"
OTHER_SERVICES = "(other)"

LENS = Lens(
    id="bandwidth",
    title="Bandwidth",
    order=3,
    digit="3",
    question="which interface carries what, and for whom",
    tables=(INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE, FLOWS),
    common=(("interface",),),
    hooks=(HOOK_RECEIVED, HOOK_SENT, HOOK_FLOWS, HOOK_INTERFACES),
    names=frozenset({REMOVED, EVICTED, OTHER_SERVICES, *(name for name, _, _ in SERVICES)}),
    vocabulary=(IP_PROTOCOLS, ETHERTYPES, dict.fromkeys(_KINDS.split(), "")),
    losses={
        WITHOUT_SLOT: "interfaces beyond the maximum, at each reading: only their own counters are shown",
        "unseen": "packets that interfaces received, by their own counters, and nettop's programs did not see; "
        "bandwidth.interfaces counts them by interface",
        "refused": "packets counted as sent that a driver below another one may have refused",
        "recursion": "packets not counted as sent because another one was being counted on that CPU",
        "namespaces": "network namespaces whose interfaces could not be listed",
    },
    options=(INTERFACE, LOOPBACK, XDP, FLOWS_OPTION, SERVICE),
    counts=(
        Field("flows", Kind.GAUGE, "FLOWS", "flows being followed"),
        Field("flows_evicted", Kind.COUNTER, "EVICTED", "flows evicted to make room for others"),
    ),
)
