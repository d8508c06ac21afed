# SPDX-License-Identifier: Apache-2.0
"""Datagrams of exporters, at UDP ports."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, SocketCounts, Wait


class Exports:
    """An Input: what comes to these sockets."""

    def __init__(self, sockets: Sequence[OpenSocket], wait: Wait) -> None:
        self._receiver = Receiver(sockets, wait)

    @property
    def counts(self) -> Sequence[SocketCounts]:
        """As of Input."""
        return self._receiver.counts

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """As of Input."""
        datagrams = self._receiver.receive(timeout_s)
        pipeline.add(datagrams)
        return len(datagrams.starts) > 0

    def count(self, pipeline: Pipeline) -> None:
        """As of Input."""
        pipeline.counted["kernel_drops"] = sum(self._receiver.drops())
        pipeline.counted["truncated"] = sum(counts.truncated for counts in self.counts)
