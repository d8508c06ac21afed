# SPDX-License-Identifier: Apache-2.0
"""Exporters' datagrams, received on UDP ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nettop.flows.backlog import Backlog
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import OpenSocket, Receiver, Wait


class Exports:
    """An Input of datagrams from these sockets.

    Datagrams that arrive faster than they can be decoded wait on disk or, if that is full, in the socket buffers.
    """

    def __init__(
        self, sockets: Sequence[OpenSocket], open_backlog: Callable[[], Backlog], wait: Wait
    ) -> None:
        self.receiver = Receiver(sockets, wait)
        self._backlog = open_backlog()

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Implement `Input.receive`."""
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
        """Implement `Input.count`."""
        pipeline.counted["kernel_drops"] = sum(self.receiver.drops())
        pipeline.counted["truncated"] = sum(counts.truncated for counts in self.receiver.counts)
        pipeline.queued = self._backlog.datagrams
