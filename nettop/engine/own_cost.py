# SPDX-License-Identifier: Apache-2.0
"""What nettop itself costs: CPU, the run time of its BPF programs, memory, and how long its steps take.

The only place where that is measured: the first line of the screens, the table `self` and --max-overhead use it.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from nettop.snapshots.arrays import take
from nettop.snapshots.own_cost import COSTS, HOOK_PROGRAMS, KINDS, SELF
from nettop.snapshots.safe_text import safe_bytes, safe_text
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import NOT_AVAILABLE, HookStatus, Rows, Snapshot, TextTable, unknown_value
from nettop.snapshots.source import MeasuredSource, Source

OpenStatistics = Callable[[], int]
"""Has the kernel count the runs of BPF programs; gives the descriptor with which that ends. Raises OSError."""

LEAST_GAP_S = 0.5
"""A share is never taken over less time: a single step would look like a storm."""
_CLOSE_S = LEAST_GAP_S / 16
_ITERATOR = "bpf_iter__"
_STATISTICS = "BPF statistics"
_TASKS = Path("/proc/self/task")
_STATM = Path("/proc/self/statm")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_KIND = {label: number for number, label in KINDS.items()}
_STORED = [field for field in COSTS.stored if field.name not in ("id", "kind")]

START, READ, DRAIN = "start", "read", "drain"
VIEW, DRAW, PRINT, WRITE = "view", "draw", "print", "write"
"""The steps: of the sampler for its lenses, then of the frontends."""


class Reading(NamedTuple):
    """What was used by `at_ns` (CLOCK_MONOTONIC), in ns since nettop began: by its threads and the children that have
    ended, and by its programs in other people's time, as far as that is known.
    """

    at_ns: int
    own_ns: int
    children_ns: int
    programs_ns: int

    @property
    def total_ns(self) -> int:
        """All of it."""
        return self.own_ns + self.children_ns + self.programs_ns


@dataclass(slots=True)
class Step:
    """Something that nettop does repeatedly.

    `time_ns` is CPU time of the thread that does it, a part of that thread's; `took_ns` in all and `longest_ns` are by
    the clock, with what it waited for.
    """

    runs: int = 0
    time_ns: int = 0
    took_ns: int = 0
    longest_ns: int = 0


class Steps:
    """How often and how long steps ran, by lens and name. Each thread measures steps of its own."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], Step] = {}

    @contextmanager
    def time(self, lens: str, name: str) -> Iterator[None]:
        """Measure what runs inside, also where it fails."""
        began, used = time.perf_counter_ns(), time.thread_time_ns()
        try:
            yield
        finally:
            used, took = time.thread_time_ns() - used, time.perf_counter_ns() - began
            step = self._steps.setdefault((lens, name), Step())
            step.runs += 1
            step.time_ns += used
            step.took_ns += took
            step.longest_ns = max(step.longest_ns, took)

    def all(self) -> dict[tuple[str, str], Step]:
        """Every step that ran."""
        return dict(self._steps)


