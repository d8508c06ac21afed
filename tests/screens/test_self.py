# SPDX-License-Identifier: Apache-2.0
"""The screen of nettop's own cost: how it opens and closes, and its first lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot

from nettop.engine.bus import Bus
from nettop.engine.own_cost import OwnCost, Reading
from nettop.engine.own_cost_table import Cost, OwnCostSource
from nettop.engine.pace import OverheadLimit, Pace
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.own_cost import COSTS, HOOK_PROGRAMS, SELF
from nettop.snapshots.snapshot import Snapshot
from tests.builders.harness import Harness, Script, busy_host
from tests.builders.pictures import NARROW, WIDE, player

COUNTED = HookStatus(HOOK_PROGRAMS.name, "BPF statistics")
REFUSED = HookStatus(
    HOOK_PROGRAMS.name, None, (("BPF statistics", "the kernel refuses: Operation not permitted"),)
)
MS = 1_000_000

COSTS_BEFORE = [
    Cost("total", "nettop", time_ns=1_900 * MS, memory=58_400_000, late=0, lost=37),
    Cost("thread", "main", time_ns=910 * MS, number=1),
    Cost("thread", "sampler", time_ns=310 * MS, number=2),
    Cost("thread", "namespaces", time_ns=4 * MS, number=3),
    Cost("children", "ended", time_ns=640 * MS),
    Cost("program", "tp_btf/inet_sock_set_state", "connections", 12_000, 4 * MS),
    Cost("program", "tp_btf/sock_send_length", "connections", 900_000, 71 * MS),
    Cost("iterator", "iter/task_file", "connections", 91_000, 55 * MS),
    Cost("maps", "kernel memory", "connections", memory=7_600_000),
    Cost("step", "read", "connections", 8, 31 * MS, 52 * MS, 9 * MS, lost=37),
    Cost("step", "draw", "connections", 16, 190 * MS, 240 * MS, 41 * MS),
]


def later(cost: Cost) -> Cost:
    """Return the same rows a second later, with running programs advanced."""
    if cost.time_ns is None or cost.kind == "children":
        return cost
    return replace_cost(
        cost, time_ns=round(cost.time_ns * 1.012), runs=None if cost.runs is None else cost.runs + 400
    )


def replace_cost(cost: Cost, **values: Any) -> Cost:
    """Return the cost with other values."""
    return cost._replace(**values)


class Clock(OwnCost):
    """A clock set by the test."""

    at_ns = 0

    def _read(self) -> Reading:
        return Reading(self.at_ns, 0, 0, 0)


def snapshots(hook: HookStatus = COUNTED, limit: OverheadLimit | None = None) -> list[Snapshot]:
    """Return two snapshots of the table, a second apart."""
    cost = Clock(dict)
    source = OwnCostSource(cost, Pace(1.0, cost), Bus())
    limits = [] if limit is None else [Cost("limit", "--max-overhead 2%", note=str(limit))]
    costs = [COSTS_BEFORE[0], *limits, *COSTS_BEFORE[1:]]
    if hook.mechanism is None:
        unknown = {"runs": None, "time_ns": None, "note": f"n/a: {hook.why}"}
        costs = [each._replace(**unknown) if each.kind in ("program", "iterator") else each for each in costs]
    made = []
    for second, rows in enumerate((costs, list(map(later, costs)))):
        Clock.at_ns = (1000 + second) * 1000 * MS
        cost.take()
        wall_ns = 1_795_000_000_123_456_789 + second * 1000 * MS
        made.append(
            Snapshot(SELF.id, wall_ns, Clock.at_ns, {COSTS.name: source._rows(rows)}, lost={"connections": 37},
                     hooks=(hook,))
        )  # fmt: skip
    return made


def harness_with(own: list[Snapshot]) -> Harness:
    """Return a harness whose connections and whose own cost follow scripts."""
    scripts = {"connections": Script(busy_host()), SELF.id: Script(list(own))}
    harness = Harness(scripts.__getitem__)
    harness.session._source = scripts.__getitem__  # type: ignore[method-assign]
    return harness


def stretch(harness: Harness, limit: OverheadLimit) -> None:
    """Have the session report a longer interval for --max-overhead."""
    pace = harness.session._pace
    pace.bound, pace.interval_s, pace._chosen_s = limit.bound, limit.interval_s, limit.chosen_s


Play = Callable[[Pilot[Any]], Awaitable[None]]
OPENED = ("o",)


def watching(harness: Harness, *keys: str) -> Play:
    """Show connections for two ticks, press these keys, and tick twice more."""

    async def play(pilot: Pilot[Any]) -> None:
        await player(harness, keys, 2)(pilot)
        await player(harness, (), 2)(pilot)

    return play


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=lambda s: f"{s[0]}x{s[1]}")
def test_screenshot(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    """The most expensive rows come first; one is chosen."""
    harness = harness_with(snapshots())
    assert snap_compare(harness.app(), terminal_size=size, run_before=watching(harness, "o", "down"))


async def test_the_key_opens_and_closes_it() -> None:
    """`o` opens the screen from a lens's table; `o` or ← goes back to that table."""
    harness = harness_with(snapshots())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await player(harness, ("p",), 2)(pilot)
        before = app.lens_screen.table.name
        for away in ("o", "left"):
            await player(harness, ("o",), 1)(pilot)
            assert app.lens_screen.lens is SELF
            await player(harness, (away,), 1)(pilot)
            await pilot.pause()
            assert (app.lens_screen.lens.id, app.lens_screen.table.name) == ("connections", before)


