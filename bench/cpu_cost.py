# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the cpu lens: `sudo .venv/bin/python bench/cpu_cost.py [others own idle] [--rounds N]`.

`others`: CPU nanoseconds per byte of TCP, with both ends on one CPU, per turn of one thread over loopback, and per call
or loop that does not use the network: without nettop, with it, with its exact times, and with perf in turn. Times are
the scheduler's, which other load hardly affects. `own`: nettop's CPU time and memory while all CPUs handle network
traffic. `idle`: the same without traffic.
"""

import contextlib
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace as Options
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cpu_scenes import B, Traffic, neighbours, traffic_of
from measure import Figure, Report, arguments, in_pairs, judge
from programs import (
    LAST_CPU,
    Screens,
    built,
    cpu_ns,
    cpu_while,
    drain,
    in_background,
    printing,
    resident_mb,
    run,
    running,
    until,
)

from nettop.snapshots.cpu import EXACT_TIMES, TIMES

TURN_S, SETTLED_AFTER_S, START_S = 1.0, 0.02, 10.0
OWN_CPU, TEXT_MB, SCREENS_MB = 3.0, 50.0, 90.0
MEDIAN_ERROR = 1.2533 / 1.349
"""Standard error of the median of normal noise, relative to interquartile range ÷ √(number of values)."""
OURS, NOTHING = "nettop", "nothing"
"""A switch that shows the noise between pairs."""
PERF = "perf record -a -g -F 499"
"""The peer, at another frequency than nettop's."""
VIEW = ("--table", "--view", "cpu", "-d", "-t", "1")

Switch = Callable[[], AbstractContextManager[object]]
"""Has something cost CPU time meanwhile."""


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A task that some processes repeat; `done` counts its units."""

    done: Callable[[], int]
    processes: Sequence[int]

    def cpu_ns(self) -> int:
        """Return the exact CPU time of all processes, including the measured interrupts."""
        return sum(map(cpu_ns, self.processes))


def ksoftirqd() -> int:
    """Return the PID of the last CPU's ksoftirqd, which runs softirqs under load."""
    return int(run("pgrep", "--exact", f"ksoftirqd/{LAST_CPU}"))


def received(pid: int, device: str, column: int) -> int:
    """Return a column of /proc/net/dev in the namespace of a process."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return int(next(line for line in lines if f"{device}:" in line).split(":")[1].split()[column])


@contextlib.contextmanager
def tcp() -> Iterator[Work]:
    """Run iperf3 with both ends on one CPU; count bytes received."""
    with Traffic(LAST_CPU) as traffic:
        near, far = neighbours(traffic)
        ends = traffic.stream(near, far, B)
        yield Work(lambda: received(far.pid, "vb", 0), (*ends, ksoftirqd()))


@contextlib.contextmanager
def calls(what: str) -> Iterator[Work]:
    """Run calls.c; count calls, or steps of a loop."""
    with built("calls.c") as program, tempfile.NamedTemporaryFile() as file, Traffic(LAST_CPU) as traffic:
        pid = traffic.start([program, what, file.name])
        until(lambda: os.path.getsize(file.name), "calls.c")
        yield Work(lambda: int.from_bytes(os.pread(file.fileno(), 8, 0), sys.byteorder), (pid,))


# --- cost for workloads -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A workload, its unit, and bounds with the lens on: relative cost at most, or relative speed at least."""

    title: str
    started: Callable[[], contextlib.AbstractContextManager[Work]]
    unit: str
    cost: float | None = None
    speed: float | None = None


JOBS = {
    "tcp": Job("TCP over veth, both ends on one CPU", tcp, "byte", cost=1.03),
    "turns": Job(
        "16 kB written and read over loopback by one thread", lambda: calls("tcp"), "turn", cost=1.05
    ),
    "udp": Job(
        "64 bytes sent and received over loopback by one thread", lambda: calls("udp"), "turn", cost=1.05
    ),
    "getppid": Job("getppid() in a loop", lambda: calls("getppid"), "call", speed=0.97),
    "spin": Job("A loop without any call", lambda: calls("spin"), "step", speed=0.97),
}


def ns_of_each(work: Work, switch: Switch, seconds: float) -> float:
    """Return the CPU nanoseconds per unit with the switch on, measured over `seconds` of CPU time."""
    with switch():
        time.sleep(SETTLED_AFTER_S)
        done, begin = work.done(), work.cpu_ns()
        time.sleep(seconds)
        until(lambda: work.cpu_ns() - begin >= seconds * 1e9, "the processes to run", 0.002)
        return (work.cpu_ns() - begin) / max(work.done() - done, 1)


