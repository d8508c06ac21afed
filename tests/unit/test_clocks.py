# SPDX-License-Identifier: Apache-2.0
"""The kernel's clocks, from inside and outside of a time namespace."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nettop.probes
from nettop.process import clocks

OFFSETS = "monotonic  -3600 250000000\nboottime   86400 0\n"
DAY_NS = 86_400 * 10**9


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder that is read instead of /proc/self."""
    (tmp_path / "ns").mkdir()
    monkeypatch.setattr(clocks, "_PROCESS", tmp_path)
    clocks.offset_ns.cache_clear()
    yield tmp_path
    clocks.offset_ns.cache_clear()


def put(process: Path, own: str, of_children: str) -> None:
    """Write what the kernel shows of a process's time namespaces."""
    (process / "timens_offsets").write_text(OFFSETS)
    (process / "ns/time").symlink_to(f"time:[{own}]")
    (process / "ns/time_for_children").symlink_to(f"time:[{of_children}]")


def test_offsets_are_subtracted(process: Path) -> None:
    """Each clock has its own offset, which may be negative."""
    put(process, "4026531834", "4026531834")
    assert clocks.offset_ns("monotonic") == -3600 * 10**9 + 250_000_000
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    ahead_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - clocks.boot_ns()
    assert DAY_NS - (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before_ns) <= ahead_ns <= DAY_NS


def test_offsets_of_children_are_not_those_of_the_process(process: Path) -> None:
    """`unshare --time` without --fork moves only the children."""
    put(process, "4026531834", "4026532528")
    assert clocks.offset_ns("boottime") == 0


def test_kernels_without_time_namespaces_have_no_offsets(process: Path) -> None:
    """Before Linux 5.6, /proc shows none."""
    assert not (process / "timens_offsets").exists()
    assert clocks.offset_ns("boottime") == 0


def test_probes_read_no_clock_of_the_process() -> None:
    """What the kernel's programs write is compared with the kernel's clocks."""
    wrong = re.compile(r"time\.(monotonic_ns|CLOCK_BOOTTIME|CLOCK_MONOTONIC)\b")
    (folder,) = map(Path, nettop.probes.__path__)
    assert not [str(path) for path in folder.rglob("*.py") if wrong.search(path.read_text())]
