# SPDX-License-Identifier: Apache-2.0
"""Totals by process: whatever is folded, bounded or still being added, not one byte is lost or counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.facts import Host
from nettop.probes.connections import process_totals
from nettop.probes.connections.event_records import CLOSE, EVENT, FAIL, TOTALLED
from nettop.probes.connections.process_totals import ProcessTotals
from nettop.probes.connections.socket_rows import ROW, STATE, TCP, UDP
from nettop.snapshots.connections import PROCESSES
from nettop.snapshots.snapshot import Array, Rows, known, unknown_value

TICK = 1 << 24
"""Two processes with one PID begin at least so far apart, in ns."""
MOVED = TOTALLED[2:]
SUMMED = (*TOTALLED, "connections")
TAKEN_NS = 5
_BYTES = unknown_value(np.dtype("u8"))


class Process(NamedTuple):
    """A process, or nobody."""

    pid: int | None
    start: int = 0
    comm: bytes = b""
    css_set: int = 1


@dataclass
class Connection:
    """A connection: whose it is, what it moved, and what the last reading of the table had of it, if it stood there."""

    number: int
    process: Process
    amounts: dict[str, int]
    is_held: bool = True
    shown: dict[str, int] | None = None
    ending: str = ""


class KernelMap:
    """The map of closed connections, by process, and which processes are alive."""

    def __init__(self) -> None:
        self.totals: dict[Process, Counter[str]] = {}
        self.alive: set[int] = set()

    def add(self, process: Process, amounts: dict[str, int]) -> None:
        """Add a closed connection, as a program does."""
        self.totals.setdefault(process, Counter()).update(amounts)

    def read_all(self, fd: int, keys: np.dtype[Any], values: np.dtype[Any]) -> tuple[Array, Array]:
        """As maps.read_all."""
        owners, sums = np.zeros(len(self.totals), keys), np.zeros(len(self.totals), values)
        for at, (process, counted) in enumerate(self.totals.items()):
            for name, value in zip(("pid", "start_time", "css_set", "comm"), self._key(process), strict=True):
                owners[name][at] = value
            for name in TOTALLED:
                sums[name][at] = counted[name]
        return owners, sums

    def read_each(self, fd: int, keys: Array, dtype: np.dtype[Any], *, delete: bool) -> tuple[Array, Array]:
        """As maps.read_each, which deletes what it reads."""
        assert delete
        entries, values = self.read_all(fd, keys.dtype, dtype)
        at = [int(np.flatnonzero(entries == key)[0]) for key in keys]
        processes = list(self.totals)
        for index in at:
            del self.totals[processes[index]]
        return values[at], np.ones(len(keys), bool)

    def listdir(self, path: Path) -> list[str]:
        """As os.listdir of /proc."""
        return ["self", "net", *map(str, sorted(self.alive))]

    @staticmethod
    def _key(process: Process) -> tuple[int, int, int, bytes]:
        if process.pid is None:
            return int(unknown_value(np.dtype("u4"))), _BYTES, _BYTES, b"\xff" * 16
        return process.pid, process.start, process.css_set, process.comm


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> KernelMap:
    """The map that `Totals` reads."""
    return install(monkeypatch)


def install(patch: pytest.MonkeyPatch, entries_max: int = 1 << 13, kept_max: int = 1 << 14) -> KernelMap:
    """Have the module read a map of the test, with these bounds."""
    made = KernelMap()
    patch.setattr(process_totals, "maps", made)
    patch.setattr(process_totals, "os", made)
    patch.setattr(process_totals, "ENTRIES_MAX", entries_max)
    patch.setattr(process_totals, "KEPT_MAX", kept_max)
    return made


class Totals:
    """Totals over the installed map, on a host without /proc, as the probe uses them."""

    def __init__(self) -> None:
        program: Any = SimpleNamespace(maps={"processes": 1})
        self._totals = ProcessTotals(Host(Path("/nonexistent")))
        self._totals.begin(program)

    def rows(
        self, opened: Sequence[Connection] = (), while_reading: Callable[[], None] | None = None
    ) -> Rows:
        """A reading, with these connections in the table; meanwhile something may happen."""
        self._totals.begin_reading()
        table = sockets(opened)
        if while_reading is not None:
            while_reading()
        return self._totals.rows(table, self._totals.closed(lambda: None), {}, TAKEN_NS)

    def table(self, rows: Array) -> Rows:
        """A reading that found these rows."""
        self._totals.begin_reading()
        return self._totals.rows(rows, self._totals.closed(lambda: None), {}, TAKEN_NS)

    def end(self, connection: Connection, was_owned: bool = True) -> None:
        """The ring reports an end; the owner may be known by the table alone."""
        event = np.frombuffer(bytearray(b"\xff" * EVENT.itemsize), EVENT)
        cells = {"id": connection.number, "event": FAIL if connection.ending == "fail" else CLOSE}
        for name, value in (cells | connection.amounts | owner_cells(connection.process)).items():
            event[name] = value
        if not was_owned:
            self._totals.move(event)
        self._totals.end(event)


def owner_cells(process: Process) -> dict[str, Any]:
    """What a row or an event says of its owner."""
    if process.pid is None:
        return {}
    return dict(zip(("pid", "start_time", "comm", "css_set"), process, strict=True))


def sockets(connections: Sequence[Connection], **cells: Any) -> Array:
    """Connections as the table's rows have them, sorted by id; what is not given is unknown."""
    rows = np.frombuffer(bytearray(b"\xff" * ROW.itemsize * len(connections)), ROW)
    for at, connection in enumerate(sorted(connections, key=lambda connection: connection.number)):
        values = {
            "id": connection.number,
            "protocol": TCP,
            "state": STATE["ESTABLISHED"],
            **connection.amounts,
        }
        for name, value in (values | owner_cells(connection.process) | cells).items():
            rows[name][at] = value
    return rows


