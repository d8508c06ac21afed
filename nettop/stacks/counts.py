# SPDX-License-Identifier: Apache-2.0
"""Sampled stacks over time windows, as a tree and by category, for the flame graph and the exports."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from nettop.query.times import rfc3339
from nettop.snapshots.arrays import positions
from nettop.snapshots.cpu import CATEGORY_OF, ENTRIES, NETTOP, OTHER
from nettop.snapshots.snapshot import Rows, known

MINUTE_NS = 60_000_000_000
MARK_NS = 5_000_000_000
"""Minimum time between the snapshots kept of the last minute."""


class StackCount(NamedTuple):
    """A stack of kernel functions (`frames`, root first), where and how often it was sampled."""

    entry: int
    cpu: int
    frames: tuple[str, ...]
    category: int
    samples: int
    time_ns: int


class FlameSort(StrEnum):
    """The order of a node's children."""

    SAMPLES = "samples"
    """The widest first."""
    NAME = "name"


class Window(StrEnum):
    """The time window of the samples."""

    INTERVAL = "interval"
    """From the previous snapshot to the newest."""
    MINUTE = "minute"
    """The last 60 to 65 seconds, or since the first snapshot if that is less."""
    START = "start"
    """Since the source was started."""


@dataclass(frozen=True, eq=False)
class FlameNode:
    """A function on one call path; its `samples` and `time_ns` include those of its `children`.

    `category` is that of the deepest function on the path that has one, OTHER if none has, or NETTOP if all samples are
    of nettop's own programs. `children` calls `find_children` once, on first use, because a screen shows few functions.
    """

    symbol: str
    samples: int
    time_ns: int
    category: int
    find_children: Callable[[], tuple[FlameNode, ...]] = tuple

    @cached_property
    def children(self) -> tuple[FlameNode, ...]:
        """The function's callees, in the tree's order."""
        return self.find_children()

    @property
    def own_samples(self) -> int:
        """Samples in the function itself, without its callees."""
        return self.samples - sum(child.samples for child in self.children)


@dataclass(frozen=True, slots=True)
class Profile:
    """Stacks sampled on a host for `elapsed_ns` from `began_ns` (wall clock)."""

    counts: tuple[StackCount, ...]
    host: str
    began_ns: int
    elapsed_ns: int
    sampled_hz: int

    @property
    def samples(self) -> int:
        """Total number of samples."""
        return sum(count.samples for count in self.counts)

    @property
    def title(self) -> str:
        """One line with the subject, host, time, duration and sampling rate."""
        when, elapsed_s = rfc3339(self.began_ns)[:19], self.elapsed_ns / 1e9
        return f"network stack on CPU · {self.host} · {when}Z · {elapsed_s:.1f} s at {self.sampled_hz} Hz"


def stack_counts(rows: Rows) -> list[StackCount]:
    """Return the rows of the table `stacks` that have samples."""
    samples = rows.array["samples"]
    sampled = rows.array[known(samples) & (samples > 0)]
    columns = (sampled[name].tolist() for name in ("entry", "cpu", "stack", "category", "samples", "time_ns"))
    stacks = rows.texts["stack"]
    return [
        StackCount(
            entry, cpu, _frames(stacks[code] if code < len(stacks) else ""), category, samples, time_ns
        )
        for entry, cpu, code, category, samples, time_ns in zip(*columns, strict=True)
    ]


def flame_tree(counts: Iterable[StackCount], sort: FlameSort = FlameSort.SAMPLES) -> FlameNode:
    """Build a tree with the root `all`, below it the entry points, then the functions."""
    stacks = _Stacks(counts, sort)
    return stacks.node("all", range(len(stacks.paths)), 0, OTHER)


def path_of(count: StackCount) -> tuple[str, ...]:
    """Return the names from the root to a stack's innermost function: the entry point, the frames."""
    return ENTRIES.get(count.entry, "unknown"), *count.frames


def category_totals(counts: Iterable[StackCount]) -> dict[int, tuple[int, int]]:
    """Sum up samples and ns by category, without empty categories."""
    totals: dict[int, tuple[int, int]] = {}
    for count in counts:
        samples, time_ns = totals.get(count.category, (0, 0))
        totals[count.category] = (samples + count.samples, time_ns + count.time_ns)
    return totals


def grown_rows(now: Rows, before: Rows) -> Rows:
    """Return the rows of `stacks` with the counts added between two snapshots of one source."""
    at = positions(now.array["id"], before.array["id"])
    array = now.array.copy()
    for name in ("samples", "time_ns"):
        earlier = np.zeros_like(array[name])
        earlier[at >= 0] = before.array[name][at[at >= 0]]
        array[name] -= np.minimum(array[name], earlier)  # never negative
    return replace(now, array=array)


class StackReading(NamedTuple):
    """The rows of `stacks`, and for how long their source had been sampling."""

    rows: Rows
    watched_ns: int


