# SPDX-License-Identifier: Apache-2.0
"""nettop's own cost: CPU time, run time of its BPF programs, memory, and durations of its steps.

Measured only here, for the first line of the screens, the table `self` and --max-overhead.
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

from nettop.process.clocks import monotonic_ns
from nettop.snapshots.source import MeasuredSource, Source

OpenStatistics = Callable[[], int]
"""Function that enables the kernel's BPF statistics until the returned descriptor is closed. May raise OSError."""

MIN_GAP_S = 0.5
"""Shortest time over which a share is computed: over less, a single step would look like a spike."""
ITERATOR = "bpf_iter__"
"""Name prefix of programs that run in nettop's own threads."""

START, READ, DRAIN = "start", "read", "drain"
VIEW, DRAW, PRINT, WRITE = "view", "draw", "print", "write"
"""The steps: the sampler's for each lens, then the frontends'."""


class CpuReading(NamedTuple):
    """CPU time used until `at_ns` (CLOCK_MONOTONIC), in ns since nettop started: by its threads, by exited children,
    and by its programs in the context of other tasks, if known.
    """

    at_ns: int
    own_ns: int
    children_ns: int
    programs_ns: int

    @property
    def total_ns(self) -> int:
        """The total CPU time."""
        return self.own_ns + self.children_ns + self.programs_ns


@dataclass(slots=True)
class Step:
    """A recurring task of nettop.

    `time_ns` is CPU time, a part of its thread's. `took_ns` (the sum) and `longest_ns` are wall time, including waits.
    """

    runs: int = 0
    time_ns: int = 0
    took_ns: int = 0
    longest_ns: int = 0


class Steps:
    """Statistics of steps by lens and name. Each thread measures its own steps."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], Step] = {}

    @contextmanager
    def time(self, lens: str, name: str) -> Iterator[None]:
        """Measure the body, even if it fails."""
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
        """Return every step that ran."""
        return dict(self._steps)


class OwnCost:
    """The measurement of nettop itself. `sources` returns the attached sources by lens; `late` counts readings skipped
    because the previous one took too long. Everything except `share`, `late` and `steps` belongs to the sampler's
    thread.
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
        self._last_counted: dict[tuple[str, str], int] = {}
        self._programs_ns = 0
        self._readings = deque([self._read()])

    # --- the statistics ---------------------------------------------------------------------------------------

    @property
    def counts_programs(self) -> bool:
        """True while BPF statistics are enabled for nettop."""
        return self._statistics >= 0

    def acquire_statistics(self) -> None:
        """Enable BPF statistics, if allowed, until `release_statistics` has been called equally often."""
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
            # Without an errno, it was not the kernel that refused.
            self.without_statistics = f"the kernel refuses: {error.strerror}" if error.errno else str(error)
        self._last_counted = self._count_programs()

    def release_statistics(self) -> None:
        """Release one use of the statistics."""
        self._wanted -= 1
        if self._wanted == 0 and self._statistics >= 0:
            os.close(self._statistics)
            self._statistics = -1
            self.without_statistics = "not in use"

    # --- readings ---------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Take a reading of the CPU time used so far."""
        if self._statistics >= 0:
            counted = self._count_programs()
            for program, time_ns in counted.items():
                before = self._last_counted.get(program, 0)
                self._programs_ns += (
                    time_ns - before if time_ns >= before else time_ns
                )  # else it was reloaded
            self._last_counted = counted
        now, readings = self._read(), self._readings
        readings.append(now)
        while len(readings) > 2 and now.at_ns - readings[1].at_ns >= MIN_GAP_S * 1e9:
            readings.popleft()

    def restart(self) -> None:
        """Restart the measurement of `share`, to exclude the cost of attaching."""
        self._readings = deque([self._read()])

    @property
    def now(self) -> CpuReading:
        """The most recent reading."""
        return self._readings[-1]

    def share(self) -> float | None:
        """Return nettop's recent share of one CPU, including its programs; None until enough time has passed.

        Exclude children, which load programs: seconds of their CPU time become known all at once when they exit.
        """
        before, now = self._readings[0], self._readings[-1]
        elapsed_ns = now.at_ns - before.at_ns
        if elapsed_ns < MIN_GAP_S * 1e9:
            return None
        used_ns = now.total_ns - now.children_ns - (before.total_ns - before.children_ns)
        return used_ns / elapsed_ns

    def _read(self) -> CpuReading:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return CpuReading(
            monotonic_ns(),
            time.process_time_ns(),
            round((children.ru_utime + children.ru_stime) * 1e9),
            self._programs_ns,
        )

    def _count_programs(self) -> dict[tuple[str, str], int]:
        """Return each program's run time, by lens and name."""
        return {
            (lens, name): runs[1]
            for lens, source in self.sources().items()
            for name, runs in programs_of(source).items()
            if not name.startswith(ITERATOR)
        }


def programs_of(source: Source) -> Mapping[str, tuple[int, int]]:
    """Return runs and ns of each of a source's programs; none if the kernel refuses."""
    # Older kernels refuse without CAP_BPF.
    with suppress(OSError):
        return source.programs() if isinstance(source, MeasuredSource) else {}
    return {}


def kernel_bytes_of(source: Source) -> int | None:
    """Return the kernel memory of a source's programs and maps; None if the kernel refuses."""
    with suppress(OSError):
        return source.kernel_bytes() if isinstance(source, MeasuredSource) else None
    return None
