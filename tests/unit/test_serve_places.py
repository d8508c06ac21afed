# SPDX-License-Identifier: Apache-2.0
"""Groups that have a series, on a simulated day in which groups come, burst, trickle, tie and go."""

from __future__ import annotations

import random
from collections import Counter, deque

import numpy as np
import pytest

from nettop.serve.metrics.places import CANDIDATES_MAX, UNSEEN_S, WINDOW_S, Key, SeriesPlaces

READING_S, SCRAPE_S, DAY_S = 5.0, 30.0, 24 * 3600.0
MORNING_S = 6 * 3600.0
"""Many times the window of 15 minutes, so that whoever burst has left it many times."""
MOST, SPARE = 6, 4
SIZE = MOST + SPARE
WANTED = MOST + SPARE // 2
"""Groups that get a place even if another must be evicted; the rest keep theirs until it is needed."""


def key(name: object) -> Key:
    """Return a group with one label."""
    return (str(name),)


def add(places: SeriesPlaces, counted: dict[str, float], now_s: float, present: bool = True) -> list[int]:
    """Add what groups counted. Returns the places that groups have left."""
    numbers = np.array([*counted.values()], float)
    names = [key(name) for name in counted]
    return places.update(names, numbers, np.full(len(names), present), now_s)[1]


def listed(places: SeriesPlaces) -> set[str]:
    """Return the groups that have a place."""
    return {name for (name,), _ in places}


def top() -> SeriesPlaces:
    """Return places of a set that lists the largest."""
    return SeriesPlaces(MOST, SPARE, prefers_present=False, drops_gone=False)


# --- a day ----------------------------------------------------------------------------------------------------


