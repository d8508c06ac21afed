# SPDX-License-Identifier: Apache-2.0
"""Times as text."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime


def rfc3339(wall_ns: int) -> str:
    """Format nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    second, rest = divmod(wall_ns, 1_000_000_000)
    return f"{_whole_second(second)}.{rest // 1000:06d}Z"


def rfc3339_all(walls_ns: Iterable[int | None]) -> list[str | None]:
    """Format many times as `rfc3339` does, keeping None. Times within the same second share the formatting of it."""
    texts: list[str | None] = []
    before, text = None, ""
    for wall_ns in walls_ns:
        if wall_ns is None:
            texts.append(None)
            continue
        second, rest = divmod(wall_ns, 1_000_000_000)
        if second != before:
            before, text = second, _whole_second(second)
        texts.append(f"{text}.{rest // 1000:06d}Z")
    return texts


def _whole_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
