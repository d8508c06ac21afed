# SPDX-License-Identifier: Apache-2.0
"""JSON in recordings. Whoever made a recording chose its texts, so they are made safe to show."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from nettop.recording.numbers import Damaged, TooLarge
from nettop.snapshots.safe_text import safe_text

_NUMBERS_TO = 1 << 64
"""Numbers are smaller: times in ns and counters have 64 bits."""
JSON_MAX = 8 << 20
"""Maximum bytes of the texts and names of a reading: as Python's objects, they may take twenty times as much."""
V = TypeVar("V")


def write_json(value: Any) -> bytes:
    """Return a value as JSON; raise TooLarge if it is larger than a reader accepts."""
    content = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    if len(content) > JSON_MAX:
        raise TooLarge(f"{len(content):,} bytes of texts are too many for a recording")
    return content


def read_json(content: bytes | memoryview) -> dict[str, Any]:
    """Return a JSON object whose texts are safe to show; raise Damaged, also for numbers that none of ours has."""
    if len(content) > JSON_MAX:
        raise Damaged("its JSON is too large")
    try:
        return checked(dict, _safe(json.loads(bytes(content))))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"its JSON is unreadable: {error}") from error


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return safe_text(value)
    if isinstance(value, list):
        return [_safe(each) for each in value]
    if isinstance(value, dict):
        return {safe_text(name): _safe(each) for name, each in value.items()}
    if isinstance(value, int | float) and not abs(value) < _NUMBERS_TO:  # NaN is not less either
        raise Damaged("a number is too large")
    return value


def checked(kind: type[V], value: Any) -> V:
    """Return a value of this type; raise Damaged if it has another one."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Damaged(f"{value!r:.40} is not of the type {kind.__name__}")
    return value


def checked_dict(kind: type[V], values: Any) -> dict[str, V]:
    """Return an object whose values have this type; raise Damaged if one has another."""
    return {name: checked(kind, value) for name, value in checked(dict, values).items()}


def checked_list(kind: type[V], values: Any) -> list[V]:
    """Return a list of this type; raise Damaged if it has another."""
    return [checked(kind, value) for value in checked(list, values)]
