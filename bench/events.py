# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of connection events: `sudo .venv/bin/python bench/events.py [price storm log] [--quick]`.

A storm of short connections over loopback (storm.c, both ends in one process, on one CPU) runs alternately with and
without nettop. If conntrack is installed, `conntrack -E` records the same storm for comparison with `nettop log`.
"""

import shutil
import socket
import statistics
import sys
import tempfile
from argparse import Namespace as Options
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bpf_stats import Runs, program_runs, runs_since, statistics_on
from measure import QUICK, Figure, Report, arguments, at_least, in_pairs, judge
from programs import (
    LAST_CPU,
    NETTOP,
    Process,
    built,
    cpu_while,
    drain,
    in_background,
    resident_mb,
    run,
    running,
    until,
)
from sockets import own_namespace

STATE, NESTED = "tp_btf__inet_so", "tp_btf__nested"
SEND, RECEIVE = "tp_btf__sock_se", "tp_btf__sock_re"
LOG_RATE = 10_000
"""Connections per second."""
_TRACKED = """
table ip bench {
  chain input {
    type filter hook input priority 0;
    ct state invalid drop;
  }
}
"""
"""A rule without which the kernel tracks no connections in this namespace."""


@dataclass(frozen=True)
class Storm:
    """Result of a storm: connections, elapsed seconds, CPU seconds; and nettop's own usage during it."""

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


def run_storm(program: str, seconds: float, workers: int = 1, rate: int = 0) -> Storm:
    """Run storm.c to its end; a single worker runs on the last CPU."""
    pinned = ["taskset", "-c", f"{LAST_CPU}"] if workers == 1 else []
    said = run(*pinned, program, str(seconds), str(workers), *([str(rate)] if rate else []))
    made, took, cpu = said.split()
    return Storm(int(made), float(took), float(cpu))


def storm_beside(process: Process, act: Callable[[], Storm]) -> Storm:
    """Run a storm; return it with the CPU share and the memory of a process during it."""
    made: list[Storm] = []
    cpu = cpu_while(process.pid, lambda: made.append(act()))
    return Storm(made[0].connections, made[0].seconds, made[0].cpu_s, cpu, resident_mb(process.pid))


def wait_for_hooks(pid: int) -> None:
    """Wait until the process has loaded the program for state changes."""
    until(lambda: STATE in program_runs(pid), "nettop attaches its hooks")


@contextmanager
def hooked(*options: str) -> Iterator[Process]:
    """Run nettop with its hooks attached; discard its output."""
    with running(NETTOP, *options, err=sys.stderr) as process:
        wait_for_hooks(process.pid)
        yield process


# --- cost of a run --------------------------------------------------------------------------------------------


def price(program: str, options: Options) -> Report:
    """Measure nanoseconds per run of each program by the kernel's statistics, which include two clock readings."""
    seconds = 0.5 if options.quick else 3
    with in_background("--table", "-d") as process, statistics_on():
        wait_for_hooks(process.pid)
        drain(process, 3)  # two readings after the last accept, messages are ignored
        messages = runs_during(process.pid, lambda: send_datagrams(50_000))
        storms: list[Storm] = []
        runs = runs_during(process.pid, lambda: storms.append(run_storm(program, seconds)))
    whole = runs[STATE].ns / storms[0].connections
    return "Price of the hooks, by BPF statistics", [
        Figure("a state change, one of ten in a connection's lifetime", runs[STATE].ns_each, "ns"),
        Figure("the nested program next to it", runs[NESTED].ns_each, "ns"),
        Figure("all state changes of a connection, both ends", whole, "ns"),
        Figure("a message sent while connections are accepted", runs[SEND].ns_each, "ns"),
        Figure("a message sent while none are (UDP)", messages[SEND].ns_each, "ns"),
        Figure("a message received while none are (UDP)", messages[RECEIVE].ns_each, "ns"),
    ]


