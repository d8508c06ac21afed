# SPDX-License-Identifier: Apache-2.0
"""The BPF programs of the latency lens, their hooks, and the layouts that they share with nettop."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel.bpf import kprobes
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import columns, extend_dtype, row_header
from nettop.kernel.bpf.set_table import partition
from nettop.probes.probe import loaded_as, with_types
from nettop.snapshots import latency as spec

# --- layouts ------------------------------------------------------------------------------------------------------

COUNTED_STAGES = len(spec.STAGES) - 1
"""All stages but RTT, which the kernel measures itself."""
CLASSES = len(spec.PROTOCOLS) * len(spec.FAMILIES)
"""A class is a protocol and a family: protocol * len(FAMILIES) + family."""
SETTINGS = np.dtype([*columns("u8", "tai_ahead_ns", "one_in")])
"""CLOCK_TAI minus CLOCK_REALTIME, the clock of packet timestamps. One packet in `one_in` is followed."""
SET_ENTRIES = 4
FOLLOWED_MAX = 1 << 15
"""Packets followed at the same time: 1 MB of kernel memory."""
PACKET = np.dtype([*columns("u8", "since", "check"), *columns("u4", "class", "weight")])
FOLLOWED_SET = np.dtype([("keys", "u8", (SET_ENTRIES,)), ("packets", PACKET, (SET_ENTRIES,))])
"""A set of followed packets. A key is an address whose top byte is replaced by the stage plus one; 0 for a free entry.
`since` is CLOCK_MONOTONIC; the weight is the number of packets that the followed one represents."""
TERMS = ("seen", "matched", "dropped", "unmatched")
COUNTS = np.dtype([*columns("u8", *TERMS), ("latency", "u8", (spec.BUCKETS.count,))])
PAIRS_MAX = 1 << 12
"""Pairs counted at the same time: 2.1 MB, split equally among the CPUs."""
PAIR_KEY = np.dtype(
    [("source", "u4", (4,)), ("destination", "u4", (4,)), *columns("u4", "stage_class", "always_zero")]
)
_PAIR_COUNTS = columns("u8", "packets", "first_seen", "last_seen")
PAIR = extend_dtype(PAIR_KEY, (*_PAIR_COUNTS, ("latency", f"({spec.PAIR_BUCKETS.count},)u4")))
"""A pair: its key, with the stage above the 8 bits of the class; when it was first and last seen, in ticks."""

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
"""Programs, and the kernel functions at whose entry they run."""
_DROPS = "tp_btf__kfree_skb"
_RECEIVED, _QUEUED, _COPIED = (
    "tp_btf__netif_receive_skb",
    "tp_btf__tcp_probe",
    "tp_btf__skb_copy_datagram_iovec",
)
_FENTRY, _KPROBE = "fentry", "entry"


def _at(kind: str, *programs: str) -> tuple[str, ...]:
    """Return the names of these programs at kernel functions, as fentry or kprobe programs."""
    return tuple(f"{kind}__{program}@{at}" for program, at in _AT_FUNCTIONS if program in programs)


_MECHANISMS = {
    spec.WIRE_IP: (Mechanism("tp_btf/netif_receive_skb", (_RECEIVED,)),),
    spec.WIRE_SOCKET: (
        Mechanism("tp_btf/tcp_probe + fentry/udp", (_QUEUED, *_at(_FENTRY, "udp_queues"))),
        Mechanism("tp_btf/tcp_probe + kprobe/udp", (_QUEUED, *_at(_KPROBE, "udp_queues"))),
        Mechanism("tp_btf/tcp_probe + sk_data_ready", (_QUEUED, "tp_btf__sk_data_ready")),
    ),
    spec.WIRE_APP: (
        Mechanism("tp_btf/skb_copy_datagram_iovec + fentry/udp", (_COPIED, *_at(_FENTRY, "udp_reads"))),
        Mechanism("tp_btf/skb_copy_datagram_iovec + kprobe/udp", (_COPIED, *_at(_KPROBE, "udp_reads"))),
        Mechanism("tp_btf/skb_copy_datagram_iovec, TCP only", (_COPIED,)),
    ),
    spec.BACKLOG: (
        Mechanism("tp_btf/netif_rx + netif_receive_skb", (_DROPS, _RECEIVED, "tp_btf__netif_rx")),
    ),
    spec.IP: (
        Mechanism("fentry/ip_rcv_core", (_DROPS, *_at(_FENTRY, "ip_ends", "ip_begins"))),
        Mechanism("kprobe/ip_rcv_core", (_DROPS, *_at(_KPROBE, "ip_ends", "ip_begins"))),
    ),
    spec.SOCKET_WAIT: (Mechanism("the hooks of wire-socket and wire-app", (_DROPS,)),),
    spec.QDISC: (
        Mechanism(
            "tp_btf/net_dev_queue + net_dev_start_xmit",
            (_DROPS, "tp_btf__net_dev_start_xmit", "tp_btf__net_dev_queue"),
        ),
    ),
    spec.HANDSHAKE: (Mechanism("tp_btf/inet_sock_set_state", ("tp_btf__inet_sock_set_state",)),),
    spec.RTT: (Mechanism("the connections lens"),),
}
"""Mechanisms by stage. In a group of programs the one at the end of the stage is attached first."""
FALLBACKS = {stage: Fallbacks(spec.HOOKS[stage], mechanisms) for stage, mechanisms in _MECHANISMS.items()}
"""The hook and mechanisms of each stage."""

_PROGRAMS = {
    loaded_as(program): program.startswith(f"{_KPROBE}__")
    for mechanisms in _MECHANISMS.values()
    for mechanism in mechanisms
    for program in mechanism.programs
}
"""The programs, and whether each runs at kprobes."""
_HOOKS = (
    "netif_rx", "netif_receive_skb", "tcp_probe", "udp_queued", "copied", "udp_read", "net_dev_queue",
    "net_dev_start_xmit", "kfree_skb", "set_state", "ip_begins", "ip_ends",
)  # fmt: skip


def program_text(followed_max: int = FOLLOWED_MAX, pairs_max: int = PAIRS_MAX) -> ProgramText:
    """Return the programs that measure all stages. The kernel may refuse any of them."""
    sets, parts = partition(pairs_max, SET_ENTRIES)
    has_kprobes = kprobes.KPROBES.exists()
    functions = with_types(name for name, is_probe in _PROGRAMS.items() if has_kprobes or not is_probe)
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
            "FAMILIES": len(spec.FAMILIES),
            "SET_ENTRIES": SET_ENTRIES,
            "SETS": followed_max // SET_ENTRIES,
            "PAIR_SETS": sets,
            "PAIR_PARTITIONS": parts,
            **spec.BUCKETS.defines(),
            **spec.PAIR_BUCKETS.defines("PAIR_"),
            "HOOKS": len(_HOOKS),
            **{f"STAGE_{name.replace('-', '_').upper()}": number for number, name in spec.STAGES.items()},
            **{f"PROTOCOL_{name.upper()}": number for number, name in spec.PROTOCOLS.items()},
            **{f"HOOK_{name.upper()}": number for number, name in enumerate(_HOOKS)},
            **({"HAS_KPROBES": 1} if has_kprobes else {}),
        },
        optional=tuple(functions),
    )
