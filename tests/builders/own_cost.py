# SPDX-License-Identifier: Apache-2.0
"""The costs of nettop in two readings, and a session that reports them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot

from nettop.engine.bus import Bus
from nettop.engine.own_cost import CpuReading, OwnCost
from nettop.engine.own_cost_table import Cost, OwnCostSource
from nettop.engine.pace import OverheadLimit, Pace
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.own_cost import COSTS, HOOK_PROGRAMS, SELF
from nettop.snapshots.snapshot import Snapshot
from tests.builders.harness import Harness, Script, busy_host
from tests.builders.pictures import player

COUNTED = HookStatus(HOOK_PROGRAMS.name, "BPF statistics")

REFUSED = HookStatus(
    HOOK_PROGRAMS.name, None, (("BPF statistics", "the kernel refuses: Operation not permitted"),)
)

MS = 1_000_000

COSTS_BEFORE = [
    Cost("total", "nettop", time_ns=1_900 * MS, memory=58_400_000, late=0, lost=37),
    Cost("thread", "main", time_ns=910 * MS, number=1),
    Cost("thread", "sampler", time_ns=310 * MS, number=2),
    Cost("thread", "namespaces", time_ns=4 * MS, number=3),
    Cost("children", "ended", time_ns=640 * MS),
    Cost("program", "tp_btf/inet_sock_set_state", "connections", 12_000, 4 * MS),
    Cost("program", "tp_btf/sock_send_length", "connections", 900_000, 71 * MS),
    Cost("iterator", "iter/task_file", "connections", 91_000, 55 * MS),
    Cost("maps", "kernel memory", "connections", memory=7_600_000),
    Cost("step", "read", "connections", 8, 31 * MS, 52 * MS, 9 * MS, lost=37),
    Cost("step", "draw", "connections", 16, 190 * MS, 240 * MS, 41 * MS),
]


def later(cost: Cost) -> Cost:
    """Return the same rows a second later, with running programs advanced."""
    if cost.time_ns is None or cost.kind == "children":
        return cost
    return replace_cost(
        cost, time_ns=round(cost.time_ns * 1.012), runs=None if cost.runs is None else cost.runs + 400
    )


def replace_cost(cost: Cost, **values: Any) -> Cost:
    """Return the cost with other values."""
    return cost._replace(**values)


class Clock(OwnCost):
    """A clock set by the test."""

    at_ns = 0

    def _read(self) -> CpuReading:
        return CpuReading(self.at_ns, 0, 0, 0)


def snapshots(hook: HookStatus = COUNTED, limit: OverheadLimit | None = None) -> list[Snapshot]:
    """Return two snapshots of the table, a second apart."""
    cost = Clock(dict)
    source = OwnCostSource(cost, Pace(1.0, cost), Bus())
    limits = [] if limit is None else [Cost("limit", "--max-overhead 2%", note=str(limit))]
    costs = [COSTS_BEFORE[0], *limits, *COSTS_BEFORE[1:]]
    if hook.mechanism is None:
        unknown = {"runs": None, "time_ns": None, "note": f"n/a: {hook.why}"}
        costs = [
            cost_of_hook._replace(**unknown) if cost_of_hook.kind in ("program", "iterator") else cost_of_hook
            for cost_of_hook in costs
        ]
    made = []
    for second, rows in enumerate((costs, list(map(later, costs)))):
        Clock.at_ns = (1000 + second) * 1000 * MS
        cost.take()
        wall_ns = 1_795_000_000_123_456_789 + second * 1000 * MS
        made.append(
            Snapshot(SELF.id, wall_ns, Clock.at_ns, {COSTS.name: source._rows(rows)}, lost={"connections": 37},
                     hooks=(hook,))
        )  # fmt: skip
    return made


def harness_with(own: list[Snapshot]) -> Harness:
    """Return a harness whose connections and whose own cost follow scripts."""
    scripts = {"connections": Script(busy_host()), SELF.id: Script(list(own))}
    harness = Harness(scripts.__getitem__)
    harness.session._source = scripts.__getitem__
    return harness


def stretch(harness: Harness, limit: OverheadLimit) -> None:
    """Have the session report a longer interval for --max-overhead."""
    pace = harness.session._pace
    pace.bound, pace.interval_s, pace._chosen_s = limit.bound, limit.interval_s, limit.chosen_s


Play = Callable[[Pilot[Any]], Awaitable[None]]


def watching(harness: Harness, *keys: str) -> Play:
    """Show connections for two ticks, press these keys, and tick twice more."""

    async def play(pilot: Pilot[Any]) -> None:
        await player(harness, keys, 2)(pilot)
        await player(harness, (), 2)(pilot)

    return play
