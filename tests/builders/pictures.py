# SPDX-License-Identifier: Apache-2.0
"""Examples by name, each with the app over it, for pictures and for tests that read the whole screen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from textual.pilot import Pilot

from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import bandwidth, collector, connections, cpu, drops, findings, latency, services
from nettop.snapshots.collector import EXPORTERS, LEDGER
from nettop.snapshots.latency import IP, STAGE_TABLE, WIRE_IP
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.themes import DARK
from tests.builders import (
    example_bandwidth,
    example_cpu,
    example_findings,
    example_flows,
    example_latency,
    example_services,
)
from tests.builders.driving import Running, running
from tests.builders.example_events import eventful_host
from tests.builders.harness import Batches, Harness, Step, busy_host, harness_of, steps_of
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_frame, make_hooks, make_rows

NARROW, WIDE = (80, 24), (160, 45)
"""The sizes of pictures."""


class Example(NamedTuple):
    """Readings of a host, and what the app over them needs."""

    steps: Sequence[Step]
    lens_set: tuple[Lens, ...] = (connections.LENS,)
    details: dict[str, str] | None = None
    batches: Batches | None = None
    silent: Collection[str] = ()

    def app(self, view: str, theme: str = DARK.name) -> tuple[NettopApp, Harness]:
        """Return the app in a view, and its harness."""
        harness = harness_of(self.steps, self.details, self.batches, self.silent)
        return harness.app(Settings(view=ViewSettings(view=view)), theme, self.lens_set), harness

    def run(self, view: str, size: tuple[int, int]) -> AbstractAsyncContextManager[Running]:
        """Run the app in a view over all readings."""
        return running(
            [*self.steps],
            size,
            batches=self.batches,
            view=view,
            ticks=len(self.steps),
            silent=self.silent,
            lens_set=self.lens_set,
        )


def hostile_host() -> list[Step]:
    """Return two readings of processes whose names contain terminal escapes and markup."""
    names = [
        "\x1b[31mred\x1b[0m",
        "[bold]x[/bold]",
        "日本語サーバー名前",
        "a\u202egnp.exe",
        "z\u200bero",
        "\x9b2J",
    ]
    now: list[Row] = [
        {"id": n, "process": safe_text(name), "pid": 99 + n, "bytes_sent": (10 - n) * 1000, "bytes_received": 0}
        for n, name in enumerate(names, 1)
    ]  # fmt: skip
    return steps_of(make_frame(now, [row | {"bytes_sent": 0} for row in now]))


def without_collector() -> Snapshot:
    """Return the reading of a host on which no collector answers."""
    tables = {table.name: make_rows([], table, TAKEN_NS) for table in (EXPORTERS, LEDGER)}
    hooks = make_hooks({"collector": "n/a: start nettop collect: none answers at http://127.0.0.1:9472"})
    return Snapshot("collector", WALL_NS, TAKEN_NS, tables, hooks=hooks)


def _eventful() -> Example:
    steps, batches = eventful_host()
    return Example(steps[:2], batches=batches)


def _findings(*, calm: bool = False) -> Example:
    lens_set = (connections.LENS, drops.LENS, findings.LENS)
    details = {"command": "reportd --all"}
    return Example(example_findings.example_steps(20, calm=calm), lens_set, details, silent=(drops.LENS.id,))


def _latency(count: int, **how: Any) -> Example:
    return Example(example_latency.example_steps(count, **how), (latency.LENS,), silent=STAGE_TABLE.uses)


def _flows(*steps: Snapshot) -> Example:
    return Example(steps, (collector.LENS,), {"EXPORTER": "10.255.0.2 port 50123 IPFIX domain 256"})


EXAMPLES: dict[str, Callable[[], Example]] = {
    "busy": lambda: Example(
        busy_host(),
        details={
            "held by": "nginx 1813, descriptor 12",
            "also held by": "nginx 1812, descriptor 12; nginx 1814, descriptor 12",
            "command": "nginx: worker process",
            "cgroup": "/system.slice/nginx.service",
        },
    ),
    "eventful": _eventful,
    "hostile": lambda: Example(hostile_host()),
    "bandwidth": lambda: Example(
        example_bandwidth.example_steps(25, apart_s=5), (bandwidth.LENS,), example_bandwidth.DETAILS
    ),
    "cpu": lambda: Example(example_cpu.example_steps(), (cpu.LENS,)),
    "findings": _findings,
    "calm": lambda: _findings(calm=True),
    "flows": lambda: _flows(*example_flows.example_steps()),
    "no collector": lambda: _flows(without_collector()),
    "latency": lambda: _latency(90),
    "latency in part": lambda: _latency(3, missing=(WIRE_IP, IP)),
    "services": lambda: Example(example_services.example_steps(90), (services.LENS,)),
    "no services": lambda: Example(
        [example_services.not_available("the kernel has no BTF")], (services.LENS,)
    ),
}


def player(harness: Harness, keys: Sequence[str], ticks: int) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Return a function that lets the sampler read so often, then presses keys."""

    async def play(pilot: Pilot[Any]) -> None:
        for _ in range(ticks):
            harness.tick()
            await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
            harness.run_tasks()
            await pilot.pause()
        for cursor in pilot.app.screen.query("Input"):
            cursor.cursor_blink = False
        await pilot.pause()

    return play
