# SPDX-License-Identifier: Apache-2.0
"""What receiving flow datagrams costs: `sudo .venv/bin/python bench/receive.py [--quick]`.

In turns, each receiver drains a socket that holds the same datagrams, so that senders take no part in its figures.
Beside nettop stand Python's recv_into, which gives a datagram alone, and recvfrom_into, which gives its sender too, as
decoding needs it. Then a process sends at a steady rate; who is not root has a smaller buffer, which may drop
some of that.
"""

import argparse
import contextlib
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator

from measure import Figure, report

from nettop.flows.receive import BATCH, Endpoint, OpenSocket, Receiver, open_socket
from nettop.wake_event import WakeEvent

HERE = Endpoint("127.0.0.1", 0)
BUFFER_BYTES = 64 << 20
BYTES_EACH = 4096
"""At most, in the kernel's account."""
SIZES = (200, 1400)
SMALL_BATCH = 256
RATES = (1_000, 40_000)
TICK_S = 0.001
RATIO_MOST = 0.8
"""Of what recvfrom_into takes."""


def drain_plainly(receive: Callable[[memoryview], object]) -> Callable[[int], None]:
    """Receives datagram by datagram."""
    room = memoryview(bytearray(9216))

    def drain(count: int) -> None:
        for _ in range(count):
            receive(room)

    return drain


def drain_in_batches(opened: OpenSocket, batch: int) -> Callable[[int], None]:
    """Receives as nettop does."""
    receiver = Receiver([opened], lambda others, _: others, batch=batch, nap_s=0)

    def drain(count: int) -> None:
        while count:
            count -= len(receiver.receive().lengths)

    return drain


def full_sockets(size: int, runs: int) -> None:
    """Microseconds a datagram of each receiver, medians of as many turns."""
    sockets = [open_socket(HERE, BUFFER_BYTES) for _ in range(4)]
    drains = {
        "recv_into": drain_plainly(sockets[0].socket.recv_into),
        "recvfrom_into": drain_plainly(sockets[1].socket.recvfrom_into),
        f"nettop, batches of {SMALL_BATCH}": drain_in_batches(sockets[2], SMALL_BATCH),
        f"nettop, batches of {BATCH}": drain_in_batches(sockets[3], BATCH),
    }
    count = min(each.receive_buffer_bytes for each in sockets) // BYTES_EACH
    taken: dict[str, list[float]] = {name: [] for name in drains}
    content = bytes(size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(runs):
            for opened, (name, drain) in zip(sockets, drains.items(), strict=True):
                sender.connect(opened.socket.getsockname())
                for _ in range(count):
                    sender.send(content)
                begun = time.perf_counter()
                drain(count)
                taken[name].append((time.perf_counter() - begun) / count * 1e6)
    for opened in sockets:
        opened.socket.close()
    medians = {name: statistics.median(times) for name, times in taken.items()}
    *_, largest = medians
    report(
        f"{count} datagrams of {size} bytes that wait in a socket, {runs} turns",
        [
            *(Figure(name, us, "µs") for name, us in medians.items()),
            Figure(
                f"{largest} ÷ recvfrom_into", medians[largest] / medians["recvfrom_into"], "×", RATIO_MOST
            ),
        ],
    )


@contextlib.contextmanager
def sending(endpoint: Endpoint, rate: int) -> Iterator[None]:
    """A process that sends so many datagrams a second, as many as are due at each tick."""
    pid = os.fork()
    if not pid:
        content = bytes(SIZES[-1])
        begun, sent = time.monotonic(), 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((endpoint.address, endpoint.port))
            while True:
                due = int((time.monotonic() - begun) * rate)
                for _ in range(due - sent):
                    sender.send(content)
                sent = due
                time.sleep(TICK_S)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def steady_rate(rate: int, seconds: float) -> None:
    """The CPU time of a receiver alone, how many datagrams its batches have, and what was dropped."""
    opened = open_socket(HERE, BUFFER_BYTES)
    with WakeEvent() as event, contextlib.closing(Receiver([opened], event.wait)) as receiver:
        batches = 0
        with sending(opened.endpoint, rate):
            receiver.receive()
            begun, cpu = time.monotonic(), time.process_time()
            while (elapsed := time.monotonic() - begun) < seconds:
                receiver.receive()
                batches += 1
            cpu = time.process_time() - cpu
        (drops,) = receiver.drops()
        datagrams = receiver.counts[0].datagrams
    report(
        f"{rate} datagrams of {SIZES[-1]} bytes a second, {elapsed:.0f} s",
        [
            Figure("CPU", cpu / elapsed * 100, "%"),
            Figure("CPU a datagram", cpu / datagrams * 1e6, "µs"),
            Figure("datagrams a batch", datagrams / batches, ""),
            Figure("dropped by the kernel", drops, "", 0),
        ],
    )


def main() -> None:
    """Runs each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    quick = parser.parse_args().quick
    for size in SIZES:
        full_sockets(size, 3 if quick else 25)
    for rate in RATES:
        steady_rate(rate, 0.5 if quick else 5)


if __name__ == "__main__":
    main()
