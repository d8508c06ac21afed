# SPDX-License-Identifier: Apache-2.0
"""What the cpu lens costs others and itself: `sudo .venv/bin/python bench/cpu_cost.py [others own idle] [--rounds N]`.

`others`: CPU nanoseconds that a byte of TCP takes, both ends on one CPU, and those of calls and loops that do not use
the network, by the scheduler's account, which other load hardly disturbs. The lens and `perf record -a -g` are on for
some 30 ms each, next to as long without them: a machine hardly changes in that time, so the median of many ratios is
stable where single figures are not. `own`: nettop's CPU time and memory while all CPUs work for the network. `idle`:
the same without traffic.
"""

import argparse
import contextlib
import multiprocessing
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol, cast

from bpf_stats import program_runs, statistics_on
from cpu_scenes import SCENES, B, Traffic, neighbours, running, wait_for
from measure import Figure, built, cpu_seconds, drain, in_background, on_terminal, report, resident_mb
from overhead import ITERATORS
from perf_stacks import SAME_HZ, SAMPLING

PARTS = ("others", "own", "idle")
TURN_S, SETTLED_AFTER_S = 0.03, 0.02
START_S, ANSWER_S = 10.0, 30.0
OWN_CPU, TEXT_MB, SCREENS_MB = 3.0, 50.0, 90.0
MEDIAN_ERROR = 1.2533 / 1.349
"""The standard error of a median of normal noise, by the width of its middle half, times the root of their number."""
CPUCLOCK_SCHED = 2
"""The scheduler's clock of a process, with its PID (include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK)."""
LAST_CPU = (os.cpu_count() or 1) - 1
NETTOP = "nettop"
NOTHING, PERF = BESIDE = ("nothing", "perf record -a -g")
"""What has no bounds. Nothing shows the noise between pairs."""
VIEW = ("--table", "--view", "cpu", "-d", "-t", "1")

# --- what is switched on and off --------------------------------------------------------------------------------------


class Switched(Protocol):
    """Something that can be switched on and off."""

    def on(self) -> None:
        """From now on it costs CPU time."""

    def off(self) -> None:
        """From now on it costs nothing."""


class Nothing:
    """Neither nettop nor perf."""

    def on(self) -> None:
        """Nothing."""

    def off(self) -> None:
        """Nothing."""


class Lens:
    """nettop's lens in a process of its own, read once a second; while it is off no program of it is attached."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_run_lens, args=(theirs,), daemon=True)
        self.process.start()
        self.hooks = str(self._answer())

    def on(self) -> None:
        """Attach all of it."""
        self._pipe.send(True)
        self._answer()

    def off(self) -> None:
        """Detach all of it."""
        self._pipe.send(False)
        self._answer()

    def end(self) -> None:
        """Kill the process, which detaches all of it."""
        self.process.kill()
        self.process.join()

    def _answer(self) -> object:
        if not self._pipe.poll(ANSWER_S):
            raise SystemExit("the process with the lens does not answer")
        return self._pipe.recv()


def _run_lens(pipe: Connection) -> None:
    """The main function of that process: True attaches, False detaches.

    It uses the parts of the source: starting a source takes longer than a turn.
    """
    from nettop.kernel import kprobes
    from nettop.kernel.program import Loader
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


class Perf:
    """`perf record` of all CPUs with stacks, at the same frequency."""

    def __init__(self, folder: str) -> None:
        pipes = [f"{folder}/{name}" for name in ("orders", "answers")]
        for path in pipes:
            os.mkfifo(path)
        self._orders, self._answers = (os.open(path, os.O_RDWR) for path in pipes)
        self.process = subprocess.Popen(
            [
                *SAMPLING,
                *("-a", "-F", SAME_HZ),
                "-D",
                "-1",
                "--control",
                f"fifo:{','.join(pipes)}",
                "-o",
                f"{folder}/perf.data",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def on(self) -> None:
        """Sample."""
        self._order("enable")

    def off(self) -> None:
        """Do not sample."""
        self._order("disable")

    def end(self) -> None:
        """End the recording."""
        self.process.terminate()
        self.process.wait()
        os.close(self._orders)
        os.close(self._answers)

    def _order(self, word: str) -> None:
        os.write(self._orders, f"{word}\n".encode())
        if not select.select([self._answers], [], [], ANSWER_S)[0]:
            raise SystemExit("perf does not answer")
        os.read(self._answers, 100)


@contextlib.contextmanager
def switches() -> Iterator[dict[str, Switched]]:
    """All that is switched on and off, by name."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        lens = Lens()
        stack.callback(lens.end)
        perf = Perf(folder)
        stack.callback(perf.end)
        yield {
            NOTHING: Nothing(),
            NETTOP: lens,
            PERF: perf,
        }


