# SPDX-License-Identifier: Apache-2.0
"""Recordings by other versions of nettop: values are right or unknown, and what is not read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.recording.declared import Conversion, declare
from nettop.recording.reader import Readings, RecordedFile
from nettop.snapshots import own_lenses
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import unknown_value
from tests.unit.build import WALL_NS
from tests.unit.recorded import OTHER, SECOND_NS, WEATHER, Taken, opened, other_readings, recorded

FORMAT_1 = Path(__file__).parent / "recordings" / "format-1.nettop"
"""Made by `python -m tests.unit.recorded`."""
STATE = {label: code for code, label in SOCKETS.by_name["state"].labels.items()}


def column(kind: Kind = Kind.GAUGE, dtype: str = "u4", **more: Any) -> Table:
    """Return a table with a key and one other column, `n`."""
    fields = Field("id", Kind.KEY, "ID", "", "u8"), Field("n", kind, "N", "", dtype, **more)
    return Table("any", fields, ("id",), "id")


def converted(recorded_table: Table, values: Any, table: Table) -> list[Any]:
    """Return values of `n` in one version's table as those in another's."""
    array = np.zeros(len(values), recorded_table.dtype)
    array["n"] = values
    values = Conversion(table, declare(recorded_table, array.dtype)).convert(array)["n"].tolist()
    return list(values)


@pytest.mark.parametrize(
    ("recorded_dtype", "values", "dtype", "expected"),
    [
        ("u1", [7, 0xFF], "u8", [7, 2**64 - 1]),
        ("u8", [7, 0xFF, 300, 2**64 - 1], "u1", [7, 0xFF, 0xFF, 0xFF]),
        ("f8", [7.0, -1.0, np.nan, 1e30], "u4", [7, 2**32 - 1, 2**32 - 1, 2**32 - 1]),
        ("f8", [-7.0, np.nan], "i4", [-7, 2**31 - 1]),
        ("i2", [-7, 9], "u2", [0xFFFF, 9]),
        ("2u4", [[1, 2], [2**32 - 1] * 2], "2u8", [[1, 2], [2**64 - 1] * 2]),
    ],
)
def test_other_widths(recorded_dtype: str, values: Any, dtype: str, expected: Any) -> None:
    """Convert a number that does not fit to unknown, and keep unknown ones unknown."""
    assert converted(column(dtype=recorded_dtype), values, column(dtype=dtype)) == expected


def test_other_enum_numbers() -> None:
    """Convert codes by their labels; labels of another version are unknown."""
    theirs = column(Kind.ENUM, "u2", labels={1: "red", 2: "green", 300: "blue"})
    ours = column(Kind.ENUM, "u1", labels={1: "blue", 2: "red"})
    assert converted(theirs, [1, 2, 300, 4, 0xFFFF], ours) == [2, 0xFF, 1, 0xFF, 0xFF]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (column(unit="ms"), column(unit="us")),
        (column(Kind.COUNTER), column(Kind.GAUGE)),
        (column(Kind.HISTOGRAM, "3u8"), column(Kind.HISTOGRAM, "4u8")),
        (column(), column(Kind.SUM, "", parts=("id",))),
    ],
    ids=["unit", "kind", "buckets", "composite"],
)
def test_columns_that_mean_something_else(theirs: Table, ours: Table) -> None:
    """Skip and name a column with another unit, kind or number of buckets."""
    conversion = Conversion(ours, declare(theirs, theirs.dtype))
    assert conversion.unread == ["n"]
    rows = conversion.convert(np.zeros(1, theirs.dtype))
    if "n" in (ours.dtype.names or ()):
        assert (rows["n"] == unknown_value(ours.dtype["n"])).all()


def test_a_recording_without_the_key() -> None:
    """Skip a table without its key."""
    table = column()
    assert not Conversion(table, declare(table, table.dtype)[1:]).has_key
    assert Conversion(table, declare(table, table.dtype)).has_key


def test_the_same_version_copies_nothing() -> None:
    """Read tables of this version without a copy."""
    for table in (table for lens in own_lenses() for table in lens.tables):
        array = np.zeros(2, table.dtype)
        assert Conversion(table, declare(table, table.dtype)).convert(array) is array


def test_format_1() -> None:
    """Read what is known of a recording in format 1, by a version with other columns, tables and lenses."""
    with FORMAT_1.open("rb") as source:
        file = RecordedFile(source.fileno())
        readings = Readings(file, LENS)
        reading = readings.at(WALL_NS + 5 * SECOND_NS)
    assert file.groups[-1].group.lenses == ("connections", "weather")
    assert file.groups[-1].group.host == {"kernel": "6.1.0"}
    assert file.unread == {"connections.dreams", "connections.sockets.mood", "connections.sockets.rtt_us"}
    assert file.damage == {}
    assert reading is not None
    assert (list(reading.now.tables), reading.now.ended) == (["sockets"], {})
    rows = reading.now.tables["sockets"]
    unknown = {name: unknown_value(SOCKETS.dtype[name]) for name in SOCKETS.dtype.names or ()}
    assert rows.table is SOCKETS
    assert rows.array["id"].tolist() == [4, 5, 6]
    assert rows.array["state"].tolist() == [STATE["ESTABLISHED"], unknown["state"], unknown["state"]]
    assert rows.array["local_port"].tolist() == [443, unknown["local_port"], unknown["local_port"]]
    assert rows.array["bytes_sent"].tolist() == [1060, unknown["bytes_sent"], 0]
    assert rows.array["bytes_received"].tolist() == [2**40, *[unknown["bytes_received"]] * 2]
    assert rows.array["process"].tolist() == [0, 1, unknown["process"]]
    assert rows.texts["process"] == ["nginx", "␛[2Jsshd"]
    for name in ("rtt_us", "pid", "local_address", "opened_at"):
        assert (rows.array[name] == unknown[name]).all()
    assert reading.before is not None
    assert reading.before.tables["sockets"].array["bytes_sent"][0] == 1050


def test_its_own_version_reads_all() -> None:
    """Read all of that recording with the version that wrote it."""
    taken = other_readings()
    for content in (FORMAT_1.read_bytes(), recorded([Taken(each) for each in taken])):
        with opened(content) as file:
            for lens in (OTHER, WEATHER):
                readings = Readings(file, lens)
                for snapshot in (each for each in taken if each.lens == lens.id):
                    reading = readings.at(snapshot.wall_ns)
                    assert reading is not None
                    assert (
                        reading.now.tables["dreams"].array.tolist()
                        == snapshot.tables["dreams"].array.tolist()
                    )
                assert file.unread == set()
