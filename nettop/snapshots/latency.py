# SPDX-License-Identifier: Apache-2.0
"""The latency lens: where packets wait, as a histogram per stage, protocol and pair of hosts."""

from __future__ import annotations

from dataclasses import replace

from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import (
    SUM_ONLY,
    Field,
    FieldRole,
    Hook,
    Kind,
    Lens,
    Measure,
    Metrics,
    Option,
    Table,
)

# --- names of numbers ----------------------------------------------------------------------------------------

STAGES = {
    0: "wire-ip", 1: "wire-socket", 2: "wire-app", 3: "backlog", 4: "ip", 5: "socket-wait", 6: "qdisc",
    7: "handshake", 8: "rtt",
}  # fmt: skip
WIRE_IP, WIRE_SOCKET, WIRE_APP, BACKLOG, IP, SOCKET_WAIT, QDISC, HANDSHAKE, RTT = STAGES
MEANINGS = {
    WIRE_IP: "from the receive timestamp to the IP layer",
    WIRE_SOCKET: "from the receive timestamp to the socket's queue",
    WIRE_APP: "from the receive timestamp until the application has read it",
    BACKLOG: "from netif_rx to the CPU that takes it from its backlog",
    IP: "from ip_rcv_core to local delivery or forwarding",
    SOCKET_WAIT: "from the socket's queue until the application has read it",
    QDISC: "from the queueing discipline to the driver",
    HANDSHAKE: "from the SYN to the established connection, on both sides",
    RTT: "TCP's smoothed round-trip time, of each connection at each reading",
}
"""Meaning of each stage."""
PROTOCOLS = {0: "tcp", 1: "udp", 2: "icmp", 3: "other"}
FAMILIES = {0: "IPv4", 1: "IPv6"}

BUCKETS = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
"""64 ns to 17 s, within 3.2 %."""
PAIR_BUCKETS = Buckets(first_bit=6, last_bit=34, divided_by_bits=2)
"""Coarser buckets for pairs, as there are many: within 12.5 %."""

# --- options --------------------------------------------------------------------------------------------------

SAMPLING = Option(
    "sampling",
    "Follow one packet in N, chosen where a stage begins; 0 adapts N to stay below 10,000 packets a second",
    default=0,
    metavar="N",
    minimum=0,
    maximum=1 << 16,
    steps=(0, 1, 16, 256, 4096),
    key="N",
)

# --- hooks ----------------------------------------------------------------------------------------------------

HOOKS = {
    stage: Hook(STAGES[stage].replace("-", "_"), f"{STAGES[stage]}: {meaning}")
    for stage, meaning in MEANINGS.items()
}
"""The hook of each stage."""
_ALL_HOOKS = tuple(hook.name for hook in HOOKS.values())
_PACKET_HOOKS = tuple(hook.name for stage, hook in HOOKS.items() if stage not in (HANDSHAKE, RTT))

# --- tables ---------------------------------------------------------------------------------------------------

_STAGE = Field("stage", Kind.ENUM, "STAGE", "what is measured", importance=100, labels=STAGES)  # fmt: skip
_PROTOCOL = Field("protocol", Kind.ENUM, "PROTO", "the protocol in the IP header", width=6, importance=99,
                  labels=PROTOCOLS)  # fmt: skip
_FAMILY = Field("family", Kind.ENUM, "FAMILY", "IP version", importance=99, labels=FAMILIES)
_ID = Field("id", Kind.KEY, "ID", "number of the row", importance=2, role=FieldRole.NUMBER)
_SEEN = Field("seen", Kind.COUNTER, "SEEN", "packets that entered the stage, extrapolated from the followed ones "
              "(sampling)", unit="packets", importance=80, rate_title="SEEN/s")  # fmt: skip
_MATCHED = Field("matched", Kind.COUNTER, "MATCHED", "packets also seen at the end of the stage", unit="packets",
                 importance=30, rate_title="MATCHED/s")  # fmt: skip
_DROPPED = Field("dropped", Kind.COUNTER, "DROPPED", "packets that the kernel dropped within the stage", unit="packets",
                 width=8, importance=60, tone="warn", rate_title="DROP/s")  # fmt: skip
_UNMATCHED = Field("unmatched", Kind.COUNTER, "UNMATCHED", "packets without a known duration: without a timestamp, "
                   "merged, segmented, cloned, or without room to follow them", unit="packets", importance=55,
                   rate_title="UNMATCH/s")  # fmt: skip
_WAITING = Field(
    "waiting", Kind.GAUGE, "WAITING", "packets in the stage now", unit="packets", width=8, importance=40
)
_LATENCY = Field("latency", Kind.HISTOGRAM, "100 ns TO 10 s", "durations of matched packets", unit="ns", importance=95,
                 buckets=BUCKETS)  # fmt: skip


def _quantile(name: str, title: str, share: float, importance: int) -> Field:
    meaning = "the longest duration" if share == 1 else f"{share * 100:g} % of durations are at most this"
    return Field(name, Kind.QUANTILE, title, f"{meaning}, within the histogram's error", width=9, importance=importance,
                 parts=(_LATENCY.name,), quantile=share)  # fmt: skip


