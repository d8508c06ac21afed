# SPDX-License-Identifier: Apache-2.0
"""A new lens is new files and nothing else: one is dropped into a copy of the package and used through every door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nettop

PACKAGE = Path(nettop.__file__).parent

SNAPSHOTS = '''
"""The sample lens: two tables of things that are made up."""

from nettop.snapshots.schema import Field, Kind, Lens, Table

_FIELDS = (
    Field("id", Kind.KEY, "ID", "which one", "u8"),
    Field("animal", Kind.TEXT, "ANIMAL", "what it is called", "u4"),
    Field("legs", Kind.GAUGE, "LEGS", "how many it has", "u1"),
    Field("steps", Kind.COUNTER, "STEPS", "how many it made", "u8", "packets"),
)
ANIMALS = Table("animals", _FIELDS, "id", ("animal", "legs", "steps_per_s"), ("animal", "legs", "steps"),
                "-steps_per_s", "-steps")
FEW = Table("few", _FIELDS, "id", ("animal",), ("animal",), "animal", "animal")
LENS = Lens("sample", "Sample", 9, "9", "who walks here?", (ANIMALS, FEW))
'''

PROBE = '''
"""Makes the sample lens's snapshots out of nothing."""

import time
from pathlib import Path

import numpy as np

from nettop.snapshots.sample import ANIMALS, FEW
from nettop.snapshots.snapshot import Rows, Snapshot

PROGRAM = Path(__file__).with_name("sample.bpf.c")
TEXTS = {"animal": ["cat", "spider", "snake"]}


class Probe:
    def start(self):
        assert PROGRAM.exists()
        self.reads = 0

    def read(self, taken_ns):
        self.reads += 1
        rows = np.zeros(3, ANIMALS.dtype)
        rows["id"] = (1, 2, 3)
        rows["animal"] = (0, 1, 2)
        rows["legs"] = (4, 8, 0)
        rows["steps"] = (100 * self.reads, 1000 * self.reads, 0)
        tables = {"animals": Rows(ANIMALS, rows, TEXTS, taken_ns), "few": Rows(FEW, rows[:1], TEXTS, taken_ns)}
        return Snapshot("sample", time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), tables)

    def set(self, option, value):
        pass

    def describe(self, key):
        return {}

    def close(self):
        pass


def make_probe():
    return Probe()
'''

FILES = {
    "snapshots/sample.py": SNAPSHOTS,
    "probes/sample.py": PROBE,
    "probes/sample.bpf.c": "/* the sample lens needs no program */\n",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a copy of the package that has the sample lens."""
    there = tmp_path_factory.mktemp("home")
    shutil.copytree(PACKAGE, there / "nettop", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = there / "nettop" / name
        assert not path.exists()
        path.write_text(text, encoding="utf-8")
    return there


def python(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The interpreter, with the copy before every other nettop."""
    done = subprocess.run(
        [sys.executable, "-B", *words],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_table(home: Path) -> None:
    """--view shows the lens's own columns in its own order."""
    done = python(home, "-m", "nettop", "--view", "sample", "-d", "--once")
    assert done.stdout == (
        "animal  legs  steps\n"
        "spider     8   1000\n"
        "cat        4    100\n"
        "snake      0      0\n"
    )  # fmt: skip


def test_other_table(home: Path) -> None:
    """LENS.TABLE names a table behind the first."""
    done = python(home, "-m", "nettop", "--view", "sample.few", "-d", "--once")
    assert done.stdout == "animal\ncat\n"


def test_json_lines(home: Path) -> None:
    """JSON Lines have every field by its name."""
    done = python(home, "-m", "nettop", "--view", "sample", "--format", "jsonl", "--once", "--limit", "1")
    row = json.loads(done.stdout)
    assert row | {"time": ""} == {"time": "", "id": 2, "animal": "spider", "legs": 8, "steps": 1000}


def test_filter(home: Path) -> None:
    """The filter knows the lens's fields and texts."""
    words = (
        "--view",
        "sample",
        "-d",
        "--once",
        "--columns",
        "animal,steps",
        "--filter",
        "legs>1",
        "--filter",
        "at",
    )
    assert python(home, "-m", "nettop", *words).stdout == "animal  steps\ncat       100\n"


def test_rates(home: Path) -> None:
    """A counter has its rate without a word about it."""
    words = ("--view", "sample", "--format", "csv", "--once", "-t", "0.1", "--columns", "steps_per_s,animal")
    header, first, *_ = python(home, "-m", "nettop", *words).stdout.splitlines()
    assert header == "time,steps_per_s,animal"
    assert float(first.split(",")[1]) >= 0


def test_the_kernel_room_is_not_needed(home: Path) -> None:
    """The copy is what ran, and a lens without a program loads no bcc."""
    code = "import nettop, sys, nettop.probes.sample; print(nettop.__file__, 'bcc' in sys.modules)"
    assert python(home, "-c", code).stdout == f"{home / 'nettop' / '__init__.py'} False\n"


PILOT = '''
import asyncio, time
import numpy as np
from nettop.engine.session import Session
from nettop.engine.source import probe_of
from nettop.screens.context import ScreenContext
from nettop.screens.frame import NettopApp
from nettop.settings import Settings
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import Rows, Snapshot


class Nobody:
    """Stands for the kernel: no connections."""

    start = close = lambda self: None
    set = lambda self, option, value: None

    def read(self, taken_ns):
        rows = Rows(SOCKETS, np.zeros(0, SOCKETS.dtype), {f.name: () for f in SOCKETS.fields}, taken_ns)
        return Snapshot("connections", time.time_ns(), taken_ns, {"sockets": rows})


async def see(pilot, *words):
    async with asyncio.timeout(30):
        while not all(word in pilot.app.export_screenshot() for word in words):
            await pilot.pause()


async def main():
    with Session(0.1, lambda lens: Nobody() if lens == "connections" else probe_of(lens)) as session:
        async with NettopApp(ScreenContext(Settings(), session)).run_test(size=(120, 30)) as pilot:
            await see(pilot, "Connections", "Sample")
            assert "spider" not in pilot.app.export_screenshot()
            await pilot.press("9")
            await see(pilot, "ANIMAL", "LEGS", "spider", "snake")


asyncio.run(main())
'''


def test_tab_of_the_screens(home: Path) -> None:
    """The lens has its tab and its key, and without a screen of its own a table of its columns."""
    python(home, "-c", PILOT)
