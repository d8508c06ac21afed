# SPDX-License-Identifier: Apache-2.0
"""The drops screen: what the kernel drops and why, and what it counts of that itself."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.drops import COUNTERS, PACKETS, REASONS
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.bar import Part, Piece, part
from nettop.widgets.cells import WARNING, Look, Manner
from nettop.widgets.themes import Role

_PER_SECOND = "packets/s"
_COUNTS = {
    "listen_overflows": "listen overflows",
    "udp_buffer_errors": "UDP buffer errors",
    "syn_drops": "SYN drops",
    "backlog_drops": "backlog drops",
    "device_drops": "device drops",
}
"""What the kernel counts itself, shown where it is more than nothing; the last ones leave first."""


def row_looks(view: View, at: Index) -> list[Look]:
    """Rows of which nothing was dropped in the last interval, those that harm nobody, and those that hurt."""
    rates = view.column("packets_per_s")
    idle = as_list(rates.known[at] & (rates.numbers[at] == 0))
    reasons = [REASONS.get(name) for name in view.values("reason", at)]
    rows = zip(as_list(view.gone[at]), idle, reasons, strict=True)
    return [
        Look(gone, is_idle, why is not None and why.harmless, why is not None and why.hurts and not is_idle)
        for gone, is_idle, why in rows
    ]


def why_empty(view: View) -> str:
    """Nothing was dropped, or the kernel lets nobody see it."""
    why = view.snapshot.why_unavailable(PACKETS)
    if why is None:
        return "nothing was dropped since this view was opened"
    return f"this kernel does not tell what it drops: {why}"


class DropsScreen(LensScreen):
    """What was dropped since the lens was opened."""

    manner: ClassVar[Manner] = Manner(
        failing={"reason": f"{WARNING} "},
        stale=frozenset({"place", "protocol", "family", "interface", "netns", "last_seen"}),
        looks=row_looks,
        nothing=why_empty,
    )

    def headline(self, view: View) -> list[Part]:
        """Drops a second, what most of them are for, and the kernel's own counters that are not at zero."""
        counts = view.snapshot.counts
        parts = _packets(view)
        if view.snapshot.why_unavailable(COUNTERS) is not None:
            return [*parts, headline.not_here("counters", 80)]
        for place, (name, label) in enumerate(_COUNTS.items()):
            if counts.get(name):
                parts.append(_counter(label, counts[name], view.count_rate(name), 80 - place))
        return parts


def _packets(view: View) -> list[Part]:
    """What the hook on every dropped packet counts."""
    drops = view.snapshot.counts.get("drops")
    if drops is None or view.snapshot.why_unavailable(PACKETS) is not None:
        return [headline.not_here("drops")]
    return [
        part(("drops ", Role.DIM), (human(view.count_rate("drops"), _PER_SECOND), Role.BOLD)),
        *_most(top_reason(view.frame)),
        part((f"{drops:,}", Role.TEXT), (" in all", Role.DIM), importance=85),
    ]


def top_reason(frame: Frame) -> str | None:
    """The reason that most packets were dropped for in the last interval; None when none was dropped."""
    if frame.before is None:
        return None
    added = by_reason(frame.now) - by_reason(frame.before)
    return added.most_common(1)[0][0] if added else None


def by_reason(snapshot: Snapshot) -> Counter[str]:
    """How many packets were dropped for each reason; where the kernel tells none, at each place; else nothing."""
    rows, missing = snapshot.tables[PACKETS.name], snapshot.missing
    name = next((one for one in ("reason", "place") if one not in missing), None)
    if name is None or "packets" in missing:
        return Counter()
    texts, found = rows.texts[name], Counter[str]()
    for code, packets in zip(rows.array[name].tolist(), rows.array["packets"].tolist(), strict=True):
        if code < len(texts):
            found[texts[code]] += packets
    return found


def _most(reason: str | None) -> list[Part]:
    if reason is None:
        return []
    hurts = reason in REASONS and REASONS[reason].hurts
    piece = Piece(f"{WARNING} {reason}", Role.BAD) if hurts else Piece(reason, Role.TEXT)
    return [part(("most ", Role.DIM), piece, importance=90)]


def _counter(label: str, packets: int, rate: float | None, importance: int) -> Part:
    """`label 1,234`; while it grows, `▲ +56 p/s` behind it."""
    if not rate:
        return headline.count(label, packets, importance)
    grows = Piece(f" {WARNING} +{human(rate, _PER_SECOND)}", Role.BAD)
    return part((f"{label} ", Role.DIM), (f"{packets:,}", Role.TEXT), grows, importance=importance)


SCREEN = DropsScreen
