# SPDX-License-Identifier: Apache-2.0
"""The governor of --max-overhead against scripted costs: it keeps the bound, settles, and recovers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.engine.governor import (
    AIM,
    CHEAP_IN_A_ROW,
    LARGEST_THINNING,
    LONG_S,
    MAX_STRETCHED_S,
    STEP,
    Governor,
    OverheadLimit,
    percent,
)

HOUR_S = 3600.0
AGAIN = "everything as chosen again (interval 1.0 s), within --max-overhead 2%"


def thinning_governor(bound: float = 0.02, interval_s: float = 1.0) -> Governor:
    """Return a governor of sources of which one can follow fewer packets."""
    governor = Governor(bound, interval_s)
    governor.allow_thinning(True)
    return governor


@dataclass
class Machine:
    """nettop on a host, as a cost model: CPU seconds per reading, a constant share, and the hooks' share.

    `sampled` belongs to hooks too, until packets are thinned.
    """

    governor: Governor
    reading_s: float
    always: float = 0.0
    hooks: float = 0.0
    sampled: float = 0.0
    noise: tuple[float, ...] = (1.0,)
    now_s: float = 0.0
    changes: list[float] = field(default_factory=list)
    turns: int = 0

    @property
    def fixed(self) -> float:
        """The hooks' share of one CPU, without noise."""
        return self.hooks + self.sampled / self.governor.thinning

    @property
    def total(self) -> float:
        """Return the total share of one CPU, without noise."""
        return self.always + self.fixed + self.reading_s / self.governor.interval_s

    def turn(self) -> None:
        """Run one interval."""
        governor = self.governor
        before_s, thinning = governor.interval_s, governor.thinning
        elapsed_s = max(1.0, math.ceil(1 / before_s) * before_s if before_s < 1 else before_s)
        noise = self.noise[self.turns % len(self.noise)]
        self.turns += 1
        self.now_s += elapsed_s
        governor.judge(elapsed_s, self.total * noise, self.fixed * noise)
        if (governor.interval_s, governor.thinning) != (before_s, thinning):
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
    machine = Machine(Governor(0.02, 1.0), reading_s=0.019)
    machine.run(HOUR_S)
    assert machine.governor.interval_s == 1.0
    assert str(machine.governor.limit()) == ""
    assert not machine.changes


def test_dear_readings_lengthen_the_interval_as_far_as_it_takes() -> None:
    """At 150 ms a reading, two intervals suffice to find the one that keeps 2 %."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.turn()
    assert machine.governor.interval_s == 1.0
    machine.turn()
    assert machine.governor.interval_s == pytest.approx(STEP**6)
    assert machine.total <= 0.02
    assert str(machine.governor.limit()) == "interval 11.4 s for --max-overhead 2%"


def test_a_single_dear_interval_changes_nothing() -> None:
    """A single expensive interval, as from pressing Enter ten times, changes nothing."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.01, noise=(1.0, 1.0, 1.0, 9.0))
    machine.run(600)
    assert not machine.changes


def test_what_the_interval_before_cost_is_judged_once() -> None:
    """After a longer interval a single expensive one changes nothing, as before it."""
    governor = Governor(0.02, 1.0)
    for _ in range(2):
        governor.judge(1.0, 0.021, 0.0)
    stretched_s = governor.interval_s
    assert stretched_s > 1.0
    governor.judge(stretched_s, 0.021, 0.0)
    assert governor.interval_s == stretched_s
    governor.judge(stretched_s, 0.021, 0.0)
    assert governor.interval_s > stretched_s


