# SPDX-License-Identifier: Apache-2.0
"""What a worker expects of where flows come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.flows.pipeline import Pipeline
from nettop.flows.receive import SocketCounts
from nettop.query.address import MAPPED
from nettop.snapshots.snapshot import Array

CONNTRACK, NFLOG, MIRRORED = 201, 202, 203
"""The protocol versions of flows that this host sees by itself, beyond those of exporters."""
_THIS_HOST = MAPPED + bytes((127, 0, 0, 1))


class Input(Protocol):
    """Where flows come from. Only one thread may use it."""

    @property
    def counts(self) -> Sequence[SocketCounts]:
        """What has come by each of its sockets."""

    def receive(self, pipeline: Pipeline, timeout_s: float) -> bool:
        """Wait for something, and put it into the pipeline; returns whether something came. Raises SourceFailed."""

    def count(self, pipeline: Pipeline) -> None:
        """Have the pipeline count what the kernel has dropped, and the like."""


def of_this_host(version: int, received_ms: Array) -> Flows:
    """The columns that say where flows are from, for those that this host has seen at these times (n,)."""
    count = len(received_ms)
    return {
        "protocol_version": np.full(count, version, np.uint8),
        "exporter": np.frombuffer(_THIS_HOST * count, ADDRESS),
        "received": received_ms,
        "end": received_ms,
    }
