# SPDX-License-Identifier: Apache-2.0
"""What the bandwidth lens costs, and how right it is: `sudo .venv/bin/python bench/bandwidth.py [PART …]`.

A veth pair leads from the bench's own network namespace, whose packets are counted, to another one. `speed`: datagrams
of 64 bytes that a CPU can send and receive. `bulk`: CPU nanoseconds that a byte of a TCP connection takes. For both the
ends are on one CPU, and turns with the programs stand next to turns without, by the scheduler's account, which other
load hardly disturbs. `price`: nanoseconds a packet beside empty programs, by the kernel's statistics. `tools`: nettop
beside nethogs and iftop, on the loads of attribution.py.
"""

import argparse
import contextlib
import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from attribution import LOADS, Tool, compare, connect_servers, has_loaded, sum_of_nettop, tools
from bpf_stats import statistics_on
from cpu_cost import LAST_CPU, NOTHING, SETTLED_AFTER_S, Job, Nothing, Work, costs, ksoftirqd, pairs, received
from cpu_scenes import A, B, Namespace, Traffic
from measure import NETTOP, Figure, report
from sockets import own_namespace

from nettop.kernel import bpf
from nettop.kernel.program import Loader, ProgramText
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
"""Packets a second with the programs ÷ without, and CPU time a byte."""
RECEIVED_NS, SENT_NS = {WITHOUT: 40.0, WITH: 90.0}, {WITHOUT: 120.0, WITH: 120.0}
"""What a packet may cost above empty programs."""
EMPTY_PROGRAMS = """
int xdp_received(struct xdp_md *ctx) { return 2; }
int tc_received(struct __sk_buff *ctx) { return -1; }
int tp_btf__net_dev_start_xmit(u64 *ctx) { return 0; }
int tp_btf__net_dev_xmit(u64 *ctx) { return 0; }
"""


# --- what is switched on and off --------------------------------------------------------------------------------


class Counting:
    """Programs that see what DEVICE receives and sends, without the rest of the lens; loaded, not attached."""

    def __init__(self, text: ProgramText, mode: int) -> None:
        self.program = Loader().load(text)
        self._mode = mode
        self._index = socket.if_nametoindex(DEVICE)
        self._links: list[int] = []
        if "interfaces" in self.program.maps:
            entries = np.zeros(INTERFACE_SET_ENTRIES, INTERFACE)
            entries[0] = self._index, 0, True
            key = np.uint32(self._index % INTERFACE_SETS).tobytes()
            bpf.set_element(self.program.maps["interfaces"], key, entries.tobytes())

    def on(self) -> None:
        """Attach the programs."""
        name, attach_type, flags = ATTACHMENTS[self._mode]
        functions = self.program.functions
        self._links = [bpf.link(functions[name], attach_type, self._index, flags)]
        self._links += [bpf.attach_tracing(functions[name]) for name in reversed(SENT_PROGRAMS)]

    def off(self) -> None:
        """Detach them."""
        while self._links:
            os.close(self._links.pop())

    def close(self) -> None:
        """Detach and unload them."""
        self.off()
        self.program.close()


@contextlib.contextmanager
def countings(mode: int = TCX_MODE) -> Iterator[dict[str, Counting]]:
    """Empty programs, and those that count, by whether they follow flows."""
    namespace = os.stat("/proc/self/ns/net").st_ino
    counting = program_text(namespace)
    texts = {
        EMPTY: ProgramText((), EMPTY_PROGRAMS, (), counting.functions),
        WITHOUT: program_text(namespace, flows_max=None),
        WITH: counting,
    }
    made = {name: Counting(text, mode) for name, text in texts.items()}
    try:
        yield made
    finally:
        for each in made.values():
            each.close()


# --- traffic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Direction:
    """Which way DEVICE carries the traffic, and where /proc/net/dev has its bytes and packets."""

    name: str
    bytes_at: int
    packets_at: int

    def ends(self, ours: Namespace, theirs: Namespace) -> tuple[Namespace, Namespace, str]:
        """The namespaces of the sender and the receiver, and the receiver's address."""
        return (theirs, ours, A) if self is RECEIVED else (ours, theirs, B)


RECEIVED, SENT = DIRECTIONS = (Direction("received", 0, 1), Direction("sent", 8, 9))


@contextlib.contextmanager
def connected() -> Iterator[tuple[Traffic, Namespace, Namespace]]:
    """Traffic on the last CPU, this process's namespace with DEVICE, and the namespace at the other end."""
    with Traffic(LAST_CPU) as traffic:
        ours, theirs = Namespace(os.getpid()), traffic.namespace()
        traffic.connect(ours, theirs, DEVICE, DEVICE)
        for host, address in ((ours, A), (theirs, B)):
            host.ip(f"address add {address}/24 dev {DEVICE}")
        yield traffic, ours, theirs
        ours.ip(f"link delete {DEVICE}")


