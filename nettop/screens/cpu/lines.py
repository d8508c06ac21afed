# SPDX-License-Identifier: Apache-2.0
"""The lines around the flame graph: legend, other softirqs, path to the zoomed frame, chosen frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.query.cpu import FlameNode, StackCount
from nettop.query.units import RATIO, human
from nettop.query.view import View
from nettop.screens.cpu.entry_bars import GLYPHS, ROLES, CpuUse, percent
from nettop.screens.cpu.flame_graph import Path
from nettop.screens.cpu.headline import cores_of, samples
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.cpu import (
    CATEGORIES,
    CATEGORY_SHARES,
    CPUS,
    ENTRIES,
    TIME_OF,
    VECTORS,
    enables_interrupts,
)
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Snapshot, known
from nettop.widgets.bar import KEPT, BarItem, item
from nettop.widgets.cells import elide_end
from nettop.widgets.themes import Role

_WIDE_LEGEND = 144
"""From this width on the legend has the entry points' whole names."""
_TWO_GLYPHS = 72
"""From this width on the legend has two cells of each entry point's glyph."""
_CRUMB = 32
_HOTTEST, _NAME = 3, 40
LATE = "*"
"""Behind a function whose own samples are mostly of ticks that waited for interrupts to be enabled."""
_BESIDE_NAME = len(" most time in  * 100% ")
"""Cells beside the name of the only function."""
_LEAST_SHARE = 0.00005
"""Shares of a CPU below this would be shown as 0.00 %."""
_OTHER_VECTORS = tuple(name for name in VECTORS if name not in ("net_tx", "net_rx"))


def rows_of(view: View, cpu: int | None) -> Index:
    """The row of a CPU, or the rows of all that pass the filter, by number."""
    at = np.sort(view.order[~view.gone[view.order]])
    return at if cpu is None else at[view.raw("cpu")[at] == cpu]


def legend(view: View, at: Index, width: int) -> list[BarItem]:
    """The entry points as the bars show them, and their shares of the CPUs at `at`."""
    shares = {entry: _share(view, name, at) for entry, name in TIME_OF.items()}
    ranks = sorted(GLYPHS, key=lambda entry: shares[entry] or 0.0)
    items = []
    for n, entry in enumerate(GLYPHS):
        name, share = TIME_OF[entry], shares[entry]
        label = ENTRIES[entry] if width >= _WIDE_LEGEND else CPUS.by_name[name].title
        glyphs = f"{GLYPHS[entry] * 2} " if width >= _TWO_GLYPHS else GLYPHS[entry]
        sign = ((glyphs, ROLES[entry]), (label, Role.DIM))
        items.append(item(*sign, importance=900 - n, action=f"entry({entry})"))
        amount = NOT_AVAILABLE if name in view.missing else percent(share)
        role = Role.WARN if name in view.missing else Role.TEXT if share else Role.FAINT
        items.append(item((amount, role), importance=800 + ranks.index(entry), beside=True))
    items.append(item(("full bar: one CPU", Role.FAINT), importance=10))
    return items


def other_softirqs(view: View, at: Index) -> tuple[list[BarItem], list[BarItem]]:
    """Other softirqs' shares of the CPUs at `at`, and the kernel's own figure for all softirqs."""
    shares = {name: _share(view, f"{name}_ns", at) or 0.0 for name in _OTHER_VECTORS}
    largest = sorted((-share, name) for name, share in shares.items() if share >= _LEAST_SHARE)
    left = [item(("other softirqs", Role.FAINT))] if largest else []
    for n, (share, name) in enumerate(largest):
        texts = ((f"{name} ", Role.FAINT), (percent(-share), Role.DIM))
        left.append(item(*texts, importance=500 - n if n else KEPT))
    ticks = _share(view, "stat_softirq_ns", at)
    right = item(("all softirqs by /proc/stat ", Role.FAINT), (percent(ticks), Role.DIM), importance=900)
    return left, [] if ticks is None else [right]


def _share(view: View, name: str, at: Index) -> float | None:
    cores = cores_of(view, name, at)
    return None if cores is None or not len(at) else cores / len(at)


