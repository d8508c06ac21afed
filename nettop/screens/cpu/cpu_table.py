# SPDX-License-Identifier: Apache-2.0
"""Headline items of the lens `cpu`: the cost of the network stack, and how it is measured."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.cpu import CPUS, HOOK_SAMPLES, HOOK_SYSCALLS
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import idle_where_zero
from nettop.widgets.themes import Role

_NETWORK = "network_ns"


row_flags = partial(idle_where_zero, _NETWORK + RATE)
"""Function that returns row flags: idle without network time in the last interval."""


class CpuTable(LensScreen):
    """A table of the lens; subclasses only declare their differences."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the cost of the network stack, and how it is measured."""
        return [*network_share(view), *sampling(view.snapshot)]


def network_share(view: View) -> list[BarItem]:
    """Return `network 14.2 % of 16 CPUs (2.27 cores)`; the view may be of any table."""
    cores, cpus = network_cores(view.frame)
    items = [item(("network ", Role.DIM), (percent(cores / cpus if cores is not None else None), Role.BOLD))]
    items.append(item((f"of {cpu_count_text(cpus)}", Role.DIM), importance=950, beside=True))
    if cores is not None:
        items.append(item((f"({cores:.2f} cores)", Role.DIM), importance=940, beside=True))
    return items


def network_cores(frame: Frame) -> tuple[float | None, int]:
    """Return the network stack's CPU time in the last interval, in CPUs, and the number of CPUs."""
    if frame.now.tables.get(CPUS.name) is None:
        return None, 0
    view = View(frame, replace(screen_query(CPUS), gone=False))
    return cores_of(view, _NETWORK, np.arange(view.size)), view.size


def sampling(snapshot: Snapshot) -> list[BarItem]:
    """Return the sampling rate, the samples, the share of unresolved ones, and whether times are estimated."""
    counts = snapshot.counts
    if snapshot.why_not(HOOK_SAMPLES.name) is not None:
        return [headline.not_available("samples", 900)]
    items = []
    if "sampled_hz" in counts:
        rate = f"{counts['sampled_hz']:,} Hz"
        items.append(item(("sampled ", Role.DIM), (rate, Role.TEXT), importance=700))
    if "samples" in counts:
        items.append(samples(counts["samples"], 710))
        unresolved = counts.get("unresolved", snapshot.lost.get("unresolved"))
        if unresolved is not None and counts["samples"]:
            share = human(unresolved / counts["samples"], RATIO)
            items.append(
                item(("unresolved ", Role.DIM), (share, Role.TEXT), (" of samples", Role.DIM), importance=600)
            )
    return [*items, *syscalls_by_samples(snapshot)]


def syscalls_by_samples(snapshot: Snapshot) -> list[BarItem]:
    """Return `syscalls by samples` if times of system calls are estimated from samples."""
    hook = snapshot.hook(HOOK_SYSCALLS.name)
    if hook is None or hook.mechanism != HOOK_SAMPLES.name:
        return []
    return [item(("syscalls ", Role.DIM), ("by samples", Role.TEXT), importance=690)]


def cores_of(view: View, name: str, at: Index) -> float | None:
    """Return the CPU time of a column in CPUs, or None if unknown."""
    ns_per_s = view.total(name + RATE, at)
    return None if ns_per_s is None else ns_per_s / 1e9


def samples(count: int, importance: int) -> BarItem:
    """Return `1,264 samples`."""
    return item((f"{count:,}", Role.TEXT), (f" {plural('sample', count)}", Role.DIM), importance=importance)


def cpu_count_text(count: int) -> str:
    """Return `16 CPUs`."""
    return f"{count} {plural('CPU', count)}"
