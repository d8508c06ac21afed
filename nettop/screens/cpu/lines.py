# SPDX-License-Identifier: Apache-2.0
"""The lines of the CPU screen's picture: the legend, other softirqs, the way to what is zoomed into, a frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.query.cpu import FlameNode, StackCount
from nettop.query.units import RATIO, human
from nettop.query.view import View
from nettop.screens.cpu.entry_bars import GLYPHS, ROLES, CpuUse, percent
from nettop.screens.cpu.flame_graph import Path
from nettop.screens.cpu.headline import cores_of, counted
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.cpu import CATEGORIES, CATEGORY_SHARES, CPUS, ENTRIES, TIME_OF, VECTORS
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import NOT_AVAILABLE, Snapshot, known
from nettop.widgets.bar import KEPT, Part, part
from nettop.widgets.cells import elide_end
from nettop.widgets.themes import Role

_WIDE_LEGEND = 144
"""From this width on the legend has the entry points' whole names."""
_TWO_GLYPHS = 72
"""From this width on there is room for two cells of each entry point, and one behind them."""
_CRUMB = 32
_HOTTEST, _NAME = 3, 40
_AROUND_ONE = len(" most time in   100% ")
"""Cells beside the name, where one function is told of."""
_TOLD = 0.00005
"""Shares of a CPU below this would be told as 0.00 %."""
_OTHER_VECTORS = tuple(name for name in VECTORS if name not in ("net_tx", "net_rx"))


def rows_of(view: View, cpu: int | None) -> Index:
    """The row of a CPU, or those of all that pass the filter, by number."""
    at = np.sort(view.order[~view.gone[view.order]])
    return at if cpu is None else at[view.raw("cpu")[at] == cpu]


def legend(view: View, at: Index, width: int, scale: float) -> list[Part]:
    """Each entry point as it is drawn, and its share of the CPUs at `at`; `scale` is what a whole bar stands for."""
    shares = {entry: _share(view, name, at) for entry, name in TIME_OF.items()}
    ranks = sorted(GLYPHS, key=lambda entry: shares[entry] or 0.0)
    parts = []
    for n, entry in enumerate(GLYPHS):
        name, share = TIME_OF[entry], shares[entry]
        label = ENTRIES[entry] if width >= _WIDE_LEGEND else CPUS.by_name[name].title
        glyphs = f"{GLYPHS[entry] * 2} " if width >= _TWO_GLYPHS else GLYPHS[entry]
        sign = ((glyphs, ROLES[entry]), (label, Role.DIM))
        parts.append(part(*sign, importance=900 - n, action=f"entry({entry})"))
        amount = NOT_AVAILABLE if name in view.missing else percent(share)
        role = Role.WARN if name in view.missing else Role.TEXT if share else Role.FAINT
        parts.append(part((amount, role), importance=800 + ranks.index(entry), beside=True))
    if scale < 1 and any(share is not None for share in shares.values()):
        parts.append(part((f"whole bar {percent(scale)} of a CPU", Role.FAINT), importance=10))
    return parts


def other_softirqs(view: View, at: Index) -> tuple[list[Part], list[Part]]:
    """What other softirqs take of the CPUs at `at`, and what the kernel's own clock says of all softirqs."""
    shares = {name: _share(view, f"{name}_ns", at) or 0.0 for name in _OTHER_VECTORS}
    found = sorted((-share, name) for name, share in shares.items() if share >= _TOLD)
    left = [part(("other softirqs", Role.FAINT))] if found else []
    for n, (share, name) in enumerate(found):
        left.append(
            part((f"{name} ", Role.FAINT), (percent(-share), Role.DIM), importance=500 - n if n else KEPT)
        )
    ticks = _share(view, "stat_softirq_ns", at)
    right = part(("all softirqs by /proc/stat ", Role.FAINT), (percent(ticks), Role.DIM), importance=900)
    return left, [] if ticks is None else [right]


