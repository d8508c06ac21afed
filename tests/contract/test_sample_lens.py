# SPDX-License-Identifier: Apache-2.0
"""Adding a lens needs only new files: follow docs/internals/add-a-lens.md in a copy of nettop, and use the lens."""

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
from tests.unit.children import ran

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "internals" / "add-a-lens.md"
CPUS = os.cpu_count()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy nettop and add the page's files, which must not exist yet."""
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
"""On CPU n, 99 packets waited n + 1 µs, and one longer than the last bucket edge."""


@pytest.fixture(scope="module")
def counting(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the copy and add a histogram and two quantiles to its lens."""
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
    """Insert each text into the file before its marker, which must occur once."""
    text = path.read_text(encoding="utf-8")
    for place, piece in pieces:
        assert text.count(place) == 1
        text = text.replace(place, piece + place)
    path.write_text(text, encoding="utf-8")


def python(copy: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with the copy first on the path."""
    done = ran("-B", *words, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "120"})
    assert done.returncode == status, done.stderr
    return done


def nettop(copy: Path, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the copy's command line."""
    return python(copy, "-m", "nettop", *words, status=status)


def rows(copy: Path, *words: str) -> list[dict[str, int]]:
    """Return the lens's rows, read as JSON Lines."""
    done = nettop(copy, "--view", "softnet", "--format", "jsonl", "--once", *words)
    return [json.loads(line) for line in done.stdout.splitlines()]


def quantile_of(cpu: int) -> int:
    """Return the midpoint of the bucket for the wait on this CPU."""
    buckets = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
    return int(buckets.middles[buckets.places(np.array([1000 * (cpu + 1)]))][0])


def test_histogram_and_quantiles(counting: Path) -> None:
    """JSON Lines have histograms as numbers, and quantiles like other numbers, with only a declaration."""
    for row in rows(counting):
        (low, high, count), last = row["waits"]  # type: ignore[misc]
        assert low <= 1000 * (row["cpu"] + 1) < high
        assert (count, last) == (99, [1 << 34, None, 1])
        assert row["p50"] == row["p99"] == quantile_of(row["cpu"])


def test_filtered_and_sorted_by_a_quantile(counting: Path) -> None:
    """Quantiles can be filtered in their unit and sorted; histograms cannot, and the error suggests quantiles."""
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
    """--help-all lists the option in the lens's panel, its value reaches the source, and bad values are rejected."""
    assert "which CPU processes the packets that arrive" in nettop(copy, "--help").stdout
    shown = nettop(copy, "--help-all").stdout
    assert "Softnet (view softnet)" in shown
    assert "--busiest" in shown
    assert "Number of CPUs to show, the busiest first (4096)" in shown
    assert "--busiest" in nettop(copy, "log", "--help").stdout
    assert len(rows(copy, "--busiest", "1")) == 1
    words = ("--table", "--once", "--view", "softnet", "--busiest", "0")
    assert "--busiest 0 is too low" in nettop(copy, *words, status=2).stderr
    assert (
        "--busiest is an option of softnet.cpus" in nettop(copy, "--table", "--busiest", "1", status=2).stderr
    )


def test_hook(copy: Path) -> None:
    """Without its mechanism the hook's table is unavailable, and the error says why."""
    words = ("--view", "softnet", "--table", "--once", "--mechanism", "softnet=none")
    assert "softnet.cpus is not available: disabled by --mechanism" in nettop(copy, *words, status=2).stderr
    words = ("--view", "softnet", "--table", "--once", "--mechanism", "softnet=/sys")
    assert "choose from: /proc/net/softnet_stat, none" in nettop(copy, *words, status=2).stderr


def test_documents(copy: Path) -> None:
    """The generated reference includes the lens, also the page on kernels before any run, and its tests pass."""
    python(copy, "scripts/generate.py")
    fields = (copy / "docs" / "reference" / "fields.md").read_text()
    assert "## `softnet`\n" in fields
    assert (
        "| `nettop_softnet_processed_total` | `cpu` |"
        in (copy / "docs" / "reference" / "metrics.md").read_text()
    )
    assert "| `softnet` | each CPU's counters of arriving packets |" in fields
    assert "| `--busiest N` | Number of CPUs to show, the busiest first, at least 1, at most 4096 |" in fields
    names = ("test_documents_are_as_declared", "test_the_kernels_page_has_every_lens")
    tests = [f"tests/docs/test_generated.py::{name}" for name in names]
    assert "6 passed" in python(copy, "-m", "pytest", "-p", "no:cacheprovider", "-q", *tests).stdout


def test_serve(counting: Path) -> None:
    """The lens and its histogram appear in the metrics, the API and its description without extra code."""
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


def test_recording(copy: Path, tmp_path: Path) -> None:
    """Diff compares its measures, and a redacted recording keeps the numbers of its CPUs."""
    file = str(tmp_path / "softnet.nettop")
    nettop(copy, "record", "--lenses", "softnet", "--interval", "0.1", "--for", "2s", "--redact", file)
    replayed = nettop(copy, "replay", file, "--view", "softnet", "--format", "jsonl", "--once").stdout
    assert [json.loads(line)["cpu"] for line in replayed.splitlines()] == list(range(CPUS or 1))
    code = f"""
from pathlib import Path
from nettop.recording.diff import Span, differences
from nettop.recording.recording import open_recording
with open_recording(Path({file!r})) as recording:
    begin, end = recording.begin_ns, recording.end_ns
    halves = [Span(recording, *span) for span in ((begin, (begin + end) // 2), ((begin + end) // 2, end))]
    print(*differences(*halves).compared)
"""
    assert python(copy, "-c", code).stdout == "Softnet Findings\n"


def test_the_kernel_package_loads_no_bcc(copy: Path) -> None:
    """The copy is what runs, and a lens without a BPF program does not load bcc."""
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
    """Source of the first lens, without rows."""

    start = close = lambda self: None
    configure = lambda self, options: None

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
            await see("SOFTNET", "busiest&#160;first:&#160;next")


asyncio.run(main())
'''


def test_screens(copy: Path) -> None:
    """The lens has a tab, a screen, and a key for its option, listed in help."""
    python(copy, "-c", PILOT)