class OwnCost:
    """Measures nettop. All but `share` and `steps` belongs to the sampler's thread. `sources` are the attached ones."""

    def __init__(
        self, sources: Callable[[], Mapping[str, Source]], open_statistics: OpenStatistics | None = None
    ) -> None:
        self.steps = Steps()
        self.without_statistics = "not in use"
        self._sources = sources
        self._open_statistics = open_statistics
        self._statistics = -1
        self._wanted = 0
        self._counted: dict[tuple[str, str], int] = {}
        self._programs_ns = 0
        self._readings = deque([self._read()])

    # --- the statistics ---------------------------------------------------------------------------------------

    @property
    def counts_programs(self) -> bool:
        """True while the kernel counts the runs of programs for us."""
        return self._statistics >= 0

    def want_statistics(self) -> None:
        """Have programs measured, as far as that is allowed; ends with as many calls of `give_up_statistics`."""
        self._wanted += 1
        if self._wanted > 1:
            return
        try:
            if self._open_statistics is None:
                self.without_statistics = "start nettop with --view self or --max-overhead"
            else:
                self._statistics = self._open_statistics()
        except OSError as error:
            self.without_statistics = _refusal(error)
        self._counted = self._count_programs()

    def give_up_statistics(self) -> None:
        """End one use of the statistics."""
        self._wanted -= 1
        if self._wanted == 0 and self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1
            self.without_statistics = "not in use"

    # --- readings ---------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take a reading of what was used by now."""
        self._add_programs()
        now, readings = self._read(), self._readings
        if len(readings) > 1 and now.at_ns - readings[-2].at_ns < _CLOSE_S * 1e9:
            readings.pop()  # of many in quick succession the last is kept
        readings.append(now)
        while len(readings) > 2 and now.at_ns - readings[1].at_ns >= LEAST_GAP_S * 1e9:
            readings.popleft()

    @property
    def now(self) -> Reading:
        """The last reading."""
        return self._readings[-1]

    def share(self) -> float | None:
        """The share of one CPU that nettop took lately, its programs' included; None before there was time."""
        before, now = self._readings[0], self._readings[-1]
        elapsed_ns = now.at_ns - before.at_ns
        return (now.total_ns - before.total_ns) / elapsed_ns if elapsed_ns >= LEAST_GAP_S * 1e9 else None

    def _read(self) -> Reading:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Reading(
            time.monotonic_ns(),
            time.process_time_ns(),
            round((children.ru_utime + children.ru_stime) * 1e9),
            self._programs_ns,
        )

    def _add_programs(self) -> None:
        """Add what the programs ran in other people's time since the last reading."""
        if self._statistics < 0:
            return
        counted = self._count_programs()
        for (lens, name), time_ns in counted.items():
            before = self._counted.get((lens, name), 0)
            self._programs_ns += time_ns - before if time_ns >= before else time_ns  # else loaded anew
        self._counted = counted

    def _count_programs(self) -> dict[tuple[str, str], int]:
        """How long each program has run, by lens and name."""
        return {
            (lens, name): runs[1]
            for lens, source in self._sources().items()
            for name, runs in programs_of(source).items()
            if not name.startswith(_ITERATOR)
        }


def _refusal(error: OSError) -> str:
    """Why there are no statistics. Where the kernel has nothing to do with it there is no errno."""
    if isinstance(error, PermissionError):
        return "needs CAP_SYS_ADMIN"
    return str(error) if error.errno is None else f"the kernel refuses: {error.strerror}"


def programs_of(source: Source) -> Mapping[str, tuple[int, int]]:
    """Runs and ns of each of a source's programs; none where the kernel refuses."""
    # Older kernels refuse without CAP_BPF.
    with suppress(OSError):
        return source.programs() if isinstance(source, MeasuredSource) else {}
    return {}


def kernel_bytes_of(source: Source) -> int | None:
    """What a source's programs and maps take of the kernel's memory; None where the kernel refuses."""
    with suppress(OSError):
        return source.kernel_bytes() if isinstance(source, MeasuredSource) else None
    return None


# --- the table ------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """A row of the table; None is unknown."""

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
    """Distinguishes rows of the same name."""

    @property
    def mean_ns(self) -> int | None:
        """How long one run took; a program waits for nothing, and takes what it uses."""
        took_ns = self.time_ns if self.took_ns is None else self.took_ns
        return took_ns // self.runs if self.runs and took_ns is not None else None


class Engine(Protocol):
    """What the table is made of: the sampler."""

    cost: OwnCost
    late: int

    @property
    def limits(self) -> list[Cost]:
        """What --max-overhead does."""

    def sources(self) -> Mapping[str, Source]:
        """The attached sources, by lens."""

    def lost(self, lens: str) -> int:
        """All that a lens has lost by its last reading."""


