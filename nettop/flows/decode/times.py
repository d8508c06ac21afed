# SPDX-License-Identifier: Apache-2.0
"""The time that an exporter means: of its own clock, and of the 32 bits in which it counts its uptime."""

from __future__ import annotations

import numpy as np

from nettop.flows.columns import TIME_MIN_MS
from nettop.flows.decode.datagrams import nearest
from nettop.snapshots.snapshot import Array


def exported_ms(clock_ms: Array, received_ms: Array) -> Array:
    """Return when datagrams were sent, by their exporter's clock; by ours where it was never set."""
    return np.where(clock_ms >= TIME_MIN_MS, clock_ms, received_ms)


def uptime_at_ms(uptime_ms: Array, zero_ms: Array, export_ms: Array) -> Array:
    """Return the time that uptimes mean, which wrap after 49.7 days: the one nearest to the export.

    `zero_ms` is any time at which the uptime was 0: when the exporter began, or its export time less its uptime then.
    """
    time_ms: Array = export_ms + nearest(zero_ms + uptime_ms - export_ms)
    return time_ms
