# SPDX-License-Identifier: Apache-2.0
"""Snapshots that a source publishes: tables of numpy rows, with their times, losses and gaps."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import EllipsisType
from typing import Any

import numpy as np

from nettop.errors import NettopError
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, Index, Mask
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Kind, Table


@dataclass(frozen=True, eq=False, slots=True)
class Rows:
    """The rows of one table: a structured array with at least `table.dtype`'s fields.

    Rows are sorted by the table's key, ascending, and keys are unique. `texts[name]` maps the codes of text field
    `name` to text that is safe to show. `taken_ns` is CLOCK_MONOTONIC. If a table can show one of several things,
    `variant` says which; rows of different variants are not compared.
    """

    table: Table
    array: Array
    texts: Mapping[str, Sequence[str]]
    taken_ns: int
    variant: str = ""
    _columns: dict[str, Array] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.array)

    def column(self, name: str) -> Array:
        """Return a stored column, contiguous for fast access and read-only. It is copied once, for everyone who views
        these rows, now or as those before."""
        if name not in self._columns:
            copied = self.array[name].copy()
            copied.setflags(write=False)
            self._columns[name] = copied
        return self._columns[name]

    def values(self, name: str, at: Index) -> Array:
        """Return a stored column's values of the rows at `at`, without copying the others."""
        values: Array = self._columns.get(name, self.array[name])[at]
        return values


LISTED_READINGS = 2
"""Readings in which a row that left a table is listed: a frame may compare with the last reading but one."""


@dataclass(frozen=True, eq=False, slots=True)
class Ended:
    """Rows that left a table, kept so that their counts are not lost.

    `rows` holds their last values, one piece per recent reading, the newest last. `total` is a single row, the sum of
    all rows that left since the source started, including `rows`; `count` is their number, if the source knows.
    """

    rows: tuple[Rows, ...]
    total: Rows
    count: int = 0


PARTLY_SEEN = (
    "created after nettop started, so only partly visible: its interfaces, its own drop counters and sockets without "
    "a process are missing; --follow-namespaces reads them too"
)
"""The gap for new network namespaces: not a loss, because they are not entered by default."""
NAMESPACES_PARTLY_SEEN = "namespaces_partly_seen"
"""The snapshot count of such namespaces; zero if missing."""

NOT_COMPLETE_YET = np.iinfo(np.int64).max
"""`Snapshot.complete_since_ns` while hooks are still being attached."""

RECORDING = "recording"
"""The gap of a moment at which a recording is damaged."""
RECORDER = "recorder"
"""The gap of a moment at which a lens was not recorded, after a recorder that did."""

TICKS = "ticks"
"""Name of sampling ticks: received ones in `counts`, missed ones in `lost`."""
_MANY_MISSED = 0.1
"""Share of missed ticks above the normal share in virtual machines."""


