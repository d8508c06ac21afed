# SPDX-License-Identifier: Apache-2.0
"""What the first line of every table of the lens `cpu` tells: what the network stack costs, and how that is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.entry_bars import percent
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.cpu import CPUS, HOOK_SAMPLES, HOOK_SYSCALLS
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.bar import Part, part
from nettop.widgets.cells import Look
from nettop.widgets.themes import Role

_NETWORK = "network_ns"


def row_looks(view: View, at: Index) -> list[Look]:
    """Rows for which the network took no time in the last interval."""
    shares = view.column(_NETWORK + RATE)
    idle = as_list(shares.known[at] & (shares.numbers[at] == 0))
    return [Look(gone, is_idle) for gone, is_idle in zip(as_list(view.gone[at]), idle, strict=True)]


def network_share(view: View) -> list[Part]:
    """`network 14.2 % of 16 CPUs (2.27 cores)`, whatever table the view is of."""
    cores, cpus = network_cores(view.frame)
    parts = [part(("network ", Role.DIM), (percent(cores / cpus if cores is not None else None), Role.BOLD))]
    parts.append(part((f"of {cpus_in_words(cpus)}", Role.DIM), importance=950, beside=True))
    if cores is not None:
        parts.append(part((f"({cores:.2f} cores)", Role.DIM), importance=940, beside=True))
    return parts


def network_cores(frame: Frame) -> tuple[float | None, int]:
    """How many CPUs' whole time the network stack took in the last interval, and how many there are."""
    if frame.now.tables.get(CPUS.name) is None:
        return None, 0
    view = View(frame, replace(screen_query(CPUS), closed=False))
    return cores_of(view, _NETWORK, np.arange(view.size)), view.size


def sampling(snapshot: Snapshot) -> list[Part]:
    """How often CPUs were looked at, how often they were met there, and what has no name; what is not exact."""
    counts = snapshot.counts
    if snapshot.why_not(HOOK_SAMPLES.name) is not None:
        return [headline.not_here("samples", 900)]
    parts = []
    if "frequency_hz" in counts:
        parts.append(
            part(("sampled ", Role.DIM), (f"{counts['frequency_hz']:,} Hz", Role.TEXT), importance=700)
        )
    if "samples" in counts:
        parts.append(counted("sample", counts["samples"], 710))
        unresolved = counts.get("unresolved", snapshot.lost.get("unresolved"))
        if unresolved is not None and counts["samples"]:
            share = human(unresolved / counts["samples"], RATIO)
            parts.append(part(("unresolved ", Role.DIM), (share, Role.TEXT), importance=600))
    return [*parts, *syscalls_by_samples(snapshot)]


def syscalls_by_samples(snapshot: Snapshot) -> list[Part]:
    """That the times of system calls are not exact; nothing where they are."""
    hook = snapshot.hook(HOOK_SYSCALLS.name)
    if hook is None or hook.mechanism != HOOK_SAMPLES.name:
        return []
    return [part(("syscalls ", Role.DIM), ("by samples", Role.TEXT), importance=690)]


def cores_of(view: View, name: str, at: Index) -> float | None:
    """How many CPUs' whole time a column took; None where that is not known."""
    ns_per_s = view.total(name + RATE, at)
    return None if ns_per_s is None else ns_per_s / 1e9


def counted(noun: str, count: int, importance: int) -> Part:
    """`1,264 samples`"""
    return part((f"{count:,}", Role.TEXT), (f" {plural(noun, count)}", Role.DIM), importance=importance)


def cpus_in_words(count: int) -> str:
    """`16 CPUs`"""
    return f"{count} {plural('CPU', count)}"
