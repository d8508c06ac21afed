# SPDX-License-Identifier: Apache-2.0
"""Several hosts on the screens: the host of each row, totals over hosts, and a host that is lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nettop.errors import SourceFailed
from nettop.hosts.hosts import Link
from nettop.hosts.source import HostsSource
from nettop.recording.reader import Reading
from nettop.snapshots import lenses, several_hosts
from nettop.snapshots.snapshot import Rows
from tests.builders.driving import Running, press, shown, text_of
from tests.builders.harness import Harness
from tests.unit.build import make_frame
from tests.unit.recordings import at_second


class FakeHosts:
    """Two hosts, whose connections send more each second, until one is lost."""

    def __init__(self) -> None:
        self.lost_hosts: dict[str, Link] = {}
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

    def lost(self, lens: str) -> dict[str, Link]:
        """Return the lost hosts."""
        return self.lost_hosts

    def failure(self, lens: str) -> SourceFailed | None:
        """Return None: one host is always there."""
        return None

    def take_events(self, lens: str) -> dict[str, list[Rows]]:
        """Return no events."""
        return {}


@pytest.fixture(autouse=True)
def columns_of_hosts() -> Iterator[None]:
    """Have rows of several hosts, as with --host."""
    with several_hosts():
        yield


@asynccontextmanager
async def two_hosts() -> AsyncIterator[tuple[Running, FakeHosts]]:
    """Yield the connections of two hosts."""
    hosts = FakeHosts()
    by_id = {lens.id: lens for lens in lenses()}
    harness = Harness(lambda lens: HostsSource(hosts, by_id[lens]))  # type: ignore[arg-type]
    app = harness.app(lens_set=tuple(lens for lens in lenses() if lens.id == "connections"))
    async with app.run_test(size=(140, 30)) as pilot:
        for _ in range(2):
            harness.tick()
            await pilot.pause()
        yield (pilot, app.lens_screen, harness), hosts


def lines(run: Running) -> list[str]:
    """Return the lines of the table that show a row."""
    return [line for line in text_of(shown(run).rows) if "on-" in line]


async def test_each_row_has_its_host() -> None:
    """The faster one is first; the total is that of both; a filter selects one."""
    async with two_hosts() as (run, _):
        assert [("db1" in line, "on-db1" in line) for line in lines(run)] == [(True, True), (False, False)]
        assert all(line.split()[0] in ("db1", "web1") for line in lines(run))
        assert "↑ 32.0 Mb/s   2 conns" in shown(run).headline_bar.text
        await press(run, "slash", *"host=web1", "enter")
        (line,) = lines(run)
        assert "on-web1" in line


async def test_a_lost_host_leaves_the_table() -> None:
    """Its rows go and it is a gap; those of others stay with their rates."""
    async with two_hosts() as (run, hosts):
        hosts.lost_hosts = {"db1": Link("db1", ("connections",), cause="it is off", lost_at=0.0)}
        run[2].tick()
        await run[0].pause()
        (line,) = lines(run)
        assert "on-web1" in line
        assert "↑ 8.0 Mb/s   1 conn " in shown(run).headline_bar.text
        assert "!1 gap" in shown(run).headline_bar.text
