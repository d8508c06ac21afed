# SPDX-License-Identifier: Apache-2.0
"""The interval under --max-overhead against scripted costs: it keeps the bound, settles, and recovers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.engine.own_cost import OwnCost
from nettop.engine.pace import (
    AIM,
    CHEAP_IN_A_ROW,
    LONG_S,
    MAX_STRETCHED_S,
    STEP,
    OverheadLimit,
    Pace,
    percent,
)

HOUR_S = 3600.0
AGAIN = "everything as chosen again (interval 1.0 s), within --max-overhead 2%"


def pace_of(bound: float, interval_s: float = 1.0) -> Pace:
    """Return a pace with this bound, to be told the costs."""
    return Pace(interval_s, OwnCost(dict), bound)


@dataclass
class Machine:
    """nettop on a host, as a cost model: CPU seconds per reading, a constant share, and the hooks' share."""

    pace: Pace
    reading_s: float
    always: float = 0.0
    hooks: float = 0.0
    noise: tuple[float, ...] = (1.0,)
    now_s: float = 0.0
    changes: list[float] = field(default_factory=list)
    turns: int = 0

    @property
    def total(self) -> float:
        """Return the total share of one CPU, without noise."""
        return self.always + self.hooks + self.reading_s / self.pace.interval_s

    def turn(self) -> None:
        """Run one interval."""
        pace = self.pace
        before_s = pace.interval_s
        elapsed_s = max(1.0, math.ceil(1 / before_s) * before_s if before_s < 1 else before_s)
        noise = self.noise[self.turns % len(self.noise)]
        self.turns += 1
        self.now_s += elapsed_s
        pace.judge(elapsed_s, self.total * noise, self.hooks * noise)
        if pace.interval_s != before_s:
            self.changes.append(self.now_s)

    def run(self, seconds: float) -> float:
        """Let that much time pass; returns the share that was spent on average."""
        end, spent, began = self.now_s + seconds, 0.0, self.now_s
        while self.now_s < end:
            share, then = self.total, self.now_s
            self.turn()
            spent += share * (self.now_s - then)
        return spent / (self.now_s - began)


def test_nothing_is_done_below_the_bound() -> None:
    """A cost below the bound keeps the chosen interval."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.019)
    machine.run(HOUR_S)
    assert machine.pace.interval_s == 1.0
    assert str(machine.pace.limit) == ""
    assert not machine.changes


def test_dear_readings_lengthen_the_interval_as_far_as_it_takes() -> None:
    """At 150 ms a reading, two intervals suffice to find the one that keeps 2 %."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.15)
    machine.turn()
    assert machine.pace.interval_s == 1.0
    machine.turn()
    assert machine.pace.interval_s == pytest.approx(STEP**6)
    assert machine.total <= 0.02
    assert str(machine.pace.limit) == "interval 11.4 s for --max-overhead 2%"


def test_a_single_dear_interval_changes_nothing() -> None:
    """A single expensive interval, as from pressing Enter ten times, changes nothing."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.01, noise=(1.0, 1.0, 1.0, 9.0))
    machine.run(600)
    assert not machine.changes


def test_each_interval_is_judged_once() -> None:
    """After a longer interval a single expensive one changes nothing, as before it."""
    pace = pace_of(0.02, 1.0)
    for _ in range(2):
        pace.judge(1.0, 0.021, 0.0)
    stretched_s = pace.interval_s
    assert stretched_s > 1.0
    pace.judge(stretched_s, 0.021, 0.0)
    assert pace.interval_s == stretched_s
    pace.judge(stretched_s, 0.021, 0.0)
    assert pace.interval_s > stretched_s


def test_it_recovers_step_by_step() -> None:
    """When readings are cheap again the interval returns to the chosen one, a step at a time."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.15)
    machine.run(60)
    machine.reading_s = 0.001
    seen = [machine.pace.interval_s]
    while machine.pace.interval_s > 1.0:
        machine.turn()
        if machine.pace.interval_s != seen[-1]:
            seen.append(machine.pace.interval_s)
    assert all(before / after <= STEP + 1e-9 for before, after in pairwise(seen))
    assert machine.turns < 20 + CHEAP_IN_A_ROW * len(seen)
    assert machine.pace.limit.state == AGAIN


@pytest.mark.parametrize(("elapsed_s", "is_longer"), [(LONG_S - 0.001, False), (LONG_S, True)])
def test_a_long_dear_interval_counts_alone(elapsed_s: float, is_longer: bool) -> None:
    """A long expensive interval is enough for a decision."""
    pace = pace_of(0.02, 5.0)
    pace.judge(elapsed_s, 0.05, 0.0)
    assert (pace.interval_s > 5.0) is is_longer


def test_the_bound_itself_is_kept() -> None:
    """A cost that equals the bound is not above it."""
    pace = pace_of(0.02, 1.0)
    for _ in range(10):
        pace.judge(1.0, 0.02, 0.0)
    assert pace.interval_s == 1.0


@pytest.mark.parametrize(("fixed", "is_exceeded"), [(AIM * 0.02, True), (AIM * 0.02 - 1e-6, False)])
def test_it_is_exceeded_where_hooks_leave_no_room(fixed: float, is_exceeded: bool) -> None:
    """If hooks alone reach the target, no interval is long enough."""
    pace = pace_of(0.02, 1.0)
    for _ in range(2):
        pace.judge(1.0, 0.03, fixed)
    assert pace.limit.is_exceeded is is_exceeded


