# SPDX-License-Identifier: Apache-2.0
"""What the loader compiles for the latency lens: its programs, the hooks they are for, and the layouts they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel import kprobes, maps
from nettop.kernel.btf import Slice
from nettop.kernel.mechanisms import Fallbacks, Mechanism
from nettop.kernel.program import ProgramText
from nettop.kernel.rows import extended, row_header
from nettop.snapshots.latency import (
    BACKLOG,
    BUCKETS,
    FAMILIES,
    HANDSHAKE,
    HOOKS,
    IP,
    PAIR_BUCKETS,
    PROTOCOLS,
    QDISC,
    RTT,
    SOCKET_WAIT,
    STAGES,
    WIRE_APP,
    WIRE_IP,
    WIRE_SOCKET,
)

_BPF_PROG_TYPE_KPROBE, _BPF_PROG_TYPE_TRACING = 2, 26

# --- layouts ------------------------------------------------------------------------------------------------------

COUNTED_STAGES = len(STAGES) - 1
"""All but RTT, which the kernel has counted itself."""
CLASSES = len(PROTOCOLS) * len(FAMILIES)
"""A class is a protocol and a family: protocol * len(FAMILIES) + family."""
SETTINGS = np.dtype([("tai_ahead_ns", "u8"), ("one_in", "u8")])
"""How far CLOCK_TAI is ahead of CLOCK_REALTIME, whose stamps packets have; and one packet in how many is followed."""
SET_ENTRIES = 4
FOLLOWED_MAX = 1 << 15
"""Packets that are followed at once: 1 MB of the kernel's memory."""
PACKET = np.dtype([("since", "u8"), ("check", "u8"), ("class", "u4"), ("weight", "u4")])
FOLLOWED_SET = np.dtype([("keys", "u8", (SET_ENTRIES,)), ("packets", PACKET, (SET_ENTRIES,))])
"""A packet that is followed, and a set of them. A key is an address without its top byte, which is the stage plus one;
0 where the entry is free. `since` is CLOCK_MONOTONIC; the weight is how many packets it stands for."""
TERMS = ("seen", "matched", "dropped", "unmatched")
COUNTS = np.dtype([*((name, "u8") for name in TERMS), ("latency", "u8", (BUCKETS.count,))])
PAIRS_MAX = 1 << 12
"""Pairs that are counted at once: 2.1 MB, in equal parts for the CPUs."""
PAIR_KEY = np.dtype(
    [("source", "u4", (4,)), ("destination", "u4", (4,)), ("stage_class", "u4"), ("always_zero", "u4")]
)
PAIR = extended(
    PAIR_KEY,
    (
        ("packets", "u8"),
        ("first_seen", "u8"),
        ("last_seen", "u8"),
        ("latency", f"({PAIR_BUCKETS.count},)u4"),
    ),
)
"""A pair: its key, in which the stage is above the 8 bits of the class; when it was first and last seen, in ticks."""

_SKB = {name: name for name in ("protocol", "tstamp", "data", "head", "network_header", "sk", "cb")}
_SOCK = {
    "sk_protocol": "sk_protocol",
    **{name: f"__sk_common.{name}" for name in ("skc_family", "skc_v6_rcv_saddr", "skc_v6_daddr")},
    "first_queued": "sk_receive_queue.next",
    "last_queued": "sk_receive_queue.prev",
}
_SLICES = (
    Slice("sk_buff", _SKB | {"users": "users.refs.counter"}, {}),
    Slice("sock", _SOCK, {}),
    Slice("tcp_sock", {name: name for name in ("srtt_us", "data_segs_in", "bytes_received")}, {}),
)

# --- hooks --------------------------------------------------------------------------------------------------------

_AT_FUNCTIONS = (
    *(("ip_ends", name) for name in ("ip_local_deliver", "ip6_input", "ip_forward", "ip6_forward")),
    *(("ip_begins", name) for name in ("ip_rcv_core", "ip6_rcv_core")),
    ("udp_queues", "__udp_enqueue_schedule_skb"),
    ("udp_reads", "skb_consume_udp"),
)
"""Programs, and the kernel functions at whose beginning they run."""
_DROPS = "tp_btf__kfree_skb"
_RECEIVED, _QUEUED, _COPIED = (
    "tp_btf__netif_receive_skb",
    "tp_btf__tcp_probe",
    "tp_btf__skb_copy_datagram_iovec",
)
_FENTRY, _KPROBE = "fentry", "entry"


def _at(kind: str, *programs: str) -> tuple[str, ...]:
    """The programs at functions by fentry, or by kprobe."""
    return tuple(f"{kind}__{program}@{at}" for program, at in _AT_FUNCTIONS if program in programs)


