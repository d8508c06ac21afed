# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of the bandwidth lens: `sudo .venv/bin/python bench/bandwidth.py [PART …]`.

A veth pair connects the bench's own network namespace, whose packets are counted, to another one. `speed`: 64-byte
datagrams that a CPU can send and receive. `bulk`: CPU nanoseconds per byte of a TCP connection. For both, the two ends
run on one CPU, and turns with and without the programs alternate; times are the scheduler's, which other load hardly
affects. `price`: nanoseconds per packet above empty programs, by the kernel's statistics.
"""

import contextlib
import os
import socket
import statistics
import sys
import time
from argparse import Namespace as Options
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from bpf_stats import runs_since, statistics_on
from cpu_cost import NOTHING, SETTLED_AFTER_S, Job, Work, costs_of, ksoftirqd, received
from cpu_scenes import A, B, Namespace, Traffic
from hooked import Hooked
from measure import QUICK, Figure, Report, arguments, judge
from programs import LAST_CPU
from sockets import own_namespace

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.bandwidth.interfaces import ATTACHMENTS
from nettop.probes.bandwidth.programs import (
    INTERFACE,
    INTERFACE_SET_ENTRIES,
    INTERFACE_SETS,
    SENT_PROGRAMS,
    TC_PROGRAM,
    XDP_PROGRAM,
    program_text,
)
from nettop.snapshots.bandwidth import GENERIC_MODE, NATIVE_MODE, TCX_MODE

DEVICE = "bench0"
TURN_S = 0.25
EMPTY, WITHOUT, WITH = "empty programs", "--flows off", "flows"
SPEED, COST = 0.95, 1.03
"""Bounds with the programs ÷ without: packets/s, and CPU time per byte."""
RECEIVED_NS, SENT_NS = {WITHOUT: 40.0, WITH: 90.0}, {WITHOUT: 120.0, WITH: 120.0}
"""Bounds on the cost of a packet above empty programs."""
EMPTY_PROGRAMS = """
int xdp_received(struct xdp_md *ctx) { return 2; }
int tc_received(struct __sk_buff *ctx) { return -1; }
int tp_btf__net_dev_start_xmit(u64 *ctx) { return 0; }
int tp_btf__net_dev_xmit(u64 *ctx) { return 0; }
"""


# --- programs to switch on and off ------------------------------------------------------------------------------


class Counting(Hooked):
    """Programs that count the traffic of DEVICE, without the rest of the lens; loaded, but not attached."""

    def __init__(self, text: ProgramText, mode: int) -> None:
        super().__init__(Loader().load(text), SENT_PROGRAMS[::-1])
        self._mode = mode
        self._index = socket.if_nametoindex(DEVICE)
        if "interfaces" in self.program.maps:
            entries = np.zeros(INTERFACE_SET_ENTRIES, INTERFACE)
            entries[0] = self._index, 0, True
            key = np.uint32(self._index % INTERFACE_SETS).tobytes()
            bpf.set_element(self.program.maps["interfaces"], key, entries.tobytes())

    def _links(self) -> list[int]:
        name, attach_type, flags = ATTACHMENTS[self._mode]
        return [bpf.link(self.program.functions[name], attach_type, self._index, flags), *super()._links()]


@contextlib.contextmanager
def countings(mode: int = TCX_MODE) -> Iterator[dict[str, Counting]]:
    """Yield empty programs, then counting programs without and with flows."""
    namespace = os.stat("/proc/self/ns/net").st_ino
    counting = program_text(namespace)
    texts = {
        EMPTY: ProgramText((), EMPTY_PROGRAMS, (), counting.functions),
        WITHOUT: program_text(namespace, flows_max=None),
        WITH: counting,
    }
    with contextlib.ExitStack() as ends:
        made = {name: Counting(text, mode) for name, text in texts.items()}
        for each in made.values():
            ends.callback(each.program.close)
        yield made


# --- traffic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """A direction of traffic on DEVICE, and the columns of its bytes and packets in /proc/net/dev."""

    name: str
    bytes_at: int
    packets_at: int

    def ends(self, ours: Namespace, theirs: Namespace) -> tuple[Namespace, Namespace, str]:
        """Return the namespaces of the sender and the receiver, and the receiver's address."""
        return (theirs, ours, A) if self is RECEIVED else (ours, theirs, B)


RECEIVED, SENT = DIRECTIONS = (Direction("received", 0, 1), Direction("sent", 8, 9))


