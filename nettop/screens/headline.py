# SPDX-License-Identifier: Apache-2.0
"""The lines around a table: first line, headline items, filter, footer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from nettop.query.units import RATIO, UNKNOWN, human, plural, unit_of
from nettop.query.view import View
from nettop.screens.actions import BY_ID, key_name
from nettop.screens.context import ScreenContext
from nettop.screens.history import TotalsHistory, sparkline_of
from nettop.screens.shown_frame import ShownFrame
from nettop.snapshots.arrays import Index
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE, Lens, Table
from nettop.snapshots.snapshot import NAMESPACES_PARTLY_SEEN, TICKS, Frame, Snapshot
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, fits, item
from nettop.widgets.cells import WARNING, role_of
from nettop.widgets.text import TextSpan, elide_end
from nettop.widgets.themes import Role

NARROW = 60
"""Width below which lens names shrink to digits, and the headline to the essentials."""

_HOST_CELLS = 24
_HISTORY_CELLS = (60, 40, 30, 24, 20, 15, 12, 10, 8)
"""Possible widths of the history in cells; each cell covers whole seconds."""
_PEAK, _PEAK_WIDTH = "peak ", 9
"""`1.93 Gb/s`"""
_ARROWS = {"sent": "↑", "received": "↓"}
_MARGINS = 5
"""Blank cells at both ends of a line and between its two groups."""
_NOUNS = {"events": "event", TICKS: "sample"}
"""Nouns for missed items; the help explains the items without one."""
_NAME_CELLS = 40
"""Width of the names of unavailable fields."""
_MIN_FILTER = 8
"""Minimum width of an elided filter."""


def first_line(
    context: ScreenContext, lens: Lens, width: int, shown: ShownFrame, cost: float | None
) -> tuple[list[BarItem], list[BarItem]]:
    """Return program, host and lenses at the left; interval, average and own cost at the right.

    The cost is a share of one CPU. Without BPF statistics the time of programs in the kernel is unknown.
    """
    program = item((" nettop ", Role.NAME), importance=25)
    host = item((f" {elide_end(context.host, _HOST_CELLS)} ", Role.DIM), importance=20)
    frozen = []
    passed_s = shown.late_s if shown.frozen_s is None else shown.frozen_s
    if passed_s is not None:
        ago = str(timedelta(seconds=int(passed_s))).removeprefix("0:")
        state = f"{WARNING} read" if shown.frozen_s is None else "❄ frozen"
        frozen = [item((f" {state} {ago} ago", Role.WARN))]
    limit = context.session.overhead_limit
    chosen, kept_s = interval_text(context.interval_s), context.session.kept_interval_s
    interval = item((f"⟳ {chosen}", Role.DIM), importance=40)
    if limit is not None and str(limit):  # --max-overhead stretched it
        interval = item((f"{WARNING} ⟳ {interval_text(limit.interval_s)}", Role.WARN), importance=40)
    elif kept_s > context.session.interval_s:  # readings take longer
        interval = item((f"{WARNING} ⟳ {interval_text(kept_s)}, not {chosen}", Role.WARN), importance=40)
    pace = [interval, *_average(context, shown.frame)]
    share = UNKNOWN if cost is None else human(cost, RATIO)
    uncounted = context.session.is_local and not context.session.counts_programs
    rest = "+hooks" if uncounted else "CPU"
    own_cost = [item((f"  cost {share} {rest}", Role.DIM), importance=30)]
    tabs = _tabs(context, lens, named=context.lenses)
    if width < NARROW or not fits([*tabs, *frozen], pace, width, gap=0):
        tabs = _tabs(context, lens, named=(lens,))
        if not fits([program, host, *tabs, *frozen], [*pace, *own_cost], width, gap=0):
            tabs = _tabs(context, lens, named=())
    return [program, host, *tabs, *frozen], [*pace, *own_cost]


def _average(context: ScreenContext, frame: Frame | None) -> list[BarItem]:
    """Return `avg 10 s`, `avg 4 of 10 s` until there are enough snapshots, or nothing if rates are not averaged."""
    if not context.is_averaging:
        return []
    before = None if frame is None else frame.before
    covered_s = 0 if frame is None or before is None else round((frame.now.boot_ns - before.boot_ns) / 1e9)
    so_far = "" if covered_s >= context.average_s else f"{covered_s} of "
    return [item((f"  avg {so_far}{context.average_s:g} s", Role.TEXT), importance=45)]


def _tabs(context: ScreenContext, shown: Lens, *, named: Collection[Lens]) -> list[BarItem]:
    """Return the lenses, by digit and name or by digit alone; the current one is marked and never dropped."""
    tabs = []
    for lens in context.lenses:
        name = f" {lens.digit} {lens.title} " if lens in named else f" {lens.digit} "
        role, importance = (Role.DIM if context.works(lens) else Role.FAINT), 500
        if lens.id == shown.id:
            role, importance = Role.TAB, ALWAYS_SHOWN
        tabs.append(item((name, role), importance=importance, action=f"app.lens({lens.digit})"))
    return tabs


def interval_text(interval_s: float) -> str:
    """Format seconds as in the first line: `0.5 s`, `2 s`, `5 min`."""
    return f"{round(interval_s, 1):g} s" if interval_s < 60 else f"{interval_s / 60:g} min"


def status_items(snapshot: Snapshot, late: int = 0) -> list[BarItem]:
    """Return the last items of a headline: losses, then any late refreshes, unavailable fields and gaps.

    Every virtual machine misses sampling ticks: while they are few, show only their share.
    """
    share, items = snapshot.missed_ticks, _missed(snapshot.notable_losses)
    if share is not None:
        text = ((human(share, RATIO), Role.TEXT), (" of samples missed", Role.DIM))
        items.insert(0, item(*text, importance=720))
    if late:
        items.append(item(("late ", Role.WARN), (f"{late:,}", Role.WARN)))
    items += unavailable(list(snapshot.missing))
    if gaps := len(snapshot.notable_gaps):
        items.append(item((f"!{gaps} {plural('gap', gaps)}", Role.WARN)))
    if namespaces := snapshot.counts.get(NAMESPACES_PARTLY_SEEN):
        noun = plural("namespace", namespaces)
        items.append(item((f"{namespaces:,} {noun} partly seen", Role.DIM), importance=50))
    return items


def _missed(losses: Mapping[str, int]) -> list[BarItem]:
    """Return `0 missed`, or `12 events missed`, which is never dropped; with a noun if only one kind was missed."""
    count, lost = sum(losses.values()), [name for name, number in losses.items() if number]
    if not count:
        return [item(("0 ", Role.TEXT), ("missed", Role.DIM), importance=940)]
    name = _NOUNS.get(lost[0]) if len(lost) == 1 else None
    nouns = [] if name is None else [item((plural(name, count), Role.BAD), importance=850, beside=True)]
    return [item((f"{count:,}", Role.BAD)), *nouns, item(("missed", Role.BAD), beside=True)]


def unavailable(names: Sequence[str]) -> list[BarItem]:
    """Return `2 n/a (drops, rtt)`, fields that this kernel does not provide; the names are dropped first."""
    if not names:
        return []
    listed = item((f"({elide_end(', '.join(names), _NAME_CELLS)})", Role.WARN), importance=85, beside=True)
    return [item((f"{len(names)} {NOT_AVAILABLE}", Role.WARN)), listed]


def losses(lens: Lens, snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the names of losses since the start, each with its amount and meaning."""
    helps = {name: f" {help_}" for name, help_ in lens.losses.items()}
    missed = snapshot.missed_ticks
    shares = {} if missed is None else {TICKS: f" ({human(missed, RATIO)} of all)"}
    return [
        (name, f"{number:,}{shares.get(name, '')}{helps.get(name, '')}")
        for name, number in snapshot.lost.items()
        if number
    ]


