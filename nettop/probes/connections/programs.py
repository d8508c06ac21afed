# SPDX-License-Identifier: Apache-2.0
"""BPF programs of the connections lens: walks over the table, events, UDP counting."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

from nettop.kernel.bpf import process_columns
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import row_header
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import jiffy_us
from nettop.probes.connections.event_records import CONNECTION, EVENT, GROUP_SIZE, HOST_TOTALS, WRITERS
from nettop.probes.connections.hooks import FALLBACKS, FOLLOW_HOOKS, FOLLOWED, slots_of
from nettop.probes.connections.socket_rows import HELD_BY_KERNEL, HELD_BY_PROCESS, ROW, STATE
from nettop.probes.connections.socket_table import LIST_TIME_WAIT, LIST_WITH_FILE, WALKS
from nettop.probes.connections.udp import FOLLOWED_TOTALS, UDP_FALLBACKS, UDP_TOTALS
from nettop.probes.connections.users import SHARED_MAX, SHARED_SOCKET, WATCHED
from nettop.probes.probe import with_types
from nettop.snapshots.connections import DIRECTIONS, EVENT_KINDS, OWNER_SOURCES, PROTOCOLS

CONNECTION_GROUPS = 1 << 13
"""Room for 65,536 connections in 5 MB of kernel memory. Cookies are sequential, so buckets fill evenly."""
FOLLOWED_MAX = 1 << 14
SENDING_MAX = 1 << 12
"""Maximum threads in udp_sendmsg or udpv6_sendmsg, which block only while the socket's buffer is full."""

UDP_SOCKETS_MAX = 1 << 15
"""Maximum UDP sockets counted at once, in 13 MB of kernel memory."""

_TASK = ("pid", "flags", "signal", *process_columns.TASK_MEMBERS)
_COMMON = (
    "skc_family", "skc_state", "skc_num", "skc_dport", "skc_daddr", "skc_rcv_saddr", "skc_v6_daddr",
    "skc_v6_rcv_saddr", "skc_net", "skc_flags", "skc_cookie", "skc_bound_dev_if",
)  # fmt: skip
_SOCK = (
    "sk_protocol", "sk_type", "sk_uid", "sk_drops", "sk_socket", "sk_rmem_alloc", "sk_wmem_alloc", "sk_ack_backlog",
    "sk_max_ack_backlog", "sk_err",
)  # fmt: skip
_TCP_SOCK = (
    "bytes_sent", "bytes_retrans", "bytes_received", "segs_out", "data_segs_out", "segs_in", "data_segs_in",
    "total_retrans", "srtt_us", "mdev_us", "rtt_min", "snd_cwnd", "mss_cache", "snd_nxt", "snd_una", "write_seq",
    "rcv_nxt", "copied_seq", "rate_delivered", "rate_interval_us", "chrono_stat", "chrono_start", "chrono_type",
    "rate_app_limited", "is_cwnd_limited", "lost_out", "dsack_dups", "reord_seen", "snd_wnd", "fastopen_rsk",
)  # fmt: skip


def _plain(names: tuple[str, ...], inside: str = "") -> dict[str, str]:
    return {name: inside + name for name in names}


def _sock(inside: str = "") -> dict[str, str]:
    """Return the members of struct sock for a struct that begins with one."""
    nested = {"sk_rmem_alloc": f"{inside}sk_backlog.rmem_alloc", "sk_lock_owned": f"{inside}sk_lock.owned"}
    return _plain(_SOCK, inside) | nested | _plain(_COMMON, f"{inside}__sk_common.")


SLICES = (
    *process_columns.SLICES,
    Slice("bpf_iter_meta", _plain(("seq", "seq_num")), {}),
    Slice("task_struct", _plain(_TASK), {}),
    Slice("signal_struct", _plain(("rlim",)), {}),
    Slice("socket", _plain(("sk", "file", "flags")), {}),
    Slice("net", {"inum": "ns.inum"}, {}),
    Slice("sock_common", _plain(_COMMON), {}),
    Slice("numa_drop_counters", {}, _plain(("drops0", "drops1"))),
    Slice("sock", _sock(), {"sk_drop_counters": "sk_drop_counters"}),
    Slice("mptcp_subflow_context", {}, {"conn": "conn"}),
    Slice("udp_sock", _plain(("forward_deficit", "encap_rcv")), {}),
    Slice("tcp_congestion_ops", _plain(("name",)), {}),
    Slice("tcp_timewait_sock", {"tw_substate": "tw_sk.tw_substate"}, {}),
    Slice(
        "tcp_sock",
        _plain(_TCP_SOCK)
        | _sock("inet_conn.icsk_inet.sk.")
        | {
            "syn_queue": "inet_conn.icsk_accept_queue.qlen",
            "inet_sport": "inet_conn.icsk_inet.inet_sport",
            "congestion_control": "inet_conn.icsk_ca_ops",
            "sk_pacing_rate": "inet_conn.icsk_inet.sk.sk_pacing_rate",
            "prepared_us": "rcvq_space.time",
            "sent_at": "lsndtime",
            "received_at": "inet_conn.icsk_ack.lrcvtime",
            "probes_out": "inet_conn.icsk_probes_out",
        },
        {"is_mptcp": "is_mptcp", "icsk_ulp_data": "inet_conn.icsk_ulp_data"},
    ),
)


