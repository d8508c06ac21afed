# SPDX-License-Identifier: Apache-2.0
"""What the events of connections cost: `sudo .venv/bin/python bench/events.py [price storm log] [--quick]`.

A storm of short connections over loopback (storm.c, both ends in one process, on one CPU) runs with nettop and without
it in turns; conntrack -E, where it is installed, does its own recording of the same storm beside `nettop log`.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bpf_stats import Runs, program_runs, statistics_on
from measure import NETTOP, Figure, built, cpu_seconds, drain, in_background, report, resident_mb
from sockets import own_namespace

ATTACHED_WITHIN_S = 5.0
STATE, NESTED = "tp_btf__inet_so", "tp_btf__nested"
SEND, RECEIVE = "tp_btf__sock_se", "tp_btf__sock_re"
_TRACKED = """
table ip bench {
  chain input {
    type filter hook input priority 0;
    ct state invalid drop;
  }
}
"""
"""Without such a rule the kernel tracks no connection in this namespace."""


@dataclass(frozen=True)
class Storm:
    """What a storm did: connections, the seconds it took and its CPU seconds."""

    connections: int
    seconds: float
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a connection, both ends together."""
        return self.cpu_s / self.connections * 1e6


def run_storm(program: str, seconds: float, workers: int = 1, rate: int = 0) -> Storm:
    """Run storm.c to its end; a single worker runs on the last CPU."""
    pinned = ["taskset", "-c", str((os.cpu_count() or 1) - 1)] if workers == 1 else []
    command = [*pinned, program, str(seconds), str(workers), *([str(rate)] if rate else [])]
    made, took, cpu = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return Storm(int(made), float(took), float(cpu))


def wait_for_hooks(pid: int) -> None:
    """Wait until the process has loaded the program for changes of state."""
    end = time.perf_counter() + ATTACHED_WITHIN_S
    while STATE not in program_runs(pid):
        if time.perf_counter() > end:
            raise SystemExit("nettop did not attach its hooks")
        time.sleep(0.01)