_P50, _P90, _P99, _P999, _MAX = _QUANTILES = (
    _quantile("p50", "P50", 0.5, 98),
    _quantile("p90", "P90", 0.9, 75),
    _quantile("p99", "P99", 0.99, 97),
    _quantile("p999", "P99.9", 0.999, 74),
    _quantile("max", "MAX", 1, 94),
)
_TERMS = (_SEEN, _MATCHED, _DROPPED, _UNMATCHED, _WAITING)
_SHOWN = tuple(field.name for field in _QUANTILES)
_TEXT = (*(field.name for field in _TERMS), *_SHOWN)

_USES = ("connections",)
"""The lens that supplies round-trip times."""

STAGE_TABLE = Table(
    name="stages",
    fields=(_ID, _STAGE, *_TERMS, _LATENCY, *_QUANTILES),
    hooks=_ALL_HOOKS,
    screen=("stage", "seen_per_s", *_SHOWN, "latency", "dropped_per_s", "unmatched_per_s", "waiting"),
    text=("stage", *_TEXT),
    sort="id",
    adds_up=False,
    begins_at_zero=True,
    uses=_USES,
    metrics=(),
    measures=(
        Measure(
            "latency", ("stage",), "p99", 50_000, "{stage} takes {now} (p99), {before} before", is_bad=True
        ),
    ),
)
PROTOCOL_TABLE = Table(
    name="protocols",
    fields=(_ID, _STAGE, _PROTOCOL, _FAMILY, *_TERMS, _LATENCY, *_QUANTILES),
    hooks=_ALL_HOOKS,
    screen=(
        "stage",
        "protocol",
        "family",
        "seen_per_s",
        *_SHOWN,
        "latency",
        "dropped_per_s",
        "unmatched_per_s",
    ),
    text=("stage", "protocol", "family", *_TEXT),
    sort="id",
    adds_up=False,
    begins_at_zero=True,
    uses=_USES,
    metrics=(
        Metrics(
            ("stage", "protocol"),
            ("latency", "seen", "dropped", "unmatched", "waiting"),
            prefix="latency",
            edges={"latency": (1_000, 1_100_000_000)},
        ),
    ),
)
PAIR_TABLE = Table(
    name="pairs",
    fields=(
        replace(_ID, help="number made of the pair, its protocol and stage", role=FieldRole.ID),
        _STAGE,
        Field("source", Kind.ADDRESS, "SOURCE", "source address of the packets", width=16, importance=99),
        Field("destination", Kind.ADDRESS, "DESTINATION", "their destination address", width=16, importance=99),
        _PROTOCOL,
        replace(_MATCHED, name="packets", title="PACKETS", help="packets with a known duration",
                rate_title="PACKETS/s", importance=70),
        replace(_LATENCY, help="durations of these packets", dtype=PAIR_BUCKETS.dtype, buckets=PAIR_BUCKETS,
                importance=60),
        replace(_P50, importance=80),
        _P99,
        _MAX,
    ),
    hooks=_PACKET_HOOKS,
    screen=("stage", "source", "destination", "protocol", "packets_per_s", "p50", "p99", "max", "latency"),
    sort="-p99",
    adds_up=False,
    begins_at_zero=True,
    metrics=(
        Metrics(("stage", "source", "destination", "protocol"), ("latency",), prefix="latency_by_pair", top="pair",
                limit=10, edges={"latency": SUM_ONLY}),
    ),
)  # fmt: skip
BUCKET_TABLE = Table(
    name="buckets",
    fields=(
        _ID,
        _STAGE,
        _PROTOCOL,
        _FAMILY,
        Field("at_least", Kind.GAUGE, "FROM", "shortest duration in the bucket", unit="ns", importance=95),
        Field("below", Kind.GAUGE, "BELOW", "exclusive upper bound of the bucket; unknown for the last", unit="ns",
              importance=94),
        replace(_MATCHED, name="packets", title="PACKETS", help="durations in this bucket", rate_title="PACKETS/s",
                importance=80),
    ),
    hooks=_ALL_HOOKS,
    screen=("stage", "protocol", "family", "at_least", "below", "packets_per_s"),
    sort="id",
    begins_at_zero=True,
    uses=_USES,
    metrics=(),
)  # fmt: skip

ONE_IN = "one_in"
"""Snapshot count: N if one packet in N is followed."""
PAIRS_EVICTED = "pairs_evicted"
"""Snapshot count: durations of evicted pairs."""

LENS = Lens(
    id="latency",
    title="Latency",
    order=4,
    digit="4",
    question="where packets wait, and for how long",
    tables=(STAGE_TABLE, PROTOCOL_TABLE, PAIR_TABLE, BUCKET_TABLE),
    common=(("stage",),),
    hooks=tuple(HOOKS.values()),
    losses={
        "skipped": "packets not seen because a program was already running on that CPU",
    },
    options=(SAMPLING,),
    counts=(
        Field(ONE_IN, Kind.GAUGE, "ONE IN", "N if one packet in N is followed"),
        Field(PAIRS_EVICTED, Kind.COUNTER, "EVICTED", "durations of pairs evicted to make room for others"),
    ),
)
