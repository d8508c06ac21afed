# SPDX-License-Identifier: Apache-2.0
"""The recording that comes with nettop: small, of every lens, and each lens's screen shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import pytest

from nettop.cli import run
from nettop.errors import ExitCode
from nettop.recording.findings import findings_between
from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import open_recording
from nettop.snapshots import lenses
from tests.screens.driving import Running, press, shown
from tests.screens.harness import Harness
from tests.unit.test_replay import Clock, no_probes

DEMO = Path(str(files("nettop") / "demo.nettop"))
RECORDED = [lens for lens in lenses() if lens.id != "flows"]
INCIDENTS = {"slow service", "retransmitting", "data unread", "SYN queue full", "DNS slow"}


@asynccontextmanager
async def demo(second: float) -> AsyncIterator[Running]:
    """Yield the app over the demo, at a moment of it."""
    clock = Clock()
    with open_recording(DEMO) as recording:
        player = Player(recording, clock, repeats=True)
        player.jump(recording.begin_ns + round(second * 1e9))
        by_id = {lens.id: lens for lens in lenses()}
        harness = Harness(lambda lens: RecordedSource(player, by_id[lens]))
        app = harness.app(player=player, lens_set=tuple(RECORDED))
        async with app.run_test(size=(120, 40)) as pilot:
            for _ in range(3):
                harness.tick()
                await pilot.pause()
            yield pilot, app.lens_screen, harness


def test_what_happens() -> None:
    """It has every incident, every lens, and fits into the package."""
    assert DEMO.stat().st_size <= 1 << 20
    with open_recording(DEMO) as recording:
        assert recording.lenses == {lens.id for lens in RECORDED}
        assert recording.damage == []
        found = {row["kind"] for row in findings_between(recording, recording.begin_ns, recording.end_ns)}
    assert found >= INCIDENTS


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
async def test_every_lens(lens: object) -> None:
    """Its screen has rows besides the total, above the line of time."""
    async with demo(60) as run:
        await press(run, lens.digit)  # type: ignore[attr-defined]
        run[2].tick()
        await run[0].pause()
        assert shown(run).lens is lens
        assert not shown(run).has_class("-notice")
        view = shown(run).view
        assert view is not None
        assert not (view.gone | view.rest)[view.order].all()
        assert "UTC" in shown(run).time_line.text  # type: ignore[union-attr]


def test_text(capfd: pytest.CaptureFixture[str]) -> None:
    """--demo works with text too."""
    assert run(["--demo", "--view", "services", "-d", "--once"], no_probes) == ExitCode.DONE
    assert "served" in capfd.readouterr().out
