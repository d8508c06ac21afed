# SPDX-License-Identifier: Apache-2.0
"""The sources of flows of a worker: exporters' datagrams, and what this host sees itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nettop.collector.backlog import Backlog
from nettop.collector.columns import ADDRESS, Flows
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.pipeline import Pipeline
from nettop.collector.receive import OpenSocket, Receiver, Wait
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array

MIRRORED = 203
"""Protocol version of flows that this host observes itself, in addition to those of exporters."""
_THIS_HOST = MAPPED + bytes((127, 0, 0, 1))


class Exports:
    """An input of datagrams from exporters. Use it from one thread only.

    Datagrams that arrive faster than they can be decoded wait on disk or, if that is full, in the socket buffers.
    """

    def __init__(
        self, sockets: Sequence[OpenSocket], open_backlog: Callable[[], Backlog], wait: Wait
    ) -> None:
        self.receiver = Receiver(sockets, wait)
        self._backlog = open_backlog()

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for data, and put it into the pipeline; return whether there was any. Raise SourceFailed."""
        has_come = False
        if not self._backlog.is_full:
            datagrams = self.receiver.receive(timeout_s if self._backlog.is_empty else 0)
            has_come = len(datagrams.starts) > 0
            has_to_wait = not self._backlog.is_empty or self.receiver.is_behind()
            if has_come and not (has_to_wait and self._backlog.put(datagrams)):
                pipeline.add(datagrams)
        if self._backlog.is_full or not (self._backlog.is_empty or self.receiver.is_behind()):
            pipeline.add(self._backlog.take())
            return True
        return has_come

    def count(self, pipeline: Pipeline) -> None:
        """Update the pipeline's counts, such as kernel drops."""
        pipeline.counted["kernel_drops"] = sum(self.receiver.drops())
        pipeline.counted["truncated"] = sum(counts.truncated for counts in self.receiver.counts)
        pipeline.queued = self._backlog.datagrams


class HostInput:
    """An input of what this host sees itself, by methods like those of Exports.

    `flows_of` returns the flows in what was received, and the number of packets or events that they describe, which the
    LEDGER counts as `counter`.
    """

    def __init__(
        self, receiver: Receiver, counter: str, flows_of: Callable[[Datagrams], tuple[Flows, int]]
    ) -> None:
        self.receiver = receiver
        self._counter, self._flows_of, self._seen = counter, flows_of, 0

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for data, and put its flows into the pipeline; return whether there was any. Raise SourceFailed."""
        received = self.receiver.receive(timeout_s)
        if not len(received.starts):
            return False
        flows, seen = self._flows_of(received)
        self._seen += seen
        if flows:
            pipeline.add_flows(flows, len(flows["received"]))
        return True

    def count(self, pipeline: Pipeline) -> None:
        """Update the pipeline's counts."""
        pipeline.counted[self._counter] = self._seen
        pipeline.counted["own_drops"] = sum(self.receiver.drops())


Input = Exports | HostInput


def of_this_host(version: int, received_ms: Array) -> Flows:
    """Return the columns that mark flows as observed by this host at these times (n,)."""
    count = len(received_ms)
    return {
        "protocol_version": np.full(count, version, np.uint8),
        "exporter": np.frombuffer(_THIS_HOST * count, ADDRESS),
        "received": received_ms,
        "end": received_ms,
    }
