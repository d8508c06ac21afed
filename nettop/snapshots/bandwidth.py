# SPDX-License-Identifier: Apache-2.0
"""The bandwidth lens: what each interface carries, by protocol and service, and which flows it is."""

from __future__ import annotations

import re
from dataclasses import replace

from nettop.errors import UsageError
from nettop.snapshots.schema import NAMESPACE, NETNS, Field, Hook, Kind, Lens, Loss, Metrics, Option, Table

# --- words for numbers ----------------------------------------------------------------------------------------

PROTOCOLS = ("tcp", "udp", "icmp", "icmpv6", "arp", "sctp", "other")
CASTS = ("broadcast", "multicast")
KINDS = 32
"""What a packet is counted as: a protocol, a cast (never the first kind, as 0 is neither), a service."""
NO_SERVICE = len(PROTOCOLS) + len(CASTS)
SERVICES_MAX = KINDS - NO_SERVICE - 1

SERVICES = (
    ("HTTP", 80, "tcp"), ("HTTPS", 443, "tcp"), ("QUIC", 443, "udp"), ("DNS", 53, "tcp"), ("DNS", 53, "udp"),
    ("SSH", 22, "tcp"),
)  # fmt: skip
"""The services that are counted unasked: name, port, protocol."""

MODES = {0: "counters", 1: "XDP native", 2: "XDP generic", 3: "TCX", 4: "after XDP"}
COUNTERS_MODE, NATIVE_MODE, GENERIC_MODE, TCX_MODE, AFTER_XDP_MODE = MODES
BACKINGS = {0: "virtual", 1: "uplink"}
VIRTUAL, UPLINK = BACKINGS
STATES = {0: "down", 1: "up"}

PROTOCOL_NOT_IP = 255
ETHERTYPES = {
    0x0806: "arp", 0x8809: "lacp", 0x8847: "mpls", 0x8863: "pppoe", 0x8864: "pppoe", 0x888E: "eapol",
    0x88CC: "lldp", 0x88F7: "ptp",
}  # fmt: skip

# --- options --------------------------------------------------------------------------------------------------

_SERVICE = re.compile(r"([^=,]{1,24})=(\d{1,5})(?:/(tcp|udp))?")


