# SPDX-License-Identifier: Apache-2.0
"""What was recorded looks as it did: every cell of every view, with its colours, but the lines that tell the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nettop.recording.chunks import Group
from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import open_recording
from nettop.recording.writer import RecordingWriter, Sink
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses, view_name
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.snapshot import Rows, Snapshot
from tests.builders import (
    example_bandwidth,
    example_cpu,
    example_drops,
    example_findings,
    example_flows,
    example_latency,
    example_services,
)
from tests.builders.example_events import eventful_host
from tests.builders.harness import Harness, Script

TICKS = 3
VIEWS = [view_name(lens, table) for lens in lenses() for table in lens.tables]

Cells = list[list[tuple[str, str]]]


def sources() -> dict[str, Script]:
    """Return a source for each lens."""
    steps, batches = eventful_host()
    return {
        "connections": Script(steps, {}, batches),
        "cpu": Script(example_cpu.example_steps(), {}),
        "bandwidth": Script(example_bandwidth.example_steps(), {}),
        "latency": Script(example_latency.example_steps(), {}),
        "services": Script(example_services.example_steps(), {}),
        "drops": Script(example_drops.example_steps(), {}),
        "collector": Script(example_flows.example_steps(), {}),
        FINDINGS.id: Script(example_findings.own_steps(TICKS), {}),
    }


@dataclass
class Taken:
    """What a session published, in the order in which `nettop record` writes it, and when each of its turns ended."""

    harness: Harness
    written: list[Snapshot | tuple[str, Rows]] = field(default_factory=list)
    moments: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        bus = self.harness.session.bus
        self._feeds = {
            (lens.id, table.name): bus.feed(lens.id, table.name, lambda: None)
            for lens in lenses()
            for table in lens.tables
            if table.append
        }

    def tick(self) -> None:
        """Let the session read, and keep what is new."""
        self.harness.tick()
        known = [record for record in self.written if isinstance(record, Snapshot)]
        for lens in lenses():
            for (name, _), feed in self._feeds.items():
                self.written += [(name, batch) for batch in feed.take() if name == lens.id]
            frame = self.harness.session.bus.frame(lens.id)
            if frame is not None and not any(frame.now is candidate for candidate in known):
                self.written.append(frame.now)
        self.moments.append(max(record.wall_ns for record in self.written if isinstance(record, Snapshot)))

    def write(self, path: Path) -> None:
        """Write the recording."""
        with path.open("wb") as file:
            group = Group(tuple(lens.id for lens in lenses()), 1.0, "0", {"name": "web-03"})
            writer = RecordingWriter(Sink(file.write), group)
            for record in self.written:
                if isinstance(record, Snapshot):
                    writer.write(record)
                else:
                    writer.write_events(*record, self.moments[0])


async def draw(
    harness: Harness, view: str, tick: Callable[[], object], player: Player | None = None
) -> tuple[Cells, Cells]:
    """Return the cells of a view after some readings, without and with the details of its first row."""
    app = harness.app(Settings(view=ViewSettings(view=view)), lens_set=lenses(), player=player)
    async with app.run_test(size=(120, 40 if player is None else 41)) as pilot:
        for _ in range(TICKS):
            tick()
            await pilot.pause()
        assert app.lens_screen.view.size
        plain = cells_of(app)
        for key in ("down", "right"):
            await pilot.press(key)
            await pilot.pause()
            harness.run_tasks()
            await pilot.pause()
        return plain, cells_of(app)


def cells_of(app: NettopApp) -> Cells:
    """Return each character on the screen with its style, without the lines of the keys and of time."""
    screen = app.lens_screen
    lines = [] if screen.time_line is None else [screen.time_line.region.y]
    left_out = {*lines, *range(screen.footer.region.y, screen.footer.region.bottom)}
    return [
        [(character, str(part.style)) for part in strip for character in part.text]
        for y, strip in enumerate(screen._compositor.render_strips())
        if y not in left_out
    ]


def texts(cells: Cells) -> list[str]:
    """Return the lines without their styles."""
    return ["".join(character for character, _ in line) for line in cells]


@pytest.mark.parametrize("view", VIEWS)
async def test_every_view(view: str, tmp_path: Path) -> None:
    """Each table of each lens has the same headline, findings, columns, rows and details."""
    given, path = sources(), tmp_path / "r.nettop"
    live = Taken(Harness(given.__getitem__))
    if view == FINDINGS.id:  # it names lenses that are not watched; a recording has what was
        for lens in ("drops", "services"):
            live.harness.session.enable(lens)
    expected = await draw(live.harness, view, live.tick)
    live.write(path)
    by_id = {lens.id: lens for lens in lenses()}
    with open_recording(path) as recording:
        player = Player(recording)
        player.is_paused = True
        harness, moments = Harness(lambda lens: RecordedSource(player, by_id[lens])), iter(live.moments)

        def tick() -> None:
            player.jump(next(moments))
            harness.tick()

        shown = await draw(harness, view, tick, player)
    assert [texts(cells) for cells in shown] == [texts(cells) for cells in expected]
    assert shown == expected
