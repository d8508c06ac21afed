# SPDX-License-Identifier: Apache-2.0
"""What changed between two spans of time, in one recording or in two.

Each span is divided into equal parts. A change counts only if it exceeds the differences between the parts of a span,
so that what always varies is not reported.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettop.query.address import endpoint_text
from nettop.query.filter import combined, parse_filter
from nettop.query.findings import equals
from nettop.query.query import screen_query
from nettop.query.sentences import filled, unit_in_sentence
from nettop.query.units import RATIO, human, unit_of
from nettop.query.view import View
from nettop.recording.reader import Readings
from nettop.recording.recording import Recording
from nettop.snapshots import lenses, view_name
from nettop.snapshots.arrays import Array, distinct_rows
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.schema import PRESENCE, RATE, ROWS, Certainty, Kind, Lens, Measure, Table
from nettop.snapshots.snapshot import Frame

PARTS = 8
"""Parts of a span. Two spans of lognormal noise differ in all parts, by as much as the parts do, once in a million."""
TOO_FEW = "too few readings"
"""Why a lens is not compared."""
_PARTS_FOR_CERTAINTY = 5
_PARTS_MIN = 2
_COUNTS_MIN = 3
"""Minimum counts of a histogram for a quantile of a part. Few counts vary more, which the other parts show."""
_LEAST_CHANGE = math.log(1.25)
"""Smaller changes are none, however steady the numbers are."""
_FACTOR_OF_USUAL = 4
"""How many times as large as those that come and go anyway something new must be."""

Key = tuple[Any, ...]
"""The values of a measure's columns `by`; None is unknown."""


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """A part of a recording, from `begin_ns` up to `end_ns` by its wall clock."""

    recording: Recording
    begin_ns: int
    end_ns: int

    def moments(self, lens: Lens) -> Iterator[int]:
        """Yield when a lens was read."""
        return self.recording.moments_between(lens, self.begin_ns, self.end_ns)

    def part_of(self, wall_ns: int) -> int:
        """Return the number of the part with this moment."""
        passed = (wall_ns - self.begin_ns) * PARTS // max(1, self.end_ns - self.begin_ns)
        return min(max(passed, 0), PARTS - 1)


