# SPDX-License-Identifier: Apache-2.0
"""The first interval begins when the hooks work, or fields that need a hook are unknown in it."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from nettop.probes.connections.probe import Connections
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.connections import NOT_LISTED, SOCKETS
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.options import source_options

from . import oracle
from .test_events import until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.core,
    pytest.mark.since("5.12", "a program at a tracepoint may not ask for a socket's cookie"),
]

DIFFERENCES = replace(text_query(SOCKETS), all_rows=True, closed=True, deltas=True)


@pytest.fixture
def talking() -> Iterator[socket.socket]:
    """Yield a UDP socket that sends to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        own.connect(own.getsockname())
        yield own


def talk(own: socket.socket, messages: int) -> None:
    """Send `count` messages of 10 bytes, each with a short connection that carries 1,000 bytes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(messages):
            own.send(b"n" * 10)
            own.recv(10)
            with socket.create_connection(server.getsockname()) as client, server.accept()[0]:
                client.send(b"n" * 1000)


def read(probe: Connections) -> Snapshot:
    """Return a reading."""
    return probe.read(time.monotonic_ns())


def moved(own: socket.socket, now: Snapshot, before: Snapshot) -> tuple[object, bool]:
    """Return the socket's bytes between two readings, and whether totals are known; otherwise ended sockets are
    unknown."""
    view = View(Frame(now, before), DIFFERENCES)
    at = np.flatnonzero(view.raw("id") == oracle.cookie(own))
    total = view.total("bytes_sent", np.arange(view.size))
    assert total is not None or NOT_LISTED not in view.values("process", view.order)
    return view.values("messages_sent", at)[0], total is not None


def test_an_interval_that_begins_when_the_hooks_work(talking: socket.socket) -> None:
    """If the first interval begins when the hooks work, it lacks nothing."""
    with closing(Connections()) as probe:
        probe.configure(source_options(whole=True))
        probe.start()
        before = read(probe)
        talk(talking, 7)
        now = read(probe)
        assert moved(talking, now, before) == (7, True)
        view = View(Frame(now, before), DIFFERENCES)
        closed = view.raw("bytes_sent")[view.gone & (view.raw("bytes_sent") == 1000)]
        assert len(closed) >= 7


@pytest.mark.walks
def test_hooked_values_are_unknown_in_the_first_interval(talking: socket.socket) -> None:
    """While hooks are being attached, a socket's messages and the totals are unknown, never partial."""
    with closing(Connections()) as probe:
        probe.start()
        before = read(probe)
        talk(talking, 7)

        def is_attached() -> bool:
            probe.drain(time.monotonic_ns())
            return not probe.wakeups() or probe._loader is None

        until(is_attached, "all hooks are attached")
        talk(talking, 5)
        first = read(probe)
        assert moved(talking, first, before) == (None, False)
        talk(talking, 3)
        second = read(probe)
        assert moved(talking, second, first) == (3, True)
        # An average that begins before the hooks is unknown too.
        assert moved(talking, second, before) == (None, False)
