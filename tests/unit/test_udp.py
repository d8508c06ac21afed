# SPDX-License-Identifier: Apache-2.0
"""UDP's counters between readings: whatever sockets come and go, no message is missing or counted twice."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.kernel.host.processes import Processes
from nettop.probes.connections import udp
from nettop.probes.connections.socket_rows import HELD_BY_KERNEL, ROW, TCP, UDP
from nettop.probes.connections.udp import COUNTED, UdpTotals
from nettop.snapshots import find_table
from nettop.snapshots.arrays import Array
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Rows, known
from tests.builders.arrays import unknown_rows

SOCKETS, BYTES = 5, 101
Reading = list[tuple[bool, int]]
"""For each socket, whether the table lists it, and how many messages it sent since the last reading."""
READINGS = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=SOCKETS, max_size=SOCKETS), max_size=12
)


class KernelMaps:
    """The maps of the programs. Before Linux 5.14 an entry cannot be read and deleted in one step."""

    def __init__(self, room: int = SOCKETS, *, takes: bool = True) -> None:
        self.sent: Counter[int] = Counter()
        self.untracked = 0
        self._room = room
        self._takes = takes

    def send(self, socket: int, messages: int) -> None:
        """Count a message, as the program does when a process sends."""
        if socket in self.sent or len(self.sent) < self._room:
            self.sent[socket] += messages
        else:
            self.untracked += messages

    def read_all(self, _fd: int, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[Array, Array]:
        """Return all entries, as maps.read_all; a hash table has no order."""
        ids = np.array(list(self.sent)[::-1], keys)
        return ids, rows_of(ids.tolist(), self.sent).astype(values)

    def read_each(self, _fd: int, keys: Array, dtype: np.dtype[Any], *, delete: bool) -> tuple[Array, Array]:
        """Return entries by key, as maps.read_each."""
        assert delete
        if not self._takes:
            return np.zeros(len(keys), dtype), np.zeros(len(keys), bool)
        final = rows_of(keys.tolist(), self.sent)
        self.delete_all(_fd, keys)
        return final, np.ones(len(keys), bool)

    def delete_all(self, _fd: int, keys: Array) -> None:
        """Delete all entries, as maps.delete_all."""
        for key in keys.tolist():
            del self.sent[key]

    def sum_per_cpu(self, _fd: int, _index: int, dtype: np.dtype[Any]) -> Array:
        """Sum over CPUs, as maps.sum_per_cpu."""
        total = np.zeros((), dtype)
        total["messages_sent"], total["bytes_sent"] = self.untracked, BYTES * self.untracked
        return total


def rows_of(ids: list[int], sent: Counter[int] | None = None) -> Array:
    """Return rows of UDP sockets, unknown but for what is given."""
    columns: list[dict[str, int]] = [{"id": number, "protocol": UDP, "held_by": 0} for number in ids]
    for row, number in zip(columns, ids, strict=True):
        if sent is not None:
            row |= {"messages_sent": sent[number], "bytes_sent": BYTES * sent[number]}
            row |= {"messages_received": 0, "bytes_received": 0}
    return unknown_rows(ROW, *columns)


def totals_of(monkeypatch: pytest.MonkeyPatch, kernel: KernelMaps) -> UdpTotals:
    """Return a counter of UDP over these maps."""
    monkeypatch.setattr(udp, "maps", kernel)
    hooks = SimpleNamespace(works=True, statuses=(HookStatus("udp", "any"),), gaps={})
    monkeypatch.setattr(udp, "Hooks", lambda *_, **__: hooks)
    program = SimpleNamespace(maps={"udp_sockets": 1, "untracked": 2}, functions={})
    return UdpTotals(cast("Any", program), loader=cast("Any", None), chosen={}, check=None)


def read(totals: UdpTotals, rows: Array, before: Array, processes: Processes) -> tuple[Array, Array]:
    """Return the rows of a reading, and of sockets that are gone; `before` are those of the last reading."""
    names = processes.begin()
    return totals.read(rows, Rows(find_table("connections"), before, names.texts(), 0), names)


@pytest.mark.parametrize("takes", [True, False], ids=["taken in one step", "read, then deleted"])
@given(readings=READINGS)
def test_no_message_is_missing_or_counted_twice(takes: bool, readings: list[Reading]) -> None:
    """The rows and what has ended add up to all that was sent, and to the totals of the host; no socket of the table
    ends."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        kernel = KernelMaps(takes=takes)
        totals, processes = totals_of(monkeypatch, kernel), Processes(Host())
        before, ended, sent = rows_of([]), 0, 0
        for reading in readings:
            for number, (_, messages) in enumerate(reading):
                if messages:
                    kernel.send(number, messages)
                    sent += messages
            table = [number for number, (is_listed, _) in enumerate(reading) if is_listed]
            before, gone = read(totals, rows_of(table), before, processes)
            ended += int(gone["messages_sent"].sum())
            moving = {number for number, (_, messages) in enumerate(reading) if messages}
            assert before["id"].tolist() == sorted(moving | set(table))
            assert not set(gone["id"].tolist()) & (moving | set(table))
            assert int(before["messages_sent"].sum()) + ended == sent
            assert gone["bytes_sent"].tolist() == (BYTES * gone["messages_sent"]).tolist()
            assert totals.status().counts == {
                "udp_bytes_sent": BYTES * sent, "udp_bytes_received": 0,
                "udp_messages_sent": sent, "udp_messages_received": 0,
            }  # fmt: skip


