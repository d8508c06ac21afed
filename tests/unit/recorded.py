# SPDX-License-Identifier: Apache-2.0
"""Random snapshots of any lens, and recordings of them.

`python -m tests.unit.recorded FILE` writes the recording of format 1 that tests/unit/test_recording_versions.py reads.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from unittest.mock import patch

import numpy as np

from nettop.errors import ExitCode
from nettop.recording import writer
from nettop.recording.chunks import Group
from nettop.recording.reader import Reading, Readings, RecordedFile
from nettop.recording.writer import RecordingWriter, Sink
from nettop.snapshots.arrays import Array, concatenate_rows, take_rows
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import BEGAN, Field, Kind, Lens, Table, row_dtype
from nettop.snapshots.snapshot import NOT_COMPLETE_YET, Ended, Rows, Snapshot, unknown_value
from tests.unit.build import WALL_NS

SECOND_NS = 1_000_000_000
ORIGIN = Group((), 1.0, "0.2.0", {"kernel": "6.1.0"})
GROUP = 3
"""Readings in a group."""
_WORDS = ("eth0", "nginx", "größer", 'quo"te\\', "docker:ab12", "")


@dataclass(frozen=True)
class Taken:
    """A snapshot, and the batches of events that were drained just before."""

    snapshot: Snapshot
    batches: tuple[Rows, ...] = ()


def random_readings(lens: Lens, seed: int, count: int) -> list[Taken]:
    """Return readings of a lens, a second apart, in which anything may change."""
    scene = _Scene(lens, random.Random(seed))
    return [scene.next() for _ in range(count)]


class _Scene:
    """What a made source has seen so far."""

    def __init__(self, lens: Lens, chance: random.Random) -> None:
        self._lens = lens
        self._chance = chance
        self._numbers = np.random.default_rng(chance.randrange(2**32))
        self._at = 0
        self._arrays: dict[str, Array] = {}
        self._texts: dict[str, dict[str, list[str]]] = {}
        self._ended: dict[str, tuple[Rows, ...]] = {}

    def next(self) -> Taken:
        """Return the next reading."""
        self._at += 1
        chance = self._chance
        kept = [table for table in self._lens.tables if not table.append]
        snapshot = Snapshot(
            lens=self._lens.id,
            wall_ns=WALL_NS + self._at * SECOND_NS,
            boot_ns=self._at * SECOND_NS + chance.randrange(1000),
            tables={table.name: self._rows(table) for table in kept if chance.random() < 0.9},
            counts={"drops": chance.randrange(3), "sockets": self._at},
            lost={"events": self._at // 3},
            hooks=self._hooks(),
            gaps={"namespace 7": "may not be entered"} if chance.random() < 0.5 else {},
            ended={table.name: self._left(table) for table in kept if chance.random() < 0.5},
            complete_since_ns=chance.choice((0, 17, NOT_COMPLETE_YET)),
        )
        appended = [table for table in self._lens.tables if table.append]
        return Taken(
            snapshot, tuple(self._batch(table) for table in appended for _ in range(chance.randrange(3)))
        )

    def _hooks(self) -> tuple[HookStatus, ...]:
        refused = (("tp_btf", "no BTF"),) if self._chance.random() < 0.5 else ()
        return (
            HookStatus("events", "tracepoint", refused, ("reason",)),
            HookStatus("owners", None, (("lsm", "not built"),), (), "boot with lsm=bpf", ExitCode.PERMISSION),
        )

    def _rows(self, table: Table) -> Rows:
        """Return a table some of whose rows came, left and changed."""
        array = self._arrays.get(table.name, self._made(table, 0))
        array = array[self._numbers.random(len(array)) < 0.8]
        for name in table.dtype.names or ():
            if name != table.key and self._chance.random() < 0.4:
                is_changed = self._numbers.random(len(array)) < self._chance.choice((0.05, 0.9))
                array[name][is_changed] = self._column(table, name, int(is_changed.sum()))
            if table.by_name[name].kind is Kind.GAUGE and self._chance.random() < 0.2:
                array[name] += array.dtype[name].type(1)
        came = self._made(table, self._chance.randrange(12))
        if came.dtype != array.dtype:  # the source says from now on, or no longer, which rows began
            array = came[:0]
        array = concatenate_rows(array, take_rows(came, ~np.isin(came[table.key], array[table.key])))
        array = take_rows(array, np.argsort(array[table.key]))
        self._arrays[table.name] = array
        return self._as_rows(table, array, table.name)

    def _left(self, table: Table) -> Ended:
        new = self._as_rows(table, self._made(table, self._chance.randrange(4)), table.name)
        pieces = (*self._ended.get(table.name, ()), new)[-3:]
        self._ended[table.name] = pieces
        total = self._as_rows(table, self._made(table, 1), f"{table.name} total")
        return Ended(pieces, total, self._at)

    def _batch(self, table: Table) -> Rows:
        return self._as_rows(table, self._made(table, self._chance.randrange(1, 5)), table.name)

    def _as_rows(self, table: Table, array: Array, texts: str) -> Rows:
        variant = self._chance.choice(("", "udp"))
        return Rows(table, array.copy(), self._text_tables(table, texts), self._at * SECOND_NS, variant)

    def _made(self, table: Table, count: int) -> Array:
        """Return rows with distinct keys; some tables say which rows began."""
        has_began = len(table.name) % 2 == 0 or self._chance.random() < 0.1
        array = np.zeros(count, row_dtype(table, ((BEGAN, "u1"),) if has_began else ()))
        for name in array.dtype.names or ():
            array[name] = self._column(table, name, count)
        most = min(60, unknown_value(table.dtype[table.key]))
        array[table.key] = np.sort(self._numbers.choice(most, count, replace=False))
        return array

    def _column(self, table: Table, name: str, count: int) -> Array:
        if name == BEGAN:
            return self._numbers.integers(0, 2, count)
        field = table.by_name[name]
        dtype = np.dtype(field.dtype)
        if field.kind is Kind.TEXT:
            return self._numbers.integers(0, 2, count)
        shape = (count, *dtype.shape)
        if dtype.base.kind == "f":
            values = self._numbers.normal(0, 1e9, shape)
        else:
            most = self._chance.choice((3, 200, np.iinfo(dtype.base).max))
            values = self._numbers.integers(0, most, shape, dtype.base.newbyteorder("="), endpoint=most < 200)
        values = values.astype(dtype.base)
        values[self._numbers.random(count) < 0.2] = unknown_value(dtype)
        return values

    def _text_tables(self, table: Table, texts: str) -> dict[str, list[str]]:
        """Return texts that grow or are replaced; some fields share theirs."""
        known = self._texts.setdefault(texts, {})
        shared = list(_WORDS[:2])
        for field in (field for field in table.stored if field.kind is Kind.TEXT):
            values = known.setdefault(field.name, shared)
            if self._chance.random() < 0.2:
                values.append(self._chance.choice(_WORDS))
            if self._chance.random() < 0.1:
                known[field.name] = list(self._chance.choices(_WORDS, k=3))
        return {name: values[:] for name, values in known.items()}


# --- recordings ---------------------------------------------------------------------------------------------------


@contextmanager
def small_groups() -> Iterator[None]:
    """Begin a new group after few readings."""
    with patch.object(writer, "READINGS_PER_GROUP", GROUP):
        yield


def write(recording: RecordingWriter, taken: Sequence[Taken]) -> None:
    """Write readings, and their events half a second earlier."""
    with small_groups():
        for reading in taken:
            snapshot = reading.snapshot
            for batch in reading.batches:
                recording.write_events(snapshot.lens, batch, snapshot.wall_ns - SECOND_NS // 2)
            recording.write(snapshot)


def recorded(taken: Sequence[Taken]) -> bytes:
    """Return the recording of these readings."""
    content = bytearray()
    write(RecordingWriter(Sink(content.extend), ORIGIN), taken)
    return bytes(content)


@contextmanager
def opened(content: bytes) -> Iterator[RecordedFile]:
    """Yield a recording with this content."""
    descriptor = os.memfd_create("recording")
    try:
        os.write(descriptor, content)
        yield RecordedFile(descriptor)
    finally:
        os.close(descriptor)


def write_slowly(path: Path, lens: Lens, count: int, report: Callable[[], object]) -> None:
    """Write random readings to a file, each chunk in two halves, and report after each half."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def append(chunk: bytes) -> None:
        for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
            os.write(descriptor, half)
            report()

    write(RecordingWriter(Sink(append), ORIGIN), random_readings(lens, 1, count))


