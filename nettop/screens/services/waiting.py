# SPDX-License-Identifier: Apache-2.0
"""The requests currently waiting for their answers, oldest first."""

from __future__ import annotations

from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.connections import NO_YES
from nettop.snapshots.services import SERVED
from nettop.widgets.bar import BarItem, item
from nettop.widgets.themes import Role

_NOT_READ = next(number for number, name in NO_YES.items() if name == "no")


class WaitingScreen(LensScreen):
    """A row for each request without an answer."""

    about = "requests now waiting for their answers, oldest first, and whether they were read yet"
    describable = True

    def headline(self, view: View) -> list[BarItem]:
        """Return the number of requests, how many were not read, and how long the oldest has waited."""
        at = view.order[~view.gone[view.order]]
        not_read = (view.raw("side")[at] == SERVED) & (view.raw("was_read")[at] == _NOT_READ)
        items = [
            headline.count("waiting", len(at), 900),
            headline.count("not read", int(not_read.sum()), 880),
        ]
        if len(at):
            oldest = (human(float(view.raw("waited")[at].max()), "ns"), Role.BOLD)
            items.append(item(("oldest ", Role.DIM), oldest, importance=890))
        return items


SCREEN = WaitingScreen
