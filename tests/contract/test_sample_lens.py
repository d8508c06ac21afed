# SPDX-License-Identifier: Apache-2.0
"""A new lens is new files and nothing else: docs/add-a-lens.md is followed in a copy of nettop, and the lens used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from nettop.snapshots.histograms import Buckets

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "add-a-lens.md"
CPUS = os.cpu_count()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of nettop that has the files of the page, which were not there before."""
    copy = tmp_path_factory.mktemp("nettop")
    for folder in ("nettop", "scripts", "docs", "tests/docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"^### `([^`]+)`\n\n```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(files) == 5
    for name, text in files:
        path = copy / name
        assert not path.exists()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return copy


DECLARED = """        Field("waits", Kind.HISTOGRAM, "WAITS", "how long packets waited", BUCKETS.dtype, "ns", 24, 70,
              buckets=BUCKETS),
        Field("p50", Kind.QUANTILE, "P50", "half waited no longer", unit="ns", parts=("waits",), quantile=0.5),
        Field("p99", Kind.QUANTILE, "P99", "99 % waited no longer", unit="ns", parts=("waits",), quantile=0.99),
"""
COUNTED = """        for row in rows:
            waits = np.repeat([1000 * (int(row["cpu"]) + 1), 1 << 40], [99, 1])
            np.add.at(row["waits"], BUCKETS.places(waits), 1)
"""
"""On CPU n 99 packets waited n + 1 µs, and one for longer than all buckets."""


@pytest.fixture(scope="module")
def counting(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The copy, whose lens has a histogram too, and two quantiles made of it."""
    counting = tmp_path_factory.mktemp("counting") / "nettop"
    shutil.copytree(copy, counting)
    table, probe = (
        counting / "nettop" / name for name in ("snapshots/softnet.py", "probes/softnet/probe.py")
    )
    _insert(
        table,
        ("from nettop.snapshots.schema", "from nettop.snapshots.histograms import Buckets\n"),
        ("CPUS = Table(", "BUCKETS = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)\n\n"),
        ("    ),\n    key=", DECLARED),
    )
    _insert(
        probe,
        ("from nettop.snapshots.softnet import ", "from nettop.snapshots.softnet import BUCKETS\n"),
        ("        busiest = ", COUNTED),
    )
    return counting


def _insert(path: Path, *pieces: tuple[str, str]) -> None:
    """Put each text into the file, in front of a place that is there once."""
    text = path.read_text(encoding="utf-8")
    for place, piece in pieces:
        assert text.count(place) == 1
        text = text.replace(place, piece + place)
    path.write_text(text, encoding="utf-8")


def python(copy: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The interpreter, with the copy before every other nettop."""
    done = subprocess.run(
        [sys.executable, "-B", *words],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def nettop(copy: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The copy's command line."""
    return python(copy, "-m", "nettop", *words, status=status)


def rows(copy: Path, *words: str) -> list[dict[str, int]]:
    """The lens's rows as JSON Lines."""
    done = nettop(copy, "--view", "softnet", "--format", "jsonl", "--once", *words)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_table(copy: Path) -> None:
    """--view shows the lens's own columns; LENS.TABLE would name a table behind the first."""
    header, *lines = nettop(copy, "--view", "softnet", "-d", "--once").stdout.splitlines()
    assert header.split() == ["cpu", "processed", "dropped"]
    assert [int(line.split()[0]) for line in lines] == sorted(int(line.split()[0]) for line in lines)
    assert 1 <= len(lines) <= CPUS


def test_json_lines(copy: Path) -> None:
    """JSON Lines have every field by its name."""
    assert all(set(row) == {"time", "cpu", "processed", "dropped"} for row in rows(copy))


def test_filter(copy: Path) -> None:
    """The filter knows the lens's fields."""
    assert [row["cpu"] for row in rows(copy, "--filter", "cpu=0")] == [0]


def test_rates(copy: Path) -> None:
    """A counter has its rate without a declaration."""
    words = (
        "--view",
        "softnet",
        "--format",
        "csv",
        "--once",
        "-t",
        "0.1",
        "--columns",
        "processed_per_s,cpu",
    )
    header, first, *_ = nettop(copy, *words).stdout.splitlines()
    assert header == "time,processed_per_s,cpu"
    assert float(first.split(",")[1]) >= 0


def quantile_of(cpu: int) -> int:
    """What stands for the time that packets waited on this CPU."""
    buckets = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
    return int(buckets.middles[buckets.places(np.array([1000 * (cpu + 1)]))][0])


def test_histogram_and_quantiles(counting: Path) -> None:
    """JSON Lines have a histogram as numbers, quantiles as any number; both are declared and no more."""
    for row in rows(counting):
        (low, high, count), last = row["waits"]  # type: ignore[misc]
        assert low <= 1000 * (row["cpu"] + 1) < high
        assert (count, last) == (99, [1 << 34, None, 1])
        assert row["p50"] == row["p99"] == quantile_of(row["cpu"])


def test_histogram_as_text(counting: Path) -> None:
    """A row of the table has as many words as columns; CSV has one cell of words."""
    words = ("--view", "softnet", "--once", "--filter", "cpu=0", "--columns", "cpu,p99,waits")
    low, high = 992, 1024
    line = nettop(counting, *words, "--table", "-d").stdout.splitlines()[1]
    assert line.split() == ["0", str(quantile_of(0)), f"{low}-{high}:99_{1 << 34}-:1"]
    header, line = nettop(counting, *words, "--format", "csv").stdout.splitlines()
    assert header == "time,cpu,p99,waits"
    assert line.split(",")[1:] == ["0", str(quantile_of(0)), f"{low}-{high}:99 {1 << 34}-:1"]


def test_filtered_and_sorted_by_a_quantile(counting: Path) -> None:
    """A quantile is compared in its unit, and sorted by; a histogram is neither, and the error says what is."""
    assert [row["cpu"] for row in rows(counting, "--filter", "p50<1.5us")] == [0]
    assert rows(counting, "--filter", "p99>1s") == []
    waits = sorted(quantile_of(row["cpu"]) for row in rows(counting))
    assert [row["p99"] for row in rows(counting, "--sort", "p99")] == waits
    assert [row["p99"] for row in rows(counting, "--sort", "-p99")] == waits[::-1]
    shown = ("--view", "softnet", "--table", "--once")
    error = nettop(counting, *shown, "--sort", "waits", status=2).stderr
    assert "waits is a histogram, which has no order" in error
    assert "sort by p50, p99 instead" in error
    error = nettop(counting, *shown, "--filter", "waits>5", status=2).stderr
    assert "waits is a histogram, which > cannot compare" in error
    assert "compare p50, p99 instead" in error


def test_option(copy: Path) -> None:
    """--help has the option in a panel of its lens, its value reaches the source, a wrong one is refused."""
    shown = nettop(copy, "--help").stdout
    assert "Softnet (view softnet)" in shown
    assert "--busiest" in shown
    assert "CPUs to show, those that processed most (4096)" in shown
    assert "--busiest" in nettop(copy, "log", "--help").stdout
    assert len(rows(copy, "--busiest", "1")) == 1
    words = ("--table", "--once", "--view", "softnet", "--busiest", "0")
    assert "--busiest 0 is too low" in nettop(copy, *words, status=2).stderr
    assert (
        "--busiest is an option of softnet.cpus" in nettop(copy, "--table", "--busiest", "1", status=2).stderr
    )


def test_hook(copy: Path) -> None:
    """Without its mechanism the hook's table is not available, and the error says why."""
    words = ("--view", "softnet", "--table", "--once", "--mechanism", "softnet=none")
    assert "softnet.cpus is not available: disabled by --mechanism" in nettop(copy, *words, status=2).stderr
    words = ("--view", "softnet", "--table", "--once", "--mechanism", "softnet=/sys")
    assert "known are: /proc/net/softnet_stat, none" in nettop(copy, *words, status=2).stderr


def test_doctor(copy: Path) -> None:
    """Doctor reports the hook's mechanism and runs the self-test."""
    report = json.loads(nettop(copy, "doctor", "--only", "softnet", "--format", "json").stdout)
    (lens,) = report["lenses"]
    assert lens["hooks"] == [
        {
            "hook": "softnet",
            "mechanism": "/proc/net/softnet_stat",
            "refused": [],
            "fields": ["processed", "dropped"],
        }
    ]
    (result,) = report["self_test"]
    assert (result["what"], result["ok"]) == ("datagrams over loopback, at least", True)


def test_documents(copy: Path) -> None:
    """The generated reference has the lens, and the documents' tests hold before any kernel was tried."""
    python(copy, "scripts/generate.py")
    fields = (copy / "docs" / "fields.md").read_text()
    assert "## `softnet`\n" in fields
    assert "| `nettop_softnet_processed_total` | `cpu` |" in (copy / "docs" / "metrics.md").read_text()
    assert "| `softnet` | what each CPU counts of the packets that arrive there |" in fields
    assert "| `--busiest N` | CPUs to show, those that processed most, at least 1, at most 4096 |" in fields
    names = ("test_documents_are_as_declared", "test_kernel_support_lists_declared_hooks")
    tests = [f"tests/docs/test_generated.py::{name}" for name in names]
    assert "4 passed" in python(copy, "-m", "pytest", "-p", "no:cacheprovider", "-q", *tests).stdout


def test_serve(counting: Path) -> None:
    """The lens is in the metrics, with a histogram, in the API and its description; nothing was written for it."""
    words = (sys.executable, "-B", "-m", "nettop", "serve", "--lenses", "softnet", "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        words, cwd=counting, env=os.environ | {"PYTHONPATH": str(counting)}, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr is not None
            url = next(line for line in server.stderr if "serving at" in line).split()[-1]
            metrics, rows, described = (
                urllib.request.urlopen(url + path, timeout=30).read().decode()
                for path in ("metrics", "api/v1/softnet?columns=cpu,processed&sort=cpu", "api/openapi.json")
            )
        finally:
            server.terminate()
    assert server.returncode == 0
    assert re.search(r'^nettop_softnet_processed_total\{cpu="0"\} \d', metrics, re.MULTILINE)
    assert re.search(r'^nettop_softnet_waits_seconds_count\{cpu="0"\} \d', metrics, re.MULTILINE)
    assert [row["cpu"] for row in json.loads(rows)["rows"]] == list(range(CPUS or 1))
    assert "/api/v1/softnet" in json.loads(described)["paths"]


def test_the_kernel_package_loads_no_bcc(copy: Path) -> None:
    """The copy is what ran, and a lens without a program loads no bcc."""
    code = "import nettop, sys, nettop.probes.softnet; print(nettop.__file__, 'bcc' in sys.modules)"
    assert python(copy, "-c", code).stdout == f"{copy / 'nettop' / '__init__.py'} False\n"


PILOT = '''
import asyncio, time
import numpy as np
from nettop.engine.session import Session
from nettop.engine.source import probe_of
from nettop.screens.context import ScreenContext
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import Rows, Snapshot


class NoConnections:
    """A source of the first lens that has no rows."""

    start = close = lambda self: None
    set = lambda self, option, value: None

    def read(self, taken_ns):
        rows = Rows(SOCKETS, np.zeros(0, SOCKETS.dtype), {f.name: () for f in SOCKETS.fields}, taken_ns)
        return Snapshot("connections", time.time_ns(), taken_ns, {"sockets": rows})


async def main():
    with Session(0.1, lambda lens: NoConnections() if lens == "connections" else probe_of(lens)) as session:
        async with NettopApp(ScreenContext(Settings(), session)).run_test(size=(120, 100)) as pilot:
            async def see(*words):
                async with asyncio.timeout(30):
                    while not all(word in pilot.app.export_screenshot() for word in words):
                        await pilot.pause()

            await see("Connections", "Softnet")
            assert "PROCESSED" not in pilot.app.export_screenshot()
            await pilot.press("8")
            await see("PROCESSED", "DROPPED", "dropped&#160;since&#160;boot")
            await pilot.press("B", "B")
            async with asyncio.timeout(30):
                while len(session.bus.frame("softnet").now.tables["cpus"]) != 1:
                    await pilot.pause()
            await pilot.press("question_mark")
            await see("SOFTNET", "that&#160;processed&#160;most:&#160;the&#160;next")


asyncio.run(main())
'''


def test_screens(copy: Path) -> None:
    """The lens has its tab, its screen, and a key for its option, which help names."""
    python(copy, "-c", PILOT)