def sums(rows: Rows) -> Counter[str]:
    """Each column summed over all rows, without numpy's own width."""
    return Counter({name: sum(rows.array[name].tolist()) for name in SUMMED})


def by_process(rows: Rows) -> dict[tuple[int | None, int], dict[str, int]]:
    """The columns of each process; nobody's under None."""
    by_owner = {}
    for row in rows.array:
        owned = row["pid"] != unknown_value(rows.array["pid"].dtype)
        key = (int(row["pid"]), int(row["start_time"])) if owned else (None, int(row["id"]))
        assert key not in by_owner
        by_owner[key] = {name: int(row[name]) for name in SUMMED}
    return by_owner


AMOUNTS = st.fixed_dictionaries(
    {
        name: st.sampled_from([0, 1, 7, 2**20, 2**31, 2**32 - 2])
        for name in MOVED
        if "packets" in name or name == "retransmits"
    }
    | {name: st.sampled_from([0, 1, 13, 2**32 - 1, 2**45]) for name in MOVED if "bytes" in name}
)
PEOPLE = st.sampled_from(
    [
        Process(None),
        *(
            Process(pid, start * TICK, b"web", css_set)
            for pid in (7, 8, 9)
            for start in (1, 2)
            for css_set in (1, 2)
        ),
    ]
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "open",
                "grow",
                "leave",
                "close",
                "fail",
                "exit",
                "owned late",
                "brief",
                "read",
                "close while reading",
            ]
        ),
        st.integers(0, 5),
        PEOPLE,
        AMOUNTS,
    ),
    max_size=50,
)
Expected = dict[tuple[int | None, int], dict[str, int]]


def grown(name: str, amount: int, more: int) -> int:
    """A counter of a socket that goes on, as far as its column goes."""
    return min(amount + more, int(unknown_value(ROW.fields[name][0])) - 1)