def costs_of(
    job: Job, work: Work, switches: Mapping[str, Switch], rounds: int, turn_s: float
) -> list[Figure]:
    """Return the cost of a unit without the switch, and the median of the pairs' ratios with its standard error."""
    taken = in_pairs(rounds, lambda switch: ns_of_each(work, switch, turn_s), nullcontext, switches)
    alone = statistics.median(without for pairs in taken.values() for without, _ in pairs)
    figures = [Figure(f"CPU time per {job.unit}", alone, "ns")]
    for name, pairs in taken.items():
        ratios = [
            without / with_it if job.speed else with_it / without for without, with_it in pairs if without
        ]
        low, median, high = statistics.quantiles(ratios, n=4)
        off_by = MEDIAN_ERROR * (high - low) / len(ratios) ** 0.5
        bound = job.speed or job.cost if name == OURS else None
        what = f"{'speed' if job.speed else 'cost'} with {name} (± {off_by:.3f})"
        figures.append(Figure(what, median, "×", bound, at_least=job.speed is not None))
    return figures


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Have perf record the stacks of all CPUs."""
    with running(*PERF.split(), "-o", os.devnull, "sleep", "3600") as process:
        descriptors = Path(f"/proc/{process.pid}/fd")

        def samples_all() -> bool:
            with contextlib.suppress(FileNotFoundError):  # it closes some meanwhile
                return sum("perf_event" in os.readlink(path) for path in descriptors.iterdir()) > LAST_CPU
            return False

        until(samples_all, PERF)
        yield


def others(options: Options) -> Iterator[Report]:
    """Measure the cost of each job with nettop and without it."""
    switches: dict[str, Switch] = {
        NOTHING: nullcontext,
        OURS: lambda: printing(*VIEW),
        f"nettop {TIMES.flag} {EXACT_TIMES}": lambda: printing(*VIEW, TIMES.flag, EXACT_TIMES),
        PERF: recording,
    }
    for name in options.jobs.split(","):
        job = JOBS[name]
        with job.started() as work:
            time.sleep(1)
            figures = costs_of(job, work, switches, options.rounds, TURN_S)
        yield f"{job.title}, {options.rounds} pairs of {TURN_S:g} s", figures


# --- nettop's own cost ------------------------------------------------------------------------------------------------


def own(options: Options) -> Iterator[Report]:
    """Measure nettop's CPU time and memory while all CPUs handle network traffic."""
    for name in ("tcp", "udp"):
        with traffic_of(name):
            figures = spent(options.seconds)
        yield f"nettop --view cpu at one refresh per second, scene {name}, {options.seconds:g} s", figures


def idle(options: Options) -> Iterator[Report]:
    """Measure CPU time and memory without traffic: the cost of the clocks alone."""
    title = f"nettop --view cpu at one refresh per second, no traffic, {options.seconds:g} s"
    yield title, spent(options.seconds)


def spent(seconds: float) -> list[Figure]:
    """Measure the share of one CPU used by nettop's text output and its screens, one after the other."""
    with in_background(*VIEW) as process:
        text = taken_by("text", TEXT_MB, process.pid, lambda wait_s: drain(process, wait_s), seconds)
    with Screens("--view", "cpu", "-t", "1") as terminal:
        return text + taken_by("screens", SCREENS_MB, terminal.pid, terminal.read_for, seconds)


def taken_by(
    name: str, most_mb: float, pid: int, wait: Callable[[float], object], seconds: float
) -> list[Figure]:
    """Measure a process for `seconds` after its start-up."""
    wait(START_S)
    cpu = cpu_while(pid, lambda: wait(seconds))
    return [
        Figure(f"{name}: user and system time, of one CPU", 100 * cpu, "%", OWN_CPU),
        Figure(f"{name}: resident memory", resident_mb(pid), "MB", most_mb),
    ]


PARTS = {"others": others, "own": own, "idle": idle}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        PARTS,
        jobs=(",".join(JOBS), "jobs of `others`, e.g. tcp,getppid"),
        rounds=(20, "rounds of `others`"),
        seconds=(15.0, "duration of `own` and `idle`"),
    )
    return judge(report for name in options.parts for report in PARTS[name](options))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
