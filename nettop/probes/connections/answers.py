# SPDX-License-Identifier: Apache-2.0
"""How fast connections are answered, as the services lens sees it."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import positions
from nettop.snapshots.services import CONNECTIONS
from nettop.snapshots.snapshot import Array, Snapshot


def put_answers(rows: Array, services: Snapshot | None) -> None:
    """Set how often each socket was answered, how fast, and since when a request waits, from that lens's snapshot."""
    seen = services.tables.get(CONNECTIONS.name) if services is not None else None
    if seen is None:
        return
    at = positions(rows["id"], seen.array["id"])
    here = np.flatnonzero(at >= 0)
    of = seen.array[at[here]]
    rows["answers"][here] = of["answers"]
    rows["waiting_since"][here] = of["since"]
    answered = of["answers"] > 0
    mean = of["response_ns"][answered] / of["answers"][answered]
    rows["response_mean"][here[answered]] = mean.round()
