# SPDX-License-Identifier: Apache-2.0
"""What the screens of bandwidth, CPU cost and latency have in common: tables, options, filters, small terminals."""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from nettop.snapshots import bandwidth, cpu, drops, latency
from nettop.snapshots.bandwidth import LOOPBACK
from nettop.snapshots.latency import SAMPLING, STAGE_TABLE
from nettop.snapshots.schema import Lens
from tests.builders import example_bandwidth, example_cpu, example_drops, example_latency
from tests.builders.driving import Running, press, running, shown, text_of

STEPS = {
    "bandwidth": example_bandwidth.example_steps,
    "cpu": example_cpu.example_steps,
    "latency": example_latency.example_steps,
}


def on_lens(lens: Lens, size: tuple[int, int] = (120, 40)) -> AbstractAsyncContextManager[Running]:
    """Run the app over three readings of a lens's example."""
    steps, silent = [*STEPS[lens.id]()], STAGE_TABLE.uses
    return running(steps, size, view=lens.id, ticks=3, silent=silent, lens_set=(lens,))


def pane(run: Running) -> Any:
    """Return what the screen of bandwidth or latency shows below its rows."""
    screen = shown(run)
    return getattr(screen, "pane", None) or getattr(screen, "below", None)


@pytest.mark.parametrize(
    ("lens", "headline"),
    [
        (bandwidth.LENS, " uplinks ↓ "),
        (latency.LENS, " wire-app p50 50.2 µs p99 639 µs   socket-wait p99 "),
        (cpu.LENS, " network 15.8% of 4 CPUs"),
    ],
    ids=lambda value: value.id if isinstance(value, Lens) else "",
)
async def test_p_goes_through_the_tables(lens: Lens, headline: str) -> None:
    """`p` shows each table under the lens's headline, without numbers of rows, then the first screen again."""
    async with on_lens(lens, (250, 40)) as run:
        first = shown(run)
        for table in (*lens.tables[1:], lens.main):
            await press(run, "p")
            assert shown(run).table is table
            assert shown(run).headline_bar.text.startswith(headline)
            if table is not lens.main:
                assert not {"ID", "ID/s", "OF/s"} & set(text_of(shown(run).rows)[0].split())
        assert shown(run) is first


@pytest.mark.parametrize(
    ("lens", "key", "option", "values"),
    [(bandwidth.LENS, "L", LOOPBACK, ("on", "off")), (latency.LENS, "N", SAMPLING, (1, 16))],
    ids=["loopback", "sampling"],
)
async def test_a_key_goes_through_the_values_of_an_option(
    lens: Lens, key: str, option: Any, values: tuple[Any, ...]
) -> None:
    """Each value is given to the source, which is read at once."""
    async with on_lens(lens) as run:
        for value in values:
            _ = run[2].refresh_was_requested
            await press(run, key)
            assert run[2].refresh_was_requested
            assert run[2].script.options[option] == value


@pytest.mark.parametrize(
    ("lens", "first", "size", "has_pane"),
    [
        *((bandwidth.LENS, " eth0 ", size, False) for size in ((40, 10), (80, 18))),
        *((bandwidth.LENS, " eth0 ", size, True) for size in ((60, 20), (80, 24))),
        *((latency.LENS, " wire-ip ", size, False) for size in ((40, 10), (80, 19))),
        *((latency.LENS, " wire-ip ", size, True) for size in ((60, 20), (80, 24), (80, 40))),
    ],
    ids=lambda value: value.id if isinstance(value, Lens) else str(value),
)
async def test_small_terminals(lens: Lens, first: str, size: tuple[int, int], has_pane: bool) -> None:
    """The pane is hidden where the rows need its room; keys still work."""
    async with on_lens(lens, size) as run:
        screen = shown(run)
        assert pane(run).display is has_pane
        assert text_of(screen.rows)[1].startswith(first)
        keys = ("down", "right", "right", "down", "left", "left", "left", "end", "home")
        await press(run, *keys)
        assert (shown(run), screen.rows.at, pane(run).display) == (screen, 0, has_pane)


@pytest.mark.parametrize("lens", [bandwidth.LENS, latency.LENS], ids=lambda lens: lens.id)
async def test_no_row_passes_the_filter(lens: Lens) -> None:
    """A filter without matches leaves the totals and no pane."""
    async with on_lens(lens) as run:
        await press(run, "slash", *"nothing", "enter")
        assert not pane(run).display
        assert "─ total 0" in "".join(text_of(shown(run).rows))
        await press(run, "escape")
        assert pane(run).display


@pytest.mark.parametrize("width", [*range(80, 124, 4), 160])
async def test_counters_since_boot_stand_behind_their_label(width: int) -> None:
    """Where there is no room for the first counter, its label is left out too."""
    async with running(example_drops.example_steps(), (width, 24), view="drops", lens_set=(drops.LENS,)) as (
        _,
        screen,
        _,
    ):
        labels = re.findall(r"since boot:.{5}", screen.headline_bar.text)
        assert set(labels) <= {"since boot: list"}
        assert labels or width < 160
