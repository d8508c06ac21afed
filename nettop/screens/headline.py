# SPDX-License-Identifier: Apache-2.0
"""The lines of the frame: the first one, what every headline ends in, the filter, the footer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nettop.query.units import RATIO, UNKNOWN, human, unit_of
from nettop.query.view import View
from nettop.screens.actions import ACTIONS, BY_ID, Action, call, key_name
from nettop.screens.context import ScreenContext
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import NOT_AVAILABLE, TICKS, Snapshot
from nettop.widgets.bar import KEPT, Part, Piece, fits, part
from nettop.widgets.cells import WARNING, elide_end
from nettop.widgets.themes import Role

NARROW = 60
"""Below this many columns the lens names shrink to digits and the headline to the essential."""

_HOST = 24
_WAYS = {"iter": "iterator", "sock_diag + ": "sock_diag"}
_LEAST_FILTER = 8
"""Cells of a filter that is too long to be shown whole, at least."""


def first_line(
    context: ScreenContext, shown: Lens, width: int, frozen_s: float | None, cost: float | None
) -> tuple[list[Part], list[Part]]:
    """Program, host and lenses at the left; what the watching itself costs (a share of one CPU) at the right."""
    program = part((" nettop ", Role.NAME))
    host = part((f" {elide_end(context.host, _HOST)} ", Role.DIM), importance=20)
    frozen = [] if frozen_s is None else [part((f" ❄ frozen {_ago(frozen_s)} ago", Role.WARN))]
    interval = _interval(context)
    tabs = _tabs(context, shown, named=True)
    if width < NARROW or not fits([program, *tabs, *frozen], [interval], width, gap=0):
        tabs = _tabs(context, shown, named=False)
    price = [] if cost is None else [part((f"  cost {cost * 100:.1f} % cpu ", Role.DIM), importance=30)]
    return [program, host, *tabs, *frozen], [interval, *price]


def _tabs(context: ScreenContext, shown: Lens, *, named: bool) -> list[Part]:
    """The lenses, by digit and name or by the digit alone; the one in sight, which never leaves, marked."""
    tabs = []
    for lens in context.lenses:
        name = f" {lens.digit} {lens.title} " if named else f" {lens.digit} "
        role, importance = (Role.TAB, KEPT) if lens.id == shown.id else (Role.DIM, 500)
        tabs.append(part((name, role), importance=importance, action=f"app.lens({lens.digit})"))
    return tabs


def _interval(context: ScreenContext) -> Part:
    """The interval; marked where --max-overhead made it longer than it was asked for, or left something out."""
    limit = context.session.overhead_limit
    if limit is None or not str(limit):
        return part((f"⟳ {interval_text(context.interval_s)}", Role.DIM), importance=40)
    return part((f"{WARNING} ⟳ {interval_text(limit.interval_s)}", Role.WARN), importance=40)


def interval_text(interval_s: float) -> str:
    """Seconds as the first line shows them: `0.5 s`, `2.0 s`, `5 min`."""
    return f"{interval_s:.1f} s" if interval_s < 60 else f"{interval_s / 60:g} min"


def _ago(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def ending(snapshot: Snapshot, late: int = 0) -> list[Part]:
    """What was lost, always; refreshes skipped, fields that this kernel lacks and what else cannot be seen, where
    there are any. Ticks are lost on every virtual machine: as long as they are few, only their share is told.
    """
    lost, missed = snapshot.lost_in_all, snapshot.missed_ticks
    role = Role.BAD if lost else Role.TEXT
    parts = [part(("lost ", Role.BAD if lost else Role.DIM), (f"{lost:,}", role))]
    if missed is not None:
        parts.insert(0, part(("ticks missed ", Role.DIM), (human(missed, RATIO), Role.TEXT), importance=720))
    if late:
        parts.append(part(("late ", Role.WARN), (f"{late:,}", Role.WARN)))
    if snapshot.missing:
        parts.append(part((f"!{len(snapshot.missing)} n/a", Role.WARN)))
    if snapshot.gaps:
        parts.append(part((f"!{len(snapshot.gaps)} unseen", Role.WARN)))
    return parts


def losses(lens: Lens, snapshot: Snapshot) -> list[tuple[str, str]]:
    """What was lost since the start: by name, how much of it and what that is."""
    helps = {loss.name: f" {loss.help}" for loss in lens.losses}
    missed = snapshot.missed_ticks
    shares = {} if missed is None else {TICKS: f" ({human(missed, RATIO)} of all)"}
    return [
        (name, f"{number:,}{shares.get(name, '')}{helps.get(name, '')}")
        for name, number in snapshot.lost.items()
        if number
    ]


def via(lens: Lens, snapshot: Snapshot) -> list[Part]:
    """How each table is come by, in a word; the first to leave when room is short. Help has the whole names."""
    points = dict.fromkeys(table.hook or table.name for table in lens.tables)
    known = [(point, snapshot.via[point]) for point in points if point in snapshot.via]
    main = lens.main.hook or lens.main.name
    mechanisms = [_way(way) if point == main else f"{point} {_way(way)}" for point, way in known]
    return (
        [part(("via: ", Role.FAINT), (" · ".join(mechanisms), Role.DIM), importance=1)] if mechanisms else []
    )


def _way(way: str) -> str:
    """`tp_btf/inet_sock_set_state` in a word; a path as it is, and of what is not on this kernel only that."""
    if way.startswith(NOT_AVAILABLE):
        return NOT_AVAILABLE
    kind = way if way.startswith("/") else way.partition("/")[0]
    return _WAYS.get(kind, kind)


def count(label: str, number: int, importance: int, *, warn: bool = False) -> Part:
    """`label number`."""
    return part(
        (f"{label} ", Role.DIM), (f"{number:,}", Role.WARN if warn else Role.TEXT), importance=importance
    )


def not_here(label: str, importance: int = KEPT) -> Part:
    """`label n/a`, in place of what this kernel does not tell."""
    return part((f"{label} ", Role.DIM), (NOT_AVAILABLE, Role.WARN), importance=importance)


def sum_of(view: View, name: str, sign: Piece, at: Index, importance: int = KEPT) -> Part:
    """`sign amount`: the total of a column over the rows at `at`."""
    total = human(view.total(name, at), unit_of(view.table, name))
    return part(sign, NOT_AVAILABLE if name in view.missing else total, importance=importance)


def count_of(view: View, name: str, label: str, at: Index, importance: int) -> Part:
    """`label number`: the total of a column over the rows at `at`, all digits of it."""
    if name in view.missing:
        return not_here(label, importance)
    total = view.total(name, at) if len(at) else 0
    return part((f"{label} ", Role.DIM), (few(total), Role.TEXT), importance=importance)


def rate(label: str, per_second: float | None, importance: int = KEPT) -> Part:
    """`label 31/s`."""
    return part((f"{label} ", Role.DIM), (f"{few(per_second)}/s", Role.TEXT), importance=importance)


def churn(*per_second: float | None) -> list[Part]:
    """`(+31/s −29/s)`, or `(+31/s)`, beside what it is of; nothing before that is known."""
    known = [f"{few(one)}/s" for one in per_second if one is not None]
    return _churn(known) if len(known) == len(per_second) else []


def no_churn(amounts: int) -> list[Part]:
    """`(+n/a −n/a)`: this kernel does not tell what comes and goes."""
    return _churn([NOT_AVAILABLE] * amounts)


def _churn(amounts: Sequence[str]) -> list[Part]:
    signed = " ".join(map("".join, zip("+−", amounts, strict=False)))
    return [part((f"({signed})", Role.DIM), importance=950, beside=True)]


def few(per_second: float | None) -> str:
    """How many a second, of things of which there are few: with a decimal below ten."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == int(per_second) else f"{per_second:.1f}"