def test_sockets_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that sent nothing has sent 0; once messages found no room, that is unknown. Totals include them."""
    kernel = KernelMaps(room=1)
    totals, processes = totals_of(monkeypatch, kernel), Processes(Host())
    kernel.send(1, 3)
    first, _ = read(totals, rows_of([1, 2]), rows_of([]), processes)
    assert (first["messages_sent"].tolist(), totals.status().lost) == ([3, 0], {"udp messages": 0})
    kernel.send(2, 5)
    second, _ = read(totals, rows_of([1, 2]), first, processes)
    assert known(second["messages_sent"]).tolist() == [True, False]
    assert second["messages_sent"][0] == 3
    assert (totals.status().lost, totals.status().counts["udp_messages_sent"]) == ({"udp messages": 5}, 8)


def test_traffic_without_a_call_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel moves datagrams of tunnels and of its own sockets: neither 0 nor what processes moved is all of it.
    Where it is not known who holds a socket, it may be the kernel. Rows of TCP have no such counters."""
    kernel = KernelMaps()
    totals, processes = totals_of(monkeypatch, kernel), Processes(Host())
    for number in range(4):
        kernel.send(number, 1)
    rows = rows_of([0, 1, 2, 3, 4, 5, 6])
    rows["protocol"][6] = TCP
    rows["is_tunnel"][[1, 4]] = 1
    rows["held_by"][2] = HELD_BY_KERNEL
    rows["held_by"][[3, 5]] = 255
    rows["start_time"][3] = 7
    counted, _ = read(totals, rows, rows_of([]), processes)
    assert known(counted["messages_sent"]).tolist() == [True, False, False, True, False, False, False]
    assert known(counted["bytes_received"]).tolist() == [True, False, False, True, False, False, False]


def test_bytes_moved_before_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that the first reading found, open or gone, may have moved more than was counted; a later one not.
    The last row of one that is gone has the owner that it was shown with, not that of its first message."""
    kernel = KernelMaps()
    totals, processes = totals_of(monkeypatch, kernel), Processes(Host())
    kernel.send(3, 1)
    first, _ = read(totals, rows_of([1, 2]), rows_of([]), processes)
    assert dict(zip(first["id"].tolist(), first["began"].tolist(), strict=True)) == {1: 0, 2: 0, 3: 0}
    kernel.send(4, 1)
    second, gone = read(totals, rows_of([2]), first, processes)
    assert dict(zip(second["id"].tolist(), second["began"].tolist(), strict=True)) == {2: 0, 4: 1}
    assert dict(zip(gone["id"].tolist(), gone["began"].tolist(), strict=True)) == {3: 0}
    kernel.send(2, 3)
    third, _ = read(totals, rows_of([2]), second, processes)
    third["pid"] = 17
    _, gone = read(totals, rows_of([]), third, processes)
    assert (gone["pid"].tolist(), gone["messages_sent"].tolist()) == ([17], [3])


def test_without_a_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without counting, counters are unknown, not 0."""
    totals = totals_of(monkeypatch, KernelMaps())
    monkeypatch.setattr(totals.hooks, "works", False)
    rows, gone = read(totals, rows_of([1]), rows_of([]), Processes(Host()))
    assert not any(known(rows[name]).any() for name in COUNTED)
    assert (len(gone), totals.status().counts, totals.status().lost) == (0, {}, {})
