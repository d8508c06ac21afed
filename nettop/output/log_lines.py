# SPDX-License-Identifier: Apache-2.0
"""Readable lines: one row per line, starting with the time, with units, and easy to grep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, starmap
from typing import Any

import numpy as np

from nettop.formats.cells import (
    Cell,
    Coded,
    Spelling,
    column_cells,
    endpoint_parts,
    format_each,
    join_rows,
    take_texts,
)
from nettop.output.lens_output import Part, lens_output
from nettop.output.table import AMOUNTS, field_of, word
from nettop.query.times import rfc3339
from nettop.query.units import UNKNOWN, human, human_spread, unit_of
from nettop.query.view import View
from nettop.settings import LineFormat
from nettop.snapshots.arrays import Index
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Kind, Table

KIND_WIDTH = 7
_OWNER_WIDTH = 22
_ENDS_WIDTH = 45
"""Width of two IPv4 addresses with their ports, and the arrow between them."""
_OWNER, _ENDS = ("process", "pid"), ("local", "remote")
_ARROW = " → "
QUEUE_FULL = "queue full"
"""Cause of losing rows of an append table that were not taken from their feed in time."""
NOT_LISTED = "closed too long before this output, or too many"
"""Cause of not listing closed connections one by one, but only in the row for the rest."""
CAUSES = {"events": "ring full or hook busy"}
"""Causes of a snapshot's losses, by name, if the name does not imply the cause."""


class TextLines:
    """A formatter of a lens's table as readable lines, with `kind` after the time.

    Unknown amounts are omitted; unavailable ones are `n/a`. With `columns`, a line has only those, as NAME=VALUE in
    base units.
    """

    def __init__(self, lens: str, table: Table, kind: str, columns: tuple[str, ...] | None = None) -> None:
        if columns is None:
            self._parts = (lens_output(lens).line_parts or row_parts)(table, kind)
        else:
            self._parts = [_time_of(table), constant(kind), *map(_named, columns)]

    def lines(self, view: View, at: Index) -> str:
        """Format one line for each of the rows at `at`."""
        return self.encoded(view, at).decode()

    def encoded(self, view: View, at: Index) -> bytes:
        """Return `lines` in UTF-8."""
        if not len(at):
            return b""
        cells = chain.from_iterable(part(view, at) for part in self._parts)
        return join_rows([*cells, "\n"], len(at))


@dataclass(frozen=True, slots=True)
class Lost:
    """A loss: `count` since the last report, `total` so far; `cause` may be empty."""

    what: str
    cause: str
    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.count} {self.what}{f' ({self.cause})' if self.cause else ''}, {self.total} in all"


