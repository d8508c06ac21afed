# SPDX-License-Identifier: Apache-2.0
"""The screens over the recording that comes with nettop, second by second, for tests and pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import open_recording
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.widgets.themes import DARK

from .harness import Harness

DEMO = Path(str(files("nettop") / "demo.nettop"))
RECORDED = tuple(lens for lens in lenses() if lens.id != "flows")
"""The lenses of the demo."""


class Playing:
    """The app while the demo plays from second `first` on. Time stands still but for `play_until`."""

    def __init__(
        self, app: NettopApp, pilot: Pilot[Any], harness: Harness, player: Player, first: int
    ) -> None:
        self.app = app
        self.pilot = pilot
        self.harness = harness
        self._player = player
        self._second = first - 1

    async def play_until(self, second: int) -> None:
        """Read each second up to this one."""
        for each in range(self._second + 1, second + 1):
            await self._read(each)

    async def press(self, *keys: str) -> None:
        """Press these keys, and read the same second again after each."""
        for key in keys:
            await self.pilot.press(key)
            await self.pilot.pause()
            await self._read(self._second)

    async def _read(self, second: int) -> None:
        self._second = second
        self._player.jump(self._player.recording.begin_ns + second * 1_000_000_000)
        self.harness.tick()
        await self.pilot.pause()


@asynccontextmanager
async def playing(
    size: tuple[int, int], view: str = "connections", theme: str = DARK.name, first: int = 0
) -> AsyncIterator[Playing]:
    """Yield the app with a view of the demo, of which the seconds before `first` are left out."""
    by_id = {lens.id: lens for lens in RECORDED}
    with open_recording(DEMO) as recording:
        player = Player(recording, lambda: 0.0)
        harness = Harness(lambda lens: RecordedSource(player, by_id[lens]))
        harness.session.is_local = False
        app = harness.app(Settings(view=ViewSettings(view=view)), theme, lens_set=RECORDED, player=player)
        async with app.run_test(size=size) as pilot:
            yield Playing(app, pilot, harness, player, first)
