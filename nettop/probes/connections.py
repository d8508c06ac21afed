# SPDX-License-Identifier: Apache-2.0
"""The connections probe: the kernel's socket table with owners, by BPF iterators, without any hook.

A walk over every process's descriptors gives each socket with its process. What no descriptor holds (not yet
accepted, orphans, SYN_RECV, kernel sockets) comes from a second walk, over the hash tables of a namespace,
when the namespace's own counts say that there is something to find.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from nettop.errors import SourceFailed
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host
from nettop.kernel.processes import user_name
from nettop.kernel.program import Loader, ProgramText
from nettop.kernel.rows import row_header
from nettop.probes.socket_rows import ROW, STATE, TCP, UDP, infer_directions
from nettop.probes.socket_table import (
    HELD,
    LIST_TIME_WAIT,
    LIST_WANTED,
    LIST_WITH_FILE,
    TCP_TABLE,
    UDP_TABLE,
    WANTED_MAX,
    SocketTable,
)
from nettop.snapshots.connections import LENS, OWNER_SOURCES, SOCKETS
from nettop.snapshots.snapshot import Array, Rows, Snapshot, known

_BPF_PROG_TYPE_TRACING = 26
_COMMON = (
    "skc_family", "skc_state", "skc_num", "skc_dport", "skc_daddr", "skc_rcv_saddr", "skc_v6_daddr",
    "skc_v6_rcv_saddr", "skc_net", "skc_flags", "skc_cookie",
)  # fmt: skip
_SOCK = (
    "sk_protocol", "sk_uid", "sk_drops", "sk_socket", "sk_rmem_alloc", "sk_wmem_alloc", "sk_ack_backlog",
    "sk_max_ack_backlog",
)  # fmt: skip
_TCP_SOCK = (
    "bytes_sent", "bytes_retrans", "bytes_received", "segs_out", "data_segs_out", "segs_in", "total_retrans",
    "srtt_us", "mdev_us", "rtt_min", "snd_cwnd", "mss_cache", "snd_nxt", "snd_una", "write_seq", "rcv_nxt",
    "copied_seq", "rate_delivered", "rate_interval_us",
)  # fmt: skip


def _plain(names: tuple[str, ...], inside: str = "") -> dict[str, str]:
    return {name: inside + name for name in names}


def _sock(inside: str) -> dict[str, str]:
    """The members of struct sock, for a struct that begins with one."""
    members = _plain(_SOCK, inside) | {"sk_rmem_alloc": f"{inside}sk_backlog.rmem_alloc"}
    return members | _plain(_COMMON, f"{inside}__sk_common.")


_SLICES = (
    Slice("bpf_iter_meta", {"seq": "seq"}, {}),
    Slice("task_struct", _plain(("tgid", "group_leader", "start_boottime", "comm", "cgroups")), {}),
    Slice("socket", _plain(("sk", "file")), {}),
    Slice("net", {"inum": "ns.inum"}, {}),
    Slice("sock_common", _plain(_COMMON), {}),
    Slice("numa_drop_counters", {}, _plain(("drops0", "drops1"))),
    Slice("sock", _sock(""), {"sk_drop_counters": "sk_drop_counters"}),
    Slice("udp_sock", {"forward_deficit": "forward_deficit"}, {}),
    Slice("tcp_timewait_sock", {"tw_substate": "tw_sk.tw_substate"}, {}),
    Slice(
        "tcp_sock",
        _plain(_TCP_SOCK)
        | _sock("inet_conn.icsk_inet.sk.")
        | {"syn_queue": "inet_conn.icsk_accept_queue.qlen"},
        {},
    ),
)


def make_probe() -> Connections:
    """The probe of this lens."""
    return Connections()


def program_text() -> ProgramText:
    """What the loader compiles for this lens."""
    return ProgramText(
        source=str(Path(__file__).with_name("connections.bpf.c")),
        header="#include <linux/types.h>\n" + row_header("row", ROW),
        slices=_SLICES,
        functions=dict.fromkeys((HELD, TCP_TABLE, UDP_TABLE), _BPF_PROG_TYPE_TRACING),
        maps=("listed", "wanted"),
        defines={
            "IPPROTO_TCP": TCP,
            "IPPROTO_UDP": UDP,
            "STATE_UNCONN": STATE["UNCONN"],
            "OWNER_DESCRIPTOR": next(iter(OWNER_SOURCES)),
            "LIST_TIME_WAIT": LIST_TIME_WAIT,
            "LIST_WITH_FILE": LIST_WITH_FILE,
            "LIST_WANTED": LIST_WANTED,
            "WANTED_MAX": WANTED_MAX,
        },
    )


class Connections:
    """The source of the connections lens; see nettop.engine.source.Source."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._table: SocketTable | None = None
        self._last: Array = np.zeros(0, ROW)

    @property
    def table(self) -> SocketTable:
        """The socket table. Raises SourceFailed before the start."""
        if self._table is None:
            raise SourceFailed("the connections probe is not attached")
        return self._table

    def start(self) -> None:
        """Compile, load and link. Raises NettopError when this host or user cannot."""
        self._host.require_bpf()
        loader = Loader()
        try:
            self._table = SocketTable(loader.load(program_text()), self._host)
        finally:
            loader.close()

    def read(self, taken_ns: int) -> Snapshot:
        """Every socket there is now."""
        table = self.table
        rows, counts = table.read(self._last, taken_ns)
        infer_directions(rows)
        self._last = rows
        return Snapshot(
            lens=LENS.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables={SOCKETS.name: Rows(SOCKETS, rows, table.processes.texts(), taken_ns)},
            counts=counts | {"unattributed": int(np.count_nonzero(~known(rows["pid"])))},
            lost={"namespaces": len(table.namespaces.refused), "processes": table.processes.vanished},
            via=table.via(),
        )

    def set(self, option: str, value: object) -> None:
        """`every`: list TIME_WAIT sockets too, which are otherwise counted only."""
        if option == "every":
            self.table.list_every(bool(value))

    def describe(self, key: int) -> dict[str, str]:
        """Who holds the socket, what those processes are, and names for the row's numbers."""
        row = self._last[self._last["id"] == key]
        if not len(row):
            return {}
        return self.table.processes.describe(self.table.holders(row)) | {
            "User": user_name(int(row["uid"][0])),
            "Namespace": self.table.namespaces.name(int(row["netns"][0])),
        }

    def close(self) -> None:
        """Detach and leave every namespace; a second call does nothing."""
        if self._table is not None:
            self._table.close()
            self._table = None