# --- workloads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Something that processes do repeatedly; `done` counts it."""

    done: Callable[[], int]
    processes: Sequence[int]

    def cpu_ns(self) -> int:
        """CPU time of all of them, exact, with the interrupts that are to be measured."""
        return sum(time.clock_gettime_ns(~pid << 3 | CPUCLOCK_SCHED) for pid in self.processes)


def ksoftirqd() -> int:
    """The thread that runs the softirqs of the last CPU when they are many."""
    name = f"ksoftirqd/{LAST_CPU}"
    names = {path.parent.name: path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm")}
    return next(int(pid) for pid, command in names.items() if command == name)


def received(pid: int, device: str, column: int) -> int:
    """A column of /proc/net/dev in that process's namespace."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    return int(next(line for line in lines if f"{device}:" in line).split(":")[1].split()[column])


@contextlib.contextmanager
def tcp() -> Iterator[Work]:
    """iperf3, both ends on one CPU; counts bytes received."""
    with Traffic(LAST_CPU) as traffic:
        near, far = neighbours(traffic)
        ends = traffic.stream(near, far, B)
        yield Work(lambda: received(far.pid, "vb", 0), (*ends, ksoftirqd()))


@contextlib.contextmanager
def udp() -> Iterator[Work]:
    """A flood, both ends on one CPU; counts datagrams received."""
    with Traffic(LAST_CPU) as traffic:
        near, far = neighbours(traffic)
        ends = traffic.flood(near, far, B)
        yield Work(lambda: received(far.pid, "vb", 1), (*ends, ksoftirqd()))


@contextlib.contextmanager
def calls(what: str) -> Iterator[Work]:
    """calls.c; counts calls, or steps of a loop."""
    with built("calls.c") as program, tempfile.NamedTemporaryFile() as file, Traffic(LAST_CPU) as traffic:
        pid = traffic.start([program, what, file.name])
        wait_for(lambda: os.path.getsize(file.name), "calls.c")
        yield Work(lambda: int.from_bytes(os.pread(file.fileno(), 8, 0), sys.byteorder), (pid,))


@contextlib.contextmanager
def dd() -> Iterator[Work]:
    """dd with one byte at a time; counts pairs of a read and a write."""
    with Traffic(LAST_CPU) as traffic:
        pid = traffic.start(["dd", "if=/dev/zero", "of=/dev/null", "bs=1"])
        io = Path(f"/proc/{pid}/io")
        yield Work(lambda: int(io.read_text().split("rchar:")[1].split()[0]), (pid,))


# --- the cost to workloads --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A workload, its unit, and bounds for the lens: the most that it may cost more, or lose of its speed."""

    title: str
    begun: Callable[[], contextlib.AbstractContextManager[Work]]
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


def ns_of_each(work: Work, switch: Switched, seconds: float) -> float:
    """CPU nanoseconds of one unit while the switch is on, measured over these seconds of CPU time."""
    switch.on()
    time.sleep(SETTLED_AFTER_S)
    done, begin = work.done(), work.cpu_ns()
    time.sleep(seconds)
    wait_for(lambda: work.cpu_ns() - begin >= seconds * 1e9, "the processes to run", 0.002)
    spent, done = work.cpu_ns() - begin, work.done() - done
    switch.off()
    return spent / max(done, 1)


@dataclass(frozen=True)
class Pair:
    """CPU nanoseconds of one unit in two adjacent turns: with the switch off and on."""

    without: float
    with_it: float


def pairs(
    work: Work, switched: Mapping[str, Switched], rounds: int, turn_s: float = TURN_S
) -> dict[str, list[Pair]]:
    """Pairs by what was on, one a round. The order within a pair alternates."""
    taken: dict[str, list[Pair]] = {name: [] for name in switched}
    nothing = Nothing()
    for number in range(rounds):
        for name, switch in switched.items():
            if number % 2:
                with_it = ns_of_each(work, switch, turn_s)
                taken[name].append(Pair(ns_of_each(work, nothing, turn_s), with_it))
            else:
                taken[name].append(Pair(ns_of_each(work, nothing, turn_s), ns_of_each(work, switch, turn_s)))
    return taken


def others(jobs: Sequence[str], rounds: int) -> list[Figure]:
    """What each job costs with each switch on."""
    figures: list[Figure] = []
    with switches() as switched:
        for name in jobs:
            job = JOBS[name]
            with job.begun() as work:
                time.sleep(1)
                taken = pairs(work, switched, rounds)
            results = list(costs(job, taken))
            report(f"{job.title}, {rounds} rounds", results)
            figures += results
        for name, switch in switched.items():
            if isinstance(switch, Lens):
                print(f"  {name}: via {switch.hooks}")
    return figures


def costs(job: Job, taken: Mapping[str, list[Pair]]) -> Iterator[Figure]:
    """The cost of a unit alone, and the median of the pairs' ratios with its standard error."""
    yield Figure(
        f"CPU time of a {job.unit}",
        statistics.median(pair.without for all_pairs in taken.values() for pair in all_pairs),
        "ns",
    )
    for name, all_pairs in taken.items():
        ratios = [pair.with_it / pair.without for pair in all_pairs if pair.without]
        if job.speed:
            ratios = [1 / ratio for ratio in ratios]
        low, median, high = statistics.quantiles(ratios, n=4)
        off_by = MEDIAN_ERROR * (high - low) / len(ratios) ** 0.5
        bound = None if name in BESIDE else job.speed or job.cost
        what = f"{'speed' if job.speed else 'cost'} with {name} (± {off_by:.3f})"
        yield Figure(what, median, "×", bound, at_least=job.speed is not None)


# --- its own cost -----------------------------------------------------------------------------------------------------


def own(seconds: float) -> list[Figure]:
    """nettop's CPU time and memory while all CPUs work for the network."""
    figures: list[Figure] = []
    for name in ("tcp", "udp"):
        with running(SCENES[name]):
            results = spent(seconds)
        report(f"nettop --view cpu at one refresh a second, scene {name}, {seconds:g} s", results)
        figures += results
    return figures


def idle(seconds: float) -> list[Figure]:
    """The same without traffic: the cost of the clocks alone."""
    results = spent(seconds)
    report(f"nettop --view cpu at one refresh a second, no traffic, {seconds:g} s", results)
    return results


def spent(seconds: float) -> list[Figure]:
    """The share of one CPU that nettop's text output, its screens, and perf take, one after the other."""
    with statistics_on():
        with in_background(*VIEW) as process:
            text = taken_by(process.pid, lambda wait_s: drain(process, wait_s), seconds)
        with on_terminal("--view", "cpu", "-t", "1") as terminal:
            screen = taken_by(terminal.pid, terminal.read_for, seconds)
    with tempfile.TemporaryDirectory() as folder:
        perf = Perf(folder)
        perf.on()
        perf_taken = taken_by(perf.process.pid, time.sleep, seconds)
        perf.end()
    return [
        Figure("text: user and system time, of one CPU", text.cpu, "%", OWN_CPU),
        Figure("screens: user and system time, of one CPU", screen.cpu, "%", OWN_CPU),
        Figure(
            "its programs, in the time of others (including two clock readings a run)", text.programs, "%"
        ),
        Figure("runs of its programs a second", text.runs, ""),
        Figure("text: resident memory", text.resident_mb, "MB", TEXT_MB),
        Figure("screens: resident memory", screen.resident_mb, "MB", SCREENS_MB),
        Figure("perf record: user and system time", perf_taken.cpu, "%"),
        Figure("perf record: resident memory", perf_taken.resident_mb, "MB"),
    ]


@dataclass(frozen=True)
class Taken:
    """What a process used: percent of one CPU, its BPF programs' too, their runs a second, and memory at the end."""

    cpu: float
    programs: float
    runs: float
    resident_mb: float


def taken_by(pid: int, wait: Callable[[float], object], seconds: float) -> Taken:
    """Measure a process for this long, after its start-up."""
    wait(START_S)
    before, ran, begin = cpu_seconds(pid), program_runs(pid), time.monotonic()
    wait(seconds)
    after, has_run = cpu_seconds(pid), program_runs(pid)
    took = time.monotonic() - begin
    hooks = [name for name in has_run if name in ran and name not in ITERATORS]
    return Taken(
        100 * (after - before) / took,
        100 * sum(has_run[name].ns - ran[name].ns for name in hooks) / 1e9 / took,
        sum(has_run[name].count - ran[name].count for name in hooks) / took,
        resident_mb(pid),
    )


def main() -> None:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="default: all")
    parser.add_argument("--jobs", default=",".join(JOBS), help="of others, e.g. tcp,getppid (default: all)")
    parser.add_argument("--rounds", type=int, default=300, help="of others")
    parser.add_argument("--seconds", type=float, default=15, help="of own and idle")
    options = parser.parse_args()
    parts: dict[str, Callable[[], list[Figure]]] = {
        "others": lambda: others(options.jobs.split(","), options.rounds),
        "own": lambda: own(options.seconds),
        "idle": lambda: idle(options.seconds),
    }
    figures = [figure for name in options.parts or PARTS for figure in parts[name]()]
    over = sum(not figure.kept for figure in figures)
    print(f"\n{over} bounds not kept" if over else "\nall bounds kept")
    sys.exit(over > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
