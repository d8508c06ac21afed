# SPDX-License-Identifier: Apache-2.0
"""What nettop itself costs: CPU, the run time of its BPF programs, memory, and how long its steps take.

The only place where that is measured: the first line of the screens, the table `self` and --max-overhead use it.
"""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from nettop.snapshots.source import MeasuredSource, Source

OpenStatistics = Callable[[], int]
"""Has the kernel count the runs of BPF programs; gives the descriptor with which that ends. Raises OSError."""

LEAST_GAP_S = 0.5
"""A share is never taken over less time: a single step would look like a storm."""
_CLOSE_S = LEAST_GAP_S / 16
ITERATOR = "bpf_iter__"
"""How the names of programs begin that run in nettop's own threads."""

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
    """Measures nettop. `sources` gives the attached ones by lens; `late` counts readings that were skipped because the
    one before took too long. All but `share`, `late` and `steps` belongs to the sampler's thread.
    """

    def __init__(
        self, sources: Callable[[], Mapping[str, Source]], open_statistics: OpenStatistics | None = None
    ) -> None:
        self.steps = Steps()
        self.late = 0
        self.sources = sources
        self.without_statistics = "not in use"
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
        except PermissionError:
            self.without_statistics = "needs CAP_SYS_ADMIN"
        except OSError as error:
            # Without an errno it is not the kernel that refuses.
            self.without_statistics = f"the kernel refuses: {error.strerror}" if error.errno else str(error)
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
        if self._statistics >= 0:
            counted = self._count_programs()
            for program, time_ns in counted.items():
                before = self._counted.get(program, 0)
                self._programs_ns += time_ns - before if time_ns >= before else time_ns  # else loaded anew
            self._counted = counted
        now, readings = self._read(), self._readings
        if len(readings) > 1 and now.at_ns - readings[-2].at_ns < _CLOSE_S * 1e9:
            readings.pop()  # of many in quick succession the last is kept
        readings.append(now)
        while len(readings) > 2 and now.at_ns - readings[1].at_ns >= LEAST_GAP_S * 1e9:
            readings.popleft()

    def begin_anew(self) -> None:
        """Let `share` be of what is used from now on: what attaching takes is not what nettop costs."""
        self._readings = deque([self._read()])

    @property
    def now(self) -> Reading:
        """The last reading."""
        return self._readings[-1]

    def share(self) -> float | None:
        """The share of one CPU that nettop took lately, its programs' included; None before there was time.

        Without its children, which load programs: what one took in seconds is known at once when it ends.
        """
        before, now = self._readings[0], self._readings[-1]
        elapsed_ns = now.at_ns - before.at_ns
        if elapsed_ns < LEAST_GAP_S * 1e9:
            return None
        used_ns = now.total_ns - now.children_ns - (before.total_ns - before.children_ns)
        return used_ns / elapsed_ns

    def _read(self) -> Reading:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Reading(
            time.monotonic_ns(),
            time.process_time_ns(),
            round((children.ru_utime + children.ru_stime) * 1e9),
            self._programs_ns,
        )

    def _count_programs(self) -> dict[tuple[str, str], int]:
        """How long each program has run, by lens and name."""
        return {
            (lens, name): runs[1]
            for lens, source in self.sources().items()
            for name, runs in programs_of(source).items()
            if not name.startswith(ITERATOR)
        }


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
