# SPDX-License-Identifier: Apache-2.0
"""What the latency lens costs: `sudo .venv/bin/python bench/latency.py [speed bulk price] [--quick]`.

A veth pair leads from another network namespace to the bench's own; both ends of the traffic are on one CPU. `speed`:
datagrams of 64 bytes that it can send and receive. `bulk`: CPU nanoseconds that a byte of a TCP connection takes. In
both, turns with the lens stand next to turns without, by the scheduler's account, which other load hardly disturbs.
Beside them: the kernel's receive stamps alone, empty programs at the same hooks, and, for datagrams, what tools often
do, an event for each packet that is decoded in Python. `price`: nanoseconds a run of each program, by the kernel's
statistics. The lens is attached by tracepoints and fentry, its best mechanisms.
"""

import argparse
import contextlib
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from bandwidth import RECEIVED, TURN_S, packets, stream
from bpf_stats import statistics_on
from cpu_cost import NOTHING, SETTLED_AFTER_S, Job, Nothing, Switched, costs, pairs
from measure import Figure, report
from packet_events import TRACING, Events, Hooked, events_text
from sockets import own_namespace

from nettop.kernel import bpf
from nettop.kernel.program import Loader, Program, ProgramText
from nettop.probes.latency.probe import make_probe
from nettop.probes.latency.programs import FALLBACKS, SETTINGS, program_text
from nettop.snapshots.latency import ONE_IN

STAMPS, EMPTY, USUAL = "receive stamps alone", "empty programs", "the lens"
EVERY, EVENTS = "the lens, --sampling 1", "an event for each packet"
SPEED, COST = 0.92, 1.05
"""Datagrams a second with the lens ÷ without, and CPU time a byte of TCP; the bounds are for USUAL."""
JOBS = {
    "speed": Job("Datagrams of 64 bytes", partial(packets, RECEIVED), "datagram", speed=SPEED),
    "bulk": Job("A TCP connection", partial(stream, RECEIVED), "byte", cost=COST),
}
READINGS = 3
"""The lens knows the rate of packets from the second reading on."""
RUNS_AT_LEAST = 100
"""A program that runs less often in a turn is left out."""
_SO_TIMESTAMPNS = 35

# --- what is switched on and off --------------------------------------------------------------------------------------


class Lens(Hooked):
    """The lens's programs, without its readings, and a socket for which the kernel stamps what is received."""

    def __init__(self, program: Program, names: Sequence[str], one_in: int) -> None:
        super().__init__(program, names)
        ahead_s = round((time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()) / 1e9)
        self._settings = np.array((ahead_s * 10**9, one_in), SETTINGS).tobytes()
        self._stamped = contextlib.ExitStack()

    def on(self) -> None:
        """Attach the programs, and have packets stamped."""
        bpf.set_element(self.program.maps["settings"], bytes(4), self._settings)
        opened = self._stamped.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        super().on()

    def off(self) -> None:
        """Detach them, and have packets stamped no more."""
        super().off()
        self._stamped.close()


# --- programs ---------------------------------------------------------------------------------------------------------


def hooks_of(program: Program) -> list[str]:
    """What the lens attaches of its program on this kernel, in its order, kprobes left aside."""
    best = (
        next((each for each in fallbacks.mechanisms if program.functions.keys() >= set(each.programs)), None)
        for fallbacks in FALLBACKS.values()
    )
    return list(dict.fromkeys(name for mechanism in best if mechanism for name in mechanism.programs))


def empty_text(names: Sequence[str]) -> ProgramText:
    """Programs at the same hooks that do nothing."""
    functions = dict.fromkeys(name.partition("@")[0] for name in names)
    header = "".join(f"int {function}(u64 *ctx) {{ return 0; }}\n" for function in functions)
    return ProgramText((), header, (), dict.fromkeys(names, TRACING))


@contextlib.contextmanager
def loaded(text: ProgramText) -> Iterator[Program]:
    """A program, until the end of the with-block."""
    with contextlib.closing(Loader().load(text)) as program:
        yield program


