# SPDX-License-Identifier: Apache-2.0
"""The drops screen: dropped packets by reason, and the kernel's own counters of drops."""

from __future__ import annotations

from collections import Counter

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, Mask
from nettop.snapshots.drops import COUNTERS, ORDINARY, PACKETS, REASONS, TROUBLE
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import WARNING, RowFlags, RowStyle, flags_of, is_zero
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role

_PER_SECOND = "packets/s"
_COUNTS = {
    "listen_overflows": "listen overflows",
    "udp_buffer_errors": "UDP buffer errors",
    "syn_drops": "SYN drops",
    "backlog_drops": "backlog drops",
    "device_drops": "device drops",
}
"""The kernel's own counters, from its start on, shown if they are not 0; the last ones are dropped first if room is
short."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: idle without drops in the last interval, quiet if ordinary, failed if trouble."""
    idle, severity = is_zero(view, "packets_per_s", at), view.raw("severity")[at]
    return flags_of(view, at, idle=idle, quiet=severity == ORDINARY, failed=(severity == TROUBLE) & ~idle)


class DropsScreen(LensScreen):
    """Packets dropped since the lens was opened."""

    row_style = RowStyle(
        failing={"reason": f"{WARNING} "},
        stale=frozenset(
            {"place", "protocol", "family", "port", "process", "interface", "namespace", "last_seen"}
        ),
        flags=row_flags,
        empty="nothing was dropped since this view was opened",
        lacking="dropped packets are not available",
    )

    def headline(self, view: View) -> list[BarItem]:
        """Return drops per second, their main reason, and the kernel's own counters that are not 0."""
        counts = view.snapshot.counts
        parts = _packets(view)
        if view.snapshot.why_unavailable(COUNTERS) is not None:
            return [*parts, headline.not_available("counters", 80)]
        counted = [name for name in _COUNTS if counts.get(name)]
        for place, name in enumerate(counted):
            rate = view.count_rate(name)
            grows = [TextSpan(f" {WARNING} +{human(rate, _PER_SECOND)}", Role.BAD)] if rate else []
            label = f"{_COUNTS[name]} " if place else f"since boot: {_COUNTS[name]} "
            amount = [TextSpan(label, Role.DIM), TextSpan(f"{counts[name]:,}"), *grows]
            parts.append(item(*amount, importance=80 - place))
        return parts


def _packets(view: View) -> list[BarItem]:
    """Return drops per second, separately for ordinary ones, the main reason, and the total."""
    drops = view.snapshot.counts.get("drops")
    if drops is None or view.snapshot.why_unavailable(PACKETS) is not None:
        return [headline.not_available("drops")]
    packets = view if view.table.name == PACKETS.name else View(view.frame, screen_query(PACKETS))
    is_ordinary = packets.raw("severity") == ORDINARY
    items = [item(("drops ", Role.DIM), (_rate(packets, ~is_ordinary), Role.BOLD))]
    if is_ordinary.any():
        items.append(item(("ordinary ", Role.DIM), (_rate(packets, is_ordinary), Role.TEXT), importance=88))
    reason = top_reason(view.frame)
    if reason is not None:
        is_trouble = reason in REASONS and REASONS[reason].severity == TROUBLE
        reason_span = TextSpan(f"{WARNING} {reason}", Role.BAD) if is_trouble else TextSpan(reason)
        items.append(item(("mostly ", Role.DIM), reason_span, importance=90))
    return [*items, item((f"{drops:,}", Role.TEXT), (" since opened", Role.DIM), importance=85)]


def _rate(packets: View, which: Mask) -> str:
    """Return drops per second in these rows."""
    rate = packets.total("packets_per_s", np.flatnonzero(which))
    return human(0.0 if rate is None and packets.elapsed_s else rate, _PER_SECOND)


def top_reason(frame: Frame) -> str | None:
    """Return the most frequent reason of non-ordinary drops in the last interval, or None if there were none."""
    if frame.before is None or PACKETS.name not in frame.before.tables:  # other hosts had no reading before
        return None
    added = by_reason(frame.now) - by_reason(frame.before)
    return added.most_common(1)[0][0] if added else None


def by_reason(snapshot: Snapshot) -> Counter[str]:
    """Return non-ordinary drops by reason, by place if the kernel gives no reasons, or nothing without either."""
    rows, missing = snapshot.tables[PACKETS.name], snapshot.missing
    name = next((field for field in ("reason", "place") if field not in missing), None)
    if name is None or "packets" in missing:
        return Counter()
    texts, drops = rows.texts[name], Counter[str]()
    array = rows.array[rows.array["severity"] != ORDINARY]
    for code, packets in zip(array[name].tolist(), array["packets"].tolist(), strict=True):
        if code < len(texts):
            drops[texts[code]] += packets
    return drops


SCREENS = {"packets": DropsScreen}
