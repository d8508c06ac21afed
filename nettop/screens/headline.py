# SPDX-License-Identifier: Apache-2.0
"""The lines of the frame: the first one, what every headline ends in, the filter, the footer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens.actions import ACTIONS, Action, call, key_name
from nettop.screens.desk import Desk
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import KEPT, Part, Piece, part
from nettop.widgets.cells import elide_end
from nettop.widgets.themes import Role

NARROW = 60
"""Below this many columns the lens names shrink to digits and the headline to the essential."""

_HOST = 24


def first_line(desk: Desk, shown: Lens, width: int, frozen_s: float | None) -> tuple[list[Part], list[Part]]:
    """Program, host and lenses at the left; what the watching itself costs at the right."""
    left = [
        part((" nettop ", Role.NAME)),
        part((f" {elide_end(desk.host, _HOST)} ", Role.DIM), importance=20),
    ]
    for lens in desk.lenses:
        name = lens.digit if width < NARROW else f"{lens.digit} {lens.title}"
        role = Role.TAB if lens.id == shown.id else Role.DIM
        left.append(part((f" {name} ", role), importance=500, action=f"lens({lens.digit})"))
    if frozen_s is not None:
        left.append(part((f" ❄ frozen {_ago(frozen_s)} ago", Role.WARN)))
    cost = desk.cost()
    right = [part((f"⟳ {interval_text(desk.interval_s)}", Role.DIM), importance=40)]
    if cost is not None:
        right.append(part((f"  cost {cost * 100:.1f} % cpu ", Role.DIM), importance=30))
    return left, right


def interval_text(interval_s: float) -> str:
    """Seconds as the first line shows them: `0.5 s`, `2.0 s`, `5 min`."""
    return f"{interval_s:.1f} s" if interval_s < 60 else f"{interval_s / 60:g} min"


def _ago(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def ending(snapshot: Snapshot, late: int = 0) -> list[Part]:
    """What was lost, always; refreshes skipped and fields that this kernel lacks, where there are any."""
    lost = sum(snapshot.lost.values())
    role = Role.BAD if lost else Role.TEXT
    parts = [part(("lost ", Role.BAD if lost else Role.DIM), (f"{lost:,}", role))]
    if late:
        parts.append(part(("late ", Role.WARN), (f"{late:,}", Role.WARN)))
    if snapshot.missing:
        parts.append(part((f"!{len(snapshot.missing)} n/a", Role.WARN)))
    return parts


def via(snapshot: Snapshot) -> list[Part]:
    """Which hook gave what, the first to leave when room is short."""
    if not snapshot.via:
        return []
    ways = " · ".join(dict.fromkeys(snapshot.via.values()))
    return [part(("via: ", Role.FAINT), (ways, Role.DIM), importance=1)]


def count(label: str, number: int, importance: int, *, warn: bool = False) -> Part:
    """`label number`."""
    return part(
        (f"{label} ", Role.DIM), (f"{number:,}", Role.WARN if warn else Role.TEXT), importance=importance
    )


def sum_of(view: View, name: str, sign: Piece, at: Index, importance: int = KEPT) -> Part:
    """`sign amount`: the total of a column over the rows at `at`."""
    amount = human(view.total(name, at), unit_of(view.table, name))
    return part(sign, amount, importance=importance)


def filter_line(view: View) -> list[Part]:
    """The filter that holds, and how many of how many rows it leaves."""
    here = ~view.gone
    left, among = int(here[view.order].sum()), int((view.scope & here).sum())
    return [
        part(("/ ", Role.KEY), (view.query.filter.text, Role.BOLD)),
        part((f"{left:,} of {among:,}", Role.TEXT)),
        part(("Esc clears", Role.DIM), importance=1),
    ]


def footer(works: Callable[[Action], bool], label_of: Callable[[Action], str]) -> Sequence[Part]:
    """The keys that work now, the least important leave first."""
    return [
        part(
            (key_name(a.keys[0]), Role.KEY),
            (f" {label_of(a)}", Role.DIM),
            importance=a.footer,
            action=call(a),
        )
        for a in ACTIONS
        if 0 < a.footer < KEPT and works(a)
    ]
