# SPDX-License-Identifier: Apache-2.0
"""The governor of --max-overhead against scripted costs: it holds the bound, keeps still, and lets go again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.engine.governor import CALM, LONGEST_S, PATIENCE_S, STEP, Governor, Order, percent

HOUR_S = 3600.0


@dataclass
class Machine:
    """nettop on a host, as a cost model: seconds of CPU a reading, a share that is always there, and hooks' shares.

    `hooks` are what can be left out, the first one first.
    """

    governor: Governor
    reading_s: float
    always: float = 0.0
    hooks: tuple[float, ...] = ()
    noise: tuple[float, ...] = (1.0,)
    shed: int = 0
    now_s: float = 0.0
    changes: list[float] = field(default_factory=list)
    turns: int = 0

    @property
    def fixed(self) -> float:
        """The share of the hooks that are attached."""
        return sum(self.hooks[self.shed :])

    @property
    def total(self) -> float:
        """The share of one CPU that is spent, without noise."""
        return self.always + self.fixed + self.reading_s / self.governor.interval_s

    def turn(self) -> Order:
        """One interval."""
        governor, before = self.governor, self.governor.interval_s
        elapsed_s = max(1.0, math.ceil(1 / before) * before if before < 1 else before)
        noise = self.noise[self.turns % len(self.noise)]
        self.turns += 1
        self.now_s += elapsed_s
        order = governor.look(elapsed_s, self.total * noise, self.fixed * noise, has_shed=self.shed > 0)
        if order is Order.SHED:
            can = self.shed < len(self.hooks)
            self.shed += can
            governor.was_shed(done=can)
        elif order is Order.RESTORE:
            self.shed -= 1
            governor.was_restored(done=True)
        if governor.interval_s != before or (order is not Order.NOTHING and not governor._nothing_to_shed):
            self.changes.append(self.now_s)
        return order

    def run(self, seconds: float) -> float:
        """So much time; gives the share that was spent on average."""
        end, spent, began = self.now_s + seconds, 0.0, self.now_s
        while self.now_s < end:
            share, then = self.total, self.now_s
            self.turn()
            spent += share * (self.now_s - then)
        return spent / (self.now_s - began)


def test_nothing_is_done_below_the_bound() -> None:
    """What costs little enough goes on as it was asked for."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.019)
    machine.run(HOUR_S)
    assert machine.governor.interval_s == 1.0
    assert str(machine.governor.restraint()) == ""
    assert not machine.changes


def test_dear_readings_lengthen_the_interval_at_once_as_far_as_it_takes() -> None:
    """150 ms a reading: two intervals suffice to find the one that keeps 2 %."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.turn()
    assert machine.governor.interval_s == 1.0
    machine.turn()
    assert machine.governor.interval_s == pytest.approx(STEP**6)
    assert machine.total <= 0.02
    assert str(machine.governor.restraint()) == "interval 11.4 s for --max-overhead 2%"


def test_a_single_dear_interval_changes_nothing() -> None:
    """Somebody presses Enter ten times."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.01, noise=(1.0, 1.0, 1.0, 9.0))
    machine.run(600)
    assert not machine.changes


def test_it_lets_go_step_by_step() -> None:
    """When readings are cheap again the interval comes back to what was asked for, a step at a time."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.run(60)
    machine.reading_s = 0.001
    seen = [machine.governor.interval_s]
    while machine.governor.interval_s > 1.0:
        machine.turn()
        if machine.governor.interval_s != seen[-1]:
            seen.append(machine.governor.interval_s)
    assert all(before / after <= STEP + 1e-9 for before, after in pairwise(seen))
    assert machine.turns < 20 + CALM * len(seen)
    assert machine.governor.restraint().told == "interval 1.0 s again, within --max-overhead 2%"


def test_hooks_that_cost_more_than_the_bound_are_left_out_at_once() -> None:
    """The interval cannot lower what hooks cost: it stays."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.005, hooks=(0.05, 0.01))
    machine.run(10)
    assert machine.shed == 1
    assert machine.governor.interval_s == 1.0
    assert str(machine.governor.restraint(("owners",))) == "without owners for --max-overhead 2%"