class World:
    """Connections that come and go, the kernel's map of them, and the totals that are read."""

    def __init__(self, kernel: KernelMap) -> None:
        self.kernel, self.reader = kernel, Totals()
        self.alive: list[Connection] = []
        self.ended: list[Connection] = []
        self._count = 0

    def step(self, kind: str, which: int, process: Process, amounts: dict[str, int]) -> None:
        """Whatever happens; a step that nothing is there for does nothing."""
        if kind in ("open", "brief"):
            self._count += 1
            self.alive.append(Connection(self._count, process, dict(amounts), kind == "open"))
        if kind == "brief":
            self.close(self.alive[-1], "close")
        if process.pid is not None and kind in ("open", "brief", "exit"):
            (self.kernel.alive.discard if kind == "exit" else self.kernel.alive.add)(process.pid)
        if kind in ("open", "brief", "read", "exit") or not self.alive:
            return
        chosen = self.alive[which % len(self.alive)]
        if kind == "grow":
            chosen.amounts = {name: grown(name, chosen.amounts[name], more) for name, more in amounts.items()}
        elif kind == "leave":
            chosen.is_held = False
        else:
            self.close(chosen, kind)

    def close(self, connection: Connection, how: str) -> None:
        """A connection ends: the program adds it to the map, then the ring reports it."""
        connection.ending = how
        self.alive.remove(connection)
        self.ended.append(connection)
        was_owned = how != "owned late" or connection.process.pid is None
        ended = {"failed" if how == "fail" else "closed": 1}
        self.kernel.add(connection.process if was_owned else Process(None), connection.amounts | ended)
        self.reader.end(connection, was_owned)

    def read(self, closing: int | None = None) -> Rows:
        """A reading, during which a connection may close."""
        held = [connection for connection in self.alive if connection.is_held]
        for connection in held:
            connection.shown = dict(connection.amounts)
        chosen = [] if closing is None or not self.alive else [self.alive[closing % len(self.alive)]]
        return self.reader.rows(
            held, lambda: [self.close(connection, "close") for connection in chosen] and None
        )

    def expected(self) -> Expected:
        """What has to be shown of the ended ones, and of those that the table has or had last."""
        by_owner: dict[tuple[int | None, int], Counter[str]] = {}
        for connection in self.ended:
            ended = {"failed" if connection.ending == "fail" else "closed": 1}
            by_owner.setdefault(connection.process[:2], Counter()).update(connection.amounts | ended)
        for connection in self.alive:
            if connection.process.pid is not None and connection.shown is not None:
                by_owner.setdefault(connection.process[:2], Counter()).update(
                    connection.shown | {"connections": 1}
                )
        return {key: {name: counted[name] for name in SUMMED} for key, counted in by_owner.items()}


def play(
    kernel: KernelMap,
    steps: Sequence[tuple[str, int, Process, dict[str, int]]],
    check: Callable[[Rows, World], None],
) -> None:
    """Carries out the steps, and checks each reading, of which there are two at the end."""
    world = World(kernel)
    for step in steps:
        world.step(*step)
        if step[0] == "read":
            check(world.read(), world)
        elif step[0] == "close while reading":
            check(world.read(step[1]), world)
    for _ in range(2):
        check(world.read(), world)


@given(STEPS, st.integers(0, 9))
def test_each_process_has_what_its_connections_moved(steps: Any, entries_max: int) -> None:
    """Closed and open connections and orphans add up by process, however often the kernel's map is emptied."""

    def check(rows: Rows, world: World) -> None:
        by_owner = by_process(rows)
        if not any(by_owner.get((None, 0), {"": 0}).values()):
            by_owner.pop((None, 0), None)  # nobody's, all of which has got an owner
        assert by_owner == world.expected()

    with pytest.MonkeyPatch.context() as patch:
        play(install(patch, entries_max), steps, check)


@given(STEPS, st.integers(0, 6), st.integers(1, 3))
def test_the_sum_over_all_rows_is_what_was_added(steps: Any, entries_max: int, kept_max: int) -> None:
    """When there are too many processes those that moved least become one row: nothing is lost by it."""

    def check(rows: Rows, world: World) -> None:
        wanted: Counter[str] = Counter(dict.fromkeys(SUMMED, 0))
        for columns in world.expected().values():
            wanted.update(columns)
        assert sums(rows) == wanted
        assert all(columns["closed"] <= wanted["closed"] for columns in by_process(rows).values())
        assert np.all(rows.array["id"][1:] > rows.array["id"][:-1])

    with pytest.MonkeyPatch.context() as patch:
        play(install(patch, entries_max, kept_max), steps, check)


def closed(
    kernel: KernelMap, reader: Totals, process: Process, was_owned: bool = True, **amounts: int
) -> None:
    """A connection of this process opens and closes between two readings."""
    connection = Connection(10**9, process, dict.fromkeys(MOVED, 0) | amounts, ending="close")
    kernel.add(process if was_owned else Process(None), connection.amounts | {"closed": 1})
    reader.end(connection, was_owned)


