# SPDX-License-Identifier: Apache-2.0
"""What a source publishes: named tables of numpy rows, when they were taken, and what is missing from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nettop.snapshots.schema import Table

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The rows of one table: a structured array that holds at least `table.dtype`'s fields.

    Rows are sorted by the table's key, ascending, and each key stands once. `texts[name]` turns the codes of
    text field `name` into text that is already safe to show. `taken_ns` is CLOCK_MONOTONIC.
    """

    table: Table
    array: Array
    texts: Mapping[str, Sequence[str]]
    taken_ns: int

    def __len__(self) -> int:
        return len(self.array)


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One reading of a lens. Nothing downstream changes it, and it holds no memory that the kernel writes.

    `wall_ns` and `boot_ns` were read together with each other. `counts` are facts about the whole (sockets in
    TIME_WAIT), `lost` what a bound or a race dropped since the start, by name. `via` says which hook gave
    what; `missing` which field is not on this kernel, and why.
    """

    lens: str
    wall_ns: int
    boot_ns: int
    tables: Mapping[str, Rows]
    counts: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    via: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """What the bus holds of a lens: the newest snapshot, and the one before it that rates are taken from."""

    now: Snapshot
    before: Snapshot | None = None


def unknown_value(dtype: np.dtype[Any]) -> Any:
    """What stands for "no value yet" in a column: the largest number, or NaN, or all bits set."""
    base = dtype.base
    return np.nan if base.kind == "f" else np.iinfo(base).max


def known(column: Array) -> NDArray[np.bool_]:
    """Which values of a stored column are really values. An address, being two numbers, is always known."""
    if column.ndim > 1:
        return np.ones(len(column), bool)
    if column.dtype.kind == "f":
        return ~np.isnan(column)
    present: NDArray[np.bool_] = column != unknown_value(column.dtype)
    return present


class TextTable:
    """Distinct texts and their codes. It only grows, so a snapshot may share `values` without copying it."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, text: str) -> int:
        """The code of `text`, given on first sight."""
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self.values)
            self.values.append(text)
        return code
