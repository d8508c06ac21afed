# SPDX-License-Identifier: Apache-2.0
"""What a source publishes: named tables of numpy rows, when they were taken, and what is missing from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nettop.errors import NettopError
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Table

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The rows of one table: a structured array that holds at least `table.dtype`'s fields.

    Rows are sorted by the table's key, ascending, and each key stands once. `texts[name]` turns the codes of
    text field `name` into text that is already safe to show. `taken_ns` is CLOCK_MONOTONIC. Where a table may show
    one of several things, `variant` says which: rows of different variants are not compared.
    """

    table: Table
    array: Array
    texts: Mapping[str, Sequence[str]]
    taken_ns: int
    variant: str = ""

    def __len__(self) -> int:
        return len(self.array)


LISTED_READINGS = 2
"""What has left a table is listed in the reading that follows, and in one more: a frame may compare with the one before
that."""


@dataclass(frozen=True, eq=False, slots=True)
class Ended:
    """Rows that have left a table, so that what they counted is not lost with them.

    `rows` have their last values, in a piece for each of the last readings, the newest last; a row that `total`, a
    single row, is the sum of everything that has left since the source began, those of `rows` included; `count` is how
    many those were, where the source knows.
    """

    rows: tuple[Rows, ...]
    total: Rows
    count: int = 0


PARTLY_SEEN = (
    "made after nettop started, so seen in part: not its sockets without a process, its interfaces and its own "
    "drop counters; --follow-namespaces reads these too"
)
"""The gap of network namespaces that are not entered as they are new: what is missing was not asked for, and is no
loss."""
NAMESPACES_PARTLY_SEEN = "namespaces_partly_seen"
"""How many there are, in `counts`; none where it is missing."""

NOT_WHOLE_YET = np.iinfo(np.int64).max
"""`Snapshot.whole_since_ns` while hooks are still being attached."""

TICKS = "ticks"
"""The ticks of samples: in `counts` those that came, in `lost` those that did not."""
_MANY = 0.1
"""The share of missed ticks that is more than virtual machines normally miss."""


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One reading of a lens. Nothing downstream changes it, and it holds no memory that the kernel writes.

    `wall_ns` and `boot_ns` were read together with each other. `counts` are facts about the whole (sockets in
    TIME_WAIT), `lost` what a bound or a race dropped since the start, by name. `hooks` are the status of the lens's
    hooks; `gaps` what else cannot be seen, by name, and why: a namespace that may not be entered. `ended` has what has
    left a table, by the table's name, where a row's last values count. `whole_since_ns` (CLOCK_BOOTTIME) is since when
    every hook works that adds to what rows count: an interval that began before was watched in part.
    """

    lens: str
    wall_ns: int
    boot_ns: int
    tables: Mapping[str, Rows]
    counts: Mapping[str, int] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    hooks: tuple[HookStatus, ...] = ()
    gaps: Mapping[str, str] = field(default_factory=dict)
    ended: Mapping[str, Ended] = field(default_factory=dict)
    whole_since_ns: int = 0

    @property
    def missed_ticks(self) -> float | None:
        """The share of sampling ticks since the start that were missed; None where none is known to be missed."""
        missed, came = self.lost.get(TICKS), self.counts.get(TICKS)
        return missed / (missed + came) if missed and came is not None else None

    @property
    def notable_losses(self) -> dict[str, int]:
        """What was lost; missed ticks, which every virtual machine has, only where they are many."""
        missed = self.missed_ticks
        are_few = missed is not None and missed < _MANY
        return {name: count for name, count in self.lost.items() if not (name == TICKS and are_few)}

    @property
    def notable_gaps(self) -> dict[str, str]:
        """The gaps but those that are by choice."""
        return {name: why for name, why in self.gaps.items() if why != PARTLY_SEEN}

    @property
    def lost_in_all(self) -> int:
        """All of the notable losses."""
        return sum(self.notable_losses.values())

    @property
    def via(self) -> dict[str, str]:
        """Each hook and its mechanism, or `n/a: why`; after them the gaps."""
        return {hook.hook: str(hook) for hook in self.hooks} | dict(self.gaps)

    @property
    def missing(self) -> dict[str, str]:
        """Each field that is not available on this kernel or host, and why."""
        return {name: hook.why for hook in self.hooks if hook.mechanism is None for name in hook.fields}

    def why_unavailable(self, table: Table) -> str | None:
        """Why this kernel or host gives a table no rows; None where it does, or where nobody knows yet."""
        lacking = self.lacking(table)
        return None if lacking is None else lacking.why

    def lacking(self, table: Table) -> HookStatus | None:
        """Return the status of the hook without which a table has no rows; None where it has some, or nobody
        knows yet."""
        statuses = [self.hook(name) for name in table.hooks or (table.name,)]
        has_none = all(status is not None and status.mechanism is None for status in statuses)
        return statuses[0] if has_none else None

    def refusal(self, tables: Sequence[Table]) -> NettopError | None:
        """Return the error for a command that shows just these tables, where this host gives none of them rows.

        This is the one place that decides how a command ends that has nothing to show.
        """
        if any(
            self.lacking(table) is None and (table.append or table.name in self.tables) for table in tables
        ):
            return None
        lacking = self.lacking(tables[0]) or HookStatus("", None, (("", "its source does not read it"),))
        return lacking.error(f"{self.lens}.{tables[0].name}")

    def why_not(self, name: str) -> str | None:
        """Why a hook is not available; None where it is, or where it was not tried yet."""
        hook = self.hook(name)
        return hook.why if hook is not None and hook.mechanism is None else None

    def hook(self, name: str) -> HookStatus | None:
        """The status of a hook; None where the lens has no such hook, or it was not tried yet."""
        return next((hook for hook in self.hooks if hook.hook == name), None)


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """What the bus holds of a lens: the newest snapshot, and an earlier one that rates are taken from.

    That is the one before, or an older one where rates are averages of several intervals.

    `batches` has, for each table whose rows are only added, the newest of them, in pieces, the oldest first.
    """

    now: Snapshot
    before: Snapshot | None = None
    batches: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)


def unknown_value(dtype: np.dtype[Any]) -> Any:
    """What stands for "no value yet" in a column: the largest number, or NaN, or all bits set."""
    base = dtype.base
    return np.nan if base.kind == "f" else np.iinfo(base).max


def known(column: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which values of a stored column are really values. An address, being two numbers, is always known."""
    if column.ndim > 1:
        return np.ones(len(column), bool)
    if column.dtype.kind == "f":
        return ~np.isnan(column)
    present: np.ndarray[Any, np.dtype[np.bool_]] = column != unknown_value(column.dtype)
    return present


def known_histograms(column: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which histograms of a stored column are really counted. Shapes (n, buckets) and (n,)."""
    present: np.ndarray[Any, np.dtype[np.bool_]] = (column != unknown_value(column.dtype)).all(axis=1)
    return present


def sum_of(column: Array) -> int:
    """The sum of what is known of a stored column of whole numbers."""
    return int(column[known(column)].sum(dtype=np.uint64))


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