def third_line(lens: Lens, shown: Table, within: Table | None, view: View | None, width: int) -> list[Part]:
    """The tables of the lens where there are several, then the filter that holds."""
    names = _tables(lens, shown, within)
    if view is None or not view.query.filter.text:
        return names
    room = width - 2 - sum(one.width for one in names if one.importance >= KEPT)
    return [*names, *_filter(view, "   / " if names else "/ ", room)]


def _tables(lens: Lens, shown: Table, within: Table | None) -> list[Part]:
    """The names of a lens's tables, the one in sight marked, and the key that goes from one to the next."""
    parts = []
    for table in lens.tables:
        here = table.name == (within or shown).name
        name = f"{table.name} → {shown.name}" if here and within not in (None, shown) else table.name
        role, importance = (Role.TAB, KEPT) if here else (Role.DIM, 500)
        parts.append(part((f" {name} ", role), importance=importance, action=f"app.table('{table.name}')"))
    key = key_name(BY_ID["next_table"].keys[0])
    parts.append(part((f"  {key}", Role.KEY), (" next", Role.DIM), importance=400, action="app.next_table"))
    return parts if len(lens.tables) > 1 else []


def _filter(view: View, sign: str, room: int) -> list[Part]:
    """The filter, cut so that it fits `room` cells with the rest: how many of how many rows it leaves."""
    here = ~view.gone
    left, among = int(here[view.order].sum()), int((view.scope & here).sum())
    amount = part((f"   {left:,} of {among:,}", Role.TEXT))
    text = elide_end(view.query.filter.text, max(_LEAST_FILTER, room - amount.width - len(sign)))
    return [
        part((sign, Role.KEY), (text, Role.BOLD)),
        amount,
        *(part((f"   {remark}", Role.WARN), importance=2) for remark in view.filter_remarks),
        part(("   Esc clears", Role.DIM), importance=1),
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