def test_it_recovers_step_by_step() -> None:
    """When readings are cheap again the interval returns to the chosen one, a step at a time."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.run(60)
    machine.reading_s = 0.001
    seen = [machine.governor.interval_s]
    while machine.governor.interval_s > 1.0:
        machine.turn()
        if machine.governor.interval_s != seen[-1]:
            seen.append(machine.governor.interval_s)
    assert all(before / after <= STEP + 1e-9 for before, after in pairwise(seen))
    assert machine.turns < 20 + CHEAP_IN_A_ROW * len(seen)
    assert machine.governor.limit().state == AGAIN


@pytest.mark.parametrize(("elapsed_s", "is_longer"), [(LONG_S - 0.001, False), (LONG_S, True)])
def test_a_long_dear_interval_counts_alone(elapsed_s: float, is_longer: bool) -> None:
    """A long expensive interval is enough for a decision."""
    governor = Governor(0.02, 5.0)
    governor.judge(elapsed_s, 0.05, 0.0)
    assert (governor.interval_s > 5.0) is is_longer


def test_the_bound_itself_is_kept() -> None:
    """A cost that equals the bound is not above it."""
    governor = Governor(0.02, 1.0)
    for _ in range(10):
        governor.judge(1.0, 0.02, 0.0)
    assert governor.interval_s == 1.0


@pytest.mark.parametrize(("fixed", "is_exceeded"), [(AIM * 0.02, True), (AIM * 0.02 - 1e-6, False)])
def test_it_is_exceeded_where_hooks_leave_no_room(fixed: float, is_exceeded: bool) -> None:
    """If hooks alone reach the target, no interval is long enough."""
    governor = Governor(0.02, 1.0)
    for _ in range(2):
        governor.judge(1.0, 0.03, fixed)
    assert governor.limit().is_exceeded is is_exceeded


def test_it_steps_back_after_that_many_cheap_intervals() -> None:
    """It steps back after exactly that many cheap intervals, and each further step needs as many."""
    governor = Governor(0.02, 1.0)
    for _ in range(2):
        governor.judge(1.0, 0.05, 0.0)
    stretched_s = governor.interval_s
    for _ in range(CHEAP_IN_A_ROW - 1):
        governor.judge(stretched_s, 0.001, 0.0)
    assert governor.interval_s == stretched_s
    governor.judge(stretched_s, 0.001, 0.0)
    assert governor.interval_s == pytest.approx(stretched_s / STEP)
    governor.judge(stretched_s, 0.001, 0.0)
    assert governor.interval_s == pytest.approx(stretched_s / STEP)


def test_the_longest_interval_is_the_last_resort() -> None:
    """At the longest interval a cost above the bound is exceeded, though hooks leave room."""
    governor = Governor(0.02, MAX_STRETCHED_S)
    governor.judge(MAX_STRETCHED_S, 0.03, 0.0)
    assert str(governor.limit()) == "--max-overhead 2% is exceeded"
    governor.judge(MAX_STRETCHED_S, 0.01, 0.0)
    assert str(governor.limit()) == ""


def test_hooks_that_cost_more_than_the_bound() -> None:
    """A longer interval cannot lower the hooks' cost: it lowers the rest, and says that this is not enough."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.005, hooks=0.05)
    machine.run(10)
    assert machine.governor.limit().is_exceeded
    machine.hooks = 0.001
    machine.run(HOUR_S)
    assert machine.governor.interval_s == 1.0
    assert str(machine.governor.limit()) == ""


def test_where_nothing_helps_it_says_so() -> None:
    """If nothing helps against a constant cost above the bound, it says so."""
    machine = Machine(Governor(0.001, 1.0), reading_s=0.01, always=0.01)
    machine.run(HOUR_S)
    limit = machine.governor.limit()
    assert machine.governor.interval_s == MAX_STRETCHED_S
    assert limit.is_exceeded
    assert str(limit) == "interval 60.0 s, and yet --max-overhead 0.1% is exceeded"


def test_dear_hooks_have_fewer_packets_followed() -> None:
    """Hooks that cost eight times the bound have their packets thinned, at the chosen interval."""
    machine = Machine(thinning_governor(), reading_s=0.001, sampled=0.16)
    seen = [1]
    for _ in range(20):
        machine.turn()
        assert not machine.governor.limit().is_exceeded
        if machine.governor.thinning != seen[-1]:
            seen.append(machine.governor.thinning)
    assert seen == [1, 2, 4, 8, 16]
    assert machine.total <= 0.02
    assert machine.governor.interval_s == 1.0
    limit = machine.governor.limit()
    assert str(limit) == limit.state == "following 1/16 as many packets for --max-overhead 2%"


def test_dear_readings_have_no_fewer_packets_followed() -> None:
    """Expensive readings are met by a longer interval, not by thinning."""
    machine = Machine(thinning_governor(), reading_s=0.15, sampled=0.012)
    machine.run(HOUR_S)
    assert machine.governor.thinning == 1
    assert machine.governor.interval_s > 1.0
    assert machine.total <= 0.02


