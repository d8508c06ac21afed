# SPDX-License-Identifier: Apache-2.0
"""Losses of lenses are declared, counted, and reported in plain output."""

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
from tests.options import source_options

from . import traffic
from .command import Running, is_loss
from .lab import Lab, Worker, until
from .traffic import Memory

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("lens", lenses(), ids=lambda lens: lens.id)
def test_loss_counters_are_declared(lens: Lens) -> None:
    """Help and documents name exactly the counters of losses that lenses have."""
    source = probe_of(lens.id)
    source.configure(source_options([table.name for table in lens.tables]))
    counted: set[str] = set()

    def counts_all() -> bool:
        """Return whether all counters are known: some programs are attached after the start."""
        if isinstance(source, EventSource):
            source.drain(time.monotonic_ns())
        counted.update(source.read(time.monotonic_ns()).lost)
        return counted >= lens.losses.keys()

    try:
        source.start()
        until(counts_all, "it counts all that it declares")
    finally:
        source.close()
    assert counted == lens.losses.keys()


def connect_and_close(memory: Memory, count: int) -> None:
    """Open and close `count` connections over loopback: four events each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            with socket.create_connection(listener.getsockname()) as near:
                far, _ = listener.accept()
                traffic.finish(near)
                traffic.finish(far)


class Stopped(Running):
    """nettop printing events through the smallest ring; inside the `with` block it has missed some while stopped."""

    def __init__(self, worker: Worker, *options: str) -> None:
        self._worker = worker
        words = ("--view", "connections.events", "--ring-size", "4K", "--interval", "0.1", *options)
        super().__init__(*words)

    def __enter__(self) -> Self:
        """Stop it while there are events, then wait until it has printed later ones."""
        until(self.goes_on, "nettop prints events")
        self.process.send_signal(signal.SIGSTOP)
        self._worker.call(connect_and_close, 500)
        self.process.send_signal(signal.SIGCONT)
        until(self.goes_on, "nettop prints events again")
        return super().__enter__()

    def goes_on(self) -> bool:
        """Return whether it prints an event of a new connection."""
        assert self.process.poll() is None, self.errors()
        before = len(self.text())
        self._worker.call(connect_and_close, 1)
        return len(self.text()) > before

    def lost_events(self) -> int:
        """Return the number of lost events reported on standard error."""
        return sum(
            map(int, re.findall(r"nettop: lost .*?(\d+) events \(ring full or hook busy\)", self.errors()))
        )


def test_numbers_of_lost_events_are_missing(lab: Lab) -> None:
    """JSON Lines have losses as records, and the same number of event numbers is missing in between."""

    def agrees() -> bool:
        stopped.goes_on()
        records = [json.loads(line) for line in stopped.text().rpartition("\n")[0].splitlines()]
        lost = sum(record["count"] for record in records if is_loss(record) and record["what"] == "events")
        ids = [record["event_id"] for record in records if not is_loss(record)]
        return ids[-1] - len(ids) == lost == stopped.lost_events() > 0

    with Stopped(lab.worker(lab.namespace()), "--format", "jsonl") as stopped:
        until(agrees, "the missing numbers are those of the losses")
