# SPDX-License-Identifier: Apache-2.0
"""The lines around the flame graph: legend, other softirqs, path to the zoomed frame, selected frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.query.units import RATIO, human
from nettop.query.view import View
from nettop.screens.cpu.bars import GLYPHS, ROLES, CpuUse, percent
from nettop.screens.cpu.flame_graph import Path
from nettop.screens.cpu.tables import cores_of, samples
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
from nettop.snapshots.hosts import HOST
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Snapshot, known
from nettop.stacks.counts import FlameNode, StackCount
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, item
from nettop.widgets.text import elide_end
from nettop.widgets.themes import Role

_WIDE_LEGEND = 144
"""Width from which the legend shows the entry points' full names."""
_TWO_GLYPHS = 72
"""Width from which the legend shows two cells of each entry point's glyph."""
_CRUMB_CELLS = 32
_HOTTEST, _NAME_CELLS = 3, 40
LATE = "*"
"""Mark of a function whose own samples are mostly ticks that waited for interrupts to be enabled."""
_BESIDE_NAME = len(" most time in  * 100% ")
"""Cells besides the name if only one function fits."""
_MIN_SHARE = 0.00005
"""Smallest share of a CPU that is shown: below it would read 0.00 %."""
_OTHER_VECTORS = tuple(name for name in VECTORS if name not in ("net_tx", "net_rx"))


def rows_of(view: View, cpu: int | None) -> Index:
    """Return the row of a CPU, or the rows of all that pass the filter, by number."""
    at = np.sort(view.order[~view.gone[view.order]])
    return at if cpu is None else at[view.raw("cpu")[at] == cpu]


def legend(view: View, at: Index, width: int) -> list[BarItem]:
    """Return the entry points as shown in the bars, and their shares of the CPUs at `at`."""
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
    """Return other softirqs' shares of the CPUs at `at`, and the kernel's own figure for all softirqs."""
    shares = {name: _share(view, f"{name}_ns", at) or 0.0 for name in _OTHER_VECTORS}
    largest = sorted((-share, name) for name, share in shares.items() if share >= _MIN_SHARE)
    left = [item(("other softirqs", Role.FAINT))] if largest else []
    for n, (share, name) in enumerate(largest):
        texts = ((f"{name} ", Role.FAINT), (percent(-share), Role.DIM))
        left.append(item(*texts, importance=500 - n if n else ALWAYS_SHOWN))
    ticks = _share(view, "stat_softirq_ns", at)
    right = item(("all softirqs by /proc/stat ", Role.FAINT), (percent(ticks), Role.DIM), importance=900)
    return left, [] if ticks is None else [right]


def _share(view: View, name: str, at: Index) -> float | None:
    cores = cores_of(view, name, at)
    return None if cores is None or not len(at) else cores / len(at)


def crumbs(zoom: Path) -> list[BarItem]:
    """Return the start and the end of the path to the zoomed frame."""
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
    """Return the item of the zoomed frame."""
    return item((f" {elide_end(name, _CRUMB_CELLS)} ", Role.TAB), beside=True)


def _crumb(path: Path, name: str) -> BarItem:
    """Return the item of a frame on the path; a click zooms out to it."""
    spans = ((elide_end(name, _CRUMB_CELLS), Role.DIM), (" ›", Role.FAINT))
    return item(*spans, importance=500 - min(100, len(path)), action=f"zoom({len(path)})", beside=True)


def frame_items(node: FlameNode, of: FlameNode, label: str, share: BarItem) -> list[BarItem]:
    """Return a frame's samples as a share of the samples of `of`, which has this label, and its `share` of CPU time."""
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
    """Return the time in each entry point for each CPU that passes the filter."""
    at = rows_of(view, None)
    columns = {entry: view.column(name + RATE) for entry, name in TIME_OF.items()}
    cpus = as_list(view.raw("cpu")[at])
    hosts = view.values(HOST.name, at) if HOST.name in view.table.by_name else [""] * len(at)
    return [
        CpuUse(cpu, {e: float(c.numbers[place]) / 1e9 for e, c in columns.items() if c.known[place]}, host)
        for cpu, place, host in zip(cpus, as_list(at), hosts, strict=True)
    ]


def categories_not_available(snapshot: Snapshot) -> Mapping[int, str]:
    """Return the categories that this kernel does not provide, and why."""
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
    """Return the functions with the most samples of their own, at least one of which fits in `width` cells."""
    own = Counter[str]()
    for count in counts:
        own[count.frames[-1] if count.frames else "?"] += count.samples
    items = [item(("most time in", Role.DIM))]
    for n, (symbol, times) in enumerate(own.most_common(_HOTTEST)):
        share = human(times / max(1, total), RATIO)
        name = elide_end(symbol, min(_NAME_CELLS, width - _BESIDE_NAME))
        mark = LATE if enables_interrupts(symbol) else ""
        items.append(item((f"{name}{mark} ", Role.TEXT), (share, Role.BOLD), importance=900 - n))
    if any(enables_interrupts(symbol) for symbol, _ in own.most_common(_HOTTEST)):
        items.append(item((f"{LATE} waited for interrupts", Role.DIM), importance=800))
    return [*items, item(("↓", Role.KEY), (" selects a frame", Role.FAINT), importance=100)]