def crumbs(zoom: Path) -> list[BarItem]:
    """The path to the zoomed frame: its beginning and its end."""
    if not zoom:
        return [_zoomed("all entry points")]
    items = [_crumb((), "all")]
    if len(zoom) > 1:
        items.append(_crumb(zoom[:1], zoom[0]))
    if len(zoom) > 3:
        items.append(item(("… ›", Role.FAINT), beside=True))
    if len(zoom) > 2:
        items.append(_crumb(zoom[:-1], zoom[-2]))
    return [*items, _zoomed(zoom[-1])]


def _zoomed(name: str) -> BarItem:
    """The frame that takes the whole width."""
    return item((f" {elide_end(name, _CRUMB)} ", Role.TAB), beside=True)


def _crumb(path: Path, name: str) -> BarItem:
    """A frame on the path; a click zooms out to it."""
    spans = ((elide_end(name, _CRUMB), Role.DIM), (" ›", Role.FAINT))
    return item(*spans, importance=500 - min(100, len(path)), action=f"zoom({len(path)})", beside=True)


def frame_items(node: FlameNode, of: FlameNode, label: str, share: BarItem) -> list[BarItem]:
    """A frame's samples as a share of those `of` another, which has this label; `share` is that of CPU time."""
    all_of_it, own = human(node.samples / of.samples, RATIO), human(node.own_samples / of.samples, RATIO)
    items = [
        item((all_of_it, Role.BOLD), (f" of {elide_end(label, 24)}", Role.DIM)),
        samples(node.samples, 800),
        share,
        item(("itself ", Role.DIM), (own, Role.TEXT), importance=600),
    ]
    if node.own_samples and enables_interrupts(node.symbol):
        items.append(item((f"{LATE} ticks that waited for interrupts", Role.DIM), importance=590))
    return items


def cpu_uses(view: View) -> list[CpuUse]:
    """The time in each entry point, for each CPU that passes the filter."""
    at = rows_of(view, None)
    columns = {entry: view.column(name + RATE) for entry, name in TIME_OF.items()}
    cpus = as_list(view.raw("cpu")[at])
    return [
        CpuUse(cpu, {e: float(c.numbers[place]) / 1e9 for e, c in columns.items() if c.known[place]})
        for cpu, place in zip(cpus, as_list(at), strict=True)
    ]


def categories_not_available(snapshot: Snapshot) -> Mapping[int, str]:
    """The categories that this kernel cannot show, and why."""
    rows = snapshot.tables.get(CATEGORY_SHARES.name)
    if rows is None:
        return {}
    notes, lacking = rows.texts["note"], ~known(rows.array["samples"])
    pairs = zip(rows.array["category"][lacking].tolist(), rows.array["note"][lacking].tolist(), strict=True)
    reasons = [note.removeprefix(f"{NOT_AVAILABLE}: ") for note in notes]
    return {
        category: reasons[code] if code < len(reasons) else "reason unknown"
        for category, code in pairs
        if category in CATEGORIES
    }


def hottest_items(counts: Sequence[StackCount], total: int, width: int) -> list[BarItem]:
    """The functions with most samples of their own; in `width` cells there is room for at least one."""
    own = Counter[str]()
    for count in counts:
        own[count.frames[-1] if count.frames else "?"] += count.samples
    items = [item(("most time in", Role.DIM))]
    for n, (symbol, times) in enumerate(own.most_common(_HOTTEST)):
        share = human(times / max(1, total), RATIO)
        name = elide_end(symbol, min(_NAME, width - _BESIDE_NAME))
        mark = LATE if enables_interrupts(symbol) else ""
        items.append(item((f"{name}{mark} ", Role.TEXT), (share, Role.BOLD), importance=900 - n))
    if any(enables_interrupts(symbol) for symbol, _ in own.most_common(_HOTTEST)):
        items.append(item((f"{LATE} waited for interrupts", Role.DIM), importance=800))
    return [*items, item(("↓", Role.KEY), (" chooses a frame", Role.FAINT), importance=100)]
