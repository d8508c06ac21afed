# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of connection events: `sudo .venv/bin/python bench/events.py [price storm log] [--quick]`.

A storm of short connections over loopback (storm.c, both ends in one process, on one CPU) runs alternately with and
without nettop.
"""

import statistics
import sys
from argparse import Namespace as Options
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from bpf_stats import program_runs, runs_since, statistics_on
from measure import QUICK, Figure, Report, arguments, at_least, in_pairs, judge
from programs import (
    LAST_CPU,
    NETTOP,
    Process,
    built,
    cpu_ns,
    cpu_while,
    drain,
    in_background,
    readable_folder,
    resident_mb,
    run,
    running,
    until,
)
from sockets import own_namespace

STATE, NESTED, SEND = "tp_btf__inet_so", "tp_btf__nested", "tp_btf__sock_se"


@dataclass(frozen=True)
class Storm:
    """Result of a storm: connections, elapsed seconds, CPU seconds; and nettop's own usage during it.

    `own_cpu` is a share of one CPU.
    """

    connections: int
    seconds: float
    cpu_s: float
    own_cpu: float = 0.0
    resident_mb: float = 0.0

    @property
    def per_s(self) -> float:
        """Connections per second."""
        return self.connections / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per connection, both ends together."""
        return self.cpu_s / self.connections * 1e6

    @property
    def own_us(self) -> float:
        """CPU microseconds of nettop per connection."""
        return self.own_cpu / self.per_s * 1e6


def run_storm(program: str, seconds: float) -> Storm:
    """Run storm.c to its end on the last CPU."""
    made, took, cpu = run("taskset", "-c", f"{LAST_CPU}", program, str(seconds)).split()
    return Storm(int(made), float(took), float(cpu))


def storm_beside(process: Process, program: str, seconds: float) -> Storm:
    """Run a storm; return it with the CPU share and the memory of a process during it."""
    made: list[Storm] = []
    cpu = cpu_while(process.pid, lambda: made.append(run_storm(program, seconds)))
    return replace(made[0], own_cpu=cpu, resident_mb=resident_mb(process.pid))


def wait_for_hooks(pid: int) -> None:
    """Wait until the process has loaded the program for state changes."""
    until(lambda: STATE in program_runs(pid), "nettop attaches its hooks")


@contextmanager
def hooked() -> Iterator[Process]:
    """Run nettop with its hooks attached; discard its output."""
    with running(NETTOP, "--table", "-d", err=sys.stderr) as process:
        wait_for_hooks(process.pid)
        yield process


# --- cost of a run --------------------------------------------------------------------------------------------


def price(program: str, options: Options) -> Report:
    """Measure nanoseconds per run of each program by the kernel's statistics, which include two clock readings."""
    seconds = 0.5 if options.quick else 3
    with in_background("--table", "-d") as process, statistics_on():
        wait_for_hooks(process.pid)
        drain(process, 3)
        before = program_runs(process.pid)
        made = run_storm(program, seconds)
        runs = runs_since(before, program_runs(process.pid))
    return "Price of the hooks, by BPF statistics", [
        Figure("a state change, one of ten in a connection's lifetime", runs[STATE].ns_each, "ns"),
        Figure("the nested program next to it", runs[NESTED].ns_each, "ns"),
        Figure("all state changes of a connection, both ends", runs[STATE].ns / made.connections, "ns"),
        Figure("a message sent while connections are accepted", runs[SEND].ns_each, "ns"),
    ]


# --- a storm with and without nettop --------------------------------------------------------------------------


