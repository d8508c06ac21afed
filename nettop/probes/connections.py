# SPDX-License-Identifier: Apache-2.0
"""The connections probe: the kernel's socket table with owners, by BPF iterators, without any hook.

A walk over every process's descriptors gives each socket with its process. What no descriptor holds (not yet
accepted, orphans, SYN_RECV, kernel sockets) comes from a second walk, over the hash tables of a namespace,
when the namespace's own counts say that there is something to find.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nettop.kernel import bpf
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host, Sockstat
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.namespaces import Namespaces
from nettop.kernel.processes import Processes, holders_of
from nettop.kernel.program import Loader, Program, ProgramText
from nettop.kernel.rows import row_header
from nettop.snapshots.connections import DIRECTIONS, LENS, OWNER_SOURCES, PROTOCOLS, SOCKETS, STATES
from nettop.snapshots.schema import row_dtype
from nettop.snapshots.snapshot import Array, Rows, Snapshot, known

_TCP, _UDP = (number for number, name in PROTOCOLS.items() if name in ("tcp", "udp"))
_STATE = {name: number for number, name in STATES.items()}
_INBOUND, _OUTBOUND = (n for n, name in DIRECTIONS.items() if name.endswith("?"))
_DESCRIPTOR = next(iter(OWNER_SOURCES))
_BPF_PROG_TYPE_TRACING = 26

_LIST_TIME_WAIT, _LIST_WITH_FILE = 1, 2

# What the programs write beyond the table's fields: who holds the socket, and a listener's half-open queue.
ROW = row_dtype(
    SOCKETS, (("start_time", "u8"), ("css_set", "u8"), ("fd", "u4"), ("syn_queue", "u4"), ("comm", "S16"))
)

_COMMON = (
    "skc_family", "skc_state", "skc_num", "skc_dport", "skc_daddr", "skc_rcv_saddr", "skc_v6_daddr",
    "skc_v6_rcv_saddr", "skc_net", "skc_flags",
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

_PROGRAMS = ("bpf_iter__task_file", "bpf_iter__tcp", "bpf_iter__udp")


def make_probe() -> Connections:
    """The probe of this lens."""
    return Connections()


def program_text() -> ProgramText:
    """What the loader compiles for this lens."""
    return ProgramText(
        source=str(Path(__file__).with_name("connections.bpf.c")),
        header="#include <linux/types.h>\n" + row_header("row", ROW),
        slices=_SLICES,
        functions=dict.fromkeys(_PROGRAMS, _BPF_PROG_TYPE_TRACING),
        maps=("listed",),
        defines={
            "IPPROTO_TCP": _TCP,
            "IPPROTO_UDP": _UDP,
            "STATE_UNCONN": _STATE["UNCONN"],
            "OWNER_DESCRIPTOR": _DESCRIPTOR,
            "LIST_TIME_WAIT": _LIST_TIME_WAIT,
            "LIST_WITH_FILE": _LIST_WITH_FILE,
        },
    )


class Connections:
    """The source of the connections lens. See nettop.engine.source.Source."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._program: Program | None = None
        self._iterators: dict[str, Iterator] = {}
        self._namespaces: Namespaces | None = None
        self._processes = Processes(self._host)
        self._held, self._unheld = RowBuffer(), RowBuffer()
        self._every = False
        self._last: Array | None = None
        self._descriptors: Array | None = None
        self._filed: dict[int, int] = {}

    # --- the source ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile, load and link. Raises NettopError when this host or user cannot."""
        self._host.require_bpf()
        loader = Loader()
        try:
            self._program = loader.load(program_text())
        finally:
            loader.close()
        self._iterators = {name: Iterator(fd, ROW) for name, fd in self._program.functions.items()}
        self._namespaces = Namespaces(self._host.proc)

    def read(self, taken_ns: int) -> Snapshot:
        """Every socket there is now."""
        assert self._namespaces is not None
        held = self.read_held()
        self._namespaces.follow(set(np.unique(held["netns"]).tolist()))
        unheld, counts, walked = self.read_unheld(held)
        rows = _merge(held, unheld)
        _infer_directions(rows)
        self._last = rows
        counts["unattributed"] = int(np.count_nonzero(~known(rows["pid"])))
        return Snapshot(
            lens=LENS.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables={SOCKETS.name: Rows(SOCKETS, rows, self._processes.texts(), taken_ns)},
            counts=counts,
            lost={"namespaces": len(self._namespaces.refused), "processes": self._processes.vanished},
            via=self._via(walked),
        )

    def set(self, option: str, value: object) -> None:
        """`every`: list TIME_WAIT sockets too, which are otherwise counted only."""
        if option == "every":
            self._every = bool(value)

    def describe(self, key: int) -> dict[str, str]:
        """Who else holds the socket, and what its owner is."""
        holders = holders_of(self._descriptors, key)
        return self._processes.describe(holders)

    def close(self) -> None:
        """Detach and leave every namespace."""
        for iterator in self._iterators.values():
            iterator.close()
        if self._program is not None:
            self._program.close()
        if self._namespaces is not None:
            self._namespaces.close()

    # --- the two walks ------------------------------------------------------------------------------------

    def read_held(self) -> Array:
        """The sockets that processes hold, sorted by id, each with its one owner; an own copy."""
        found = self._iterators["bpf_iter__task_file"].read(self._held)
        self._processes.name(found)
        self._descriptors = found[["id", "pid", "fd"]].copy()
        return _take(found, choose_owners(found, self._last))

    def read_unheld(self, held: Array) -> tuple[list[Array], dict[str, int], int]:
        """The sockets that no descriptor holds, where a namespace counts more sockets than were `held`.

        Returns the rows of each walk, counts of what there is beside them, and in how many namespaces a walk
        was needed.
        """
        assert self._namespaces is not None
        rows: list[Array] = []
        counts = {"time_wait": 0, "unlisted": 0}
        walked = 0
        expected = _hashed(held)
        for inode, thread in self._namespaces.threads.items():
            stat = thread.run(self._host.sockstat)
            tcp, udp, half_open = expected.get(inode, (0, 0, 0))
            found = []
            if stat.tcp > tcp or stat.time_wait or half_open:
                found.append(thread.run(partial(self._walk, "bpf_iter__tcp", inode)))
            if stat.udp > udp:
                found.append(thread.run(partial(self._walk, "bpf_iter__udp", inode)))
            walked += bool(found)
            rows += found
            counts["time_wait"] += _time_wait(stat, found)
            counts["unlisted"] += self._unlisted(inode, stat.tcp + stat.udp - tcp - udp, found, held)
        return rows, counts, walked

    def _walk(self, program: str, inode: int) -> Array:
        """One walk over a hash table of the calling thread's namespace; an own copy."""
        assert self._program is not None
        listed = (_LIST_TIME_WAIT if self._every else 0) | (
            _LIST_WITH_FILE if self._filed.get(inode, 0) > 1 else 0
        )
        bpf.set_element(self._program.maps["listed"], 0, listed)
        return self._iterators[program].read(self._unheld).copy()

    def _unlisted(self, inode: int, missing: int, found: list[Array], held: Array) -> int:
        """How many sockets of a namespace both walks missed, going by its counts.

        A few come and go between the readings. What stays is held by something that is no process's
        descriptor (a message under way, io_uring): after two such refreshes the next walk lists those too,
        and goes on while it finds any.
        """
        tcp, udp, _ = _hashed(*found).get(inode, (0, 0, 0)) if found else (0, 0, 0)
        unlisted = max(0, missing - tcp - udp)
        searched = self._filed.get(inode, 0) > 1
        extra = searched and any(len(np.setdiff1d(rows["id"], held["id"])) for rows in found)
        self._filed[inode] = (
            2 if extra else (self._filed.get(inode, 0) + 1 if unlisted and not searched else 0)
        )
        return unlisted

    def _via(self, walked: int) -> dict[str, str]:
        assert self._namespaces is not None
        second = (
            f"iter/tcp, iter/udp in {walked} of {len(self._namespaces.threads)} namespaces"
            if walked
            else "none"
        )
        refused = {
            f"namespace {inode}": f"not entered: {why}" for inode, why in self._namespaces.refused.items()
        }
        return {"sockets": "iter/task_file", "without owner": second} | refused


