# SPDX-License-Identifier: Apache-2.0
"""Checks that nettop's own figures of its cost are true and that --max-overhead is kept.

`sudo .venv/bin/python bench/overhead.py [agree text screens log] [--connections 50000] [--seconds 60]`

`agree` holds nettop's own figures (--view self) against those of the kernel: user and system time as /usr/bin/time has
them (wait4), and the statistics of BPF programs. The other parts run a frontend with --max-overhead over as many
connections, wait until it is steady, and measure from outside what it and its programs take.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bpf_stats import program_runs, statistics_on
from measure import NETTOP, Figure, Terminal, cpu_seconds, report
from sockets import connections, own_namespace

BOUND = "2%"
STEADY_AFTER_S = 30.0
AGREES_WITHIN = 0.10
ITERATORS = ("task_file", "tcp", "udp")
"""The kernel's names of programs that run in nettop's own threads."""
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
PARTS = ("agree", "text", "screens", "log")


@dataclass(frozen=True)
class Spent:
    """CPU seconds by some time: of the process with its children, and of programs in other people's time."""

    at: float
    cpu_s: float
    programs_s: float

    @classmethod
    def by_now(cls, pid: int) -> "Spent":
        """What the process has spent."""
        hooks = [runs.ns for name, runs in program_runs(pid).items() if name not in ITERATORS]
        return cls(time.monotonic(), cpu_seconds(pid), sum(hooks) / 1e9)

    def share_since(self, before: "Spent") -> float:
        """The share of one CPU since then."""
        spent = self.cpu_s - before.cpu_s + self.programs_s - before.programs_s
        return spent / (self.at - before.at)


def agree(seconds: int) -> None:
    """nettop's figures beside the kernel's."""
    names = "kind,name,lens,runs,time_ns,late,lost"
    words = ["--view", "self", "--format", "jsonl", "--columns", names, "--count", str(seconds)]
    with statistics_on(), connecting():
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
        # As /usr/bin/time does it.
        used = os.wait4(process.pid, 0)[2]
        process.returncode = 0
    ours = {
        (row["kind"], row["name"]): int(str(row["time_ns"])) for row in rows if row["time_ns"] is not None
    }
    hooks = sum(ns for (kind, _), ns in ours.items() if kind == "program")
    walks = sum(ns for (kind, _), ns in ours.items() if kind == "iterator")
    own = next(ns for (kind, _), ns in ours.items() if kind == "total") - hooks
    theirs = {
        is_walk: sum(ns for name, ns in programs.items() if (name in ITERATORS) is is_walk)
        for is_walk in (False, True)
    }
    report(
        f"nettop --view self for {seconds} s",
        [
            *compared("user and system time", own / 1e9, used.ru_utime + used.ru_stime, "/usr/bin/time"),
            *compared("programs at hooks", hooks / 1e9, theirs[False] / 1e9, "BPF statistics"),
            *compared("iterators", walks / 1e9, theirs[True] / 1e9, "BPF statistics"),
        ],
    )


@contextmanager
def connecting() -> Iterator[None]:
    """Somebody connects and closes all the time: the hooks have something to tell."""
    process = subprocess.Popen([sys.executable, "-S", "-c", CONNECTING])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compared(what: str, ours: float, theirs: float, whose: str) -> list[Figure]:
    """Our figure, theirs, and how far they are apart."""
    apart = abs(ours - theirs) / theirs if theirs else 0.0
    return [
        Figure(f"{what}: nettop's own figure", ours, "s"),
        Figure(f"{what}: {whose}", theirs, "s"),
        Figure(f"{what}: apart", apart * 100, "%", AGREES_WITHIN * 100),
    ]


def bounded(frontend: str, words: list[str], seconds: int) -> None:
    """What a frontend takes with --max-overhead, and without."""
    with statistics_on():
        free, _ = share_of(words, 5.0, 10)
        bound, said = share_of([*words, "--max-overhead", BOUND], STEADY_AFTER_S, seconds)
    report(
        f"{frontend} with --max-overhead {BOUND}, {seconds} s",
        [
            Figure("share of one CPU without it", free * 100, "%"),
            Figure("share of one CPU", bound * 100, "%", float(BOUND.rstrip("%"))),
        ],
    )
    for line in said:
        print(f"    {line}")


def share_of(words: list[str], steady_after_s: float, seconds: float) -> tuple[float, list[str]]:
    """What nettop takes of one CPU once it is steady, and what it says of that."""
    with on_terminal(words) as (pid, take_in):
        take_in(steady_after_s)
        before = Spent.by_now(pid)
        said = take_in(seconds)
        return Spent.by_now(pid).share_since(before), said


@contextmanager
def on_terminal(words: list[str]) -> Iterator[tuple[int, Callable[[float], list[str]]]]:
    """nettop with these words, on a terminal or in a pipe; what takes its output in for so long, and gives remarks."""
    if "--table" in words or words[0] == "log":
        process = subprocess.Popen(
            [NETTOP, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        remarks: list[str] = []

        def take_in(seconds: float) -> list[str]:
            assert process.stderr
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                if select.select([process.stderr], [], [], left)[0]:
                    text = os.read(process.stderr.fileno(), 1 << 16).decode()
                    remarks.extend(line for line in text.splitlines() if "--max-overhead" in line)
                    if not text:
                        break
            return remarks

        try:
            yield process.pid, take_in
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        return
    terminal = Terminal(NETTOP, *words)
    try:
        yield terminal.pid, lambda seconds: _drawn(terminal, seconds)
    finally:
        terminal.end()


def _drawn(terminal: Terminal, seconds: float) -> list[str]:
    """Takes in what is drawn for so long; a screen's remarks are drawn."""
    terminal.read_for(seconds)
    return []


def main() -> None:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS])
    parser.add_argument("--connections", type=int, default=50_000)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    parts = options.parts or PARTS
    own_namespace()
    with connections(2 * options.connections):
        print(f"{options.connections:,} connections, {os.cpu_count()} CPUs", flush=True)
        if "agree" in parts:
            agree(options.seconds)
        for frontend, words in {
            "text": ["--table", "--limit", "30"],
            "screens": ["--interval", "1"],
            "log": ["log", "--log-dir", "none", "--lens", "connections.groups"],
        }.items():
            if frontend in parts:
                bounded(frontend, words, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