class OwnCostSource:
    """The source of the table `self`; see nettop.snapshots.source.Source."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cost = engine.cost
        self._is_attached = False
        self._numbers = count(1)
        self._ids: dict[tuple[Any, ...], int] = {}

    def start(self) -> None:
        """Have the kernel count the runs of programs, where it is allowed."""
        self._is_attached = True
        self._cost.want_statistics()
        self._cost.take()

    def read(self, taken_ns: int) -> Snapshot:  # noqa: ARG002 - the reading has a time of its own
        """What everything cost by the last reading."""
        attached = self._engine.sources()
        kernel = {lens: kernel_bytes_of(source) for lens, source in attached.items()}
        lost = {lens: self._engine.lost(lens) for lens in attached if lens != SELF.id}
        costs = [self._total(kernel, lost), *self._engine.limits, *_threads()]
        costs.append(Cost("children", "ended", time_ns=self._cost.now.children_ns))
        for lens, source in attached.items():
            costs += self._programs(lens, programs_of(source))
        costs += [Cost("maps", "kernel memory", lens, memory=size) for lens, size in kernel.items() if size]
        costs += self._steps(lost)
        return Snapshot(
            lens=SELF.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables={COSTS.name: self._rows(costs)},
            lost={lens: number for lens, number in lost.items() if number},
            hooks=(self._hook(),),
        )

    def set(self, option: str, value: object) -> None:
        """There are no options."""

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - nothing more is known
        """There are no further details."""
        return {}

    def close(self) -> None:
        """End the use of the statistics; a second call does nothing."""
        if self._is_attached:
            self._is_attached = False
            self._cost.give_up_statistics()

    def _hook(self) -> HookStatus:
        if self._cost.counts_programs:
            return HookStatus(HOOK_PROGRAMS.name, _STATISTICS)
        return HookStatus(HOOK_PROGRAMS.name, None, ((_STATISTICS, self._cost.without_statistics),))

    def _total(self, kernel: Mapping[str, int | None], lost: Mapping[str, int]) -> Cost:
        resident = int(_STATM.read_bytes().split()[1]) * resource.getpagesize()
        return Cost(
            "total",
            "nettop",
            time_ns=self._cost.now.total_ns,
            memory=resident + sum(filter(None, kernel.values())),
            late=self._engine.late,
            lost=sum(lost.values()),
            note=None if self._cost.counts_programs else "without programs that run in other people's time",
        )

    def _programs(self, lens: str, programs: Mapping[str, tuple[int, int]]) -> Iterator[Cost]:
        for name, (runs, time_ns) in programs.items():
            kind = "iterator" if name.startswith(_ITERATOR) else "program"
            shown = name.replace(_ITERATOR, "iter/").replace("__", "/", 1)
            if self._cost.counts_programs:
                yield Cost(kind, shown, lens, runs, time_ns)
            else:
                yield Cost(kind, shown, lens, note=f"{NOT_AVAILABLE}: {self._cost.without_statistics}")

    def _steps(self, lost: Mapping[str, int]) -> Iterator[Cost]:
        for (lens, name), step in self._cost.steps.all().items():
            of_lens = lost.get(lens) if name == READ else None
            yield Cost(
                "step", name, lens, step.runs, step.time_ns, step.took_ns, step.longest_ns, lost=of_lens
            )

    def _rows(self, costs: list[Cost]) -> Rows:
        texts = {field.name: TextTable() for field in COSTS.stored if field.kind is Kind.TEXT}
        array = np.zeros(len(costs), COSTS.dtype)
        for at, cost in enumerate(costs):
            array["id"][at] = self._id(cost)
            array["kind"][at] = _KIND[cost.kind]
            for field in _STORED:
                value = getattr(cost, field.name)
                code = texts[field.name].code if field.name in texts else int
                array[field.name][at] = unknown_value(np.dtype(field.dtype)) if value is None else code(value)
        by_id = take(array, np.argsort(array["id"], kind="stable"))
        return Rows(COSTS, by_id, {name: codes.values for name, codes in texts.items()}, self._cost.now.at_ns)

    def _id(self, cost: Cost) -> int:
        """The number of the row, the same as long as nettop lives."""
        what = (cost.kind, cost.name, cost.lens, cost.number)
        if what not in self._ids:
            self._ids[what] = next(self._numbers)
        return self._ids[what]


def _threads() -> Iterator[Cost]:
    """The CPU time of each living thread. A thread of Python's has the name that it was given there."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    names[os.getpid()] = "main"
    for path in _TASKS.iterdir():
        with suppress(OSError):  # it has just ended
            number = int(path.name)
            name = names.get(number) or safe_bytes((path / "comm").read_bytes().rstrip(b"\n"))
            yield Cost("thread", safe_text(name), time_ns=_thread_ns(path), number=number)


def _thread_ns(path: Path) -> int:
    """CPU time of a thread: to the nanosecond where the kernel keeps that (CONFIG_SCHED_INFO), else by ticks."""
    with suppress(FileNotFoundError):
        exact = int((path / "schedstat").read_bytes().split()[0])
        if exact:  # or the kernel does not keep it
            return exact
    fields = (path / "stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_NS