def test_what_thinning_cannot_help_leaves_it_alone() -> None:
    """Thinning stops if costs other than hooks exceed the bound at the longest interval."""
    machine = Machine(thinning_governor(), reading_s=0.001, always=0.03, sampled=0.001)
    machine.run(HOUR_S)
    assert machine.governor.thinning == 1
    assert str(machine.governor.limit()) == "interval 60.0 s, and yet --max-overhead 2% is exceeded"


def test_at_the_longest_interval_hooks_are_the_rest() -> None:
    """A bound that neither half exceeds alone is kept by following fewer packets."""
    machine = Machine(thinning_governor(), reading_s=0.001, always=0.015, sampled=0.01)
    machine.run(HOUR_S)
    assert (
        str(machine.governor.limit())
        == "interval 60.0 s, following 1/4 as many packets for --max-overhead 2%"
    )
    assert machine.total <= 0.02


def test_without_a_source_that_samples_nothing_is_thinned() -> None:
    """Without a sampling source nothing is thinned or reported as thinned."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.001, hooks=0.16)
    machine.run(HOUR_S)
    assert machine.governor.thinning == 1
    assert str(machine.governor.limit()) == "interval 60.0 s, and yet --max-overhead 2% is exceeded"


def test_the_bound_is_exceeded_only_once_nothing_is_left_to_thin() -> None:
    """Once nothing is left to thin, other sources' hooks lengthen the interval, as without thinning."""
    machine = Machine(thinning_governor(), reading_s=0.001, hooks=0.03)
    while machine.governor.thinning < LARGEST_THINNING:
        machine.turn()
        assert not machine.governor.limit().is_exceeded
    assert machine.governor.interval_s == 1.0
    machine.run(HOUR_S)
    text = "interval 60.0 s, following 1/1024 as many packets, and yet --max-overhead 2% is exceeded"
    assert str(machine.governor.limit()) == text


def test_packets_are_followed_again_step_by_step() -> None:
    """Each step back needs as many cheap intervals, and the last leads to the chosen sampling."""
    governor = thinning_governor()
    for _ in range(3 * 2):
        governor.judge(1.0, 0.05, 0.05)
    seen = []
    for _ in range(3 * CHEAP_IN_A_ROW):
        seen.append(governor.thinning)
        governor.judge(1.0, 0.001, 0.001)
    assert seen == [thinning for thinning in (8, 4, 2) for _ in range(CHEAP_IN_A_ROW)]
    assert governor.thinning == 1
    assert governor.limit().state == AGAIN


@pytest.mark.parametrize(("fixed", "thinning"), [(AIM * 0.01, 1), (AIM * 0.01 + 1e-6, 2)])
def test_twice_as_many_packets_have_to_fit(fixed: float, thinning: int) -> None:
    """Thinning is only relaxed up to half the target, as hooks may then cost twice as much."""
    governor = thinning_governor()
    for _ in range(2):
        governor.judge(1.0, 0.05, 0.05)
    for _ in range(CHEAP_IN_A_ROW):
        governor.judge(1.0, fixed, fixed)
    assert governor.thinning == thinning


def test_the_interval_comes_back_first() -> None:
    """While a shorter interval fits, it comes before following more packets."""
    machine = Machine(thinning_governor(), reading_s=0.15, sampled=0.16)
    machine.run(60)
    assert machine.governor.interval_s > 1.0
    assert machine.governor.thinning > 1
    machine.reading_s, machine.sampled, before = 0.001, 0.0, machine.governor.thinning
    while machine.governor.interval_s > 1.0:
        assert machine.governor.thinning == before
        machine.turn()
    machine.run(HOUR_S)
    assert machine.governor.limit().state == AGAIN


def test_packets_are_followed_again_where_the_interval_stays_long() -> None:
    """A host with permanently expensive readings also stops thinning after a storm."""
    machine = Machine(thinning_governor(), reading_s=0.15, sampled=0.16)
    machine.run(60)
    machine.sampled = 0.0
    machine.run(HOUR_S)
    assert machine.governor.thinning == 1
    assert machine.governor.interval_s > 1.0