def storm(program: str, options: Options) -> Report:
    """Run storms in pairs, without nettop and while it prints the table; take medians over the pairs."""
    pairs, seconds = (2, 0.5) if options.quick else (9, 3)

    def turn(switch: Callable[[], AbstractContextManager[Process | None]]) -> Storm:
        with switch() as process:
            return storm_beside(process, program, seconds) if process else run_storm(program, seconds)

    taken = in_pairs(pairs, turn, nullcontext, {"nettop": hooked})["nettop"]
    alone, beside = zip(*taken, strict=True)
    speed = statistics.median(with_it.per_s / without.per_s for without, with_it in taken)
    added = statistics.median(with_it.cpu_us - without.cpu_us for without, with_it in taken)
    own = 100 * statistics.median(each.own_cpu for each in beside)
    rate = statistics.median(each.per_s for each in alone)
    title = f"A storm of {rate:,.0f} connections/s on one CPU, median of {pairs} pairs of {seconds:g} s"
    return title, [
        at_least("connections/s with nettop ÷ without", speed, "×", 0.95),
        Figure("CPU per connection without nettop", statistics.median(each.cpu_us for each in alone), "µs"),
        # 5 % of a CPU at 20,000 connections/s
        Figure("CPU per connection added by nettop", added, "µs", 2.5),
        Figure("nettop's own CPU meanwhile (--table)", own, "%"),
        Figure("nettop resident (--table)", max(each.resident_mb for each in beside), "MB"),
    ]


# --- a storm while nettop logs --------------------------------------------------------------------------------


@contextmanager
def logging(*options: str) -> Iterator[Process]:
    """Run `nettop log` with its hooks attached, writing to files only."""
    with (
        readable_folder("log") as folder,
        running(NETTOP, "log", "--log-dir", str(folder), "--no-console", *options, err=sys.stderr) as process,
    ):
        wait_for_hooks(process.pid)
        until(lambda: any(folder.iterdir()), "nettop opens its files")
        yield process


LOGS = {
    "--table -d": hooked,
    "log, text": logging,
    "log, JSON Lines": partial(logging, "--format", "jsonl"),
    "log of groups": partial(logging, "--lens", "connections.groups"),
}
WARM_UP_S = 0.5
"""Seconds of a storm before the measured one: nettop goes on starting after its hooks work."""
BOUNDS = {"log, text": 15, "log, JSON Lines": 15, "log of groups": 5}


def log(program: str, options: Options) -> Report:
    """Run storms in pairs, without nettop and while it logs; take medians over the pairs."""
    pairs, seconds = (1, 0.5) if options.quick else (5, 2)

    def turn(switch: Callable[[], AbstractContextManager[Process | None]]) -> Storm:
        with switch() as process:
            if process is None:
                return run_storm(program, seconds)
            run_storm(program, WARM_UP_S)
            before = cpu_ns(process.pid)
            made = run_storm(program, seconds)
            return replace(made, own_cpu=(cpu_ns(process.pid) - before) / 1e9 / made.seconds)

    taken = in_pairs(pairs, turn, nullcontext, LOGS)
    alone = statistics.median(without.cpu_us for each in taken.values() for without, _ in each)
    figures = [Figure("CPU per connection without nettop", alone, "µs")]
    for name, storms in taken.items():
        figures += added_figures(name, storms)
    return f"A storm while nettop logs, median of {pairs} pairs of {seconds:g} s", figures


def added_figures(name: str, storms: Sequence[tuple[Storm, Storm]]) -> list[Figure]:
    """Return what nettop added to the CPU time of a connection, in the storm itself (hooks) and in its own process."""
    own = statistics.median(with_it.own_us for _, with_it in storms)
    hooks = statistics.median(with_it.cpu_us - without.cpu_us for without, with_it in storms)
    shares = [100 * ((with_it.cpu_us + with_it.own_us) / without.cpu_us - 1) for without, with_it in storms]
    both = f"{name}: both, of the storm's CPU without nettop"
    return [
        Figure(f"{name}: CPU added to the storm, per connection", hooks, "µs"),
        Figure(f"{name}: nettop's own, per connection", own, "µs"),
        Figure(both, statistics.median(shares), "%", BOUNDS.get(name)),
        Figure(f"{name}: spread of that, least to most", max(shares) - min(shares), "%"),
    ]


PARTS = {"price": price, "storm": storm, "log": log}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, PARTS, quick=QUICK)
    own_namespace()
    with built("storm.c") as program:
        return judge(PARTS[name](program, options) for name in options.parts)


if __name__ == "__main__":
    sys.exit(main())
