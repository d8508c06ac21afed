# SPDX-License-Identifier: Apache-2.0
"""Several hosts on the screens: the host of each row, totals over hosts, and a host that is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nettop.hosts.hosts import HostRecording
from nettop.snapshots import several_hosts
from tests.builders.driving import Running, press, shown, text_of
from tests.builders.two_hosts import two_hosts


@pytest.fixture(autouse=True)
def columns_of_hosts() -> Iterator[None]:
    """Have rows of several hosts, as with --host."""
    with several_hosts():
        yield


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
        hosts.lost_hosts = {"db1": HostRecording("db1", ("connections",), cause="it is off", lost_at=0.0)}
        run[2].tick()
        await run[0].pause()
        (line,) = lines(run)
        assert "on-web1" in line
        assert "↑ 8.0 Mb/s   1 conn " in shown(run).headline_bar.text
        assert "!1 gap" in shown(run).headline_bar.text