_EVENT_MAPS = ("events", "host", "owned_until", "shared_sockets", "hook_check", "scratch", "running")
_UDP_MAPS = ("udp_sockets", "new_rows", "untracked", "sending", "hook_check", "owned_until", "shared_sockets")
_SHARED = ("boot_to_wall", "connection_groups", "connections", "reader")
"""Maps of all texts, which share them. Those that nettop does not read are listed for `kernel_bytes`."""


def table_text() -> ProgramText:
    """Return the text of the walks over the socket table."""
    return _text(
        ("sockets.bpf.c",),
        functions=WALKS,
        maps=("listed",),
        defines={"LIST_TIME_WAIT": LIST_TIME_WAIT, "LIST_WITH_FILE": LIST_WITH_FILE},
    )


def events_text(ring_bytes: int, followed: int | None) -> ProgramText:
    """Return the text of the events, which shares the maps of the walks if those are loaded before.

    `ring_bytes` must be a power-of-two number of pages. With `followed`, a PID, include the programs that follow this
    process and its children.
    """
    slots = slots_of(FALLBACKS)
    return _text(
        ("hook_check.bpf.h", "owners.bpf.h", "events.bpf.c"),
        functions=(*slots, *((FOLLOWED, *FOLLOW_HOOKS) if followed else ())),
        maps=_EVENT_MAPS + (("followed",) if followed else ()),
        defines={
            **_slot_numbers(slots),
            **({"FOLLOWED_MAX": FOLLOWED_MAX} if followed else {}),
            "WRITERS": len(WRITERS),
            **{f"WRITER_{name.upper()}": at for at, name in enumerate(WRITERS)},
            **{f"EVENT_{name.upper()}": number for number, name in EVENT_KINDS.items()},
        },
        optional=tuple(slots),
        values={"FOLLOWED_PID": followed} if followed else {},
        entries={"events": ring_bytes},
    )


def udp_text(*, sets_owners: bool = False, follows: bool = False) -> ProgramText:
    """Return the text that counts UDP messages; which shares the maps of the walks or the events loaded before.

    Both flags require the events. With `sets_owners`, the programs at tracepoints also set owners of connections; with
    `follows`, also count the messages of the followed processes separately.
    """
    slots = slots_of((UDP_FALLBACKS,))
    return _text(
        ("hook_check.bpf.h", "owners.bpf.h", "udp.bpf.c"),
        functions=tuple(slots),
        maps=_UDP_MAPS + ((FOLLOWED_TOTALS,) if follows else ()),
        defines={
            **({"FOLLOWED_MAX": FOLLOWED_MAX} if follows else {}),
            "UDP_SOCKETS_MAX": UDP_SOCKETS_MAX,
            "SENDING_MAX": SENDING_MAX,
            **_slot_numbers(slots),
        },
        optional=tuple(slots),
        values={"SETS_OWNERS": int(sets_owners)},
    )


def _slot_numbers(slots: Mapping[str, int]) -> dict[str, int]:
    """Map the names of the slots in hook_check.bpf.h and the programs to their numbers."""
    return {
        "CHECK_SLOTS": len(slots) + 1,
        **{f"CALLED_{name.partition('@')[0]}": slot for name, slot in slots.items()},
    }


def _text(
    sources: tuple[str, ...],
    *,
    functions: tuple[str, ...],
    maps: tuple[str, ...],
    defines: dict[str, int],
    optional: tuple[str, ...] = (),
    values: Mapping[str, int] | None = None,
    entries: Mapping[str, int] | None = None,
) -> ProgramText:
    """Return the text of files of this package, preceded by the shared headers."""
    inbound, outbound, was_inbound = list(DIRECTIONS)[:3]
    shared = {
        **{f"IPPROTO_{name.upper()}": number for number, name in PROTOCOLS.items()},
        "US_PER_TICK": jiffy_us(),
        "CONNECTION_GROUPS": CONNECTION_GROUPS,
        "SHARED_MAX": SHARED_MAX,
        "WATCHED": WATCHED,
        "GROUP_SIZE": GROUP_SIZE,
        "STATE_UNCONN": STATE["UNCONN"],
        "HELD_BY_PROCESS": HELD_BY_PROCESS,
        "HELD_BY_KERNEL": HELD_BY_KERNEL,
        "RLIMIT_NOFILE": resource.RLIMIT_NOFILE,
        "DIRECTION_INBOUND": inbound,
        "DIRECTION_OUTBOUND": outbound,
        "DIRECTION_WAS_INBOUND": was_inbound,
        **{f"OWNER_{name.upper()}": number for number, name in OWNER_SOURCES.items()},
    }
    headers = (
        row_header("row", ROW),
        row_header("connection", CONNECTION),
        row_header("event", EVENT, ("row", ROW)),
        row_header("totals", HOST_TOTALS),
        row_header("udp_totals", UDP_TOTALS),
        row_header("shared_socket", SHARED_SOCKET),
    )
    return ProgramText(
        sources=(
            *process_columns.SOURCES,
            *(str(Path(__file__).with_name(name)) for name in ("socket_rows.bpf.h", *sources)),
        ),
        header="#include <linux/types.h>\n" + "".join(headers),
        slices=SLICES,
        functions=with_types(functions),
        maps=(*maps, *_SHARED),
        defines=shared | defines | process_columns.pid_defines(Host()),
        optional=optional,
        values=values or {},
        entries=entries or {},
        shared=(*_SHARED, "owned_until", "shared_sockets", "followed"),
    )
