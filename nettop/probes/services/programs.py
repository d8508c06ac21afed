# SPDX-License-Identifier: Apache-2.0
"""What the loader compiles for the services lens: its programs, the hooks they are for, and the layouts they share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel import maps, process_columns
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import Fallbacks, Mechanism
from nettop.kernel.pid_namespace import defines as pid_defines
from nettop.kernel.program import ProgramText
from nettop.kernel.rows import extended, row_header
from nettop.kernel.ticks import us_per_tick
from nettop.snapshots.services import BUCKETS, CLIENT_BUCKETS, HOOK_CALLS, SERVED, USED

_BPF_PROG_TYPE_KPROBE, _BPF_PROG_TYPE_TRACING = 2, 26

# --- layouts ------------------------------------------------------------------------------------------------------

SERVICES_MAX = 1 << 10
"""Services that have a row of their own at once. The first two places are for all others, by their side."""
FIRST_PLACE = 2
PARTITIONS_MAX = 4
"""What a service counts is in as many parts, so that CPUs seldom meet: 5 MB of the kernel's memory each."""
SET_ENTRIES = 8
CLIENTS_MAX = 1 << 12
"""Clients that are counted at once: 4 MB of the kernel's memory."""
LISTENING_MAX = 1 << 13
FAILING_MAX = 1 << 12
"""Places that connects have failed to once or twice, of which none has a row yet."""
CONNECTIONS_MAX = 1 << 15
"""Connections that are watched where the kernel lets programs keep nothing in a socket."""

KEY = np.dtype(
    [
        ("address", "u8", (2,)),
        ("user", "S16"),
        ("netns", "u4"),
        ("port", "u2"),
        ("side", "u1"),
        ("zero", "u1"),
    ]
)
"""What makes a service: where it listens, and the name of the process that serves it, or uses it."""
_PROCESS = (("pid", "u4"), *process_columns.COLUMNS)
OWNER = np.dtype(list(_PROCESS))
"""The process of a socket."""
LISTENER = np.dtype([("address", "u8", (2,)), ("netns", "u4"), ("port", "u4")])
"""Where a process listens."""
SERVICE = extended(KEY, (("began_at", "u8"), *_PROCESS))
"""A service, and the process that serves it, or uses it: until somebody has accepted a connection, the listener's."""
SUMS = (
    "response_ns",
    "request_bytes",
    "answer_bytes",
    "transfer_ns",
    "unanswered",
    "unanswered_ns",
    "closed",
    "overlaps",
    "pushes",
    "replies",
    "failed_connects",
    "refused",
)
HISTOGRAMS = ("response", "queued", "service_time")
TALLY = np.dtype([*((name, "u8") for name in SUMS), *((name, "u8", (BUCKETS.count,)) for name in HISTOGRAMS)])
"""What is counted of a service, in one of the partitions."""
CLIENT_KEY = np.dtype([("address", "u8", (2,)), ("service", "u4"), ("zero", "u4")])
CLIENT = extended(
    CLIENT_KEY,
    (
        ("first_seen", "u8"),
        ("last_seen", "u8"),
        ("open", "u8"),
        ("response_ns", "u8"),
        ("response", f"({CLIENT_BUCKETS.count},)u8"),
    ),
)
WHOLE = np.dtype(
    [
        (name, "u8")
        for name in (
            "taken",
            "without_place",
            "without_client",
            "evicted",
            "unwatched",
            "unlisted_failures",
        )
    ]
)
CONNECTION = np.dtype(
    [
        ("local_address", "u8", (2,)),
        ("remote_address", "u8", (2,)),
        ("id", "u8"),
        ("open_since", "u8"),
        ("answers", "u8"),
        ("response_ns", "u8"),
        ("start_time", "u8"),
        ("css_set", "u8"),
        ("comm", "S16"),
        ("service", "u4"),
        ("netns", "u4"),
        ("pid", "u4"),
        ("cgroup_id", "u4"),
        ("local_port", "u2"),
        ("remote_port", "u2"),
        ("side", "u1"),
        ("was_read", "u1"),
        ("has_owner", "u1"),
        ("is_inferred", "u1"),
    ]
)
"""A connection that is watched. `open_since` is when its open request came, by CLOCK_MONOTONIC; 0 without one."""
LISTENERS_PHASE, CONNECTIONS_PHASE, ROWS_PHASE = range(3)
"""What a walk over descriptors is for."""


def partitions() -> int:
    """In how many parts services are counted."""
    return min(maps.possible_cpus(), PARTITIONS_MAX)


