# SPDX-License-Identifier: Apache-2.0
"""What lenses may lose, as they declare it and count it, and how plain output reports it."""

import json
import re
import signal
import socket
import time
from typing import Self

import pytest

from nettop.engine.source import probe_of
from nettop.snapshots import lenses
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import EventSource

from . import traffic
from .command import Running, is_loss
from .lab import Lab, Worker, until
from .traffic import Memory

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("lens", lenses(), ids=lambda lens: lens.id)
def test_what_is_counted_as_lost_is_declared(lens: Lens) -> None:
    """Help and documents have every name that a lens counts something under, and no other."""
    source = probe_of(lens.id)
    for table in lens.tables:
        source.set("table", table.name)
    counted: set[str] = set()

    def counts_all() -> bool:
        """Some programs are attached a moment after the start."""
        if isinstance(source, EventSource):
            source.drain(time.monotonic_ns())
        counted.update(source.read(time.monotonic_ns()).lost)
        return counted >= {loss.name for loss in lens.losses}

    try:
        source.start()
        until(counts_all, "it counts all that it declares")
    finally:
        source.close()
    assert counted == {loss.name for loss in lens.losses}


def connect_and_close(memory: Memory, count: int) -> None:
    """Opens and closes so many connections over loopback: four events each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            with socket.create_connection(listener.getsockname()) as near:
                far, _ = listener.accept()
                traffic.finish(near)
                traffic.finish(far)


class Stopped(Running):
    """nettop printing events through the smallest ring; inside its with-block it has slept through some."""

    def __init__(self, worker: Worker, *options: str) -> None:
        self._worker = worker
        words = ("--view", "connections.events", "--ring-size", "4K", "--interval", "0.1", *options)
        super().__init__(*words)

    def __enter__(self) -> Self:
        """Has it sleep while there are events, and waits until it has printed later ones."""
        until(self.goes_on, "nettop prints events")
        self.process.send_signal(signal.SIGSTOP)
        self._worker.call(connect_and_close, 500)
        self.process.send_signal(signal.SIGCONT)
        until(self.goes_on, "nettop prints events again")
        return super().__enter__()

    def goes_on(self) -> bool:
        """Whether it prints something of a further connection."""
        assert self.process.poll() is None, self.errors()
        before = len(self.text())
        self._worker.call(connect_and_close, 1)
        return len(self.text()) > before

    def lost_events(self) -> int:
        """How many events it says on standard error that it has lost."""
        return sum(
            map(int, re.findall(r"nettop: lost .*?(\d+) events \(ring full or hook busy\)", self.errors()))
        )


@pytest.mark.parametrize("options", [("-d",), ("--format", "csv"), ("--format", "jsonl")], ids=" ".join)
def test_a_stopped_nettop_says_what_it_lost(lab: Lab, options: tuple[str, ...]) -> None:
    """In every format, with banner or without, what the ring had no room for is a line on standard error."""
    with Stopped(lab.worker(lab.namespace()), *options) as stopped:
        until(stopped.lost_events, "the loss is reported")


def test_numbers_of_lost_events_are_missing(lab: Lab) -> None:
    """JSON Lines have the losses as records, and as many numbers of events are missing between the others."""

    def agrees() -> bool:
        stopped.goes_on()
        records = [
            json.loads(line) for line in stopped.text().splitlines(keepends=True) if line.endswith("\n")
        ]
        lost = sum(record["count"] for record in records if is_loss(record) and record["what"] == "events")
        ids = [record["event_id"] for record in records if not is_loss(record)]
        return ids[-1] - len(ids) == lost == stopped.lost_events() > 0

    with Stopped(lab.worker(lab.namespace()), "--format", "jsonl") as stopped:
        until(agrees, "the missing numbers are those of the losses")
