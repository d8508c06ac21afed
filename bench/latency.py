# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the latency lens: `sudo .venv/bin/python bench/latency.py [speed bulk] [--quick]`.

A veth pair connects another network namespace to the bench's own; both ends of the traffic run on one CPU. `speed`:
64-byte datagrams that it can send and receive. `bulk`: CPU nanoseconds per byte of a TCP connection. In both, turns
with and without the lens alternate; times are the scheduler's, which other load hardly affects. For comparison:
empty programs at the same hooks. The lens is attached by tracepoints and fentry, its best mechanisms.
"""

import contextlib
import socket
import sys
import time
from argparse import Namespace as Options
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
from bandwidth import RECEIVED, TURN_S, packets, stream
from cpu_cost import NOTHING, Job, Switch, costs_of
from hooked import Hooked, empty_text
from measure import QUICK, Report, arguments, judge
from sockets import own_namespace

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.latency.probe import make_probe
from nettop.probes.latency.programs import FALLBACKS, SETTINGS, program_text
from nettop.snapshots.latency import ONE_IN

EMPTY, USUAL, EVERY = "empty programs", "the lens", "the lens, --sampling 1"
SPEED, COST = 0.92, 1.05
"""Bounds for USUAL, with the lens ÷ without: datagrams per second, and CPU time per byte of TCP."""
JOBS = {
    "speed": Job("64-byte datagrams", partial(packets, RECEIVED), "datagram", speed=SPEED),
    "bulk": Job("A TCP connection", partial(stream, RECEIVED), "byte", cost=COST),
}
READINGS = 3
"""Readings until the sampling rate is settled: the lens knows the packet rate from the second reading on."""
_SO_TIMESTAMPNS = 35

# --- switches ---------------------------------------------------------------------------------------------------------


class Lens(Hooked):
    """The lens's programs, without its readings, and a socket that makes the kernel timestamp received packets."""

    def __init__(self, program: Program, names: Sequence[str], one_in: int) -> None:
        super().__init__(program, names)
        ahead_s = round((time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()) / 1e9)
        self._settings = np.array((ahead_s * 10**9, one_in), SETTINGS).tobytes()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the programs and have packets timestamped inside the `with` block."""
        bpf.set_element(self.program.maps["settings"], bytes(4), self._settings)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            with super().attached():
                yield


# --- programs ---------------------------------------------------------------------------------------------------------


def hooks_of(program: Program) -> list[str]:
    """Return the programs that the lens attaches on this kernel, in its order, without kprobes."""
    best = (
        next((each for each in fallbacks.mechanisms if program.functions.keys() >= set(each.programs)), None)
        for fallbacks in FALLBACKS.values()
    )
    return list(dict.fromkeys(name for mechanism in best if mechanism for name in mechanism.programs))


@contextlib.contextmanager
def loaded(text: ProgramText) -> Iterator[Program]:
    """Load a program inside the `with` block."""
    with contextlib.closing(Loader().load(text)) as program:
        yield program


@contextlib.contextmanager
def hooked() -> Iterator[dict[str, Hooked]]:
    """Yield the switches. USUAL samples packets at the rate that the lens chooses under this traffic."""
    one_in, reading_s = follow_by_itself()
    print(
        f"\nunder this traffic the lens follows one packet in {one_in}; a reading takes {reading_s * 1e3:.1f} ms"
    )
    with loaded(program_text()) as program:
        names = hooks_of(program)
        with loaded(empty_text(names)) as empty:
            yield {
                EMPTY: Hooked(empty, names),
                USUAL: Lens(program, names, one_in),
                EVERY: Lens(program, names, 1),
            }


def follow_by_itself() -> tuple[int, float]:
    """Return the sampling (one packet in n) that the lens currently chooses, and the CPU seconds of a reading."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        for _ in range(READINGS):
            time.sleep(1)
            started = time.thread_time()
            one_in = source.read(time.monotonic_ns()).counts[ONE_IN]
            reading_s = time.thread_time() - started
    return one_in, reading_s


# --- cost for other processes -----------------------------------------------------------------------------------------


def others(job: Job, options: Options) -> Report:
    """Measure the speed or the cost of a job with each switch on ÷ without."""
    rounds = 3 if options.quick else 40
    with job.started() as work, hooked() as hooks:
        switches: dict[str, Switch] = {
            NOTHING: nullcontext,
            **{name: each.attached for name, each in hooks.items()},
        }
        figures = costs_of(job, work, switches, rounds, TURN_S)
    figures = [each if f"with {USUAL} (" in each.what else replace(each, bound=None) for each in figures]
    return f"{job.title}, both ends on one CPU, {rounds} pairs of {TURN_S:g} s", figures


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, JOBS, quick=QUICK)
    own_namespace()
    return judge(others(JOBS[name], options) for name in options.parts)


if __name__ == "__main__":
    sys.exit(main())
