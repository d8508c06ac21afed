# SPDX-License-Identifier: Apache-2.0
"""The screen of the flows lens: exporters, and what became of what they sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nettop.settings import Settings, ViewSettings
from nettop.snapshots.flows import EXPORTERS, LEDGER, LENS
from nettop.snapshots.snapshot import Snapshot
from tests.builders.example_flows import example_steps
from tests.builders.harness import Harness, Script
from tests.screens.test_screenshots import SIZES, player
from tests.unit.build import TAKEN_NS, WALL_NS, make_hooks, make_rows

Draw = Callable[..., bool]


@pytest.fixture
def draw(snap_compare: Callable[..., bool]) -> Draw:
    """Show the lens after some readings and keys, and compare the screen."""

    def compare(steps: list[Snapshot], size: tuple[int, int], *keys: str, view: str = "flows") -> bool:
        script = Script(steps, {"EXPORTER": "10.255.0.2 port 50123 IPFIX domain 256"})
        harness = Harness({"flows": script}.__getitem__)
        harness.session._source = {"flows": script}.__getitem__  # type: ignore[method-assign]
        app = harness.app(Settings(view=ViewSettings(view=view)), lens_set=(LENS,))
        return snap_compare(app, terminal_size=size, run_before=player(harness, keys, 3))

    return compare


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_exporters(draw: Draw, size: tuple[int, int]) -> None:
    """Who reports most, with a row chosen: one that has lost exports."""
    assert draw(example_steps(), size, "down", "down")


def test_details(draw: Draw) -> None:
    """All that is known of an exporter."""
    assert draw(example_steps(), (120, 40), "down", "down", "right")


def test_ledger(draw: Draw) -> None:
    """What was received, and what became of it."""
    assert draw(example_steps(), (80, 24), view="flows.ledger")


def test_no_collector(draw: Draw) -> None:
    """Where none answers, and why."""
    tables = {table.name: make_rows([], table, TAKEN_NS) for table in (EXPORTERS, LEDGER)}
    hooks = make_hooks({"collector": "n/a: start nettop collect: none answers at http://127.0.0.1:9472"})
    assert draw([Snapshot("flows", WALL_NS, TAKEN_NS, tables, hooks=hooks)], (80, 24))
