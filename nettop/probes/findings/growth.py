# SPDX-License-Identifier: Apache-2.0
"""How fast the use of limits grows, if it has grown for so long that it will not level off by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

STEP_S = 10.0
"""Seconds between two kept readings."""

Key = tuple[int, str]
"""A network namespace and a resource."""


class Use(NamedTuple):
    """How much of a resource is used and may be used, and how many seconds its use grows after a load has begun."""

    used: int
    limit: int
    levels_off_s: float


class _Sample(NamedTuple):
    taken_ns: int
    used: int


class Growth:
    """The use of limits in the last minutes, and how fast it grows."""

    def __init__(self) -> None:
        self._kept: dict[Key, deque[_Sample]] = {}
        self._per_s: dict[Key, float] = {}

    def add(self, uses: Mapping[Key, Use], taken_ns: int) -> Mapping[Key, float]:
        """Add a reading, and return the growth per second of each use that will reach its limit if it goes on.

        A use that was not read this time starts over.
        """
        self._kept = {key: self._kept.get(key, deque()) for key in uses}
        self._per_s = {key: per_s for key, per_s in self._per_s.items() if key in uses}
        for key, use in uses.items():
            kept = self._kept[key]
            if kept and taken_ns - kept[-1].taken_ns < STEP_S * 1e9:
                continue
            kept.append(_Sample(taken_ns, use.used))
            # Two more, for the growth may begin and end within a step.
            steps = int(use.levels_off_s / STEP_S) + 2
            if len(kept) > steps + 1:
                kept.popleft()
            per_s = _lasting_growth(list(kept), use.limit) if len(kept) > steps else None
            if per_s is None:
                self._per_s.pop(key, None)
            else:
                self._per_s[key] = per_s
        return self._per_s


def _lasting_growth(kept: list[_Sample], limit: int) -> float | None:
    """Return the recent growth per second; None if any step did not grow, or if the growth slows down so much that it
    ends before the limit."""
    if any(now.used <= before.used for before, now in pairwise(kept)):
        return None
    first, middle, last = kept[0], kept[len(kept) // 2], kept[-1]
    older, newer = _per_s(first, middle), _per_s(middle, last)
    if newer < older:
        # Each half of the time adds newer ÷ older of what the last one did.
        to_come = newer * newer / (older - newer) * (last.taken_ns - middle.taken_ns) / 1e9
        if to_come < limit - last.used:
            return None
    return newer


def _per_s(then: _Sample, now: _Sample) -> float:
    return (now.used - then.used) / (now.taken_ns - then.taken_ns) * 1e9