def runs_during(pid: int, act: Callable[[], None]) -> dict[str, Runs]:
    """Return the runs of each program while `act` ran."""
    before = program_runs(pid)
    act()
    return runs_since(before, program_runs(pid))


def send_datagrams(count: int) -> None:
    """Send `count` datagrams over loopback and receive each."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, receiver:
        sender.connect(receiver.getsockname())
        for _ in range(count):
            sender.send(b"x")
            receiver.recv(10)


# --- a storm with and without nettop --------------------------------------------------------------------------


def storm(program: str, options: Options) -> Report:
    """Run storms in pairs, without nettop and while it prints the table; take medians over the pairs."""
    pairs, seconds = (2, 0.5) if options.quick else (9, 3)

    def turn(switch: Callable[[], AbstractContextManager[Process | None]]) -> Storm:
        with switch() as process:
            if process is None:
                return run_storm(program, seconds)
            return storm_beside(process, lambda: run_storm(program, seconds))

    taken = in_pairs(pairs, turn, nullcontext, {"nettop": lambda: hooked("--table", "-d")})["nettop"]
    alone, beside = zip(*taken, strict=True)
    speed = statistics.median(with_it.per_s / without.per_s for without, with_it in taken)
    added = statistics.median(with_it.cpu_us - without.cpu_us for without, with_it in taken)
    own = 100 * statistics.median(each.own_cpu for each in beside)
    rate = statistics.median(each.per_s for each in alone)
    title = f"A storm of {rate:,.0f} connections/s on one CPU, median of {pairs} pairs of {seconds:g} s"
    return title, [
        at_least("connections/s with nettop ÷ without", speed, "×", 0.95),
        Figure("CPU per connection without nettop", statistics.median(each.cpu_us for each in alone), "µs"),
        Figure(
            "CPU per connection added by nettop", added, "µs", 2.5
        ),  # 5 % of a CPU at 20,000 connections/s
        Figure("nettop's own CPU meanwhile (--table)", own, "%"),
        Figure("nettop resident (--table)", max(each.resident_mb for each in beside), "MB"),
    ]


# --- nettop log under load ------------------------------------------------------------------------------------


def log(program: str, options: Options) -> Report:
    """Compare `nettop log` with `conntrack -E`, if installed, at a fixed rate of connections per second."""
    seconds = 2 if options.quick else 20

    def beside(process: Process) -> Storm:
        return storm_beside(process, lambda: run_storm(program, seconds, workers=2, rate=LOG_RATE))

    with tempfile.TemporaryDirectory() as folder:
        files = ["--log-dir", folder, "--rotate-size", "8M", "--keep", "4", "--format", "jsonl"]
        with hooked("log", *files, "--events-only") as process:
            before_mb = resident_mb(process.pid)
            made = beside(process)
        kept = list(Path(folder).iterdir())
        size = sum(path.stat().st_size for path in kept) / 1e6
    figures = [
        Figure("connections per second", made.per_s, "/s"),
        Figure("nettop log: CPU", 100 * made.own_cpu, "%"),
        Figure("nettop log: resident before", before_mb, "MB"),
        Figure("nettop log: resident at the end", made.resident_mb, "MB"),
        Figure(f"nettop log: {len(kept)} files kept, at most 8 MB each", size, "MB"),
    ]
    if shutil.which("conntrack") and shutil.which("nft"):
        run("nft", "-f", "-", text=_TRACKED)
        with running("conntrack", "-E", "-o", "timestamp") as process:
            made = beside(process)
        figures += [
            Figure("conntrack -E: connections per second", made.per_s, "/s"),
            Figure("conntrack -E: CPU", 100 * made.own_cpu, "%"),
            Figure("conntrack -E: resident at the end", made.resident_mb, "MB"),
        ]
    return f"Recording a storm for {seconds} s", figures


PARTS = {"price": price, "storm": storm, "log": log}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, PARTS, quick=QUICK)
    own_namespace()
    with built("storm.c") as program:
        return judge(PARTS[name](program, options) for name in options.parts)


if __name__ == "__main__":
    sys.exit(main())
