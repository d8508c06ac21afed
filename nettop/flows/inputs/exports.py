# SPDX-License-Identifier: Apache-2.0
"""Datagrams of exporters, at UDP ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nettop.flows.backlog import Backlog
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, SocketCounts, Wait


class Exports:
    """An Input: what comes to these sockets.

    Datagrams that come faster than they can be decoded wait on the disk, or where that is full in the sockets' buffers.
    """

    def __init__(
        self, sockets: Sequence[OpenSocket], open_backlog: Callable[[], Backlog], wait: Wait
    ) -> None:
        self._receiver = Receiver(sockets, wait)
        self._backlog = open_backlog()

    @property
    def counts(self) -> Sequence[SocketCounts]:
        """As of Input."""
        return self._receiver.counts

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """As of Input."""
        has_come = False
        if not self._backlog.is_full:
            datagrams = self._receiver.receive(timeout_s if self._backlog.is_empty else 0)
            has_come = len(datagrams.starts) > 0
            has_to_wait = not self._backlog.is_empty or self._receiver.is_behind()
            if has_come and not (has_to_wait and self._backlog.put(datagrams)):
                pipeline.add(datagrams)
        if self._backlog.is_full or not (self._backlog.is_empty or self._receiver.is_behind()):
            pipeline.add(self._backlog.take())
            return True
        return has_come

    def count(self, pipeline: Pipeline) -> None:
        """As of Input."""
        pipeline.counted["kernel_drops"] = sum(self._receiver.drops())
        pipeline.counted["truncated"] = sum(counts.truncated for counts in self.counts)
        pipeline.queued = self._backlog.datagrams
