# SPDX-License-Identifier: Apache-2.0
"""The interface between a worker and its source of flows."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import Receiver
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array

CONNTRACK, NFLOG, MIRRORED = 201, 202, 203
"""Protocol versions of flows that this host observes itself, in addition to those of exporters."""
_THIS_HOST = MAPPED + bytes((127, 0, 0, 1))


class Input(Protocol):
    """A source of flows. Use it from one thread only."""

    receiver: Receiver
    """Receiver of its sockets."""

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for data, and put it into the pipeline; return whether there was any. Raise SourceFailed."""

    def count(self, pipeline: Pipeline) -> None:
        """Update the pipeline's counts, such as kernel drops."""


def of_this_host(version: int, received_ms: Array) -> Flows:
    """Return the columns that mark flows as observed by this host at these times (n,)."""
    count = len(received_ms)
    return {
        "protocol_version": np.full(count, version, np.uint8),
        "exporter": np.frombuffer(_THIS_HOST * count, ADDRESS),
        "received": received_ms,
        "end": received_ms,
    }