@contextlib.contextmanager
def nettop(*options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """nettop with its hooks attached; its output is discarded."""
    with subprocess.Popen([NETTOP, *options], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        try:
            wait_for_hooks(process.pid)
            yield process
        finally:
            process.terminate()


# --- what a run costs -----------------------------------------------------------------------------------------


def price(program: str, seconds: float) -> None:
    """Nanoseconds a run of each program, by the kernel's statistics, whose own two clock readings are in them."""
    with in_background("--table", "-d") as process, statistics_on():
        wait_for_hooks(process.pid)
        drain(process, 3)  # two readings after the last accept the messages are not looked at
        messages = runs_during(process.pid, lambda: send_datagrams(50_000))
        storms: list[Storm] = []
        runs = runs_during(process.pid, lambda: storms.append(run_storm(program, seconds)))
    report(
        "Price of the hooks, by BPF statistics",
        [
            Figure("a change of state, of ten over a connection's lifetime", per_run(runs[STATE]), "ns"),
            Figure("the nested program beside it", per_run(runs[NESTED]), "ns"),
            Figure("all of a connection's, both ends", runs[STATE].ns / storms[0].connections, "ns"),
            Figure("a message sent while connections are accepted", per_run(runs[SEND]), "ns"),
            Figure("a message sent while none is (UDP)", per_run(messages[SEND]), "ns"),
            Figure("a message received while none is (UDP)", per_run(messages[RECEIVE]), "ns"),
        ],
    )


def per_run(runs: Runs) -> float:
    """Nanoseconds a run."""
    return runs.ns / max(runs.count, 1)


def runs_during(pid: int, act: Callable[[], None]) -> dict[str, Runs]:
    """How often and how long each program ran while `act` did."""
    before = program_runs(pid)
    act()
    after = program_runs(pid)
    return {
        name: Runs(now.count - before[name].count, now.ns - before[name].ns) for name, now in after.items()
    }


def send_datagrams(count: int) -> None:
    """Send `count` datagrams over loopback, and receive each."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, receiver:
        sender.connect(receiver.getsockname())
        for _ in range(count):
            sender.send(b"x")
            receiver.recv(10)


# --- a storm with nettop and without --------------------------------------------------------------------------


def storm(program: str, pairs: int, seconds: float) -> None:
    """Storms in pairs, one alone and one while nettop prints the table; medians of the pairs' ratios."""
    alone, with_nettop, used, resident = [], [], [], []
    for _ in range(pairs):
        alone.append(run_storm(program, seconds))
        with nettop("--table", "-d") as process:
            before = cpu_seconds(process.pid)
            with_nettop.append(run_storm(program, seconds))
            used.append((cpu_seconds(process.pid) - before) / seconds)
            resident.append(resident_mb(process.pid))
    speed = [
        (with_it.connections / with_it.seconds) / (without.connections / without.seconds)
        for with_it, without in zip(with_nettop, alone, strict=True)
    ]
    cost = [with_it.cpu_us - without.cpu_us for with_it, without in zip(with_nettop, alone, strict=True)]
    rate = statistics.median(item.connections / item.seconds for item in alone)
    report(
        f"A storm of {rate:,.0f} connections/s on one CPU, median of {pairs} pairs of {seconds:g} s",
        [
            Figure(
                "connections a second with nettop ÷ without",
                statistics.median(speed),
                "×",
                0.95,
                at_least=True,
            ),
            Figure("CPU a connection without nettop", statistics.median(item.cpu_us for item in alone), "µs"),
            # 5 % of a CPU at 20,000 connections a second
            Figure("CPU a connection that nettop adds to it", statistics.median(cost), "µs", 2.5),
            Figure("nettop's own CPU meanwhile (--table)", 100 * statistics.median(used), "%"),
            Figure("nettop resident (--table)", max(resident), "MB"),
        ],
    )


# --- nettop log under load ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A recorder under a storm: its CPU as a share of one, MB resident before and at the end."""

    cpu: float
    resident: tuple[float, float]


def log(program: str, seconds: int, rate: int) -> None:
    """`nettop log` while so many connections a second come and go, beside conntrack -E."""
    with tempfile.TemporaryDirectory() as folder:
        files = ["log", "--log-dir", folder, "--rotate-size", "8M", "--keep", "4", "--format", "jsonl"]
        with tempfile.TemporaryFile() as words:
            command = [NETTOP, *files, "--events-only"]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=words, stdin=subprocess.DEVNULL
            )
            wait_for_hooks(process.pid)
            recorded, made = record(process, lambda: run_storm(program, seconds, workers=2, rate=rate))
            process.send_signal(signal.SIGTERM)
            process.wait()
            words.seek(0)
            print(words.read().decode().rstrip())
        kept = sorted(Path(folder).iterdir())
        size = sum(path.stat().st_size for path in kept) / 1e6
    figures = [
        Figure("connections a second", made.connections / made.seconds, "/s"),
        Figure("nettop log: CPU", 100 * recorded.cpu, "%"),
        Figure("nettop log: resident before", recorded.resident[0], "MB"),
        Figure("nettop log: resident at the end", recorded.resident[1], "MB"),
        Figure(f"nettop log: {len(kept)} files kept, of at most 8 MB", size, "MB"),
    ]
    if shutil.which("conntrack") and shutil.which("nft"):
        subprocess.run(["nft", "-f", "-"], input=_TRACKED, text=True, check=True)
        peer = subprocess.Popen(
            ["conntrack", "-E", "-o", "timestamp"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        recorded, made = record(peer, lambda: run_storm(program, seconds, workers=2, rate=rate))
        peer.terminate()
        peer.wait()
        figures += [
            Figure("conntrack -E: connections a second", made.connections / made.seconds, "/s"),
            Figure("conntrack -E: CPU", 100 * recorded.cpu, "%"),
            Figure("conntrack -E: resident at the end", recorded.resident[1], "MB"),
        ]
    report(f"Recording a storm for {seconds} s", figures)


def record(process: "subprocess.Popen[bytes]", act: Callable[[], Storm]) -> tuple[Recorded, Storm]:
    """What the recorder used while `act` ran."""
    before, first = cpu_seconds(process.pid), resident_mb(process.pid)
    begun = time.perf_counter()
    made = act()
    took = time.perf_counter() - begun
    used = (cpu_seconds(process.pid) - before) / took
    return Recorded(used, (first, resident_mb(process.pid))), made


def main() -> None:
    """Runs all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", help="price storm log (default: all)")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    chosen = parser.parse_args()
    quick = chosen.quick
    own_namespace()
    with built("storm.c") as program:
        parts = {
            "price": lambda: price(program, 0.5 if quick else 3),
            "storm": lambda: storm(program, 2 if quick else 9, 0.5 if quick else 3),
            "log": lambda: log(program, 2 if quick else 20, 10_000),
        }
        for name in chosen.parts or parts:
            parts[name]()
    sys.exit(0)


if __name__ == "__main__":
    main()
