# SPDX-License-Identifier: Apache-2.0
"""The totals line of a table."""

from __future__ import annotations

from collections.abc import Sequence

from nettop.query.units import human
from nettop.query.view import View
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Kind
from nettop.widgets.cells import Cell, fit, role_of
from nettop.widgets.columns import Column
from nettop.widgets.themes import Role

_SUMMED = frozenset({Kind.COUNTER, Kind.RATIO, Kind.SUM, Kind.QUANTILE})
_BOLD = {Role.SENT: Role.TOTAL_SENT, Role.RECEIVED: Role.TOTAL_RECEIVED}


def total_cells(view: View, columns: Sequence[Column]) -> list[Cell]:
    """Return the cells of the totals: the number of rows in the first, sums and overall ratios in the others."""
    at, count = view.order, int((~view.gone[view.order]).sum())
    cells: list[Cell] = []
    for n, column in enumerate(columns):
        if n == 0:
            # A full table has evicted rows: its size is only a lower bound.
            number = f"≥{count:,}" if view.is_full and count == view.size else f"{count:,}"
            labels = (f"─ total {number}", f"─ {number}", number)
            label = next((label for label in labels if len(label) <= column.width), number)
            cells.append((fit(label, column.width, left=True), Role.TEXT))
        elif column.field.kind not in _SUMMED or not view.table.adds_up:
            cells.append((" " * column.width, Role.DIM))
        elif column.name in view.missing:
            cells.append((fit(NOT_AVAILABLE, column.width, left=column.left), Role.FAINT))
        else:
            amount = human(view.total(column.name, at), column.unit, column.width)
            role = _BOLD.get(role_of(column.field), Role.TEXT)
            cells.append((fit(amount, column.width, left=column.left), role))
    return cells
