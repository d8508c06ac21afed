# SPDX-License-Identifier: Apache-2.0
"""Run nettop's screens over changing sockets: `changing_screen.py ROWS DESCRIPTOR`, on a terminal.

The sampler runs as usual; only the kernel is simulated. Every row changes at each refresh. Just before each
snapshot goes to the bus, its time (CLOCK_MONOTONIC, ns, 8 bytes) is written to the descriptor.
"""

import os
import struct
import sys
import time

import numpy as np

from nettop.engine.session import Session
from nettop.probes.connections.socket_rows import ROW
from nettop.screens.app import run_app
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.snapshots.source import SourceOptions

COUNTERS = [field.name for field in SOCKETS.fields if field.kind is Kind.COUNTER]
GAUGES = ("rtt_us", "rtt_var_us", "cwnd", "send_queue", "delivery_rate")


class Changing:
    """A source in which every counter and gauge changes at each refresh."""

    def __init__(self, rows: int, clock: int) -> None:
        self._chance = np.random.default_rng(1)
        self._rows = first_rows(rows)
        self._clock = clock

    def start(self) -> None:
        """Do nothing: there is nothing to attach."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the next snapshot."""
        now = self._rows = self._rows.copy()
        for name in COUNTERS:
            now[name] += self._chance.integers(1, 100_000, len(now), dtype=np.uint32)
        for name in GAUGES:
            now[name] = self._chance.integers(1, 100_000, len(now))
        texts = {field.name: [""] for field in SOCKETS.fields if field.kind is Kind.TEXT} | {
            "process": ["nginx", "postgres", "java"],
            "cgroup": ["/"],
            "container": ["docker:4f1c2ab09d7e"],
        }
        wall = time.time_ns()
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        snapshot = Snapshot(LENS.id, wall, boot, {SOCKETS.name: Rows(SOCKETS, now, texts, taken_ns)})
        os.write(self._clock, struct.pack("=Q", time.monotonic_ns()))
        return snapshot

    def configure(self, options: SourceOptions) -> None:
        """Ignore the options: there are none."""

    def describe(self, key: int) -> dict[str, str]:
        """Return nothing: the rows need no description."""
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to detach."""


class Nothing(Changing):
    """A source of another lens, such as the findings, that finds nothing: it must not draw another refresh."""

    def __init__(self, lens: str) -> None:
        self._lens = lens

    def read(self, taken_ns: int) -> Snapshot:
        """Return a snapshot without tables."""
        return Snapshot(self._lens, time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), {})


def first_rows(count: int) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """Return `count` connections of three processes, each with its own peer."""
    rows = np.zeros(count, ROW)
    rows["id"] = np.arange(count) + 1
    rows["protocol"], rows["family"], rows["state"], rows["direction"], rows["owner_source"] = 6, 2, 1, 3, 1
    rows["local_address"][:, 1] = 0xFFFF_0A00_0307
    rows["remote_address"][:, 1] = 0xFFFF_CB00_0000 + np.arange(count)
    rows["local_port"], rows["remote_port"] = 443, 1024 + np.arange(count) % 60_000
    rows["pid"] = 1000 + np.arange(count) % 3
    rows["process"] = np.arange(count) % 3
    rows["opened_at"] = np.iinfo(np.uint64).max
    return rows


def main() -> None:
    """Show the screens until the user quits."""
    source = Changing(int(sys.argv[1]), int(sys.argv[2]))
    settings = Settings(0.7, ViewSettings(sort="-bytes_sent_per_s"))
    with Session(settings.interval_s, lambda lens: source if lens == LENS.id else Nothing(lens)) as session:
        run_app(settings, session)


if __name__ == "__main__":
    main()