@contextlib.contextmanager
def connected() -> Iterator[tuple[Traffic, Namespace, Namespace]]:
    """Yield traffic on the last CPU, this process's namespace with DEVICE, and the namespace at the other end."""
    with Traffic(LAST_CPU) as traffic:
        ours, theirs = Namespace(os.getpid()), traffic.namespace()
        traffic.connect(ours, theirs, DEVICE, DEVICE)
        for host, address in ((ours, A), (theirs, B)):
            host.ip(f"address add {address}/24 dev {DEVICE}")
        yield traffic, ours, theirs
        ours.ip(f"link delete {DEVICE}")


@contextlib.contextmanager
def packets(direction: Direction) -> Iterator[Work]:
    """Send a flood of 64-byte datagrams with both ends on one CPU, and count packets."""
    with connected() as (traffic, ours, theirs):
        ends = traffic.flood(*direction.ends(ours, theirs))
        yield Work(lambda: received(os.getpid(), DEVICE, direction.packets_at), (*ends, ksoftirqd()))


@contextlib.contextmanager
def stream(direction: Direction) -> Iterator[Work]:
    """Run one TCP connection with both ends on one CPU, and count bytes."""
    with connected() as (traffic, ours, theirs):
        ends = traffic.stream(*direction.ends(ours, theirs))
        yield Work(lambda: received(os.getpid(), DEVICE, direction.bytes_at), (*ends, ksoftirqd()))


# --- cost for other processes -----------------------------------------------------------------------------------


def others(job: Job, options: Options) -> Report:
    """Measure the job's cost per unit with the programs attached ÷ without them."""
    rounds = 4 if options.quick else 40
    with job.started() as work, countings() as made:
        time.sleep(1)
        switches = {NOTHING: nullcontext, **{name: each.attached for name, each in made.items()}}
        return f"{job.title}, {rounds} pairs of {TURN_S:g} s", costs_of(job, work, switches, rounds, TURN_S)


def speed(options: Options) -> Iterator[Report]:
    """Measure how many datagrams a CPU can send and receive."""
    for direction in DIRECTIONS:
        title = f"64-byte datagrams {direction.name}, both ends on one CPU"
        yield others(Job(title, partial(packets, direction), "datagram", speed=SPEED), options)


def bulk(options: Options) -> Iterator[Report]:
    """Measure the CPU nanoseconds per byte of a TCP connection."""
    for direction in DIRECTIONS:
        title = f"Bytes {direction.name} over one TCP connection, both ends on one CPU"
        yield others(Job(title, partial(stream, direction), "byte", cost=COST), options)


# --- cost of a packet -------------------------------------------------------------------------------------------


def price(options: Options) -> Iterator[Report]:
    """Measure nanoseconds per packet, alternating with empty programs."""
    received_by = "A packet received, by"
    for what, direction, mode, programs, bounds in (
        (f"{received_by} TCX", RECEIVED, TCX_MODE, (TC_PROGRAM,), RECEIVED_NS),
        (f"{received_by} generic XDP", RECEIVED, GENERIC_MODE, (XDP_PROGRAM,), RECEIVED_NS),
        (f"{received_by} native XDP", RECEIVED, NATIVE_MODE, (XDP_PROGRAM,), RECEIVED_NS),
        ("A packet sent", SENT, TCX_MODE, SENT_PROGRAMS, SENT_NS),
        ("A packet sent in another network namespace", RECEIVED, TCX_MODE, SENT_PROGRAMS, {}),
    ):
        with packets(direction), countings(mode) as made, statistics_on():
            turns = [
                {name: ns_a_packet(each, programs) for name, each in made.items()}
                for _ in range(2 if options.quick else 20)
            ]
        yield f"{what}, by BPF statistics", above_empty(turns, bounds)


def ns_a_packet(hooked: Hooked, programs: Sequence[str]) -> float:
    """Return the total nanoseconds per packet of these programs during one turn in which they are attached."""
    with hooked.attached():
        time.sleep(SETTLED_AFTER_S)
        before = hooked.runs()
        time.sleep(TURN_S)
        runs = runs_since(before, hooked.runs())
    return sum(runs[name].ns_each for name in programs)


def above_empty(turns: Sequence[Mapping[str, float]], bounds: Mapping[str, float]) -> Iterator[Figure]:
    """Yield the cost of empty programs, and the extra cost of the others."""
    yield Figure(f"{EMPTY}, two clock readings included", statistics.median(t[EMPTY] for t in turns), "ns")
    for name in (WITHOUT, WITH):
        above = statistics.median(turn[name] - turn[EMPTY] for turn in turns)
        yield Figure(f"{name}, above {EMPTY}", above, "ns", bounds.get(name))


PARTS = {"speed": speed, "bulk": bulk, "price": price}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(__doc__, PARTS, quick=QUICK)
    own_namespace()
    return judge(report for name in options.parts for report in PARTS[name](options))


if __name__ == "__main__":
    sys.exit(main())
