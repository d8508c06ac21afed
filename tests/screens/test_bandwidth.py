# SPDX-License-Identifier: Apache-2.0
"""The bandwidth screens by pilot: the chosen interface as a graph, its keys, and small terminals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from nettop.screens.actions import BY_ID
from nettop.screens.bandwidth import InterfacesScreen, Share, fitting
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.bandwidth import INTERFACES, LENS, LOOPBACK
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.schema import Lens
from tests.builders.driving import Running, lines, press, running, shown, text_of, tick, values_of
from tests.builders.example_bandwidth import (
    ETH0,
    SECOND_NS,
    example_steps,
    only_counters,
    with_many,
    without_eth0,
)
from tests.builders.harness import Step, busy_host


@asynccontextmanager
async def on_interfaces(
    steps: list[Step] | None = None, size: tuple[int, int] = (120, 40), lens_set: tuple[Lens, ...] = (LENS,)
) -> AsyncIterator[tuple[Running, InterfacesScreen]]:
    """Yield the interfaces over three seconds of the example."""
    chosen = [*example_steps()] if steps is None else steps
    settings = Settings(view=ViewSettings(view="bandwidth"))
    async with running(chosen, size, settings=settings, ticks=3, lens_set=lens_set) as run:
        screen = run[1]
        yield run, screen


# --- the chosen interface ---------------------------------------------------------------------------------------


async def test_the_graph_follows_the_chosen_row() -> None:
    """The graph is the first row's until one is selected, and stays with it when the order changes. → opens details
    beside it; many rows leave it room."""
    async with on_interfaces() as (run, screen):
        assert lines(screen.graph)[0] == " eth0: the last two minutes"
        assert lines(screen.graph)[1].split("▏")[0] == "  290 Mb/s "
        await press(run, "down", "down")
        assert lines(screen.graph)[0] == " docker0: the last two minutes"
        assert lines(screen.shares)[0] == " docker0: protocols"
        await press(run, "S")
        assert values_of(screen, "interface")[-2:] == ["docker0", "eth0"]
        assert lines(screen.graph)[0] == " docker0: the last two minutes"
        await press(run, "end", "right")
        assert "COMMAND" in screen.details.text
        assert run[2].script.described == [ETH0]
        await press(run, "left")
        assert not screen.details_open
    async with on_interfaces([with_many(step, 100) for step in example_steps()], (80, 24)) as (run, screen):
        assert (screen.rows.size.height, screen.graph.size.height) == (12, 8)
        await press(run, "end")
        assert screen.rows.at == 99


async def test_the_history_does_not_grow() -> None:
    """Intervals older than two minutes are dropped, and so are removed interfaces; averages leave no trace in it."""
    steps = example_steps(7, apart_s=50)
    async with on_interfaces([*steps[:3], *map(without_eth0, steps[3:])]) as (run, screen):
        assert [seconds for seconds, _ in intervals(screen)] == [50, 50]
        await press(run, "A")
        await tick(run)
        assert [seconds for seconds, _ in intervals(screen)] == [50, 50]
        await press(run, "A", "A", "A")
        for _ in range(3):
            await tick(run)
        assert intervals(screen) == []
        assert len(screen._traced) == 5


async def test_shares_are_parts_of_the_interface() -> None:
    """Shares are sorted, with a rate of both directions each; zeros are left out."""
    async with on_interfaces(size=(120, 30)) as (run, screen):
        split = [line.split() for line in lines(screen.shares)]
        assert split[0] == ["eth0:", "protocols"]
        assert [(line[0], line[1], line[-2:]) for line in split[1:4]] == [
            ("tcp", "93.0%", ["320", "Mb/s"]),
            ("udp", "6.4%", ["22.0", "Mb/s"]),
            ("other", "0.4%", ["1.5", "Mb/s"]),
        ]
        await press(run, "end")
        assert not [line for line in lines(screen.shares) if "arp" in line]
        assert lines(screen.shares)[1].split()[:2] == ["tcp", "60.0%"]


async def test_shares_of_another_namespaces_interface_are_unknown() -> None:
    """An interface of another namespace may have the name of one here, so its shares are unknown."""
    steps = [only_counters(step) for step in example_steps()]
    async with on_interfaces([*steps]) as (_, screen):
        assert lines(screen.graph)[0] == " eth0: the last two minutes"
        assert not "".join(lines(screen.shares))


@pytest.mark.parametrize(
    ("shares", "room", "labels"),
    [
        ([5.0, 3.0, 1.0], 3, ["0", "1", "2"]),
        ([5.0, 3.0, 1.0], 2, ["0", "2 more"]),
        ([5.0, 3.0, 1.0], 1, ["3 more"]),
        ([], 1, []),
    ],
)
def test_interfaces_without_a_line_are_summed(shares: list[float], room: int, labels: list[str]) -> None:
    """The last line sums the parts that have no line of their own."""
    group = [Share(str(n), rate, rate / 2) for n, rate in enumerate(shares)]
    shown = fitting(group, room)
    assert [share.label for share in shown] == labels
    assert sum(share.received for share in shown) == sum(shares)


def intervals(screen: InterfacesScreen) -> list[tuple[int, float | None]]:
    """Return the seconds of each interval of eth0, and what it received in it."""
    kept = screen._traced.get(ETH0)
    return (
        [
            ((interval.end_ns - interval.begin_ns) // SECOND_NS, interval.rates[0])
            for interval in kept.intervals
        ]
        if kept
        else []
    )


# --- keys -------------------------------------------------------------------------------------------------------


async def test_the_key_of_another_lens_does_nothing() -> None:
    """`L` is an option of this lens alone."""
    async with running(busy_host()) as run:
        await press(run, "L")
        assert LOOPBACK not in run[2].script.options.values
        assert "L loopback" not in shown(run).footer.text


async def test_bytes_everywhere() -> None:
    """`B` shows each rate in bytes, also in tables that are opened later, and bits again."""
    async with on_interfaces() as (run, screen):
        assert screen.keys.label_of(BY_ID["unit"]) == "bytes"
        await press(run, "B")
        assert screen.keys.label_of(BY_ID["unit"]) == "bits"
        shown_now = [screen.headline_bar.text, screen.third_line.text, *text_of(screen.rows)]
        shown_now += [*lines(screen.graph), *lines(screen.shares)]
        assert "33.4 MB/s" in "".join(text_of(screen.rows))
        assert not [text for text in shown_now if "b/s" in text]
        await press(run, "p")
        assert "MB/s" in text_of(shown(run).rows)[1]
        await press(run, "B", "P")
        assert "267 Mb/s" in text_of(screen.rows)[1]


# --- other hosts, other terminals -------------------------------------------------------------------------------


async def test_no_uplink_no_totals() -> None:
    """If all interfaces are virtual the totals are unknown, not 0."""
    async with on_interfaces([*example_steps(uplinks=False)]) as (_, screen):
        assert screen.headline_bar.text.startswith(" no uplink   virtual ↓ ")
        assert "interfaces 4   drops in 9 " in screen.headline_bar.text


async def test_interfaces_with_errors_are_found() -> None:
    """An interface whose errors grow is a finding, and the key shows it alone."""
    before, now = example_steps(2)
    errors = now.tables[INTERFACES.name].array["errors"]
    errors[0] = 7
    async with on_interfaces([before, before, now], lens_set=(LENS, FINDINGS)) as (run, screen):
        assert "! ▲ eth0 has 7 receive or send errors/s" in screen.findings.text
        await press(run, "exclamation_mark")
        assert screen.state.query.filter.text.endswith(INTERFACES.rules[0].filter)
        assert list(screen.rows.order) == [0]
