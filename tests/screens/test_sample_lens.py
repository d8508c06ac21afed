# SPDX-License-Identifier: Apache-2.0
"""A lens that is nothing but a module in snapshots/ is a tab with a table, and no other file knows of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SAMPLE = """
from nettop.snapshots.schema import Field, Kind, Lens, Table

TABLE = Table(
    name="cups",
    fields=(
        Field("id", Kind.KEY, "ID", "which cup", "u8"),
        Field("what", Kind.TEXT, "WHAT", "what is in it", "u4", width=16, importance=90),
        Field("sips", Kind.COUNTER, "SIPS", "how often somebody drank", "u8", "sips", 8, 80),
    ),
    key="id",
    screen=("what", "sips_per_s"),
    text=("what", "sips"),
    sort="-sips_per_s",
    text_sort="-sips",
)
LENS = Lens("sample", "Sample", 9, "9", "how is the tea?", (TABLE,))
"""

PROGRAM = """
import asyncio
from dataclasses import replace
from nettop.settings import Settings
from nettop.snapshots import lenses
from tests.builders.harness import Harness, Rules, Script, busy_host
from tests.unit.build import make_frame

sample = next(lens for lens in lenses() if lens.id == "sample")
before = [{"id": 1, "what": "tea", "sips": 1}, {"id": 2, "what": "coffee", "sips": 0}]
after = [row | {"sips": row["sips"] + 7 * row["id"]} for row in before]
frame = make_frame(after, before, table=sample.main, lens="sample")
scripts = {"connections": Script(busy_host()), "sample": Script([frame.before, frame.now]), "findings": Rules()}

async def main():
    harness = Harness(lambda lens: scripts[lens])
    app = harness.app(lens_set=lenses())
    async with app.run_test(size=(120, 30)) as pilot:
        harness.tick()
        await pilot.press("9")
        for _ in range(3):
            harness.tick()
            await pilot.pause()
        screen = app.lens_screen
        print(screen.first_line.text)
        print(screen.headline_bar.text)
        for y in range(5):
            print(screen.rows.render_line(y).text)

asyncio.run(main())
"""


def test_sample_lens_is_a_tab(tmp_path: Path) -> None:
    """Its title is a tab, its digit opens it, its rows stand in the common table."""
    for package in ("nettop", "tests"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "*.svg")
        )
    (tmp_path / "nettop/snapshots/sample.py").write_text(SAMPLE, encoding="utf-8")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, headline, header, *rows = done.stdout.splitlines()
    assert "1 Connections" in first
    assert "9 Sample" in first
    assert headline.split() == ["rows", "2", "sips/s", "21", "0", "missed"]
    assert header.split() == ["WHAT", "SIPS/s", "▾", "ID"]
    assert [row.split()[0] for row in rows[:2]] == ["coffee", "tea"]
    assert rows[2].split()[:3] == ["─", "total", "2"]
