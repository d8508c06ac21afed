# SPDX-License-Identifier: Apache-2.0
"""Several hosts on the screens: the host of each row, and a host that is lost."""

from __future__ import annotations

import pytest

from tests.builders.demo import PROCESSES, hosts_playing


@pytest.mark.parametrize("lost", ["", "db1"])
async def test_rows_of_several_hosts(lost: str) -> None:
    """Each row has its host; the rows of a lost host leave the table, which is a gap."""
    async with hosts_playing((160, 40), (57, 58), lost) as app:
        screen = app.lens_screen
        alive = screen.view.order[~screen.view.gone[screen.view.order]]
        hosts, processes = (screen.view.values(name, alive) for name in ("host", "process"))
        assert set(hosts) == PROCESSES.keys() - {lost}
        assert all(process in PROCESSES[host] for host, process in zip(hosts, processes, strict=True))
        assert ("!1 gap" in screen.headline_bar.text) == bool(lost)
        assert f"{len(alive)} conns" in screen.headline_bar.text
