# SPDX-License-Identifier: Apache-2.0
"""The failures pane: connections that failed or were reset, by reason and remote."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from nettop.query.filter import quote
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.sockets import why_no_events
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.schema import Table
from nettop.widgets.bar import Part, part
from nettop.widgets.cells import Manner
from nettop.widgets.themes import Role

_REASONS_SHOWN = 4
_PLAIN = re.compile(r"[\w.:]+", re.ASCII)


def nothing(view: View) -> str:
    """Why there are no failures."""
    why = why_no_events(view)
    return "no failure since nettop began" if why is None else f"this kernel does not tell of failures: {why}"


class FailuresScreen(LensScreen):
    """Groups of failures; → shows the events of one."""

    about: ClassVar[str] = "connections that failed or were reset, by reason and remote; → shows their events"
    manner: ClassVar[Manner] = Manner(absent={"process": "(unattributed)"}, nothing=nothing)
    stands_for: ClassVar[Table | None] = EVENTS

    def headline(self, view: View) -> list[Part]:
        """How many there were, how fast more come, and what for."""
        if why_no_events(view) is not None:
            return [headline.not_here("failures")]
        at = np.arange(view.size)
        return [*_how_many(view, at), headline.count("groups", view.size, 500), *_reasons(view, at)]

    def filter_behind(self, view: View, key: int) -> str:
        """What the events of a group have in common, as far as the newest ones are still there."""
        names = ("reason", "remote_address", "port", "direction", "process", "netns")
        at = np.flatnonzero(view.raw(view.table.key) == key)
        group = {name: view.values(name, at)[0] for name in names}
        port = "local_port" if group.pop("direction") == "inbound" else "remote_port"
        terms = ((port if name == "port" else name, value) for name, value in group.items())
        return " ".join(f"{name}={_word(value)}" for name, value in terms if value is not None)


def _how_many(view: View, at: Index) -> list[Part]:
    """`12 failures (+2/s)`."""
    if "failures" in view.missing:
        return [headline.not_here("failures"), *headline.no_churn(1)]
    total, rate = view.total("failures", at), view.total("failures_per_s", at)
    return [part((f"{total or 0:,.0f}", Role.BOLD), (" failures", Role.DIM)), *headline.churn(rate)]


def _reasons(view: View, at: Index) -> list[Part]:
    """The most frequent reasons, as far as there is room."""
    if {"reason", "failures"} & view.missing.keys():
        return []
    found: dict[str, int] = {}
    for reason, count in zip(view.values("reason", at), view.values("failures", at), strict=True):
        found[reason or "unknown"] = found.get(reason or "unknown", 0) + count
    most = sorted(found.items(), key=lambda one: -one[1])[:_REASONS_SHOWN]
    return [headline.count(reason, count, 400 - n) for n, (reason, count) in enumerate(most)]


def _word(value: str | int) -> str:
    """A value as the filter takes it, in quotes where it must be."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else quote(text)


SCREEN = FailuresScreen
