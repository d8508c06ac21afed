# SPDX-License-Identifier: Apache-2.0
"""Response times of connections, as measured by the services lens."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Array, positions
from nettop.snapshots.services import CONNECTIONS
from nettop.snapshots.snapshot import Snapshot


def set_answers(rows: Array, services: Snapshot | None) -> None:
    """Set each socket's number of answers, mean response time and start of the pending request from the services
    snapshot."""
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