def _share(view: View, name: str, at: Index) -> float | None:
    """What a column is of the whole time of the CPUs at `at`."""
    cores = cores_of(view, name, at)
    return None if cores is None or not len(at) else cores / len(at)


def crumbs(zoom: Path) -> list[Part]:
    """The way from the whole to what is zoomed into: its beginning and its end."""
    if not zoom:
        return [_here("all entry points")]
    parts = [_crumb((), "all")]
    if len(zoom) > 1:
        parts.append(_crumb(zoom[:1], zoom[0]))
    if len(zoom) > 3:
        parts.append(part(("… ›", Role.FAINT), beside=True))
    if len(zoom) > 2:
        parts.append(_crumb(zoom[:-1], zoom[-2]))
    return [*parts, _here(zoom[-1])]


def _here(name: str) -> Part:
    """What takes the whole width now."""
    return part((f" {elide_end(name, _CRUMB)} ", Role.TAB), beside=True)


def _crumb(path: Path, name: str) -> Part:
    """A name on the way there; a click goes back to it."""
    pieces = ((elide_end(name, _CRUMB), Role.DIM), (" ›", Role.FAINT))
    return part(*pieces, importance=500 - min(100, len(path)), action=f"zoom({len(path)})", beside=True)


def frame_parts(node: FlameNode, root: FlameNode, named: str, share: Part) -> list[Part]:
    """What a function comes to, of all samples of `root`, which is `named` so; `share` tells of CPU time."""
    of, own = human(node.samples / root.samples, RATIO), human(node.own_samples / root.samples, RATIO)
    return [
        part((of, Role.BOLD), (f" of {elide_end(named, 24)}", Role.DIM)),
        counted("sample", node.samples, 800),
        share,
        part(("itself ", Role.DIM), (own, Role.TEXT), importance=600),
    ]


def cpu_uses(view: View) -> list[CpuUse]:
    """What each CPU that passes the filter spends in each entry point."""
    at = rows_of(view, None)
    columns = {entry: view.column(name + RATE) for entry, name in TIME_OF.items()}
    cpus = as_list(view.raw("cpu")[at])
    return [
        CpuUse(cpu, {e: float(c.numbers[place]) / 1e9 for e, c in columns.items() if c.known[place]})
        for cpu, place in zip(cpus, as_list(at), strict=True)
    ]


def categories_not_available(snapshot: Snapshot) -> Mapping[int, str]:
    """The categories of which this kernel has no function, and what its source says of that."""
    rows = snapshot.tables.get(CATEGORY_SHARES.name)
    if rows is None:
        return {}
    notes, lacking = rows.texts["note"], ~known(rows.array["samples"])
    pairs = zip(rows.array["category"][lacking].tolist(), rows.array["note"][lacking].tolist(), strict=True)
    return {one: _reason(notes, code) for one, code in pairs if one in CATEGORIES}


def _reason(notes: Sequence[str], code: int) -> str:
    """What a note says, without the words that stand before it."""
    return notes[code].removeprefix(f"{NOT_AVAILABLE}: ") if code < len(notes) else "not known"


def hottest_parts(counts: Sequence[StackCount], samples: int, width: int) -> list[Part]:
    """The functions that were met most often themselves; in `width` cells there is room for one at least."""
    met: Counter[str] = Counter()
    for one in counts:
        met[one.frames[-1] if one.frames else "?"] += one.samples
    parts = [part(("most time in", Role.DIM))]
    for n, (symbol, times) in enumerate(met.most_common(_HOTTEST)):
        share = human(times / max(1, samples), RATIO)
        name = elide_end(symbol, min(_NAME, width - _AROUND_ONE))
        parts.append(part((f"{name} ", Role.TEXT), (share, Role.BOLD), importance=900 - n))
    return [*parts, part(("↓", Role.KEY), (" chooses a frame", Role.FAINT), importance=100)]
