# SPDX-License-Identifier: Apache-2.0
"""The pace's cost measurement for --max-overhead, and its time range."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.engine import pace as pace_module
from nettop.engine.own_cost import DRAIN, CpuReading, OwnCost, Step
from nettop.engine.pace import AIM, CHEAP_IN_A_ROW, LONG_S, MAX_STRETCHED_S, STEP, Pace
from nettop.engine.session import Session
from nettop.settings import MAX_INTERVAL_S
from tests.unit.test_own_cost import Measured, Statistics

BOUND = 0.02


class Played(OwnCost):
    """Costs scripted by the test."""

    def __init__(self) -> None:
        self.at_ns = self.own_ns = self.by_programs_ns = 0
        super().__init__(dict, Statistics())

    def _read(self) -> CpuReading:
        return CpuReading(self.at_ns, self.own_ns, 0, self.by_programs_ns)


class Play:
    """A pace over scripted costs."""

    def __init__(self, bound: float | None = BOUND, interval_s: float = 1.0) -> None:
        self.cost = Played()
        self.pace = Pace(interval_s, self.cost, bound)
        self.pace.tick()

    def spend(self, seconds: float, own: float, programs: float = 0.0, drained: float = 0.0) -> None:
        """Let time pass with these shares of one CPU, of which `drained` is within `own`; then read."""
        self.use(seconds, own, programs, drained)
        self.pace.tick()

    def use(self, seconds: float, own: float, programs: float = 0.0, drained: float = 0.0) -> None:
        """Let this much time pass without a final reading."""
        self.cost.at_ns += round(seconds * 1e9)
        self.cost.own_ns += round(own * seconds * 1e9)
        self.cost.by_programs_ns += round(programs * seconds * 1e9)
        step = self.cost.steps._steps.setdefault(("connections", DRAIN), Step())
        step.time_ns += round(drained * seconds * 1e9)

    def turns(self, count: int, own: float, programs: float = 0.0, drained: float = 0.0) -> None:
        """Let `count` intervals pass."""
        for _ in range(count):
            self.spend(self.pace.interval_s, own, programs, drained)


def test_without_a_bound_nothing_is_done() -> None:
    """Without a bound nothing is done, whatever the cost."""
    play = Play(bound=None)
    play.turns(10, own=0.9)
    assert play.pace.interval_s == 1.0
    assert play.pace.limit is None
    play.turns(10, own=0.0, programs=0.9)
    assert play.pace.interval_s == 1.0


def test_costs_are_judged_over_a_second_or_nearly_an_interval() -> None:
    """Over less, one step would look like a storm: ten short intervals are one judgement, as is one long one."""
    play = Play(interval_s=0.1)
    for _ in range(19):
        play.spend(0.1, own=0.05)
    assert play.pace.interval_s == 0.1
    play.spend(0.1, own=0.05)
    assert play.pace.interval_s > 0.1
    play = Play(interval_s=4.0)
    for _ in range(6):
        play.spend(1.0, own=0.05)
    assert play.pace.interval_s == 4.0
    play.spend(2.0, own=0.05)
    assert play.pace.interval_s > 4.0


def test_the_cost_of_hooks_is_fixed() -> None:
    """Programs, and taking their events, cost the same at any interval: beyond the bound that is exceeded."""
    play = Play()
    play.turns(2, own=0.001, programs=0.03)
    assert str(play.pace.limit) == "interval 1.5 s, and yet --max-overhead 2% is exceeded"
    play = Play()
    play.turns(2, own=0.03, drained=0.02)
    assert str(play.pace.limit) == "interval 1.5 s, and yet --max-overhead 2% is exceeded"
    play = Play()
    play.turns(2, own=0.03, drained=0.001)
    assert str(play.pace.limit) == "interval 2.2 s for --max-overhead 2%"


def test_the_cost_of_attaching_does_not_slow_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of attaching is spent only once, so it is no reason to act."""
    play = Play()
    monkeypatch.setattr(pace_module, "monotonic_ns", lambda: play.cost.at_ns)
    play.pace.ignore_attaching()
    play.turns(3, own=0.9)
    assert play.pace.interval_s == 1.0
    play.turns(10, own=0.001)
    assert str(play.pace.limit) == ""


