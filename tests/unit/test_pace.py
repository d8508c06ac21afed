# SPDX-License-Identifier: Apache-2.0
"""What --max-overhead has done to the sources: the dearest leaves out something first, and gets it back."""

from __future__ import annotations

from typing import Any

import pytest

from nettop.engine import pace as pace_module
from nettop.engine.own_cost import OwnCost, Reading, Surroundings
from nettop.engine.pace import Pace
from nettop.engine.session import Session
from nettop.settings import MAX_INTERVAL_S
from tests.unit.test_own_cost import Measured, Statistics

BOUND = 0.02


class Played(OwnCost):
    """Costs as the test plays them: `spend` is what the next interval takes."""

    def __init__(self, around: Surroundings) -> None:
        self.at_ns = self.own_ns = self.by_programs_ns = 0
        super().__init__(around, Statistics())

    def _read(self) -> Reading:
        return Reading(self.at_ns, self.own_ns, 0, self.by_programs_ns)

    def spend(self, seconds: float, own: float, programs: dict[str, float]) -> None:
        """Let time go by, with these shares of one CPU."""
        self.at_ns += round(seconds * 1e9)
        self.own_ns += round(own * seconds * 1e9)
        for lens, share in programs.items():
            self.programs_ns_of[lens] += round(share * seconds * 1e9)
        self.by_programs_ns = sum(self.programs_ns_of.values())


class Play:
    """A pace over played costs."""

    def __init__(self, bound: float | None = BOUND, **sources: Measured) -> None:
        self.sources: dict[str, Any] = dict(sources)
        around = Surroundings(lambda: self.sources, lambda: 0, lambda lens: 0)
        self.cost = Played(around)
        self.pace = Pace(1.0, self.cost, around, bound)
        self.pace.start()
        self.pace.tick()

    def turns(self, count: int, own: float, **programs: float) -> None:
        """So many readings."""
        for _ in range(count):
            self.cost.spend(self.pace.interval_s, own, programs)
            self.pace.tick()


def test_without_a_bound_nothing_is_done() -> None:
    """However dear it is."""
    play = Play(bound=None)
    play.turns(10, own=0.9)
    assert play.pace.interval_s == 1.0
    assert play.pace.restraint is None
    assert not play.pace.rows()


def test_the_interval_grows_and_every_door_can_tell() -> None:
    """In the restraint, and as a row of the table."""
    play = Play()
    play.turns(2, own=0.05)
    assert play.pace.interval_s > 1.0
    [row] = play.pace.rows()
    assert row.name == "--max-overhead 2%"
    assert row.note == str(play.pace.restraint) == "interval 3.4 s for --max-overhead 2%"


def test_the_dearest_lens_leaves_something_out_first() -> None:
    """What it can do without first, as it says itself; then the next, and when nothing is left it says so."""
    cheap, dear = Measured(), Measured()
    cheap.may_be_left_out, dear.may_be_left_out = ["packets"], ["messages", "events"]
    play = Play(drops=cheap, connections=dear)
    play.turns(2, own=0.001, drops=0.03, connections=0.05)
    assert dear.left_out == ["messages"]
    play.turns(2, own=0.001, drops=0.03, connections=0.04)
    assert dear.left_out == ["messages", "events"]
    play.turns(2, own=0.001, drops=0.03)
    assert cheap.left_out == ["packets"]
    assert str(play.pace.restraint) == "without messages and events and packets for --max-overhead 2%"
    play.turns(40, own=0.001)
    assert not cheap.left_out
    play.turns(120, own=0.001)
    assert not dear.left_out
    assert str(play.pace.restraint) == ""


def test_a_lens_that_went_takes_along_what_it_left_out() -> None:
    """When it comes again it has everything."""
    dear = Measured()
    dear.may_be_left_out = ["events"]
    play = Play(connections=dear)
    play.turns(2, own=0.001, connections=0.05)
    assert str(play.pace.restraint) == "without events for --max-overhead 2%"
    play.sources = {"connections": Measured()}
    play.turns(1, own=0.001)
    assert str(play.pace.restraint) == ""


def test_what_attaching_costs_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is spent once."""
    play = Play()
    monkeypatch.setattr(pace_module.time, "monotonic_ns", lambda: play.cost.at_ns)
    play.pace.unsettle()
    play.turns(3, own=0.9)
    assert play.pace.interval_s == 1.0
    play.turns(10, own=0.001)
    assert str(play.pace.restraint) == ""


def test_statistics_are_on_for_the_bound_and_end_with_it() -> None:
    """Programs' time is part of the cost."""
    statistics = Statistics()
    with Session(
        MAX_INTERVAL_S, lambda lens: Measured(), open_statistics=statistics, max_overhead=BOUND
    ) as session:
        while not statistics.descriptors:
            session.sample_now()
        assert session.restraint is not None
    assert not statistics.are_on
