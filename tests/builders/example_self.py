# SPDX-License-Identifier: Apache-2.0
"""Example data for the overhead view: what nettop costs on a busy host with three lenses open."""

from __future__ import annotations

from nettop.snapshots.own_cost import COSTS, SELF
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_rows

_SECOND_NS = 1_000_000_000
_MS = 1_000_000

_COSTS: tuple[tuple[str, str, str | None, int | None, float | None, int | None, int | None], ...] = (
    ("total", "nettop", None, None, 21.4, None, 61_900_000),
    ("thread", "main", None, None, 11.2, None, None),
    ("thread", "sampler", None, None, 7.9, None, None),
    ("step", "draw", "connections", 4, 9.6, 14_200_000, None),
    ("step", "read", "connections", 1, 3.8, 6_100_000, None),
    ("step", "read", "cpu", 1, 2.9, 3_300_000, None),
    ("iterator", "iter/task_file", "connections", 2_048, 1.1, None, None),
    ("program", "tp_btf/inet_sock_set_state", "connections", 310, 0.4, None, None),
    ("program", "tp_btf/softirq_entry", "cpu", 5_900, 0.7, None, None),
    ("program", "perf cpu-clock", "cpu", 3_988, 1.6, None, None),
    ("program", "tp_btf/kfree_skb", "drops", 439, 0.1, None, None),
    ("maps", "kernel memory", "connections", None, None, None, 9_400_000),
    ("maps", "kernel memory", "cpu", None, None, None, 4_700_000),
)
"""Kind, name, lens, runs per second, CPU milliseconds per second, longest run in nanoseconds, bytes of memory."""


def example_steps(seconds: int = 3) -> list[Snapshot]:
    """Return snapshots a second apart."""
    return [_snapshot(second) for second in range(seconds)]


def _snapshot(second: int) -> Snapshot:
    rows: list[Row] = [
        {
            "id": number,
            "kind": kind,
            "name": name,
            "lens": lens,
            "runs": None if runs is None else runs * (second + 60),
            "time_ns": None if cpu_ms is None else round(cpu_ms * _MS) * (second + 60),
            "mean_ns": None if not runs or cpu_ms is None else round(cpu_ms * _MS / runs),
            "longest_ns": longest_ns,
            "memory": memory,
        }
        for number, (kind, name, lens, runs, cpu_ms, longest_ns, memory) in enumerate(_COSTS, 1)
    ]
    taken_ns = TAKEN_NS + second * _SECOND_NS
    tables = {COSTS.name: make_rows(rows, COSTS, taken_ns)}
    return Snapshot(SELF.id, WALL_NS + second * _SECOND_NS, taken_ns + 5_000_000_000, tables)