def count(label: str, number: int, importance: int, *, warn: bool = False) -> BarItem:
    """Return `label number`."""
    role = Role.WARN if warn else Role.TEXT
    return item((f"{label} ", Role.DIM), (f"{number:,}", role), importance=importance)


def evicted(view: View, name: str) -> list[BarItem]:
    """Return `evicted number` if this count of the source's is not 0."""
    number = view.snapshot.counts.get(name, 0)
    return [count("evicted", number, 960, warn=True)] if number else []


def alive(view: View) -> Index:
    """Return the rows of a view in its order, without those that are gone."""
    at: Index = view.order[~view.gone[view.order]]
    return at


def not_available(label: str, importance: int = ALWAYS_SHOWN) -> BarItem:
    """Return `label n/a`, for a number that this kernel does not provide."""
    return item((f"{label} ", Role.DIM), (NOT_AVAILABLE, Role.WARN), importance=importance)


def sum_of(view: View, name: str, label: TextSpan, at: Index, importance: int = ALWAYS_SHOWN) -> BarItem:
    """Return `label amount`, the total of a column over the rows at `at`; an empty item if it is unknown."""
    if name in view.missing:
        return item(label, NOT_AVAILABLE, importance=importance)
    total = view.total(name, at)
    amount = human(total, unit_of(view.table, name))
    return item() if total is None else item(label, amount, importance=importance)


