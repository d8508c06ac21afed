# SPDX-License-Identifier: Apache-2.0
"""Encode numpy columns as a block of ClickHouse's Native format, column by column.

https://clickhouse.com/docs/interfaces/formats/Native: the number of columns and of rows as varints, then each column's
name, type, and values as they lie in ClickHouse's memory, little-endian.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.collector.columns import Coded
from nettop.snapshots.arrays import Array, as_list

Maps = Sequence[Mapping[str, int]]
"""A column of Map(String, Int64), one dictionary per row. They are encoded one by one, so it suits few rows only."""

Values = Array | Coded | Maps

_DTYPES = {
    "UInt8": "<u1",
    "UInt16": "<u2",
    "UInt32": "<u4",
    "UInt64": "<u8",
    "DateTime64(3)": "<i8",
    "IPv6": "V16",
}
_NULLABLE = re.compile(r"Nullable\((.+)\)")

_DICTIONARY_VERSION = 1
"""SharedDictionariesWithAdditionalKeys, in ClickHouse's SerializationLowCardinality.cpp."""
_OWN_DICTIONARY = 0x600
"""The block has a dictionary (HasAdditionalKeys) that replaces any earlier one (NeedUpdateDictionary). The lowest bits
of this word are the log2 of the bytes per code.
"""


REVISION_WITH_SERIALIZATION = 54_454
"""Clients from this revision on read a byte before each column's values: 0 for the default layout."""
_BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
"""Header that clients with a revision read before a block: field 1, no overflows; field 2, no bucket; the end."""


def native_block(types: Mapping[str, str], columns: Mapping[str, Values], revision: int = 0) -> bytes:
    """Encode columns of equal length as a block. `types` are ClickHouse's types by column, in the order of the block.

    A 0 in a Nullable column is NULL.

    With a `revision` of ClickHouse's protocol, encode the block as servers of that revision do. Raise ValueError if a
    column is missing, differs in length, or does not fit its type.
    """
    if missing := types.keys() - columns.keys():
        raise ValueError(f"a block is missing the columns {', '.join(sorted(missing))}")
    counts = {name: _length(columns[name]) for name in types}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the columns of a block differ in length: {counts}")
    serialization = b"\0" if revision >= REVISION_WITH_SERIALIZATION else b""
    parts = [_BLOCK_INFO if revision else b"", _varint(len(types)), _varint(next(iter(counts.values()), 0))]
    for name, clickhouse in types.items():
        parts += [_text(name), _text(clickhouse), serialization, *_encoded(clickhouse, columns[name])]
    return b"".join(parts)


def _length(values: Values) -> int:
    return len(values.codes if isinstance(values, Coded) else values)


def _encoded(clickhouse: str, values: Values) -> list[bytes]:
    if isinstance(values, Coded) and clickhouse == "LowCardinality(String)":
        return _low_cardinality(values)
    if isinstance(values, Coded) and clickhouse == "String":
        words = np.array([_text(word) for word in values.words], object)
        return list(words[values.codes])
    if isinstance(values, np.ndarray) and (match := _NULLABLE.fullmatch(clickhouse)):
        return [(values == 0).tobytes(), *_encoded(match[1], values)]
    if isinstance(values, np.ndarray):
        dtype = "i1" if clickhouse.startswith("Enum8(") else _DTYPES.get(clickhouse, "")
        if dtype and values.dtype == np.dtype(dtype):
            return [values.tobytes()]
    elif clickhouse == "Map(String, Int64)" and not isinstance(values, Coded):
        return _maps(values)
    kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
    raise ValueError(f"cannot encode {kind} as {clickhouse}")


def _low_cardinality(values: Coded) -> list[bytes]:
    """Encode the words in use as the block's dictionary, followed by codes into it."""
    used = np.flatnonzero(np.bincount(values.codes))
    if not len(used):
        # With no rows, nothing follows the version.
        return [_numbers([_DICTIONARY_VERSION])]
    width = np.min_scalar_type(len(used) - 1)
    own_codes = np.zeros(used[-1] + 1, width)
    own_codes[used] = np.arange(len(used))
    words = [_text(values.words[code]) for code in as_list(used)]
    return [
        _numbers([_DICTIONARY_VERSION, _OWN_DICTIONARY | (width.itemsize.bit_length() - 1), len(words)]),
        *words,
        _numbers([len(values.codes)]),
        own_codes[values.codes].tobytes(),
    ]


def _maps(rows: Maps) -> list[bytes]:
    keys = [_text(key) for row in rows for key in row]
    values = [value for row in rows for value in row.values()]
    return [_numbers(np.cumsum([len(row) for row in rows])), *keys, np.array(values, "<i8").tobytes()]


def _numbers(values: Sequence[int] | Array) -> bytes:
    return np.array(values, "<u8").tobytes()


def _text(text: str) -> bytes:
    content = text.encode(errors="replace")
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Encode a number in LEB128: seven bits per byte, lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
