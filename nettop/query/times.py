# SPDX-License-Identifier: Apache-2.0
"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(wall_ns: int) -> str:
    """Nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    whole = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000 // 1000:06d}Z"
