# SPDX-License-Identifier: Apache-2.0
"""The screens over the recording that comes with nettop, second by second, for tests and pictures."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from textual.pilot import Pilot

from nettop.hosts.hosts import HostRecording
from nettop.hosts.source import HostsSource
from nettop.recording.player import Player, RecordedSource
from nettop.recording.reader import Reading, Readings
from nettop.recording.recording import Recording, open_recording
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import find_table, lenses, several_hosts
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.widgets.themes import DARK
from tests.builders.harness import Harness

DEMO = Path(str(files("nettop") / "demo.nettop"))
RECORDED = tuple(lens for lens in lenses() if lens.id != "collector")
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
        for missed in range(self._second + 1, second + 1):
            await self._read(missed)

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


# --- the demo as several hosts ------------------------------------------------------------------------------------

PROCESSES = {
    "web1": {"webapp", "frontend"},
    "db1": {"postgres", "pgbench"},
    "backup1": {"backupd", "storaged", "iperf3"},
}
"""The hosts, and the processes of the demo that each has."""


class DemoHosts:
    """The hosts at a second of the demo, as HostsSource reads them."""

    def __init__(self, recording: Recording, *lens_ids: str) -> None:
        self.second = 0
        self.lost_hosts: dict[str, HostRecording] = {}
        self.interval_s, self.clock = 1.0, time.monotonic
        self._begin_ns = recording.begin_ns
        self._readings = {lens: Readings(recording, find_table(lens)[0]) for lens in lens_ids}

    def use(self, lens: str, *, with_events: bool = False) -> None:
        """Do nothing: everything is recorded."""

    release = use

    def newest(self, lens: str) -> dict[str, Reading]:
        """Return the reading of each host."""
        reading = self._readings[lens].at(self._begin_ns + self.second * 1_000_000_000)
        assert reading is not None
        assert reading.before is not None
        return {
            host: replace(reading, now=_only(reading.now, names), before=_only(reading.before, names))
            for host, names in PROCESSES.items()
            if host not in self.lost_hosts
        }

    def lost(self, _lens: str) -> dict[str, HostRecording]:
        """Return the lost hosts."""
        return self.lost_hosts

    def failure(self, _lens: str) -> None:
        """Return None: every host is there."""

    def take_events(self, _lens: str) -> dict[str, list[Rows]]:
        """Return no events."""
        return {}


def _only(snapshot: Snapshot, processes: set[str]) -> Snapshot:
    """Return the rows of these processes, without what is counted for the whole host."""
    tables = {name: _rows_of(rows, processes) for name, rows in snapshot.tables.items()}
    return replace(snapshot, tables=tables, ended={}, counts={})


def _rows_of(rows: Rows, processes: set[str]) -> Rows:
    if "process" not in rows.texts:
        return rows
    codes = [code for code, text in enumerate(rows.texts["process"]) if text in processes]
    return replace(rows, array=rows.array[np.isin(rows.array["process"], codes)])


@asynccontextmanager
async def hosts_playing(
    size: tuple[int, int], seconds: Iterable[int], lost: str = ""
) -> AsyncIterator[NettopApp]:
    """Yield the app with the connections of the hosts, after these seconds of the demo; `lost` is lost then."""
    with open_recording(DEMO) as recording:
        hosts = DemoHosts(recording, "connections", "findings")
        with several_hosts():
            shown = {lens: find_table(lens)[0] for lens in ("connections", "findings")}
            harness = Harness(lambda lens: HostsSource(hosts, shown[lens]))  # type: ignore[arg-type]
            app = harness.app(lens_set=tuple(shown.values()), host=f"{len(PROCESSES)} hosts")
            async with app.run_test(size=size) as pilot:
                for hosts.second in seconds:
                    harness.tick()
                    await pilot.pause()
                if lost:
                    hosts.lost_hosts[lost] = HostRecording(lost, ("connections",), cause="off", lost_at=0.0)
                    hosts.second += 1
                    harness.tick()
                    await pilot.pause()
                yield app
