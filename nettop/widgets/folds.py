# SPDX-License-Identifier: Apache-2.0
"""Folds: lines that stand for many closed rows with the same text, such as those of one process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nettop.query.view import View
from nettop.snapshots.arrays import Index
from nettop.widgets.cells import SUMMED
from nettop.widgets.columns import declared

LISTED_CLOSED = 12
"""The most closed rows of one process that are listed; more become a fold."""


def fold_closed(view: View, by: str) -> tuple[Index, Mapping[int, Index]]:
    """Return the view's lines, with closed rows folded where many have the same text in the column `by`: the position
    of a row each, and the positions of a fold's rows, by the first."""
    closed = view.order[(view.gone & ~view.rest)[view.order]]
    if len(closed) <= LISTED_CLOSED:
        return view.order, {}
    texts = view.texts(by)[1][closed]
    distinct, counts = np.unique(texts, return_counts=True)
    members = [closed[texts == text] for text in distinct[counts > LISTED_CLOSED]]
    if not members:
        return view.order, {}
    folds = {int(rows[0]): rows for rows in members}
    order = view.order[~np.isin(view.order, np.concatenate([rows[1:] for rows in members]))]
    return _sorted(view, order, folds), folds


def _sorted(view: View, order: Index, folds: Mapping[int, Index]) -> Index:
    """Return the lines in the query's order, where a fold has the sum of its rows."""
    name, descending = view.query.sort.field, view.query.sort.descending
    if declared(view.table, name).kind not in SUMMED:
        return order
    column = view.column(name)
    numbers = np.where(column.known[order], column.numbers[order], np.nan)
    for first, rows in folds.items():
        total = view.total(name, rows, with_closed=True)
        numbers[order == first] = np.nan if total is None else total
    return order[np.argsort(-numbers if descending else numbers, kind="stable")]
