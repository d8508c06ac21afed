# SPDX-License-Identifier: Apache-2.0
"""Two hosts on the connections screen, of which one can be lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nettop.errors import SourceFailed
from nettop.hosts.hosts import HostRecording
from nettop.hosts.source import HostsSource
from nettop.recording.reader import Reading
from nettop.snapshots import lenses
from nettop.snapshots.snapshot import Rows
from tests.builders.driving import Running
from tests.builders.harness import Harness
from tests.unit.build import make_frame
from tests.unit.recordings import at_second


class FakeHosts:
    """Two hosts, whose connections send more each second, until one is lost."""

    def __init__(self) -> None:
        self.lost_hosts: dict[str, HostRecording] = {}
        self.second = 0
        self.interval_s, self.clock = 1.0, time.monotonic

    def use(self, lens: str, *, with_events: bool = False) -> None:
        """Do nothing: the readings are made on demand."""

    release = use

    def newest(self, lens: str) -> dict[str, Reading]:
        """Return readings, a second apart, of hosts that are not lost."""
        self.second += 1
        rates = {"web1": 1_000_000, "db1": 3_000_000}
        return {
            host: self._reading(rate, host) for host, rate in rates.items() if host not in self.lost_hosts
        }

    def _reading(self, rate: int, host: str) -> Reading:
        rows = [
            [{"id": 1, "process": f"on-{host}", "bytes_sent": rate * second}]
            for second in (self.second, self.second - 1)
        ]
        frame = make_frame(*rows)
        assert frame.before is not None
        return Reading(at_second(frame.now, self.second), at_second(frame.before, self.second - 1), (), True)

    def lost(self, lens: str) -> dict[str, HostRecording]:
        """Return the lost hosts."""
        return self.lost_hosts

    def failure(self, lens: str) -> SourceFailed | None:
        """Return None: one host is always there."""
        return None

    def take_events(self, lens: str) -> dict[str, list[Rows]]:
        """Return no events."""
        return {}


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Running, FakeHosts]]:
    """Yield the connections of two hosts."""
    hosts = FakeHosts()
    by_id = {lens.id: lens for lens in lenses()}
    harness = Harness(lambda lens: HostsSource(hosts, by_id[lens]))
    app = harness.app(lens_set=tuple(lens for lens in lenses() if lens.id == "connections"))
    async with app.run_test(size=(140, 30)) as pilot:
        for _ in range(2):
            harness.tick()
            await pilot.pause()
        yield (pilot, app.lens_screen, harness), hosts
