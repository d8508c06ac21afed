# SPDX-License-Identifier: Apache-2.0
"""A recording on the screens: the same rows as live, the line of time, and the keys that move in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.widgets import Input

from nettop.recording.marks import Mark
from nettop.recording.player import Player, RecordedSource
from nettop.recording.recording import Recording, open_recording
from nettop.screens.actions import BY_ID
from nettop.screens.filter_box import FilterBox
from nettop.screens.nettop_app import NettopApp
from nettop.snapshots.connections import GROUPS, LENS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from tests.builders.driving import Running, press, running, shown, text_of
from tests.builders.harness import Harness, steps_of
from tests.builders.replaying import Clock
from tests.unit.build import Row, example_rows, later, make_frame
from tests.unit.recordings import BEGIN_NS, SECOND_NS, at_second, record

READINGS = 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording of a busy host, in which one process comes after 20 seconds."""
    rows, snapshots = example_rows(12, 7), []
    for second in range(READINGS):
        newcomer = [{"id": 99, "process": "newcomer"}] if second >= 20 else []
        snapshots.append(at_second(make_frame([*rows, *newcomer]).now, second))
        rows = later(rows, second)
    return record(tmp_path / "r.nettop", snapshots)


@asynccontextmanager
async def replayed(
    path: Path, size: tuple[int, int] = (120, 30)
) -> AsyncIterator[tuple[Running, Player, Clock]]:
    """Yield the app over a recording, its player and the player's clock."""
    clock = Clock()
    with open_recording(path) as recording:
        player = Player(recording, clock)
        harness = Harness(lambda _: RecordedSource(player, LENS))
        app = harness.app(player=player)
        async with app.run_test(size=size) as pilot:
            harness.tick()
            await pilot.pause()
            yield (pilot, app.lens_screen, harness), player, clock


async def keys(run: Running, *names: str) -> None:
    """Press keys, and let the sampler read after each."""
    for name in names:
        await press(run, name)
        run[2].tick()
        await run[0].pause()


def time_line(run: Running) -> str:
    """Return the line of time."""
    line = shown(run).time_line
    return line.text


async def test_play_pause_and_speed(path: Path) -> None:
    """Space pauses and plays on, at the end from the beginning; brackets change the speed."""
    async with replayed(path) as (run, _, clock):
        assert time_line(run).startswith(" ▶ ×1  2026-11-28 14:00:00 UTC  14:00:00 ●")
        assert time_line(run).endswith("─ 14:00:29 ")
        await keys(run, "space")
        clock.now += 5
        await keys(run, "right_square_bracket", "right_square_bracket")
        assert time_line(run).startswith(" ‖ ×5  2026-11-28 14:00:00 UTC")
        await keys(run, "space")
        clock.now += 2
        await keys(run, "left_square_bracket")
        assert time_line(run).startswith(" ▶ ×2  2026-11-28 14:00:10 UTC")
        clock.now += 60
        await keys(run, "enter")
        assert time_line(run).startswith(" ■ ×2  2026-11-28 14:00:29 UTC")
        assert shown(run).keys.label_of(BY_ID["freeze"]) == "play"
        await keys(run, "space")
        assert time_line(run).startswith(" ▶ ×2  2026-11-28 14:00:00 UTC")


async def test_steps_jumps_and_searches(path: Path) -> None:
    """Each key shows the rows of its moment; a box takes moments and says what is wrong with others."""
    async with replayed(path) as (run, *_):
        await keys(run, "full_stop", "full_stop", "comma")
        assert time_line(run).startswith(" ‖ ×1  2026-11-28 14:00:01 UTC")
        await press(run, "colon")
        box = shown(run).query_one(FilterBox)
        box.query_one(Input).value = "14:00:2"
        await run[0].pause()
        assert "is no moment" in box.effect
        box.query_one(Input).value = "+10s"
        await run[0].pause()
        assert box.effect == "2026-11-28 14:00:11 UTC"
        await keys(run, "enter")
        assert time_line(run).startswith(" ‖ ×1  2026-11-28 14:00:11 UTC")
        await press(run, "slash", *"newcomer", "enter")
        await press(run, "M")
        await run[0].app.workers.wait_for_complete()
        run[2].tick()
        await run[0].pause()
        assert time_line(run).startswith(" ‖ ×1  2026-11-28 14:00:20 UTC")
        assert "newcomer" in "\n".join(text_of(shown(run).rows))


