# SPDX-License-Identifier: Apache-2.0
"""Each real cause that keeps a connection from sending more is named."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import pytest

from nettop.probes.connections.probe import Connections
from nettop.snapshots.connections import SOCKETS

from . import traffic
from .command import Row
from .lab import Lab, Worker, until
from .slow_path import ADDRESSES, SlowPath
from .test_events import decoded
from .traffic import Memory

pytestmark = pytest.mark.kernel

PORT = 4713
SMALL = 4096
FOR_S = 20


class Path(NamedTuple):
    """A writer and a reader, the reader's address, and how they write and read."""

    writer: Worker
    reader: Worker
    address: str
    send_buffer: int = 0
    writer_pause_s: float = 0
    receive_buffer: int = 0
    reader_pause_s: float = 0


def write_without_end(memory: Memory, to: tuple[str, int], send_buffer: int, pause_s: float) -> None:
    """Connect, and write as much as the socket takes; or single bytes with pauses."""
    with socket.socket(traffic.V4) as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        if send_buffer:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sender.connect(to)
        end = time.monotonic() + FOR_S
        while time.monotonic() < end:
            if pause_s:
                sender.send(b"n")
                traffic.spin(pause_s)
            else:
                sender.sendall(bytes(1 << 20))


def read_without_end(memory: Memory, listener: str, receive_buffer: int, pause_s: float) -> None:
    """Accept, and read everything; slowly, with a pause after each read."""
    if receive_buffer:
        memory[listener].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    accepted, _ = memory[listener].accept()
    with accepted:
        end = time.monotonic() + FOR_S
        while time.monotonic() < end and accepted.recv(1 << 16 if not pause_s else 512):
            traffic.spin(pause_s)


@pytest.fixture
def probe() -> Iterator[Connections]:
    """Yield the probe, attached."""
    with closing(Connections()) as attached:
        attached.start()
        yield attached


def sender_row(probe: Connections) -> Row | None:
    """Return the connection's row at the sending side."""
    rows = decoded(probe.read(time.monotonic_ns()).tables[SOCKETS.name])
    return next((row for row in rows if row["remote_port"] == PORT and row["state"] == "ESTABLISHED"), None)


def slow_reader(lab: Lab) -> Path:
    """Return a reader of half a kilobyte every 10 ms, into a small buffer."""
    near, far = lab.pair()
    ends = lab.worker(near.namespace), lab.worker(far.namespace)
    return Path(*ends, far.v4, receive_buffer=SMALL, reader_pause_s=0.01)


def small_send_buffer(lab: Lab) -> Path:
    """Return a sender whose buffer holds less than the path before the first acknowledgement."""
    path = SlowPath(lab, 0.02)
    return Path(lab.worker(path.near), lab.worker(path.far), ADDRESSES[4][1], send_buffer=SMALL)


@pytest.mark.walks
@pytest.mark.parametrize(
    ("cause", "limit"),
    [
        (slow_reader, "receiver"),
        (small_send_buffer, "send buffer"),
    ],
)
def test_a_cause_is_named(cause: Callable[[Lab], Path], limit: str, lab: Lab, probe: Connections) -> None:
    """The cause accounts for most of the time."""
    path = cause(lab)
    path.reader.call(traffic.listen, "listener", path.address, PORT)
    path.reader.start(read_without_end, "listener", path.receive_buffer, path.reader_pause_s)
    path.writer.start(write_without_end, (path.address, PORT), path.send_buffer, path.writer_pause_s)
    until(lambda: sender_row(probe), "the connection is listed")

    def named() -> bool:
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.5, "half a second")
        row = sender_row(probe)
        return row is not None and row["limited_by"] == limit and row["limited_share"] > 0.5

    until(named, f"it is limited by {limit}", FOR_S)
