# SPDX-License-Identifier: Apache-2.0
"""Times as text."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


def rfc3339(wall_ns: int) -> str:
    """Format nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    second, rest = divmod(wall_ns, 1_000_000_000)
    return f"{_whole_second(second)}.{rest // 1000:06d}Z"


@lru_cache(16)  # most rows of a table are of the same few seconds
def _whole_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