async def test_what_was_wrong_when_it_begins_paused(tmp_path: Path) -> None:
    """A recording that begins paused names the findings of its moment, although its lens was read before the app ran,
    and is never read anew."""
    finding: Row = {"finding": "nobody answers", "severity": "problem", "lasted": 0, "unseen": 0}
    connections, findings = (
        make_frame(example_rows(12, 7)),
        make_frame([finding], table=FINDINGS, lens="findings"),
    )
    snapshots = [at_second(frame.now, 0) for frame in (connections, findings)]
    with open_recording(record(tmp_path / "r.nettop", snapshots)) as recording:
        player = Player(recording)
        player.is_paused = True
        lens_of = {lens.id: lens for lens in (LENS, FINDINGS_LENS)}
        harness = Harness(lambda lens: RecordedSource(player, lens_of[lens]))
        app = harness.app(player=player, lens_set=(LENS, FINDINGS_LENS))
        harness.session.enable(LENS.id)
        harness.tick()
        async with app.run_test(size=(120, 30)) as pilot:
            for _ in range(2):
                harness.tick()
                await pilot.pause()
            assert "nobody answers" in app.lens_screen.findings.text


async def test_marks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings are marked where they were; a click goes there, and so does the key."""
    marks = [Mark(BEGIN_NS + 10 * SECOND_NS, BEGIN_NS + 12 * SECOND_NS, 1)]
    monkeypatch.setattr(Recording, "marks", property(lambda _: marks))
    monkeypatch.setattr(Player, "next_finding", lambda _: marks[0].begin_ns)  # there are none in its readings
    async with replayed(path) as (run, player, _):
        bar = time_line(run)
        assert bar.count("▲") == 6
        await press(run, "M")
        await run[0].app.workers.wait_for_complete()
        run[2].tick()
        await run[0].pause()
        assert time_line(run).startswith(" ‖ ×1  2026-11-28 14:00:10 UTC")
        await run[0].click("#time-line", offset=(bar.index("▲") - 1, 0))
        await keys(run, "full_stop")
        assert 8 <= (player.wall_ns - BEGIN_NS) / SECOND_NS <= 10


async def test_no_command_enters_a_recorded_process(tmp_path: Path) -> None:
    """`Y` copies no command with the PID of a recorded process."""
    row = {"namespace": "web", "pid": 1812, "local_port": 443, "remote_port": 52114}
    one = record(tmp_path / "one.nettop", [at_second(make_frame([row]).now, second) for second in range(3)])
    async with replayed(one) as (run, *_):
        run[2].session.is_local = False  # as the session of a recording is
        await keys(run, "down")
        assert shown(run).rows.at is not None
        await keys(run, "Y")
        assert "nsenter" not in run[0].app.clipboard


async def test_keys_of_the_kernel_are_gone(path: Path) -> None:
    """The interval is the recording's; without a recording, its keys do nothing and are not shown."""
    async with replayed(path) as (run, *_):
        assert "pause" in shown(run).footer.text
        await keys(run, "plus")
        assert run[2].session.interval_s == 1.0
        await keys(run, "g")
        assert shown(run).table.name == GROUPS.name
        before = dict(shown(run).context.options)
        await keys(run, "g")
        assert shown(run).context.options == before
        assert isinstance(run[0].app, NettopApp)
    async with running(steps_of(make_frame([], []))) as live:
        assert shown(live).time_line is None
        assert "jump" not in shown(live).footer.text
        await press(live, "colon", "full_stop", "M")
        assert not shown(live).query(FilterBox)
