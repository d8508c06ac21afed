# SPDX-License-Identifier: Apache-2.0
"""Whether totals and rates are what programs moved: `sudo .venv/bin/python bench/totals.py [--quick]`.

lives.c opens connections that live 0.05 to 5 s, holds others open, moves bulk and starts short processes, and counts
what it moves. The probe is read once a second; the sum of all rows' rates, which is the headline, is held against those
counts, and the sum of all intervals against the counts at the end. A second run has a ring for a few events only.
"""

import argparse
import itertools
import os
import select
import statistics
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import Figure, built, report
from sockets import own_namespace

from nettop.probes.connections.probe import Connections
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.connections import RING_SIZE, SOCKETS
from nettop.snapshots.snapshot import Frame, Snapshot

MOVED = ("bytes_sent", "bytes_received")
COUNTS = np.dtype([(name, "u8") for name in (*MOVED, "made", "ready")])
"""Of each process of lives.c."""
DIFFERENCES = replace(text_query(SOCKETS), all_rows=True, closed=True, deltas=True)
INTERVAL_S = 1.0


@dataclass(frozen=True)
class Load:
    """What lives.c is to do, for so many seconds: connections a second, connections that stay, MB/s, processes a
    second."""

    seconds: float
    new_per_s: int
    live: int
    bulk_mb_per_s: int
    processes_per_s: int


@dataclass(frozen=True)
class Reading:
    """A snapshot, and what lives.c counted by then: the mean of just before and just after the table was read."""

    snapshot: Snapshot
    at: float
    counts: dict[str, float]
    is_steady: bool
    cpu_s: float


class Sampler:
    """The probe as nettop uses it: read once a second, and drained whenever its ring wakes it."""

    def __init__(self, ring_bytes: int, counts: Path) -> None:
        self._counts = counts
        self.probe = Connections()
        self.probe.set(RING_SIZE.name, ring_bytes)
        self.probe.set("udp", "off")
        self.probe.set("table", "events")
        self.probe.start()
        self._read_table = self.probe.table.read_owned
        self.probe.table.read_owned = self._note_and_read
        self._noted: list[tuple[float, dict[str, int]]] = []
        self._due = time.monotonic()

    def _note_and_read(self, *arguments: Any) -> Any:
        """Read the table, and note what was counted before and after."""
        before = time.monotonic(), self.counted()
        rows = self._read_table(*arguments)
        self._noted = [before, (time.monotonic(), self.counted())]
        return rows

    def read(self, *, is_steady: bool) -> Reading:
        """The next reading, when it is due."""
        self._due += INTERVAL_S
        while (left := self._due - time.monotonic()) > 0:
            if select.select(self.probe.wakeups(), [], [], left)[0]:
                self.probe.drain(time.monotonic_ns())
        snapshot = self.probe.read(time.monotonic_ns())
        self.probe.drain(time.monotonic_ns())
        (begun, before), (ended, after) = self._noted
        counts = {name: (before[name] + after[name]) / 2 for name in before}
        return Reading(snapshot, (begun + ended) / 2, counts, is_steady, time.process_time())

    def counted(self) -> dict[str, int]:
        """What lives.c has counted by now."""
        counts = np.frombuffer(self._counts.read_bytes(), COUNTS)
        return {name: int(counts[name].sum()) for name in COUNTS.names or ()}


def sample(compiled: str, load: Load, ring_bytes: int) -> list[Reading]:
    """Readings from before the load until it has ended; those are steady before which and after which it went on."""
    counts = Path(compiled).with_name("counts")
    counts.write_bytes(bytes(4 * COUNTS.itemsize))
    sampler = Sampler(ring_bytes, counts)
    try:
        readings = [sampler.read(is_steady=False)]
        amounts = (load.new_per_s, load.live, load.bulk_mb_per_s, load.processes_per_s)
        with subprocess.Popen([compiled, str(counts), str(load.seconds), *map(str, amounts)]) as lives:
            ends_at = time.monotonic() + load.seconds
            while lives.poll() is None:
                is_ready = sampler.counted()["ready"] == len(amounts)
                readings.append(sampler.read(is_steady=is_ready and time.monotonic() + INTERVAL_S < ends_at))
        if lives.returncode:
            raise SystemExit(f"lives.c failed ({lives.returncode})")
        return [*readings, sampler.read(is_steady=False), sampler.read(is_steady=False)]
    finally:
        sampler.probe.close()


