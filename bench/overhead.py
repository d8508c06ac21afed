# SPDX-License-Identifier: Apache-2.0
"""Check nettop's figures on its own cost, and that it stays within --max-overhead.

`sudo .venv/bin/python bench/overhead.py [agree text screens log] [--connections 50000] [--seconds 60]`

`agree` compares nettop's own figures (--view self) with the kernel's: user and system time as in /usr/bin/time
(wait4), and the statistics of BPF programs. The other parts run a frontend with --max-overhead over that many
connections, wait until it is steady, and measure from outside what it and its programs take.
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace as Options
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from bpf_stats import program_runs, statistics_on
from measure import Figure, Report, arguments, judge
from programs import NETTOP, cpu_seconds, on_terminal, running
from sockets import connections, own_namespace

BOUND = "2%"
STEADY_AFTER_S = 30.0
AGREES_WITHIN = 0.10
ITERATORS = ("task_file", "tcp", "udp")
"""Kernel names of the programs that run in nettop's own threads."""
CONNECTING = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
while True:
    near = socket.create_connection(listener.getsockname())
    far = listener.accept()[0]
    near.send(b"n")
    far.recv(1)
    far.close()
    near.close()
    time.sleep(0.001)
"""
FRONTENDS = {
    "text": ("--table", "--limit", "30"),
    "screens": ("--interval", "1"),
    "log": ("log", "--log-dir", "none", "--lens", "connections.groups"),
}


@dataclass(frozen=True)
class Spent:
    """Cumulative CPU seconds at a point in time: of the process with its children, and of programs on others' time."""

    at: float
    cpu_s: float
    programs_s: float

    @classmethod
    def by_now(cls, pid: int) -> "Spent":
        """Return the process's cumulative usage so far."""
        hooks = [runs.ns for name, runs in program_runs(pid).items() if name not in ITERATORS]
        return cls(time.monotonic(), cpu_seconds(pid), sum(hooks) / 1e9)

    def share_since(self, before: "Spent") -> float:
        """Return the share of one CPU since an earlier point."""
        spent = self.cpu_s - before.cpu_s + self.programs_s - before.programs_s
        return spent / (self.at - before.at)


def agree(seconds: int) -> Report:
    """Compare nettop's figures with the kernel's while connections keep its hooks busy."""
    names = "kind,name,lens,runs,time_ns,late,lost"
    words = ["--view", "self", "--format", "jsonl", "--columns", names, "--count", str(seconds)]
    with statistics_on(), running(sys.executable, "-S", "-c", CONNECTING):
        process = subprocess.Popen([NETTOP, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert process.stdout
        rows: list[dict[str, object]] = []
        programs: dict[str, int] = {}
        for line in process.stdout:
            row = json.loads(line)
            if row["kind"] == "total":
                rows = []
                programs = {name: runs.ns for name, runs in program_runs(process.pid).items()} or programs
            rows.append(row)
        # As /usr/bin/time does.
        used = os.wait4(process.pid, 0)[2]
        process.returncode = 0

    def ours(kind: str) -> int:
        times = [row["time_ns"] for row in rows if row["kind"] == kind]
        return sum(int(str(ns)) for ns in times if ns is not None)

    def theirs(*, iterators: bool) -> int:
        return sum(ns for name, ns in programs.items() if (name in ITERATORS) is iterators)

    hooks, used_s = ours("program"), used.ru_utime + used.ru_stime
    return f"nettop --view self for {seconds} s", [
        *compared("user and system time", (ours("total") - hooks) / 1e9, used_s, "/usr/bin/time"),
        *compared("programs at hooks", hooks / 1e9, theirs(iterators=False) / 1e9, "BPF statistics"),
        *compared("iterators", ours("iterator") / 1e9, theirs(iterators=True) / 1e9, "BPF statistics"),
    ]


def compared(what: str, ours: float, theirs: float, whose: str) -> list[Figure]:
    """Return nettop's figure, the kernel's, and their relative difference."""
    difference = abs(ours - theirs) / theirs if theirs else 0.0
    return [
        Figure(f"{what}: nettop's own figure", ours, "s"),
        Figure(f"{what}: {whose}", theirs, "s"),
        Figure(f"{what}: difference", difference * 100, "%", AGREES_WITHIN * 100),
    ]


def bounded(frontend: str, seconds: int) -> Report:
    """Measure a frontend's usage with and without --max-overhead."""
    words = FRONTENDS[frontend]
    with statistics_on():
        free = share_of(words, 5.0, 10)
        bound = share_of((*words, "--max-overhead", BOUND), STEADY_AFTER_S, seconds)
    return f"{frontend} with --max-overhead {BOUND}, {seconds} s", [
        Figure("share of one CPU without it", free * 100, "%"),
        Figure("share of one CPU", bound * 100, "%", float(BOUND.rstrip("%"))),
    ]


def share_of(words: tuple[str, ...], steady_after_s: float, seconds: float) -> float:
    """Return nettop's share of one CPU once it is steady; print the remarks of plain output since then."""
    if words[0] not in ("--table", "log"):
        with on_terminal(*words) as terminal:
            terminal.read_for(steady_after_s)
            before = Spent.by_now(terminal.pid)
            terminal.read_for(seconds)
            return Spent.by_now(terminal.pid).share_since(before)
    with NamedTemporaryFile() as remarks, running(NETTOP, *words, err=remarks.fileno()) as process:
        time.sleep(steady_after_s)
        before, read = Spent.by_now(process.pid), os.path.getsize(remarks.name)
        time.sleep(seconds)
        for line in Path(remarks.name).read_text()[read:].splitlines():
            if "--max-overhead" in line:
                print(f"    {line}")
        return Spent.by_now(process.pid).share_since(before)


def reports(options: Options) -> Iterator[Report]:
    """Run the chosen parts."""
    with connections(2 * options.connections):
        print(f"{options.connections:,} connections, {os.cpu_count()} CPUs", flush=True)
        for name in options.parts:
            yield agree(options.seconds) if name == "agree" else bounded(name, options.seconds)


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        ("agree", *FRONTENDS),
        connections=(50_000, "connections to hold"),
        seconds=(60, "duration of a part"),
    )
    own_namespace()
    return judge(reports(options))


if __name__ == "__main__":
    sys.exit(main())
