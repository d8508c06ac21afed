# SPDX-License-Identifier: Apache-2.0
"""Compare totals and rates with what programs moved: `sudo .venv/bin/python bench/totals.py [--quick]`.

lives.c opens connections that live 0.05 to 10 s, and counts what it moves over them. The probe is read
once a second; the sum of all rows' rates (the headline) is compared with those counts, and the sum over all intervals
with the counts at the end.
"""

import itertools
import os
import select
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import QUICK, Figure, Report, arguments, judge
from programs import built, running
from sockets import own_namespace

from nettop.probes.connections.probe import Connections
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import COUNT_UDP, SOCKETS
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions

MOVED = ("bytes_sent", "bytes_received")
COUNTS = np.dtype([(name, "u8") for name in (*MOVED, "made")])
"""Counts of lives.c."""
DIFFERENCES = replace(text_query(SOCKETS), all_rows=True, closed=True, deltas=True)
INTERVAL_S = 1.0


@dataclass(frozen=True)
class Reading:
    """A snapshot, and the counts of lives.c at that time: the mean of just before and just after reading the table."""

    snapshot: Snapshot
    at: float
    counts: dict[str, float]
    is_steady: bool
    cpu_s: float


class Sampler:
    """The probe as nettop uses it: read once a second, and drained whenever its ring wakes the reader."""

    def __init__(self, counts: Path) -> None:
        self._counts = counts
        self.probe = Connections()
        self.probe.configure(SourceOptions(frozenset({"events"}), values={COUNT_UDP: "off"}))
        self.probe.start()
        self._read_table = self.probe.table.read_owned
        self.probe.table.read_owned = self._note_and_read
        self._noted: list[tuple[float, dict[str, int]]] = []
        self._due = time.monotonic()

    def _note_and_read(self, *arguments: Any) -> Any:
        """Read the table, and record the counts before and after."""
        before = time.monotonic(), self.counted()
        rows = self._read_table(*arguments)
        self._noted = [before, (time.monotonic(), self.counted())]
        return rows

    def read(self, *, is_steady: bool) -> Reading:
        """Wait until the next reading is due, and return it."""
        self._due += INTERVAL_S
        while (left := self._due - time.monotonic()) > 0:
            if select.select(self.probe.wakeups(), [], [], left)[0]:
                self.probe.drain(time.monotonic_ns())
        snapshot = self.probe.read(time.monotonic_ns())
        self.probe.drain(time.monotonic_ns())
        (started, before), (ended, after) = self._noted
        counts = {name: (before[name] + after[name]) / 2 for name in before}
        return Reading(snapshot, (started + ended) / 2, counts, is_steady, time.process_time())

    def counted(self) -> dict[str, int]:
        """Return the counts of lives.c so far."""
        (counts,) = np.frombuffer(self._counts.read_bytes(), COUNTS)
        return {name: int(counts[name]) for name in COUNTS.names or ()}


def sample(compiled: str, seconds: float, per_s: int) -> list[Reading]:
    """Return readings from before the load to after it; a reading is steady if the load ran before and after it."""
    counts = Path(compiled).with_name("counts")
    counts.write_bytes(bytes(COUNTS.itemsize))
    sampler = Sampler(counts)
    with closing(sampler.probe):
        readings = [sampler.read(is_steady=False)]
        with running(compiled, str(counts), str(seconds), str(per_s), err=sys.stderr) as lives:
            ends_at = time.monotonic() + seconds
            while lives.poll() is None:
                is_made = sampler.counted()["made"] > 0
                readings.append(sampler.read(is_steady=is_made and time.monotonic() + INTERVAL_S < ends_at))
            if lives.returncode:
                raise SystemExit(f"lives.c failed ({lives.returncode})")
        return [*readings, sampler.read(is_steady=False), sampler.read(is_steady=False)]


def views(readings: list[Reading]) -> Iterator[tuple[Reading, Reading, View]]:
    """Yield the readings at both ends of each interval, and the deltas of its rows."""
    for before, now in itertools.pairwise(readings):
        yield before, now, View(Frame(now.snapshot, before.snapshot), DIFFERENCES)


def total(view: View, name: str, rows: Array) -> int:
    """Sum the chosen rows' deltas of a counter."""
    return int(view.total(name, np.flatnonzero(rows)) or 0)


def of_counter(readings: list[Reading], name: str, netns: int) -> list[Figure]:
    """Compare the deltas of rows and headline with the true counts; only steady intervals have a deviation."""
    moved, rest, deviations = 0, 0, []
    for before, now, view in views(readings):
        ours = (view.raw("netns") == netns) | view.rest
        moved += total(view, name, ours)
        rest += total(view, name, view.rest)
        if before.is_steady and now.is_steady:
            headline = view.total(f"{name}_per_s", np.flatnonzero(ours)) or 0.0
            counted = (now.counts[name] - before.counts[name]) / (now.at - before.at)
            deviations.append(100 * abs(headline / counted - 1))
    worst = f"{name}: headline's worst deviation in {len(deviations)} intervals"
    return [
        Figure(worst, max(deviations), "%", 1),
        Figure(f"{name}: headline's median deviation", statistics.median(deviations), "%"),
        Figure(f"{name}: rows including the rest", moved, "B"),
        Figure(f"{name}: excess over the programs' count", moved - readings[-1].counts[name], "B"),
        Figure(f"{name}: in the rest", rest, "B"),
    ]


def compare(seconds: float, per_s: int) -> Report:
    """Run the load; compare rows and headline with the counts of lives.c."""
    with built("lives.c") as compiled:
        readings = sample(compiled, seconds, per_s)
    netns = os.stat("/proc/self/ns/net").st_ino
    lost = {
        name: count - readings[0].snapshot.lost.get(name, 0)
        for name, count in readings[-1].snapshot.lost.items()
    }
    steady = [reading for reading in readings if reading.is_steady]
    first, last = steady[0], steady[-1]
    lasted = last.at - first.at
    elsewhere = sum(
        total(view, MOVED[0], (view.raw("netns") != netns) & ~view.rest) for _, _, view in views(readings)
    )
    return f"{per_s:,} connections per second, {seconds:g} s", [
        Figure("connections made per second", (last.counts["made"] - first.counts["made"]) / lasted, "/s"),
        Figure("maximum number of rows", max(len(r.snapshot.tables[SOCKETS.name]) for r in readings)),
        Figure("moved per second", (last.counts[MOVED[0]] - first.counts[MOVED[0]]) / lasted / 1e6, "MB"),
        *(figure for name in MOVED for figure in of_counter(readings, name, netns)),
        *(Figure(f"lost: {name}", count) for name, count in lost.items() if count),
        Figure("sent in other namespaces, whose losses are also in the rest", elsewhere, "B"),
        Figure("CPU of readings and events", 100 * (last.cpu_s - first.cpu_s) / lasted, "%"),
    ]


def main() -> int:
    """Run the load, a small one if `--quick`."""
    options = arguments(__doc__, quick=QUICK)
    own_namespace()
    return judge([compare(8, 500) if options.quick else compare(60, 2000)])


if __name__ == "__main__":
    sys.exit(main())
