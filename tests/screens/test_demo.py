# SPDX-License-Identifier: Apache-2.0
"""The recording that comes with nettop: small, of every lens, and each lens's screen shows it."""

from __future__ import annotations

import pytest

from nettop.cli import run
from nettop.errors import ExitCode
from nettop.output.check import findings_between
from nettop.recording.recording import open_recording
from nettop.snapshots import view_name
from nettop.snapshots.schema import Lens
from tests.builders.demo import DEMO, RECORDED, playing
from tests.builders.replaying import no_probes
from tests.unit.kept import uncollected

INCIDENTS = {"slow service", "retransmitting", "data unread", "SYN queue full", "DNS slow"}


def test_what_happens() -> None:
    """The demo has every incident and every lens, and at most 1 MiB."""
    assert DEMO.stat().st_size <= 1 << 20
    with open_recording(DEMO) as recording:
        assert recording.lenses == {lens.id for lens in RECORDED}
        assert recording.damage == []
        found = {row["kind"] for row in findings_between(recording, recording.begin_ns, recording.end_ns)}
    assert found >= INCIDENTS


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
async def test_every_lens(lens: Lens) -> None:
    """The screen of each lens has rows, and the line of time below them."""
    async with playing((120, 40), first=57) as demo:
        await demo.play_until(58)
        await demo.press(lens.digit)
        await demo.play_until(60)
        screen = demo.app.lens_screen
        assert screen.lens is lens
        assert not screen.has_class("-notice")
        assert not (screen.view.gone | screen.view.rest)[screen.view.order].all()
        assert "UTC" in screen.time_line.text


def test_text(capfd: pytest.CaptureFixture[str]) -> None:
    """--demo works with text too."""
    assert run(["--demo", "--view", "services", "-d", "--once"], no_probes) == ExitCode.DONE
    assert "served" in capfd.readouterr().out


REFRESHES = 3
"""Refreshes with the details of a row open, with its members shown, and with all rows."""


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
async def test_no_reading_is_kept(lens: Lens) -> None:
    """What a screen no longer shows is freed by counting references: of tables, details, and tables that rows open."""
    with uncollected() as kept:
        async with playing((100, 30), view_name(lens, lens.main)) as demo:
            second = 0
            for table in lens.tables:
                await demo.app.action_view(view_name(lens, table))
                await demo.pilot.pause()
                for keys in (("down", "enter"), ("escape", "right"), ("left", "a")):
                    await demo.pilot.press(*keys)
                    second += REFRESHES
                    await demo.play_until(second)
            assert not kept.in_cycles()
            counts = kept.counts()
            assert counts["View"] <= 2 * len(lens.tables), counts
            assert counts["Snapshot"] <= 16, counts