def test_the_map_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of ended processes are taken out of the kernel, so that short-lived processes never fill it."""
    kernel, reader = install(monkeypatch, entries_max=10), Totals()
    largest = 0
    for pid in range(2, 1002):
        closed(kernel, reader, Process(pid, TICK))
        largest = max(largest, len(kernel.totals))
    assert largest < 40
    rows = reader.rows()
    assert len(rows) == 1000
    assert sums(rows)["closed"] == 1000


def test_those_that_moved_least_are_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many processes those that moved the most keep their names; the row of the others has no PID."""
    kernel, reader = install(monkeypatch, entries_max=0, kept_max=3), Totals()
    for pid in range(2, 10):
        closed(kernel, reader, Process(pid, TICK, b"p%d" % pid), bytes_sent=100 * pid)
    for _ in range(4):
        closed(kernel, reader, Process(9, TICK, b"p9"))  # on which what is left of the map is taken out
    rows = reader.rows()
    names = [rows.texts["process"][code] for code in rows.array["process"].tolist()]
    moved = dict(zip(names, rows.array["bytes_sent"].tolist(), strict=True))
    others = moved.pop("(others)")
    assert moved == {f"p{pid}": 100 * pid for pid in range(10 - len(moved), 10)}
    assert len(moved) in (2, 3)
    assert others + sum(moved.values()) == 100 * sum(range(2, 10))
    assert known(rows.array["pid"]).tolist().count(False) == 1


def test_nobody_is_not_one_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was nobody's and has found its owner is taken from nobody, not from the row of the others."""
    kernel, reader = install(monkeypatch, entries_max=3, kept_max=3), Totals()
    for pid in range(2, 7):
        closed(kernel, reader, Process(pid, TICK), bytes_sent=10 * pid)
    closed(kernel, reader, Process(6, TICK), was_owned=False, bytes_sent=1000)
    for pid in range(2, 7):
        closed(kernel, reader, Process(pid, TICK), bytes_sent=10 * pid)
    rows = reader.rows()
    assert sums(rows)["closed"] == 11
    assert max(columns["closed"] for columns in by_process(rows).values()) < 11
    by_owner = by_process(rows)
    assert by_owner[6, TICK]["closed"] == 3
    assert by_owner.get((None, 0), {"closed": 0})["closed"] == 0


def test_orphans_are_forgotten_when_ends_are_lost(kernel: KernelMap) -> None:
    """Where the ring has dropped ends, what is gone from the table is not taken for open: it may have closed."""
    reader = Totals()
    mine = Connection(1, Process(7, TICK), dict.fromkeys(MOVED, 11))
    assert sums(reader.rows([mine]))["bytes_sent"] == 11
    reader._totals.forget_orphans()
    assert sums(reader.rows())["bytes_sent"] == 0
    kernel.add(mine.process, mine.amounts | {"closed": 1})
    assert sums(reader.rows())["bytes_sent"] == 11


def test_the_first_process_is_not_the_others(kernel: KernelMap) -> None:
    """PID 1 begins within the first milliseconds after the boot, and is a process like every other."""
    kernel.add(Process(1, 0, b"init"), {"closed": 1})
    rows = Totals().rows()
    assert [rows.texts["process"][code] for code in rows.array["process"].tolist()] == ["init"]


@pytest.mark.parametrize(
    "cells",
    [
        {"state": STATE["LISTEN"]},
        {"state": STATE["CLOSE"]},
        {"protocol": UDP},
        {"pid": unknown_value(np.dtype("u4"))},
        {"bytes_sent": _BYTES},
    ],
    ids=lambda cells: next(iter(cells)),
)
def test_what_is_no_open_connection_of_a_process(kernel: KernelMap, cells: dict[str, Any]) -> None:
    """Listeners, sockets that have closed (counted by then), UDP and what no process holds are not added."""
    moved = dict.fromkeys(MOVED, 11)
    rows = Totals().table(sockets([Connection(1, Process(7, TICK), moved)], **cells))
    assert sums(rows) == Counter(dict.fromkeys(SUMMED, 0))


def test_a_process_that_was_renamed_is_one_row(kernel: KernelMap) -> None:
    """A process is its PID and when it began, whatever it was called and in whatever group it was."""
    for comm, css_set in ((b"sh", 1), (b"sh", 2), (b"curl", 2)):
        kernel.add(Process(7, TICK, comm, css_set), {"closed": 1})
    rows = Totals().rows()
    assert by_process(rows)[7, TICK]["closed"] == 3
    assert [rows.texts["process"][code] for code in rows.array["process"].tolist()] == ["curl"]


def test_rows_are_the_tables(kernel: KernelMap) -> None:
    """The rows say which table they are, and when they were taken, also where there are none."""
    rows = Totals().rows()
    assert (rows.table, rows.taken_ns, len(rows)) == (PROCESSES, TAKEN_NS, 0)
