# SPDX-License-Identifier: Apache-2.0
"""Columns of numbers as few bytes: differences from what a reader knows, as planes of bytes; and texts as JSON.

A plane has the same byte of every number. The high bytes of small differences are 0, so their planes are left out, and
the compressor that follows finds the regularities of the others.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import numpy as np

from nettop.snapshots.arrays import Array, Index
from nettop.snapshots.safe_text import safe_text

_SPARSE = 8
"""With fewer than one changed row in so many, the places of those rows are written too."""
_FEW = 64
"""Columns of at most so many rows are written as they are: what could be left out saves fewer bytes than time."""
_PLACE = np.dtype("<u4")


class TooLarge(ValueError):
    """More than a reader accepts."""


class Damaged(ValueError):
    """Bytes that no writer wrote."""


class Bytes:
    """Bytes that are read from the front."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._rest = memoryview(content)

    def take(self, size: int) -> memoryview:
        """Return the next `size` bytes; raise Damaged if there are fewer."""
        if size > len(self._rest):
            raise Damaged("a reading ends early")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def number(self) -> int:
        """Return the next number below 2³²."""
        return int.from_bytes(self.take(4), "little")


def write_number(number: int) -> bytes:
    """Return a number below 2³², as `Bytes.number` reads it."""
    return number.to_bytes(4, "little")


def write_column(changes: Array) -> bytes:
    """Return how a column changed: unsigned integers, shape (n,), which overflow.

    Where most rows grow by the same amount, as ages do, only the difference from that amount is written.
    """
    if len(changes) <= _FEW:
        return bytes(changes.itemsize + 1) + _planes(_folded(changes))
    (changed,) = changes.nonzero()
    common = 0
    if 2 * len(changed) > len(changes) > 1:
        middle = len(changes) // 2
        amount = np.partition(changes, middle)[middle]
        common = int(amount)
        changes = changes - amount
        (changed,) = changes.nonzero()
    is_sparse = len(changed) * _SPARSE < len(changes)
    head = common.to_bytes(changes.itemsize, "little") + bytes([is_sparse])
    if is_sparse:
        return head + write_places(changed) + _planes(_folded(changes[changed]))
    return head + _planes(_folded(changes))


def read_column(content: Bytes, before: Array) -> Array:
    """Return the sum of a column and the changes that `write_column` has written."""
    dtype = before.dtype
    common = np.frombuffer(content.take(dtype.itemsize), _little(dtype))[0]
    now: Array = before + common
    if content.take(1)[0]:
        places = read_places(content, len(before))
        now[places] += _unfolded(_read_planes(content, len(places), dtype))
    else:
        now += _unfolded(_read_planes(content, len(before), dtype))
    return now


def write_places(places: Index) -> bytes:
    """Return ascending places, preceded by their number."""
    if not len(places):
        return write_number(0) + bytes(1)
    steps = places.astype(_PLACE)
    steps[1:] -= steps[:-1].copy()
    return write_number(len(places)) + _planes(steps)


def read_places(content: Bytes, among: int) -> Index:
    """Return the places that `write_places` has written; raise Damaged unless they ascend and are below `among`."""
    count = content.number()
    if count > among:
        raise Damaged("there are more places than rows")
    steps = _read_planes(content, count, _PLACE)
    places = np.cumsum(steps, dtype=np.int64)
    if count and (places[-1] >= among or not steps[1:].all()):
        raise Damaged("there is no such row")
    return places


def _folded(changes: Array) -> Array:
    """Fold negative differences between the positive ones: 0, −1, 1, −2 are 0, 1, 2, 3."""
    signed = changes.view(f"i{changes.itemsize}")
    folded: Array = (signed + signed) ^ (signed >> changes.itemsize * 8 - 1)
    return folded.view(changes.dtype)


def _unfolded(folded: Array) -> Array:
    one = folded.dtype.type(1)
    numbers: Array = (folded >> one) ^ -(folded & one)
    return numbers


def _planes(numbers: Array) -> bytes:
    """Return the planes of bytes of unsigned integers, the low ones first, preceded by their number."""
    size = (int(numbers.max(initial=0)).bit_length() + 7) // 8
    little = numbers.astype(_little(numbers.dtype), copy=False)
    planes = little.view(np.uint8).reshape(len(numbers), numbers.itemsize)
    return bytes([size]) + planes[:, :size].T.tobytes()


def _read_planes(content: Bytes, count: int, dtype: np.dtype[Any]) -> Array:
    size = content.take(1)[0]
    if size > dtype.itemsize:
        raise Damaged("a number is too large for its column")
    written = np.frombuffer(content.take(size * count), np.uint8).reshape(size, count)
    planes = np.zeros((count, dtype.itemsize), np.uint8)
    planes[:, :size] = written.T
    return planes.view(_little(dtype)).astype(dtype, copy=False).reshape(count)


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the same numbers, the low byte first."""
    return dtype.newbyteorder("<")


# --- texts ----------------------------------------------------------------------------------------------------

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
        return [_safe(item) for item in value]
    if isinstance(value, dict):
        return {safe_text(name): _safe(item) for name, item in value.items()}
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
