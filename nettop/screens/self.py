# SPDX-License-Identifier: Apache-2.0
"""What nettop itself costs, as a screen: opened by a key from anywhere, and left by it to where one was."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens.actions import Action
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.own_cost import HOOK_PROGRAMS, KINDS
from nettop.snapshots.snapshot import NOT_AVAILABLE
from nettop.widgets.bar import Part, part
from nettop.widgets.cells import WARNING, Look, Manner
from nettop.widgets.themes import Role

_NUMBER = {label: number for number, label in KINDS.items()}
_SHARE = "time_ns_per_s"


def row_looks(view: View, at: Index) -> list[Look]:
    """What took no time in the last interval is idle."""
    shares = view.column(_SHARE)
    idle = as_list(shares.known[at] & (shares.numbers[at] == 0))
    return [Look(gone, is_idle) for gone, is_idle in zip(as_list(view.gone[at]), idle, strict=True)]


class OwnCostScreen(LensScreen):
    """Everything of nettop that costs, the dearest first."""

    about: ClassVar[str] = "what nettop itself costs: its BPF programs, threads, memory and steps"
    manner: ClassVar[Manner] = Manner(
        absent={"lens": "", "note": ""}, stale=frozenset({"mean_ns", "longest_ns"}), looks=row_looks
    )
    has_more: ClassVar[bool | None] = False

    def headline(self, view: View) -> list[Part]:
        """The cost of all, of the programs, memory, and what is done to cost less."""
        all_of_it, programs = _of_kind(view, "total"), _of_kind(view, "program")
        counted = view.snapshot.hook(HOOK_PROGRAMS.name)
        share = NOT_AVAILABLE if counted and counted.mechanism is None else _amount(view, _SHARE, programs)
        return [
            part(("cost ", Role.DIM), (f"{_amount(view, _SHARE, all_of_it)} cpu", Role.BOLD)),
            part(("programs ", Role.DIM), (share, Role.TEXT), importance=900),
            part(("memory ", Role.DIM), (_amount(view, "memory", all_of_it), Role.TEXT), importance=800),
            *self._limit(),
        ]

    def cost(self) -> float | None:
        """That of the rows in sight, over their time and no other."""
        if self.view is None:
            return None
        per_second_ns = self.view.total(_SHARE, _of_kind(self.view, "total"))
        return None if per_second_ns is None else per_second_ns / 1e9

    def _limit(self) -> list[Part]:
        limit = self.context.session.overhead_limit
        if limit is None:
            return []
        if not str(limit):
            return [part(("within ", Role.DIM), (f"{limit.bound * 100:.3g} %", Role.TEXT), importance=700)]
        return [part((f"{WARNING} {limit}", Role.WARN), importance=700)]

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return super()._conditions() | {"back": lambda: True}

    def label_of(self, action: Action) -> str:
        """The key that opened this goes back."""
        return "back" if action.id == "overhead" else super().label_of(action)

    def action_back(self) -> None:
        """Out of the details, then to where one was."""
        if self.details_open:
            super().action_back()
        else:
            self.call_later(self.run_action, "app.overhead")


def _of_kind(view: View, label: str) -> Index:
    """The living rows of a kind."""
    return np.flatnonzero((view.raw("kind") == _NUMBER[label]) & ~view.gone)


def _amount(view: View, name: str, rows: Index) -> str:
    return human(view.total(name, rows), unit_of(view.table, name))


SCREEN = OwnCostScreen