@dataclass(frozen=True)
class Interval:
    """What rows say of an interval, what of it is the rest's, and how far the headline is from what was counted."""

    moved: int
    rest: int
    deviation: float | None


def intervals(readings: list[Reading], name: str, netns: int) -> list[Interval]:
    """What each interval adds to a counter in this namespace, and to the rest; only steady ones have a deviation."""
    added = []
    for before, now in itertools.pairwise(readings):
        view = View(Frame(now.snapshot, before.snapshot), DIFFERENCES)
        ours = np.flatnonzero((view.raw("netns") == netns) | view.rest)
        headline = view.total(f"{name}_per_s", ours) or 0.0
        counted = (now.counts[name] - before.counts[name]) / (now.at - before.at)
        is_steady = before.is_steady and now.is_steady
        added.append(
            Interval(
                int(view.total(name, ours) or 0),
                int(view.total(name, np.flatnonzero(view.rest)) or 0),
                abs(headline / counted - 1) if is_steady else None,
            )
        )
    return added


def others(readings: list[Reading], netns: int) -> int:
    """What the rows of other namespaces add up to: bytes sent."""
    views = [
        View(Frame(now.snapshot, last.snapshot), DIFFERENCES) for last, now in itertools.pairwise(readings)
    ]
    return sum(
        int(view.total(MOVED[0], np.flatnonzero((view.raw("netns") != netns) & ~view.rest)) or 0)
        for view in views
    )


def compare(title: str, compiled: str, load: Load, ring_bytes: int) -> None:
    """One run, and how far rows and headline are from what lives.c counted."""
    readings = sample(compiled, load, ring_bytes)
    netns = os.stat("/proc/self/ns/net").st_ino
    first, last = readings[0], readings[-1]
    steady = [reading for reading in readings if reading.is_steady]
    lasted = steady[-1].at - steady[0].at
    figures = [
        Figure(
            "connections made a second", (steady[-1].counts["made"] - steady[0].counts["made"]) / lasted, "/s"
        ),
        Figure("rows listed at most", max(len(r.snapshot.tables[SOCKETS.name]) for r in readings), ""),
        Figure(
            "moved a second", (steady[-1].counts[MOVED[0]] - steady[0].counts[MOVED[0]]) / lasted / 1e6, "MB"
        ),
    ]
    for name in MOVED:
        added = intervals(readings, name, netns)
        deviations = [100 * each.deviation for each in added if each.deviation is not None]
        moved = sum(each.moved for each in added)
        figures += [
            Figure(
                f"{name}: headline's worst deviation in {len(deviations)} intervals", max(deviations), "%", 1
            ),
            Figure(f"{name}: headline's median deviation", statistics.median(deviations), "%"),
            Figure(f"{name}: rows and rest together", moved, "B"),
            Figure(f"{name}: more than the programs' count", moved - last.counts[name], "B"),
            Figure(f"{name}: of it in the rest", sum(each.rest for each in added), "B"),
        ]
    figures += [
        Figure(f"lost: {name}", count - first.snapshot.lost.get(name, 0), "")
        for name, count in last.snapshot.lost.items()
        if count != first.snapshot.lost.get(name, 0)
    ]
    figures.append(
        Figure("sent in other namespaces, whose losses are in the rest too", others(readings, netns), "B")
    )
    used = 100 * (steady[-1].cpu_s - steady[0].cpu_s) / lasted
    figures.append(Figure("CPU of readings and events", used, "%"))
    report(f"{title}, {load.seconds:g} s", figures)


def main() -> None:
    """Runs with a ring that is large enough, and with one that is not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    quick = parser.parse_args().quick
    own_namespace()
    load = Load(8, 500, 500, 20, 20) if quick else Load(60, 2000, 5000, 50, 50)
    with built("lives.c") as compiled:
        default = int(str(RING_SIZE.default))
        compare(f"A ring of {default >> 10} KiB", compiled, load, default)
        short = replace(load, seconds=min(load.seconds, 20))
        compare("A ring of two pages", compiled, short, 2 * os.sysconf("SC_PAGE_SIZE"))


if __name__ == "__main__":
    main()