# --- comparisons --------------------------------------------------------------------------------------------------


def read_back(readings: Readings, taken: Taken) -> Reading:
    """Return the reading of this time, which must have been written."""
    reading = readings.at(taken.snapshot.wall_ns)
    assert reading is not None
    assert_same(reading.now, taken.snapshot)
    return reading


def assert_same(read: Snapshot, taken: Snapshot) -> None:
    """Assert that two snapshots have the same in each field."""
    for field in fields(Snapshot):
        if field.name not in ("tables", "ended"):
            assert getattr(read, field.name) == getattr(taken, field.name)
    assert list(read.tables) == list(taken.tables)
    assert list(read.ended) == list(taken.ended)
    for name, rows in taken.tables.items():
        assert_same_rows(read.tables[name], rows)
    for name, ended in taken.ended.items():
        assert read.ended[name].count == ended.count
        assert_same_rows(read.ended[name].total, ended.total)
        for piece, given in zip(read.ended[name].rows, ended.rows, strict=True):
            assert_same_rows(piece, given)


def assert_same_rows(read: Rows, taken: Rows) -> None:
    """Assert that two tables have the same rows and texts, bit by bit."""
    table = taken.table
    assert (read.table, read.taken_ns, read.variant) == (table, taken.taken_ns, taken.variant)
    names = {*(table.dtype.names or ()), *({BEGAN} & {*(taken.array.dtype.names or ())})}
    assert {*(read.array.dtype.names or ())} == names
    for name in names:
        assert read.array[name].tobytes() == taken.array[name].tobytes(), name
        assert read.array[name].dtype == taken.array[name].dtype
    assert {name: list(values) for name, values in read.texts.items()} == taken.texts