async def test_left_closes_the_details_first() -> None:
    """Keys work as everywhere."""
    harness = harness_with(snapshots())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await watching(harness, "o", "down", "right", "left")(pilot)
        assert app.lens_screen.lens is SELF
        assert not app.lens_screen.details_open


async def test_it_is_no_tab() -> None:
    """The first line has no tab for it, and Tab goes on to a lens."""
    other = replace(lenses()[0], id="other", title="Other", digit="2", order=2)
    harness = harness_with(snapshots())
    app = harness.app(lens_set=(lenses()[0], other))
    async with app.run_test(size=(120, 30)) as pilot:
        await watching(harness, "o")(pilot)
        assert "Overhead" not in app.lens_screen.first_line.text
        assert "1 Connections" in app.lens_screen.first_line.text
        harness.session._source = lambda lens: Script(busy_host())  # type: ignore[assignment,method-assign]
        await player(harness, ("tab",), 1)(pilot)
        assert app.lens_screen.lens.id == "other"


async def test_the_lens_before_stays_attached() -> None:
    """The cost shown is that of the lens in sight."""
    harness = harness_with(snapshots())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await watching(harness, "o")(pilot)
        attached, leases = harness.session._attached, harness.session._leases
        assert {lens: leases[lens] for lens in attached} == {"connections": 1, "self": 1}
        await player(harness, ("o",), 1)(pilot)
        assert {lens: leases[lens] for lens in attached} == {"connections": 1, "self": 0}


async def test_it_can_be_the_first_view() -> None:
    """With --view self the first lens is attached too, and `o` shows it."""
    harness = harness_with(snapshots())
    app = harness.app(Settings(view=ViewSettings(view="self")))
    async with app.run_test(size=(120, 30)) as pilot:
        await player(harness, (), 2)(pilot)
        assert app.lens_screen.lens is SELF
        await player(harness, ("o",), 2)(pilot)
        assert app.lens_screen.lens.id == "connections"


async def test_the_headline_has_the_answer() -> None:
    """The headline has the rows' cost, programs separately, memory, and losses."""
    harness = harness_with(snapshots())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await watching(harness, "o")(pilot)
        text = app.lens_screen.headline_bar.text
        assert "cost 2.28% of a CPU" in text
        assert "programs 0.09%" in text
        assert "memory 58.4 MB" in text
        assert "37 missed" in text


async def test_one_cost_on_one_screen() -> None:
    """The first line has the cost of the rows below, over their interval; elsewhere the recent cost."""
    harness = harness_with(snapshots())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        await watching(harness, "o")(pilot)
        assert "cost 2.3%" in app.lens_screen.first_line.text
        await player(harness, ("o",), 1)(pilot)
        assert "cost 0.9%" in app.lens_screen.first_line.text


async def test_the_footer_names_the_key_where_it_fits() -> None:
    """The cost is the first to be dropped for lack of room."""
    for width, is_there in ((190, True), (80, False)):
        harness = harness_with(snapshots())
        app = harness.app()
        async with app.run_test(size=(width, 30)) as pilot:
            await player(harness, (), 2)(pilot)
            assert ("o overhead" in app.lens_screen.footer.text) == is_there
