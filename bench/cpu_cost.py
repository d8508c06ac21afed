# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the cpu lens: `sudo .venv/bin/python bench/cpu_cost.py [others own idle] [--rounds N]`.

`others`: CPU nanoseconds per byte of TCP, with both ends on one CPU, and those of calls and loops that do not use the
network. Times are the scheduler's, which other load hardly affects. The lens and `perf record -a -g` are on for some
30 ms each, next to as long without them: a machine hardly changes in that time, so the median of many ratios is stable
where single figures are not. `own`: nettop's CPU time and memory while all CPUs handle network traffic. `idle`: the
same without traffic.
"""

import contextlib
import multiprocessing
import os
import select
import statistics
import sys
import tempfile
import time
from argparse import Namespace as Options
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

from bpf_stats import program_runs, runs_since, statistics_on
from cpu_scenes import B, Traffic, neighbours, traffic_of
from measure import Figure, Report, arguments, in_pairs, judge
from overhead import ITERATORS
from perf_stacks import SAME_HZ, SAMPLING
from programs import (
    LAST_CPU,
    built,
    cpu_ns,
    cpu_while,
    drain,
    in_background,
    on_terminal,
    resident_mb,
    running,
    until,
)

TURN_S, SETTLED_AFTER_S = 0.03, 0.02
START_S, ANSWER_S = 10.0, 30.0
OWN_CPU, TEXT_MB, SCREENS_MB = 3.0, 50.0, 90.0
MEDIAN_ERROR = 1.2533 / 1.349
"""Standard error of the median of normal noise, relative to interquartile range ÷ √(number of values)."""
NETTOP = "nettop"
NOTHING, PERF = UNBOUNDED = ("nothing", "perf record -a -g")
"""Switches without bounds. `nothing` shows the noise between pairs."""
VIEW = ("--table", "--view", "cpu", "-d", "-t", "1")

Switch = Callable[[], AbstractContextManager[object]]
"""Has something cost CPU time meanwhile."""

# --- switches ---------------------------------------------------------------------------------------------------------


class Lens:
    """nettop's lens in a separate process that reads once a second; while off, it detaches all programs."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=_run_lens, args=(theirs,), daemon=True)
        self._process.start()
        self.hooks = str(self._answer())

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach all programs inside the `with` block."""
        for is_on in (True, False):
            self._pipe.send(is_on)
            self._answer()
            if is_on:
                yield

    def close(self) -> None:
        """Kill the process, which detaches all programs."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> object:
        if not self._pipe.poll(ANSWER_S):
            raise SystemExit("the process with the lens does not answer")
        return self._pipe.recv()


def _run_lens(pipe: Connection) -> None:
    """Run the lens's process: True from the pipe attaches, False detaches.

    It uses internals of the source, because starting a source takes longer than a turn.
    """
    from nettop.kernel.bpf import kprobes
    from nettop.kernel.bpf.program import Loader
    from nettop.probes.cpu.entries import BY_SAMPLES, FALLBACKS, SYSCALLS
    from nettop.probes.cpu.probe import make_probe

    source = make_probe()
    source.start()
    hooks = {hook.hook: hook.mechanism for hook in source.read(time.monotonic_ns()).hooks if hook.mechanism}
    entries, clocks = source._attached, source._samples._clocks if source._samples else None
    at_first = entries.programs()
    mechanisms = [
        mechanism
        for fallbacks in FALLBACKS
        for mechanism in fallbacks.mechanisms
        if mechanism.name == hooks.get(fallbacks.hook.name) and mechanism != BY_SAMPLES
    ]

    def attach() -> None:
        for mechanism in mechanisms:
            if mechanism in SYSCALLS.mechanisms:
                entries.hook_calls(mechanism, cast("Loader", kprobes))  # opens probes itself, as root
            elif at_first.issuperset(mechanism.programs):
                entries.attach(mechanism)
        if clocks is not None:
            clocks.start()

    def detach() -> None:
        if clocks is not None:
            clocks.stop()
        entries.close()

    detach()
    pipe.send(", ".join(f"{hook} {mechanism}" for hook, mechanism in hooks.items()))
    due_s = time.monotonic()
    while True:
        if pipe.poll(max(0.0, due_s - time.monotonic())):
            change = attach if pipe.recv() else detach
            change()
            pipe.send(True)
        else:
            source.read(time.monotonic_ns())
            due_s += 1.0


