# SPDX-License-Identifier: Apache-2.0
"""Rows of a view that belong to others: listeners, other ends, rows with the same values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nettop.query.other_end import other_end
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots.arrays import Index, Mask, as_list, positions
from nettop.snapshots.connections import LISTEN

OTHER_ENDS_MAX = 8
"""Connections whose other end is looked for."""


def same_rows(view: View, names: Sequence[str], place: int) -> Mask:
    """Return the mask of rows with the same values in these columns as the row at `place`."""
    same = np.ones(view.size, bool)
    for name in names:
        values = view.raw(name)
        equal = values == values[place]
        same &= equal if equal.ndim == 1 else equal.all(axis=1)
    return same


def distinct_values(view: View, names: Sequence[str], at: Index) -> frozenset[Any]:
    """Return the distinct values in these columns."""
    present = (values_of(view, name, at) for name in names if name in view.table.by_name)
    return frozenset(value for values in present for value in values if value is not None)


def other_ends(view: View, at: Index) -> Index:
    """Return the other ends of connections, as far as they are on this host."""
    sockets = view.now.array
    others = [other_end(sockets[place : place + 1], sockets)["id"] for place in as_list(at[:OTHER_ENDS_MAX])]
    return positions(np.concatenate(others), sockets["id"])


def listeners(view: View, at: Index) -> Index:
    """Return the listeners on the port of these connections."""
    return np.flatnonzero(same_rows(view, ("local_port", "netns"), at[0]) & (view.raw("state") == LISTEN))


def common_process(view: View, at: Index) -> str | None:
    """Return the process of all rows at `at`; None if they have several, or there is no row."""
    processes: set[str | None] = set(values_of(view, "process", at))
    return processes.pop() if len(processes) == 1 else None
