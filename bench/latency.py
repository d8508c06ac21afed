# SPDX-License-Identifier: Apache-2.0
"""The price of following packets: the latency lens's programs beside empty ones at the same hooks.

A veth pair connects another network namespace to the bench's own; both ends of the traffic run on one CPU. The lens is
attached by tracepoints and fentry, its best mechanisms.
"""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
from bandwidth import RECEIVED, packets, stream
from cpu_cost import EMPTY, SETTLED_AFTER_S, Switch, ns_of_each
from harness import NOTHING, Scale, Target, Turns, benchmark
from hooked import Hooked, empty_text
from sockets import own_namespace

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.latency.probe import make_probe
from nettop.probes.latency.programs import FALLBACKS, SETTINGS, program_text
from nettop.snapshots.latency import ONE_IN

USUAL, EVERY = "the lens", "the lens, --sampling 1"
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
        next(
            (
                mechanism_without
                for mechanism_without in fallbacks.mechanisms
                if program.functions.keys() >= set(mechanism_without.programs)
            ),
            None,
        )
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
    one_in = sampling()
    with loaded(program_text()) as program:
        names = hooks_of(program)
        with loaded(empty_text(names)) as empty:
            yield {
                EMPTY: Hooked(empty, names),
                USUAL: Lens(program, names, one_in),
                EVERY: Lens(program, names, 1),
            }


def sampling() -> int:
    """Return the sampling (one packet in n) that the lens currently chooses."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        for _ in range(READINGS):
            time.sleep(1)
            one_in = source.read(time.monotonic_ns()).counts[ONE_IN]
    return one_in


# --- cost for other processes -----------------------------------------------------------------------------------------

KINDS = {"datagram": (packets, "64-byte datagrams", 1 / 0.92), "byte": (stream, "a TCP connection", 1.05)}


def declare(unit: str) -> None:
    """Declare the benchmark of one of KINDS."""
    traffic, what, bound = KINDS[unit]

    def following(scale: Scale) -> Iterator[Turns]:
        own_namespace()
        with traffic(RECEIVED) as work, hooked() as hooks:

            def turn(switch: Switch) -> float:
                with switch():
                    time.sleep(SETTLED_AFTER_S)
                    return ns_of_each(work)

            switches = {NOTHING: nullcontext, **{name: hook.attached for name, hook in hooks.items()}}
            yield {name: lambda switch=switch: turn(switch) for name, switch in switches.items()}

    following.__doc__ = f"CPU time per {unit} of {what}, relative to the adjacent turn without programs."
    benchmark(
        f"following_{unit}s", f"Following the packets of {what}", "ns", rounds=11, base=NOTHING, needs=("iperf3", "cc"),
        targets=(Target(round(bound, 3), subject=USUAL),),
    )(following)  # fmt: skip


for kind in KINDS:
    declare(kind)
