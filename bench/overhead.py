# SPDX-License-Identifier: Apache-2.0
"""Check that nettop stays within --max-overhead.

`sudo .venv/bin/python bench/overhead.py [text screens log] [--connections 50000] [--seconds 60]`

Each part runs a frontend with --max-overhead over that many connections, waits until it is steady, and measures from
outside what it and its programs take.
"""

import os
import sys
import time
from collections.abc import Callable

from bpf_stats import program_runs, statistics_on
from measure import Figure, Report, arguments, judge
from programs import NETTOP, Screens, cpu_seconds, running
from sockets import connections, own_namespace

BOUND = "2%"
STEADY_AFTER_S = 30.0
ITERATORS = ("task_file", "tcp", "udp")
"""Kernel names of the programs that run in nettop's own threads."""
FRONTENDS = {
    "text": ("--table", "--limit", "30"),
    "screens": ("--interval", "1"),
    "log": ("log", "--log-dir", "none", "--lens", "connections.groups"),
}


def spent_s(pid: int) -> float:
    """Return the CPU seconds of a process with its children, and of its programs on others' time."""
    hooks = [runs.ns for name, runs in program_runs(pid).items() if name not in ITERATORS]
    return cpu_seconds(pid) + sum(hooks) / 1e9


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
    """Return nettop's share of one CPU once it is steady; plain output says on standard error what it bounds."""
    if words[0] in ("--table", "log"):
        with running(NETTOP, *words, err=sys.stderr) as process:
            return share_while(process.pid, time.sleep, steady_after_s, seconds)
    with Screens(*words) as screens:
        return share_while(screens.pid, screens.read_for, steady_after_s, seconds)


def share_while(pid: int, wait: Callable[[float], object], steady_after_s: float, seconds: float) -> float:
    """Return the share of one CPU that a process takes while `wait` runs for `seconds`."""
    wait(steady_after_s)
    before, began = spent_s(pid), time.monotonic()
    wait(seconds)
    return (spent_s(pid) - before) / (time.monotonic() - began)


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        FRONTENDS,
        connections=(50_000, "connections to hold"),
        seconds=(60, "duration of a part"),
    )
    own_namespace()
    with connections(2 * options.connections):
        print(f"{options.connections:,} connections, {os.cpu_count()} CPUs", flush=True)
        return judge(bounded(name, options.seconds) for name in options.parts)


if __name__ == "__main__":
    sys.exit(main())
