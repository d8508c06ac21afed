# SPDX-License-Identifier: Apache-2.0
"""Snapshots as bytes: any table survives a round trip, and invalid bytes are rejected."""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import SourceFailed
from nettop.snapshots.codec import FORMAT_VERSION, MAGIC, NOT_RECORDED, decode, encode
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Field, Kind, Lens, Table, row_dtype
from nettop.snapshots.snapshot import Rows, Snapshot, unknown_value
from tests.unit.build import Row, example_frame, make_frame, make_hooks, make_rows
from tests.unit.strategies import keyed_rows

PREFIX = struct.Struct("<8sHxxIQI")

# --- any table ----------------------------------------------------------------------------------------------

BUCKETS = Buckets(first_bit=1, last_bit=3, divided_by_bits=1)
DTYPES = {
    Kind.LABEL: ["u1", "u2", "u4"],
    Kind.TEXT: ["u1", "u2", "u4"],
    Kind.ADDRESS: ["(2,)>u8"],
    Kind.GAUGE: ["u2", "u8", "f4", "f8"],
    Kind.COUNTER: ["u4", "u8"],
    Kind.ENUM: ["u1"],
    Kind.HISTOGRAM: [BUCKETS.dtype, BUCKETS.dtype.replace("u8", "u4")],
}
ANY_TEXT = st.text(st.characters(), max_size=8).map(safe_text)
CARRIED = (("hidden", "u8"), ("name", "S5"), ("bit", "u1"))


def lens_of(*tables: Table) -> Lens:
    """Return a lens that exists in a test alone."""
    return Lens("sample", "Sample", 99, "9", "what is it?", tables)


def table_of(name: str, *fields: Field) -> Table:
    """Return a table with a key and these fields."""
    return Table(name, (Field("n", Kind.KEY, "N", "place", "u4"), *fields), "n", ("n",), ("n",), "n", "n")


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    """Return a field of any kind that is stored."""
    kind = draw(st.sampled_from([*DTYPES]))
    buckets = BUCKETS if kind is Kind.HISTOGRAM else None
    dtype, unit = draw(st.sampled_from(DTYPES[kind])), draw(st.sampled_from(["", "us"]))
    return Field(name, kind, name, name, dtype, unit, buckets=buckets)


@st.composite
def filled(draw: st.DrawFn, table: Table) -> Rows:
    """Return random rows of the table, some cells unknown, with or without carried columns and texts never used."""
    keys = sorted(draw(st.sets(st.integers(0, 2**32 - 2), max_size=6)))
    array = np.zeros(len(keys), row_dtype(table, draw(st.sampled_from([(), CARRIED]))))
    raw = draw(st.binary(min_size=array.nbytes, max_size=array.nbytes))
    array = np.frombuffer(raw, array.dtype).copy() if keys else array
    array["n"] = keys
    texts = {}
    for field in table.stored:
        if field.kind is Kind.TEXT:
            texts[field.name] = draw(st.lists(ANY_TEXT, max_size=4))
            codes = [*range(len(texts[field.name])), unknown_value(array.dtype[field.name])]
            array[field.name] = draw(st.lists(st.sampled_from(codes), min_size=len(keys), max_size=len(keys)))
    return Rows(table, array, texts, draw(st.integers(0, 2**63)))


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[Snapshot, Lens]:
    """Return a snapshot of one or two random tables."""
    tables = []
    for at in range(draw(st.integers(1, 2))):
        names = [f"f{n}" for n in range(draw(st.integers(0, 5)))]
        tables.append(table_of(f"t{at}", *(draw(fields(name)) for name in names)))
    numbers = st.dictionaries(ANY_TEXT, st.integers(0, 2**64), max_size=3)
    words = st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3)
    rows = {table.name: draw(filled(table)) for table in tables}
    times = (draw(st.integers(0, 2**63)), draw(st.integers(0, 2**63)))
    refused = st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=2).map(tuple)
    hook = st.builds(
        HookStatus, ANY_TEXT, st.none() | ANY_TEXT, refused, st.lists(ANY_TEXT, max_size=2).map(tuple)
    )
    hooks = tuple(draw(st.lists(hook, max_size=2)))
    made = Snapshot("sample", *times, rows, draw(numbers), draw(numbers), hooks, draw(words))
    return made, lens_of(*tables)


def texts_of(rows: Rows, name: str) -> list[str | None]:
    """Return each row's text, None where it has none."""
    texts = rows.texts[name]
    return [texts[code] if code < len(texts) else None for code in rows.array[name].tolist()]