@contextlib.contextmanager
def perf(folder: str) -> Iterator[tuple[Switch, int]]:
    """Run `perf record` of all CPUs with stacks, at the same frequency; yield a switch for sampling, and its PID."""
    pipes = [f"{folder}/{name}" for name in ("orders", "answers")]
    for path in pipes:
        os.mkfifo(path)
    orders, answers = (os.open(path, os.O_RDWR) for path in pipes)

    @contextlib.contextmanager
    def sampling() -> Iterator[None]:
        for word in (b"enable\n", b"disable\n"):
            os.write(orders, word)
            if not select.select([answers], [], [], ANSWER_S)[0]:
                raise SystemExit("perf does not answer")
            os.read(answers, 100)
            if word == b"enable\n":
                yield

    to = ("-D", "-1", "--control", f"fifo:{','.join(pipes)}", "-o", f"{folder}/perf.data")
    with running(*SAMPLING, "-a", "-F", SAME_HZ, *to) as process:
        yield sampling, process.pid
    os.close(orders)
    os.close(answers)


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
    name = f"ksoftirqd/{LAST_CPU}"
    names = {path.parent.name: path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm")}
    return next(int(pid) for pid, command in names.items() if command == name)


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
def udp() -> Iterator[Work]:
    """Run a flood with both ends on one CPU; count datagrams received."""
    with Traffic(LAST_CPU) as traffic:
        near, far = neighbours(traffic)
        ends = traffic.flood(near, far, B)
        yield Work(lambda: received(far.pid, "vb", 1), (*ends, ksoftirqd()))


@contextlib.contextmanager
def calls(what: str) -> Iterator[Work]:
    """Run calls.c; count calls, or steps of a loop."""
    with built("calls.c") as program, tempfile.NamedTemporaryFile() as file, Traffic(LAST_CPU) as traffic:
        pid = traffic.start([program, what, file.name])
        until(lambda: os.path.getsize(file.name), "calls.c")
        yield Work(lambda: int.from_bytes(os.pread(file.fileno(), 8, 0), sys.byteorder), (pid,))


@contextlib.contextmanager
def dd() -> Iterator[Work]:
    """Run dd with one byte at a time; count pairs of a read and a write."""
    with Traffic(LAST_CPU) as traffic:
        pid = traffic.start(["dd", "if=/dev/zero", "of=/dev/null", "bs=1"])
        io = Path(f"/proc/{pid}/io")
        yield Work(lambda: int(io.read_text().split("rchar:")[1].split()[0]), (pid,))


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
    "getppid": Job("getppid() in a loop", lambda: calls("getppid"), "call", speed=0.97),
    "dd": Job("dd bs=1", dd, "byte", speed=0.97),
    "spin": Job("A loop without any call", lambda: calls("spin"), "step", speed=0.97),
    "udp": Job("A flood of 64-byte datagrams over veth, both ends on one CPU", udp, "datagram"),
}


def ns_of_each(work: Work, switch: Switch, seconds: float = TURN_S) -> float:
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
        bound = None if name in UNBOUNDED else job.speed or job.cost
        what = f"{'speed' if job.speed else 'cost'} with {name} (± {off_by:.3f})"
        figures.append(Figure(what, median, "×", bound, at_least=job.speed is not None))
    return figures


def others(options: Options) -> Iterator[Report]:
    """Measure the cost of each job with each switch on."""
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Lens()) as lens,
        perf(folder) as (sampling, _),
    ):
        switches: dict[str, Switch] = {NOTHING: nullcontext, NETTOP: lens.attached, PERF: sampling}
        for name in options.jobs.split(","):
            job = JOBS[name]
            with job.started() as work:
                time.sleep(1)
                figures = costs_of(job, work, switches, options.rounds, TURN_S)
            yield f"{job.title}, {options.rounds} rounds", figures
        print(f"  {NETTOP}: via {lens.hooks}")


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
    """Measure the share of one CPU used by nettop's text output, its screens, and perf, one after the other."""
    with statistics_on():
        with in_background(*VIEW) as process:
            text = taken_by(process.pid, lambda wait_s: drain(process, wait_s), seconds)
        with on_terminal("--view", "cpu", "-t", "1") as terminal:
            screen = taken_by(terminal.pid, terminal.read_for, seconds)
    with tempfile.TemporaryDirectory() as folder, perf(folder) as (sampling, pid), sampling():
        perf_taken = taken_by(pid, time.sleep, seconds)
    return [
        Figure("text: user and system time, of one CPU", text.cpu, "%", OWN_CPU),
        Figure("screens: user and system time, of one CPU", screen.cpu, "%", OWN_CPU),
        Figure("its programs, on others' time (including two clock readings per run)", text.programs, "%"),
        Figure("runs of its programs per second", text.runs),
        Figure("text: resident memory", text.resident_mb, "MB", TEXT_MB),
        Figure("screens: resident memory", screen.resident_mb, "MB", SCREENS_MB),
        Figure("perf record: user and system time", perf_taken.cpu, "%"),
        Figure("perf record: resident memory", perf_taken.resident_mb, "MB"),
    ]


@dataclass(frozen=True)
class Taken:
    """Usage of a process: percent of one CPU, that of its BPF programs, their runs per second, memory at the end."""

    cpu: float
    programs: float
    runs: float
    resident_mb: float


def taken_by(pid: int, wait: Callable[[float], object], seconds: float) -> Taken:
    """Measure a process for `seconds` after its start-up."""
    wait(START_S)
    before = program_runs(pid)
    cpu = cpu_while(pid, lambda: wait(seconds))
    runs = runs_since(before, program_runs(pid))
    hooks = [runs[name] for name in runs if name in before and name not in ITERATORS]
    programs, count = sum(each.ns for each in hooks) / 1e9, sum(each.count for each in hooks)
    return Taken(100 * cpu, 100 * programs / seconds, count / seconds, resident_mb(pid))


PARTS = {"others": others, "own": own, "idle": idle}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        PARTS,
        jobs=(",".join(JOBS), "jobs of `others`, e.g. tcp,getppid"),
        rounds=(300, "rounds of `others`"),
        seconds=(15.0, "duration of `own` and `idle`"),
    )
    return judge(report for name in options.parts for report in PARTS[name](options))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