@contextlib.contextmanager
def packets(direction: Direction) -> Iterator[Work]:
    """A flood of 64-byte datagrams, both ends on one CPU; counts packets."""
    with connected() as (traffic, ours, theirs):
        ends = traffic.flood(*direction.ends(ours, theirs))
        yield Work(lambda: received(os.getpid(), DEVICE, direction.packets_at), (*ends, ksoftirqd()))


@contextlib.contextmanager
def stream(direction: Direction) -> Iterator[Work]:
    """One TCP connection, both ends on one CPU; counts bytes."""
    with connected() as (traffic, ours, theirs):
        ends = traffic.stream(*direction.ends(ours, theirs))
        yield Work(lambda: received(os.getpid(), DEVICE, direction.bytes_at), (*ends, ksoftirqd()))


# --- what others pay --------------------------------------------------------------------------------------------


def others(job: Job, quick: bool) -> None:
    """The cost of a unit of the job while the programs are attached ÷ without them."""
    rounds = 4 if quick else 40
    with job.begun() as work, countings() as switched:
        time.sleep(1)
        compared = {NOTHING: Nothing(), **switched}
        taken = pairs(work, compared, rounds, TURN_S)
    report(f"{job.title}, {rounds} pairs of {TURN_S:g} s", list(costs(job, taken)))


def speed(quick: bool) -> None:
    """Datagrams that a CPU can send and receive."""
    for direction in DIRECTIONS:
        title = f"Datagrams of 64 bytes that are {direction.name}, both ends on one CPU"
        job = Job(title, partial(packets, direction), "datagram", speed=SPEED)
        others(job, quick)


def bulk(quick: bool) -> None:
    """CPU nanoseconds that a byte of a TCP connection takes."""
    for direction in DIRECTIONS:
        title = f"A TCP connection whose bytes are {direction.name}, both ends on one CPU"
        job = Job(title, partial(stream, direction), "byte", cost=COST)
        others(job, quick)


# --- what a packet costs ----------------------------------------------------------------------------------------


def price(quick: bool) -> None:
    """Nanoseconds a packet, turn by turn beside empty programs."""
    received_by = "A packet received, by"
    for what, direction, mode, programs, bounds in (
        (f"{received_by} TCX", RECEIVED, TCX_MODE, (TC_PROGRAM,), RECEIVED_NS),
        (f"{received_by} generic XDP", RECEIVED, GENERIC_MODE, (XDP_PROGRAM,), RECEIVED_NS),
        (f"{received_by} native XDP", RECEIVED, NATIVE_MODE, (XDP_PROGRAM,), RECEIVED_NS),
        ("A packet sent", SENT, TCX_MODE, SENT_PROGRAMS, SENT_NS),
        ("A packet sent in another network namespace", RECEIVED, TCX_MODE, SENT_PROGRAMS, {}),
    ):
        with packets(direction), countings(mode) as switched, statistics_on():
            turns = [
                {name: ns_a_packet(counting, programs) for name, counting in switched.items()}
                for _ in range(2 if quick else 20)
            ]
        report(f"{what}, by BPF statistics", list(above_empty(turns, bounds)))


def ns_a_packet(counting: Counting, programs: Sequence[str]) -> float:
    """Nanoseconds that these programs take together for a packet, during one turn."""
    counting.on()
    time.sleep(SETTLED_AFTER_S)
    before = counting.program.runs()
    time.sleep(TURN_S)
    after = counting.program.runs()
    counting.off()
    return sum(
        (after[name][1] - before[name][1]) / max(after[name][0] - before[name][0], 1) for name in programs
    )


def above_empty(turns: Sequence[Mapping[str, float]], bounds: Mapping[str, float]) -> Iterator[Figure]:
    """What empty programs take, and what the others take above that."""
    yield Figure(f"{EMPTY}, two clock readings included", statistics.median(t[EMPTY] for t in turns), "ns")
    for name in (WITHOUT, WITH):
        above = statistics.median(turn[name] - turn[EMPTY] for turn in turns)
        yield Figure(f"{name}, above {EMPTY}", above, "ns", bounds.get(name))


# --- beside other tools -----------------------------------------------------------------------------------------


def total_of_nettop(text: str) -> dict[int | None, float]:
    """The sum of all flows, whoever owns them."""
    return {None: sum(sum_of_nettop(text).values())}


def beside(quick: bool) -> None:
    """nettop beside nethogs and iftop, on the same loads."""
    connect_servers()
    flows = ("--table", "-d", "--view", "bandwidth.flows", "--deltas", "--format", "csv")
    nettop = Tool(
        (NETTOP, *flows, "--columns", "pid,bytes"), total_of_nettop, has_loaded, knows_processes=False
    )
    for load in LOADS:
        compared = [nettop, *(tool for tool in tools() if tool.command[0] != NETTOP)]
        compare(replace(load, count=max(1, load.count // 8)) if quick else load, compared)


def main() -> None:
    """Runs all parts, or the named ones."""
    parts = {"speed": speed, "bulk": bulk, "price": price, "tools": beside}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="default: all")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    options = parser.parse_args()
    own_namespace()
    for name in options.parts or parts:
        parts[name](options.quick)


if __name__ == "__main__":
    main()
