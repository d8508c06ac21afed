# SPDX-License-Identifier: Apache-2.0
"""The processes pane: who burns CPU time in the network stack."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu_headline import network_share, row_looks, syscalls_by_samples
from nettop.screens.lens import LensScreen
from nettop.snapshots.cpu import POINT_SERVED
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import Part, Piece, part
from nettop.widgets.cells import Manner
from nettop.widgets.themes import Role


class CpuProcessesScreen(LensScreen):
    """Processes: their own system calls, and the softirqs that served their sockets."""

    about: ClassVar[str] = "which processes the network stack works for"
    manner: ClassVar[Manner] = Manner(absent={"process": "(ended)"}, looks=row_looks)

    def headline(self, view: View) -> list[Part]:
        """What all of it costs, for how many processes, and how much of it is shared out."""
        at = np.flatnonzero(~view.gone)
        parts = [*network_share(view), headline.count("processes", len(at), 800)]
        served = [view.total(name + RATE, at) for name in ("served_ns", "shared_ns")]
        if view.snapshot.why_not(POINT_SERVED.name) is not None:
            parts.append(part(("softirqs ", Role.DIM), Piece("all shared out", Role.WARN), importance=700))
        elif served[1] and None not in served:
            share = f"{served[1] / sum(filter(None, served)) * 100:.0f} % shared out"
            parts.append(part(("softirqs ", Role.DIM), Piece(share, Role.TEXT), importance=700))
        return [*parts, *syscalls_by_samples(view.snapshot)]

    def describes(self, view: View, key: int) -> int | None:  # noqa: ARG002 - every process has its command line
        """The process: its source tells its command line."""
        return key


SCREEN = CpuProcessesScreen