@dataclass(frozen=True, eq=False, slots=True)
class Snapshot:
    """One reading of a lens. Nothing downstream modifies it, and it shares no memory with the kernel.

    `wall_ns` and `boot_ns` are when its counters were read (see `clocks`). `counts` are facts about the whole (sockets
    in TIME_WAIT). `lost` counts losses to full tables and races since the start, by name. `hooks` are the statuses of
    the lens's hooks;
    `gaps` names anything else that cannot be seen, and why (a namespace that may not be entered). `ended` has the rows
    that left a table, by the table's name, if their last values matter. `complete_since_ns` (CLOCK_BOOTTIME) is when
    the last hook that contributes to the rows' counters was attached: an interval that began earlier was covered only
    in part. `hosts` is when each host was read (its own CLOCK_BOOTTIME), if the rows are from several hosts.
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
    complete_since_ns: int = 0
    hosts: Mapping[str, int] = field(default_factory=dict)

    @property
    def age_s(self) -> float:
        """Seconds since its counters were read, on the host that read them."""
        return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.boot_ns) / 1e9

    @property
    def missed_ticks(self) -> float | None:
        """Share of sampling ticks missed since the start; None if none is known to be missed."""
        missed, came = self.lost.get(TICKS), self.counts.get(TICKS)
        return missed / (missed + came) if missed and came is not None else None

    @property
    def notable_losses(self) -> dict[str, int]:
        """Losses worth reporting: missed ticks, which every virtual machine has, only if there are many."""
        missed = self.missed_ticks
        are_few = missed is not None and missed < _MANY_MISSED
        return {name: count for name, count in self.lost.items() if not (name == TICKS and are_few)}

    @property
    def notable_gaps(self) -> dict[str, str]:
        """The gaps, except namespaces that are not entered by default."""
        return {name: why for name, why in self.gaps.items() if why != PARTLY_SEEN}

    @property
    def via(self) -> dict[str, str]:
        """Each hook's mechanism, or `n/a: why`, followed by the gaps."""
        return {hook.hook: str(hook) for hook in self.hooks} | dict(self.gaps)

    @property
    def missing(self) -> dict[str, str]:
        """Fields not available on this kernel or host, and why."""
        return {name: hook.why for hook in self.hooks if hook.mechanism is None for name in hook.fields}

    def why_unavailable(self, table: Table) -> str | None:
        """Return why a table has no rows on this kernel or host; None if it has, or if unknown yet."""
        lacking = self.missing_hook(table)
        return None if lacking is None else lacking.why

    def missing_hook(self, table: Table) -> HookStatus | None:
        """Return the status of the hook whose absence leaves a table without rows; None if it has rows, or if unknown
        yet."""
        statuses = [self.hook(name) for name in table.hooks or (table.name,)]
        has_none = all(status is not None and status.mechanism is None for status in statuses)
        return statuses[0] if has_none else None

    def refusal(self, tables: Sequence[Table]) -> NettopError | None:
        """Return the error for a command that shows only these tables, if none of them has rows on this host.

        Only this method decides how a command with nothing to show exits.
        """
        if any(
            self.missing_hook(table) is None and (table.append or table.name in self.tables)
            for table in tables
        ):
            return None
        lacking = self.missing_hook(tables[0]) or HookStatus("", None, (("", "its source does not read it"),))
        return lacking.error(f"{self.lens}.{tables[0].name}")

    def why_not(self, name: str) -> str | None:
        """Return why a hook is not available; None if it is, or was not tried yet."""
        hook = self.hook(name)
        return hook.why if hook is not None and hook.mechanism is None else None

    def hook(self, name: str) -> HookStatus | None:
        """Return the status of a hook; None if the lens does not have it, or it was not tried yet."""
        return next((hook for hook in self.hooks if hook.hook == name), None)


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A lens's data on the bus: the newest snapshot, and an earlier one to compute rates from.

    The earlier one is the previous snapshot, or an older one if rates are averages of several intervals. `batches` has
    the newest rows of each append table, in pieces, the oldest first.
    """

    now: Snapshot
    before: Snapshot | None = None
    batches: Mapping[str, tuple[Rows, ...]] = field(default_factory=dict)


@cache
def unknown_value(dtype: np.dtype[Any]) -> Any:
    """Return the value that means unknown in a column: the largest integer (all bits set), or NaN."""
    base = dtype.base
    return np.nan if base.kind == "f" else np.iinfo(base).max


def mark_unknown(rows: Array, names: Iterable[str], at: Index | Mask | EllipsisType = ...) -> None:
    """Set these columns to unknown, in some rows or in all."""
    for name in names:
        rows[name][at] = unknown_value(rows.dtype[name])


def known(column: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the mask of known values in a stored column. Addresses (two numbers) are always known."""
    if column.ndim > 1:
        return np.ones(len(column), bool)
    if column.dtype.kind == "f":
        return ~np.isnan(column)
    present: np.ndarray[Any, np.dtype[np.bool_]] = column != unknown_value(column.dtype)
    return present


