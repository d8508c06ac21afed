# SPDX-License-Identifier: Apache-2.0
"""`e` on the screens: which rows and columns are written, in which format, into which file, and what is said of it."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nettop.screens.export import write_new
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from tests.builders.driving import Running, notes, press, running, shown
from tests.builders.example_cpu import example_steps
from tests.builders.harness import busy_host

STAMP = "20261121T080000Z"
WALL_NS = 1_795_248_000_000_000_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def export(run: Running, key: str) -> None:
    """Choose a format."""
    await press(run, "e", key)
    await run[0].pause()


def files(folder: Path) -> dict[str, str]:
    """Return the text of each file there, by its name, the shortest name first."""
    return {file.name: file.read_text() for file in sorted(folder.iterdir(), key=lambda file: len(file.name))}


def only_file(folder: Path) -> tuple[str, str]:
    """Return the name and the text of the one file there."""
    (file,) = files(folder).items()
    return file


async def test_rows_as_csv(folder: Path) -> None:
    """The rows that pass the filter in their order, in the columns that are shown; of groups every part is a column."""
    async with running(busy_host()) as run:
        await press(run, "slash", *"nginx", "enter", "s")
        await export(run, "c")
        view = shown(run).view
        assert view is not None
        name, text = only_file(folder)
        assert name.startswith("nettop-connections-")
        assert name.endswith("Z.csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert list(rows[0]) == [
            "time", "process", "pid", "container", "protocol", "local", "remote", "bytes_sent_per_s",
            "bytes_received_per_s", "rtt_us", "rtt_var_us", "retransmit_ratio", "limited_by",
        ]  # fmt: skip
        assert [row["remote"] for row in rows] == view.values("remote", view.order)
        assert {row["process"] for row in rows} == {"nginx"}
        assert notes(run)[-1] == f"written to {folder / name}"


async def test_rows_as_json_lines(folder: Path) -> None:
    """Each row is an object with the chosen columns."""
    settings = Settings(view=ViewSettings(columns=("pid", "bytes_sent"), limit=3))
    async with running(busy_host(), settings=settings) as run:
        await export(run, "j")
        view = shown(run).view
        name, text = only_file(folder)
        assert name.endswith("Z.jsonl")
        rows = [json.loads(line) for line in text.splitlines()]
        assert [(row["pid"], row["bytes_sent"]) for row in rows] == list(
            zip(view.values("pid", view.order), view.values("bytes_sent", view.order), strict=True)
        )
        assert len(rows) == 3


async def test_the_screen_as_svg(folder: Path) -> None:
    """The SVG shows the screen without the dialog, and refers to nothing on the web."""
    async with running(busy_host()) as run:
        await export(run, "s")
        name, text = only_file(folder)
        assert name.endswith("Z.svg")
        words = "".join(ET.fromstring(text).itertext())
        assert "PROCESS" in words
        assert "JSON" not in words
        assert "@font-face" not in text


async def test_a_frozen_screen_is_written_as_it_is(folder: Path) -> None:
    """Twice the same rows: the second file has another name. Esc writes nothing; a flame graph has its table's rows."""
    async with running(busy_host()) as run:
        await press(run, "e", "escape", "space")
        assert files(folder) == {}
        await export(run, "c")
        await export(run, "c")
        (first, text), (second, again) = files(folder).items()
        assert second == first.replace("Z.csv", "Z-2.csv")
        assert text == again
    async with running(example_steps(), view="cpu", lens_set=lenses()) as run:
        await export(run, "c")
        assert any(text.startswith("time,cpu,network_ns_per_s,") for text in files(folder).values())


async def test_the_cause_of_a_failed_export_is_shown(folder: Path) -> None:
    """A vanished directory, and a nettop that must stay root, are reported."""
    async with running(busy_host()) as run:
        os.rmdir(Path.cwd())
        await export(run, "c")
        assert "cannot be written to the working directory: No such file or directory" in notes(run)[-1]
        shown(run).context.writing_refused = "nettop stays root: why"
        await export(run, "s")
        assert notes(run)[-1].startswith("no files are written: nettop stays root: why")


def test_nothing_is_overwritten(folder: Path) -> None:
    """Neither a file nor a symbolic link's target is overwritten; only the owner may read the new file."""
    (folder / f"nettop-drops-{STAMP}.csv").write_text("mine")
    (folder / f"nettop-drops-{STAMP}-2.csv").symlink_to(folder / "target")
    path = write_new("drops", WALL_NS, "csv", "rows")
    assert path == folder / f"nettop-drops-{STAMP}-3.csv"
    assert (folder / f"nettop-drops-{STAMP}.csv").read_text() == "mine"
    assert not (folder / "target").exists()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
