# SPDX-License-Identifier: Apache-2.0
"""What tells rows apart on terminals with few columns: the state of a socket, and its network namespace."""

from __future__ import annotations

import pytest

from nettop.screens.connections.sockets import ConnectionsScreen
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import STATES
from tests.builders.driving import press, running, shown, text_of, tick
from tests.builders.harness import Step
from tests.unit.build import Row, make_frame


def reading(*rows: Row) -> list[Step]:
    """Return one reading of these connections."""
    return [make_frame([{"rtt_us": 21_400, "rtt_var_us": 3_100} | row for row in rows], None).now]


@pytest.mark.parametrize(("width", "state"), [(80, "CLOSE_W"), (120, "CLOSE_WAIT")])
async def test_an_unusual_state_stands_in_place_of_the_rtt(width: int, state: str) -> None:
    """Where there is no room for the state, only established and closed connections show their round-trip time."""
    (first,) = reading({"id": 1, "process": "curl", "state": "CLOSE_WAIT"}, {"id": 2, "process": "nginx"})
    async with running([first, make_frame([], None, 1).now], (width, 20), ticks=1) as run:
        curl, nginx = text_of(shown(run).rows)[1:3]
        assert state in curl
        assert "21.4" not in curl
        assert "21.4" in nginx
        assert "ESTAB" not in nginx
        await tick(run)
        assert text_of(shown(run).rows)[1].startswith("×curl")
        assert "21.4" in text_of(shown(run).rows)[1]


async def test_a_state_is_shown_once() -> None:
    """The state replaces no round-trip time if it has its own column or the user chose the columns."""
    steps = reading({"process": "curl", "state": "CLOSE_WAIT"})
    async with running(steps, (160, 20), ticks=1) as run:
        line = text_of(shown(run).rows)[1]
        assert line.count("CLOSE") == 1
        assert "21.4 ±3.1 ms" in line
    settings = Settings(view=ViewSettings(columns=("process", "rtt_us")))
    async with running(steps, (80, 20), ticks=1, settings=settings) as run:
        assert "21.4 ms" in text_of(shown(run).rows)[1]


def test_every_state_fits_in_place_of_a_round_trip_time() -> None:
    """Each state has a form of at most seven cells."""
    note = ConnectionsScreen.row_style.note
    assert all(len(note.short.get(state, state)) <= 7 for state in STATES.values() if state != note.usual)


IN_TWO_NAMESPACES = (
    {"process": "nginx", "pid": 1812, "namespace": "own"},
    {"process": "nginx", "pid": 1813, "namespace": "docker:0123456789ab"},
)


@pytest.mark.parametrize("field", ["process", "local_port", "namespace"])
async def test_no_namespace_is_shown_without_need(field: str) -> None:
    """No namespace is shown if rows differ in visible columns, or not in their namespaces."""
    values = {"process": ("nginx", "java"), "local_port": (443, 80), "namespace": ("own", "own")}[field]
    rows = [row | {field: value} for row, value in zip(IN_TWO_NAMESPACES, values, strict=True)]
    async with running(reading(*rows), ticks=1) as run:
        assert "NAMESPACE" not in text_of(shown(run).rows)[0]


async def test_a_namespace_that_was_needed_stays() -> None:
    """No column comes and goes with the order of rows; rows that are not visible need none."""
    others = [{"process": f"p{n}", "local_port": n, "namespace": "own"} for n in range(1, 40)]
    async with running(reading(*others, *IN_TWO_NAMESPACES), ticks=1) as run:
        for key, is_shown in (("home", False), ("end", True), ("home", True)):
            await press(run, key)
            assert ("NAMESPACE" in text_of(shown(run).rows)[0]) == is_shown
        assert any("own" in line for line in text_of(shown(run).rows))
