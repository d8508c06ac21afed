# SPDX-License-Identifier: Apache-2.0
"""What the headlines of the bandwidth lens's tables begin with."""

from __future__ import annotations

from nettop.query.units import human
from nettop.query.view import View
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.themes import Role


def host_rates(view: View) -> list[BarItem]:
    """What the host receives and sends: the sum of its uplinks, where it has any."""
    counts = view.snapshot.counts
    arrows = (("↓ ", Role.TOTAL_RECEIVED, "bytes_received"), ("↑ ", Role.TOTAL_SENT, "bytes_sent"))
    rates = [view.count_rate(name) if name in counts else None for _, _, name in arrows]
    items = [
        item(Span(arrow, role), human(rate, "bytes/s"))
        for rate, (arrow, role, _) in zip(rates, arrows, strict=True)
        if rate is not None
    ]
    return items if counts else [*items, item(("no uplink", Role.WARN), importance=950)]
