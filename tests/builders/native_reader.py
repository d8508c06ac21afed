# SPDX-License-Identifier: Apache-2.0
"""A reader of ClickHouse's Native format."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

SIDE = "Enum8('unknown' = 0, 'in' = 1)"
FORMS = {
    "UInt8": "B",
    "UInt16": "H",
    "UInt32": "I",
    "UInt64": "Q",
    "Int64": "q",
    "DateTime64(3)": "q",
    SIDE: "b",
}
"""Format characters of struct for the numeric types."""


class Reader(io.BytesIO):
    """A reader of a block, value by value."""

    def block(self, revision: int = 0) -> dict[str, tuple[str, list[Any]]]:
        """Return the type and values of each column, as clients of this revision read them."""
        if revision:
            assert self.read(8) == b"\x01\x00\x02\xff\xff\xff\xff\x00"
        columns, rows = self.varint(), self.varint()
        result = {}
        for _ in range(columns):
            name, kind = self.text(), self.text()
            if revision >= 54_454:
                assert self.read(1) == b"\0"
            result[name] = kind, self.column(kind, rows)
        assert not self.read()
        return result

    def column(self, kind: str, rows: int) -> list[Any]:
        if kind in FORMS:
            return self.numbers(FORMS[kind], rows)
        if kind.startswith("Enum8("):
            return self.numbers("b", rows)
        if kind == "IPv6":
            return [self.read(16) for _ in range(rows)]
        if kind == "String":
            return [self.text() for _ in range(rows)]
        if kind == "LowCardinality(String)":
            return self.low_cardinality(rows)
        if nullable := re.fullmatch(r"Nullable\((.+)\)", kind):
            is_null = self.numbers("B", rows)
            return [
                None if null else value
                for null, value in zip(is_null, self.column(nullable[1], rows), strict=True)
            ]
        assert kind == "Map(String, Int64)"
        ends = self.numbers("Q", rows)
        keys = [self.text() for _ in range(ends[-1] if ends else 0)]
        pairs = list(zip(keys, self.numbers("q", len(keys)), strict=True))
        return [dict(pairs[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

    def low_cardinality(self, rows: int) -> list[str]:
        assert self.numbers("Q", 1) == [1]
        if not rows:
            return []
        flags, count = self.numbers("Q", 2)
        assert flags & ~0xFF == 0x600
        words = [self.text() for _ in range(count)]
        assert self.numbers("Q", 1) == [rows]
        codes = self.numbers("BHIQ"[flags & 0xFF], rows)
        assert sorted(set(codes)) == list(range(count)), "words that no row has"
        return [words[code] for code in codes]

    def numbers(self, form: str, count: int) -> list[int]:
        form = f"<{count}{form}"
        return list(struct.unpack(form, self.read(struct.calcsize(form))))

    def text(self) -> str:
        return self.read(self.varint()).decode()

    def varint(self) -> int:
        number = shift = 0
        while True:
            (byte,) = self.read(1)
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