@contextlib.contextmanager
def hooked() -> Iterator[dict[str, Hooked]]:
    """All that is compared but events. USUAL follows as many packets as the lens does by itself under this traffic."""
    one_in, reading_s = follow_by_itself()
    print(
        f"\nunder this traffic the lens follows one packet in {one_in}; a reading takes {reading_s * 1e3:.1f} ms"
    )
    with loaded(program_text()) as program:
        names = hooks_of(program)
        with loaded(empty_text(names)) as empty:
            yield {
                STAMPS: Lens(program, (), 1),
                EMPTY: Hooked(empty, names),
                USUAL: Lens(program, names, one_in),
                EVERY: Lens(program, names, 1),
            }


def follow_by_itself() -> tuple[int, float]:
    """One packet in how many the lens follows now, and the CPU seconds that a reading takes."""
    with contextlib.closing(make_probe()) as source:
        source.start()
        for _ in range(READINGS):
            time.sleep(1)
            begun = time.thread_time()
            one_in = source.read(time.monotonic_ns()).counts[ONE_IN]
            reading_s = time.thread_time() - begun
    return one_in, reading_s


# --- what others pay --------------------------------------------------------------------------------------------------


def others(job: Job, rounds: int) -> None:
    """The speed or the cost of a job with each switch on ÷ without."""
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(job.begun())
        switched: dict[str, Switched] = {NOTHING: Nothing(), **stack.enter_context(hooked())}
        with_events = []
        if job.speed:
            events = Events(stack.enter_context(loaded(events_text())))
            switched[EVENTS] = stack.enter_context(contextlib.closing(events))
            with_events.append(events)
        figures = list(costs(job, pairs(work, switched, rounds, TURN_S)))
    figures = [each if f"with {USUAL} (" in each.what else replace(each, bound=None) for each in figures]
    figures += [
        Figure("the process that decodes events, of one CPU", each.own_cpu, "%") for each in with_events
    ]
    report(f"{job.title}, both ends on one CPU, {rounds} pairs of {TURN_S:g} s", figures)


# --- what a run costs -------------------------------------------------------------------------------------------------


def price(job: Job, rounds: int) -> None:
    """Nanoseconds a run of each program, beside the empty one at the same hook."""
    with job.begun(), hooked() as switched, statistics_on():
        del switched[STAMPS]
        turns = [{name: runs_during(each) for name, each in switched.items()} for _ in range(rounds)]
    print(f"\n{job.title}: ns a run, two clock readings included, medians of {rounds} turns of {TURN_S:g} s")
    print(f"  {'program':<50}{'runs/s':>10}" + "".join(f"{name:>24}" for name in switched))
    for program, (count, _) in turns[0][EMPTY].items():
        if count >= RUNS_AT_LEAST:
            taken = (statistics.median(ns_a_run(turn[name][program]) for turn in turns) for name in switched)
            print(f"  {program:<50}{count / TURN_S:>10,.0f}" + "".join(f"{ns:>24.0f}" for ns in taken))


def runs_during(each: Hooked) -> Mapping[str, tuple[int, int]]:
    """Runs of each attached program during one turn, and their time in ns."""
    each.on()
    time.sleep(SETTLED_AFTER_S)
    before = each.program.runs()
    time.sleep(TURN_S)
    after = each.program.runs()
    each.off()
    return {name: (count - before[name][0], ns - before[name][1]) for name, (count, ns) in after.items()}


def ns_a_run(runs: tuple[int, int]) -> float:
    """Nanoseconds a run."""
    return runs[1] / max(runs[0], 1)


def main() -> None:
    """Runs all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[[], *JOBS, "price"], help="default: all")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    options = parser.parse_args()
    own_namespace()
    for name in options.parts or (*JOBS, "price"):
        if name in JOBS:
            others(JOBS[name], 3 if options.quick else 40)
        for job in JOBS.values() if name == "price" else ():
            price(job, 1 if options.quick else 20)


if __name__ == "__main__":
    main()