def test_it_steps_back_after_that_many_cheap_intervals() -> None:
    """It steps back after exactly that many cheap intervals, and each further step needs as many."""
    pace = pace_of(0.02, 1.0)
    for _ in range(2):
        pace.judge(1.0, 0.05, 0.0)
    stretched_s = pace.interval_s
    for _ in range(CHEAP_IN_A_ROW - 1):
        pace.judge(stretched_s, 0.001, 0.0)
    assert pace.interval_s == stretched_s
    pace.judge(stretched_s, 0.001, 0.0)
    assert pace.interval_s == pytest.approx(stretched_s / STEP)
    pace.judge(stretched_s, 0.001, 0.0)
    assert pace.interval_s == pytest.approx(stretched_s / STEP)


def test_the_longest_interval_is_the_last_resort() -> None:
    """At the longest interval a cost above the bound is exceeded, though hooks leave room."""
    pace = pace_of(0.02, MAX_STRETCHED_S)
    pace.judge(MAX_STRETCHED_S, 0.03, 0.0)
    assert str(pace.limit) == "--max-overhead 2% is exceeded"
    pace.judge(MAX_STRETCHED_S, 0.01, 0.0)
    assert str(pace.limit) == ""


def test_hooks_that_cost_more_than_the_bound() -> None:
    """A longer interval cannot lower the hooks' cost: it lowers the rest, and says that this is not enough."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.005, hooks=0.05)
    machine.run(10)
    assert machine.pace.limit.is_exceeded
    machine.hooks = 0.001
    machine.run(HOUR_S)
    assert machine.pace.interval_s == 1.0
    assert str(machine.pace.limit) == ""


def test_where_nothing_helps_it_says_so() -> None:
    """If nothing helps against a constant cost above the bound, it says so."""
    machine = Machine(pace_of(0.001, 1.0), reading_s=0.01, always=0.01)
    machine.run(HOUR_S)
    limit = machine.pace.limit
    assert machine.pace.interval_s == MAX_STRETCHED_S
    assert limit.is_exceeded
    assert str(limit) == "interval 60.0 s, and yet --max-overhead 0.1% is exceeded"


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (OverheadLimit(0.02, 1.0, 1.0), ""),
        (OverheadLimit(0.02, 2.0, 1.0), "interval 2.0 s for --max-overhead 2%"),
        (
            OverheadLimit(0.02, 2.0, 1.0, is_exceeded=True),
            "interval 2.0 s, and yet --max-overhead 2% is exceeded",
        ),
    ],
)
def test_the_text_says_what_is_done(limit: OverheadLimit, text: str) -> None:
    """The text names only settings that differ from the chosen ones."""
    assert str(limit) == text


def test_another_interval_holds_at_once() -> None:
    """The keys for the interval keep working."""
    pace = pace_of(0.02, 1.0)
    pace.set_interval(0.5)
    assert pace.interval_s == 0.5
    pace.set_interval(300.0)
    assert pace.interval_s == 300.0


def test_a_shorter_interval_waits_while_it_is_stretched() -> None:
    """A longer chosen interval applies at once; a shorter one is restored later."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.15)
    machine.run(10)
    long_s = machine.pace.interval_s
    machine.pace.set_interval(0.1)
    assert machine.pace.interval_s == long_s
    machine.pace.set_interval(100.0)
    assert machine.pace.interval_s == 100.0


def test_percentages_are_written_as_the_option_takes_them() -> None:
    """Percentages have the fewest necessary digits."""
    assert [percent(share) for share in (0.02, 0.005, 0.125, 1.0)] == ["2%", "0.5%", "12.5%", "100%"]


@given(
    bound=st.floats(0.005, 0.5),
    chosen_s=st.sampled_from([0.1, 0.5, 1.0, 5.0]),
    reading_s=st.floats(0.0, 1.0),
    always=st.floats(0.0, 0.25),
    hooks=st.floats(0.0, 0.25),
    noise=st.lists(st.floats(0.95, 1.05), min_size=1, max_size=7),
)
def test_it_keeps_still_and_keeps_the_bound(
    *,
    bound: float,
    chosen_s: float,
    reading_s: float,
    always: float,
    hooks: float,
    noise: list[float],
) -> None:
    """At a steady cost the bound is kept if possible, and changes become rare."""
    always *= bound  # half of it at most: what the interval cannot lower must leave room
    pace = pace_of(bound, chosen_s)
    machine = Machine(pace, reading_s, always, hooks * bound, tuple(noise))
    machine.run(HOUR_S)
    machine.changes.clear()
    average = machine.run(HOUR_S)
    if always + machine.hooks + reading_s / max(MAX_STRETCHED_S, chosen_s) <= 0.75 * bound:
        assert average <= 1.05 * bound
        assert str(machine.pace.limit).endswith("exceeded") is False
    assert len(machine.changes) <= 2


@given(
    bound=st.floats(0.005, 0.5),
    reading_s=st.floats(0.0, 1.0),
    hooks=st.floats(0.0, 0.2),
)
def test_it_recovers_from_a_storm(bound: float, reading_s: float, hooks: float) -> None:
    """However expensive a storm was, the chosen interval returns."""
    machine = Machine(pace_of(bound), reading_s=reading_s, hooks=hooks)
    machine.run(HOUR_S)
    machine.reading_s = machine.hooks = 0.0
    machine.run(2 * HOUR_S)
    assert machine.pace.interval_s == 1.0
    assert str(machine.pace.limit) == ""