def parse_services(text: str) -> list[tuple[str, int, str]]:
    """The services of `name=port[/proto],…`: name, port and protocol; both protocols where none is given.

    Raises UsageError for what is none, and for more than there is room for.
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
            f"--service names {len(names)} services with the known ones: there is room for {SERVICES_MAX}",
            "give fewer",
        )
    return services


def _check_services(text: str, _interval_s: float) -> None:
    parse_services(text)


INTERFACE = Option(
    "interface",
    "Count these interfaces only, by name or pattern (eth*); may be repeated. Otherwise all that are up, but loopback",
    default="",
    metavar="NAME",
    short="-i",
    repeatable=True,
)
NO_INTERFACE = "--interface"
"""The gap of patterns of --interface that no interface matches yet."""
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
    "How received packets are seen: native XDP where the driver has it; TCX where the kernel has it (Linux 6.6), as "
    "attaching native XDP may reset a device's queues, so that traffic stops for a moment; generic XDP everywhere, "
    "which never does; or neither: the interfaces' own counters",
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
    "Count this service too; may be repeated",
    default="",
    metavar="NAME=PORT[/PROTO]",
    repeatable=True,
    tables=("services",),
    check=_check_services,
)

# --- tables ---------------------------------------------------------------------------------------------------

_INTERFACE = Field(
    "interface", Kind.TEXT, "INTERFACE", "the network interface", "u4", width=14, importance=100
)
_RECEIVED = Field("bytes_received", Kind.COUNTER, "RECV", "bytes received, link-layer headers included, without "
                  "checksum and preamble; of what GRO has put together each packet has headers of its own",
                  "u8", "bytes", 10, 95, tone="received", rate_title="IN")  # fmt: skip
_SENT = Field("bytes_sent", Kind.COUNTER, "SENT", "bytes sent, link-layer headers included, without checksum and "
              "preamble; of what the interface is to segment (GSO) each packet has headers of its own",
              "u8", "bytes", 10, 94, tone="sent", rate_title="OUT")  # fmt: skip
_BYTES = Field("bytes", Kind.SUM, "BYTES", "bytes received and sent", width=10, importance=20,
               parts=("bytes_received", "bytes_sent"))  # fmt: skip
_PACKETS_RECEIVED = Field("packets_received", Kind.COUNTER, "PKTS IN", "packets received", "u8", "packets", 9, 70,
                          tone="received", rate_title="PPS IN")  # fmt: skip
_PACKETS_SENT = Field("packets_sent", Kind.COUNTER, "PKTS OUT", "packets sent", "u8", "packets", 9, 69,
                      tone="sent", rate_title="PPS OUT")  # fmt: skip

_MOVED = ("bytes_received", "bytes_sent", "packets_received", "packets_sent")

INTERFACES = Table(
    name="interfaces",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of its namespace and index", "u8", width=6, importance=2),
        _INTERFACE,
        Field("kind", Kind.TEXT, "KIND", "what it is, as `ip -d link` names it; ether for a network card", "u4",
              width=8, importance=45),
        NETNS,
        replace(NAMESPACE, importance=30),
        Field("backing", Kind.ENUM, "BACKING", "uplink: a device; where there is none, a link to another namespace. "
              "Host totals add these up; virtual: what it carries passes an uplink too", "u1",
              width=8, importance=40, labels=BACKINGS),
        Field("mode", Kind.ENUM, "MODE", "how received packets are seen; counters: only the kernel's own numbers; "
              "after XDP: by TCX, what an XDP program of somebody else lets pass", "u1",
              width=11, importance=75, labels=MODES),
        Field("state", Kind.ENUM, "STATE", "whether it is up", "u1", width=5, importance=25, labels=STATES),
        Field("speed", Kind.GAUGE, "SPEED", "what the link negotiated", "u8", "bytes/s", 9, 35),
        _RECEIVED,
        _SENT,
        _BYTES,
        Field("capacity", Kind.COUNTER, "CAPACITY", "what the speed allows in the time, each way", "u8", "bytes",
              10, 3),
        Field("use_received", Kind.RATIO, "IN %", "bytes received ÷ what the speed allows", "", "", 6, 85,
              parts=("bytes_received", "capacity"), tone="received"),
        Field("use_sent", Kind.RATIO, "OUT %", "bytes sent ÷ what the speed allows", "", "", 6, 84,
              parts=("bytes_sent", "capacity"), tone="sent"),
        _PACKETS_RECEIVED,
        _PACKETS_SENT,
        Field("broadcast", Kind.COUNTER, "BCAST", "packets received and sent to everybody", "u8", "packets", 8, 28),
        Field("multicast", Kind.COUNTER, "MCAST", "packets received and sent to a group", "u8", "packets", 8, 27),
        Field("unseen", Kind.COUNTER, "UNSEEN", "received packets, by the interface's own counter, that nettop's "
              "program did not see, at least: another program, a bridge's rules or the hardware took them before", "u8",
              "packets", 8, 57, "rx_packets − what was seen", tone="warn", rate_title="UNSEEN"),
        Field("drops_received", Kind.COUNTER, "DROP IN", "received packets that the interface dropped, by its own "
              "counters", "u8", "packets", 8, 60, "rx_dropped + rx_missed_errors", tone="warn",
              rate_title="DROP IN"),
        Field("drops_sent", Kind.COUNTER, "DROP OUT", "packets that the interface did not send, by its own counters",
              "u8", "packets", 8, 59, "tx_dropped", tone="warn", rate_title="DROP OUT"),
        Field("errors", Kind.COUNTER, "ERRORS", "errors of receiving and sending, by its own counters", "u8",
              "packets", 8, 58, "rx_errors + tx_errors", tone="warn", rate_title="ERRORS"),
    ),
    key="id",
    screen=("interface", "mode", "bytes_received_per_s", "bytes_sent_per_s", "use_received", "use_sent",
            "packets_received_per_s", "packets_sent_per_s", "drops_received_per_s", "drops_sent_per_s", "errors_per_s",
            "kind", "speed"),
    text=("interface", "kind", "netns", "namespace", "mode", "speed", "bytes_received", "bytes_sent",
          "packets_received", "packets_sent", "use_received", "use_sent", "unseen", "drops_received", "drops_sent",
          "errors"),
    sort="-bytes_per_s",
    text_sort="interface",
    watched="bytes",
    default_filter="state=up",
    adds_up=False,
    whole="backing=uplink",
    begins_at_zero=True,
    cumulative=True,
    metrics=(
        Metrics(
            ("namespace", "interface", "backing"),
            (*_MOVED, "broadcast", "multicast", "unseen", "drops_received", "drops_sent", "errors", "speed"),
        ),
    ),
)  # fmt: skip


def _split(name: str, field: Field) -> Table:
    """What interfaces carry, split by one more field."""
    return Table(
        name=name,
        fields=(
            Field("id", Kind.KEY, "ID", "number of the row", "u8", width=6, importance=2),
            _INTERFACE,
            field,
            _RECEIVED,
            _SENT,
            _BYTES,
            _PACKETS_RECEIVED,
            _PACKETS_SENT,
        ),
        key="id",
        screen=("interface", field.name, "bytes_received_per_s", "bytes_sent_per_s", "packets_received_per_s",
                "packets_sent_per_s"),
        text=("interface", field.name, "bytes_received", "bytes_sent", "packets_received", "packets_sent"),
        sort="-bytes_per_s",
        text_sort="-bytes",
        watched="bytes",
        adds_up=False,
        begins_at_zero=True,
        hooks=("received", "sent"),
        cumulative=True,
        metrics=(Metrics(("interface", field.name), _MOVED, prefix=f"bandwidth_{field.name}"),),
    )  # fmt: skip


PROTOCOL_TABLE = _split(
    "protocols",
    Field("protocol", Kind.ENUM, "PROTO", "the protocol that the packet carries; later fragments have their "
          "packet's", "u1", width=8, importance=99, labels=dict(enumerate(PROTOCOLS))),
)  # fmt: skip
SERVICE_TABLE = _split(
    "services",
    Field("service", Kind.TEXT, "SERVICE", "the service that a port belongs to, the lower one of both first; (other) "
          "is everything else", "u4", width=12, importance=99),
)  # fmt: skip

FLOWS = Table(
    name="flows",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of the flow's addresses, ports, protocol and interface", "u8",
              width=6, importance=2),
        replace(_INTERFACE, importance=60),
        Field("protocol", Kind.TEXT, "PROTO", "the protocol in the IP header, else the network protocol", "u4",
              width=7, importance=80),
        Field("local", Kind.ENDPOINT, "LOCAL", "where received packets go to, and sent ones come from", width=21,
              importance=88, parts=("local_address", "local_port")),
        Field("remote", Kind.ENDPOINT, "REMOTE", "where received packets come from, and sent ones go to", width=21,
              importance=92, parts=("remote_address", "remote_port")),
        Field("local_address", Kind.ADDRESS, "LADDR", "address at this side of the interface", "(2,)>u8", width=15,
              importance=10),
        Field("local_port", Kind.LABEL, "LPORT", "port at this side", "u2", width=5, importance=9),
        Field("remote_address", Kind.ADDRESS, "RADDR", "address at the other side", "(2,)>u8", width=15,
              importance=11),
        Field("remote_port", Kind.LABEL, "RPORT", "port at the other side", "u2", width=5, importance=8),
        Field("process", Kind.TEXT, "PROCESS", "the process that owns the flow's socket", "u4", width=15,
              importance=90),
        Field("pid", Kind.LABEL, "PID", "its process ID", "u4", width=7, importance=38),
        _RECEIVED,
        _SENT,
        _BYTES,
        _PACKETS_RECEIVED,
        _PACKETS_SENT,
        Field("tcp_flags", Kind.TEXT, "FLAGS", "TCP flags seen: F S R P A U E C", "u4", width=8, importance=50),
        Field("first_seen", Kind.TIME, "FIRST", "the first packet since the flow was counted", "u8", "ns",
              width=19, importance=15),
        Field("last_seen", Kind.TIME, "LAST", "the last packet", "u8", "ns", width=19, importance=18),
    ),
    key="id",
    screen=("process", "remote", "local", "protocol", "interface", "bytes_received_per_s", "bytes_sent_per_s",
            "packets_received_per_s", "packets_sent_per_s", "tcp_flags"),
    text=("interface", "protocol", "local", "remote", "process", "pid", "bytes_received", "bytes_sent",
          "packets_received", "packets_sent", "tcp_flags", "first_seen", "last_seen"),
    sort="-bytes_per_s",
    text_sort="-bytes",
    watched="bytes",
    adds_up=False,
    begins_at_zero=True,
    cumulative=True,
    uses=("connections",),
    hooks=("flows",),
    metrics=(),
)  # fmt: skip

HOOK_RECEIVED = Hook(
    "received", "every packet that an interface receives, by protocol and service", ("broadcast", "multicast")
)
HOOK_SENT = Hook("sent", "every packet that an interface is given to send, by protocol and service")
HOOK_FLOWS = Hook("flows", "packets by their addresses and ports", requires=HOOK_RECEIVED.name)
HOOK_INTERFACES = Hook("interfaces", "the interfaces and their own counters")

REMOVED = "(removed)"
"""What interfaces had counted that are gone, as one row of each table."""
EVICTED = "(evicted)"
"""What flows had counted that had to make room for others, as one row."""
WITHOUT_PLACE = "uncounted"
OTHER_SERVICES = "(other)"

LENS = Lens(
    id="bandwidth",
    title="Bandwidth",
    order=3,
    digit="3",
    question="which interface carries what, and for whom?",
    tables=(INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE, FLOWS),
    common=(("interface",),),
    hooks=(HOOK_RECEIVED, HOOK_SENT, HOOK_FLOWS, HOOK_INTERFACES),
    losses=(
        Loss(
            WITHOUT_PLACE,
            "interfaces beyond the bound, at each reading: of these there are only their own counters",
            for_lack_of_room=True,
        ),
        Loss(
            "unseen",
            "packets that interfaces received, by their own counters, and nettop's programs did not see; "
            "bandwidth.interfaces has them by interface",
        ),
        Loss("refused", "packets counted as sent that a driver below another one may have refused"),
        Loss(
            "recursion",
            "packets that were not counted as sent, because another one was being counted on that CPU",
        ),
        Loss("namespaces", "network namespaces whose interfaces could not be listed"),
    ),
    options=(INTERFACE, LOOPBACK, XDP, FLOWS_OPTION, SERVICE),
    counts=(
        Field("flows", Kind.GAUGE, "FLOWS", "flows that are followed"),
        Field("flows_evicted", Kind.COUNTER, "EVICTED", "flows that had to make room for others"),
    ),
)
