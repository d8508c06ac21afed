# SPDX-License-Identifier: Apache-2.0
"""Limits that will be used up at the growth of the last minute, and loads that only look like it."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import pytest

from nettop.probes.findings.growth import Growth, Use

KEY = 1, "conntrack entries"
LIMIT, LEVELS_OFF_S = 100_000, 70.0
NEEDS_S = 90
"""Nine steps of ten seconds."""
SECONDS = range(400)


def forecasts(used: Callable[[float], float], seconds: range = SECONDS) -> dict[int, float]:
    """Return the seconds with a forecast, and the growth then, if the lens is read once a second."""
    growth = Growth()
    read = {
        second: growth.add({KEY: Use(int(used(second)), LIMIT, LEVELS_OFF_S)}, second * 10**9).get(KEY)
        for second in seconds
    }
    return {second: per_s for second, per_s in read.items() if per_s is not None}


def test_steady_growth_has_a_forecast_from_the_first_window_on() -> None:
    """It is there in every reading, and exact."""
    assert forecasts(lambda second: 50_000 + 125 * second) == dict.fromkeys(SECONDS[NEEDS_S:], 125.0)


def test_a_faster_growth_counts_as_it_is_now() -> None:
    """Growth that doubles is that of the last half minute or so."""
    grown = forecasts(lambda second: 100 * second if second < 100 else 10_000 + 200 * (second - 100))
    assert (grown[99], grown[160]) == (100.0, 200.0)


@pytest.mark.parametrize(
    "used",
    [
        lambda second: 60_000,
        lambda second: 90_000 - 100 * second,
        # Connections that are kept for a minute after they have ended.
        lambda second: 1000 * min(second, 60),
        lambda second: 1000 * min(max(second - 137, 0), 66),
        # Entries that end at random times.
        *(lambda second, tau=tau: 95_000 * (1 - exp(-second / tau)) for tau in (10, 30, 60, 120)),
        # Bursts.
        lambda second: 40_000 + 3000 * (second // 30),
        lambda second: 40_000 + 10_000 * (second % 60) / 60,
    ],
    ids=["flat", "shrinks", "a minute", "later", "10 s", "30 s", "60 s", "120 s", "bursts", "waves"],
)  # fmt: skip
def test_a_load_that_levels_off_has_none(used: Callable[[float], float]) -> None:
    """Not in a single reading."""
    assert forecasts(used) == {}


def test_a_growth_that_slows_down_but_lasts_has_a_forecast() -> None:
    """It would level off above the limit."""
    grown = forecasts(lambda second: 1_000_000 * (1 - exp(-second / 2000)), range(150))
    assert set(grown) == set(range(NEEDS_S, 150))


def test_growth_that_ends_has_no_forecast_a_step_later() -> None:
    """And again one only after a whole window."""
    grown = forecasts(lambda second: 100 * min(second, 120) + 100 * max(0, second - 200))
    assert set(grown) == {*range(NEEDS_S, 130), *range(200 + NEEDS_S, 400)}


def test_a_use_that_was_not_read_starts_over() -> None:
    """The busiest destination may change, and a namespace may go."""
    growth = Growth()
    uses = [{KEY: Use(100 * second, LIMIT, LEVELS_OFF_S)} if second != 95 else {} for second in range(200)]
    grown = [second for second, use in enumerate(uses) if growth.add(use, second * 10**9)]
    assert grown == [*range(NEEDS_S, 95), *range(96 + NEEDS_S, 200)]


def test_readings_further_apart_need_as_many_steps() -> None:
    """With a reading a minute, nine minutes."""
    grown = forecasts(lambda second: 50 * second, range(0, 900, 60))
    assert grown == dict.fromkeys(range(540, 900, 60), 50.0)
