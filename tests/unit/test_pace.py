# SPDX-License-Identifier: Apache-2.0
"""The pace's cost measurement for --max-overhead, and its time range."""

from __future__ import annotations

import pytest

from nettop.engine import pace as pace_module
from nettop.engine.own_cost import DRAIN, CpuReading, OwnCost, Step
from nettop.engine.pace import Pace
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


def test_the_interval_grows_and_is_reported() -> None:
    """The longer interval is reported with the limit."""
    play = Play()
    play.turns(2, own=0.05)
    assert play.pace.interval_s > 1.0
    assert str(play.pace.limit) == "interval 3.4 s for --max-overhead 2%"


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