def test_hooks_come_back_when_there_is_less_to_tell() -> None:
    """What was left out is attached again after a while, and stays where it is cheap now."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.005, hooks=(0.05,))
    machine.run(10)
    machine.hooks = (0.001,)
    machine.run(PATIENCE_S + 10)
    assert machine.shed == 0
    machine.changes.clear()
    machine.run(HOUR_S)
    assert not machine.changes


def test_it_tries_ever_more_rarely() -> None:
    """What a hook costs is known only while it is attached: trying it grows rare where it is dear each time."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.005, hooks=(0.05,))
    average = machine.run(4 * HOUR_S)
    assert average <= 0.02
    assert len(machine.changes) <= 2 * 10


def test_what_the_longest_interval_did_not_help_is_tried_briefly() -> None:
    """Too dear again: it is left out again, without all the steps to the longest interval."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.005, always=0.009, hooks=(0.012,))
    while not machine.shed:
        machine.turn()
    assert machine.governor.interval_s == LONGEST_S
    while machine.shed:
        machine.turn()
    interval_s = machine.governor.interval_s
    assert interval_s < 5.0
    for _ in range(3):
        machine.turn()
    assert machine.shed == 1
    assert machine.governor.interval_s == interval_s


def test_where_nothing_helps_it_says_so() -> None:
    """A bound below what is always spent."""
    machine = Machine(Governor(0.001, 1.0), reading_s=0.01, always=0.01)
    machine.run(HOUR_S)
    restraint = machine.governor.restraint()
    assert machine.governor.interval_s == LONGEST_S
    assert restraint.at_its_end
    assert str(restraint) == "interval 60.0 s, and yet --max-overhead 0.1% is not kept"


def test_another_interval_is_obeyed_when_nothing_is_restrained() -> None:
    """The keys for the interval go on working."""
    governor = Governor(0.02, 1.0)
    governor.ask(0.5)
    assert governor.interval_s == 0.5
    governor.ask(300.0)
    assert governor.interval_s == 300.0


def test_a_shorter_interval_is_not_obeyed_while_it_is_restrained() -> None:
    """Only a longer one is; the shorter one is remembered."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.run(10)
    long_s = machine.governor.interval_s
    machine.governor.ask(0.1)
    assert machine.governor.interval_s == long_s
    machine.governor.ask(100.0)
    assert machine.governor.interval_s == 100.0


def test_percentages_are_written_as_the_option_takes_them() -> None:
    """In as few digits as it takes."""
    assert [percent(share) for share in (0.02, 0.005, 0.125, 1.0)] == ["2%", "0.5%", "12.5%", "100%"]


shares = st.floats(0.0, 0.2)


@given(
    bound=st.floats(0.005, 0.5),
    asked_s=st.sampled_from([0.1, 0.5, 1.0, 5.0]),
    reading_s=st.floats(0.0, 1.0),
    always=st.floats(0.0, 0.5),
    hooks=st.lists(shares, max_size=3),
    noise=st.lists(st.floats(0.95, 1.05), min_size=1, max_size=7),
)
def test_it_keeps_still_and_holds_the_bound(
    *, bound: float, asked_s: float, reading_s: float, always: float, hooks: list[float], noise: list[float]
) -> None:
    """Whatever costs, as long as it costs about the same: the bound holds wherever it can, and changes grow rare."""
    always *= bound  # up to half of it: what the interval cannot lower must leave room
    machine = Machine(
        Governor(bound, asked_s), reading_s=reading_s, always=always, hooks=tuple(hooks), noise=tuple(noise)
    )
    machine.run(HOUR_S)
    machine.changes.clear()
    average = machine.run(HOUR_S)
    can_be_held = always + reading_s / max(LONGEST_S, asked_s) <= 0.75 * bound
    if can_be_held:
        assert average <= 1.05 * bound
    # A hook is tried now and then: each try takes some steps there and back.
    assert len(machine.changes) <= (24 if machine.hooks else 2)


@given(bound=st.floats(0.005, 0.5), reading_s=st.floats(0.0, 1.0), hooks=st.lists(shares, max_size=3))
def test_it_forgets_a_storm(bound: float, reading_s: float, hooks: list[float]) -> None:
    """However hard it was, in the end all is as it was asked for."""
    machine = Machine(Governor(bound, 1.0), reading_s=reading_s, hooks=tuple(hooks))
    machine.run(HOUR_S)
    machine.reading_s, machine.hooks = 0.0, (0.0,) * len(hooks)
    machine.run(4 * HOUR_S)
    assert machine.governor.interval_s == 1.0
    assert machine.shed == 0
    assert str(machine.governor.restraint()) == ""