def assert_same(snapshot: Snapshot, other: Snapshot) -> None:
    """Assert that both have equal values; codes of texts may differ."""
    for name in ("lens", "wall_ns", "boot_ns", "counts", "lost", "hooks", "gaps"):
        assert getattr(snapshot, name) == getattr(other, name)
    assert list(snapshot.tables) == list(other.tables)
    for rows, others in zip(snapshot.tables.values(), other.tables.values(), strict=True):
        assert rows.taken_ns == others.taken_ns
        assert rows.table is others.table
        for field in rows.table.stored:
            if field.kind is Kind.TEXT:
                assert texts_of(rows, field.name) == texts_of(others, field.name)
            else:
                assert rows.array[field.name].tobytes() == others.array[field.name].tobytes()


@given(snapshots())
def test_any_snapshot_comes_back(case: tuple[Snapshot, Lens]) -> None:
    """Any tables, any bytes in the rows, any safe texts, with unknown values and carried columns."""
    snapshot, lens = case
    decoded = decode(encode(snapshot), [lens])
    assert_same(snapshot, decoded)
    for rows in decoded.tables.values():
        assert rows.array.dtype == rows.table.dtype
    assert encode(decoded) == encode(snapshot)


@given(keyed_rows)
def test_connections_come_back(each: list[Row]) -> None:
    """The real table, found by its lens."""
    snapshot = make_frame(each, counts={"time_wait": 3}, lost={"events": 1}, via={"sockets": "iterator"}).now
    assert_same(snapshot, decode(encode(snapshot)))


def test_decoded_rows_are_an_own_copy() -> None:
    """Decoded rows are copies: the bytes may be a mapped file that is unmapped."""
    data = bytearray(encode(example_frame(5).now))
    rows = decode(bytes(data)).tables["sockets"].array
    assert rows.flags.owndata
    assert rows.flags.writeable


def test_carried_columns_leave_no_trace() -> None:
    """Columns only for the probe leave no bytes, even in the padding."""
    with_tail = make_rows([{"id": 1}], carried=(("tail", "S60"),))
    with_tail.array["tail"] = b"secret" * 10
    data = encode(Snapshot("connections", 1, 2, {"sockets": with_tail}))
    assert b"secret" not in data
    assert data == encode(Snapshot("connections", 1, 2, {"sockets": make_rows([{"id": 1}])}))


def test_columns_in_another_order_are_copied_too() -> None:
    """A source may order its columns as it likes; only names count."""
    plain = make_rows([{"id": 1, "pid": 7, "remote_address": "::1"}, {"id": 2, "pid": None}])
    fields_ = SOCKETS.dtype.fields or {}
    other = np.zeros(2, [(name, fields_[name][0]) for name in reversed(SOCKETS.dtype.names or ())])
    for name in fields_:
        other[name] = plain.array[name]
    moved = dataclasses.replace(plain, array=other)
    assert encode(Snapshot("connections", 1, 2, {"sockets": moved})) == encode(
        Snapshot("connections", 1, 2, {"sockets": plain})
    )


# --- versions -----------------------------------------------------------------------------------------------

OLD = table_of(
    "t",
    Field("port", Kind.LABEL, "PORT", "port", "u2"),
    Field("rtt_us", Kind.GAUGE, "RTT", "time", "u4", "us"),
    Field("retired", Kind.COUNTER, "OLD", "gone since", "u8"),
    Field("turned", Kind.GAUGE, "TURNED", "now a counter", "u4"),
    Field("narrowed", Kind.GAUGE, "NARROWED", "now smaller", "u8"),
)
NEW = table_of(
    "t",
    Field("rtt_us", Kind.GAUGE, "RTT", "time", "u4", "us"),
    Field("port", Kind.LABEL, "PORT", "port", "u4"),
    Field("turned", Kind.COUNTER, "TURNED", "now a counter", "u4"),
    Field("narrowed", Kind.GAUGE, "NARROWED", "now smaller", "u4"),
    Field("added", Kind.GAUGE, "ADDED", "new", "f8"),
    Field("name", Kind.TEXT, "NAME", "new", "u4"),
    Field("host", Kind.ADDRESS, "HOST", "new", "(2,)>u8"),
)


