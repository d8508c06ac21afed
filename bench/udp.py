# SPDX-License-Identifier: Apache-2.0
"""The price of counting UDP, and of timing UDP requests: both ends on one CPU, by the scheduler's clock."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from cpu_cost import EMPTY
from harness import OURS, Sample, Scale, Target, Turns, benchmark
from hooked import Hooked, empty_text
from programs import LAST_CPU, built, cpu_ns, running, until
from sockets import own_namespace

from nettop.kernel.bpf.mechanisms import Mechanism
from nettop.kernel.bpf.program import Loader
from nettop.probes.connections.programs import table_text, udp_text
from nettop.probes.connections.udp import UDP_FALLBACKS, UdpTotals

TURN_S = 0.2
MESSAGE_BYTES, CALLS = 1_200, 2
"""Size of a message, and the calls that send and receive it."""


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


@benchmark(
    "udp", "Counting UDP", {"a message": "ns", "messages of 50 segments": "%"}, rounds=11, needs=("cc",),
    targets=(Target(60, "a message"),),
)  # fmt: skip
def udp(scale: Scale) -> Iterator[Turns]:
    """What a call that sends or receives 1,200 bytes takes more than in the adjacent turns without programs; and a
    flood of messages of 50 such segments, in percent of its CPU time.
    """
    own_namespace()

    def turn(switch: AbstractContextManager[None]) -> Sample:
        before = [ns_per_byte(*sender) for sender in (single, segmented)]
        with switch:
            beside = [ns_per_byte(*sender) for sender in (single, segmented)]
        after = [ns_per_byte(*sender) for sender in (single, segmented)]
        alone = [(first + last) / 2 for first, last in zip(before, after, strict=True)]
        each_ns = (beside[0] - alone[0]) * MESSAGE_BYTES / CALLS
        return {"a message": each_ns, "messages of 50 segments": 100 * (beside[1] / alone[1] - 1)}

    with counting() as (totals, mechanism), sending(1) as single, sending(50) as segmented:
        totals.hooks._detach(mechanism.programs)

        @contextlib.contextmanager
        def attached() -> Iterator[None]:
            totals.hooks.attach(mechanism)
            try:
                yield
            finally:
                totals.hooks._detach(mechanism.programs)

        with contextlib.closing(Loader().load(empty_text(mechanism.programs))) as program:
            empty = Hooked(program, mechanism.programs)
            yield {OURS: lambda: turn(attached()), EMPTY: lambda: turn(empty.attached())}
