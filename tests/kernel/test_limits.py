# SPDX-License-Identifier: Apache-2.0
"""What keeps a connection from sending more: each cause is made for real."""

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from nettop.probes.connections.probe import Connections
from nettop.snapshots.connections import SOCKETS

from . import traffic
from .command import Row
from .lab import End, Lab, until
from .test_events import decoded
from .traffic import Memory

pytestmark = pytest.mark.kernel

PORT = 4713
SMALL = 4096
FOR_S = 20


def write_without_end(memory: Memory, to: tuple[str, int], send_buffer: int, pause_s: float) -> None:
    """Connects, and writes as much as the socket takes; or a byte, with a pause behind each."""
    with socket.socket(traffic.V4) as sender:
        if send_buffer:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sender.connect(to)
        sender.setblocking(False)
        end = time.monotonic() + FOR_S
        while time.monotonic() < end:
            if pause_s:
                sender.send(b"n")
                traffic.spin(pause_s)
            elif select.select([], [sender], [], 0.1)[1]:
                sender.send(bytes(1 << 16))


def read_without_end(memory: Memory, listener: str, receive_buffer: int, pause_s: float) -> None:
    """Accepts, and reads what arrives; slowly, if there is a pause behind each read."""
    if receive_buffer:
        memory[listener].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    accepted, _ = memory[listener].accept()
    with accepted:
        end = time.monotonic() + FOR_S
        while time.monotonic() < end and accepted.recv(1 << 16 if not pause_s else 512):
            traffic.spin(pause_s)


@pytest.fixture
def probe() -> Iterator[Connections]:
    """The probe, attached."""
    with closing(Connections()) as attached:
        attached.start()
        yield attached


def sender_row(probe: Connections) -> Row | None:
    """The connection's row, at the side that sends."""
    rows = decoded(probe.read(time.monotonic_ns()).tables[SOCKETS.name])
    return next((row for row in rows if row["remote_port"] == PORT and row["state"] == "ESTABLISHED"), None)


def slow_reader(near: End, far: End, lab: Lab) -> tuple[dict[str, float], dict[str, float]]:
    """Half a kilobyte each hundredth of a second, into a small buffer."""
    return {"send_buffer": 0, "pause_s": 0}, {"receive_buffer": SMALL, "pause_s": 0.01}


def small_send_buffer(near: End, far: End, lab: Lab) -> tuple[dict[str, float], dict[str, float]]:
    """A buffer that holds less than what the path takes until the first acknowledgement is back."""
    near.namespace.run("tc", "qdisc", "replace", "dev", near.device, "root", "tbf", "rate", "2mbit", "burst", "3000",
                       "limit", "1000000")  # fmt: skip
    return {"send_buffer": SMALL, "pause_s": 0}, {"receive_buffer": 0, "pause_s": 0}


def loss(near: End, far: End, lab: Lab) -> tuple[dict[str, float], dict[str, float]]:
    """Each fifth segment with data is dropped."""
    dropper = lab.dropper(far)
    dropper.rule(every=5, data=True)
    return {"send_buffer": 0, "pause_s": 0}, {"receive_buffer": 0, "pause_s": 0}


def narrow_path(near: End, far: End, lab: Lab) -> tuple[dict[str, float], dict[str, float]]:
    """Two megabits a second, and a queue that holds all."""
    near.namespace.run("tc", "qdisc", "replace", "dev", near.device, "root", "tbf", "rate", "2mbit", "burst", "3000",
                       "limit", "100000000")  # fmt: skip
    return {"send_buffer": 1 << 20, "pause_s": 0}, {"receive_buffer": 1 << 22, "pause_s": 0}


def idle_writer(near: End, far: End, lab: Lab) -> tuple[dict[str, float], dict[str, float]]:
    """A byte each fiftieth of a second."""
    return {"send_buffer": 0, "pause_s": 0.02}, {"receive_buffer": 0, "pause_s": 0}


@pytest.mark.parametrize(
    ("cause", "limit"),
    [
        (slow_reader, "receiver"),
        (small_send_buffer, "send buffer"),
        (loss, "path loss"),
        (narrow_path, "congestion"),
        (idle_writer, "application"),
    ],
)
def test_a_cause_is_named(cause: Callable[..., tuple[dict[str, float], dict[str, float]]], limit: str, lab: Lab,
                          probe: Connections) -> None:  # fmt: skip
    """The cause has most of the time."""
    near, far = lab.pair()
    writer, reader = lab.worker(near.namespace), lab.worker(far.namespace)
    sending, receiving = cause(near, far, lab)
    reader.call(traffic.listen, "listener", far.v4, PORT)
    reader.start(read_without_end, "listener", *receiving.values())
    writer.start(write_without_end, (far.v4, PORT), *sending.values())
    until(lambda: sender_row(probe), "the connection is listed")

    def named() -> bool:
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 0.5, "half a second")
        row = sender_row(probe)
        return row is not None and row["limited_by"] == limit and row["limited_share"] > 0.5

    until(named, f"it is limited by {limit}", FOR_S)