_MECHANISMS = {
    WIRE_IP: (Mechanism("tp_btf/netif_receive_skb", (_RECEIVED,)),),
    WIRE_SOCKET: (
        Mechanism("tp_btf/tcp_probe + fentry/udp", (_QUEUED, *_at(_FENTRY, "udp_queues"))),
        Mechanism("tp_btf/tcp_probe + kprobe/udp", (_QUEUED, *_at(_KPROBE, "udp_queues"))),
        Mechanism("tp_btf/tcp_probe + sk_data_ready", (_QUEUED, "tp_btf__sk_data_ready")),
    ),
    WIRE_APP: (
        Mechanism("tp_btf/skb_copy_datagram_iovec + fentry/udp", (_COPIED, *_at(_FENTRY, "udp_reads"))),
        Mechanism("tp_btf/skb_copy_datagram_iovec + kprobe/udp", (_COPIED, *_at(_KPROBE, "udp_reads"))),
        Mechanism("tp_btf/skb_copy_datagram_iovec, TCP only", (_COPIED,)),
    ),
    BACKLOG: (Mechanism("tp_btf/netif_rx + netif_receive_skb", (_DROPS, _RECEIVED, "tp_btf__netif_rx")),),
    IP: (
        Mechanism("fentry/ip_rcv_core", (_DROPS, *_at(_FENTRY, "ip_ends", "ip_begins"))),
        Mechanism("kprobe/ip_rcv_core", (_DROPS, *_at(_KPROBE, "ip_ends", "ip_begins"))),
    ),
    SOCKET_WAIT: (Mechanism("the hooks of wire-socket and wire-app", (_DROPS,)),),
    QDISC: (
        Mechanism(
            "tp_btf/net_dev_queue + net_dev_start_xmit",
            (_DROPS, "tp_btf__net_dev_start_xmit", "tp_btf__net_dev_queue"),
        ),
    ),
    HANDSHAKE: (Mechanism("tp_btf/inet_sock_set_state", ("tp_btf__inet_sock_set_state",)),),
    RTT: (Mechanism("the connections lens"),),
}
"""Of programs that belong together the one at the stage's end is attached first."""
FALLBACKS = {stage: Fallbacks(HOOKS[stage], mechanisms) for stage, mechanisms in _MECHANISMS.items()}
"""The mechanisms for each stage."""

_TRACING = tuple(
    dict.fromkeys(
        program
        for mechanisms in _MECHANISMS.values()
        for mechanism in mechanisms
        for program in mechanism.programs
        if not program.startswith(f"{_KPROBE}__")
    )
)
_PROBED = tuple(dict.fromkeys(f"{_KPROBE}__{program}" for program, _ in _AT_FUNCTIONS))
_HOOKS = (
    "netif_rx", "netif_receive_skb", "tcp_probe", "udp_queued", "copied", "udp_read", "net_dev_queue",
    "net_dev_start_xmit", "kfree_skb", "set_state", "ip_begins", "ip_ends",
)  # fmt: skip


def loaded_as(name: str) -> str:
    """The name by which the program at a hook was loaded: for kprobes one for all functions."""
    return name.partition("@")[0] if name.startswith(f"{_KPROBE}__") else name


def pair_sets(pairs_max: int = PAIRS_MAX) -> tuple[int, int]:
    """How many sets of pairs each part of the table has, and how many parts: one for each CPU."""
    parts = maps.possible_cpus()
    return max(1, pairs_max // SET_ENTRIES // parts), parts


def program_text(followed_max: int = FOLLOWED_MAX, pairs_max: int = PAIRS_MAX) -> ProgramText:
    """What measures every stage. The kernel may refuse any of the programs."""
    sets, parts = pair_sets(pairs_max)
    has_kprobes = kprobes.KPROBES.exists()
    functions = dict.fromkeys(_TRACING, _BPF_PROG_TYPE_TRACING) | dict.fromkeys(
        _PROBED if has_kprobes else (), _BPF_PROG_TYPE_KPROBE
    )
    layouts = (("settings", SETTINGS), ("packet", PACKET), ("counts", COUNTS), ("key", PAIR_KEY))
    return ProgramText(
        sources=(str(Path(__file__).with_name("latency.bpf.c")),),
        header="#include <linux/types.h>\n"
        + "".join(row_header(name, dtype) for name, dtype in layouts)
        + row_header("pair", PAIR, ("key", PAIR_KEY)),
        slices=_SLICES,
        functions=functions,
        maps=("settings", "counted", "followed", "pairs", "evicted"),
        defines={
            "STAGES": COUNTED_STAGES,
            "CLASSES": CLASSES,
            "FAMILIES": len(FAMILIES),
            "SET_ENTRIES": SET_ENTRIES,
            "SETS": followed_max // SET_ENTRIES,
            "PAIR_SETS": sets,
            "PAIR_PARTITIONS": parts,
            "FIRST_BIT": BUCKETS.first_bit,
            "LAST_BIT": BUCKETS.last_bit,
            "DIVIDED_BY_BITS": BUCKETS.divided_by_bits,
            "BUCKETS": BUCKETS.count,
            "PAIR_DIVIDED_BY_BITS": PAIR_BUCKETS.divided_by_bits,
            "PAIR_BUCKETS": PAIR_BUCKETS.count,
            "HOOKS": len(_HOOKS),
            **{f"STAGE_{name.replace('-', '_').upper()}": number for number, name in STAGES.items()},
            **{f"PROTOCOL_{name.upper()}": number for number, name in PROTOCOLS.items()},
            **{f"HOOK_{name.upper()}": number for number, name in enumerate(_HOOKS)},
            **({"HAS_KPROBES": 1} if has_kprobes else {}),
        },
        optional=tuple(functions),
    )