# --- rows -------------------------------------------------------------------------------------------------


def choose_owners(found: Array, before: Array | None) -> NDArray[np.intp]:
    """Positions of one row a socket, sorted by id: the row of the holder that owns it.

    The owner in the rows `before` stays it while it holds the socket; else the holder that started last, and
    of several the one with the lowest PID.
    """
    ids = np.ascontiguousarray(found["id"])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    if first.all():
        return order
    shared = ~first | ~np.append(first[1:], True)
    rows = order[shared]
    newcomer = ~_owned_before(found[rows], before)
    best_first = np.lexsort((found["pid"][rows], ~found["start_time"][rows], newcomer, ids[shared]))
    order[shared] = rows[best_first]
    return order[first]


def _owned_before(rows: Array, before: Array | None) -> NDArray[np.bool_]:
    if before is None or not len(before):
        return np.zeros(len(rows), bool)
    at = np.minimum(np.searchsorted(before["id"], rows["id"]), len(before) - 1)
    then = before[at]
    same: NDArray[np.bool_] = (
        (then["id"] == rows["id"]) & (then["pid"] == rows["pid"]) & (then["start_time"] == rows["start_time"])
    )
    return same


def _take(rows: Array, at: NDArray[np.intp]) -> Array:
    """The rows at these positions, copied as bytes: field by field takes numpy fifteen times as long."""
    return rows.view(f"V{rows.dtype.itemsize}")[at].view(rows.dtype)


