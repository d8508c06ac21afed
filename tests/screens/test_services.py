# SPDX-License-Identifier: Apache-2.0
"""The services screens by pilot: bars, the chosen service over time, what waits, and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import groupby

import numpy as np

from nettop.screens.lens import LensScreen
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.services import BUCKETS, CLIENTS, LENS, SERVICES, WAITING
from nettop.snapshots.snapshot import Snapshot
from tests.builders.driving import Running, press, running, shown, text_of, tick, values_of
from tests.builders.example_services import ORDERS, example_steps
from tests.unit.build import make_frame

# --- keys -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_services(
    steps: Sequence[Snapshot] = example_steps(90), view: str = "services", filters: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Running, LensScreen]]:
    """Yield the main table, over all steps of the example."""
    settings = Settings(view=ViewSettings(view=view, filters=filters))
    async with running([*steps], (120, 40), settings=settings, ticks=len(steps), lens_set=(LENS,)) as run:
        yield run, run[1]


async def test_arrows_open_what_waits() -> None:
    """→ opens only the selected service's requests, oldest first; ← goes back."""
    async with on_services(filters=("side=served",)) as (run, screen):
        assert "last 89 s, one column per refresh" in screen.pane.text
        assert len([line for line in text_of(screen.rows) if "▲" in line and "8000" in line]) == 1
        await press(run, "down")
        assert "→ waiting" in screen.footer.text
        await press(run, "right")
        opened = shown(run)
        assert opened.table is WAITING
        waited = values_of(opened, "waited")
        assert waited == sorted(waited, reverse=True)
        assert set(values_of(opened, "service")) == {ORDERS}
        assert set(values_of(opened, "was_read")) == {"yes", "no"}
        await press(run, "left")
        assert shown(run) is screen


async def test_arrows_open_clients_where_nothing_waits() -> None:
    """The chosen service's clients are shown; → there opens one client's requests."""
    async with on_services(filters=("process=nginx side=served",)) as (run, _):
        await press(run, "down")
        assert "→ clients" in run[1].footer.text
        await press(run, "right")
        opened = shown(run)
        assert opened.table is CLIENTS
        assert len(values_of(opened, "client")) == 3
        await press(run, "down", "right")
        assert shown(run).table is WAITING
        assert values_of(shown(run), "id") == []


RARE_MS = (1500, 2, 3, 2, 40)
"""The response times of a service that answers every third second."""


def rarely_answering(seconds: int) -> list[Snapshot]:
    """Return a snapshot of each second."""
    counts = np.zeros(BUCKETS.count, np.uint64)
    steps = []
    for second in range(seconds):
        if second % 3 == 1:
            counts[BUCKETS.places(np.array([RARE_MS[second // 3 % len(RARE_MS)] * 1e6]))] += 1
        row = {"process": "cron", "side": "served", "responses": int(counts.sum()), "response": counts.copy()}
        steps.append(make_frame([row], None, second, table=SERVICES, lens=LENS.id).now)
    return steps


async def test_rare_answers_count_for_ten_seconds() -> None:
    """With a response every third second, the longest of the last ten seconds is shown, and not nothing between
    responses; the pane says which time it shows."""
    steps = rarely_answering(40)
    async with running([*steps], (120, 40), ticks=2, lens_set=(LENS,), view="services") as run:
        is_slow = []
        for _ in range(36):
            (ns,) = values_of(run[1], "max")
            is_slow.append(ns > 1_000_000_000)
            await tick(run)
        spells = [(slow, len(list(seconds))) for slow, seconds in groupby(is_slow)]
        assert [slow for slow, _ in spells] == [True, False, True, False, True]
        assert all(10 <= seconds <= 13 for slow, seconds in spells[:-1] if slow)
        pane = [run[1].pane.render_line(y).text for y in range(3)]
        assert any(line.rstrip().endswith("first byte of its response; last 10 s") for line in pane)


async def test_a_frozen_time_is_no_recent_one() -> None:
    """After a freeze, answers from before it do not count as recent."""
    steps = rarely_answering(60)
    async with running([*steps], (120, 40), ticks=3, lens_set=(LENS,), view="services") as run:
        await press(run, "space")
        for _ in range(24):
            await tick(run)
        await press(run, "space")
        assert values_of(run[1], "max") == [None]
        assert run[1].recent is not None
        assert run[1].recent.boot_ns == steps[26].boot_ns