class Losses:
    """The losses reported so far: `totals` by name and cause."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], int] = {}

    def new_losses(self, what: str, cause: str, total: int) -> list[Lost]:
        """Return the losses to report for a new `total`; empty unless it has grown."""
        reported = self.totals.get((what, cause), 0)
        if total <= reported:
            return []
        self.totals[what, cause] = total
        return [Lost(what, cause, total - reported, total)]


def lost_line(form: LineFormat, wall_ns: int, lost: Lost) -> str:
    """Return a line that reports a loss."""
    return _note(form, wall_ns, "lost", str(lost), type="lost", **asdict(lost))


def limit_line(form: LineFormat, wall_ns: int, state: str) -> str:
    """Return a line that reports the effect of --max-overhead."""
    return _note(form, wall_ns, "limit", state, type="limit", what=state)


def missing_line(form: LineFormat, wall_ns: int, what: str, why: str) -> str:
    """Return a line that reports why `what` is not logged."""
    return _note(form, wall_ns, NOT_AVAILABLE, f"{what}: {why}", type="missing", what=what, why=why)


def _note(form: LineFormat, wall_ns: int, kind: str, text: str, **fields: str | int) -> str:
    """Return a line about the log itself: readable text, or JSON with these fields."""
    time = rfc3339(wall_ns)
    if form is LineFormat.TEXT:
        return f"{time}  {kind:{KIND_WIDTH}}  {text}\n"
    return json.dumps({"time": time} | fields, ensure_ascii=False, separators=(",", ":")) + "\n"


# --- the parts of a line --------------------------------------------------------------------------------------


def row_parts(table: Table, kind: str, labels: Mapping[str, str] | None = None) -> list[Part]:
    """Return the parts for the default columns of plain text: names first, then amounts."""
    parts = [_time_of(table), constant(kind)]
    left = [name for name in table.text if name != "time"]
    for names, part in ((_OWNER, owner), (_ENDS, ends)):
        if set(names) <= set(left):
            parts.append(part)
            left = [name for name in left if name not in names]
    parts += [_named(name) for name in left if not _is_amount(table, name)]
    return parts + [amount(table, name, labels) for name in left if _is_amount(table, name)]


def _is_amount(table: Table, name: str) -> bool:
    field = field_of(table, name)
    first = table.by_name[field.parts[0]] if field.kind is Kind.GROUP else field
    return first.kind in AMOUNTS


# --- the parts ------------------------------------------------------------------------------------------------


def own_time(view: View, at: Index) -> list[Cell]:
    """Return the time of each row."""
    return column_cells(view, "time", at, _spelling(view, "time"))


def snapshot_time(view: View, _at: Index) -> list[Cell]:
    """Return the time of the snapshot for each row."""
    return [rfc3339(view.snapshot.wall_ns)]


def _time_of(table: Table) -> Part:
    return own_time if "time" in table.by_name else snapshot_time


def constant(kind: str) -> Part:
    """Return a part that is the same word in each line."""
    return lambda _view, _at: [f"  {kind:{KIND_WIDTH}}"]


def unlabelled(name: str, width: int) -> Part:
    """Return a part with a value without its name."""

    def part(view: View, at: Index) -> list[Cell]:
        blank = _blank(view, name)
        return [format_each(view, (name,), at, lambda value: f"  {value or blank:{width}}")]

    return part


def _named(name: str) -> Part:
    return lambda view, at: [f"  {name}=", *column_cells(view, name, at, _spelling(view, name))]


def owner(view: View, at: Index) -> list[Cell]:
    """Format the owner process of each row as `name[pid]`."""
    blanks = [_blank(view, name) for name in _OWNER]

    def written(*process: str | int | None) -> str:
        name, pid = map(_text, process, blanks)
        is_unattributed = process[1] is None and NOT_AVAILABLE not in blanks
        return f"  {'(unattributed)' if is_unattributed else f'{name}[{pid}]':{_OWNER_WIDTH}}"

    return [format_each(view, _OWNER, at, written)]


def ends(view: View, at: Index) -> list[Cell]:
    """Format the local and the remote end of each row."""
    local, remote = (_end(view, name, at) for name in _ENDS)
    width = len(_ARROW) + sum(np.array(list(map(len, texts)))[places] for texts, places in (*local, *remote))
    paddings = [" " * count for count in range(_ENDS_WIDTH + 1)]
    padding = take_texts(paddings, np.maximum(0, _ENDS_WIDTH - width))
    return ["  ", *starmap(take_texts, local), _ARROW, *starmap(take_texts, remote), padding]


def _end(view: View, name: str, at: Index) -> Sequence[Coded]:
    if name in view.missing:
        return [([NOT_AVAILABLE], np.zeros(len(at), np.intp))]
    return endpoint_parts(view, name, at)


def amount(table: Table, name: str, labels: Mapping[str, str] | None = None) -> Part:
    """Return a part with a number and its unit after its label, which is the column's title unless in `labels`.

    Bytes are written in full, so that a log can be compared with other counters.
    """
    field, unit = field_of(table, name), unit_of(table, name)
    label = (labels or {}).get(name, field.title.lower() + ("/s" if name.endswith(RATE) else ""))
    needed = field.parts[0] if field.kind is Kind.GROUP else name

    @lru_cache(1 << 12)
    def number(value: float | None) -> str:
        if value is None:
            return ""
        return f"  {label} {f'{round(value):,} B' if unit == 'bytes' else human(value, unit)}"

    @lru_cache(1 << 12)
    def spread(value: float | None, deviation: float | None) -> str:
        return "" if value is None else f"  {label} {human_spread(value, deviation, unit)}"

    def part(view: View, at: Index) -> list[Cell]:
        if needed in view.missing:
            return [f"  {label} {NOT_AVAILABLE}"]
        if field.kind is Kind.GROUP:
            return [format_each(view, field.parts, at, spread)]
        return [format_each(view, (name,), at, number)]

    return part


def _spelling(view: View, name: str) -> Spelling:
    return Spelling(word, _blank(view, name), lambda counts: word(histogram_text(counts)))


def _text(value: Any, blank: str) -> str:
    return blank if value is None else word(str(value))


def _blank(view: View, name: str) -> str:
    """Return the placeholder for a missing value."""
    return NOT_AVAILABLE if name in view.missing else UNKNOWN