def test_thinning_ends_with_the_last_source_that_samples() -> None:
    """Thinning ends with the last sampling source, and the next one begins as chosen."""
    governor = thinning_governor()
    for _ in range(2):
        governor.judge(1.0, 0.05, 0.05)
    assert governor.thinning == 2
    governor.allow_thinning(False)
    assert str(governor.limit()) == ""
    governor.allow_thinning(True)
    assert governor.thinning == 1


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (OverheadLimit(0.02, 1.0, 1.0), ""),
        (OverheadLimit(0.02, 2.0, 1.0), "interval 2.0 s for --max-overhead 2%"),
        (OverheadLimit(0.02, 1.0, 1.0, thinning=8), "following 1/8 as many packets for --max-overhead 2%"),
        (
            OverheadLimit(0.02, 2.0, 1.0, is_exceeded=True, thinning=8),
            "interval 2.0 s, following 1/8 as many packets, and yet --max-overhead 2% is exceeded",
        ),
    ],
)
def test_the_text_says_what_is_done(limit: OverheadLimit, text: str) -> None:
    """The text names only settings that differ from the chosen ones."""
    assert str(limit) == text


def test_another_interval_holds_at_once() -> None:
    """The keys for the interval keep working."""
    governor = Governor(0.02, 1.0)
    governor.set_interval(0.5)
    assert governor.interval_s == 0.5
    governor.set_interval(300.0)
    assert governor.interval_s == 300.0


def test_a_shorter_interval_waits_while_it_is_stretched() -> None:
    """A longer chosen interval applies at once; a shorter one is restored later."""
    machine = Machine(Governor(0.02, 1.0), reading_s=0.15)
    machine.run(10)
    long_s = machine.governor.interval_s
    machine.governor.set_interval(0.1)
    assert machine.governor.interval_s == long_s
    machine.governor.set_interval(100.0)
    assert machine.governor.interval_s == 100.0


def test_percentages_are_written_as_the_option_takes_them() -> None:
    """Percentages have the fewest necessary digits."""
    assert [percent(share) for share in (0.02, 0.005, 0.125, 1.0)] == ["2%", "0.5%", "12.5%", "100%"]


@given(
    bound=st.floats(0.005, 0.5),
    chosen_s=st.sampled_from([0.1, 0.5, 1.0, 5.0]),
    reading_s=st.floats(0.0, 1.0),
    always=st.floats(0.0, 0.25),
    hooks=st.floats(0.0, 0.25),
    sampled=st.floats(0.0, 50.0),
    noise=st.lists(st.floats(0.95, 1.05), min_size=1, max_size=7),
)
def test_it_keeps_still_and_keeps_the_bound(
    *,
    bound: float,
    chosen_s: float,
    reading_s: float,
    always: float,
    hooks: float,
    sampled: float,
    noise: list[float],
) -> None:
    """At a steady cost the bound is kept if possible, and changes become rare."""
    always *= bound  # half of it at most: what the interval cannot lower must leave room
    governor = thinning_governor(bound, chosen_s)
    machine = Machine(governor, reading_s, always, hooks * bound, sampled * bound, tuple(noise))
    machine.run(HOUR_S)
    machine.changes.clear()
    average = machine.run(HOUR_S)
    if (
        always
        + machine.hooks
        + machine.sampled / LARGEST_THINNING
        + reading_s / max(MAX_STRETCHED_S, chosen_s)
        <= 0.75 * bound
    ):
        assert average <= 1.05 * bound
        assert str(machine.governor.limit()).endswith("exceeded") is False
    assert len(machine.changes) <= 2


@given(
    bound=st.floats(0.005, 0.5),
    reading_s=st.floats(0.0, 1.0),
    hooks=st.floats(0.0, 0.2),
    sampled=st.floats(0.0, 2.0),
)
def test_it_recovers_from_a_storm(bound: float, reading_s: float, hooks: float, sampled: float) -> None:
    """However expensive a storm was, the chosen interval returns."""
    machine = Machine(thinning_governor(bound), reading_s=reading_s, hooks=hooks, sampled=sampled)
    machine.run(HOUR_S)
    machine.reading_s = machine.hooks = machine.sampled = 0.0
    machine.run(2 * HOUR_S)
    assert machine.governor.interval_s == 1.0
    assert str(machine.governor.limit()) == ""
