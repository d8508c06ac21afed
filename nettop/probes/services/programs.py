# SPDX-License-Identifier: Apache-2.0
"""BPF programs of the services lens, their hooks, and the layouts that they share with nettop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from nettop.kernel.bpf import maps, process_columns
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import columns, extend_dtype, row_header
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import jiffy_us
from nettop.probes.probe import loaded_as, with_types
from nettop.snapshots.services import BUCKETS, CLIENT_BUCKETS, HOOK_CALLS, HOOK_UNOWNED, SERVED, USED

# --- layouts ------------------------------------------------------------------------------------------------------

SERVICES_MAX = 1 << 10
"""Maximum services with a row of their own. The first two slots are for all others, one per side."""
FIRST_SLOT = 2
PARTITIONS_MAX = 4
"""Maximum partitions of a service's counters, so that CPUs rarely contend: 5 MB of kernel memory each."""
SET_ENTRIES = 8
CLIENTS_MAX = 1 << 12
"""Maximum clients counted at once: 4 MB of kernel memory."""
LISTENING_MAX = 1 << 13
FAILING_MAX = 1 << 12
"""Maximum destinations to which one or two connects failed, and which have no row yet."""
CONNECTIONS_MAX = 1 << 15
"""Maximum connections watched where programs cannot store state in a socket."""

KEY = np.dtype(
    [
        ("address", "u8", (2,)),
        ("user", "S16"),
        ("netns", "u4"),
        ("port", "u2"),
        *columns("u1", "side", "protocol"),
    ]
)
"""Identity of a service: where it listens, and the name of the process that serves or uses it."""
_PROCESS = (("pid", "u4"), *process_columns.COLUMNS)
OWNER = np.dtype(list(_PROCESS))
"""The process that owns a socket."""
LISTENER = np.dtype([("address", "u8", (2,)), ("netns", "u4"), ("port", "u4")])
"""The address, network namespace and port on which a process listens."""
SERVICE = extend_dtype(KEY, (("began_at", "u8"), *_PROCESS))
"""A service, and the process that serves or uses it: the listener's until a connection is accepted."""
SUMS = (
    "response_ns", "request_bytes", "response_bytes", "transfer_ns", "unanswered", "unanswered_ns", "closed",
    "overlaps", "pushes", "replies", "failed_connects", "refused", "failed_responses", "missing_names",
)  # fmt: skip
HISTOGRAMS = ("response", "queued", "service_time")
TALLY = np.dtype([*columns("u8", *SUMS), *((name, "u8", (BUCKETS.count,)) for name in HISTOGRAMS)])
"""Counters of a service, in one of the partitions."""
CLIENT_KEY = np.dtype([("address", "u8", (2,)), *columns("u4", "service", "zero")])
_CLIENT_COUNTS = columns("u8", "first_seen", "last_seen", "open", "response_ns")
CLIENT = extend_dtype(CLIENT_KEY, (*_CLIENT_COUNTS, ("response", f"({CLIENT_BUCKETS.count},)u8")))
TOTALS = np.dtype(
    [*columns("u8", "taken", "without_place", "without_client", "evicted", "unwatched", "unlisted_failures",
              "untimed_requests")]
)  # fmt: skip
CONNECTION = np.dtype(
    [
        ("local_address", "u8", (2,)),
        ("remote_address", "u8", (2,)),
        *columns(
            "u8", "id", "open_since", "moved_at", "responses", "response_ns", "queued_ns", "queued_responses"
        ),
        *columns("u8", "start_time", "css_set"),
        ("comm", "S16"),
        *columns("u4", "service", "netns", "pid", "cgroup_id", "local_isn", "remote_isn"),
        *columns("u2", "local_port", "remote_port"),
        *columns("u1", "side", "was_read", "has_owner", "is_inferred"),
    ]
)
"""A watched connection. `open_since` is when its open request arrived (CLOCK_MONOTONIC); 0 without one. `moved_at` is
when data of the client last moved, to the tick. The initial sequence numbers are what TCP's counts began from: of the
end that connected, its own, as its SYN counts as a byte; all others are one more."""
LISTENERS_PHASE, CONNECTIONS_PHASE, ROWS_PHASE = range(3)
"""Purposes of a walk over descriptors."""


def partitions() -> int:
    """Return the number of partitions of services' counters."""
    return min(maps.possible_cpus(), PARTITIONS_MAX)


SLOTS_MAPS = ("known", "numbers", "given", "services", "tallies", "whole")
"""The maps of slots.bpf.h, shared by the programs for TCP and for UDP."""
SLOTS_SOURCES = (*process_columns.SOURCES, str(Path(__file__).with_name("slots.bpf.h")))


def slots_header() -> str:
    """Return the structs of slots.bpf.h."""
    layouts = {"owner": OWNER, "key": KEY, "tally": TALLY, "whole": TOTALS}
    return (
        "#include <linux/types.h>\n"
        + "".join(row_header(name, dtype) for name, dtype in layouts.items())
        + row_header("service", SERVICE, ("key", KEY))
    )