# --- another version ----------------------------------------------------------------------------------------------

OTHER_SOCKETS = Table(
    "sockets",
    fields=(
        Field("id", Kind.KEY, "ID", "", "u8"),
        Field("process", Kind.TEXT, "PROCESS", "", "u2"),
        Field("state", Kind.ENUM, "STATE", "", "u2", labels={7: "ESTABLISHED", 1: "LISTEN", 9: "DREAMING"}),
        Field("local_port", Kind.LABEL, "PORT", "", "u8"),
        Field("bytes_sent", Kind.COUNTER, "SENT", "", "u4", "bytes"),
        Field("bytes_received", Kind.COUNTER, "RECEIVED", "", "f8", "bytes"),
        Field("rtt_us", Kind.GAUGE, "RTT", "", "u8", "ms"),
        Field("mood", Kind.GAUGE, "MOOD", "", "u1"),
    ),
    screen=("id",),
    text=("id",),
    sort="id",
)
DREAMS = Table("dreams", (Field("id", Kind.KEY, "ID", "", "u4"),), ("id",), "id")
OTHER = Lens("connections", "Connections", 1, "1", "", (OTHER_SOCKETS, DREAMS))
WEATHER = Lens("weather", "Weather", 2, "2", "", (DREAMS,))


def other_readings() -> list[Snapshot]:
    """Return readings by another version of nettop, which knows other columns, tables and lenses."""
    array = np.zeros(3, OTHER_SOCKETS.dtype)
    array["id"] = 4, 5, 6
    array["process"] = 0, 1, 0xFFFF
    array["state"] = 7, 9, 0xFFFF
    array["local_port"] = 443, 2**40, 2**64 - 1
    array["bytes_sent"] = 1_000, 0xFFFF_FFFF, 0
    array["bytes_received"] = 2.0**40, np.nan, -1
    array["rtt_us"], array["mood"] = 5, 1
    texts = {"process": ["nginx", "\x1b[2Jsshd"]}
    readings = []
    for number in range(6):
        array = array.copy()
        array["bytes_sent"][0] += 10
        rows = Rows(OTHER_SOCKETS, array, texts, number * SECOND_NS)
        dreams = Rows(DREAMS, np.arange(number).astype(DREAMS.dtype["id"]).view(DREAMS.dtype), {}, number)
        tables = {"sockets": rows, "dreams": dreams}
        ended = {"dreams": Ended((dreams,), dreams, 1)}
        wall_ns = WALL_NS + number * SECOND_NS
        readings.append(Snapshot("connections", wall_ns, number, tables, ended=ended))
        readings.append(Snapshot("weather", wall_ns, number, {"dreams": dreams}))
    return readings


if __name__ == "__main__":
    content = bytearray()
    write(RecordingWriter(Sink(content.extend), ORIGIN), [Taken(reading) for reading in other_readings()])
    Path(sys.argv[1]).write_bytes(content)
