# SPDX-License-Identifier: Apache-2.0
"""What counting UDP costs: `sudo .venv/bin/python bench/udp.py [--quick]`.

CPU nanoseconds that a byte of UDP takes, both ends on one CPU, by the scheduler's account of the process. The hook is
on and off in turns of a quarter of a second, and the median of many ratios of neighbours is stable.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bpf_stats import statistics_on
from measure import Figure, built, report
from sockets import own_namespace

from nettop.kernel.mechanisms import Mechanism
from nettop.kernel.program import Loader
from nettop.probes.connections.programs import table_text, udp_text
from nettop.probes.connections.udp import UDP_FALLBACKS, UdpTotals

TURN_S = 0.25
CPUCLOCK_SCHED = 2
"""The scheduler's clock of a process, with its PID (include/linux/posix-timers_types.h, MAKE_PROCESS_CPUCLOCK)."""
TRAFFIC = {"messages of 1,200 bytes": 1, "messages of 50 segments of 1,200 bytes": 50}


@contextlib.contextmanager
def counting() -> Iterator[tuple[UdpTotals, Mechanism]]:
    """The counting alone, without the rest of the lens, and the mechanism that it uses."""
    loader = Loader()
    for text in (table_text(), udp_text()):
        loader.request(text)
    walks, program = loader.answer(), loader.answer()
    udp = UdpTotals(program, loader=loader, chosen={}, check=None)
    udp.finish_hooks()
    status = udp.status().hooks[0]
    try:
        yield udp, next(m for m in UDP_FALLBACKS.mechanisms if m.name == status.mechanism)
    finally:
        udp.close()
        walks.close()
        loader.close()


@contextlib.contextmanager
def sending(segments: int) -> Iterator[tuple[int, Path]]:
    """messages.c on the last CPU: its PID, and the file in which it counts bytes."""
    with built("messages.c") as program:
        count = Path(program).with_name("count")
        pinned = ["taskset", "-c", str((os.cpu_count() or 1) - 1)]
        with subprocess.Popen([*pinned, program, str(segments), str(count)]) as process:
            try:
                while process.poll() is None and not (count.exists() and any(count.read_bytes())):
                    time.sleep(0.01)
                yield process.pid, count
            finally:
                process.kill()


def ns_per_byte(pid: int, count: Path) -> float:
    """CPU nanoseconds a byte during one turn."""
    clock = ~pid << 3 | CPUCLOCK_SCHED
    begun = time.clock_gettime_ns(clock), int.from_bytes(count.read_bytes(), "little")
    time.sleep(TURN_S)
    ended = time.clock_gettime_ns(clock), int.from_bytes(count.read_bytes(), "little")
    return (ended[0] - begun[0]) / (ended[1] - begun[1])


def flood(what: str, segments: int, pairs: int) -> None:
    """The ratio of the CPU time a byte with the hook to that without it, and what a call costs."""
    with counting() as (udp, mechanism), sending(segments) as (pid, count):
        turns = []
        for turn in range(2 * pairs + 1):
            (udp._hooks.take(mechanism) if turn % 2 else udp._hooks.close())
            turns.append(ns_per_byte(pid, count))
        # Each turn with the hook stands between two without it.
        ratios = [2 * turns[at] / (turns[at - 1] + turns[at + 1]) for at in range(1, len(turns) - 1, 2)]
        udp._hooks.take(mechanism)
        with statistics_on():
            time.sleep(TURN_S)
            runs = udp._program.runs()
    report(
        f"A flood of {what}, {mechanism.name}, {pairs} pairs of {TURN_S:g} s",
        [
            Figure("CPU a byte without the hook", statistics.median(turns[::2]), "ns"),
            Figure("CPU a byte with the hook ÷ without", statistics.median(ratios), "×", 1.05),
            *(Figure(name, ns / max(number, 1), "ns") for name, (number, ns) in runs.items()),
        ],
    )


def main() -> None:
    """Runs each kind of traffic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    quick = parser.parse_args().quick
    own_namespace()
    for what, segments in itertools.islice(TRAFFIC.items(), 1 if quick else None):
        flood(what, segments, 4 if quick else 60)


if __name__ == "__main__":
    main()