class StackHistory:
    """Time windows over cumulative snapshots of the table `stacks`.

    Keeps at most 15 snapshots: the newest, the previous one, and one every 5 s of the last minute. If the source was
    restarted (its counts fell), the history restarts too.
    """

    def __init__(self) -> None:
        self._before: StackReading | None = None
        self._now: StackReading | None = None
        self._minute: list[StackReading] = []

    def add(self, now: StackReading, before: StackReading | None = None) -> None:
        """Add the newest snapshot. Adding a snapshot twice is a no-op. The history restarts with `before`, the snapshot
        before it if there is one."""
        if self._now is not None and now.rows.taken_ns == self._now.rows.taken_ns:
            return
        if self._now is None or not _continues(now, self._now):
            self._now = before if before is not None and _continues(now, before) else None
            self._minute = [] if self._now is None else [self._now]
        self._before, self._now = self._now, now
        if not self._minute or _between_ns(self._minute[-1], now) >= MARK_NS:
            self._minute.append(now)
        while len(self._minute) > 1 and _between_ns(self._minute[1], now) >= MINUTE_NS:
            del self._minute[0]

    def copy(self) -> StackHistory:
        """Return an independent copy."""
        other = StackHistory()
        other._before, other._now = self._before, self._now
        other._minute = [*self._minute]
        return other

    def counts(self, window: Window) -> list[StackCount]:
        """Return the stacks of a window; empty before the first snapshot, or for an interval before the second."""
        since = self._since(window)
        return stack_counts(grown_rows(self._now.rows, since.rows)) if self._now and since else []

    def span_ns(self, window: Window) -> int | None:
        """Return how long the source sampled within the window; None if the window has not begun yet."""
        since = self._since(window)
        return self._now.watched_ns - since.watched_ns if self._now and since else None

    def _since(self, window: Window) -> StackReading | None:
        if window is Window.INTERVAL or self._now is None:
            return self._before
        if window is Window.START:
            return StackReading(replace(self._now.rows, array=self._now.rows.array[:0]), 0)
        return self._minute[0] if self._minute[0] is not self._now else None


class _Stacks:
    """Stacks sorted by path, so that the stacks below a node are contiguous, with cumulative sums."""

    def __init__(self, counts: Iterable[StackCount], sort: FlameSort) -> None:
        by_path = sorted(((path_of(count), count) for count in counts), key=itemgetter(0))
        self._sort = sort
        self.paths = [path for path, _ in by_path]
        self._samples = [0, *accumulate(count.samples for _, count in by_path)]
        self._time_ns = [0, *accumulate(count.time_ns for _, count in by_path)]
        self._own = [0, *accumulate(count.samples if count.category == NETTOP else 0 for _, count in by_path)]

    def node(self, symbol: str, some: range, depth: int, above: int) -> FlameNode:
        """Return the node of the stacks in `some`, `depth` names from the root; `above` is its caller's category."""
        first, after = some.start, some.stop
        samples = self._samples[after] - self._samples[first]
        time_ns = self._time_ns[after] - self._time_ns[first]
        own = self._own[after] - self._own[first]
        named = CATEGORY_OF.get(symbol, above)
        category = NETTOP if 0 < samples == own else named
        return FlameNode(symbol, samples, time_ns, category, partial(self._children, some, depth, named))

    def _children(self, some: range, depth: int, above: int) -> tuple[FlameNode, ...]:
        """Return a node for each name at `depth`; stacks that end there sort first."""
        nodes, paths, at, end = [], self.paths, some.start, some.stop
        while at < end and len(paths[at]) == depth:
            at += 1
        while at < end:
            symbol = paths[at][depth]
            after = bisect_right(paths, symbol, at, end, key=itemgetter(depth))
            nodes.append(self.node(symbol, range(at, after), depth + 1, above))
            at = after
        if self._sort is FlameSort.SAMPLES:
            nodes.sort(key=lambda node: -node.samples)  # stable: ties stay sorted by name
        return tuple(nodes)


@lru_cache(16_384)
def _frames(stack: str) -> tuple[str, ...]:
    """Return the functions of a stack. Cache them, because every refresh has mostly the same stacks."""
    return tuple(map(sys.intern, stack.split(";"))) if stack else ()


def _between_ns(before: StackReading, now: StackReading) -> int:
    return now.rows.taken_ns - before.rows.taken_ns


def _continues(now: StackReading, before: StackReading) -> bool:
    """Return whether both snapshots count from the same start: no count fell, and not all stacks are gone."""
    at = positions(now.rows.array["id"], before.rows.array["id"])
    both = at >= 0
    fell = now.rows.array["samples"][both] < before.rows.array["samples"][at[both]]
    in_order = _between_ns(before, now) > 0 and now.watched_ns >= before.watched_ns
    return in_order and not fell.any() and bool(both.any() or not len(before.rows))
