# SPDX-License-Identifier: Apache-2.0
"""The screen of nettop's own cost. The key that opens it from anywhere also closes it."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens.actions import always, changed
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.own_cost import HOOK_PROGRAMS, KINDS
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import WARNING, RowStyle, idle_where_zero
from nettop.widgets.themes import Role

_NUMBER = {label: number for number, label in KINDS.items()}
_SHARE = "time_ns_per_s"


class OwnCostScreen(LensScreen):
    """The CPU time and memory of nettop's parts, the most expensive first."""

    about = "what nettop itself costs: its BPF programs, threads, memory and steps"
    row_style = RowStyle(
        absent={"lens": "", "note": ""},
        stale=frozenset({"mean_ns", "longest_ns"}),
        flags=partial(idle_where_zero, _SHARE),
    )
    describable = False
    own_actions: ClassVar = changed(("back", always), ("overhead", always, "back"))

    def headline(self, view: View) -> list[BarItem]:
        """Return the total cost, the BPF programs' part, memory, and the effect of --max-overhead."""
        total, programs = _of_kind(view, "total"), _of_kind(view, "program")
        counted = view.snapshot.hook(HOOK_PROGRAMS.name)
        share = NOT_AVAILABLE if counted and counted.mechanism is None else _amount(view, _SHARE, programs)
        items = [
            item(("cost ", Role.DIM), (f"{_amount(view, _SHARE, total)} of a CPU", Role.BOLD)),
            item(("programs ", Role.DIM), (share, Role.TEXT), importance=900),
            item(("memory ", Role.DIM), (_amount(view, "memory", total), Role.TEXT), importance=800),
        ]
        limit = self.context.session.overhead_limit
        if limit is not None and str(limit):
            items.append(item((f"{WARNING} {limit}", Role.WARN), importance=700))
        elif limit is not None:
            bound = f"{limit.bound * 100:.3g}% of a CPU"
            items.append(item(("within ", Role.DIM), (bound, Role.TEXT), importance=700))
        return items

    def cost(self) -> float | None:
        """Return the total cost of the rows, so that the first line matches them."""
        if self.view is None:
            return None
        per_second_ns = self.view.total(_SHARE, _of_kind(self.view, "total"))
        return None if per_second_ns is None else per_second_ns / 1e9

    def action_back(self) -> None:
        """Leave the details, then return to the previous table."""
        if self.details_open:
            super().action_back()
        else:
            self.call_later(self.run_action, "app.overhead")


def _of_kind(view: View, label: str) -> Index:
    return np.flatnonzero((view.raw("kind") == _NUMBER[label]) & ~view.gone)


def _amount(view: View, name: str, rows: Index) -> str:
    return human(view.total(name, rows), unit_of(view.table, name))


SCREENS = {"costs": OwnCostScreen}
