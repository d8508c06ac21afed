# SPDX-License-Identifier: Apache-2.0
"""The processes pane: who burns CPU time in the network stack."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.cpu.headline import network_share, row_looks, syscalls_by_samples
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.cpu import HOOK_SERVED, NO_PROCESS
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import Part, part
from nettop.widgets.cells import Manner
from nettop.widgets.themes import Role

_SOFTIRQ = "softirq_ns" + RATE


class CpuProcessesScreen(LensScreen):
    """Processes: their own system calls, the softirqs that served their sockets, and what served nobody's."""

    about: ClassVar[str] = "which processes the network stack works for, and what it does for none"
    manner: ClassVar[Manner] = Manner(absent={"process": "(ended)"}, looks=row_looks)
    has_more: ClassVar[bool | None] = True

    def headline(self, view: View) -> list[Part]:
        """What all of it costs, for how many processes, and how much of the softirqs' part is no process's."""
        is_process = view.known("pid")
        processes, others = (np.flatnonzero(~view.gone & these) for these in (is_process, ~is_process))
        return [
            *network_share(view),
            headline.count("processes", len(processes), 800),
            *_nobodys(view, processes, others),
            *syscalls_by_samples(view.snapshot),
        ]


def _nobodys(view: View, processes: Index, others: Index) -> list[Part]:
    """`softirqs 35.6 % (no process)`; nothing while none ran."""
    if view.snapshot.why_not(HOOK_SERVED.name) is not None:
        return [part(("softirqs ", Role.DIM), (f"all {NO_PROCESS}", Role.WARN), importance=700)]
    served, unserved = (view.total(_SOFTIRQ, at) or 0.0 for at in (processes, others))
    if not served + unserved:
        return []
    share = percent(unserved / (served + unserved))
    return [part(("softirqs ", Role.DIM), (f"{share} {NO_PROCESS}", Role.TEXT), importance=700)]


SCREEN = CpuProcessesScreen
