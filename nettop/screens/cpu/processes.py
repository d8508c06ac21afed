# SPDX-License-Identifier: Apache-2.0
"""The table of processes and their CPU time in the network stack."""

from __future__ import annotations

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.cpu_table import network_share, row_flags, syscalls_by_samples
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.lens import LensScreen
from nettop.snapshots.cpu import HOOK_SERVED, NO_PROCESS
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role

_SOFTIRQ = "softirq_ns" + RATE


class CpuProcessesScreen(LensScreen):
    """Processes, with their system calls and the softirqs for their sockets; the rest belongs to no process."""

    about = "CPU time in the network stack by process, and what belongs to none"
    row_style = RowStyle(absent={"process": "(ended)"}, flags=row_flags)
    describable = True

    def headline(self, view: View) -> list[BarItem]:
        """Return the cost of the network stack, the number of processes, and the share of softirqs for no process."""
        is_process = view.known("pid")
        processes, others = (np.flatnonzero(~view.gone & these) for these in (is_process, ~is_process))
        items = [*network_share(view), headline.count("processes", len(processes), 800)]
        served, rest = (view.total(_SOFTIRQ, at) or 0.0 for at in (processes, others))
        share = Span(f"{percent(rest / (served + rest))} {NO_PROCESS}") if served + rest else None
        if view.snapshot.why_not(HOOK_SERVED.name) is not None:
            share = Span(f"all {NO_PROCESS}", Role.WARN)
        if share is not None:
            items.append(item(("softirqs ", Role.DIM), share, importance=700))
        return [*items, *syscalls_by_samples(view.snapshot)]


SCREEN = CpuProcessesScreen