def test_an_older_recording_is_read_by_a_newer_table() -> None:
    """A newer table keeps an older recording's fields, widened; changed or missing fields are unknown; others are
    dropped.
    """
    old = make_rows(
        [{"n": 1, "port": 443, "rtt_us": 5, "retired": 3}, {"n": 2, "port": None, "rtt_us": 6}], OLD
    )
    spare = make_rows([{"n": 4}], table_of("dropped"))
    data = encode(
        Snapshot(
            "sample", 1, 2, {"dropped": spare, "t": old}, hooks=make_hooks({}, {"added": "no such hook"})
        )
    )
    decoded = decode(data, [lens_of(NEW)])
    array = decoded.tables["t"].array
    assert list(decoded.tables) == ["t"]
    assert array.dtype == NEW.dtype
    assert array["n"].tolist() == [1, 2]
    assert array["rtt_us"].tolist() == [5, 6]
    assert array["port"].tolist() == [443, 2**32 - 1]
    assert np.isnan(array["added"]).all()
    assert decoded.tables["t"].texts == {"name": []}
    for name in ("turned", "narrowed", "name", "host"):
        assert (array[name] == unknown_value(array.dtype[name])).all()
        assert decoded.missing[name] == NOT_RECORDED
    assert decoded.missing["added"] == "no such hook"


@pytest.mark.parametrize("lens", ["sample", "\x1b[31mred"])
def test_a_lens_that_is_not_here_is_named(lens: str) -> None:
    """The error for a recording of an unknown lens has its name, made safe."""
    data = encode(Snapshot(lens, 1, 2, {}))
    with pytest.raises(SourceFailed, match="lens") as caught:
        decode(data)
    assert caught.value.what.isprintable()


# --- bad days -----------------------------------------------------------------------------------------------

DATA = encode(example_frame(3).now)


def test_a_newer_format_is_refused_by_its_number() -> None:
    """The message says which format it is and which this nettop reads."""
    with pytest.raises(SourceFailed, match=f"format {FORMAT_VERSION + 1}.*reads {FORMAT_VERSION}"):
        decode(DATA[: len(MAGIC)] + struct.pack("<H", FORMAT_VERSION + 1) + DATA[len(MAGIC) + 2 :])


@pytest.mark.parametrize("size", [*range(1, 40), len(DATA) // 2, len(DATA) - 1])
def test_a_truncated_recording_is_called_damaged(size: int) -> None:
    """A recording truncated anywhere is reported as damaged."""
    with pytest.raises(SourceFailed, match="damaged"):
        decode(DATA[:size])


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"nettop\n" + bytes(50), DATA[1:]])
def test_foreign_bytes_are_called_foreign(data: bytes) -> None:
    """The error says that a file is no recording, or was modified as text."""
    with pytest.raises(SourceFailed, match="not a nettop recording"):
        decode(data)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(at: int, change: int) -> None:
    """The checksum or the prefix detects every changed byte."""
    data = bytearray(DATA)
    data[at] ^= change
    # Two bytes of the prefix are padding and mean nothing.
    if at not in (10, 11):
        with pytest.raises(SourceFailed):
            decode(bytes(data))


@given(st.binary())
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    """Random bytes raise no other exception."""
    for each in (data, MAGIC + data):
        with pytest.raises(SourceFailed):
            decode(each)


