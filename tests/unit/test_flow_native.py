# SPDX-License-Identifier: Apache-2.0
"""Blocks in ClickHouse's Native format: a reader written from the specification reads what was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.collector.columns import ADDRESS, Coded
from nettop.collector.store.native import Values, native_block
from tests.builders.native_reader import SIDE, Reader

DTYPES = {
    "UInt8": "u1",
    "UInt16": "u2",
    "UInt32": "u4",
    "UInt64": "u8",
    "DateTime64(3)": "i8",
    SIDE: "i1",
}
WORDS = ["", "a", "eth0/0", "Zürich ❄", "x" * 127, "x" * 128, "tab\tnul\0", "y" * 20_000]


def written(kind: str, values: Values) -> list[Any]:
    """Return the values as read back."""
    block = Reader(native_block({"column": kind}, {"column": values})).block()
    assert block["column"][0] == kind
    return block["column"][1]


@given(st.data())
def test_numbers_are_read_as_they_were(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(DTYPES)))
    limits = np.iinfo(DTYPES[kind])
    numbers = data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), max_size=300))
    assert written(kind, np.array(numbers, DTYPES[kind])) == numbers


@given(st.lists(st.integers(-1, 3), max_size=300))
def test_an_unknown_zero_is_null(numbers: list[int]) -> None:
    assert written("Nullable(DateTime64(3))", np.array(numbers, "i8")) == [code or None for code in numbers]


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=200))
def test_addresses_keep_their_bytes(addresses: list[bytes]) -> None:
    column = np.frombuffer(b"".join(addresses), ADDRESS)
    assert written("IPv6", column) == addresses


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=300), st.sampled_from(["u1", "u2", "u4"]))
def test_texts_are_read_as_they_were(codes: list[int], dtype: str) -> None:
    column = Coded(np.array(codes, dtype), tuple(WORDS))
    for kind in ("LowCardinality(String)", "String"):
        assert written(kind, column) == [WORDS[code] for code in codes]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 65_536, 65_537])
def test_codes_of_texts_are_as_wide_as_they_need(count: int) -> None:
    words = tuple(f"network {number}" for number in range(count))
    codes = np.arange(count, dtype="u4")[::-1]
    assert written("LowCardinality(String)", Coded(codes, words)) == list(reversed(words))


@given(st.lists(st.dictionaries(st.sampled_from(WORDS), st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_maps_are_read_as_they_were(maps: list[dict[str, int]]) -> None:
    assert written("Map(String, Int64)", maps) == maps


@pytest.mark.parametrize("revision", [0, 1, 54_453, 54_454, 54_483])
def test_blocks_for_clients_of_a_revision(revision: int) -> None:
    columns: dict[str, Values] = {"a": np.array([1, 2], "u1"), "b": Coded.of(["x", "y"])}
    block = native_block({"a": "UInt8", "b": "String"}, columns, revision)
    assert Reader(block).block(revision) == {"a": ("UInt8", [1, 2]), "b": ("String", ["x", "y"])}


def test_columns_come_in_the_order_of_the_types() -> None:
    types = {"b": "UInt8", "a": "LowCardinality(String)", "empty": "String"}
    columns: dict[str, Values] = {
        "a": Coded(np.array([1, 1], "u1"), ("", "x")),
        "b": np.array([7, 8], "u1"),
        "empty": Coded(np.zeros(2, "u1"), ("",)),
        "not stored": np.zeros(9),
    }
    block = Reader(native_block(types, columns)).block()
    assert list(block.items()) == [
        ("b", ("UInt8", [7, 8])),
        ("a", ("LowCardinality(String)", ["x", "x"])),
        ("empty", ("String", ["", ""])),
    ]


def test_a_column_of_a_structured_array_is_written_without_the_others() -> None:
    rows = np.array([(1, 2), (3, 4)], [("a", "u4"), ("b", "u2")])
    assert written("UInt32", rows["a"]) == [1, 3]
    assert written("UInt16", rows["b"]) == [2, 4]


@pytest.mark.parametrize(
    ("types", "columns", "why"),
    [
        ({"a": "UInt8", "b": "UInt8"}, {"a": np.zeros(1, "u1")}, "is missing the columns b"),
        ({"a": "UInt8", "b": "UInt8"}, {"a": np.zeros(1, "u1"), "b": np.zeros(2, "u1")}, "differ in length"),
        ({"a": "UInt8"}, {"a": np.zeros(1, "u2")}, "cannot encode uint16 as UInt8"),
        ({"a": "UInt32"}, {"a": np.zeros(1, ">u4")}, "cannot encode >u4 as UInt32"),
        ({"a": "Float64"}, {"a": np.zeros(1)}, "cannot encode float64 as Float64"),
        ({"a": "String"}, {"a": np.zeros(1, "S2")}, r"cannot encode \|S2 as String"),
        ({"a": "UInt8"}, {"a": Coded(np.zeros(1, "u1"), ("x",))}, "cannot encode Coded as UInt8"),
        ({"a": "UInt8"}, {"a": [{"x": 1}]}, "cannot encode list as UInt8"),
        ({"a": "Map(String, Int64)"}, {"a": np.zeros(1, "i8")}, "cannot encode int64 as Map"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    types: dict[str, str], columns: dict[str, Values], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        native_block(types, columns)
