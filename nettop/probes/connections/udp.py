# SPDX-License-Identifier: Apache-2.0
"""What UDP sockets sent and received, by the kernel's own count of what each call returned."""

from __future__ import annotations

import numpy as np

from nettop.kernel import bpf, maps
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, attach_best
from nettop.kernel.processes import Processes
from nettop.kernel.program import Loader, Program
from nettop.probes.connections.events import EventsStatus
from nettop.probes.connections.hooks import Hooks, program_names, slots_of
from nettop.probes.connections.socket_rows import ROW, UDP, give_owners, has_process, merge
from nettop.snapshots.arrays import Mask, positions, take
from nettop.snapshots.connections import FOLLOWED_UDP, HOOK_UDP
from nettop.snapshots.schema import BEGAN
from nettop.snapshots.snapshot import Array, unknown_value

COUNTED = ("bytes_sent", "bytes_received", "messages_sent", "messages_received")
UDP_TOTALS = np.dtype([(name, "u8") for name in COUNTED])
"""On each CPU, of the messages of sockets for which there was no room, or no cookie."""

OF_FOLLOWED = "of_followed"
"""The map of what the followed processes moved."""

# A probe at a function that receives would see the result only at its return, of which the kernel follows just a few
# that block at once. skb_consume_udp is called at the end of each receive that succeeds.
UDP_FALLBACKS = Fallbacks(
    HOOK_UDP,
    (
        Mechanism(
            "tp_btf/sock_send_length + sock_recv_length",
            ("tp_btf__udp_sent@sock_send_length", "tp_btf__udp_received@sock_recv_length"),
        ),
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


def udp_slots() -> dict[str, int]:
    """The programs, and where in the map `hook_check` each notes that it was called."""
    return slots_of(program_names((UDP_FALLBACKS,)))


class UdpTotals:
    """Counts the messages of every UDP socket from now on; closing ends that."""

    def __init__(
        self, program: Program, *, loader: Loader, chosen: ChosenMechanisms, check: HookCheck | None
    ) -> None:
        self._program = program
        self._hooks = Hooks(program, loader, check, udp_slots())
        self._status = attach_best(UDP_FALLBACKS, self._hooks.take, chosen)
        self._totals = self._ended = self.untracked = dict.fromkeys(COUNTED, 0)
        """`untracked` is what sockets moved that found no entry; it is in no row."""
        self._lost = 0
        self._older: Array | None = None

    def finish_hooks(self) -> None:
        """To be called when the hook check's last traffic has ended."""
        self._hooks.finish()

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._hooks.close()
        self._program.close()

    def status(self) -> EventsStatus:
        """What a snapshot says: what all sockets moved from the start to the last reading, losses, the hook, gaps."""
        hooks = (self._status,)
        if self._status.mechanism is None:
            return EventsStatus({}, {}, hooks, self._hooks.gaps)
        counts = {f"udp_{name}": total for name, total in self._totals.items()}
        if OF_FOLLOWED in self._program.maps:
            counts |= {f"{FOLLOWED_UDP}{name}": total for name, total in self._sums_of(OF_FOLLOWED).items()}
        return EventsStatus(counts, {"udp messages": self._lost}, hooks, self._hooks.gaps)

    def read(self, rows: Array, before: Array, processes: Processes) -> tuple[Array, Array]:
        """Give the table's `rows`, sorted by id, what their sockets moved. Returns them with those of sockets that
        moved something since the last reading and are not in the table; and the rows of sockets that have gone.

        `before` are the rows that the last call returned: of what has gone they are the last, with its final numbers. A
        socket outside the table that is idle counts as gone; if it goes on, its numbers begin at 0.
        """
        if self._status.mechanism is None:
            return rows, rows[:0]
        ids, entries = maps.read_all(self._program.maps["udp_sockets"], _COOKIE, ROW)
        entries = take(entries, np.argsort(ids))
        self._add_up(entries)
        self._give_owners(rows, entries, processes)
        _put_counted(rows, entries, may_miss_some=self._lost > 0)
        outside = take(entries, np.flatnonzero(positions(entries["id"], rows["id"]) < 0))
        idle = _idle_since(outside, before)
        moving = take(outside, np.flatnonzero(~idle))
        processes.name_any(moving, processes.groups(), more=True)
        rows, gone = merge(rows, moving), self._take_out(take(outside, np.flatnonzero(idle)), before)
        self._mark_new(rows, gone)
        return rows, gone

    def _give_owners(self, rows: Array, entries: Array, processes: Processes) -> None:
        """Let a socket to which no descriptor leads, such as one of io_uring, belong to who used it first."""
        at = positions(rows["id"], entries["id"])
        at[has_process(rows) | (rows["is_kernels"] == 1)] = -1
        here = np.flatnonzero(at >= 0)
        used = take(rows, here)
        give_owners(used, entries, at[here])
        processes.name_any(used, processes.groups(), more=True)
        rows[here] = used

    def _mark_new(self, rows: Array, gone: Array) -> None:
        """Mark the sockets that opened after the first reading: what they moved was counted from 0 on. The others may
        have moved something before their messages were counted."""
        udp = np.flatnonzero(rows["protocol"] == UDP)
        ids = np.ascontiguousarray(rows["id"][udp])
        older = np.union1d(ids, gone["id"]) if self._older is None else self._older
        rows[BEGAN][udp] = positions(ids, older) < 0
        gone[BEGAN] = positions(gone["id"], older) < 0
        self._older = older[positions(older, ids) >= 0]

    def _add_up(self, entries: Array) -> None:
        """Take the totals: each message is in an entry, was in one that was taken out, or found none."""
        self.untracked = self._sums_of("untracked")
        self._totals = {
            name: self._ended[name] + int(entries[name].sum()) + self.untracked[name] for name in COUNTED
        }
        skipped = sum(map(bpf.recursion_misses, self._program.functions.values()))
        self._lost = self.untracked["messages_sent"] + self.untracked["messages_received"] + skipped

    def _sums_of(self, name: str) -> dict[str, int]:
        by_cpu = maps.read_per_cpu(self._program.maps[name], 0, UDP_TOTALS)
        return {each: int(by_cpu[each].sum()) for each in COUNTED}

    def _take_out(self, gone: Array, before: Array) -> Array:
        """Delete the entries of these sockets, and return their last rows."""
        table = self._program.maps["udp_sockets"]
        final, exists = maps.read_each(table, gone["id"], ROW, delete=True)
        if not exists.all():  # before Linux 5.14
            maps.delete_all(table, gone["id"])
            final = gone
        last = take(before, positions(gone["id"], before["id"]))
        for name in COUNTED:
            last[name] = final[name]
        self._ended = {name: ended + int(last[name].sum()) for name, ended in self._ended.items()}
        return last


def _put_counted(rows: Array, entries: Array, *, may_miss_some: bool) -> None:
    """Fill the counters of the UDP rows from the entries of their sockets: both are sorted by id.

    A socket without an entry moved nothing, unless messages were lost. What the kernel sends and receives for itself is
    no call of a process: a tunnel's datagrams, and all of a socket that the kernel holds, or may hold.
    """
    udp = np.flatnonzero(rows["protocol"] == UDP)
    at = positions(rows["id"][udp], entries["id"])
    may_be_kernels = (rows["is_kernels"][udp] != 0) & ~has_process(rows[udp])
    passed_by = (rows["is_tunnel"][udp] == 1) | may_be_kernels
    for name in COUNTED:
        counted = np.full(len(udp), unknown_value(_COOKIE) if may_miss_some else 0, np.uint64)
        counted[at >= 0] = entries[name][at[at >= 0]]
        counted[passed_by] = unknown_value(_COOKIE)
        rows[name][udp] = counted


def _idle_since(entries: Array, before: Array) -> Mask:
    """Which of the entries have the counters that they had `before`."""
    at = positions(entries["id"], before["id"])
    idle: Mask = at >= 0
    for name in COUNTED:
        idle[idle] = before[name][at[idle]] == entries[name][idle]
    return idle
