# SPDX-License-Identifier: Apache-2.0
"""The screen of nettop's own cost: how it opens and closes, and its first lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from nettop.engine.pace import OverheadLimit
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF
from tests.builders.driving import Running, screen_text, shown
from tests.builders.harness import Harness, Script, busy_host
from tests.builders.own_cost import REFUSED, harness_with, snapshots, stretch, watching
from tests.builders.pictures import NARROW, WIDE, player


@asynccontextmanager
async def costs(
    *keys: str, harness: Harness | None = None, width: int = 120, ticks: int = 2, **how: Any
) -> AsyncIterator[Running]:
    """Yield the app after some readings, these keys, and as many readings more."""
    harness = harness or harness_with(snapshots())
    app = harness.app(**how)
    async with app.run_test(size=(width, 30)) as pilot:
        await player(harness, keys, ticks)(pilot)
        await player(harness, (), ticks)(pilot)
        yield pilot, app.lens_screen, harness


async def press(run: Running, key: str, ticks: int = 1) -> None:
    """Let the sampler read, press a key, and wait for its effect."""
    await player(run[2], (key,), ticks)(run[0])
    await run[0].pause()


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=lambda s: f"{s[0]}x{s[1]}")
def test_screenshot(snap_compare: Callable[..., bool], size: tuple[int, int]) -> None:
    """The most expensive rows come first; one is chosen."""
    harness = harness_with(snapshots())
    assert snap_compare(harness.app(), terminal_size=size, run_before=watching(harness, "o", "down"))


async def test_the_key_opens_and_closes_it() -> None:
    """`o` opens the screen from a lens's table, which stays attached; `o` or ← goes back to it. The cost in the first
    line is that of the rows."""
    async with costs("p") as run:
        before = shown(run).table.name
        for away in ("o", "left"):
            await press(run, "o")
            assert shown(run).lens is SELF
            attached, leases = run[2].session._attached, run[2].session._leases
            assert {lens: leases[lens] for lens in attached} == {"connections": 1, "self": 1}
            await press(run, away)
            assert (shown(run).lens.id, shown(run).table.name) == ("connections", before)
            assert "cost 0.9%" in shown(run).first_line.text
            assert {lens: leases[lens] for lens in attached} == {"connections": 1, "self": 0}


async def test_it_is_no_tab() -> None:
    """The first line has no tab for it, and Tab goes on to a lens."""
    other = replace(lenses()[0], id="other", title="Other", digit="2", order=2)
    async with costs("o", lens_set=(lenses()[0], other)) as run:
        assert "Overhead" not in shown(run).first_line.text
        assert "1 Connections" in shown(run).first_line.text
        run[2].session._source = lambda lens: Script(busy_host())
        await press(run, "tab")
        assert shown(run).lens.id == "other"


async def test_it_can_be_the_first_view() -> None:
    """With --view self the first lens is attached too, and `o` shows it."""
    async with costs(settings=Settings(view=ViewSettings(view="self"))) as run:
        assert shown(run).lens is SELF
        await press(run, "o", 2)
        assert shown(run).lens.id == "connections"


@pytest.mark.parametrize(("width", "is_there"), [(190, True), (80, False)])
async def test_the_footer_names_the_key_where_it_fits(width: int, is_there: bool) -> None:
    """The footer names the key if there is room."""
    async with costs(width=width) as run:
        assert ("o overhead" in shown(run).footer.text) == is_there


async def test_a_longer_interval_is_reported() -> None:
    """The first line, the headline and a row report the interval that --max-overhead made longer."""
    limit = OverheadLimit(0.02, 3.375, 1.0)
    harness = harness_with(snapshots(limit=limit))
    stretch(harness, limit)
    async with costs("o", harness=harness, width=160) as run:
        words = " ".join(screen_text(run).split())
    assert "▲ ⟳ 3.4 s cost 2.3%" in words
    assert "memory 58.4 MB ▲ interval 3.4 s for --max-overhead 2% 37 missed" in words
    assert "limit --max-overhead 2% – – – – – interval 3.4 s for --max-overhead 2% – –" in words


async def test_programs_without_statistics_say_why() -> None:
    """Programs are n/a with the reason, and other rows are shown."""
    async with costs("o", harness=harness_with(snapshots(REFUSED)), width=160) as run:
        words = " ".join(screen_text(run).split())
    assert "programs n/a" in words
    assert (
        "iterator iter/task_file connections – – – – – n/a: the kernel refuses: Operation not… – –" in words
    )
    assert "step read connections 0.04% 400 127 µs 9.0 ms – 0 –" in words
