# SPDX-License-Identifier: Apache-2.0
"""Flows from other producers: each batch is on disk in the spool before it is accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nettop.errors import NettopError, SourceFailed
from nettop.flows.pipeline import Pipeline
from nettop.flows.protobuf import decode_batch
from nettop.flows.worker import Destination, WorkerState, open_pipeline, state_of


class ProducedFlows:
    """Intake of batches, one at a time, from any thread of the collector's process."""

    def __init__(self, to: Destination, report: Callable[[NettopError], None]) -> None:
        self._pipeline: Pipeline = open_pipeline(to, report)
        self._lock = threading.Lock()

    def take(self, content: bytes) -> int:
        """Put a FlowBatch into the spool. Return its number of flows.

        Raise UsageError for an invalid batch, SourceFailed if the spool is full. On failure nothing is stored.
        """
        flows, count = decode_batch(content, time.time_ns() // 1_000_000)
        with self._lock:
            before = self._pipeline.dropped
            self._pipeline.add_flows(flows, count)
            self._pipeline.write_block()
            if self._pipeline.dropped > before:
                raise SourceFailed("the spool is full", "retry the batch later")
        return count

    def state(self) -> WorkerState:
        """Return the counts since the start, as for a worker."""
        with self._lock:
            return state_of(self._pipeline, ())