def test_statistics_are_on_for_the_bound_and_end_with_it() -> None:
    """Programs' time is part of the cost."""
    statistics = Statistics()
    with Session(
        MAX_INTERVAL_S, lambda lens: Measured(), open_statistics=statistics, max_overhead=BOUND
    ) as session:
        while not statistics.descriptors:
            session.sample_now()
        assert session.overhead_limit is not None
    assert not statistics.are_on


# --- the interval against scripted costs ----------------------------------------------------------------------

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


DEAR, LEAST = (1.0, 0.05, 0.0), (1.0, 0.001, 0.0)
EXCEEDED = "and yet --max-overhead 2% is exceeded"
JUDGED: dict[str, tuple[float, list[tuple[float, float, float]], float, str]] = {
    "at the bound": (1.0, [(1.0, 0.02, 0.0)] * 10, 1.0, ""),
    "dear ones apart": (1.0, [DEAR, LEAST, DEAR], 1.0, ""),
    "a long one": (LONG_S, [(LONG_S, 0.021, 0.0)], LONG_S * STEP, "interval 7.5 s for --max-overhead 2%"),
    "not so long": (LONG_S, [(LONG_S - 0.001, 0.021, 0.0)], LONG_S, ""),
    "as far as it takes": (1.0, [(1.0, 0.15, 0.0)] * 2, STEP**6, "interval 11.4 s for --max-overhead 2%"),
    "judged once": (1.0, [*[(1.0, 0.021, 0.0)] * 2, DEAR], STEP, "interval 1.5 s for --max-overhead 2%"),
    "room beside hooks": (1.0, [(1.0, 0.021, 0.005)] * 2, STEP, "interval 1.5 s for --max-overhead 2%"),
    "no room": (1.0, [(1.0, 0.03, AIM * 0.02)] * 2, STEP, f"interval 1.5 s, {EXCEEDED}"),
    "the longest": (MAX_STRETCHED_S, [(60.0, 0.03, 0.0)], MAX_STRETCHED_S, "--max-overhead 2% is exceeded"),
    "cheap again": (MAX_STRETCHED_S, [(60.0, 0.03, 0.0), LEAST], MAX_STRETCHED_S, ""),
    "few cheap ones": (1.0, [*[DEAR] * 2, *[LEAST] * (CHEAP_IN_A_ROW - 1)], STEP**3,
                       "interval 3.4 s for --max-overhead 2%"),
    "a step back": (1.0, [*[DEAR] * 2, *[LEAST] * (CHEAP_IN_A_ROW + 1)], STEP**2,
                    "interval 2.2 s for --max-overhead 2%"),
}  # fmt: skip


@pytest.mark.parametrize("case", JUDGED)
def test_intervals_after_costs(case: str) -> None:
    """Lengthen the interval after two expensive ones, or a long one, as far as the cost of hooks leaves room; shorten
    it a step after some cheap ones; say if the bound is exceeded nevertheless."""
    chosen_s, costs, interval_s, text = JUDGED[case]
    pace = pace_of(0.02, chosen_s)
    for cost in costs:
        pace.judge(*cost)
    assert pace.interval_s == pytest.approx(interval_s)
    assert str(pace.limit) == text


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


def test_a_shorter_interval_waits_while_it_is_stretched() -> None:
    """A longer chosen interval applies at once; a shorter one is restored later."""
    machine = Machine(pace_of(0.02, 1.0), reading_s=0.15)
    machine.run(10)
    long_s = machine.pace.interval_s
    machine.pace.set_interval(0.1)
    assert machine.pace.interval_s == long_s
    machine.pace.set_interval(100.0)
    assert machine.pace.interval_s == 100.0


@given(
    bound=st.floats(0.005, 0.5),
    chosen_s=st.sampled_from([0.1, 0.5, 1.0, 5.0]),
    reading_s=st.floats(0.0, 1.0),
    always=st.floats(0.0, 0.25),
    hooks=st.floats(0.0, 0.25),
    noise=st.lists(st.floats(0.95, 1.05), min_size=1, max_size=7),
)
def test_it_keeps_still_and_keeps_the_bound(
    *, bound: float, chosen_s: float, reading_s: float, always: float, hooks: float, noise: list[float]
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
