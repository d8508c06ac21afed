# SPDX-License-Identifier: Apache-2.0
"""Measure the cost of receiving flow datagrams: `sudo .venv/bin/python bench/receive.py [--quick]`.

Each receiver in turn drains a socket that holds the same datagrams, so the figures do not include senders. nettop is
compared with Python's recv_into, which returns a datagram only, and recvfrom_into, which also returns its sender, as
decoding needs it. Then a process sends at a steady rate; without root the buffer is smaller and may drop some
datagrams.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from measure import QUICK, Figure, Report, arguments, judge, side_by_side
from programs import for_seconds

from nettop.flows.receive import BATCH, Endpoint, OpenSocket, Receiver, open_socket
from nettop.process.wake_event import WakeEvent

HERE = Endpoint("127.0.0.1", 0)
BUFFER_BYTES = 64 << 20
BYTES_EACH = 4096
"""Upper bound on what the kernel charges for a datagram."""
SIZES = (200, 1400)
SMALL_BATCH = 256
RATES = (1_000, 40_000)
TICK_S = 0.001
RATIO_MOST = 0.8
"""Bound on nettop's time, relative to recvfrom_into's."""


def drain_plainly(receive: Callable[[memoryview], object]) -> Callable[[int], None]:
    """Return a function that receives datagrams one by one."""
    buffer = memoryview(bytearray(9216))

    def drain(count: int) -> None:
        for _ in range(count):
            receive(buffer)

    return drain


def drain_in_batches(opened: OpenSocket, batch: int) -> Callable[[int], None]:
    """Return a function that receives as nettop does."""
    receiver = Receiver([opened], lambda others, _: others, batch=batch, nap_s=0)

    def drain(count: int) -> None:
        while count:
            count -= len(receiver.receive().lengths)

    return drain


def full_sockets(size: int, runs: int) -> Report:
    """Measure the microseconds per datagram of each receiver; medians of `runs` turns."""
    with contextlib.ExitStack() as ends, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sockets = [open_socket(HERE, BUFFER_BYTES) for _ in range(4)]
        for opened in sockets:
            ends.enter_context(opened.socket)
        drains = {
            "recv_into": drain_plainly(sockets[0].socket.recv_into),
            "recvfrom_into": drain_plainly(sockets[1].socket.recvfrom_into),
            f"nettop, batches of {SMALL_BATCH}": drain_in_batches(sockets[2], SMALL_BATCH),
            f"nettop, batches of {BATCH}": drain_in_batches(sockets[3], BATCH),
        }
        count = min(each.receive_buffer_bytes for each in sockets) // BYTES_EACH

        def fill(opened: OpenSocket) -> None:
            sender.connect(opened.socket.getsockname())
            for _ in range(count):
                sender.send(bytes(size))

        calls = [
            call
            for opened, drain in zip(sockets, drains.values(), strict=True)
            for call in (partial(fill, opened), partial(drain, count))
        ]
        medians = [seconds / count * 1e6 for seconds in side_by_side(runs, *calls)[1::2]]
    return f"{count} datagrams of {size} bytes in a socket's buffer, {runs} turns", [
        *(Figure(name, us, "µs") for name, us in zip(drains, medians, strict=True)),
        Figure(f"{[*drains][-1]} ÷ recvfrom_into", medians[-1] / medians[1], "×", RATIO_MOST),
    ]


@contextlib.contextmanager
def sending(endpoint: Endpoint, rate: int) -> Iterator[None]:
    """Run a process that sends `rate` datagrams per second, those due at each tick together."""
    pid = os.fork()
    if not pid:
        content = bytes(SIZES[-1])
        started, sent = time.monotonic(), 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((endpoint.address, endpoint.port))
            while True:
                due = int((time.monotonic() - started) * rate)
                for _ in range(due - sent):
                    sender.send(content)
                sent = due
                time.sleep(TICK_S)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def steady_rate(rate: int, seconds: float) -> Report:
    """Measure a receiver's own CPU time, the size of its batches, and drops."""
    opened = open_socket(HERE, BUFFER_BYTES)
    with WakeEvent() as event, contextlib.closing(Receiver([opened], event.wait)) as receiver:
        batches = 0
        with sending(opened.endpoint, rate):
            receiver.receive()
            cpu = time.process_time()
            for _ in for_seconds(seconds):
                receiver.receive()
                batches += 1
            cpu = time.process_time() - cpu
        (drops,) = receiver.drops()
        datagrams = receiver.counts[0].datagrams
    return f"{rate} datagrams/s of {SIZES[-1]} bytes, {seconds:.0f} s", [
        Figure("CPU", cpu / seconds * 100, "%"),
        Figure("CPU per datagram", cpu / datagrams * 1e6, "µs"),
        Figure("datagrams per batch", datagrams / batches),
        Figure("dropped by the kernel", drops, "", 0),
    ]


def main() -> int:
    """Run both parts."""
    quick = arguments(__doc__, quick=QUICK).quick
    full = (full_sockets(size, 3 if quick else 25) for size in SIZES)
    return judge((*full, *(steady_rate(rate, 0.5 if quick else 5) for rate in RATES)))


if __name__ == "__main__":
    sys.exit(main())
