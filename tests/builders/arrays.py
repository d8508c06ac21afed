# SPDX-License-Identifier: Apache-2.0
"""Arrays of rows as programs and probes write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nettop.snapshots.arrays import Array


def unknown_rows(dtype: np.dtype[Any], *rows: Mapping[str, Any]) -> Array:
    """Return an array of these rows; what they leave out is unknown."""
    return _fill(np.frombuffer(bytearray(b"\xff" * dtype.itemsize * len(rows)), dtype), rows)


def zero_rows(dtype: np.dtype[Any], *rows: Mapping[str, Any]) -> Array:
    """Return an array of these rows; what they leave out is 0."""
    return _fill(np.zeros(len(rows), dtype), rows)


def _fill(array: Array, rows: Iterable[Mapping[str, Any]]) -> Array:
    for at, row in enumerate(rows):
        for name, value in row.items():
            array[name][at] = value
    return array
