# SPDX-License-Identifier: Apache-2.0
"""Flows of other producers, batch by batch: each is in the spool, on the disk, when it is accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nettop.errors import NettopError, SourceFailed
from nettop.flows.pipeline import Pipeline
from nettop.flows.protobuf import decoded_batch
from nettop.flows.worker import Destination, WorkerState, opened_pipeline, state_of


class ProducedFlows:
    """Takes batches from any thread, one after the other, in the process of the collector."""

    def __init__(self, to: Destination, report: Callable[[NettopError], None]) -> None:
        self._pipeline: Pipeline = opened_pipeline(to, report)
        self._lock = threading.Lock()

    def take(self, content: bytes) -> int:
        """Put a FlowBatch into the spool; returns how many flows it has.

        Raises UsageError for what is no such batch, SourceFailed if the spool cannot take it: nothing of it is stored.
        """
        flows, count = decoded_batch(content, time.time_ns() // 1_000_000)
        with self._lock:
            before = self._pipeline.dropped
            self._pipeline.add_flows(flows, count)
            self._pipeline.write_block()
            if self._pipeline.dropped > before:
                raise SourceFailed("the spool is full", "send the batch again later")
        return count

    def state(self) -> WorkerState:
        """What was taken so far."""
        with self._lock:
            return state_of(self._pipeline, ())
