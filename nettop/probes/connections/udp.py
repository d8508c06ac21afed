# SPDX-License-Identifier: Apache-2.0
"""Bytes and messages of UDP sockets, from the return value of each kernel call."""

from __future__ import annotations

import numpy as np

from nettop.kernel.bpf import maps
from nettop.kernel.bpf.mechanisms import ChosenMechanisms, Fallbacks, Mechanism
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.host.processes import ProcessNames
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections import socket_rows
from nettop.probes.connections.events import EventsStatus
from nettop.probes.connections.hooks import Hooks
from nettop.probes.probe import skipped_runs
from nettop.snapshots.arrays import Array, copy_columns, positions, take_rows
from nettop.snapshots.connections import FOLLOWED_UDP, HOOK_UDP
from nettop.snapshots.schema import BEGAN
from nettop.snapshots.snapshot import Rows, known, unknown_value

COUNTED = ("bytes_sent", "bytes_received", "messages_sent", "messages_received")
UDP_TOTALS = np.dtype([(name, "u8") for name in COUNTED])
"""Totals per CPU for messages of sockets that had no room or no cookie."""

FOLLOWED_TOTALS = "of_followed"
"""The map with the totals of the followed processes."""

UDP_BY_MESSAGES = Mechanism(
    "tp_btf/sock_send_length + sock_recv_length",
    ("tp_btf__udp_sent@sock_send_length", "tp_btf__udp_received@sock_recv_length"),
)
"""Its programs pass every message of any socket, so they set the owners of TCP connections too."""
# A kretprobe on a function that receives cannot be used: it tracks only a few calls at once, and these block.
# skb_consume_udp is called at the end of each successful receive.
UDP_FALLBACKS = Fallbacks(
    HOOK_UDP,
    (
        UDP_BY_MESSAGES,
        Mechanism(
            "fexit/udp_sendmsg + udpv6_sendmsg + fentry/skb_consume_udp",
            ("fexit__udp_sendmsg", "fexit__udpv6_sendmsg", "fentry__skb_consume_udp"),
        ),
        Mechanism(
            "kprobe/udp_sendmsg + udpv6_sendmsg + skb_consume_udp",
            (
                *("entry__udp_sendmsg", "return__udp_sendmsg"),
                *("entry__udpv6_sendmsg", "return__udpv6_sendmsg"),
                "entry__skb_consume_udp",
            ),
        ),
    ),
)
_COOKIE = np.dtype("u8")