_COMMON = (
    "skc_family", "skc_state", "skc_num", "skc_dport", "skc_daddr", "skc_rcv_saddr", "skc_v6_daddr",
    "skc_v6_rcv_saddr", "skc_net", "skc_flags", "skc_cookie",
)  # fmt: skip
_TCP = (
    "write_seq", "snd_nxt", "snd_una", "rcv_nxt", "rcv_wup", "copied_seq", "tcp_wstamp_ns", "delivered_mstamp",
    "srtt_us", "chrono_start", "data_segs_in", "data_segs_out",
)  # fmt: skip
_SLICES = (
    *process_columns.SLICES,
    Slice("task_struct", {name: name for name in process_columns.TASK_MEMBERS}, {}),
    Slice("bpf_iter_meta", {"seq": "seq", "seq_num": "seq_num"}, {}),
    Slice("socket", {"sk": "sk"}, {}),
    Slice("net", {"inum": "ns.inum"}, {}),
    Slice(
        "sock",
        {name: f"__sk_common.{name}" for name in _COMMON}
        | {
            "sk_protocol": "sk_protocol",
            "sk_lock_owned": "sk_lock.owned",
            "sk_max_ack_backlog": "sk_max_ack_backlog",
            "sk_err": "sk_err",
            "sk_shutdown": "sk_shutdown",
        },
        {},
    ),
    Slice(
        "tcp_sock",
        {
            **{name: name for name in _TCP},
            "skc_flags": "inet_conn.icsk_inet.sk.__sk_common.skc_flags",
            "received_at": "inet_conn.icsk_ack.lrcvtime",
            "sent_at": "lsndtime",
            "chrono_stat": "chrono_stat",
        },
        {},
    ),
)

# --- hooks --------------------------------------------------------------------------------------------------------

CHANGES = "tp_btf__inet_sock_set_state"
WALK, ROWS = "bpf_iter__task_file", "bpf_iter__bpf_sk_storage_map"
_TRACEPOINTS = ("tp_btf__sock_send_length", "tp_btf__sock_recv_length", "tp_btf__sk_data_ready")
# Every call on a socket of TCP ends in release_sock, those that splice among them. Its tcp_release_cb is not enough:
# from Linux 7.0 on it is called only when work was deferred (tcp_release_cb_cond).
_FENTRY = ("fentry__called@release_sock", "fentry__arrived@sock_def_readable")
_KPROBE = ("entry__called@release_sock", "entry__arrived@sock_def_readable")

BY_SOCKET = (
    Mechanism("tp_btf/sock_send_length + sock_recv_length + sk_data_ready", _TRACEPOINTS),
    Mechanism("fentry/release_sock + sock_def_readable", _FENTRY),
)
"""Mechanisms whose programs keep what they know in the socket."""
BY_ADDRESS = (Mechanism("kprobe/release_sock + sock_def_readable", _KPROBE),)
"""A kprobe may not: its programs keep it in a table."""
FALLBACKS = Fallbacks(HOOK_CALLS, BY_SOCKET + BY_ADDRESS)


def loaded_as(name: str) -> str:
    """The name by which the program at a hook was loaded: for kprobes without the function."""
    return name.partition("@")[0] if name.startswith("entry__") else name


def program_text(by_address: bool = False) -> ProgramText:
    """What watches connections."""
    hooks = (
        dict.fromkeys(map(loaded_as, _KPROBE), _BPF_PROG_TYPE_KPROBE)
        if by_address
        else dict.fromkeys(_TRACEPOINTS + _FENTRY, _BPF_PROG_TYPE_TRACING)
    )
    always = (CHANGES, WALK) if by_address else (CHANGES, WALK, ROWS)
    layouts = (
        ("owner", OWNER),
        ("listener", LISTENER),
        ("key", KEY),
        ("tally", TALLY),
        ("client_key", CLIENT_KEY),
        ("whole", WHOLE),
        ("connection", CONNECTION),
    )
    return ProgramText(
        sources=(*process_columns.SOURCES, str(Path(__file__).with_name("services.bpf.c"))),
        header="#include <linux/types.h>\n"
        + "".join(row_header(name, dtype) for name, dtype in layouts)
        + row_header("service", SERVICE, ("key", KEY))
        + row_header("client", CLIENT, ("client_key", CLIENT_KEY)),
        slices=_SLICES,
        functions=hooks | dict.fromkeys(always, _BPF_PROG_TYPE_TRACING),
        maps=(
            "turns",
            "listening",
            "known",
            "numbers",
            "given",
            "services",
            "tallies",
            "clients",
            "whole",
            "phase",
        ),
        defines={
            "SERVICES_MAX": SERVICES_MAX,
            "PARTITIONS": partitions(),
            "SET_ENTRIES": SET_ENTRIES,
            "CLIENT_SETS": CLIENTS_MAX // SET_ENTRIES,
            "LISTENING_MAX": LISTENING_MAX,
            "FAILING_MAX": FAILING_MAX,
            "CONNECTIONS_MAX": CONNECTIONS_MAX,
            "FIRST_BIT": BUCKETS.first_bit,
            "LAST_BIT": BUCKETS.last_bit,
            "DIVIDED_BY_BITS": BUCKETS.divided_by_bits,
            "BUCKETS": BUCKETS.count,
            "CLIENT_DIVIDED_BY_BITS": CLIENT_BUCKETS.divided_by_bits,
            "CLIENT_BUCKETS": CLIENT_BUCKETS.count,
            "NS_PER_TICK": us_per_tick() * 1000,
            "SIDE_SERVED": SERVED,
            "SIDE_USED": USED,
            "PHASE_LISTENERS": LISTENERS_PHASE,
            "PHASE_CONNECTIONS": CONNECTIONS_PHASE,
            "PHASE_ROWS": ROWS_PHASE,
            **({"BY_ADDRESS": 1} if by_address else {}),
            **pid_defines(Host()),
        },
        optional=tuple(hooks),
    )
