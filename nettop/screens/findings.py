# SPDX-License-Identifier: Apache-2.0
"""The findings screen: what is wrong, the worst first."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.drops import LENS as DROPS
from nettop.snapshots.findings import FINDINGS, FIREWALL, LIMITS, SEVERITY_CODES
from nettop.snapshots.schema import Severity
from nettop.snapshots.services import LENS as SERVICES
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import WARNING, Apart, RowFlags, RowStyle, flags_of
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role

_WITH_HOOKS = (DROPS.id, SERVICES.id)
"""Lenses with rules whose hooks are attached only while they are open."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: failed if it is a problem, quiet if a hint, idle if it was not seen this time."""
    severity = view.raw("severity")[at]
    return flags_of(
        view,
        at,
        idle=view.raw("unseen")[at] > 0,
        quiet=severity == SEVERITY_CODES[Severity.HINT],
        failed=severity == SEVERITY_CODES[Severity.PROBLEM],
    )


class FindingsScreen(LensScreen):
    """Findings that no other finding explains."""

    row_style = RowStyle(
        failing={"severity": f"{WARNING} "},
        stale=frozenset({"severity", "finding", "certainty"}),
        flags=row_flags,
        empty="nothing is wrong, as far as nettop sees; p shows how near the kernel's limits are",
    )

    def headline(self, view: View) -> list[BarItem]:
        """Return how many findings of each severity there are."""
        severity = view.raw("severity")[headline.alive(view)]
        return [
            headline.count(f"{level.value}s", int(np.count_nonzero(severity == number)), 900 - number)
            for level, number in SEVERITY_CODES.items()
        ] + self._unwatched()

    def _unwatched(self) -> list[BarItem]:
        """Name the lenses that are judged only while they are open, because they need hooks, and are not."""
        context = self.context
        if context.player is not None:
            return []
        closed = [
            item(f" {lens.title} ", (lens.digit, Role.KEY), action=f"app.lens({lens.digit})").spans
            for lens in context.lenses
            if lens.id in _WITH_HOOKS and context.session.bus.frame(lens.id) is None
        ]
        # One item: the label says nothing without the names, and some names alone are not all of them.
        return [BarItem(sum(closed, (TextSpan("not watched:"),)), importance=800)] if closed else []


class LimitsScreen(LensScreen):
    """The limits of the host, and of each network namespace."""

    row_style = RowStyle(apart=Apart("namespace", ("resource",)))


class FirewallScreen(LensScreen):
    """The rules that drop or reject packets, in each network namespace."""

    row_style = RowStyle(apart=Apart("namespace", ("action", "table", "chain", "port")))


SCREENS = {FINDINGS.name: FindingsScreen, LIMITS.name: LimitsScreen, FIREWALL.name: FirewallScreen}
