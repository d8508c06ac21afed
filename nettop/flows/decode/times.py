# SPDX-License-Identifier: Apache-2.0
"""Convert an exporter's clock and its 32-bit uptime to time."""

from __future__ import annotations

import numpy as np

from nettop.flows.columns import TIME_MIN_MS
from nettop.flows.decode.datagrams import nearest
from nettop.snapshots.arrays import Array


def exported_ms(clock_ms: Array, received_ms: Array) -> Array:
    """Return the export time by the exporter's clock, or the receive time if that clock was never set."""
    return np.where(clock_ms >= TIME_MIN_MS, clock_ms, received_ms)


def uptime_at_ms(uptime_ms: Array, zero_ms: Array, export_ms: Array) -> Array:
    """Convert uptimes to times. Uptimes wrap after 49.7 days, so choose the time nearest to the export time.

    `zero_ms` is any time at which the uptime was 0: the exporter's start, or an export time minus its uptime.
    """
    time_ms: Array = export_ms + nearest(zero_ms + uptime_ms - export_ms)
    return time_ms