class Day:
    """The counts of 200 groups: some steady, some in bursts, some equal; and new ones all the time."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._trickles = {f"trickle{at}": 10.0 * at for at in range(12)}
        self._ties = [f"tie{at}" for at in range(8)]
        self._bursts: Counter[str] = Counter()
        self._new = 0

    def reading(self) -> dict[str, float]:
        """Return the next five seconds."""
        chance = self._chance
        counted = {name: trickle for name, trickle in self._trickles.items() if chance.random() < 0.5}
        counted |= dict.fromkeys(self._ties, 50.0)
        if chance.random() < 0.02:
            self._bursts[f"burst{chance.randrange(150)}"] = chance.randrange(1, 40)
        if chance.random() < 0.05:
            self._new += 1
            self._bursts[f"new{self._new}"] = chance.randrange(1, 5)
        for name in list(self._bursts):
            counted[name] = chance.choice((100.0, 1000.0, 5000.0))
            self._bursts[name] -= 1
            if not self._bursts[name]:
                del self._bursts[name]
        return counted


class Window:
    """The exact sums of 15 minutes."""

    def __init__(self) -> None:
        self._readings: deque[dict[str, float]] = deque()
        self._sums: Counter[str] = Counter()

    def new(self, counted: dict[str, float]) -> int:
        """Count the groups of a reading that have counted nothing for 15 minutes."""
        return sum(not self._sums[name] for name in counted)

    def add(self, counted: dict[str, float]) -> None:
        """Add a reading, and forget the one of 15 minutes ago."""
        self._readings.append(counted)
        self._sums.update(counted)
        if len(self._readings) > WINDOW_S / READING_S:
            self._sums.subtract(self._readings.popleft())

    def largest(self) -> set[str]:
        """Return the largest, without those that are as large as one which is not among them."""
        ranked = self._sums.most_common(MOST + 1)
        least = ranked[MOST][1] if len(ranked) > MOST else 0
        return {name for name, total in ranked if total > max(least, 0)}


@pytest.mark.parametrize(
    ("seed", "end_s"), [(0, MORNING_S), pytest.param(1, DAY_S, marks=pytest.mark.thorough)]
)
def test_a_day(seed: int, end_s: float) -> None:
    """The largest of any 15 minutes have a series within two scrapes; series end only for them."""
    day, window, places = Day(seed), Window(), top()
    largest: set[str] = set()
    missing: set[str] = set()
    ended = entered = 0
    for at_s in np.arange(0.0, end_s, READING_S):
        counted = day.reading()
        entered += window.new(counted)
        window.add(counted)
        ended += len(add(places, counted, at_s))
        entered += len(window.largest() - largest)
        largest = window.largest()
        if at_s % SCRAPE_S == 0:
            assert missing <= listed(places), f"after {at_s} s"
            missing = largest - listed(places)
            places.mark_listed()
        assert len(listed(places)) <= SIZE
    assert ended < entered


# --- who comes and who leaves ---------------------------------------------------------------------------------


def test_a_new_series_stays_until_it_was_seen() -> None:
    """A large new series stays until a scrape has seen it, or for a minute without scrapes."""
    for is_scraped in (True, False):
        places = top()
        largest = {f"a{at}": 2.0 for at in range(WANTED)}
        add(places, {f"c{at}": 1.0 for at in range(SIZE - WANTED)} | largest, 0.0)
        later = {f"b{at}": 3.0 for at in range(WANTED)}
        add(places, later, 1.0)
        assert largest.keys() <= listed(places)
        add(places, later, 2.0)
        assert largest.keys() <= listed(places)
        if is_scraped:
            places.mark_listed()
        add(places, later, 3.0 if is_scraped else UNSEEN_S)
        assert later.keys() <= listed(places)


def test_a_series_that_ended_returns_after_a_scrape_without_it() -> None:
    """A series that returns begins at 0 after a scrape without it, so that it does not look like a reset."""
    places = top()
    add(places, {f"a{at}": 1.0 for at in range(SIZE)}, 0.0)
    places.mark_listed()
    add(places, {f"b{at}": 2.0 for at in range(MOST)}, 1.0)
    (gone, *_) = {f"a{at}" for at in range(SIZE)} - listed(places)
    add(places, {gone: 1000.0}, 100.0)
    assert gone not in listed(places)
    places.mark_listed()
    add(places, {"a": 0.0}, 101.0)
    assert gone in listed(places)


def test_the_newest_of_a_thousand_is_listed() -> None:
    """List the present one of interfaces that come and go, and keep the places bounded."""
    places = SeriesPlaces(100, 0, prefers_present=True, drops_gone=True)
    for at in range(1_000):
        add(places, {"eth0": 5.0, f"veth{at}": 1000.0}, float(at))
        places.mark_listed()
        assert {"eth0", f"veth{at}"} <= listed(places)
    assert len(listed(places)) == 100
    for second in (1_000, 2_000):
        add(places, {"eth0": 5.0}, float(second))
    assert listed(places) == {"eth0"}


@pytest.mark.parametrize("at_once", [1, 25])
def test_short_lived_groups_make_few_series(at_once: int) -> None:
    """Thousands of successive groups of one size get a series only in places whose groups have left the window."""
    places = top()
    large = {f"large{at}": 1000.0 for at in range(MOST)}
    ever: set[str] = set()
    minutes = 35
    for second in range(0, minutes * 60, 5):
        new = {f"new{second}-{at}": 40.0 for at in range(at_once)}
        add(places, large | new, float(second))
        places.mark_listed()
        assert large.keys() <= listed(places)
        ever |= listed(places)
    windows = minutes * 60 / WINDOW_S
    assert len(ever - large.keys()) <= (SIZE - MOST) * (windows + 1)


def test_candidates_are_bounded() -> None:
    """Keep the largest of many candidates, and those with a place."""
    places = top()
    add(places, {f"a{at}": float(at + 2) for at in range(3 * CANDIDATES_MAX)}, 1.0)
    assert len(listed(places)) == SIZE
    add(places, {f"b{at}": 1.0 for at in range(CANDIDATES_MAX)}, 2.0)
    assert f"a{3 * CANDIDATES_MAX - 1}" in listed(places)
    places.mark_listed()
    add(places, {f"b{CANDIDATES_MAX - 1}": 1e6, f"a{3 * CANDIDATES_MAX - 1}": 1.0}, 3.0)
    assert {f"a{3 * CANDIDATES_MAX - 1}", f"b{CANDIDATES_MAX - 1}"} <= listed(places)


def test_as_many_candidates_as_places() -> None:
    """No group is evicted while places are free."""
    places = SeriesPlaces(10_000, 10_000, prefers_present=False, drops_gone=False)
    add(places, {f"a{at}": float(at + 1) for at in range(9_000)}, 0.0)
    assert len(listed(places)) == 9_000