def slots_defines() -> dict[str, int]:
    """Return the numbers of slots.bpf.h and process.bpf.h."""
    return {
        "SERVICES_MAX": SERVICES_MAX,
        "PARTITIONS": partitions(),
        **BUCKETS.defines(),
        "SIDE_SERVED": SERVED,
        "SIDE_USED": USED,
        **process_columns.pid_defines(Host()),
    }


_COMMON = (
    "skc_family", "skc_state", "skc_num", "skc_dport", "skc_daddr", "skc_rcv_saddr", "skc_v6_daddr",
    "skc_v6_rcv_saddr", "skc_net", "skc_flags", "skc_cookie",
)  # fmt: skip
_SOCK = ("sk_protocol", "sk_max_ack_backlog", "sk_err", "sk_shutdown")
_TCP = (
    "write_seq", "snd_nxt", "snd_una", "rcv_nxt", "rcv_wup", "copied_seq", "tcp_wstamp_ns", "delivered_mstamp",
    "srtt_us", "rtt_min", "chrono_start", "chrono_stat", "data_segs_in", "data_segs_out", "bytes_acked",
    "bytes_received",
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
        | {name: name for name in _SOCK}
        | {"sk_lock_owned": "sk_lock.owned"},
        {},
    ),
    Slice(
        "tcp_sock",
        {name: name for name in _TCP}
        | {"skc_flags": "inet_conn.icsk_inet.sk.__sk_common.skc_flags"}
        | {"received_at": "inet_conn.icsk_ack.lrcvtime", "sent_at": "lsndtime"},
        {},
    ),
)
_MAPS = (*SLOTS_MAPS, "turns", "listening", "clients", "phase")

# --- hooks --------------------------------------------------------------------------------------------------------

CHANGES = "tp_btf__inet_sock_set_state"
WALK, ROWS = "bpf_iter__task_file", "bpf_iter__bpf_sk_storage_map"
LISTENERS, HASHED = "bpf_iter__listeners@task_file", "bpf_iter__tcp"
"""Walks in place of WALK, where the kernel passes no socket of a descriptor to a helper: to listeners, and over the
hash tables of a namespace."""
_TRACEPOINTS = ("tp_btf__sock_send_length", "tp_btf__sock_recv_length", "tp_btf__sk_data_ready")
# Every call on a TCP socket ends in release_sock, including those that splice. Its tcp_release_cb is not enough:
# since Linux 7.0 it is called only if work was deferred (tcp_release_cb_cond).
_FENTRY = ("fentry__called@release_sock", "fentry__arrived@sock_def_readable")
_KPROBE = ("entry__called@release_sock", "entry__arrived@sock_def_readable")

BY_SOCKET = (
    Mechanism("tp_btf/sock_send_length + sock_recv_length + sk_data_ready", _TRACEPOINTS),
    Mechanism("fentry/release_sock + sock_def_readable", _FENTRY),
)
"""Mechanisms whose programs store their state in the socket."""
BY_ADDRESS = (Mechanism("kprobe/release_sock + sock_def_readable", _KPROBE),)
"""Mechanisms whose programs store their state in a table: a kprobe cannot use socket storage."""
FALLBACKS = Fallbacks(HOOK_CALLS, BY_SOCKET + BY_ADDRESS)
UNOWNED = Fallbacks(HOOK_UNOWNED, (Mechanism("iter/bpf_sk_storage_map", (ROWS,)),))


def program_text(by_address: bool = False) -> ProgramText:
    """Return the programs that watch connections."""
    hooks = with_types(map(loaded_as, _KPROBE) if by_address else _TRACEPOINTS + _FENTRY)
    always = (CHANGES, WALK) if by_address else (CHANGES, WALK, ROWS)
    layouts = {"listener": LISTENER, "client_key": CLIENT_KEY, "connection": CONNECTION}
    return ProgramText(
        sources=(*SLOTS_SOURCES, str(Path(__file__).with_name("services.bpf.c"))),
        header=slots_header()
        + "".join(row_header(name, dtype) for name, dtype in layouts.items())
        + row_header("client", CLIENT, ("client_key", CLIENT_KEY)),
        slices=_SLICES,
        functions=hooks | with_types(always),
        maps=_MAPS,
        defines={
            **slots_defines(),
            "SET_ENTRIES": SET_ENTRIES,
            "CLIENT_SETS": CLIENTS_MAX // SET_ENTRIES,
            "LISTENING_MAX": LISTENING_MAX,
            "FAILING_MAX": FAILING_MAX,
            "CONNECTIONS_MAX": CONNECTIONS_MAX,
            **CLIENT_BUCKETS.defines("CLIENT_"),
            "NS_PER_TICK": jiffy_us() * 1000,
            "PHASE_LISTENERS": LISTENERS_PHASE,
            "PHASE_CONNECTIONS": CONNECTIONS_PHASE,
            "PHASE_ROWS": ROWS_PHASE,
            **({"BY_ADDRESS": 1} if by_address else {}),
        },
        optional=(*hooks, WALK, ROWS),
    )


def walks_text(text: ProgramText) -> ProgramText:
    """Return the walks in place of WALK, with the tables of the programs that watch connections."""
    return replace(text, functions=with_types((LISTENERS, HASHED)), maps=(), shared=_MAPS, optional=())