class UdpTotals:
    """Message counts of every UDP socket from creation to `close`."""

    def __init__(
        self, program: Program, *, loader: Loader, chosen: ChosenMechanisms, check: HookCheck | None
    ) -> None:
        self._program = program
        self.hooks = Hooks(program, (UDP_FALLBACKS,), loader=loader, chosen=chosen, check=check)
        self._totals = self._ended = self.untracked = dict.fromkeys(COUNTED, 0)
        """`untracked` is the traffic of sockets without an entry; it is in no row."""
        self._lost = 0
        self._older: Array | None = None

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self.hooks.close()

    def status(self) -> EventsStatus:
        """Return totals of all sockets from the start to the last reading, losses, the hook and gaps, for a
        snapshot."""
        if not self.hooks.works:
            return EventsStatus({}, {}, self.hooks.statuses, self.hooks.gaps)
        counts = {f"udp_{name}": total for name, total in self._totals.items()}
        if FOLLOWED_TOTALS in self._program.maps:
            counts |= {
                f"{FOLLOWED_UDP}{name}": total for name, total in self._sums_of(FOLLOWED_TOTALS).items()
            }
        return EventsStatus(counts, {"udp messages": self._lost}, self.hooks.statuses, self.hooks.gaps)

    def read(self, rows: Array, before: Rows, names: ProcessNames) -> tuple[Array, Array]:
        """Fill the counters of the table's `rows`, sorted by id.

        Return these rows plus those of sockets outside the table with new traffic, and the rows of sockets that are
        gone. `before` are the rows returned by the last call: they become the last rows of sockets that are gone, with
        their final counts. An idle socket outside the table counts as gone; if it resumes, its counts start at 0.
        """
        if not self.hooks.works:
            return rows, rows[:0]
        ids, entries = maps.read_all(self._program.maps["udp_sockets"], _COOKIE, socket_rows.ROW)
        entries = take_rows(entries, np.argsort(ids))
        self._add_up(entries)
        self._give_owners(rows, entries, names)
        _put_counted(rows, entries, may_miss_some=self._lost > 0)
        outside = socket_rows.exclude_ids(entries, rows["id"])
        idle = socket_rows.is_same(outside, before.array, COUNTED)
        moving = take_rows(outside, ~idle)
        names.name_any(moving)
        rows, gone = socket_rows.merge(rows, moving), self._remove(take_rows(outside, idle), before, names)
        self._mark_new(rows, gone)
        return rows, gone

    def _give_owners(self, rows: Array, entries: Array, names: ProcessNames) -> None:
        """Give a socket without a file descriptor, such as one of io_uring, to the process that used it first."""
        at = positions(entries["id"], rows["id"])
        of = np.flatnonzero(at >= 0)
        here = at[of]
        may_lack = ~known(rows["start_time"][here]) & (rows["held_by"][here] != socket_rows.HELD_BY_KERNEL)
        here, of = here[may_lack], of[may_lack]
        used = take_rows(rows, here)
        socket_rows.copy_owners(used, entries, of)
        names.name_any(used)
        rows[here] = used

    def _mark_new(self, rows: Array, gone: Array) -> None:
        """Mark the sockets that opened after the first reading: their counts started at 0. Others may have had traffic
        before their messages were counted."""
        udp = np.flatnonzero(rows["protocol"] == socket_rows.UDP)
        ids = np.ascontiguousarray(rows["id"][udp])
        older = np.union1d(ids, gone["id"]) if self._older is None else self._older
        rows[BEGAN][udp] = positions(ids, older) < 0
        gone[BEGAN] = positions(gone["id"], older) < 0
        self._older = older[positions(older, ids) >= 0]

    def _add_up(self, entries: Array) -> None:
        """Update the totals: each message is in an entry, in a deleted entry, or in none."""
        self.untracked = self._sums_of("untracked")
        self._totals = {
            name: self._ended[name] + int(entries[name].sum()) + self.untracked[name] for name in COUNTED
        }
        untracked = self.untracked["messages_sent"] + self.untracked["messages_received"]
        self._lost = untracked + skipped_runs(self._program)

    def _sums_of(self, name: str) -> dict[str, int]:
        total = maps.sum_per_cpu(self._program.maps[name], 0, UDP_TOTALS)
        return {each: int(total[each]) for each in COUNTED}

    def _remove(self, gone: Array, before: Rows, names: ProcessNames) -> Array:
        """Delete the entries of these sockets, and return their last rows."""
        table = self._program.maps["udp_sockets"]
        final, exists = maps.read_each(table, gone["id"], socket_rows.ROW, delete=True)
        if not exists.all():  # before Linux 5.14
            maps.delete_all(table, gone["id"])
            final = gone
        last = take_rows(before.array, positions(gone["id"], before.array["id"]))
        names.adopt(last, before.texts)
        copy_columns(last, final, COUNTED)
        self._ended = {name: ended + int(last[name].sum()) for name, ended in self._ended.items()}
        return last


def _put_counted(rows: Array, entries: Array, *, may_miss_some: bool) -> None:
    """Fill the counters of UDP rows from the entries of their sockets; both are sorted by id.

    A socket without an entry has no traffic, unless messages were lost. Traffic that no process sends or receives is
    not counted: a tunnel's datagrams, and everything on sockets that the kernel holds or may hold.
    """
    udp = np.flatnonzero(rows["protocol"] == socket_rows.UDP)
    at = positions(rows["id"][udp], entries["id"])
    may_be_kernels = ~np.isin(
        rows["held_by"][udp], (0, socket_rows.HELD_BY_PROCESS)
    ) & ~socket_rows.has_process(rows[udp])
    is_uncounted = (rows["is_tunnel"][udp] == 1) | may_be_kernels
    for name in COUNTED:
        counted = np.full(len(udp), unknown_value(_COOKIE) if may_miss_some else 0, np.uint64)
        counted[at >= 0] = entries[name][at[at >= 0]]
        counted[is_uncounted] = unknown_value(_COOKIE)
        rows[name][udp] = counted
