# SPDX-License-Identifier: Apache-2.0
"""The source of the table `self`, nettop's own cost."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from nettop.engine.bus import Bus
from nettop.engine.own_cost import ITERATOR, READ, OwnCost, kernel_bytes_of, programs_of
from nettop.engine.pace import Pace, percent
from nettop.process.limits import resident_memory
from nettop.snapshots.hooks import NOT_AVAILABLE, HookStatus
from nettop.snapshots.own_cost import COSTS, HOOK_PROGRAMS, SELF
from nettop.snapshots.safe_text import safe_bytes, safe_text
from nettop.snapshots.snapshot import Rows, Snapshot, clocks, rows_from
from nettop.snapshots.source import SourceOptions

_STATISTICS = "BPF statistics"
_TASKS = Path("/proc/self/task")
_THREAD_CLOCK = 6
"""The low bits of the ID of a thread's CPU clock (CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED in the kernel)."""


class Cost(NamedTuple):
    """A row of the table; None means unknown."""

    kind: str
    name: str
    lens: str | None = None
    runs: int | None = None
    time_ns: int | None = None
    took_ns: int | None = None
    longest_ns: int | None = None
    memory: int | None = None
    late: int | None = None
    lost: int | None = None
    note: str | None = None
    number: int = 0
    """Number that distinguishes rows of the same name."""

    @property
    def mean_ns(self) -> int | None:
        """Mean wall time of a run; a program never waits, so its CPU time is its wall time."""
        took_ns = self.time_ns if self.took_ns is None else self.took_ns
        return took_ns // self.runs if self.runs and took_ns is not None else None


class OwnCostSource:
    """The source of the table `self`; see nettop.snapshots.source.Source."""

    def __init__(self, cost: OwnCost, pace: Pace, bus: Bus) -> None:
        self._cost = cost
        self._pace = pace
        self._bus = bus
        self._is_attached = False
        numbers = count(1)
        self._ids: defaultdict[tuple[str, str, str | None, int], int] = defaultdict(lambda: next(numbers))

    def configure(self, options: SourceOptions) -> None:
        """Ignore the call: there are no options."""

    def start(self) -> None:
        """Do nothing: the cost belongs to the sampler's thread, which enables BPF statistics in the first reading."""

    def read(self, taken_ns: int) -> Snapshot:  # noqa: ARG002 - the reading has a time of its own
        """Return the costs up to the most recent reading. The first one enables BPF statistics, if allowed."""
        if not self._is_attached:
            self._is_attached = True
            self._cost.acquire_statistics()
            self._cost.take()
        attached = self._cost.sources()
        frames = {lens: self._bus.frame(lens) for lens in attached if lens != SELF.id}
        lost = {
            lens: sum(frame.now.notable_losses.values()) if frame else 0 for lens, frame in frames.items()
        }
        kernel = {lens: size for lens, source in attached.items() if (size := kernel_bytes_of(source))}
        costs = [self._total(sum(kernel.values()), sum(lost.values())), *self._limits(), *_threads()]
        costs.append(Cost("children", "ended", time_ns=self._cost.now.children_ns))
        for lens, source in attached.items():
            costs += self._programs(lens, programs_of(source))
        costs += [Cost("maps", "kernel memory", lens, memory=size) for lens, size in kernel.items()]
        costs += [
            Cost("step", name, lens, step.runs, step.time_ns, step.took_ns, step.longest_ns,
                 lost=lost.get(lens) if name == READ else None)
            for (lens, name), step in self._cost.steps.all().items()
        ]  # fmt: skip
        refused = () if self._cost.counts_programs else ((_STATISTICS, self._cost.without_statistics),)
        return Snapshot(
            SELF.id,
            *clocks(self._cost.now.at_ns),
            tables={COSTS.name: self._rows(costs)},
            lost={lens: number for lens, number in lost.items() if number},
            hooks=(HookStatus(HOOK_PROGRAMS.name, None if refused else _STATISTICS, refused),),
        )

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - nothing more is known
        """Return no details."""
        return {}

    def close(self) -> None:
        """Release the statistics; a second call is a no-op."""
        if self._is_attached:
            self._is_attached = False
            self._cost.release_statistics()

    def _total(self, kernel_bytes: int, lost: int) -> Cost:
        resident = resident_memory()
        note = (
            None
            if self._cost.counts_programs
            else "without BPF programs, which run in the context of other tasks"
        )
        used_ns, late, memory = self._cost.now.total_ns, self._cost.late, resident + kernel_bytes
        return Cost("total", "nettop", time_ns=used_ns, memory=memory, late=late, lost=lost, note=note)

    def _limits(self) -> list[Cost]:
        limit = self._pace.limit
        if limit is None:
            return []
        note = str(limit) or f"interval {limit.interval_s:.1f} s, as chosen"
        return [Cost("limit", f"--max-overhead {percent(limit.bound)}", note=note)]

    def _programs(self, lens: str, programs: Mapping[str, tuple[int, int]]) -> Iterator[Cost]:
        for name, (runs, time_ns) in programs.items():
            kind = "iterator" if name.startswith(ITERATOR) else "program"
            shown = name.replace(ITERATOR, "iter/").replace("__", "/", 1)
            if self._cost.counts_programs:
                yield Cost(kind, shown, lens, runs, time_ns)
            else:
                yield Cost(kind, shown, lens, note=f"{NOT_AVAILABLE}: {self._cost.without_statistics}")

    def _rows(self, costs: list[Cost]) -> Rows:
        found = [
            {field.name: getattr(cost, field.name) for field in COSTS.stored if field.name != "id"}
            | {"id": self._ids[cost.kind, cost.name, cost.lens, cost.number]}
            for cost in costs
        ]
        return rows_from(COSTS, found, self._cost.now.at_ns)


def _threads() -> Iterator[Cost]:
    """Yield the CPU time of each living thread. Python threads have their Python names."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    names[os.getpid()] = "main"
    for path in _TASKS.iterdir():
        with suppress(OSError):  # it has just exited
            number = int(path.name)
            name = names.get(number) or safe_bytes((path / "comm").read_bytes().rstrip(b"\n"))
            yield Cost(
                "thread",
                safe_text(name),
                time_ns=time.clock_gettime_ns(~number << 3 | _THREAD_CLOCK),
                number=number,
            )