def _merge(held: Array, unheld: list[Array]) -> Array:
    """All rows sorted by id; of a socket that both walks met, the row with the owner."""
    if not any(len(rows) for rows in unheld):
        return held
    plain = f"V{ROW.itemsize}"
    rows = np.concatenate([held.view(plain), *(one.view(plain) for one in unheld)]).view(ROW)
    ids = np.ascontiguousarray(rows["id"])
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return _take(rows, order[first])


def _infer_directions(rows: Array) -> None:
    """A connection whose local port somebody listens on, in its namespace, is taken for an inbound one."""
    port = rows["netns"].astype(np.uint64) << np.uint64(16) | rows["local_port"]
    listening = np.unique(port[rows["state"] == _STATE["LISTEN"]])
    connected = (rows["protocol"] == _TCP) & known(rows["remote_port"])
    at = np.minimum(np.searchsorted(listening, port), max(len(listening) - 1, 0))
    inbound = listening[at] == port if len(listening) else np.zeros(len(rows), bool)
    rows["direction"][connected] = np.where(inbound[connected], _INBOUND, _OUTBOUND)


# --- what the namespace's counts say ----------------------------------------------------------------------


def _hashed(*tables: Array) -> dict[int, tuple[int, int, int]]:
    """For each namespace: TCP and UDP sockets that its hash tables count, and half-open connections.

    A TCP socket in CLOSE and a UDP socket without a port are in no table; nor are a SYN_RECV request and a
    minisocket of TIME_WAIT counted among them: neither has sent a segment as a socket of its own.
    """
    counts: dict[int, tuple[int, int, int]] = {}
    for rows in tables:
        inodes, at = np.unique(rows["netns"], return_inverse=True)
        tcp = (rows["protocol"] == _TCP) & (rows["state"] != _STATE["CLOSE"])
        tcp &= known(rows["send_queue"])
        udp = (rows["protocol"] == _UDP) & known(rows["local_port"])
        half_open = np.where(known(rows["syn_queue"]), rows["syn_queue"], 0)
        sums = [np.bincount(at, weights=column, minlength=len(inodes)) for column in (tcp, udp, half_open)]
        for place, inode in enumerate(inodes.tolist()):
            old = counts.get(inode, (0, 0, 0))
            counts[inode] = tuple(int(before + new[place]) for before, new in zip(old, sums, strict=True))  # type: ignore[assignment]
    return counts


def _time_wait(stat: Sockstat, found: list[Array]) -> int:
    """Sockets in TIME_WAIT: all minisockets but those that still wait for the peer's FIN."""
    waiting_for_fin = sum(
        int(np.count_nonzero((rows["state"] == _STATE["FIN_WAIT2"]) & ~known(rows["send_queue"])))
        for rows in found
    )
    return max(0, stat.time_wait - waiting_for_fin)
