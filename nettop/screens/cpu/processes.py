# SPDX-License-Identifier: Apache-2.0
"""The table of processes: who uses CPU time in the network stack."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.cpu.headline import network_share, row_flags, syscalls_by_samples
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.cpu import HOOK_SERVED, NO_PROCESS
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role

_SOFTIRQ = "softirq_ns" + RATE


class CpuProcessesScreen(LensScreen):
    """Processes: their system calls and the softirqs for their sockets; the rest belongs to no process."""

    about: ClassVar[str] = "which processes the network stack works for, and what belongs to none"
    row_style: ClassVar[RowStyle] = RowStyle(absent={"process": "(ended)"}, flags=row_flags)
    describable: ClassVar[bool | None] = True

    def headline(self, view: View) -> list[BarItem]:
        """What the network costs, the number of processes, and the share of softirq time of no process."""
        is_process = view.known("pid")
        processes, others = (np.flatnonzero(~view.gone & these) for these in (is_process, ~is_process))
        return [
            *network_share(view),
            headline.count("processes", len(processes), 800),
            *_softirqs(view, processes, others),
            *syscalls_by_samples(view.snapshot),
        ]


def _softirqs(view: View, processes: Index, others: Index) -> list[BarItem]:
    """`softirqs 35.6 % (no process)`; empty while none ran."""
    if view.snapshot.why_not(HOOK_SERVED.name) is not None:
        return [item(("softirqs ", Role.DIM), (f"all {NO_PROCESS}", Role.WARN), importance=700)]
    served, rest = (view.total(_SOFTIRQ, at) or 0.0 for at in (processes, others))
    if not served + rest:
        return []
    share = percent(rest / (served + rest))
    return [item(("softirqs ", Role.DIM), (f"{share} {NO_PROCESS}", Role.TEXT), importance=700)]


SCREEN = CpuProcessesScreen
