# SPDX-License-Identifier: Apache-2.0
"""No reading is kept: counting references alone frees what a command has shown, written or added up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nettop.cli import run
from nettop.errors import ExitCode
from nettop.process.clocks import boot_ns
from nettop.recording.reader import Readings
from nettop.recording.recording import open_recording
from nettop.serve.metrics.totals import Totals
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import SourceOptions
from tests.builders.demo import DEMO, RECORDED
from tests.builders.harness import Harness, Script
from tests.builders.recording import Recording
from tests.unit.kept import Kept, uncollected
from tests.unit.logging_run import Logging, settings, until
from tests.unit.recorded import random_readings
from tests.unit.scripted import Scripted
from tests.unit.serving import ask, make_served, publish, table_app
from tests.unit.woken import Woken

READINGS = 100
MOST_SNAPSHOTS = 12
"""Snapshots that the bus may keep of several lenses: the newest, those before, and those of an average."""
MOST_FRAMES = 6
"""The newest of these lenses, and views of them."""


def drawn(lens: Lens, count: int = READINGS) -> list[Snapshot]:
    """Return readings in which anything changes, and rows leave."""
    return [taken.snapshot for taken in random_readings(lens, 7, count)]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Collect no garbage during the test."""
    with uncollected() as kept:
        yield kept


def assert_few(kept: Kept) -> None:
    """Assert that few readings are left, and few views of them."""
    counts = kept.counts()
    assert counts["Snapshot"] <= MOST_SNAPSHOTS, counts
    assert max(counts["Frame"], counts["View"], counts["Columns"]) <= MOST_FRAMES, counts


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
def test_text(lens: Lens, kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """Text output over every reading of a recording."""
    words = ["replay", str(DEMO), "--view", lens.id, "--format", "jsonl", "--deltas", "--all"]

    def no_probe(lens: str) -> Scripted:
        raise AssertionError(lens)

    assert run(words, no_probe) is ExitCode.DONE
    assert capsys.readouterr().out
    assert_few(kept)


def test_log(kept: Kept) -> None:
    """The log's tables."""
    with Logging(settings(views=("connections.sockets",)), Woken(drawn(CONNECTIONS))) as log:
        for _ in range(READINGS - 1):
            log.refresh()
        assert_few(kept)
        log.end()


def test_record(kept: Kept, tmp_path: Path) -> None:
    """A recording, and the marks of its findings."""
    with Recording(str(tmp_path / "a.nettop"), Woken(drawn(CONNECTIONS))) as recording:
        until(lambda: recording.published)
        for _ in range(READINGS - 1):
            recording.refresh()
            del recording.published[:-1]
        recording.end()
        assert_few(kept)


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
def test_serve(lens: Lens, kept: Kept) -> None:
    """Totals for metrics, and every table of the API."""
    served = make_served(lenses=(lens,))
    totals, app = Totals(served, {}, SourceOptions()), table_app(served)

    async def serve_all() -> None:
        with open_recording(DEMO) as recording:
            moments = recording.moments_between(lens, recording.begin_ns, recording.end_ns)
            for _, reading in Readings(recording, lens).each(moments):
                publish(served, replace(reading.now, boot_ns=boot_ns()))
                totals.catch_up()
                for table in lens.tables:
                    answer = await ask(app, f"/api/v1/{lens.id}.{table.name}", "deltas=true&all=true")
                    assert answer.status == 200, answer.body
                del reading
            assert_few(kept)

    asyncio.run(serve_all())


def test_a_failed_lens(kept: Kept) -> None:
    """A source that fails in the middle of a reading, each time it is tried."""

    class Failing(Script):
        def read(self, taken_ns: int) -> Snapshot:
            reading = drawn(CONNECTIONS, 1)[0]
            raise KeyError(reading.lens)

    for _ in range(READINGS):
        harness = Harness(lambda _: Failing([]))
        harness.session.enable(CONNECTIONS.id)
        harness.run_tasks()
        assert harness.session.bus.failure(CONNECTIONS.id) is not None
    assert_few(kept)
