# SPDX-License-Identifier: Apache-2.0
"""The table of groups: sockets aggregated by process, remote, port …, including those that have closed."""

from __future__ import annotations

import numpy as np

from nettop.query.filter import quote
from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.churn import without_root
from nettop.screens.lens import LensScreen
from nettop.snapshots.connections import (
    ENDED_GROUPS,
    NO_GROUP,
    NOT_LISTED,
    OTHER_GROUPS,
    RETRANSMITS_WARN_ABOVE,
    SOCKETS,
)
from nettop.snapshots.schema import RATE
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.cells import RowStyle
from nettop.widgets.columns import as_rates
from nettop.widgets.themes import Role


class GroupsScreen(LensScreen):
    """Groups of sockets; → opens a group's sockets."""

    about = (
        "sockets by process, remote, network, port, container, namespace or state; → opens a group's sockets"
    )
    row_style = RowStyle(warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE})
    member_table = SOCKETS

    def headline(self, view: View) -> list[BarItem]:
        """Return the groups' traffic, their number and kind, and their connections."""
        at = np.arange(view.size)
        sent, received = (
            name if self.state.totals else as_rates(view.table, name)
            for name in ("bytes_sent", "bytes_received")
        )
        churn = [
            name if self.state.totals else as_rates(view.table, name)
            for name in ("opened", "closed", "failed")
        ]
        return [
            headline.sum_of(view, sent, Span("↑ ", Role.TOTAL_SENT), at),
            headline.sum_of(view, received, Span("↓ ", Role.TOTAL_RECEIVED), at),
            item((f"{len(view.now):,}", Role.BOLD), (f" by {view.now.variant}", Role.DIM), importance=980),
            *without_root(view),
            headline.count_of(view, "connections", "conns", at, 800),
            *(
                headline.count_of(view, name, name.removesuffix(RATE), at, 700 - n)
                for n, name in enumerate(churn)
            ),
        ]

    def member_filter(self, view: View, key: int) -> str | None:
        """Return the filter for a group's sockets, or None if they are not listed."""
        at = np.flatnonzero(view.raw(view.table.key) == key)
        group, pid, protocol, port = (
            view.values(name, at)[0] for name in ("group", "pid", "protocol", "port")
        )
        if group in (NOT_LISTED, OTHER_GROUPS, ENDED_GROUPS):
            return None
        value = UNKNOWN if group == NO_GROUP else quote(str(group))
        return {
            "process": f"pid={UNKNOWN if pid is None else pid}",
            "remote": f"remote_address={value}",
            "network": f"remote_address={value}",
            "port": f"protocol={protocol} :{port}",
            "netns": f"namespace={value}",
        }.get(view.now.variant, f"{view.now.variant}={value}")


SCREEN = GroupsScreen