def packed(header: Any, body: bytes = b"") -> bytes:
    """Return bytes with a right checksum around a header of somebody's own making."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    check = zlib.crc32(body, zlib.crc32(text))
    return PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), len(body), check) + text + body


def forged(**changes: Any) -> dict[str, Any]:
    """Return a right header of one table with one row of a u4 key, then changed."""
    table = {
        "name": "t",
        "taken_ns": 1,
        "rows": 1,
        "row_bytes": 8,
        "texts": {},
        "fields": [{"name": "n", "kind": "key", "unit": "", "dtype": "<u4", "shape": [], "offset": 0}],
    }
    for name in [*changes]:
        if name in table:
            table[name] = changes.pop(name)
        elif name in table["fields"][0]:  # type: ignore[index]
            table["fields"][0][name] = changes.pop(name)  # type: ignore[index]
    header = {"lens": "sample", "wall_ns": 1, "boot_ns": 2, "tables": [table]}
    return header | {name: {} for name in ("counts", "lost", "gaps")} | {"hooks": []} | changes


SAMPLE = [lens_of(table_of("t"))]


def test_the_forger_can_make_a_right_one() -> None:
    """The forger can also make a valid recording; otherwise the next test would prove nothing."""
    assert decode(packed(forged(), bytes(8)), SAMPLE).tables["t"].array["n"].tolist() == [0]


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "O"},
        {"dtype": "|O8"},
        {"dtype": "<M8[ns]"},
        {"dtype": "<u4,<u4"},
        {"dtype": None},
        {"dtype": 5},
        {"offset": -4},
        {"offset": 6},
        {"offset": "0"},
        {"shape": [1 << 40]},
        {"shape": [-1]},
        {"shape": ["a"]},
        {"shape": [[2]]},
        {"rows": 2},
        {"rows": 0},
        {"rows": -1},
        {"rows": 1.0},
        {"rows": True},
        {"rows": 1 << 60, "row_bytes": 0},
        {"row_bytes": 1 << 62},
        {"row_bytes": 2, "rows": 4},
        {"fields": None},
        {"fields": [[]]},
        {"fields": []},
        {"texts": None, "lens": None},
        {"taken_ns": "now"},
        {"wall_ns": None},
        {"tables": {}},
        {"tables": [1]},
        {"counts": []},
        {"counts": {"a": "b"}},
        {"gaps": {"a": 1}},
        {"hooks": None},
        {"hooks": [1]},
        {"hooks": [["a", "b", []]]},
        {"hooks": [["a", 1, [], []]]},
        {"hooks": [["a", None, [["b"]], []]]},
        {"hooks": [["a", None, [["b", 2]], []]]},
        {"hooks": [["a", "b", [], [3]]]},
        {"lens": ["sample"]},
    ],
    ids=str,
)
def test_a_header_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    """A valid checksum proves nothing: object dtypes, wrong sizes and wrong types are rejected by name."""
    with pytest.raises(SourceFailed):
        decode(packed(forged(**changes), bytes(8)), SAMPLE)


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"1", b'"x"', b"null", b"[" * 100_000, b"\xff", b"1" * 5000]
)
def test_a_header_that_is_no_header_is_refused(header: bytes) -> None:
    """An invalid header is rejected, even one that would exhaust the JSON reader."""
    with pytest.raises(SourceFailed, match="damaged"):
        decode(packed(header), SAMPLE)


def test_rows_out_of_order_are_refused() -> None:
    """Rows must have ascending unique keys, since readers join snapshots by them."""
    for keys in ([2, 1], [1, 1]):
        rows = make_rows([{"n": 1}, {"n": 2}], table_of("t"))
        rows.array["n"] = keys
        with pytest.raises(SourceFailed, match="sorted by key"):
            decode(encode(Snapshot("sample", 1, 2, {"t": rows})), SAMPLE)


def test_a_code_without_a_text_is_refused() -> None:
    """A row must not point beyond the table of texts."""
    data = packed(
        forged(
            fields=[
                {"name": "n", "kind": "key", "unit": "", "dtype": "<u4", "shape": [], "offset": 0},
                {"name": "s", "kind": "text", "unit": "", "dtype": "<u4", "shape": [], "offset": 4},
            ],
            texts={"s": ["a"]},
        ),
        struct.pack("<II", 1, 1),
    )
    with pytest.raises(SourceFailed, match="refers to a missing text"):
        decode(data, [lens_of(table_of("t", Field("s", Kind.TEXT, "S", "text", "u4")))])


def test_texts_that_no_row_uses_are_left_out() -> None:
    """Unused texts are left out of a recording; its rows get new codes."""
    rows = make_rows([{"id": at, "process": "x"} for at in (1, 2, 3)])
    rows.array["process"] = [3, unknown_value(rows.array.dtype["process"]), 1]
    rows = dataclasses.replace(rows, texts={**rows.texts, "process": ["init", "sshd", "cron", "curl"]})
    decoded = decode(encode(Snapshot("connections", 1, 2, {"sockets": rows}))).tables["sockets"]
    assert decoded.texts["process"] == ["sshd", "curl"]
    assert texts_of(decoded, "process") == ["curl", None, "sshd"]


def test_texts_of_a_recording_are_made_safe_again() -> None:
    """Texts of an untrusted file are made safe: cursor movements become visible."""
    rows = dataclasses.replace(make_rows([{"id": 1, "process": "x"}]))
    evil = dataclasses.replace(rows, texts={**rows.texts, "process": ["\x1b[2J\u202e"]})
    decoded = decode(
        encode(Snapshot("connections", 1, 2, {"sockets": evil}, hooks=make_hooks({"a\x9b": "\x07"})))
    )
    assert decoded.tables["sockets"].texts["process"] == ["␛[2J\ufffd"]
    assert decoded.via == {"a\ufffd": "␇"}