def count_of(view: View, name: str, label: str, at: Index, importance: int) -> BarItem:
    """Return `label number`, the total of a column over the rows at `at`, with all digits."""
    if name in view.missing:
        return not_available(label, importance)
    total = view.total(name, at) if len(at) else 0
    per_second = "/s" if name.endswith(RATE) else ""
    return item((f"{label} ", Role.DIM), (format_rate(total) + per_second, Role.TEXT), importance=importance)


def format_rate(per_second: float | None) -> str:
    """Format a number of events per second, with one decimal below ten."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}" if per_second >= 10 or per_second == int(per_second) else f"{per_second:.1f}"


def third_line(
    lens: Lens, shown: Table, opened_from: Table | None, view: View | None, width: int
) -> list[BarItem]:
    """Return the tables of the lens, if it has several, then the filter."""
    names = _tables(lens, shown, opened_from) if len(lens.tables) > 1 else []
    if view is None or not view.query.filter.text:
        return names
    sign = "   / " if names else "/ "
    amount = item((f"   {rows_left(view)}", Role.TEXT))
    kept = sum(part.width for part in (*names, amount) if part.importance >= ALWAYS_SHOWN)
    text = elide_end(view.query.filter.text, max(_MIN_FILTER, width - 2 - kept - len(sign)))
    remarks = (item((f"   {remark}", Role.WARN), importance=2) for remark in view.filter_remarks)
    esc = item(("   Esc clears", Role.DIM), importance=1)
    return [*names, item((sign, Role.KEY), (text, Role.BOLD)), amount, *remarks, esc]


def history(totals: TotalsHistory, room: int) -> list[BarItem]:
    """Return `2 min peak  ↑ ▁▂█▃ 412 Mb/s  ↓ ▂▅▇█ 1.93 Gb/s` as wide as `room` allows; nothing after one reading."""
    arrows = [TextSpan(_ARROWS.get(field.tone, field.title), role_of(field)) for field in totals.fields]
    fixed = len(_PEAK) + sum(len(arrow.text) + _PEAK_WIDTH + 4 for arrow in arrows) + _MARGINS
    cells = next((cells for cells in _HISTORY_CELLS if fixed + cells * len(arrows) <= room), 0)
    if not cells or not totals.intervals:
        return []
    items = [item(("2 min ", Role.DIM), importance=-1), item((_PEAK, Role.DIM), importance=0)]
    for n, (field, arrow) in enumerate(zip(totals.fields, arrows, strict=True)):
        line, peak = sparkline_of(totals.intervals, n, cells)
        text = human(peak, unit_of(totals.table, field.name + RATE)).ljust(_PEAK_WIDTH)
        items.append(item((f" {arrow.text} ", arrow.role), (line, arrow.role), f" {text} ", importance=0))
    return items


def _tables(lens: Lens, shown: Table, opened_from: Table | None) -> list[BarItem]:
    """Return the tables of a lens, the current one marked, and the key for the next one."""
    items = []
    for table in lens.tables:
        is_shown = table.name == (opened_from or shown).name
        name = f"{table.name} → {shown.name}" if is_shown and opened_from not in (None, shown) else table.name
        role, importance = (Role.TAB, ALWAYS_SHOWN) if is_shown else (Role.DIM, 500)
        items.append(item((f" {name} ", role), importance=importance, action=f"app.table('{table.name}')"))
    key = TextSpan(f"  {key_name(BY_ID['next_table'].keys[0])}", Role.KEY)
    return [*items, item(key, (" next", Role.DIM), importance=400, action="app.next_table")]


def rows_left(view: View) -> str:
    """Return how many rows pass the filter: `3 of 60`, `3 of the newest 10,000`."""
    alive = ~view.gone
    newest = "the newest " if view.is_full else ""
    return f"{alive[view.order].sum():,} of {newest}{(view.scope & alive).sum():,}"