def known_histograms(column: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the mask of known histograms in a stored column. Shapes (n, buckets) and (n,)."""
    present: np.ndarray[Any, np.dtype[np.bool_]] = (column != unknown_value(column.dtype)).all(axis=1)
    return present


def sum_of(column: Array) -> int:
    """Return the sum of the known values of a stored integer column."""
    return int(column[known(column)].sum(dtype=np.uint64))


def clocks(taken_ns: int) -> tuple[int, int]:
    """Return a moment of the kernel's CLOCK_MONOTONIC by the wall clock and since boot, in ns.

    A snapshot has the time at which its counters were read: on a busy host making its rows may take seconds.
    """
    passed_ns = monotonic_ns() - taken_ns
    return time.time_ns() - passed_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - passed_ns


_NO_TEXT = unknown_value(np.dtype(np.uint32))
_SPARE_TEXTS = 1024
"""Unused texts that a table may have before it is replaced, which has recordings write all texts again."""


class TextTable:
    """Distinct texts and their codes.

    A table only grows, so that a code keeps its text; `frozen` returns the texts of the rows coded so far as a value of
    its own, in which later texts never show.
    """

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._frozen: tuple[str, ...] = ()

    def code(self, text: str) -> int:
        """Return the code of `text`, assigning one to a new text."""
        return self._codes.setdefault(text, len(self._codes))

    def codes(self, values: Array, text_of: Callable[[Any], str | None]) -> Array:
        """Return the code of each value's text, unknown without one. Each distinct value is looked up once."""
        distinct, places = np.unique(values, return_inverse=True)
        found = map(text_of, distinct.tolist())
        codes: Array = np.array([_NO_TEXT if text is None else self.code(text) for text in found], np.uint32)
        return codes[places]

    def frozen(self) -> tuple[str, ...]:
        """Return the texts by code; the same tuple as the last time if there is no new text."""
        if len(self._frozen) < len(self._codes):
            self._frozen = tuple(self._codes)
        return self._frozen

    def adopted(self, codes: Array, texts: Sequence[str]) -> Array:
        """Return the codes in this table of what `codes` mean in `texts`: for rows that outlive their reading."""
        if self.frozen()[: len(texts)] == tuple(texts):
            return codes
        distinct, places = np.unique(codes, return_inverse=True)
        mapped = [self.code(texts[code]) if code < len(texts) else code for code in distinct.tolist()]
        adopted: Array = np.array(mapped, codes.dtype)[places]
        return adopted

    def renewed(self, used: int) -> TextTable:
        """Return this table, or a new one if it has far more texts than are `used`. Call it between readings."""
        return self if len(self._codes) <= 2 * used + _SPARE_TEXTS else TextTable()


def rows_from(table: Table, found: Collection[Mapping[str, Any]], taken_ns: int) -> Rows:
    """Return a table's rows, sorted by key, from the values of their stored fields.

    Texts and labels are given as text. Fields that are None or left out are unknown. For few rows: it takes some
    microseconds for each.
    """
    texts = {field.name: TextTable() for field in table.stored if field.kind is Kind.TEXT}
    labels = {
        field.name: {text: code for code, text in field.labels.items()}
        for field in table.stored
        if field.labels
    }
    unknown = {name: unknown_value(table.dtype[name]) for name in table.dtype.names or ()}

    def stored(name: str, value: Any) -> Any:
        if value is None:
            return unknown[name]
        if isinstance(value, str):
            return texts[name].code(value) if name in texts else labels[name][value]
        return value

    rows = [tuple(stored(name, values.get(name)) for name in unknown) for values in found]
    array = np.array(rows, table.dtype)
    by_key = array[np.argsort(array[table.key], kind="stable")]
    return Rows(table, by_key, {name: codes.frozen() for name, codes in texts.items()}, taken_ns)
