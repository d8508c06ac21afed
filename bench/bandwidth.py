# SPDX-License-Identifier: Apache-2.0
"""The price of the bandwidth lens: nanoseconds per packet above empty programs, by the kernel's statistics.

A veth pair connects the bench's own network namespace, whose packets are counted, to another one. The two ends run on
one CPU.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from bpf_stats import runs_since, statistics_on
from cpu_cost import EMPTY, SETTLED_AFTER_S, TURN_S, Work, ksoftirqd, received
from harness import Sample, Scale, Target, Turns, benchmark
from hooked import Hooked
from programs import LAST_CPU
from sockets import own_namespace
from traffic import A, B, Namespace, Traffic

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
WITHOUT, WITH = "--flows off", "flows"
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
        for device in made.values():
            ends.callback(device.program.close)
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
        yield Work(lambda: received(os.getpid(), DEVICE, direction.packets_at), ends, (ksoftirqd(),))


@contextlib.contextmanager
def stream(direction: Direction) -> Iterator[Work]:
    """Run one TCP connection with both ends on one CPU, and count bytes."""
    with connected() as (traffic, ours, theirs):
        ends = traffic.stream(*direction.ends(ours, theirs))
        yield Work(lambda: received(os.getpid(), DEVICE, direction.bytes_at), ends, (ksoftirqd(),))


# --- cost of a packet -------------------------------------------------------------------------------------------

KINDS: Mapping[str, tuple[Direction, int, Sequence[str]]] = {
    "received, by TCX": (RECEIVED, TCX_MODE, (TC_PROGRAM,)),
    "received, by generic XDP": (RECEIVED, GENERIC_MODE, (XDP_PROGRAM,)),
    "received, by native XDP": (RECEIVED, NATIVE_MODE, (XDP_PROGRAM,)),
    "sent": (SENT, TCX_MODE, SENT_PROGRAMS),
    "sent in another network namespace": (RECEIVED, TCX_MODE, SENT_PROGRAMS),
}


@benchmark(
    "packet", "Counting a packet", dict.fromkeys((WITHOUT, WITH), "ns"), rounds=1, needs=("iperf3", "cc"),
    targets=(
        *(Target(most, how, subject=kind) for kind in list(KINDS)[:3] for how, most in ((WITHOUT, 40), (WITH, 90))),
        *(Target(120, how, subject="sent") for how in (WITHOUT, WITH)),
    ),
)  # fmt: skip
def packet(scale: Scale) -> Iterator[Turns]:
    """Of 64-byte datagrams, above empty programs at the same hooks in adjacent turns, with and without flows."""
    own_namespace()

    def turn(kind: str) -> Sample:
        direction, mode, programs = KINDS[kind]
        above: dict[str, list[float]] = {WITHOUT: [], WITH: []}
        with packets(direction), countings(mode) as made, statistics_on():
            for _ in range(scale.pick(11, 1)):
                ns = {name: ns_a_packet(device, programs) for name, device in made.items()}
                for name, values in above.items():
                    values.append(ns[name] - ns[EMPTY])
        return above

    yield {kind: partial(turn, kind) for kind in scale.pick(list(KINDS), ["sent"])}


def ns_a_packet(hooked: Hooked, programs: Sequence[str]) -> float:
    """Return the total nanoseconds per packet of these programs during one turn in which they are attached."""
    with hooked.attached():
        time.sleep(SETTLED_AFTER_S)
        before = hooked.runs()
        time.sleep(TURN_S)
        runs = runs_since(before, hooked.runs())
    return sum(runs[name].ns_each for name in programs)