@dataclass(frozen=True, slots=True)
class Change:
    """A number that differs between two spans. `unit` is that of `before` and `now`; None is unknown.

    `at_ns` is when it shows most: in the second span, or, with `is_gone`, in the first. `view` and `filter` select its
    rows there. `size` is the binary logarithm of the factor.
    """

    certainty: Certainty
    measure: Measure
    key: Key
    sentence: str
    before: float | None
    now: float | None
    unit: str
    size: float
    is_gone: bool
    at_ns: int
    view: str
    filter: str

    @property
    def is_worse(self) -> bool:
        """True if the number is one that should be small, and has grown."""
        return self.measure.is_bad and not self.is_gone

    @property
    def needs_all_rows(self) -> bool:
        """True if its rows may be hidden unless all are shown: findings that another one explains."""
        return self.view == FINDINGS.id


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes between two spans, the most important first; the titles of the lenses that were compared, and why
    others were not."""

    changes: list[Change]
    compared: list[str]
    not_compared: dict[str, str]

    @property
    def is_certain(self) -> bool:
        """True if something is certain to have changed."""
        return any(change.certainty is Certainty.CERTAIN for change in self.changes)

    def notes(self, limit: int) -> list[str]:
        """Return what the first `limit` changes leave out."""
        notes = [f"not compared: {title}: {why}" for title, why in self.not_compared.items()]
        if len(self.changes) > limit:
            notes.append(f"{len(self.changes) - limit:,} more changes are not listed (--limit)")
        if not self.changes:
            notes.append("nothing changed by more than it always varies")
        return notes


def differences(before: Span, now: Span) -> Difference:
    """Compare two spans by every number that both have."""
    changes: list[Change] = []
    compared: list[str] = []
    not_compared: dict[str, str] = {}
    for lens in lenses():
        if not any(table.measures for table in lens.tables):
            continue
        why = _why_not(lens, before, now)
        if why:
            not_compared[lens.title] = why
            continue
        pairs = list(zip(_read(before, lens), _read(now, lens), strict=True))
        if not any(then.is_measured and after.is_measured for then, after in pairs):
            not_compared[lens.title] = "its numbers were not recorded"
            continue
        compared.append(lens.title)
        for then, after in pairs:
            changes += _changes(then, after)
    return Difference(_ranked(changes), compared, not_compared)


def _why_not(lens: Lens, *spans: Span) -> str:
    if any(lens.id not in span.recording.lenses for span in spans):
        return "not recorded"
    if any(sum(1 for _ in span.moments(lens)) < _PARTS_MIN + 1 for span in spans):
        return TOO_FEW
    return ""


# --- measuring --------------------------------------------------------------------------------------------------


class Measured:
    """A measure in the parts of a span, by key."""

    def __init__(self, lens: Lens, table: Table, measure: Measure, span: Span) -> None:
        self.view, self.table, self.measure = view_name(lens, table), table, measure
        self.query = screen_query(table)
        self._span = span
        self._filter = parse_filter(table, measure.filter)
        field = table.by_name.get(measure.column)
        self._quantile = field if field is not None and field.kind is Kind.QUANTILE else None
        self._is_counted = measure.column in (ROWS, PRESENCE)
        self._covered = np.zeros(PARTS)
        """Seconds of each part that readings cover; readings, if rows are counted."""
        self.moments = np.zeros(PARTS, np.int64)
        """When the last reading of each part was taken."""
        self._amounts: dict[Key, Array] = {}

    @property
    def unit(self) -> str:
        """The unit of the numbers."""
        if self._is_counted:
            return RATIO if self.measure.column == PRESENCE else ""
        return unit_of(self.table, self.measure.column + ("" if self._quantile else RATE))

    def add(self, view: View) -> None:
        """Add what an interval has."""
        names = [name for name in (*self.measure.by, self.measure.column) if name in view.missing]
        if names or view.elapsed_s is None or not (view.is_whole or self._is_counted):
            return
        part = self._span.part_of(view.snapshot.wall_ns)
        self.moments[part] = view.snapshot.wall_ns
        self._covered[part] += 1 if self._is_counted else view.elapsed_s
        is_known, numbers = self._numbers(view)
        at = np.flatnonzero(self._filter.mask(view) & is_known & ~view.rest)
        if not len(at):
            return
        firsts, places = distinct_rows([view.raw(name)[at] for name in self.measure.by])
        sums = np.zeros((len(firsts), *numbers.shape[1:]))
        np.add.at(sums, places, numbers[at])
        if self.measure.column == PRESENCE:
            sums = np.minimum(sums, 1)
        keys = zip(*(view.values(name, at[firsts]) for name in self.measure.by), strict=True)
        for key, amount in zip(keys, sums, strict=True):
            amounts = self._amounts.get(key)
            if amounts is None:
                amounts = self._amounts[key] = np.zeros((PARTS, *numbers.shape[1:]))
            amounts[part] += amount

    def _numbers(self, view: View) -> tuple[Array, Array]:
        """Return the mask of rows with a number, and the numbers."""
        if self._is_counted:
            return ~view.gone, np.ones(view.size)
        if self._quantile is not None:
            counts = view.histogram_counts(self._quantile.parts[0])
            return counts.known, counts.numbers
        column = view.column(self.measure.column)
        return column.known, column.numbers

    @property
    def is_measured(self) -> bool:
        """True if an interval was measured."""
        return bool(self._covered.any())

    @property
    def found(self) -> Collection[Key]:
        """The keys of what was there."""
        return self._amounts.keys()

    def in_parts(self, key: Key) -> Array:
        """Return the number in each part; NaN if it is unknown."""
        amounts = self._amounts.get(key)
        if self._quantile is not None:
            return np.full(PARTS, np.nan) if amounts is None else self._quantiles(amounts)
        if amounts is None:
            amounts = np.zeros(PARTS)
        numbers = np.full(PARTS, np.nan)
        np.divide(amounts, self._covered, out=numbers, where=self._covered > 0)
        return numbers

    def whole(self, key: Key) -> float | None:
        """Return the number in the whole span; None if it is unknown."""
        amounts = self._amounts.get(key)
        if self._quantile is not None:
            number = np.nan if amounts is None else self._quantiles(amounts.sum(axis=0, keepdims=True))[0]
            return None if np.isnan(number) else float(number)
        return 0.0 if amounts is None else float(amounts.sum() / self._covered.sum())

    def _quantiles(self, counts: Array) -> Array:
        assert self._quantile is not None
        buckets = self.table.by_name[self._quantile.parts[0]].buckets
        assert buckets is not None
        few = counts.sum(axis=1) < _COUNTS_MIN
        return np.where(few, np.nan, buckets.quantiles(counts, self._quantile.quantile))


def _read(span: Span, lens: Lens) -> list[Measured]:
    """Return the measures of a lens in a span."""
    measured = [Measured(lens, table, measure, span) for table in lens.tables for measure in table.measures]
    readings = Readings(span.recording, lens)
    for _, reading in readings.each(span.moments(lens)):
        if reading.before is None or reading.before.wall_ns < span.begin_ns:
            continue
        views: dict[str, View] = {}
        for topic in measured:
            name = topic.table.name
            if name in reading.now.tables and name in reading.before.tables:
                if name not in views:
                    views[name] = View(Frame(reading.now, reading.before), topic.query)
                topic.add(views[name])
    return measured


# --- comparing --------------------------------------------------------------------------------------------------


def _changes(before: Measured, now: Measured) -> Iterator[Change]:
    """Yield the changes of a measure."""
    if not (before.is_measured and now.is_measured):
        return
    usual = max(_come_and_gone(before), _come_and_gone(now)) if now.measure.comes_and_goes else 0.0
    for key in dict.fromkeys((*before.found, *now.found)):
        then, after = before.in_parts(key), now.in_parts(key)
        certainty = _certainty(then, after, now.measure.least)
        if certainty is None or not (says := _template(before, now, key)):
            continue
        change = _change(before, now, key, certainty, says)
        if max(change.before or 0.0, change.now or 0.0) >= usual * _FACTOR_OF_USUAL:
            yield change


def _certainty(before: Array, now: Array, least: float) -> Certainty | None:
    """Return how certain it is that the numbers of two spans differ; None if they vary as much within one.

    Certain: all of one span are beyond all of the other, by more than both vary. Likely: three quarters of one are
    beyond all of the other, by more than that varies. Possible: half of them.
    """
    then, after = (np.log(np.sort(parts[~np.isnan(parts)]) + least) for parts in (before, now))
    fewest = min(len(then), len(after))
    if fewest < _PARTS_MIN:
        return None
    if min(_excess(then, after, 1.0), _excess(after, then, 1.0)) >= 0:
        return Certainty.CERTAIN if fewest >= _PARTS_FOR_CERTAINTY else Certainty.LIKELY
    if fewest < _PARTS_FOR_CERTAINTY:
        return None
    for share, certainty in ((0.75, Certainty.LIKELY), (0.5, Certainty.POSSIBLE)):
        if max(_excess(then, after, share), _excess(after, then, share)) >= 0:
            return certainty
    return None


def _excess(numbers: Array, others: Array, share: float) -> float:
    """Return by how much a share of `others` is farther from all of `numbers` than these are from each other; both are
    sorted."""
    left_out = int(len(others) * (1 - share))
    apart = max(others[left_out] - numbers[-1], numbers[0] - others[-1 - left_out])
    return float(apart) - max(float(numbers[-1] - numbers[0]), _LEAST_CHANGE)


def _come_and_gone(measured: Measured) -> float:
    """Return the largest number among what came or went within a span; 0 if nothing did."""
    largest = 0.0
    for key in measured.found:
        parts = measured.in_parts(key)
        first, second = np.nansum(parts[: PARTS // 2]), np.nansum(parts[PARTS // 2 :])
        if bool(first) != bool(second):
            largest = max(largest, float(np.nanmax(parts)))
    return largest


def _template(before: Measured, now: Measured, key: Key) -> str:
    """Return the sentence for a change; empty if it is none."""
    measure = now.measure
    began, ended = (
        key not in other.found if measure.comes_and_goes else not other.whole(key) for other in (before, now)
    )
    return (began and measure.began) or (ended and measure.ended) or measure.says


def _texts(measure: Measure, key: Key) -> dict[str, str | None]:
    """Return the values of a key as text, and of an address and its port as `target`."""
    values = dict(zip(measure.by, key, strict=True))
    texts = {name: None if value is None else str(value) for name, value in values.items()}
    address = values.get("remote_address")
    return texts | {"target": None if address is None else endpoint_text(address, values.get("remote_port"))}


def _change(before: Measured, now: Measured, key: Key, certainty: Certainty, says: str) -> Change:
    measure, unit = now.measure, now.unit
    was, is_now = before.whole(key), now.whole(key)
    is_gone = (is_now or 0.0) < (was or 0.0)
    shown = before if is_gone else now
    parts = np.nan_to_num(shown.in_parts(key), nan=-1.0)
    numbers = {"now": human(is_now, unit_in_sentence(unit)), "before": human(was, unit_in_sentence(unit))}
    table = now.table
    terms = [parse_filter(table, equals(name, value)) for name, value in zip(measure.by, key, strict=True)]
    return Change(
        certainty,
        measure,
        key,
        filled(says, _texts(measure, key) | numbers),
        was,
        is_now,
        unit,
        abs(math.log2(((is_now or 0.0) + measure.least) / ((was or 0.0) + measure.least))),
        is_gone,
        int(shown.moments[parts.argmax()]),
        now.view,
        combined(table, terms).text,
    )


# --- ranking ----------------------------------------------------------------------------------------------------


def _ranked(changes: Iterable[Change]) -> list[Change]:
    """Return one change of each topic and key, the most important first, those that are only possible last.

    The greatest changes of all topics precede the second ones of any, so that a change with many effects in one topic
    does not hide the others. What became worse precedes what only differs.
    """
    certainties = list(Certainty)

    def importance(change: Change) -> tuple[int, float]:
        return certainties.index(change.certainty), -change.size

    topics: dict[str, dict[Key, Change]] = defaultdict(dict)
    for change in sorted(changes, key=importance):
        topics[change.measure.topic].setdefault(change.key, change)
    placed = [(place, change) for topic in topics.values() for place, change in enumerate(topic.values())]

    def rank(placed: tuple[int, Change]) -> tuple[bool, int, int, bool, float]:
        place, change = placed
        certainty, size = importance(change)
        return change.certainty is Certainty.POSSIBLE, place, certainty, not change.is_worse, size

    return [change for _, change in sorted(placed, key=rank)]
