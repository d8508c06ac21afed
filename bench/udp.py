# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of counting UDP: `sudo .venv/bin/python bench/udp.py [--quick]`.

The figure is CPU nanoseconds per byte of UDP, with both ends on one CPU, by the scheduler's clock of the process. The
hook is on and off in alternating turns of a quarter of a second; the median of many ratios of adjacent turns is stable.
"""

import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bpf_stats import statistics_on
from measure import QUICK, Figure, Report, arguments, judge
from programs import LAST_CPU, built, cpu_ns, running, until
from sockets import own_namespace

from nettop.kernel.bpf.mechanisms import Mechanism
from nettop.kernel.bpf.program import Loader
from nettop.probes.connections.programs import table_text, udp_text
from nettop.probes.connections.udp import UDP_FALLBACKS, UdpTotals

TURN_S = 0.25
TRAFFIC = {"messages of 1,200 bytes": 1, "messages of 50 segments of 1,200 bytes": 50}


@contextlib.contextmanager
def counting() -> Iterator[tuple[UdpTotals, Mechanism]]:
    """Yield the UDP counting, without the rest of the lens, and its mechanism."""
    loader = Loader()
    for text in (table_text(), udp_text()):
        loader.request(text)
    walks, program = loader.answer(), loader.answer()
    udp = UdpTotals(program, loader=loader, chosen={}, check=None)
    udp.hooks.finish()
    status = udp.status().hooks[0]
    try:
        yield udp, next(m for m in UDP_FALLBACKS.mechanisms if m.name == status.mechanism)
    finally:
        udp.close()
        walks.close()
        loader.close()


@contextlib.contextmanager
def sending(segments: int) -> Iterator[tuple[int, Path]]:
    """Run messages.c on the last CPU; yield its PID, and the file in which it counts bytes."""
    with built("messages.c") as program:
        count = Path(program).with_name("count")
        with running("taskset", "-c", f"{LAST_CPU}", program, f"{segments}", f"{count}") as process:
            until(lambda: count.exists() and any(count.read_bytes()), "messages.c")
            yield process.pid, count


def ns_per_byte(pid: int, count: Path) -> float:
    """Return the CPU nanoseconds per byte during one turn."""
    ns, sent = cpu_ns(pid), int.from_bytes(count.read_bytes(), "little")
    time.sleep(TURN_S)
    return (cpu_ns(pid) - ns) / (int.from_bytes(count.read_bytes(), "little") - sent)


def flood(what: str, segments: int, pairs: int) -> Report:
    """Measure the CPU time per byte with the hook ÷ without, and the cost of a call."""
    with counting() as (udp, mechanism), sending(segments) as (pid, count):
        turns = []
        for turn in range(2 * pairs + 1):
            (udp.hooks.attach(mechanism) if turn % 2 else udp.hooks._detach(mechanism.programs))
            turns.append(ns_per_byte(pid, count))
        # Each turn with the hook is between two without it.
        ratios = [2 * turns[at] / (turns[at - 1] + turns[at + 1]) for at in range(1, len(turns) - 1, 2)]
        udp.hooks.attach(mechanism)
        with statistics_on():
            time.sleep(TURN_S)
            runs = udp._program.runs()
    return f"A flood of {what}, {mechanism.name}, {pairs} pairs of {TURN_S:g} s", [
        Figure("CPU per byte without the hook", statistics.median(turns[::2]), "ns"),
        Figure("CPU per byte with the hook ÷ without", statistics.median(ratios), "×", 1.05),
        *(Figure(name, ns / max(number, 1), "ns") for name, (number, ns) in runs.items()),
    ]


def main() -> int:
    """Run each kind of traffic, or the first one briefly."""
    quick = arguments(__doc__, quick=QUICK).quick
    own_namespace()
    kinds = list(TRAFFIC.items())[: 1 if quick else None]
    return judge(flood(what, segments, 4 if quick else 60) for what, segments in kinds)


if __name__ == "__main__":
    sys.exit(main())
