# SPDX-License-Identifier: Apache-2.0
"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

SECOND_NS = 1_000_000_000


def rfc3339(wall_ns: int) -> str:
    """Format nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    second, rest = divmod(wall_ns, SECOND_NS)
    return f"{whole_second(second)}.{rest // 1000:06d}Z"


@lru_cache(16)  # most rows of a table are of the same few seconds
def whole_second(second: int) -> str:
    """Format seconds since 1970 as RFC 3339, without the zone."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
